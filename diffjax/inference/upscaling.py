"""Low-resolution images of any size, enlarged by a model of super-resolution."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffjax.errors import UserError
from diffjax.figures import to_uint8
from diffjax.images import to_model_range
from diffjax.inference.generator import Generator
from diffjax.inference.sample_conditions import Choice


class Upscaling:
    """Samples of high resolution given images of low resolution, as a function of the parameters.

    The model is one of pixels that is conditioned on `super_resolution`, of any network that takes
    images of any size. Each size is compiled once.
    """

    def __init__(self, generator: Generator, *, channels: int, what: str = "upscale") -> None:
        """Takes a model's generator.

        Args:
          generator: its sampler, guidance and augmentation level.
          channels: of its images.
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
        self._channels = channels
        self._sized: dict[tuple[int, int], Generator] = {}

    def __call__(
        self,
        params: Any,
        images: np.ndarray,
        *,
        count: int = 1,
        labels: Sequence[int] | np.ndarray | None = None,
        captions: Sequence[str] | None = None,
        seed: int | None = None,
    ) -> np.ndarray:
        """The images, interpolated and `count` samples of each: (n, 1 + count, f h, f w, C) uint8.

        Args:
          params: the network's parameters.
          images: uint8 (n, h, w, C) of low resolution; f is the factor.
          count: samples of each.
          labels: one per image, -1 for no class; None for a model without classes.
          captions: one per image; None for a model without texts.
          seed: of the noise; None for the generator's.

        Raises:
          UserError: images of other channels or of another type, a network that does not take
            their size, or a sample that is not finite.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
            raise UserError(
                f"{self._what}: images is {images.dtype} {images.shape}: expected uint8 "
                f"(n, h, w, {self._channels})"
            )
        if images.shape[-1] != self._channels:
            raise UserError(
                f"{self._what}: the images have {images.shape[-1]} channels and the model's have "
                f"{self._channels}: convert them"
            )
        size = (self.factor * images.shape[1], self.factor * images.shape[2])
        choice = Choice(
            () if labels is None else tuple(int(label) for label in np.repeat(labels, count)),
            () if captions is None else tuple(text for text in captions for _ in range(count)),
            low_resolution=np.repeat(images, count, axis=0),
        )
        try:
            if size not in self._sized:
                self._sized[size] = self._generator.at_size(size)
            generator = self._sized[size].of(choice, seed=seed)
            drawn = generator(params, start=0, count=len(images) * count).images
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self._what} to {size[0]}x{size[1]}: {str(error).splitlines()[0]}"
            ) from error
        enlarged = to_uint8(np.asarray(self._make.enlarged(to_model_range(jnp.asarray(images)))))
        return np.concatenate(
            [enlarged[:, None], drawn.reshape(len(images), count, *drawn.shape[1:])], axis=1
        )
