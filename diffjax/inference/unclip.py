"""Text -> image embedding -> image: a diffusion prior before a decoder, and edits of embeddings.

Ramesh et al. 2022 (DALL-E 2, "unCLIP"). A `Prior` draws the embedding of an image for a text; a
model with `config.condition.embedding`, the decoder, draws an image for an embedding.

    import diffjax
    decoder = diffjax.load("runs/unclip-tiny")
    images = decoder.sample(["a red heart"], prior="runs/prior-tiny")

The editing tasks of this module are of the decoder alone: they decode other embeddings than the
image's own, or its own with other noise.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffjax import arguments
from diffjax.conditioning.image_embedding import Fitted
from diffjax.errors import UserError
from diffjax.inference.edit_tasks import Row, Task, check_whole, noise_of, numbered, with_signal
from diffjax.inference.inputs import seed_of
from diffjax.inference.pipeline import Pipeline
from diffjax.inference.sample_conditions import Choice
from diffjax.sampling import editing, samplers
from diffjax.types import Array


class Prior:
    """A trained prior as a function from texts to image embeddings."""

    def __init__(self, pipeline: Pipeline, *, what: str = "this model") -> None:
        """Takes a model of `config.data.embedding`.

        Args:
          pipeline: the model, as `diffjax.load` returns it.
          what: its name in messages.

        Raises:
          UserError: a model of something else than image embeddings, or without text.
        """
        conditions = pipeline.generator().conditions
        if not pipeline.about.embedding or pipeline.about.images:
            raise UserError(
                f"{what} draws no image embeddings: give a prior, which is trained with "
                "config.data.embedding"
            )
        if not conditions.has_texts:
            raise UserError(f"{what} takes no text: train it with config.condition.text")
        self._pipeline, self._what = pipeline, what
        self.fitted = Fitted.from_json(pipeline.about.embedding)

    def check(self, decoder: Fitted) -> None:
        """Compares the prior's embedding with that of a decoder.

        Raises:
          UserError: they are different functions.
        """
        ours, theirs = self.fitted, decoder
        if ours.identity != theirs.identity:
            raise UserError(
                f"{self._what} draws an embedding function of another run, {ours.name} of "
                f"{ours.dimensions} dimensions, and the decoder was trained on {theirs.name} of "
                f"{theirs.dimensions}: train both with the same weights, images and "
                "config.embedding.dimensions"
            )

    def of_text(self, prompts: Sequence[str]) -> np.ndarray:
        """The linear projection of texts into the space: float32 (n, D), without the prior.

        Raises:
          UserError: the run has no projection.
        """
        text = self._pipeline.generator().conditions.text(list(prompts))
        return np.asarray(self.fitted.of_text(text.pooled))

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        candidates: int = 2,
        start: int = 0,
        seed: int = 0,
        **how: Any,
    ) -> np.ndarray:
        """Embeddings of images for texts: float32 (n, D).

        For each text several are drawn, and the one with the highest dot product with the text's
        own projection is returned, both at unit length as CLIP's are (section 2.2). Number
        start + i depends on its text, its number and the seed alone.

        Args:
          prompts: n texts.
          candidates: samples for each text.
          start: number of the first text.
          seed: of the noise.
          how: settings that override the run's; see `Pipeline.sample`.

        Raises:
          UserError: an invalid argument, or a run without a projection and several candidates.
        """
        prompts = arguments.texts("prompts", prompts)
        candidates = arguments.whole("candidates", candidates, least=1)
        start = arguments.whole("start", start)
        count = len(prompts) * candidates
        if not count:
            raise UserError("prompts is empty: expected one or more texts")
        # Sample i of a generator has prompt i modulo their number.
        turn = start * candidates % count
        each = [text for text in prompts for _ in range(candidates)]
        each = each[count - turn :] + each[: count - turn]
        labels = (-1,) if self._pipeline.generator().conditions.has_labels else ()
        generator = self._pipeline.generator(**how).of(
            Choice(labels, tuple(each)), seed=seed_of(seed)
        )
        drawn = generator(self._pipeline.params, start=start * candidates, count=count).images
        drawn = drawn.reshape(len(prompts), candidates, -1)
        if candidates == 1:
            return drawn[:, 0]
        wanted = self.of_text(prompts)
        lengths = np.linalg.norm(drawn, axis=-1)
        products = np.einsum("ncd,nd->nc", drawn, wanted) / np.maximum(lengths, 1e-12)
        return drawn[np.arange(len(prompts)), products.argmax(1)]


def variations() -> Task:
    """The image, and `count` images decoded from its embedding with other noise (section 3.1)."""

    def run(row: Row) -> Array:
        return jnp.concatenate([row.images, _decoded(row, _own(row), row.eps, row.keys)])

    return Task(run, numbered("image"), of_embedding=True)


def interpolate_embeddings() -> Task:
    """From one image to the next along a great circle between their embeddings, with one noise
    (section 3.2)."""

    def run(row: Row) -> Array:
        count = len(row.eps)
        start, end = (jnp.repeat(z[None], count, axis=0) for z in _embeddings(row))
        between = editing.slerp(start, end, jnp.arange(1, count + 1) / (count + 1))
        decoded = _decoded(row, between, *_first_noise(row))
        return jnp.concatenate([row.images[:1], decoded, row.images[1:]])

    def columns(count: int) -> Sequence[str]:
        return ("image", *(f"{(i + 1) / (count + 1):.2f}" for i in range(count)), "image")

    return Task(run, columns, images=2, of_embedding=True)


def text_difference(*, start: str, end: str, most: float = 0.5, iterations: int = 2) -> Task:
    """The image, and `count` images on the way that leads from one caption to another.

    Section 3.3: with z_d = z(end) - z(start), the difference of the captions' places among the
    embeddings, at the length of the image's z, slerp(z, z_d, weight) is decoded by DDIM from the
    image's own noise, its DDIM inversion under z. The weights go from 0, which reconstructs the
    image, to `most`; the paper's are 0.25 to 0.5.

    Args:
      start, end: captions, such as "a photo of a cat" and "an anime drawing of a super saiyan cat".
      most: the last weight, in (0, 1].
      iterations: fixed-point iterations of the inversion, per step.
    """
    for name, text in (("start", start), ("end", end)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} must be a caption, not {text!r}")
    if start == end:
        raise ValueError(f"start and end must differ, and both are {start!r}")
    if not 0 < most <= 1:
        raise ValueError(f"most must be in (0, 1], not {most}")
    check_whole("iterations", iterations, 0)

    def run(row: Row) -> Array:
        assert row.places is not None
        grid, weights = with_signal(row.grid), jnp.asarray(_weights(len(row.eps), most))
        x_T = jnp.repeat(noise_of(row, grid, iterations), len(weights), axis=0)
        z = _own(row)
        way = row.places[1:] - row.places[:1]
        way = way * (jnp.linalg.norm(z[:1]) / jnp.maximum(jnp.linalg.norm(way), 1e-12))
        moved = editing.slerp(z, jnp.repeat(way, len(z), axis=0), weights)
        cond = row.conditions(len(z))._replace(embedding=moved)
        return jnp.concatenate(
            [row.images, samplers.ddim(row.denoise, x_T, grid=grid, cond=cond).x_0]
        )

    def columns(count: int) -> Sequence[str]:
        return ("image", *(f"{weight:.2f}" for weight in _weights(count, most)))

    return Task(run, columns, uses_sampler=False, of_embedding=True, captions=(start, end))


def _weights(count: int, most: float) -> list[float]:
    return [most * i / (count - 1) for i in range(count)] if count > 1 else [most]


def _embeddings(row: Row) -> Array:
    assert row.embeddings is not None
    return row.embeddings


def _own(row: Row) -> Array:
    """The first image's embedding for each result, (count, D)."""
    return jnp.repeat(_embeddings(row)[:1], len(row.eps), axis=0)


def _first_noise(row: Row) -> tuple[Array, Array]:
    """The same noise and key for each result."""
    count = len(row.eps)
    return jnp.repeat(row.eps[:1], count, axis=0), jnp.repeat(row.keys[:1], count, axis=0)


def _decoded(row: Row, embedding: Array, eps: Array, keys: Array) -> Array:
    """Samples of the config's sampler for embeddings (count, D)."""
    cond = row.conditions(len(eps))._replace(embedding=embedding)
    x_T = eps * jnp.float32(row.grid.noise_scale[0])
    x_0: Array = row.sampler(row.denoise, x_T, grid=row.grid, key=keys, cond=cond).x_0
    return x_0


# Each by its name in `config.edit.task`.
TASKS: dict[str, Callable[..., Task]] = {
    task.__name__: task for task in (variations, interpolate_embeddings, text_difference)
}
