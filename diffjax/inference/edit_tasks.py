"""Editing tasks, each made by a function of its options.

A task maps a `Row`, the inputs of one row of the picture, to the row's images; `columns(count)`
names them. `Task` states whether it needs a mask or more than one image.
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
    """The inputs of one row.

    Attributes:
      images: (k, H, W, C) of x_0, images in [-1, 1] or latents, k = `Task.images`.
      mask: (H, W, 1), 1 where it is kept; None for a task without one.
      eps: (count, H, W, C) standard normal noise, one for each result.
      keys: (count,) PRNG keys.
      condition: of one example, with leading dimension 1; None for an unconditional model.
      guided: the model with the config's guidance.
      threshold, schedule, sampler, grid: those of the config's `sample` section.
      embeddings: (k, D) of the images, for a model that is conditioned on them, or None.
      places: (m, D), the places of `Task.captions` among the embeddings, or None.
      inpaints: whether the condition already has what is known of the image, on which the network
        was trained.
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
    embeddings: Array | None = None
    places: Array | None = None
    inpaints: bool = False

    @property
    def denoise(self) -> Denoiser:
        return self.threshold(self.guided)

    def conditions(self, count: int) -> Any:
        return broadcast(self.condition, count)


class Task(NamedTuple):
    """An editing task.

    Attributes:
      run: Row -> (columns, H, W, C) of x_0; the first column is the image and, of a masked task,
        the second its known region.
      columns: count -> the names of the columns.
      images: number of input images per row.
      masked: whether it needs a mask.
      uses_sampler: whether it runs the config's sampler instead of its own.
      comes_back: whether the last column should reproduce the first.
      of_pixels: whether it measures pixels, and so does not apply to latents.
      enlarges: whether its images are of low resolution and any size; `Upscaling` runs it.
      of_embedding: whether it decodes image embeddings; prompts may then be left out.
      captions: texts whose places among the embeddings it needs.
    """

    run: Callable[[Row], Array]
    columns: Callable[[int], Sequence[str]]
    images: int = 1
    masked: bool = False
    uses_sampler: bool = True
    comes_back: bool = False
    of_pixels: bool = False
    enlarges: bool = False
    of_embedding: bool = False
    captions: tuple[str, ...] = ()


def numbered(*first: str) -> Callable[[int], Sequence[str]]:
    """Columns of these names, then of numbers from 1."""
    return lambda count: (*first, *(str(i + 1) for i in range(count)))


def check_whole(name: str, value: object, least: int) -> None:
    """Raises ValueError unless an option is a whole number of at least `least`."""
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _masked(draw: Callable[..., samplers.Samples], *, uses_sampler: bool) -> Task:
    """The image, its known region, and `count` completions."""

    def run(row: Row) -> Array:
        known = jnp.repeat(row.images, len(row.eps), axis=0)
        x_T = row.eps * jnp.float32(row.grid.noise_scale[0])
        keep = jnp.asarray(row.mask) > 0.5
        results = draw(row, x_T, known=known, keep=keep).x_0
        if not row.inpaints:
            # Solvers that do not land on the last estimate return the known region up to rounding.
            results = jnp.where(keep, known, results)
        return jnp.concatenate([row.images, jnp.where(keep, row.images, 0.0), results])

    return Task(run, numbered("image", "known"), masked=True, uses_sampler=uses_sampler)


def inpaint() -> Task:
    """Completes an image with the config's sampler: by a network that was trained for it, or else
    by replacement, `editing.known_region`."""

    def draw(row: Row, x_T: Array, *, known: Array, keep: Array) -> samplers.Samples:
        denoise = row.denoise
        if not row.inpaints:
            denoise = editing.known_region(denoise, row.schedule, known=known, mask=keep)
        return row.sampler(denoise, x_T, grid=row.grid, key=row.keys, cond=row.conditions(len(x_T)))

    return _masked(draw, uses_sampler=True)


def repaint(*, jump: int = 5, resamples: int = 5) -> Task:
    """Completes an image by `editing.repaint`, which is itself a sampler."""
    check_whole("jump", jump, 1)
    check_whole("resamples", resamples, 1)

    def draw(row: Row, x_T: Array, *, known: Array, keep: Array) -> samplers.Samples:
        return editing.repaint(
            row.denoise, x_T, grid=row.grid, key=row.keys, cond=row.conditions(len(x_T)),
            known=known, mask=keep, jump=jump, resamples=resamples,
        )  # fmt: skip

    return _masked(draw, uses_sampler=False)


def vary(*, strength: float = 0.5) -> Task:
    """The image, and `count` variations of it: `editing.image_to_image`."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be in (0, 1], not {strength}")

    def run(row: Row) -> Array:
        count = len(row.eps)
        varied = editing.image_to_image(
            row.sampler, row.denoise, jnp.repeat(row.images, count, axis=0), grid=row.grid,
            strength=strength, eps=row.eps, key=row.keys, cond=row.conditions(count),
        )  # fmt: skip
        return jnp.concatenate([row.images, varied.x_0])

    return Task(run, numbered("image"))


def with_signal(grid: Grid) -> Grid:
    """The grid without a first time of zero signal, where x_t does not depend on the image."""
    return Grid(*(column[1:] for column in grid)) if grid.signal_scale[0] == 0 else grid


def noise_of(row: Row, grid: Grid, iterations: int) -> Array:
    """The noise of the row's images by DDIM inversion."""
    return samplers.ddim_inversion(
        row.denoise,
        row.images,
        grid=grid,
        cond=row.conditions(len(row.images)),
        iterations=iterations,
    ).x_0


def invert(*, iterations: int = 0, order: int = 1) -> Task:
    """The image, its noise by inversion, and the image reconstructed from it.

    Order 1 is DDIM and its inversion; 2 and 3 are `deis` in log_rho and `multistep_inversion`.
    """
    check_whole("iterations", iterations, 0)
    if type(order) is not int or order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, not {order!r}")
    if order > 1 and iterations:
        raise ValueError(f"iterations are of order 1, DDIM: leave out one of them, order={order}")

    def run(row: Row) -> Array:
        grid, cond = with_signal(row.grid), row.conditions(1)
        if order == 1:
            x_T = noise_of(row, grid, iterations)
            back = samplers.ddim(row.denoise, x_T, grid=grid, cond=cond).x_0
        else:
            x_T = samplers.multistep_inversion(
                row.denoise, row.images, grid=grid, cond=cond, order=order
            ).x_0
            back = samplers.deis(
                row.denoise, x_T, grid=grid, cond=cond, order=order, variable="log_rho"
            ).x_0
        # The picture of noise maps 3 standard deviations to [-1, 1].
        return jnp.concatenate([row.images, x_T / (3 * float(grid.noise_scale[0])), back])

    return Task(run, lambda count: ("image", "noise", "back"), uses_sampler=False, comes_back=True)


def interpolate(*, iterations: int = 2) -> Task:
    """From one image to the next along a great circle between their noises: DDIM, `slerp`, DDIM."""
    check_whole("iterations", iterations, 0)

    def run(row: Row) -> Array:
        grid, count = with_signal(row.grid), len(row.eps)
        start, end = (jnp.repeat(x[None], count, axis=0) for x in noise_of(row, grid, iterations))
        weights = jnp.arange(1, count + 1) / (count + 1)
        x_T = editing.slerp(start, end, weights)
        between = samplers.ddim(row.denoise, x_T, grid=grid, cond=row.conditions(count)).x_0
        return jnp.concatenate([row.images[:1], between, row.images[1:]])

    def columns(count: int) -> Sequence[str]:
        return ("image", *(f"{(i + 1) / (count + 1):.2f}" for i in range(count)), "image")

    return Task(run, columns, images=2, uses_sampler=False)


METHODS = ("pseudo_inverse", "posterior_sampling")


def _restored(operator: inverse_problems.LinearOperator, method: str, scale: float | None) -> Task:
    """The image x, A+ A x, and `count` samples given the measurement y = A x.

    The default scale is 1 for the pseudo-inverse. For DPS, which its authors tune per problem, it
    is the best of 0.5 to 320 on Fashion-MNIST in 100 steps.
    """
    if scale is not None and not isinstance(scale, int | float):
        raise ValueError(f"scale must be a number, not {scale!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")

    def run(row: Row) -> Array:
        count = len(row.eps)
        y = operator.apply(row.images)
        each = jnp.repeat(y, count, axis=0)
        # Thresholding is applied outside: the gradient of clipped values is zero.
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

    return Task(run, numbered("image", "measured"), of_pixels=True)


def super_resolution(
    *, factor: int = 4, method: str = "pseudo_inverse", scale: float | None = None
) -> Task:
    """Restores an image from its means over factor x factor pixels."""
    check_whole("factor", factor, 1)
    return _restored(inverse_problems.average_pool(factor), method, scale)


def upscale() -> Task:
    """`count` images of high resolution for one of low resolution and any size, by `Upscaling`.

    For a model that is conditioned on `super_resolution`; the first column is the interpolated
    image.
    """

    def run(row: Row) -> Array:
        raise ValueError("upscale has no rows of one size: use inference.upscaling.Upscaling")

    return Task(run, numbered("image"), of_pixels=True, enlarges=True)


def deblur(*, std: float = 1.0, method: str = "pseudo_inverse", scale: float | None = None) -> Task:
    """Restores an image blurred by a Gaussian of std pixels, with periodic boundaries."""
    kernel = inverse_problems.gaussian_kernel(std)
    return _restored(inverse_problems.blur(kernel), method, scale)


def colourise(*, method: str = "pseudo_inverse", scale: float | None = None) -> Task:
    """Restores an image's colours from its luma."""
    return _restored(inverse_problems.luminance(), method, scale)
