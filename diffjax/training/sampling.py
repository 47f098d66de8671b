"""Images from a trained network, as a config's `sample` section asks for them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import denoisers, rng
from diffjax.errors import UserError
from diffjax.figures import to_uint8
from diffjax.models import UNet
from diffjax.schedules import Array
from diffjax.training import build, build_sampling


class Weak(NamedTuple):
    """The weaker model of autoguidance: a network, what it predicts, and its parameters."""

    network: UNet
    diffusion: build.Diffusion
    params: Any


class Draw(NamedTuple):
    """A batch of samples. images: uint8 (n, H, W, C); trajectory: float32 (N+1, n, H, W, C)."""

    images: np.ndarray
    trajectory: np.ndarray | None


class Generator:
    """Sample number i, for any i: a function of (params, seed, i) and the config's sampler.

    Numbers, not batches, decide the noise and the label, so the first eight samples of a hundred
    are the eight samples of eight.
    """

    def __init__(
        self,
        config: Any,
        network: UNet,
        diffusion: build.Diffusion,
        *,
        image_shape: tuple[int, int, int],
        weak: Weak | None = None,
    ) -> None:
        """Resolves the config; nothing is compiled yet.

        Args:
          config: the config.
          network, diffusion, image_shape: what it was resolved to.
          weak: the weaker model, where config.sample.guidance asks for one.

        Raises:
          UserError: an unknown sampler, grid, guidance or threshold, or labels that the model
            doesn't have.
        """
        self._network = network
        self._diffusion = diffusion
        self._image_shape = image_shape
        self.weak = weak
        self._seed = config.sample.seed
        self._batch_size = config.sample.batch_size
        self.sampling = build_sampling.sampling(config, diffusion.schedule)
        num_classes = network.num_classes if self.sampling.uses_labels else 0
        self._labels = _labels(tuple(config.sample.labels), num_classes)
        self._guidance = config.sample.guidance
        self._compiled: dict[tuple[int, bool], Callable[..., Any]] = {}

    @property
    def weak_params(self) -> Any:
        """The weaker model's parameters, or None."""
        return self.weak and self.weak.params

    def labels(self, start: int, count: int) -> np.ndarray | None:
        """The labels of samples start .. start + count - 1: int32 (count,), or None."""
        if self._labels is None:
            return None
        return self._labels[np.arange(start, start + count) % len(self._labels)]

    def __call__(
        self,
        params: Any,
        *,
        start: int,
        count: int,
        keep_trajectory: bool = False,
        batch_size: int | None = None,
    ) -> Draw:
        """Samples start .. start + count - 1, in batches of one size.

        Args:
          params: the network's parameters.
          start: number of the first sample.
          count: how many.
          keep_trajectory: whether x_t is returned after every step.
          batch_size: samples computed at once, by default config.sample.batch_size or, if that
            is fewer, `count`. Each size is compiled anew, so whoever asks for many parts, one of
            them smaller, names one size for all.

        Raises:
          UserError: a value that is not finite came out.
        """
        size = batch_size or min(self._batch_size, count)
        draws, paths = [], []
        for first in range(start, start + count, size):
            wanted = min(size, start + count - first)
            indices = first + np.arange(size)  # the last batch is filled up: one compiled shape
            labels = self.labels(first, size)
            x_0, trajectory = self._compile(size, keep_trajectory)(
                params, indices, labels, self.weak_params
            )
            draws.append(np.asarray(x_0)[:wanted])
            if keep_trajectory:
                paths.append(np.asarray(trajectory)[:, :wanted])
        x_0 = np.concatenate(draws)
        if not np.isfinite(x_0).all():
            raise UserError(
                "the sampler returned values that are not finite: take more config.sample.steps, "
                "config.sample.threshold='clip', or another config.sample.checkpoint"
            )
        return Draw(to_uint8(x_0), np.concatenate(paths, axis=1) if keep_trajectory else None)

    def _compile(self, size: int, keep_trajectory: bool) -> Callable[..., Any]:
        if (size, keep_trajectory) not in self._compiled:
            self._compiled[size, keep_trajectory] = jax.jit(
                self.function(keep_trajectory=keep_trajectory)
            )
        return self._compiled[size, keep_trajectory]

    def function(self, *, keep_trajectory: bool = False) -> Callable[..., Any]:
        """The pure function (params, indices (n,), labels (n,) or None, weak_params) -> Samples."""
        sampling = self.sampling

        def generate(
            params: Any, indices: Array, labels: Array | None, weak_params: Any = None
        ) -> Any:
            eps, keys = self.noise(indices)
            return sampling.sampler(
                self.denoiser(params, weak_params),
                # At the grid's first time a sample of data at rest is noise_scale eps, for EDM
                # 80 eps.
                eps * jnp.float32(sampling.grid.noise_scale[0]),
                grid=sampling.grid,
                key=keys,
                cond=labels,
                keep_trajectory=keep_trajectory,
            )

        return generate

    def noise(self, indices: Array) -> tuple[Array, Array]:
        """The start, standard normal (n, H, W, C), and the sampler's key, (n,), of each sample."""
        start = rng.stream(self._seed, "sample_start")
        eps = rng.per_example(start, indices, lambda k: jax.random.normal(k, self._image_shape))
        steps = rng.stream(self._seed, "sample_steps")
        return eps, jax.vmap(lambda i: jax.random.fold_in(steps, i))(indices)

    def denoiser(self, params: Any, weak_params: Any = None) -> denoisers.Denoiser:
        """`guided`, thresholded as the config says."""
        return self.threshold(self.guided(params, weak_params))

    def threshold(self, denoise: denoisers.Denoiser) -> denoisers.Denoiser:
        """The config's thresholding around a denoiser."""
        return self.sampling.threshold(denoise, self._diffusion.schedule)

    def guided(self, params: Any, weak_params: Any = None) -> denoisers.Denoiser:
        """The network as a denoiser, guided as the config says.

        Args:
          params: the network's parameters.
          weak_params: those of the weaker model; an argument, as `params` is, so that no program
            holds them as constants.
        """
        weak = self.weak
        model = build_sampling.Model(
            denoise=_denoiser(self._network, self._diffusion, params),
            schedule=self._diffusion.schedule,
            num_classes=self._network.num_classes,
            attention_blocks=self._network.attention_blocks(self._image_shape[0]),
            variant=lambda **fields: _denoiser(
                self._network.clone(**fields), self._diffusion, params
            ),
            weak=weak and _denoiser(weak.network, weak.diffusion, weak_params),
        )
        try:
            return self.sampling.guide(model)
        except (ValueError, TypeError) as error:
            raise UserError(f"config.sample.guidance = {self._guidance!r}: {error}") from error


def _denoiser(network: UNet, diffusion: build.Diffusion, params: Any) -> denoisers.Denoiser:
    return denoisers.denoiser(
        build.apply_network(network, params),
        diffusion.schedule,
        parametrisation=diffusion.parametrisation,
        time_input=diffusion.time_input,
    )


def _labels(wanted: tuple[int, ...], num_classes: int) -> np.ndarray | None:
    if not num_classes:
        if wanted:
            raise UserError(
                f"config.sample.labels = {wanted} but the model is not class-conditional: leave "
                "it empty"
            )
        return None
    bad = [label for label in wanted if not -1 <= label < num_classes]
    if bad:
        raise UserError(
            f"config.sample.labels has {bad[0]}: expected classes 0..{num_classes - 1}, or -1 for "
            "no class; leave it empty for every class in turn"
        )
    return np.asarray(wanted or range(num_classes), np.int32)
