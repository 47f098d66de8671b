"""A trained diffusion model as functions of arrays.

    import diffjax
    model = diffjax.load("runs/text_to_image-tiny")
    images = model.sample(["a red apple", "a blue heart"])      # uint8 (2, 64, 64, 3)

It does not depend on data sets, optimizers or training; `experiment.load` makes a `Pipeline` from a
stored run. A method is compiled at the first call with a shape or a setting.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import arguments, likelihood, rng
from diffjax.data.info import DataInfo
from diffjax.denoisers import Denoiser
from diffjax.distributed import processes
from diffjax.errors import UserError
from diffjax.grids import Grid
from diffjax.inference.edit import Editing, EditInputs
from diffjax.inference.edit_tasks import Task, with_signal
from diffjax.inference.generator import Generator
from diffjax.inference.inputs import (
    choice_of,
    condition_of,
    data_of,
    each_of,
    floats_of,
    images_of,
    mask_of,
    seed_of,
    settings_of,
    times_of,
)
from diffjax.inference.upscaling import Upscaling
from diffjax.latent.space import DiffusionSpace
from diffjax.likelihood.ode import start_time
from diffjax.parametrisations import Estimates
from diffjax.prediction import Prediction
from diffjax.sampling import samplers
from diffjax.types import Array

# Settings of `config.sample` -> their generator.
MakeGenerator = Callable[[dict[str, Any]], Generator]


class Pipeline:
    """A trained model: sample, edit, encode, decode, denoise, log_likelihood.

    Attributes:
      params: the averaged parameters.
      step: number of updates.
      about: description of the training data: shape, class names.
      space: the space of x_0: pixels, arrays or latents.
      diffusion: the schedule, and the parametrisation of the network's prediction.
      trained_shape: of what the network was trained on: that of x_0, or of windows of it.
    """

    def __init__(
        self,
        *,
        params: Any,
        step: int,
        about: DataInfo,
        space: DiffusionSpace,
        diffusion: Prediction,
        make_generator: MakeGenerator,
        make_task: Callable[[str], Task],
        has_fixed_ends: bool = True,
        trained_shape: tuple[int, ...] | None = None,
    ) -> None:
        """Takes the parts that `experiment.load` resolves.

        Args:
          params, step, about, space, diffusion: see the attributes.
          make_generator: settings that override the run's `sample` section -> a generator.
          make_task: "vary(strength=0.5)" -> the task.
          has_fixed_ends: whether the schedule's ends were fixed in training.
          trained_shape: see the attributes; None for that of x_0.
        """
        self.params, self.step, self.about = params, step, about
        self.space, self.diffusion = space, diffusion
        self.trained_shape = trained_shape or space.shape
        self._make_generator, self._make_task = make_generator, make_task
        self._has_fixed_ends = has_fixed_ends
        self._generators: dict[tuple[Any, ...], Generator] = {}
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def sample(
        self,
        prompts: Sequence[str] = (),
        *,
        labels: Sequence[int] = (),
        map_images: np.ndarray | None = None,
        embeddings: np.ndarray | None = None,
        count: int | None = None,
        seed: int = 0,
        **how: Any,
    ) -> np.ndarray:
        """Draws samples with the settings of the run's `sample` section.

        Args:
          prompts: texts, for a text-conditional model; repeated cyclically if `count` is larger.
          labels: classes, for a class-conditional model; likewise.
          map_images: uint8 (n, H, W, C), from which maps are made, for a model with maps; likewise.
          embeddings: float (n, D), image embeddings such as `embed` returns, for a model that is
            conditioned on them; likewise.
          count: number of samples; by default the length of the longest of these.
          seed: of the noise.
          how: settings that override the run's: sampler, grid, steps, guidance, threshold,
            negative_prompt, batch_size, augmentation_level, prior, candidates; for example
            guidance="classifier_free(scale=3.0)".

        Returns:
          uint8 (count, H, W, C), or float32 (count, ...) for data other than images.

        Raises:
          UserError: a condition that the model does not take, or an invalid setting.
        """
        choice = choice_of(prompts, labels, map_images)
        if embeddings is not None:
            given = arguments.array("embeddings", embeddings, expected="floats (n, D)", finite=True)
            choice = choice._replace(embeddings=given)
        arrays = [a for a in (choice.map_images, choice.embeddings) if a is not None]
        longest = max(1, len(choice.prompts), len(choice.labels), *map(len, arrays))
        number = longest if count is None else arguments.whole("count", count, least=1)
        generator = self.generator(**how).of(choice, seed=seed_of(seed))
        return generator(self.params, start=0, count=number).images

    def embed(self, images: np.ndarray) -> np.ndarray:
        """The embeddings of images, as this model is conditioned on them.

        Args:
          images: uint8 (n, H, W, C) of the model's size.

        Returns:
          float32 (n, D).

        Raises:
          UserError: a model that is not conditioned on image embeddings, or other images.
        """
        embedding = self.generator().conditions.model.embedding
        if embedding is None:
            raise UserError(
                "this model is not conditioned on image embeddings: train one with "
                "config.condition.embedding"
            )
        return embedding.of_images(images_of("images", images, self.space))

    def edit(
        self,
        images: np.ndarray,
        task: str,
        *,
        mask: np.ndarray | None = None,
        prompts: Sequence[str] = (),
        labels: Sequence[int] = (),
        count: int = 5,
        seed: int = 0,
        **how: Any,
    ) -> np.ndarray:
        """Edits images: uint8 (rows, columns, H, W, C), the image itself in the first column.

        Args:
          images: uint8 (n, H, W, C) of the model's size; for "upscale" of any size.
          task: see `config.edit.task`: "inpaint", "repaint", "vary(strength=0.5)", "invert",
            "interpolate", "super_resolution", "deblur", "colourise", "upscale", and of models that
            are conditioned on image embeddings "variations", "interpolate_embeddings" and
            "text_difference(start='a cat', end='a dog')".
          mask: (H, W) or (H, W, 1), above 0 where the image is kept, for inpaint and repaint.
          prompts, labels: none, one, or one per image.
          count: variants of an image, or images between two.
          seed: of the noise.
          how: see `sample`.

        Raises:
          UserError: images or conditions that the model or the task does not support.
        """
        task, count = arguments.text("task", task), arguments.whole("count", count, least=1)
        made, seed = self._make_task(task), seed_of(seed)
        choice = choice_of(prompts, labels, None)
        if made.enlarges:
            if mask is not None:
                raise UserError(f"{task} takes no mask: leave it out")
            key = ("upscale", *settings_of(how)[1])
            if key not in self._compiled:
                self._compiled[key] = Upscaling(self.generator(**how), what=task)
            upscaled: np.ndarray = self._compiled[key](
                self.params, images, choice, count=count, seed=seed
            )
            return upscaled
        images = images_of("images", images, self.space)
        kept = None if mask is None else mask_of(mask, images.shape[1:3])
        generator = self.generator(**how).of(seed=seed)
        each = each_of(
            choice, generator.conditions, count=len(images), texts_optional=made.of_embedding
        )
        inputs = EditInputs(images, kept, *each)
        editing = Editing(
            made, generator, self.diffusion, self.space, inputs, count=count, what=task
        )
        return editing.run(self.params)

    def upscale(
        self,
        images: np.ndarray,
        *,
        prompts: Sequence[str] = (),
        labels: Sequence[int] = (),
        seed: int = 0,
        **how: Any,
    ) -> np.ndarray:
        """Images of high resolution for those of low resolution, by a model of `super_resolution`.

        Args:
          images: uint8 (n, h, w, C) of any height and width.
          prompts, labels: none, one, or one per image.
          seed: of the noise.
          how: see `sample`; augmentation_level is the level of the noise that is added to what the
            images are resized to, for images that are not as sharp as those of training.

        Returns:
          uint8 (n, factor h, factor w, C).

        Raises:
          UserError: a model without the map, or images or conditions that it does not support.
        """
        drawn = self.edit(
            images, "upscale", prompts=prompts, labels=labels, count=1, seed=seed, **how
        )
        return drawn[:, 1]

    def encode(
        self,
        x: np.ndarray,
        *,
        prompts: Sequence[str] = (),
        labels: Sequence[int] = (),
        map_images: np.ndarray | None = None,
        iterations: int = 0,
        **how: Any,
    ) -> np.ndarray:
        """The noise of data by DDIM inversion: `samplers.ddim_inversion` on the run's grid.

        Args:
          x: uint8 images (n, H, W, C), or floating-point data of the model's shape.
          prompts, labels, map_images: none, one, or one per example; see `sample`.
          iterations: fixed-point iterations per step, for a more accurate inversion.
          how: see `sample`.

        Returns:
          float32 (n, ...) x_T in the model's space, for `decode`.

        Raises:
          UserError: data or conditions that the model does not support.
        """
        data = data_of("x", x, self.space)
        iterations = arguments.whole("iterations", iterations)
        generator = self.generator(**how)
        grid = with_signal(generator.sampling.grid)

        def run(params: Any, weak_params: Any, x_0: Array, cond: Any) -> Array:
            denoise = generator.denoiser(params, weak_params)
            return samplers.ddim_inversion(
                denoise, x_0, grid=grid, cond=cond, iterations=iterations
            ).x_0

        x_0 = self.space.of_images(data)
        choice = choice_of(prompts, labels, map_images)
        cond = condition_of(choice, generator.conditions, count=len(data))
        compute = self._jitted(("encode", iterations), how, run)
        return np.asarray(compute(self.params, generator.weak_params, x_0, cond))

    def decode(
        self,
        noise: np.ndarray,
        *,
        prompts: Sequence[str] = (),
        labels: Sequence[int] = (),
        map_images: np.ndarray | None = None,
        **how: Any,
    ) -> np.ndarray:
        """DDIM samples from the noise of `encode`, with the same settings; returns like `sample`.

        Raises:
          UserError: noise or conditions that the model does not support.
        """
        generator = self.generator(**how)
        grid = with_signal(generator.sampling.grid)

        def run(params: Any, weak_params: Any, x_T: Array, cond: Any) -> Array:
            denoise = generator.denoiser(params, weak_params)
            return samplers.ddim(denoise, x_T, grid=grid, cond=cond).x_0

        x_T = floats_of("noise", noise, self.space)
        choice = choice_of(prompts, labels, map_images)
        cond = condition_of(choice, generator.conditions, count=len(x_T))
        compute = self._jitted(("decode",), how, run)
        x_0 = compute(self.params, generator.weak_params, x_T, cond)
        return generator.finished(processes.on_host(self.space.to_images(x_0)))

    def denoise(
        self,
        x_t: Array,
        t: Any,
        *,
        prompts: Sequence[str] = (),
        labels: Sequence[int] = (),
        map_images: np.ndarray | None = None,
        **how: Any,
    ) -> Estimates:
        """The model's estimates of x_0 and eps at (x_t, t), with the run's guidance.

        Args:
          x_t: (n, ...) in the model's space, such as noisy images of clean range [-1, 1].
          t: scalar or (n,): times of `diffusion.schedule`, from 0, clean, to `schedule.T`, noise.
          prompts, labels, map_images: none, one, or one per example; see `sample`.
          how: see `sample`.

        Raises:
          UserError: data or conditions that the model does not support.
        """
        generator = self.generator(**how)

        def run(params: Any, weak_params: Any, x_t: Array, t: Array, cond: Any) -> Estimates:
            return generator.denoiser(params, weak_params)(x_t, t, cond)

        x_t = floats_of("x_t", x_t, self.space)
        times = times_of(t, len(x_t), self.diffusion.schedule)
        choice = choice_of(prompts, labels, map_images)
        cond = condition_of(choice, generator.conditions, count=len(x_t))
        compute = self._jitted(("denoise",), how, run)
        estimates: Estimates = compute(self.params, generator.weak_params, x_t, times, cond)
        return estimates

    def log_likelihood(
        self,
        x: np.ndarray,
        *,
        prompts: Sequence[str] = (),
        labels: Sequence[int] = (),
        map_images: np.ndarray | None = None,
        seed: int = 0,
        rtol: float = 1e-4,
        atol: float = 1e-4,
        divergence: str = "hutchinson",
    ) -> np.ndarray:
        """log p(x) in nats, by the probability-flow ODE (`likelihood.ode`), without guidance.

        For images it is a lower bound on the log-probability of their 256 levels, by truncated
        normal dequantisation; bits per dimension are -log_likelihood / (log 2 x number of values).
        For other data it is the log-density at the schedule's lowest noise level.

        Args:
          x: uint8 images (n, H, W, C), or floating-point data of the model's shape.
          prompts, labels, map_images: none, one, or one per example; see `sample`.
          seed: of the dequantisation and the divergence's probes.
          rtol, atol, divergence: see `likelihood.ode_log_likelihood`.

        Returns:
          float64 (n,).

        Raises:
          UserError: a latent model, a schedule with learned ends, or data that the model does not
            support.
        """
        if self.space.images and self.space.shape != self.space.image_shape:
            raise UserError(
                "log_likelihood: a latent model has no density of images: use a pixel model"
            )
        if not self._has_fixed_ends:
            raise UserError(
                "log_likelihood: the ends of this model's schedule were learned: use "
                "--mode=evaluate --config.evaluate.likelihood=ode"
            )
        if divergence not in ("hutchinson", "exact"):
            raise UserError(f"divergence is {divergence!r}: expected 'hutchinson' or 'exact'")
        rtol = arguments.number("rtol", rtol, above=0)
        atol = arguments.number("atol", atol, above=0)
        how = {"guidance": "none", "threshold": "none"}
        generator = self.generator(**how)
        schedule, size = self.diffusion.schedule, math.prod(self.space.shape)
        solver = likelihood.OdeSolver(divergence, rtol=rtol, atol=atol)

        def of_images(params: Any, data: Array, keys: Array, cond: Any) -> Array:
            result = likelihood.ode_bits_per_dim(
                generator.denoiser(params), data, key=keys, cond=cond,
                schedule=schedule, dequantise=likelihood.truncated_normal(schedule), solver=solver,
            )  # fmt: skip
            return -result.bits_per_dim * size * math.log(2)

        def of_arrays(params: Any, data: Array, keys: Array, cond: Any) -> Array:
            signal, noise = schedule(jnp.asarray(start_time(schedule, None)))
            for_noise, for_probes = jax.vmap(jax.random.split, out_axes=1)(keys)
            eps = jax.vmap(lambda k: jax.random.normal(k, self.space.shape))(for_noise)
            result = likelihood.ode_log_likelihood(
                generator.denoiser(params), signal * data + noise * eps, key=for_probes, cond=cond,
                schedule=schedule, solver=solver,
            )  # fmt: skip
            return result.log_prob + size * jnp.log(signal)

        data = data_of("x", x, self.space)
        choice = choice_of(prompts, labels, map_images)
        cond = condition_of(choice, generator.conditions, count=len(data))
        keys = jax.random.split(rng.stream(seed_of(seed), "likelihood"), len(data))
        name = ("log_likelihood", rtol, atol, divergence)
        compute = self._jitted(name, how, of_images if self.space.images else of_arrays)
        return np.asarray(compute(self.params, data, keys, cond), np.float64)

    def generator(self, **how: Any) -> Generator:
        """The run's generator, with overridden settings; see `sample`."""
        settings, key = settings_of(how)
        if key not in self._generators:
            self._generators[key] = self._make_generator(settings)
        return self._generators[key]

    def denoiser(self, **how: Any) -> Denoiser:
        """The guided, thresholded denoiser, for use with any sampler."""
        generator = self.generator(**how)
        return generator.denoiser(self.params, generator.weak_params)

    @property
    def grid(self) -> Grid:
        """The run's sampling grid."""
        return self.generator().sampling.grid

    def _jitted(
        self, name: tuple[Any, ...], how: dict[str, Any], function: Callable[..., Any]
    ) -> Callable[..., Any]:
        """The compiled function of a method, cached by its name, options and settings."""
        key = (*name, *settings_of(how)[1])
        if key not in self._compiled:
            self._compiled[key] = jax.jit(function)
        return self._compiled[key]
