"""What can be done to images that are there already: a function that makes each task.

A task takes a `Row`, everything that one row of the picture is made from, and returns the row's
images; `columns(count)` names them. A task that needs a mask, or more than one image, says so.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from diffjax.conditioning.conditions import broadcast
from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.sampling import editing, inverse_problems, samplers
from diffjax.schedules import Schedule
from diffjax.types import Array


class Row(NamedTuple):
    """What a row is made from.

    Attributes:
      images: (k, H, W, C) of x_0, images in [-1, 1] or latents, k as the task wants.
      mask: (H, W, 1), 1 where it is kept; None for a task without one.
      eps: (count, H, W, C) standard normal noise, one for each result.
      keys: (count,) PRNG keys.
      condition: of one example, with leading dimension 1; None for an unconditional model.
      guided: the model with the config's guidance.
      threshold, schedule, sampler, grid: as the config's `sample` section has them.
    """

    images: Array
    mask: Array | None
    eps: Array
    keys: Array
    condition: Any
    guided: Denoiser
    threshold: Callable[[Denoiser], Denoiser]
    schedule: Schedule
    sampler: Callable[..., samplers.Samples]
    grid: Grid

    @property
    def denoise(self) -> Denoiser:
        return self.threshold(self.guided)

    def conditions(self, count: int) -> Any:
        return broadcast(self.condition, count)


class Task(NamedTuple):
    """A task.

    Attributes:
      run: Row -> (columns, H, W, C) of x_0; the first column is the image, and of a masked task
        the second one what is known of it.
      columns: count -> the names of the columns.
      images: how many images a row is made from.
      masked: whether it needs a mask.
      uses_sampler: whether it runs the config's sampler, or one of its own.
      comes_back: whether the last column should be the first one again.
      of_pixels: whether it measures pixels, which latents don't have.
    """

    run: Callable[[Row], Array]
    columns: Callable[[int], Sequence[str]]
    images: int = 1
    masked: bool = False
    uses_sampler: bool = True
    comes_back: bool = False
    of_pixels: bool = False


def _numbered(*first: str) -> Callable[[int], Sequence[str]]:
    return lambda count: (*first, *(str(i + 1) for i in range(count)))


def _whole(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _masked(draw: Callable[..., samplers.Samples], *, uses_sampler: bool) -> Task:
    """The image, what is known of it, and `count` ways to draw the rest."""

    def run(row: Row) -> Array:
        known = jnp.repeat(row.images, len(row.eps), axis=0)
        x_T = row.eps * jnp.float32(row.grid.noise_scale[0])
        keep = jnp.asarray(row.mask) > 0.5
        drawn = draw(row, x_T, known=known, keep=keep).x_0
        # Solvers that do not land on the last estimate return the known region up to rounding.
        results = jnp.where(keep, known, drawn)
        return jnp.concatenate([row.images, jnp.where(keep, row.images, 0.0), results])

    return Task(run, _numbered("image", "known"), masked=True, uses_sampler=uses_sampler)


def inpaint() -> Task:
    """The rest of an image by replacement, with the config's sampler; `editing.known_region`."""

    def draw(row: Row, x_T: Array, *, known: Array, keep: Array) -> samplers.Samples:
        denoise = editing.known_region(row.denoise, row.schedule, known=known, mask=keep)
        return row.sampler(denoise, x_T, grid=row.grid, key=row.keys, cond=row.conditions(len(x_T)))

    return _masked(draw, uses_sampler=True)


def repaint(*, jump: int = 5, resamples: int = 5) -> Task:
    """The rest of an image by `editing.repaint`, which is a sampler of its own."""
    _whole("jump", jump, 1)
    _whole("resamples", resamples, 1)

    def draw(row: Row, x_T: Array, *, known: Array, keep: Array) -> samplers.Samples:
        return editing.repaint(
            row.denoise, x_T, grid=row.grid, key=row.keys, cond=row.conditions(len(x_T)),
            known=known, mask=keep, jump=jump, resamples=resamples,
        )  # fmt: skip

    return _masked(draw, uses_sampler=False)


def vary(*, strength: float = 0.5) -> Task:
    """The image, and `count` images like it: `editing.image_to_image`."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be in (0, 1], not {strength}")

    def run(row: Row) -> Array:
        count = len(row.eps)
        varied = editing.image_to_image(
            row.sampler, row.denoise, jnp.repeat(row.images, count, axis=0), grid=row.grid,
            strength=strength, eps=row.eps, key=row.keys, cond=row.conditions(count),
        )  # fmt: skip
        return jnp.concatenate([row.images, varied.x_0])

    return Task(run, _numbered("image"))


def with_signal(grid: Grid) -> Grid:
    """The grid without a first time of pure noise, which tells nothing of an image."""
    return Grid(*(column[1:] for column in grid)) if grid.signal_scale[0] == 0 else grid


def _noise_of(row: Row, grid: Grid, iterations: int) -> Array:
    return samplers.ddim_inversion(
        row.denoise,
        row.images,
        grid=grid,
        cond=row.conditions(len(row.images)),
        iterations=iterations,
    ).x_0


def invert(*, iterations: int = 0) -> Task:
    """The image, the noise that DDIM makes it from, and what DDIM makes from that."""
    _whole("iterations", iterations, 0)

    def run(row: Row) -> Array:
        grid = with_signal(row.grid)
        x_T = _noise_of(row, grid, iterations)
        back = samplers.ddim(row.denoise, x_T, grid=grid, cond=row.conditions(1)).x_0
        # Noise as it is shown: three standard deviations are the range of a picture.
        return jnp.concatenate([row.images, x_T / (3 * float(grid.noise_scale[0])), back])

    return Task(run, lambda count: ("image", "noise", "back"), uses_sampler=False, comes_back=True)


def interpolate(*, iterations: int = 2) -> Task:
    """From one image to the next along a great circle between their noises: DDIM, `slerp`, DDIM."""
    _whole("iterations", iterations, 0)

    def run(row: Row) -> Array:
        grid, count = with_signal(row.grid), len(row.eps)
        start, end = (jnp.repeat(x[None], count, axis=0) for x in _noise_of(row, grid, iterations))
        weights = jnp.arange(1, count + 1) / (count + 1)
        x_T = editing.slerp(start, end, weights)
        between = samplers.ddim(row.denoise, x_T, grid=grid, cond=row.conditions(count)).x_0
        return jnp.concatenate([row.images[:1], between, row.images[1:]])

    def columns(count: int) -> Sequence[str]:
        return ("image", *(f"{(i + 1) / (count + 1):.2f}" for i in range(count)), "image")

    return Task(run, columns, images=2, uses_sampler=False)


METHODS = ("pseudo_inverse", "posterior_sampling")


def _restored(operator: inverse_problems.LinearOperator, method: str, scale: float | None) -> Task:
    """The image, what A keeps of it as A+ shows that, and `count` images that A maps to the same.

    Without a scale the methods' own are taken: 1 for the pseudo-inverse, and for DPS, whose paper
    tunes it for each problem, what did best of 0.5 to 320 on Fashion-MNIST in 100 steps.
    """
    if scale is not None and not isinstance(scale, int | float):
        raise ValueError(f"scale must be a number, not {scale!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")

    def run(row: Row) -> Array:
        count = len(row.eps)
        y = operator.apply(row.images)
        each = jnp.repeat(y, count, axis=0)
        # Thresholds go around it: the slope of what is clipped is zero.
        if method == "pseudo_inverse":
            denoise = inverse_problems.pseudo_inverse(
                row.guided, row.schedule, operator=operator.apply,
                inverse=operator.pseudo_inverse, y=each, scale=1.0 if scale is None else scale,
            )  # fmt: skip
        else:
            denoise = inverse_problems.posterior_sampling(
                row.guided, row.schedule, operator=operator.apply, y=each,
                scale=160.0 if scale is None else scale,
            )  # fmt: skip
        denoise = row.threshold(denoise)
        x_T = row.eps * jnp.float32(row.grid.noise_scale[0])
        drawn = row.sampler(
            denoise, x_T, grid=row.grid, key=row.keys, cond=row.conditions(count)
        ).x_0
        return jnp.concatenate([row.images, operator.pseudo_inverse(y), drawn])

    return Task(run, _numbered("image", "measured"), of_pixels=True)


def super_resolution(
    *, factor: int = 4, method: str = "pseudo_inverse", scale: float | None = None
) -> Task:
    """From the means of factor x factor pixels back to the pixels."""
    _whole("factor", factor, 1)
    return _restored(inverse_problems.average_pool(factor), method, scale)


def deblur(*, std: float = 1.0, method: str = "pseudo_inverse", scale: float | None = None) -> Task:
    """From an image blurred by a Gaussian of std pixels, taken as periodic, back to the image."""
    kernel = inverse_problems.gaussian_kernel(std)
    return _restored(inverse_problems.blur(kernel), method, scale)


def colourise(*, method: str = "pseudo_inverse", scale: float | None = None) -> Task:
    """From an image's luma back to its colours."""
    return _restored(inverse_problems.luminance(), method, scale)
