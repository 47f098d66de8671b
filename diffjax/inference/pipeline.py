"""A trained diffusion model as functions of arrays.

    import diffjax
    model = diffjax.load("runs/emoji_text_to_image-tiny")
    images = model.sample(["a red apple", "a blue heart"])      # uint8 (2, 64, 64, 3)

Nothing here knows of data sets, optimizers or training; `experiment.load` makes a `Pipeline` from
what is stored of a run. What is called with other guidance, sampler or shape is compiled then.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import likelihood, rng, samplers
from diffjax.data.info import DataInfo
from diffjax.denoisers import Denoiser
from diffjax.distributed import hosts
from diffjax.errors import UserError
from diffjax.grids import Grid
from diffjax.images import to_model_range
from diffjax.inference.edit import Editing
from diffjax.inference.edit_tasks import Task, with_signal
from diffjax.inference.generator import Generator
from diffjax.latent.space import Space
from diffjax.likelihood.ode import start_time
from diffjax.parametrisations import Estimates
from diffjax.prediction import Prediction
from diffjax.schedules import Array

# Settings of `config.sample` -> what samples by them.
MakeGenerator = Callable[[dict[str, Any]], Generator]
MAX_SEED = 2**32


class Pipeline:
    """A trained model: sample, edit, encode, decode, denoise, log_likelihood.

    Attributes:
      params: the averaged parameters.
      step: updates that they have seen.
      about: the data that it was trained on: shape, class names.
      space: what x_0 is: pixels, arrays or latents.
      diffusion: the schedule, and what the network predicts.
    """

    def __init__(
        self,
        *,
        params: Any,
        step: int,
        about: DataInfo,
        space: Space,
        diffusion: Prediction,
        make_generator: MakeGenerator,
        make_task: Callable[[str], Task],
    ) -> None:
        """Takes what `experiment.load` resolved.

        Args:
          params, step, about, space, diffusion: see the attributes.
          make_generator: settings of the run's `sample` section that differ -> a generator.
          make_task: "vary(strength=0.5)" -> the task.
        """
        self.params, self.step, self.about = params, step, about
        self.space, self.diffusion = space, diffusion
        self._make_generator, self._make_task = make_generator, make_task
        self._generators: dict[tuple[tuple[str, Any], ...], Generator] = {}
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def sample(
        self,
        prompts: Sequence[str] = (),
        *,
        labels: Sequence[int] = (),
        map_images: np.ndarray | None = None,
        count: int | None = None,
        seed: int = 0,
        **how: Any,
    ) -> np.ndarray:
        """Draws samples as the run's `sample` section says.

        Args:
          prompts: texts, for a model with text; they go round where `count` is more.
          labels: classes, for a class-conditional model; likewise.
          map_images: uint8 (n, H, W, C) that maps are made of, for a model with one; likewise.
          count: how many; as many as there are of the longest of these by default.
          seed: of the noise.
          how: in place of the run's settings: sampler, grid, steps, guidance, threshold,
            negative_prompt, batch_size; guidance="classifier_free(scale=3.0)", for example.

        Returns:
          uint8 (count, H, W, C); of data that is no images, float32 (count, ...).

        Raises:
          UserError: a condition that the model has no use for, or an invalid setting.
        """
        if isinstance(prompts, str):
            raise UserError(f"prompts is the text {prompts!r}: put it in a list")
        given = (prompts, labels, () if map_images is None else map_images)
        number = max(1, *map(len, given)) if count is None else count
        if number < 1:
            raise UserError(f"count is {count}: expected at least 1")
        if type(seed) is not int or not 0 <= seed < MAX_SEED:
            raise UserError(f"seed is {seed!r}: expected a whole number in [0, 2**32)")
        generator = self.generator(**how).of(
            prompts=tuple(prompts), labels=tuple(labels), map_images=map_images, seed=seed
        )
        return generator(self.params, start=0, count=number).images

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
          images: uint8 (n, H, W, C) of the model's size.
          task: as `config.edit.task`: "inpaint", "repaint", "vary(strength=0.5)", "invert",
            "interpolate", "super_resolution", "deblur", "colourise".
          mask: (H, W) or (H, W, 1), above 0 where the image is kept, for inpaint and repaint.
          prompts, labels: none, one, or one an image.
          count: variants of an image, or pictures between two.
          seed: of the noise.
          how: see `sample`.

        Raises:
          UserError: images or conditions that don't fit the model or the task.
        """
        images = self._images(images)
        generator = self.generator(**how).of(seed=seed)
        kept = None
        if mask is not None:
            kept = (np.asarray(mask).reshape(*images.shape[1:3], 1) > 0).astype(np.float32)
        numbers = self._for_each(labels, images, "labels", generator.has_labels)
        texts = self._for_each(prompts, images, "prompts", generator.has_texts)
        editing = Editing(
            self._make_task(task), generator, self.diffusion, self.space, images=images,
            count=count, mask=kept, captions=texts, what=task,
            labels=None if numbers is None else np.asarray(numbers, np.int32),
        )  # fmt: skip
        return editing.run(self.params)

    def encode(
        self,
        x: np.ndarray,
        *,
        prompts: Sequence[str] = (),
        labels: Sequence[int] = (),
        iterations: int = 0,
        **how: Any,
    ) -> np.ndarray:
        """The noise that DDIM makes the data from: `samplers.ddim_inversion` on the run's grid.

        Args:
          x: uint8 images (n, H, W, C), or floating-point data of the model's shape.
          prompts, labels: none, one, or one an example.
          iterations: of the fixed point, for a closer inversion.
          how: see `sample`.

        Returns:
          float32 (n, ...) x_T of the space that is diffused, for `decode`.
        """
        generator, cond = self._conditioned(len(x), prompts, labels, how)
        grid = with_signal(generator.sampling.grid)
        x_0 = self.space.of_images(self._data(x))

        def run(params: Any, weak_params: Any, x_0: Array, cond: Any) -> Array:
            denoise = generator.denoiser(params, weak_params)
            return samplers.ddim_inversion(
                denoise, x_0, grid=grid, cond=cond, iterations=iterations
            ).x_0

        return np.asarray(jax.jit(run)(self.params, generator.weak_params, x_0, cond))

    def decode(
        self,
        noise: np.ndarray,
        *,
        prompts: Sequence[str] = (),
        labels: Sequence[int] = (),
        **how: Any,
    ) -> np.ndarray:
        """What DDIM makes of noise from `encode`, with the same settings: samples as `sample`'s."""
        generator, cond = self._conditioned(len(noise), prompts, labels, how)
        grid = with_signal(generator.sampling.grid)

        def run(params: Any, weak_params: Any, x_T: Array, cond: Any) -> Array:
            denoise = generator.denoiser(params, weak_params)
            return samplers.ddim(denoise, x_T, grid=grid, cond=cond).x_0

        x_0 = jax.jit(run)(self.params, generator.weak_params, jnp.asarray(noise), cond)
        return generator.finished(hosts.on_host(self.space.to_images(x_0)))

    def denoise(
        self,
        x_t: Array,
        t: Any,
        *,
        prompts: Sequence[str] = (),
        labels: Sequence[int] = (),
        **how: Any,
    ) -> Estimates:
        """The model's estimates of x_0 and eps at (x_t, t), with the run's guidance.

        Args:
          x_t: (n, ...) of the space that is diffused, such as float images in [-1, 1] with noise.
          t: a number or (n,): times of `diffusion.schedule`, 0 clean and `schedule.T` noise.
          prompts, labels: none, one, or one an example.
          how: see `sample`.
        """
        generator, cond = self._conditioned(len(x_t), prompts, labels, how)
        run = jax.jit(
            lambda params, weak, x_t, t, cond: generator.denoiser(params, weak)(x_t, t, cond)
        )
        times = jnp.asarray(t, jnp.int32 if self.diffusion.schedule.discrete else jnp.float32)
        found: Estimates = run(
            self.params, generator.weak_params, jnp.asarray(x_t, jnp.float32), times, cond
        )
        return found

    def log_likelihood(
        self,
        x: np.ndarray,
        *,
        labels: Sequence[int] = (),
        seed: int = 0,
        rtol: float = 1e-4,
        atol: float = 1e-4,
        divergence: str = "hutchinson",
    ) -> np.ndarray:
        """log p(x) in nats, by the probability-flow ODE (`likelihood.ode`), without guidance.

        Of images it is a lower bound on the log-probability of their 256 levels, by truncated
        normal dequantisation; bits per dimension are -log_likelihood / (log 2 x number of values).
        Of other data it is the log-density, at the least noise of the schedule.

        Args:
          x: uint8 images (n, H, W, C), or floating-point data of the model's shape.
          labels: none, one, or one an example.
          seed: of the dequantisation and the divergence's probes.
          rtol, atol, divergence: as `likelihood.ode_log_likelihood`.

        Returns:
          float64 (n,).

        Raises:
          UserError: a latent model, whose images have no density.
        """
        if self.space.images and self.space.shape != self.space.image_shape:
            raise UserError("log_likelihood: latents have no density of images: take a pixel model")
        generator, cond = self._conditioned(
            len(x), (), labels, {"guidance": "none", "threshold": "none"}
        )
        keys = jax.random.split(rng.stream(seed, "likelihood"), len(x))
        schedule = self.diffusion.schedule
        options: dict[str, Any] = {
            "schedule": schedule, "cond": cond, "rtol": rtol, "atol": atol,
            "divergence": divergence,
        }  # fmt: skip
        data = self._data(x)
        size = math.prod(self.space.shape)

        def of_images(params: Any) -> Array:
            found = likelihood.ode_bits_per_dim(
                generator.denoiser(params), data, key=keys,
                dequantise=likelihood.truncated_normal(schedule), **options,
            )  # fmt: skip
            return -found.bits_per_dim * size * math.log(2)

        def of_arrays(params: Any) -> Array:
            start = start_time(schedule, None)
            signal, noise = schedule(jnp.asarray(start))
            eps = jax.vmap(lambda k: jax.random.normal(k, self.space.shape))(keys)
            found = likelihood.ode_log_likelihood(
                generator.denoiser(params), signal * data + noise * eps, key=keys, **options
            )
            return found.log_prob + size * jnp.log(signal)

        compute = of_images if self.space.images else of_arrays
        return np.asarray(jax.jit(compute)(self.params), np.float64)

    def generator(self, **how: Any) -> Generator:
        """The run's generator with other settings of its `sample` section; see `sample`."""
        key = tuple(sorted(how.items()))
        if key not in self._generators:
            self._generators[key] = self._make_generator(how)
        return self._generators[key]

    def denoiser(self, **how: Any) -> Denoiser:
        """The guided, thresholded denoiser, for the core's samplers and one's own."""
        generator = self.generator(**how)
        return generator.denoiser(self.params, generator.weak_params)

    @property
    def grid(self) -> Grid:
        """The run's sampling grid."""
        return self.generator().sampling.grid

    def _conditioned(
        self, count: int, prompts: Sequence[str], labels: Sequence[int], how: dict[str, Any]
    ) -> tuple[Generator, Any]:
        """A generator, and the condition of `count` examples: no class where none is given."""
        generator = self.generator(**how)
        wanted = tuple(labels) or ((-1,) if generator.has_labels else ())
        for name, values in (("prompts", prompts), ("labels", labels)):
            if len(values) not in (0, 1, count):
                raise UserError(f"{len(values)} {name} for {count} examples: give one, or as many")
        generator = generator.of(prompts=tuple(prompts), labels=wanted)
        return generator, generator.condition(0, count)

    def _for_each(
        self, values: Sequence[Any], images: np.ndarray, name: str, has: bool
    ) -> list[Any] | None:
        """One value an image; None for a model without such a condition."""
        if not has:
            if len(values):
                raise UserError(f"{name} were given to a model that takes none")
            return None
        if name == "labels" and not len(values):
            values = [-1]
        if len(values) not in (1, len(images)):
            raise UserError(
                f"{len(values)} {name} for {len(images)} images: give one, or one an image"
            )
        return list(values) * (len(images) if len(values) == 1 else 1)

    def _images(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        shape = self.space.image_shape
        if not self.space.images:
            raise UserError(f"this model's data is arrays of {shape}: edits are of images")
        if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
            raise UserError(
                f"images are {images.dtype} {images.shape}: expected uint8 "
                f"(n, {', '.join(map(str, shape))})"
            )
        return images

    def _data(self, x: np.ndarray) -> Array:
        """Images in [-1, 1], or data as it is."""
        if self.space.images:
            return to_model_range(jnp.asarray(self._images(x)))
        x = np.asarray(x, np.float32)
        if x.shape[1:] != self.space.shape or not len(x):
            raise UserError(f"the data is {x.shape}: expected (n, *{self.space.shape})")
        return jnp.asarray(x)
