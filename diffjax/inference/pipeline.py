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

from diffjax import likelihood, rng
from diffjax.data.info import DataInfo
from diffjax.denoisers import Denoiser
from diffjax.distributed import processes
from diffjax.errors import UserError
from diffjax.grids import Grid
from diffjax.images import to_model_range
from diffjax.inference.edit import Editing, EditInputs
from diffjax.inference.edit_tasks import Task, with_signal
from diffjax.inference.generator import Generator
from diffjax.inference.sample_conditions import Choice
from diffjax.inference.upscaling import Upscaling
from diffjax.latent.space import DiffusionSpace
from diffjax.likelihood.ode import start_time
from diffjax.parametrisations import Estimates
from diffjax.prediction import Prediction
from diffjax.sampling import samplers
from diffjax.types import Array

# Settings of `config.sample` -> their generator.
MakeGenerator = Callable[[dict[str, Any]], Generator]
MAX_SEED = 2**32


class Pipeline:
    """A trained model: sample, edit, encode, decode, denoise, log_likelihood.

    Attributes:
      params: the averaged parameters.
      step: number of updates.
      about: description of the training data: shape, class names.
      space: the space of x_0: pixels, arrays or latents.
      diffusion: the schedule, and the parametrisation of the network's prediction.
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
    ) -> None:
        """Takes the parts that `experiment.load` resolves.

        Args:
          params, step, about, space, diffusion: see the attributes.
          make_generator: settings that override the run's `sample` section -> a generator.
          make_task: "vary(strength=0.5)" -> the task.
          has_fixed_ends: whether the schedule's ends were fixed in training.
        """
        self.params, self.step, self.about = params, step, about
        self.space, self.diffusion = space, diffusion
        self._make_generator, self._make_task = make_generator, make_task
        self._has_fixed_ends = has_fixed_ends
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
        """Draws samples with the settings of the run's `sample` section.

        Args:
          prompts: texts, for a text-conditional model; repeated cyclically if `count` is larger.
          labels: classes, for a class-conditional model; likewise.
          map_images: uint8 (n, H, W, C), from which maps are made, for a model with maps; likewise.
          count: number of samples; by default the length of the longest of these.
          seed: of the noise.
          how: settings that override the run's: sampler, grid, steps, guidance, threshold,
            negative_prompt, batch_size, augmentation_level; for example
            guidance="classifier_free(scale=3.0)".

        Returns:
          uint8 (count, H, W, C), or float32 (count, ...) for data other than images.

        Raises:
          UserError: a condition that the model does not take, or an invalid setting.
        """
        _check_conditions(prompts, labels, map_images)
        conditions = (prompts, labels, () if map_images is None else map_images)
        number = max(1, *map(len, conditions)) if count is None else count
        if type(number) is not int or number < 1:
            raise UserError(f"count is {count!r}: expected a whole number of at least 1")
        choice = Choice(tuple(labels), tuple(prompts), map_images=map_images)
        generator = self.generator(**how).of(choice, seed=_seed(seed))
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
          images: uint8 (n, H, W, C) of the model's size; for "upscale" of any size.
          task: see `config.edit.task`: "inpaint", "repaint", "vary(strength=0.5)", "invert",
            "interpolate", "super_resolution", "deblur", "colourise", "upscale".
          mask: (H, W) or (H, W, 1), above 0 where the image is kept, for inpaint and repaint.
          prompts, labels: none, one, or one per image.
          count: variants of an image, or images between two.
          seed: of the noise.
          how: see `sample`.

        Raises:
          UserError: images or conditions that the model or the task does not support.
        """
        made = self._make_task(task)
        images = np.asarray(images) if made.enlarges else self._images(images)
        generator = self.generator(**how).of(seed=_seed(seed))
        if type(count) is not int or count < 1:
            raise UserError(f"count is {count!r}: expected a whole number of at least 1")
        kept = None
        if mask is not None and made.enlarges:
            raise UserError(f"{task} takes no mask: leave it out")
        if mask is not None:
            kept = np.asarray(mask) > 0
            if kept.size != math.prod(images.shape[1:3]):
                raise UserError(
                    f"mask is {np.shape(mask)}: expected the images' height and width, "
                    f"{images.shape[1:3]}"
                )
            kept = kept.reshape(*images.shape[1:3], 1).astype(np.float32)
        _check_conditions(prompts, labels, None)
        numbers = self._for_each(labels, images, "labels", generator.conditions.has_labels)
        texts = self._for_each(prompts, images, "prompts", generator.conditions.has_texts)
        if made.enlarges:
            key = ("upscale", *sorted(how.items()))
            if key not in self._compiled:
                channels = self.space.image_shape[-1]
                self._compiled[key] = Upscaling(generator, channels=channels, what=task)
            upscaled = self._compiled[key](
                self.params, images, count=count, labels=numbers, captions=texts, seed=seed
            )
            return np.asarray(upscaled)
        classes = None if numbers is None else np.asarray(numbers, np.int32)
        inputs = EditInputs(images, kept, classes, texts)
        editing = Editing(
            made, generator, self.diffusion, self.space, inputs,
            count=count, what=task,
        )  # fmt: skip
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
        generator = self.generator(**how)
        grid = with_signal(generator.sampling.grid)

        def run(params: Any, weak_params: Any, x_0: Array, cond: Any) -> Array:
            denoise = generator.denoiser(params, weak_params)
            return samplers.ddim_inversion(
                denoise, x_0, grid=grid, cond=cond, iterations=iterations
            ).x_0

        x_0 = self.space.of_images(self._data(x))
        cond = self._condition(generator, len(x), prompts, labels, map_images)
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

        x_T = self._diffused(noise)
        cond = self._condition(generator, len(x_T), prompts, labels, map_images)
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

        x_t = self._diffused(x_t)
        cond = self._condition(generator, len(x_t), prompts, labels, map_images)
        times = jnp.asarray(t, jnp.int32 if self.diffusion.schedule.discrete else jnp.float32)
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

        data = self._data(x)
        cond = self._condition(generator, len(x), prompts, labels, map_images)
        keys = jax.random.split(rng.stream(_seed(seed), "likelihood"), len(x))
        name = ("log_likelihood", rtol, atol, divergence)
        compute = self._jitted(name, how, of_images if self.space.images else of_arrays)
        return np.asarray(compute(self.params, data, keys, cond), np.float64)

    def generator(self, **how: Any) -> Generator:
        """The run's generator, with overridden settings; see `sample`."""
        key = tuple(sorted(how.items()))
        if key not in self._generators:
            self._generators[key] = self._make_generator(how)
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
        key = (*name, *sorted(how.items()))
        if key not in self._compiled:
            self._compiled[key] = jax.jit(function)
        return self._compiled[key]

    def _condition(
        self,
        generator: Generator,
        count: int,
        prompts: Sequence[str],
        labels: Sequence[int],
        map_images: np.ndarray | None,
    ) -> Any:
        """The condition of `count` examples; without labels, that of no class."""
        _check_conditions(prompts, labels, map_images)
        conditions = (("prompts", prompts), ("labels", labels), ("map_images", map_images))
        for name, values in conditions:
            if values is not None and len(values) not in (0, 1, count):
                raise UserError(f"{len(values)} {name} for {count} examples: expected 1 or {count}")
        classes = tuple(labels) or ((-1,) if generator.conditions.has_labels else ())
        choice = Choice(classes, tuple(prompts), map_images=map_images)
        return generator.conditions.of(choice).batch(0, count)

    def _for_each(
        self, values: Sequence[Any], images: np.ndarray, name: str, has: bool
    ) -> list[Any] | None:
        """One value per image; None for a model without such a condition."""
        if not has:
            if len(values):
                raise UserError(f"{name} were passed, but the model takes none")
            return None
        if name == "labels" and not len(values):
            values = [-1]
        if len(values) not in (1, len(images)):
            raise UserError(
                f"{len(values)} {name} for {len(images)} images: expected 1 or {len(images)}"
            )
        return list(values) * (len(images) if len(values) == 1 else 1)

    def _images(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        shape = self.space.image_shape
        if not self.space.images:
            raise UserError(f"this model's data are arrays of {shape}: edits are of images")
        if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
            raise UserError(
                f"images is {images.dtype} {images.shape}: expected uint8 "
                f"(n, {', '.join(map(str, shape))})"
            )
        return images

    def _data(self, x: np.ndarray) -> Array:
        """Images in [-1, 1], or other data unchanged."""
        if self.space.images:
            return to_model_range(jnp.asarray(self._images(x)))
        return self._diffused(x)

    def _diffused(self, x: Any) -> Array:
        """A float32 batch of the model's space."""
        x = jnp.asarray(x, jnp.float32)
        if x.shape[1:] != self.space.shape or not len(x):
            raise UserError(f"the data is {x.shape}: expected (n, *{self.space.shape})")
        return x


def _check_conditions(prompts: Any, labels: Any, map_images: Any) -> None:
    """Raises UserError for conditions of an invalid type."""
    if isinstance(prompts, str):
        raise UserError(f"prompts is the text {prompts!r}: put it in a list")
    if not hasattr(prompts, "__len__") or not all(isinstance(text, str) for text in prompts):
        raise UserError(f"prompts is {prompts!r}: expected a list of texts")
    whole = (int, np.integer)
    if not hasattr(labels, "__len__") or not all(isinstance(label, whole) for label in labels):
        raise UserError(f"labels is {labels!r}: expected a list of whole numbers")
    if map_images is not None and not isinstance(map_images, np.ndarray):
        raise UserError(f"map_images is a {type(map_images).__name__}: expected a NumPy array")


def _seed(seed: int) -> int:
    if type(seed) is not int or not 0 <= seed < MAX_SEED:
        raise UserError(f"seed is {seed!r}: expected a whole number in [0, 2**32)")
    return seed
