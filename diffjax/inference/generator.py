"""Samples from a trained network with the settings of a config's `sample` section."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import denoisers, rng
from diffjax.conditioning.conditions import UNCONDITIONAL, Conditions, broadcast
from diffjax.distributed import processes
from diffjax.distributed.placement import Placement
from diffjax.errors import UserError
from diffjax.figures import to_uint8
from diffjax.images import to_model_range
from diffjax.inference.sampling import GuidanceModel, Sampling, WeakModel, apply_network
from diffjax.latent.space import DiffusionSpace
from diffjax.models.condition import Condition, SpatialMap, Text, null
from diffjax.models.network import Network
from diffjax.prediction import Prediction
from diffjax.sampling import guidance
from diffjax.types import Array


class Generated(NamedTuple):
    """A batch of samples.

    Attributes:
      images: uint8 (n, H, W, C), or float32 (n, ...) for data other than images.
      trajectory: float32 (N+1, n, ...), or None.
    """

    images: np.ndarray
    trajectory: np.ndarray | None


class Examples(NamedTuple):
    """Held-out examples that supply prompts and maps if the config sets none.

    captions: (n,) texts, or (); images: uint8 (n, H, W, C), from which maps are made; labels: int32
    (n,), -1 for none.
    """

    captions: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray


class Generator:
    """Sample i, for any i, as a function of (params, seed, i) and the config's sampler.

    Noise and condition depend on i and not on the batch, so the first eight samples of a hundred
    equal the eight samples of eight. Labels, prompts and maps are each repeated cyclically.
    """

    def __init__(
        self,
        network: Network,
        diffusion: Prediction,
        sampling: Sampling,
        *,
        space: DiffusionSpace,
        conditions: Conditions = UNCONDITIONAL,
        seed: int = 0,
        batch_size: int = 250,
        labels: tuple[int, ...] = (),
        prompts: tuple[str, ...] = (),
        negative_prompt: str = "",
        map_images: np.ndarray | None = None,
        examples: Callable[[], Examples] | None = None,
        weak: WeakModel | None = None,
    ) -> None:
        """Compiles nothing yet.

        Args:
          network, diffusion, sampling, space, conditions: the model and its sampling settings.
          seed: of the noise.
          batch_size: samples per batch.
          labels, prompts: used cyclically; () for every class, and for the captions of `examples`.
          negative_prompt: "" for none.
          map_images: uint8 (n, H, W, C), from which maps are made; None for those of `examples`.
          examples: called if prompts or maps are not given.
          weak: the weaker model, if the guidance needs one.

        Raises:
          UserError: a label outside of the model's classes.
        """
        self._network = network
        self._diffusion = diffusion
        self._space = space
        self._conditions = conditions
        self.weak = weak
        self._seed = seed
        self._batch_size = batch_size
        self.sampling = sampling
        num_classes = conditions.num_classes if sampling.uses_labels else 0
        self._labels = _labels(labels, num_classes)
        self._names_labels = bool(labels)
        self._prompts = prompts
        self._texts = conditions.texts
        self._map_images = map_images
        self._examples = examples
        self._loaded: Examples | None = None
        self._tables: dict[str, Any] = {}
        self._compiled: dict[tuple[int, bool], Callable[..., Any]] = {}
        # Encoded here, since `null` is called inside traces.
        self._negative = self.text([negative_prompt]) if negative_prompt else None

    def of(
        self,
        *,
        prompts: tuple[str, ...] = (),
        labels: tuple[int, ...] = (),
        map_images: np.ndarray | None = None,
        seed: int | None = None,
    ) -> "Generator":
        """A generator with other conditions and the same compiled programs.

        Empty or None arguments keep the config's values.

        Args:
          prompts, labels: see config.sample.
          map_images: uint8 (n, H, W, C), from which maps are made, n at least 1.
          seed: of the noise.

        Raises:
          UserError: a condition that the model does not take, or images of another shape.
        """
        other = copy.copy(self)
        if prompts:
            if not self._texts:
                raise UserError(f"prompts = {prompts}, but the model takes no text")
            other._prompts = prompts
        if labels:
            num_classes = self._conditions.num_classes if self.sampling.uses_labels else 0
            other._labels, other._names_labels = _labels(labels, num_classes), True
        if map_images is not None:
            if not self._space.map_channels:
                raise UserError("map_images were passed, but the model takes no map")
            fits = map_images.shape[1:] == self._space.image_shape and len(map_images) > 0
            if not fits or map_images.dtype != np.uint8:
                raise UserError(
                    f"map_images is {map_images.dtype} {map_images.shape}: expected uint8 "
                    f"(n, {', '.join(map(str, self._space.image_shape))})"
                )
            other._map_images = map_images
        if seed is not None:
            other._seed = seed
        return other

    def around(self, network: Network) -> "Generator":
        """A generator with another network."""
        other = copy.copy(self)
        other._network, other._compiled = network, {}
        return other

    @property
    def weak_params(self) -> Any:
        """The weaker model's parameters, or None."""
        return self.weak and self.weak.params

    def labels(self, start: int, count: int) -> np.ndarray | None:
        """The labels of samples start .. start + count - 1: int32 (count,), or None."""
        if self._labels is None:
            return None
        labels = self._labels
        if not self._names_labels and self._takes_own():
            labels = self._own().labels  # those of the images that supply captions or maps
        return labels[np.arange(start, start + count) % len(labels)]

    def _takes_own(self) -> bool:
        """Whether captions or maps are taken from held-out examples."""
        needs_map = bool(self._space.map_channels)
        return (self._texts is not None and not self._prompts) or (
            needs_map and self._map_images is None
        )

    def captions(self, start: int, count: int) -> list[str] | None:
        """The prompts of samples start .. start + count - 1, or None."""
        if self._texts is None:
            return None
        prompts = self._prompts or self._own().captions
        return [prompts[i % len(prompts)] for i in range(start, start + count)]

    def map_images(self, start: int, count: int) -> np.ndarray | None:
        """The images from which the maps of samples start .. start + count - 1 are made: uint8."""
        if not self._space.map_channels:
            return None
        images = self._own().images if self._map_images is None else self._map_images
        return images[np.arange(start, start + count) % len(images)]

    def condition(self, start: int, count: int) -> Condition | None:
        """The condition of samples start .. start + count - 1; None for an unconditional model."""
        if not self._conditions.any:
            return None
        labels = self.labels(start, count)
        text = None
        captions = self.captions(start, count)
        if captions is not None:
            text = self.text(captions)
        spatial = None
        images = self.map_images(start, count)
        if images is not None:
            spatial = SpatialMap(self._map_of(images), np.ones(count, bool))
        if labels is None and text is None and spatial is None:
            return None
        return Condition(labels, text, spatial)

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
            raise UserError("no condition: set config.sample.prompt or config.sample.maps")
        if self._loaded is None:
            self._loaded = self._examples()
        return self._loaded

    def _map_of(self, images: np.ndarray) -> Array:
        made = self._space.map_of(to_model_range(jnp.asarray(images)))
        assert made is not None
        return made

    def __call__(
        self,
        params: Any,
        *,
        start: int,
        count: int,
        keep_trajectory: bool = False,
        batch_size: int | None = None,
    ) -> Generated:
        """Samples start .. start + count - 1, in batches of one size, split among all devices.

        Args:
          params: the network's parameters.
          start: index of the first sample.
          count: number of samples.
          keep_trajectory: whether to return x_t after every step.
          batch_size: by default the smaller of config.sample.batch_size and `count`; rounded up to
            divide among the devices. Each size is compiled separately, so pass the same size in
            all calls of a series.

        Raises:
          UserError: a sample is not finite.
        """
        placement = Placement()
        size = placement.round_up_batch(batch_size or min(self._batch_size, count))
        draws, paths = [], []

        def images_of(x: Array, number: int) -> np.ndarray:
            return processes.on_host(self._space.to_images(x))[:number]

        for first in range(start, start + count, size):
            number = min(size, start + count - first)
            indices = first + np.arange(size)  # the last batch is padded: one compiled shape
            indices, condition = placement.shard_batch((indices, self.condition(first, size)))
            x_0, trajectory = self._compile(size, keep_trajectory)(
                params, indices, condition, self.weak_params, np.uint32(self._seed)
            )
            draws.append(images_of(x_0, number))
            if keep_trajectory:
                # By index: an array sharded over several processes can't be iterated over.
                steps = range(len(trajectory))
                paths.append(np.stack([images_of(trajectory[i], number) for i in steps]))
        images = np.concatenate(draws)
        if not np.isfinite(images).all():
            raise UserError(
                "the sampler returned values that are not finite: use more config.sample.steps, "
                "config.sample.threshold='clip', or another config.sample.checkpoint"
            )
        return Generated(
            self.finished(images), np.concatenate(paths, axis=1) if keep_trajectory else None
        )

    def finished(self, images: np.ndarray) -> np.ndarray:
        """Samples in their final type: uint8 images, or float32 data."""
        return to_uint8(images) if self._space.images else images

    @property
    def has_labels(self) -> bool:
        """Whether samples have labels."""
        return self._labels is not None

    @property
    def has_texts(self) -> bool:
        """Whether samples have prompts."""
        return self._texts is not None

    def _compile(self, size: int, keep_trajectory: bool) -> Callable[..., Any]:
        if (size, keep_trajectory) not in self._compiled:
            self._compiled[size, keep_trajectory] = jax.jit(
                self.function(keep_trajectory=keep_trajectory)
            )
        return self._compiled[size, keep_trajectory]

    def function(self, *, keep_trajectory: bool = False) -> Callable[..., Any]:
        """The pure function (params, indices (n,), condition, weak_params, seed) -> Samples.

        Samples are of x_0, latents in a latent model. The default seed is the config's.
        """
        sampling = self.sampling

        def generate(
            params: Any,
            indices: Array,
            condition: Any,
            weak_params: Any = None,
            seed: Array | None = None,
        ) -> Any:
            eps, keys = self.noise(indices, seed)
            samples = sampling.sampler(
                self.denoiser(params, weak_params),
                # x_T ~ N(0, noise_scale^2) at the grid's first time; for EDM, 80 eps.
                eps * jnp.float32(sampling.grid.noise_scale[0]),
                grid=sampling.grid,
                key=keys,
                cond=condition,
                keep_trajectory=keep_trajectory,
            )
            _check_samples(samples, eps.shape, keep_trajectory=keep_trajectory)
            return samples

        return generate

    def noise(self, indices: Array, seed: int | Array | None = None) -> tuple[Array, Array]:
        """Initial noise, standard normal (n, ...) of x_0's shape, and keys (n,) of the samples."""
        seed = self._seed if seed is None else seed
        start = rng.stream(seed, "sample_start")
        eps = rng.per_example(start, indices, lambda k: jax.random.normal(k, self._space.shape))
        steps = rng.stream(seed, "sample_steps")
        return eps, jax.vmap(lambda i: jax.random.fold_in(steps, i))(indices)

    def denoiser(self, params: Any, weak_params: Any = None) -> denoisers.Denoiser:
        """`guided`, with the config's thresholding."""
        return self.threshold(self.guided(params, weak_params))

    def threshold(self, denoise: denoisers.Denoiser) -> denoisers.Denoiser:
        """A denoiser with the config's thresholding."""
        return self.sampling.threshold(denoise, self._diffusion.schedule)

    def guided(self, params: Any, weak_params: Any = None) -> denoisers.Denoiser:
        """The network as a denoiser, with the config's guidance.

        Args:
          params: the network's parameters.
          weak_params: those of the weaker model; an argument like `params`, so that they are not
            compiled as constants.
        """
        weak = self.weak
        model = GuidanceModel(
            denoise=_denoiser(self._network, self._diffusion, params),
            schedule=self._diffusion.schedule,
            conditional=self._conditions.any,
            num_classes=self._conditions.num_classes,
            null=self.null,
            network=self._network,
            shape=self._space.shape,
            denoiser_of=lambda network: _denoiser(network, self._diffusion, params),
            weak=weak and _denoiser(weak.network, weak.diffusion, weak_params),
        )
        try:
            return self.sampling.guide(model)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"config.sample.guidance = {self.sampling.guidance!r}: {error}"
            ) from error

    def null(self, condition: Any) -> Any:
        """The null condition of guidance, or the negative prompt in its place."""
        if not isinstance(condition, Condition):
            return guidance.no_label(condition)
        nothing = null(condition)
        if self._negative is None or nothing.text is None:
            return nothing
        text = broadcast(self._negative, len(nothing.text.mask))
        return nothing._replace(text=text)


def _denoiser(network: Network, diffusion: Prediction, params: Any) -> denoisers.Denoiser:
    return diffusion.denoiser(apply_network(network, params))


def _check_samples(samples: Any, shape: tuple[int, ...], *, keep_trajectory: bool) -> None:
    """Raises ValueError unless a sampler's result is `samplers.Samples` of a shape."""
    x_0, path = samples if isinstance(samples, tuple) and len(samples) == 2 else (None, None)
    if getattr(x_0, "shape", None) != shape:
        kind = type(samples).__name__ if x_0 is None else f"x_0 of {getattr(x_0, 'shape', x_0)}"
        raise ValueError(f"the sampler returned {kind}: expected samplers.Samples of {shape}")
    if keep_trajectory and (path is None or path.shape[1:] != shape):
        raise ValueError(
            "the sampler returned no trajectory with keep_trajectory=True: expected "
            f"(steps + 1, *{shape}), from x_T to x_0"
        )


def _labels(labels: tuple[int, ...], num_classes: int) -> np.ndarray | None:
    if not num_classes:
        if labels:
            raise UserError(
                f"config.sample.labels = {labels} but the model is not class-conditional: leave "
                "it empty"
            )
        return None
    bad = [label for label in labels if not -1 <= label < num_classes]
    if bad:
        raise UserError(
            f"config.sample.labels has {bad[0]}: expected classes 0..{num_classes - 1}, or -1 for "
            "no class; leave it empty for every class in turn"
        )
    return np.asarray(labels or range(num_classes), np.int32)
