"""Low-resolution images of any size, enlarged by a model of super-resolution."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from diffjax.errors import UserError
from diffjax.figures import to_uint8
from diffjax.images import to_model_range
from diffjax.inference.generator import Generator
from diffjax.inference.inputs import each_of, low_resolution_of
from diffjax.inference.sample_conditions import OPEN, Choice


class Upscaling:
    """Samples of high resolution given images of low resolution, as a function of the parameters.

    The model is one of pixels that is conditioned on `super_resolution`, of any network that takes
    images of any size. Each size is compiled once.
    """

    def __init__(self, generator: Generator, *, what: str = "upscale") -> None:
        """Takes a model's generator.

        Args:
          generator: its sampler, guidance and augmentation level.
          what: the task's name in messages.

        Raises:
          UserError: a model without the map.
        """
        make: Any = generator.conditions.model.make_map
        if not hasattr(make, "enlarged"):
            raise UserError(
                f"{what} needs a model that is conditioned on low-resolution images: train with "
                "config.condition.map = 'super_resolution(factor=4)', or use the task "
                "super_resolution(factor=4), which needs no training"
            )
        self.factor: int = make.factor
        self._make, self._generator, self._what = make, generator, what
        self._sized: dict[tuple[int, int], Generator] = {}

    def __call__(
        self,
        params: Any,
        images: np.ndarray,
        choice: Choice = OPEN,
        *,
        count: int = 1,
        seed: int | None = None,
    ) -> np.ndarray:
        """The images, interpolated and `count` samples of each: (n, 1 + count, f h, f w, C) uint8.

        Args:
          params: the network's parameters.
          images: uint8 (n, h, w, C) of low resolution; f is the factor.
          choice: labels and prompts: none, one, or one per image.
          count: samples of each.
          seed: of the noise; None for the generator's.

        Raises:
          UserError: images of other channels or of another type, a condition that the model does
            not take, a network that does not take the images' size, or a sample that is not finite.
        """
        channels = self._generator.image_shape[-1]
        images = low_resolution_of("images", images, channels=channels)
        labels, texts = each_of(choice, self._generator.conditions, count=len(images))
        size = (self.factor * images.shape[1], self.factor * images.shape[2])
        drawn_from = Choice(
            () if labels is None else tuple(np.repeat(labels, count).tolist()),
            () if texts is None else tuple(text for text in texts for _ in range(count)),
            low_resolution=np.repeat(images, count, axis=0),
        )
        try:
            if size not in self._sized:
                self._sized[size] = self._generator.at_size(size)
            generator = self._sized[size].of(drawn_from, seed=seed)
            drawn = generator(params, start=0, count=len(images) * count).images
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self._what} to {size[0]}x{size[1]}: {str(error).splitlines()[0]}"
            ) from error
        enlarged = to_uint8(np.asarray(self._make.enlarged(to_model_range(jnp.asarray(images)))))
        return np.concatenate(
            [enlarged[:, None], drawn.reshape(len(images), count, *drawn.shape[1:])], axis=1
        )
