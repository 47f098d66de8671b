r"""The mass that a Gaussian gives to a bin of quantised data.

Images have `levels` values k / ((levels - 1) / 2) - 1, from -1 to 1, and each stands for a bin of
half-width 1 / (levels - 1) around it; the first and the last bin go on to infinity. With

    c = |x - mean| / std,  h = 1 / (std (levels - 1))
    mass = Phi(h - c) - Phi(-h - c)                                                      (1)
    log mass = log Phi(h - c) + log(1 - exp(-d)),  d = log Phi(h - c) - log Phi(-h - c)  (2)

Taking |x - mean| puts the bin in the lower tail, where log Phi keeps its digits. Two ranges need
another form of (2): a narrow bin, where d is a small difference of large numbers, and the far tail,
where log Phi is -c^2 / 2 and its slope is lost in float32.
"""

import math

import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from diffjax.checks import checked
from diffjax.types import Array, ArrayLike

_HALF_LOG_2_PI = math.log(2 * math.pi) / 2
# h and h c below which a bin is narrow: the first term left out of its series is under 1e-10.
_NARROW = 0.05


@checked
def discretised_gaussian_log_prob(
    x: ArrayLike, *, mean: ArrayLike, log_std: ArrayLike, levels: int = 256
) -> Array:
    """log of the mass that N(mean, std^2) gives to the bin of x, equation (2), in nats.

    Ho et al. 2020, equation 13, with the exact normal distribution function in place of their
    code's tanh approximation. Values and gradients are finite in float32 for std from 1e-10 to
    1e10.

    Args:
      x: data on `levels` levels in [-1, 1].
      mean, log_std: the Gaussian's; they broadcast against x.
      levels: 256 for images of 8 bits.

    Returns:
      The logarithm, of the shape to which x, mean and log_std broadcast.

    Raises:
      ValueError: fewer than 2 levels.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([-1.0, 1.0])  # all the data there is: two levels, each half of the mass
    >>> jnp.exp(discretised_gaussian_log_prob(x, mean=0.0, log_std=0.0, levels=2)).tolist()
    [0.5, 0.5]
    """
    if levels < 2:
        raise ValueError(f"levels must be at least 2, not {levels}")
    x, mean, log_std = (jnp.asarray(a) for a in (x, mean, log_std))
    dtype = jnp.promote_types(jnp.result_type(x, mean, log_std), jnp.float32)
    x, mean, log_std = jnp.broadcast_arrays(*(a.astype(dtype) for a in (x, mean, log_std)))
    precision = jnp.exp(-log_std)
    z, h = (x - mean) * precision, precision / (levels - 1)
    at_first, at_last = x < -1 + 1 / (levels - 1), x > 1 - 1 / (levels - 1)
    # An open bin is the tail beyond its inner edge: Phi(z + h) below, Phi(h - z) above.
    open_end = _log_tail(jnp.where(at_first, -z, z) - h)
    return jnp.where(at_first | at_last, open_end, _log_mass(jnp.abs(z), h))


def _log_mass(c: Array, h: Array) -> Array:
    """log(Phi(h - c) - Phi(-h - c)), c >= 0."""
    narrow = (h < _NARROW) & (h * c < _NARROW)
    series = _log_narrow_mass(jnp.where(narrow, c, 0.0), jnp.where(narrow, h, _NARROW))
    wide = _log_wide_mass(jnp.where(narrow, 1.0, c), jnp.where(narrow, 1.0, h))
    return jnp.where(narrow, series, wide)


def _log_narrow_mass(c: Array, h: Array) -> Array:
    """The density at c times the width 2 h, with Taylor's terms in h^2 and h^4."""
    # In powers of h c and h, since c^4 may be out of range where h is tiny.
    u, w = (h * c) ** 2, h**2
    terms = (u - w) / 6 + (u**2 - 6 * u * w + 3 * w**2) / 120
    return math.log(2) + jnp.log(h) - c**2 / 2 - _HALF_LOG_2_PI + jnp.log1p(terms)


def _log_wide_mass(c: Array, h: Array) -> Array:
    """Equation (2)."""
    near, far = c - h, c + h
    both_far = near > _far(c.dtype)
    # (far^2 - near^2) / 2 is 2 h c: the difference of the squares would have lost it.
    safe_near, safe_far = (jnp.where(both_far, edge, 1.0) for edge in (near, far))
    in_tail = 2 * h * c + _log_mills(safe_near) - _log_mills(safe_far)
    plain = _log_tail(jnp.where(both_far, 0.0, near)) - _log_tail(jnp.where(both_far, 1.0, far))
    d = jnp.where(both_far, in_tail, plain)
    return _log_tail(near) + _log_one_minus_exp(d)


def _log_one_minus_exp(d: Array) -> Array:
    """log(1 - exp(-d)), d > 0."""
    small = d < math.log(2)
    return jnp.where(
        small,
        jnp.log(-jnp.expm1(-jnp.where(small, d, 1.0))),
        jnp.log1p(-jnp.exp(-jnp.where(small, 1.0, d))),
    )


def _far(dtype: jnp.dtype) -> float:
    """Where `_log_mills` is exact to the type's last digits."""
    return 10.0 if dtype == jnp.float32 else 20.0


def _log_tail(y: Array) -> Array:
    """log Phi(-y)."""
    far = y > _far(y.dtype)
    safe = jnp.where(far, y, _far(y.dtype))
    return jnp.where(far, _log_mills(safe) - safe**2 / 2, log_ndtr(-jnp.where(far, 0.0, y)))


def _log_mills(y: Array) -> Array:
    """log(Phi(-y) exp(y^2 / 2)) for large y (Abramowitz & Stegun 1964, equation 26.2.12)."""
    r = 1 / y**2
    return -jnp.log(y) - _HALF_LOG_2_PI + jnp.log1p(-r * (1 - r * (3 - r * (15 - 105 * r))))
