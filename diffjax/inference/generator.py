"""Samples from a trained network with the settings of a config's `sample` section."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import denoisers, rng
from diffjax.distributed import processes
from diffjax.distributed.placement import Placement
from diffjax.errors import UserError
from diffjax.figures import to_uint8
from diffjax.flow_maps import FlowMap
from diffjax.inference.sample_conditions import OPEN, Choice, SampleConditions
from diffjax.inference.sampling import GuidanceModel, OtherModel, Sampling, apply_network
from diffjax.latent.space import DiffusionSpace, PixelSpace
from diffjax.models.network import Network
from diffjax.prediction import Prediction
from diffjax.progress import Bar
from diffjax.types import Array


class Generated(NamedTuple):
    """A batch of samples.

    Attributes:
      images: uint8 (n, H, W, C), or float32 (n, ...) for data other than images.
      trajectory: float32 (N+1, n, ...), or None.
      stages: of a cascade, the images of each stage; the last are `images`.
    """

    images: np.ndarray
    trajectory: np.ndarray | None
    stages: tuple[np.ndarray, ...] = ()


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
        conditions: SampleConditions,
        seed: int = 0,
        batch_size: int = 250,
        weak: OtherModel | None = None,
    ) -> None:
        """Compiles nothing yet.

        Args:
          network, diffusion, space: the model.
          sampling: its sampler, grid, guidance and thresholding.
          conditions: of the samples.
          seed: of the noise.
          batch_size: samples computed at once.
          weak: the weaker model, where the guidance needs one.
        """
        self.sampling, self.conditions, self.weak = sampling, conditions, weak
        self._network, self._diffusion, self._space = network, diffusion, space
        self._seed, self._batch_size = seed, batch_size
        self._compiled: dict[tuple[int, bool], Callable[..., Any]] = {}

    def of(
        self, choice: Choice = OPEN, *, seed: int | None = None, level: float | None = None
    ) -> Self:
        """A generator with other conditions and the same compiled programs.

        Args:
          choice: see `SampleConditions.of`.
          seed: of the noise; None for the same.
          level: the augmentation level of the maps; None for the same.

        Raises:
          UserError: a condition that the model does not take, or images of another shape.
        """
        other = copy.copy(self)
        other.conditions = self.conditions.of(choice, seed=seed, level=level)
        if seed is not None:
            other._seed = seed
        return other

    def at_size(self, size: tuple[int, int], choice: Choice = OPEN) -> Self:
        """A generator of images of another height and width, for a network that takes any size.

        Args:
          size: (height, width).
          choice: see `SampleConditions.of`.

        Raises:
          UserError: a model of latents or arrays.
        """
        space = self._space
        if not space.images or space.shape != space.image_shape:
            raise UserError("images of another size need a model of pixels")
        other = copy.copy(self)
        other._space = PixelSpace((*size, space.shape[-1]), self.conditions.model.make_map)
        other.conditions = self.conditions.of(choice, space=other._space)
        other._compiled = {}
        return other

    def around(self, network: Network) -> Self:
        """A generator with another network."""
        other = copy.copy(self)
        other._network, other._compiled = network, {}
        return other

    @property
    def network(self) -> Network:
        """The network, as `around` replaces it."""
        return self._network

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C) of the samples, or the shape of other data."""
        return self._space.image_shape

    @property
    def weak_params(self) -> Any:
        """The weaker model's parameters, or None."""
        return self.weak and self.weak.params

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

        with Bar("samples", count, unit="sample", at_once=size) as bar:
            for first in range(start, start + count, size):
                number = min(size, start + count - first)
                indices = first + np.arange(size)  # the last batch is padded: one compiled shape
                indices, condition = placement.shard_batch(
                    (indices, self.conditions.batch(first, size))
                )
                x_0, trajectory = self._compile(size, keep_trajectory)(
                    params, indices, condition, self.weak_params, np.uint32(self._seed)
                )
                draws.append(images_of(x_0, number))
                if keep_trajectory:
                    # By index: an array sharded over several processes can't be iterated over.
                    steps = range(len(trajectory))
                    paths.append(np.stack([images_of(trajectory[i], number) for i in steps]))
                bar(first - start + number)
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
                self.flow_map(params) if sampling.jumps else self.denoiser(params, weak_params),
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

    def flow_map(self, params: Any) -> FlowMap:
        """The network as a flow map, which has its guidance inside."""
        return self._diffusion.flow_map(apply_network(self._network, params))

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
            conditional=self.conditions.model.any_dropped,
            num_classes=self.conditions.model.num_classes,
            null=self.conditions.null,
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
