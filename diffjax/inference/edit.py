"""Edits of images by a trained model: rows of an image and its results."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.errors import UserError
from diffjax.figures import to_uint8
from diffjax.images import to_model_range
from diffjax.inference.edit_tasks import Row, Task
from diffjax.inference.generator import Generator
from diffjax.latent.space import DiffusionSpace
from diffjax.models.condition import Condition
from diffjax.prediction import Prediction
from diffjax.progress import Bar
from diffjax.types import Array


class EditInputs(NamedTuple):
    """What is edited, and under which conditions.

    Attributes:
      images: uint8 (n, H, W, C), n at least `task.images`.
      mask: float32 (H, W, 1), 1 where the image is kept; None for a task without one.
      labels: int (n,), -1 for no class; None for a model without classes.
      captions: n texts, or None.
    """

    images: np.ndarray
    mask: np.ndarray | None = None
    labels: np.ndarray | None = None
    captions: Sequence[str] | None = None


class Editing:
    """An editing task on images, as a function of the parameters; `run` computes it."""

    def __init__(
        self,
        task: Task,
        generator: Generator,
        diffusion: Prediction,
        space: DiffusionSpace,
        inputs: EditInputs,
        *,
        count: int,
        what: str = "the edit",
    ) -> None:
        """Checks the inputs of all rows.

        Args:
          task: see `edit_tasks`.
          generator: the model's sampler and guidance.
          diffusion, space: the model's.
          inputs: see `EditInputs`.
          count: variants, or images between two images.
          what: the task's name in messages.

        Raises:
          UserError: images, a mask, labels or captions that the task or the model does not support.
        """
        self.task, self.what = task, what
        self._generator, self._diffusion, self._space = generator, diffusion, space
        images, mask, labels, captions = inputs
        self._images, self._count, self._mask = images, count, mask
        self._labels, self._captions = labels, captions
        if generator.sampling.jumps:
            raise UserError(
                f"{what}: edits need the estimates of x_0 that a flow map's steps have not: set "
                "config.sample.sampler to another one, such as ddim with several steps"
            )
        if not space.images:
            raise UserError(f"{what}: edits are of images, but this model's data are arrays")
        if task.of_pixels and space.shape != space.image_shape:
            raise UserError(
                f"{what} measures pixels, but this model diffuses latents: use inpaint, repaint, "
                "vary, invert or interpolate"
            )
        if len(images) < task.images:
            raise UserError(f"{what} needs {task.images} images, but there are {len(images)}")
        if (mask is not None) != task.masked:
            raise UserError(
                f"{what} needs a mask, 1 where the image is kept and 0 where it is generated"
                if task.masked
                else f"{what} takes no mask: leave it out, or use the task inpaint or repaint"
            )
        if mask is not None and not np.asarray(space.mask(mask)).any():
            raise UserError(
                f"{what}: the mask keeps no block of pixels of a latent whole: keep larger areas"
            )
        embedding = generator.conditions.model.embedding
        if task.of_embedding and embedding is None:
            raise UserError(
                f"{what} decodes image embeddings, and this model is not conditioned on them: "
                "train one with config.condition.embedding"
            )
        self._places = None
        if task.captions and embedding is not None:
            if not generator.conditions.has_texts:
                raise UserError(
                    f"{what} needs a model with a text encoder: train one with "
                    "config.condition.text, such as minilm"
                )
            pooled = generator.conditions.text(task.captions).pooled
            self._places = embedding.fitted.of_text(pooled)
        if task.images > 1:
            if labels is not None and len(set(labels.tolist())) > 1:
                raise UserError(f"{what} uses one label for all images: give one label")
            if captions is not None and len(set(captions)) > 1:
                raise UserError(f"{what} uses one prompt for all images: give one prompt")

    def columns(self) -> list[str]:
        """The names of a row's images."""
        return list(self.task.columns(self._count))

    def run(self, params: Any) -> np.ndarray:
        """Computes all rows, sequentially: uint8 (rows, columns, H, W, C).

        Raises:
          UserError: the sampler does not support the task, or a value is not finite.
        """
        edited = jax.jit(self._function())
        space, count = self._space, self._count
        mask = None if self._mask is None else space.mask(self._mask)
        rows = []
        number = len(self._images) - self.task.images + 1
        with Bar(self.what, number, at_once=1) as bar:
            for i in range(number):
                indices = i * count + np.arange(count)
                images = to_model_range(jnp.asarray(self._images[i : i + self.task.images]))
                try:
                    x_0 = edited(
                        params, self._generator.weak_params, space.of_images(images), mask,
                        self._condition(i), indices, self._embeddings(i), self._places,
                    )  # fmt: skip
                    row = np.asarray(self._with_known_pixels(space.to_images(x_0), images))
                except (ValueError, TypeError, ZeroDivisionError) as error:
                    raise UserError(f"{self.what}: {str(error).splitlines()[0]}") from error
                if not np.isfinite(row).all():
                    raise UserError(
                        f"image {i}: the result is not finite: use more config.sample.steps or "
                        "config.sample.threshold='clip'"
                    )
                rows.append(to_uint8(row))
                bar(i + 1)
        return np.stack(rows)

    def _function(self) -> Any:
        """The pure function (params, weak_params, x_0, mask, condition, indices, embeddings,
        places) -> x_0s."""
        generator = self._generator

        def edited(
            params: Any, weak_params: Any, x_0: Array, mask: Array, condition: Any, indices: Array,
            embeddings: Array | None, places: Array | None,
        ) -> Array:  # fmt: skip
            eps, keys = generator.noise(indices)
            return self.task.run(
                Row(
                    images=x_0,
                    mask=mask,
                    eps=eps,
                    keys=keys,
                    condition=condition,
                    guided=generator.guided(params, weak_params),
                    threshold=generator.threshold,
                    schedule=self._diffusion.schedule,
                    sampler=generator.sampling.sampler,
                    grid=generator.sampling.grid,
                    embeddings=embeddings,
                    places=places,
                    inpaints=getattr(self._space, "inpaints", False),
                )
            )

        return edited

    def _condition(self, i: int) -> Condition | None:
        """The condition of row i, for one example."""
        label = None if self._labels is None else self._labels[i : i + 1]
        text = None
        if self._captions is not None:
            text = self._generator.conditions.text([self._captions[i]])
        made = self._space.map_of(to_model_range(jnp.asarray(self._images[i : i + 1])), self._mask)
        spatial = None  # its own
        if made is not None:
            spatial = self._generator.conditions.noised(made, np.array([i]))
        model = self._generator.conditions.model
        embeddings = self._embeddings(i)  # its own, too
        embedding = None if embeddings is None else embeddings[:1]
        if model.image_prompt:
            embedding = self._generator.conditions.image_prompts(i, 1)
        control = self._generator.conditions.control(i, 1)
        edited = Condition(label, text, spatial, model.no_augmentation(1), embedding, control)
        return None if all(part is None for part in edited) else edited

    def _embeddings(self, i: int) -> np.ndarray | None:
        """The embeddings of row i's images, (images, D), for a model that is given them."""
        embedding = self._generator.conditions.model.embedding
        if embedding is None:
            return None
        return embedding.of_images(self._images[i : i + self.task.images])

    def _with_known_pixels(self, row: Array, images: Array) -> Array:
        """The row with the original known pixels in place of a first stage's reconstruction."""
        row = jnp.concatenate([images[:1], row[1:]])
        if self.task.images > 1:
            row = jnp.concatenate([row[:-1], images[-1:]])
        if self._mask is None:
            return row
        keep = jnp.asarray(self._mask) > 0.5
        known = jnp.where(keep, images[:1], 0.0)
        return jnp.concatenate([images[:1], known, jnp.where(keep, images[:1], row[2:])])


def row_names(names: Sequence[str], task: Task) -> list[str]:
    """One name per row: the image's, or "a - b" for two images."""
    if task.images == 1:
        return list(names)
    return [f"{a} - {b}" for a, b in itertools.pairwise(names)]
