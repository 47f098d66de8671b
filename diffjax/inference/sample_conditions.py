"""What samples are conditioned on: labels, prompts, maps and image embeddings by the number of a
sample."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import rng
from diffjax.conditioning import maps
from diffjax.conditioning.conditions import UNCONDITIONAL, Conditions, broadcast
from diffjax.errors import UserError
from diffjax.images import to_model_range
from diffjax.latent.space import DiffusionSpace
from diffjax.models.condition import Condition, Control, SpatialMap, Text, null
from diffjax.sampling import guidance
from diffjax.types import Array

# (texts, number of the first sample, seed) -> image embeddings (n, D)
Embed = Callable[[Sequence[str], int, int], np.ndarray]


class Examples(NamedTuple):
    """Held-out examples that supply prompts, maps and image embeddings if the config sets none.

    captions: (n,) texts, or (); images: uint8 (n, H, W, C), from which maps and embeddings are
    made; labels: int32 (n,), -1 for none.
    """

    captions: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray


class ControlImages(NamedTuple):
    """What ControlNets are given.

    Attributes:
      images: uint8 (n, H, W, C) for each ControlNet, in turn.
      scales: one each.
    """

    images: tuple[np.ndarray, ...]
    scales: tuple[float, ...]


class Choice(NamedTuple):
    """Which conditions; what is empty or None is left open.

    Attributes:
      labels: in turn; () for every class.
      prompts: in turn; () for the captions of the examples.
      negative_prompt: "" for none.
      map_images: uint8 (n, H, W, C), from which maps are made; None for those of the examples.
      low_resolution: uint8 (n, h, w, C), which maps of super-resolution are made of instead; any h
        and w, if the space is of their size times the factor.
      embeddings: float (n, D) of images; None for those of the examples.
      control: images of ControlNets.
      image_prompts: float (n, D), embeddings of images that samples are prompted with.
    """

    labels: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    negative_prompt: str = ""
    map_images: np.ndarray | None = None
    low_resolution: np.ndarray | None = None
    embeddings: np.ndarray | None = None
    control: ControlImages | None = None
    image_prompts: np.ndarray | None = None


OPEN = Choice()


class SampleConditions:
    """The condition of sample number i, for any i: labels, prompts, maps and image embeddings
    each go round."""

    def __init__(
        self,
        space: DiffusionSpace,
        conditions: Conditions = UNCONDITIONAL,
        choice: Choice = OPEN,
        *,
        uses_labels: bool = True,
        examples: Callable[[], Examples] | None = None,
        level: float = 0.0,
        seed: int = 0,
        embed: Embed | None = None,
    ) -> None:
        """Encodes the negative prompt, since `null` is called inside traces.

        Args:
          space: the model's.
          conditions: what the model is conditioned on.
          choice: see `Choice`.
          uses_labels: whether the guidance uses a sample's label.
          examples: called where prompts or maps are left open.
          level: of the noise that is added to maps of super-resolution, in [0, 1].
          seed: of that noise, and of `embed`.
          embed: a prior, which draws the embeddings that the choice leaves open.

        Raises:
          UserError: a label that the model does not have, or a level for a model without one.
        """
        _check_level(level, conditions)
        self._level, self._seed, self._embed = level, seed, embed
        self.model = conditions
        self._space, self._examples = space, examples
        self._num_classes = conditions.num_classes if uses_labels else 0
        self._labels = _labels(choice.labels, self._num_classes)
        self._names_labels = bool(choice.labels)
        self._prompts, self._map_images = choice.prompts, choice.map_images
        self._low, self._embeddings = choice.low_resolution, choice.embeddings
        self._control, self._image_prompts = choice.control, choice.image_prompts
        self._texts = conditions.texts
        self._loaded: Examples | None = None
        self._tables: dict[str, Any] = {}
        self._negative: Text | None = None
        if choice.negative_prompt:
            self._negative = self.text([choice.negative_prompt])
        elif self._texts is not None and self._texts.null is not None:
            self._negative = self._texts.null()

    def of(
        self,
        choice: Choice,
        *,
        seed: int | None = None,
        space: DiffusionSpace | None = None,
        level: float | None = None,
    ) -> "SampleConditions":
        """The same with what a choice names; its empty or None fields keep the values of now.

        Args:
          choice: see `Choice`.
          seed: of the maps' noise; None for the same.
          space: one of images of another size; None for the same.
          level: of the maps' noise; None for the same.

        Raises:
          UserError: a condition that the model does not take, or images of another shape.
        """
        if level is not None:
            _check_level(level, self.model)
        other, (labels, prompts, _, map_images, low, embeddings) = copy.copy(self), choice[:6]
        other._control = choice.control or self._control
        if choice.image_prompts is not None:
            other._image_prompts = choice.image_prompts
        other._seed = self._seed if seed is None else seed
        other._space = self._space if space is None else space
        other._level = self._level if level is None else level
        if low is not None:
            other._low, other._map_images = low, None
        if embeddings is not None:
            width = self.model.embedding_width
            if not width:
                raise UserError("embeddings were passed, but the model takes none")
            if embeddings.ndim != 2 or embeddings.shape[1] != width or not len(embeddings):
                raise UserError(
                    f"embeddings are {embeddings.dtype} {embeddings.shape}: expected floats "
                    f"(n, {width}), as this model's embedding has"
                )
            other._embeddings = embeddings
        if prompts:
            if not (self._texts or self._embed):
                raise UserError(f"prompts = {prompts}, but the model takes no text")
            other._prompts = prompts
        if labels:
            other._labels = _labels(labels, self._num_classes, name="labels")
            other._names_labels = True
        if map_images is not None:
            if not other._space.map_channels:
                raise UserError("map_images were passed, but the model takes no map")
            fits = map_images.shape[1:] == other._space.image_shape and len(map_images) > 0
            if not fits or map_images.dtype != np.uint8:
                raise UserError(
                    f"map_images is {map_images.dtype} {map_images.shape}: expected uint8 "
                    f"(n, {', '.join(map(str, other._space.image_shape))})"
                )
            other._map_images, other._low = map_images, None
        return other

    @property
    def has_labels(self) -> bool:
        """Whether samples have labels."""
        return self._labels is not None

    @property
    def has_texts(self) -> bool:
        """Whether samples have prompts."""
        return self._texts is not None

    @property
    def has_embeddings(self) -> bool:
        """Whether samples have image embeddings."""
        return self.model.embedding is not None

    @property
    def has_prior(self) -> bool:
        """Whether a prior draws the embeddings that are left open."""
        return self._embed is not None

    def labels(self, start: int, count: int) -> np.ndarray | None:
        """The labels of samples start .. start + count - 1: int32 (count,), or None."""
        if self._labels is None:
            return None
        labels = self._labels
        if not self._names_labels and self._takes_own():
            labels = self._own().labels  # those of the images that supply the other conditions
        return labels[np.arange(start, start + count) % len(labels)]

    def _takes_own(self) -> bool:
        """Whether captions, maps or embeddings are taken from held-out examples."""
        needs_map = bool(self._space.map_channels)
        needs_embedding = self.has_embeddings and self._embeddings is None
        needs_text = self._texts is not None or (needs_embedding and self._embed is not None)
        return (
            (needs_text and not self._prompts)
            or (needs_map and self._map_images is None and self._low is None)
            or (needs_embedding and self._embed is None)
        )

    def captions(self, start: int, count: int) -> list[str] | None:
        """The prompts of samples start .. start + count - 1, or None."""
        if self._texts is None and self._embed is None:
            return None
        prompts = self._prompts or self._own().captions
        if not prompts:
            raise UserError("the data have no captions: set config.sample.prompt")
        return [prompts[i % len(prompts)] for i in range(start, start + count)]

    def map_images(self, start: int, count: int) -> np.ndarray | None:
        """The images from which the maps of samples start .. start + count - 1 are made: uint8."""
        if not self._space.map_channels or self._low is not None:
            return None
        images = self._own().images if self._map_images is None else self._map_images
        return images[np.arange(start, start + count) % len(images)]

    def embeddings(self, start: int, count: int) -> np.ndarray | None:
        """The image embeddings of samples start .. start + count - 1: float32 (count, D)."""
        if self.model.embedding is None:
            return None
        numbers = np.arange(start, start + count)
        if self._embeddings is not None:
            given = self._embeddings[numbers % len(self._embeddings)]
            return np.asarray(given, np.float32)
        if self._embed is not None:
            captions = self.captions(start, count)
            assert captions is not None
            return self._embed(captions, start, self._seed)
        images = self._own().images
        return self.model.embedding.of_images(images[numbers % len(images)])

    def batch(self, start: int, count: int) -> Condition | None:
        """The condition of samples start .. start + count - 1; None for an unconditional model."""
        augmentation = self.model.no_augmentation(count)
        if not self.model.any and augmentation is None:
            return None
        labels = self.labels(start, count)
        text = None
        captions = self.captions(start, count)
        if captions is not None and self._texts is not None:
            text = self.text(captions)
        spatial = None
        if self._space.map_channels:
            numbers = np.arange(start, start + count)
            spatial = self.noised(self._map_values(start, count), numbers)
        embedding = self.embeddings(start, count)
        if self.model.image_prompt:
            embedding = self.image_prompts(start, count)
        control = self.control(start, count)
        made = Condition(labels, text, spatial, augmentation, embedding, control)
        return None if all(part is None for part in made) else made

    def control(self, start: int, count: int) -> Control | None:
        """What the ControlNets are given for samples start .. start + count - 1, or None."""
        if not self.model.controls:
            return None
        if self._control is None:
            raise UserError(
                "the model has a ControlNet: give control_images, or load it without control"
            )
        numbers = np.arange(start, start + count)
        images = tuple(
            images[numbers % len(images)].astype(np.float32) / 255
            for images in self._control.images
        )
        return Control(images, np.tile(np.asarray(self._control.scales, np.float32), (count, 1)))

    def image_prompts(self, start: int, count: int) -> np.ndarray | None:
        """The embeddings of the images that samples start .. start + count - 1 are prompted with:
        float32 (count, D), or None."""
        if not self.model.image_prompt:
            return None
        given = self._image_prompts
        if given is None:
            raise UserError(
                "the model has an image adapter: give image_prompts, or load it without "
                "image_adapter"
            )
        return given[np.arange(start, start + count) % len(given)]

    def given_images(self) -> dict[str, int]:
        """The number of images of ControlNets, the largest one, and of image prompts, if any."""
        found = {}
        if self._control is not None:
            found["control_images"] = max(map(len, self._control.images))
        if self._image_prompts is not None:
            found["image_prompts"] = len(self._image_prompts)
        return found

    def text(self, captions: Sequence[str]) -> Text:
        """Encoded prompts; each distinct one is encoded once."""
        assert self._texts is not None
        distinct = tuple(dict.fromkeys(captions))
        new = [caption for caption in distinct if caption not in self._tables]
        if new:
            encoded = self._texts.encode(new)
            for i, caption in enumerate(new):
                self._tables[caption] = Text(*(x if x is None else x[i] for x in encoded))
        rows = [self._tables[caption] for caption in captions]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    def _own(self) -> Examples:
        if self._examples is None:
            raise UserError(
                "no condition: set config.sample.prompt or config.sample.maps, or pass embeddings"
            )
        if self._loaded is None:
            self._loaded = self._examples()
        return self._loaded

    def noised(self, values: Array, numbers: np.ndarray) -> SpatialMap:
        """Maps (B, H, W, C) of samples by number, at the level of sampling."""
        key = rng.stream(self._seed, "sample_map")
        make = self.model.make_map
        return maps.at_level(make, values, self._level, key=key, indices=jnp.asarray(numbers))

    def _map_values(self, start: int, count: int) -> Array:
        if self._low is not None:
            enlarge: Any = self.model.make_map
            low = self._low[np.arange(start, start + count) % len(self._low)]
            enlarged: Array = enlarge.enlarged(to_model_range(jnp.asarray(low)))
            return enlarged
        images = self.map_images(start, count)
        assert images is not None
        made = self._space.map_of(to_model_range(jnp.asarray(images)))
        assert made is not None
        return made

    def null(self, condition: Any) -> Any:
        """The null condition of guidance, or the negative prompt in its place."""
        if not isinstance(condition, Condition):
            return guidance.no_label(condition)
        nothing = null(condition, keep_map=self.model.keep_map)
        if self._negative is None or nothing.text is None:
            return nothing
        text = broadcast(self._negative, len(nothing.text.mask))
        return nothing._replace(text=text)


def _check_level(level: float, conditions: Conditions) -> None:
    if level and not conditions.map_level:
        raise UserError(
            f"config.sample.augmentation_level = {level} but the model's maps are without "
            "noise: set it to 0, or train with config.condition.map = 'super_resolution(...)'"
        )


def _labels(
    labels: tuple[int, ...], num_classes: int, *, name: str = "config.sample.labels"
) -> np.ndarray | None:
    if not num_classes:
        if labels:
            raise UserError(
                f"{name} = {labels} but the model is not class-conditional: leave it empty"
            )
        return None
    bad = [label for label in labels if not -1 <= label < num_classes]
    if bad:
        raise UserError(
            f"{name} has {bad[0]}: expected classes 0..{num_classes - 1}, or -1 for no class; "
            "leave it empty for every class in turn"
        )
    return np.asarray(labels or range(num_classes), np.int32)
