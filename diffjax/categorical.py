r"""A network that returns a distribution over the levels of discrete data.

Pixels of 8 bits have 256 values l_k, and about x_0 a network can say more than its mean. Here it
returns logits a_k, what it takes each pixel for given all that it sees, and Bayes' rule brings in
exactly what the pixel's own noisy value says:

    p_k = softmax_k(a_k - SNR / 2 (x_t / signal - l_k)^2)                                (1)
    x_0 = sum_k p_k l_k                                                                  (2)
    log p(x_0 | x_t) = log p_k at x_0's level                                            (3)

Where there is little noise, (1) rounds to the levels by itself, which a network that predicts eps
has to learn from Fourier features (Kingma et al. 2021, VDM, section 5.1); where there is much, it
is the network's distribution. (2) is the estimate that the squared error of diffusion trains, (3)
the cross-entropy of discrete data (Austin et al. 2021, D3PM, section 3.4) and the decoder of the
bound. Graves et al. 2023 (Bayesian flow networks, section 5) take (2) from a network's discretised
Gaussian; that noise and levels meet in (1) is this module's own form.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int32

from diffjax.parametrisations import Estimates, Parametrisation, eps_from_x0
from diffjax.schedules import Scales
from diffjax.types import Array, Data, Floats

# Where one of the scales is zero, (1) is taken at this one.
_LEAST_SCALE = 1e-6


def level_values(levels: int = 256) -> Float32[Array, " levels"]:
    """(levels,) float32: the values of data on `levels` even levels from -1 to 1.

    >>> import diffjax as dj
    >>> print(dj.categorical.level_values(5))
    [-1.  -0.5  0.   0.5  1. ]
    """
    return jnp.linspace(-1.0, 1.0, levels)


def level_of(x_0: Floats, *, levels: int = 256) -> Int32[Array, "*shape"]:
    """The nearest level's number, int32 of x_0's shape.

    Args:
      x_0: data of any shape, in [-1, 1]; what is beyond takes the nearest end.
      levels: of the data.

    >>> import numpy as np, jax.numpy as jnp, diffjax as dj
    >>> images = jnp.asarray(np.array([0, 127, 255]) / 127.5 - 1)  # of 8 bits
    >>> print(dj.categorical.level_of(images))
    [  0 127 255]
    """
    return jnp.round((x_0 + 1) * ((levels - 1) / 2)).astype(jnp.int32).clip(0, levels - 1)


def categorical(levels: int = 256) -> Parametrisation:
    """The parametrisation of equations (1) and (2): `levels` logits for each channel of x_t.

    It predicts x_0 but is no linear statement about (x_0, eps): name the target that a loss is to
    be measured in.

    Args:
      levels: of the data, even from -1 to 1; 256 for images of 8 bits.

    Raises:
      ValueError: fewer than 2 levels; when called, as a loss's target.

    >>> import math, jax, jax.numpy as jnp, diffjax as dj
    >>> p = dj.categorical.categorical(levels=2)  # data are -1 or 1
    >>> undecided, scales = jnp.zeros((1, 2)), dj.Scales(jnp.array(0.8), jnp.array(0.6))
    >>> pair = jax.jit(p.estimates)(undecided, jnp.array([[0.3]]), scales)
    >>> print(f"{pair.x_0.item():.3f} {math.tanh(0.8 * 0.3 / 0.36):.3f}")  # a sign's posterior mean
    0.583 0.583
    """
    if levels < 2:
        raise ValueError(f"levels must be at least 2, not {levels}")

    def target(x_0: Array, eps: Array, scales: Scales[Array]) -> Array:
        raise ValueError("logits are no target of a squared error: set loss_target to x0, eps or v")

    def estimates(value: Float[Array, "batch ..."], x_t: Data, scales: Scales[Array]) -> Estimates:
        mean, _ = _moments(_by_level(value, x_t), *_observation(x_t, scales))
        # Rounding where (1) is sharp must not move a level.
        x_0 = jnp.clip(mean, -1.0, 1.0).astype(x_t.dtype)
        return Estimates(x_0, eps_from_x0(x_t, x_0, scales))

    return Parametrisation("categorical", target, estimates, outputs=levels)


def log_prob(
    value: Float[Array, "batch ..."], x_t: Data, *, x_0: Data, scales: Scales[Array]
) -> Data:
    """Equation (3), elementwise, in nats.

    Args:
      value: (B, ..., C levels) the network's output.
      x_t: (B, ..., C) noisy data.
      x_0: (B, ..., C) data on the levels.
      scales: the pair at t, broadcasting against x_t.

    Returns:
      (B, ..., C) logarithms of probabilities.

    >>> import math, jax, jax.numpy as jnp, diffjax as dj
    >>> flat, x_t = jnp.zeros((1, 4)), jnp.array([[0.3]])  # four levels, each alike
    >>> noise = dj.Scales(jnp.array(1e-3), jnp.array(1.0))  # next to no signal: x_t says nothing
    >>> log_prob = jax.jit(dj.categorical.log_prob)
    >>> print(f"{math.exp(log_prob(flat, x_t, x_0=jnp.array([[1.0]]), scales=noise).item()):.3f}")
    0.250
    """
    logits = _by_level(value, x_t)
    levels = logits.shape[-1]
    y, snr = _observation(x_t, scales)
    _, log_normaliser = _moments(logits, y, snr)
    is_level = jnp.arange(levels) == level_of(x_0, levels=levels)[..., None]
    # A sum over a choice: a gather's gradient would be a slow scatter.
    chosen = jnp.where(is_level, logits, 0.0).sum(-1)
    # The level's own float: x_0's may be another in its last digit, which a large SNR shows.
    value_at = level_values(levels)[level_of(x_0, levels=levels)]
    return chosen - snr / 2 * jnp.square(y - value_at) - log_normaliser


def _by_level(value: Float[Array, "batch ..."], x_t: Data) -> Float[Array, "batch *shape levels"]:
    return value.astype(jnp.float32).reshape(*x_t.shape, value.shape[-1] // x_t.shape[-1])


def _observation(x_t: Data, scales: Scales[Array]) -> tuple[Data, Data]:
    """x_t / signal and the SNR, of x_t's shape."""
    signal = jnp.maximum(scales.signal_scale, _LEAST_SCALE)
    noise = jnp.maximum(scales.noise_scale, _LEAST_SCALE)
    return x_t / signal, jnp.broadcast_to(jnp.square(signal / noise), x_t.shape)


# (..., levels) arrays are what takes the time: each direction makes one pass, with nothing of that
# size kept but the logits.
@jax.custom_vjp
def _moments(logits: Float[Array, "batch *shape levels"], y: Data, snr: Data) -> tuple[Data, Data]:
    """Equation (2), and the logarithm of what normalises (1)."""
    return _forward(logits, y, snr)[0]


def _posterior(logits: Array, y: Array, snr: Array) -> tuple[Array, Array]:
    """Equation (1)'s logits, and y - l_k."""
    # The square of the difference, not its parts: their terms in SNR would cancel.
    off = y[..., None] - level_values(logits.shape[-1])
    return logits - snr[..., None] / 2 * jnp.square(off), off


def _forward(logits: Array, y: Array, snr: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    z, _ = _posterior(logits, y, snr)
    top = z.max(-1, keepdims=True)
    weights = jnp.exp(z - top)
    total = weights.sum(-1)
    mean = (weights * level_values(logits.shape[-1])).sum(-1) / total
    log_normaliser = top[..., 0] + jnp.log(total)
    return (mean, log_normaliser), (logits, y, snr, mean, log_normaliser)


def _backward(kept: tuple[Array, ...], slopes: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    logits, y, snr, mean, log_normaliser = kept
    of_mean, of_normaliser = slopes
    z, off = _posterior(logits, y, snr)
    p = jnp.exp(z - log_normaliser[..., None])
    away = level_values(logits.shape[-1]) - mean[..., None]
    slope = p * (of_mean[..., None] * away + of_normaliser[..., None])
    of_y = -snr * (slope * off).sum(-1)
    of_snr = -(slope * jnp.square(off)).sum(-1) / 2
    return slope, of_y, of_snr


_moments.defvjp(_forward, _backward)
