r"""Linear inverse problems: sampling x_0 given y = A(x_0).

`posterior_sampling` (DPS) and `pseudo_inverse` (PiGDM) are denoiser -> denoiser and work with every
sampler. A is any function; the usual ones are made here with their pseudo-inverses A+, for which
A A+ A = A and A+ A is a projection:

    average_pool    super-resolution: the mean of square blocks of pixels
    luminance       colourisation: a weighted sum of the channels
    blur            deblurring: a periodic convolution
    masking         inpainting: some pixels alone
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffjax.denoisers import Denoiser
from diffjax.parametrisations import Estimates
from diffjax.process import scales_like
from diffjax.sampling.guidance import Scale, add_score, by_score_of_x0, scale_at
from diffjax.schedules import Schedule
from diffjax.types import Array, ArrayLike, Data, Images, PerExample, Times

# A map of images: (B, ...) -> (B, ...).
Operator = Callable[[Array], Array]


class LinearOperator(NamedTuple):
    """A linear map of images and its pseudo-inverse.

    Attributes:
      apply: A, (B, H, W, C) -> y.
      pseudo_inverse: A+, y -> (B, H, W, C).
    """

    apply: Operator
    pseudo_inverse: Operator


def average_pool(factor: int) -> LinearOperator:
    """The mean over factor x factor blocks: (B, H, W, C) -> (B, H / factor, W / factor, C).

    Its pseudo-inverse repeats every pixel.

    Args:
      factor: the sides of a block, in pixels.

    Raises:
      ValueError: a factor below 1; when called, sides that it does not divide.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> pool = dj.inverse_problems.average_pool(2)
    >>> y = pool.apply(jnp.arange(16.0).reshape(1, 4, 4, 1))
    >>> print(y.ravel(), (pool.apply(pool.pseudo_inverse(y)) == y).all())  # A A+ is the identity
    [ 2.5  4.5 10.5 12.5] True
    """
    if factor < 1:
        raise ValueError(f"factor must be at least 1, not {factor}")

    def apply(x: Images) -> Float[Array, "batch rows columns channels"]:
        batch, height, width, channels = x.shape
        if height % factor or width % factor:
            raise ValueError(f"average_pool({factor}) does not divide images of {height}x{width}")
        blocks = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
        return blocks.mean((2, 4))

    def repeat(y: Images) -> Float[Array, "batch rows columns channels"]:
        return jnp.repeat(jnp.repeat(y, factor, axis=1), factor, axis=2)

    return LinearOperator(apply, repeat)


def luminance(weights: Sequence[float] = (0.299, 0.587, 0.114)) -> LinearOperator:
    """The weighted sum of the channels, (B, H, W, C) -> (B, H, W, 1); ITU-R BT.601's by default.

    Args:
      weights: (C,), one a channel.

    Raises:
      ValueError: no weight that is not 0; when called, another number of channels.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> grey = dj.inverse_problems.luminance()
    >>> y = grey.apply(jnp.full((1, 1, 1, 3), 0.5))  # a grey pixel: the weights' sum is 1
    >>> print(f"{y.item():.3f} {grey.apply(grey.pseudo_inverse(y)).item():.3f}")
    0.500 0.500
    """
    w = np.asarray(weights, np.float32)
    if w.ndim != 1 or not w.any():
        raise ValueError(f"luminance needs a weight a channel, not all 0, not {weights}")

    def apply(x: Images) -> Float[Array, "batch height width 1"]:
        if x.shape[-1] != len(w):
            raise ValueError(f"luminance has {len(w)} weights for {x.shape[-1]} channels")
        return (x * w).sum(-1, keepdims=True)

    return LinearOperator(apply, lambda y: y * (w / np.square(w).sum()))


def blur(kernel: np.ndarray, *, cutoff: float = 0.02) -> LinearOperator:
    """A convolution of every channel, with the image taken as periodic.

    Args:
      kernel: (h, w), odd sides, its middle at the pixel itself; see `gaussian_kernel`.
      cutoff: frequencies that keep less than this share are lost: A+ leaves them 0.

    Raises:
      ValueError: even sides, or a cutoff that is not positive; when called, a kernel larger than
        the images.

    >>> import jax.numpy as jnp, numpy as np, diffjax as dj
    >>> blur = dj.inverse_problems.blur(np.full((1, 3), 1 / 3))
    >>> point = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(3.0)
    >>> print(blur.apply(point)[0, 1, :, 0].round(2) + 0.0)  # spread over three columns
    [1. 1. 1. 0.]
    """
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim != 2 or not all(side % 2 for side in kernel.shape):
        raise ValueError(f"blur needs a kernel with two odd sides, not of shape {kernel.shape}")
    if cutoff <= 0:
        raise ValueError(f"cutoff must be positive, not {cutoff}")

    def gains(shape: tuple[int, ...]) -> np.ndarray:
        height, width = shape[1:3]
        if kernel.shape[0] > height or kernel.shape[1] > width:
            raise ValueError(f"a kernel of {kernel.shape} is larger than images of {shape[1:3]}")
        padded = np.zeros((height, width))
        padded[: kernel.shape[0], : kernel.shape[1]] = kernel
        middle = [-(side // 2) for side in kernel.shape]
        return np.fft.rfft2(np.roll(padded, middle, (0, 1)))[None, :, :, None]

    def filtered(x: Images, gain: np.ndarray) -> Images:
        spectrum = jnp.fft.rfft2(x, axes=(1, 2)) * jnp.asarray(gain, jnp.complex64)
        return jnp.fft.irfft2(spectrum, s=x.shape[1:3], axes=(1, 2))

    def inverse(y: Images) -> Images:
        gain = gains(y.shape)
        kept = np.abs(gain) >= cutoff
        return filtered(y, np.where(kept, 1 / np.where(kept, gain, 1), 0))

    return LinearOperator(lambda x: filtered(x, gains(x.shape)), inverse)


def gaussian_kernel(std: float) -> np.ndarray:
    """A normalised (2r+1, 2r+1) Gaussian with r = ceil(3 std), for `blur`; std in pixels.

    Args:
      std: in pixels, in [0.1, 100].

    Returns:
      (2r+1, 2r+1) float64 with a sum of 1.

    Raises:
      ValueError: a std out of [0.1, 100].

    >>> import diffjax as dj
    >>> kernel = dj.inverse_problems.gaussian_kernel(1.0)
    >>> print(kernel.shape, kernel.sum().round(6), (kernel[3, 3] / kernel[3, 4]).round(3))
    (7, 7) 1.0 1.649
    """
    if not 0.1 <= std <= 100:
        raise ValueError(f"std must be in [0.1, 100] pixels, not {std}")
    radius = int(np.ceil(3 * std))
    line = np.exp(-(np.arange(-radius, radius + 1.0) ** 2) / (2 * std**2))
    kernel = np.outer(line, line)
    return kernel / kernel.sum()


def masking(mask: ArrayLike) -> LinearOperator:
    """The pixels where the mask is 1, and 0 elsewhere; it is its own pseudo-inverse.

    Args:
      mask: 1 where a pixel is measured; it broadcasts against the images, (H, W, 1) for example.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> left = dj.inverse_problems.masking(jnp.array([1.0, 0.0]))
    >>> print(left.apply(jnp.array([[0.5, 0.75]])))
    [[0.5 0. ]]
    """
    keep = jnp.asarray(mask) > 0.5
    return LinearOperator(lambda x: jnp.where(keep, x, 0), lambda y: jnp.where(keep, y, 0))


def posterior_sampling(
    denoise: Denoiser,
    schedule: Schedule,
    *,
    operator: Operator,
    y: Float[Array, "batch ..."],
    scale: Scale = 1.0,
) -> Denoiser:
    """Diffusion posterior sampling, DPS: down the slope of |y - A(x_0(x_t))|.

    Chung et al. 2023, "Diffusion posterior sampling for general noisy inverse problems", equation
    16, with the slope taken of the residual's norm, as their step size has it:
    w grad_{x_t} of -|y - A(x_0)| per example is added to the score. In DDPM's steps that moves
    x_{t-1} by beta_t / sqrt(alpha_t) w times the slope, where theirs moves it by the same zeta in
    every step: their values of zeta, about 1, are not values of w. A may be any differentiable
    function.

    Args:
      denoise: x_t, t, cond -> Estimates.
      schedule: its schedule.
      operator: A.
      y: (B, ...) what was measured: A(x_0), perhaps with noise.
      scale: w.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> flow, x_t = dj.schedules.rectified_flow(), jnp.array([[0.5, -0.5]])
    >>> denoise, total = dj.denoisers.gaussian_denoiser(flow), lambda x: x.sum(1, keepdims=True)
    >>> options = dict(operator=total, y=jnp.array([[2.0]]), scale=1.0)
    >>> guided = dj.inverse_problems.posterior_sampling(denoise, flow, **options)
    >>> for estimate in (denoise, jax.jit(guided)):  # it comes nearer to a sum of 2
    ...     print(total(estimate(x_t, 0.5).x_0).round(2))
    [[0.]]
    [[1.]]
    """

    def fit(x_0: Data) -> PerExample:
        residual = (y - operator(x_0)).reshape(len(x_0), -1)
        return -jnp.sqrt(jnp.square(residual).sum(1) + 1e-12)

    return by_score_of_x0(denoise, schedule, score=fit, scale=scale)


def pseudo_inverse(
    denoise: Denoiser,
    schedule: Schedule,
    *,
    operator: Operator,
    inverse: Operator,
    y: Float[Array, "batch ..."],
    data_variance: float = 1.0,
    scale: Scale = 1.0,
) -> Denoiser:
    """Pseudo-inverse guidance for linear measurements without noise.

    Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems", equation 8 with
    no noise in y: with x_0 | x_t taken for N(x_0(x_t), r^2), the score of p(y | x_t) is

        J^T (A+ y - A+ A x_0(x_t)) / r^2,      J = d x_0 / d x_t.

    For Gaussian data of independent pixels of that variance it is exact.

    Args:
      denoise: x_t, t, cond -> Estimates.
      schedule: its schedule.
      operator: A, a linear map.
      inverse: A+, its pseudo-inverse.
      y: (B, ...) A(x_0).
      data_variance: s^2 of r^2 = s^2 noise^2 / (s^2 signal^2 + noise^2).
      scale: w; 1 is the score above.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x_t = dj.schedules.rectified_flow(), jnp.array([[0.5, -0.5]])
    >>> denoise, mask = dj.denoisers.gaussian_denoiser(flow), jnp.array([1.0, 0.0])
    >>> left = dj.inverse_problems.masking(mask)
    >>> options = dict(operator=left.apply, inverse=left.pseudo_inverse, y=jnp.array([[2.0, 0.0]]))
    >>> guided = dj.inverse_problems.pseudo_inverse(denoise, flow, **options)
    >>> print(guided(x_t, 0.5).x_0)  # what was measured, and the estimate as it was
    [[ 2.  -0.5]]
    """
    target = inverse(y)

    def guided(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        def x_0_of(x_t: Data) -> tuple[Data, Estimates]:
            pair = denoise(x_t, t, cond)
            return pair.x_0, pair

        x_0, pull_back, pair = jax.vjp(x_0_of, x_t, has_aux=True)
        (slope,) = pull_back(target - inverse(operator(x_0)))
        signal, noise = scales_like(schedule, t, x_t)
        precision = signal**2 / noise**2 + 1 / data_variance
        return add_score(pair, x_t, t, schedule, scale_at(scale, t, x_t) * precision * slope)

    return guided
