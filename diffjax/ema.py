"""Exponential moving averages of parameters, and how fast they forget.

    average_{n+1} = decay_n average_n + (1 - decay_n) params_{n+1},   n = 0, 1, 2, ...

`update` is this line; the `*_decay` functions are schedules of decay_n. All of them are called as
decay(step, **options), where step is the number of updates already made, and answer with a float32
in [0, 1], so a train step can take any of them. An average with a constant decay d spans about
1 / (1 - d) updates; the others start short and grow.

float32 holds a decay near 1 to 3e-8: that is 0.3% of 1 - decay where an average spans 1e5 updates,
and the reason for expm1 and log1p below, without which it would be more.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Real

from diffjax.checks import checked
from diffjax.types import Array, ArrayLike

WIDEST = 12**-0.5  # sigma_rel of gamma = 0, the plain mean of all parameters so far


@checked
def constant_decay(step: Real[ArrayLike, "*shape"], *, decay: float) -> Float[Array, "*shape"]:
    """The same decay at every step: the average spans about 1 / (1 - decay) updates.

    It forgets where it started no sooner than anything else: begin from trained parameters, or
    use a schedule that warms up.

    Args:
      step: number of updates already made, from 0.
      decay: in [0, 1].

    Raises:
      ValueError: decay out of range.

    >>> import diffjax as dj
    >>> average = 1.0
    >>> for step in range(10):  # the start's share falls as decay^n
    ...     average = dj.ema.update(average, 0.0, decay=dj.ema.constant_decay(step, decay=0.9))
    >>> print(round(float(average), 3), round(0.9**10, 3))
    0.349 0.349
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1], not {decay}")
    return jnp.full(jnp.shape(step), decay, jnp.float32)


@checked
def warmed_up_decay(step: Real[ArrayLike, "*shape"], *, decay: float) -> Float[Array, "*shape"]:
    """min(decay, (1 + step) / (10 + step)): a young average forgets its random start.

    The warm-up of TensorFlow's ExponentialMovingAverage: after n steps the average spans about
    n / 9 of them until `decay` takes over, so early EMA samples are not noise.

    Args:
      step: number of updates already made, from 0.
      decay: the decay in the long run, in [0, 1).

    >>> [round(float(warmed_up_decay(s, decay=0.999)), 3) for s in (0, 90, 10**6)]
    [0.1, 0.91, 0.999]
    """
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1 + step) / (10 + step))


@checked
def inverse_decay(
    step: Real[ArrayLike, "*shape"],
    *,
    inv_gamma: float = 1.0,
    power: float = 2 / 3,
    max_decay: float = 0.9999,
    min_decay: float = 0.0,
) -> Float[Array, "*shape"]:
    """1 - (1 + step / inv_gamma)^-power, cut to [min_decay, max_decay].

    k-diffusion's EMAWarmup, and diffusers' EMAModel with use_ema_warmup. After n updates the
    average spans about (1 + n / inv_gamma)^power of them: a share that shrinks as training goes on,
    unlike that of `power_decay`. With inv_gamma = 1, power 2/3 spans a thousand updates at 31.6
    thousand and ten thousand at a million, for long runs; power 3/4 does so at 10 and 215 thousand;
    power 1 is the plain mean of all parameters so far.

    Args:
      step: number of updates already made, from 0.
      inv_gamma: updates before the warm-up begins to tell, above 0.
      power: how fast the average lengthens, above 0.
      max_decay, min_decay: 0 <= min_decay <= max_decay <= 1.

    Raises:
      ValueError: an option out of range.

    >>> [round(float(inverse_decay(s)), 4) for s in (0, 1000, 31_622, 10**7)]
    [0.0, 0.99, 0.999, 0.9999]
    """
    if not (inv_gamma > 0 and power > 0):
        raise ValueError(f"inv_gamma and power must be above 0, not {inv_gamma} and {power}")
    if not 0 <= min_decay <= max_decay <= 1:
        raise ValueError(
            f"expected 0 <= min_decay <= max_decay <= 1, not min_decay {min_decay} and "
            f"max_decay {max_decay}"
        )
    step = jnp.asarray(step, jnp.float32)
    decay = -jnp.expm1(-power * jnp.log1p(step / inv_gamma))
    return jnp.clip(decay, min_decay, max_decay)


@checked
def power_decay(step: Real[ArrayLike, "*shape"], *, sigma_rel: float) -> Float[Array, "*shape"]:
    """(1 - 1/t)^(gamma + 1) with t = step + 1: the average keeps its shape as training goes on.

    Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models",
    section 3.1. After t updates the parameters of update i have the weight
    (i^(gamma+1) - (i-1)^(gamma+1)) / t^(gamma+1), the share of step i in the profile

        p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),   0 <= tau <= t,

    whose standard deviation is sigma_rel t. The first update forgets the start entirely. The paper
    stores 0.05 and 0.10, from which `posthoc_ema` makes other widths.

    Args:
      step: number of updates already made, from 0.
      sigma_rel: width relative to the training so far, in (0, 12^-1/2]; the upper end is the plain
        mean of all parameters.

    Raises:
      ValueError: sigma_rel out of range.

    >>> [round(float(power_decay(s, sigma_rel=0.1)), 4) for s in (0, 10, 1000)]
    [0.0, 0.4693, 0.9921]
    """
    exponent = gamma_from_sigma_rel(sigma_rel) + 1
    t = jnp.asarray(step, jnp.float32) + 1
    return jnp.exp(exponent * jnp.log1p(-1 / t))


@checked
def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """The exponent gamma >= 0 of the power-function profile whose relative width is sigma_rel.

    The largest real root of

        gamma^3 + 7 gamma^2 + (16 - sigma_rel^-2) gamma + 12 - sigma_rel^-2 = 0,

    which is `sigma_rel_from_gamma` solved for gamma (Karras et al. 2024, appendix C), in float64.

    Args:
      sigma_rel: in (0, 12^-1/2].

    Raises:
      ValueError: sigma_rel out of range.

    >>> [round(gamma_from_sigma_rel(s), 2) for s in (0.05, 0.1)]
    [16.97, 6.94]
    """
    # Written so that NaN is refused too.
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(f"sigma_rel must be in (0, 12^-1/2 = {WIDEST:.4f}], not {sigma_rel}")
    ratio = float(sigma_rel) ** -2
    roots = np.roots([1.0, 7.0, 16.0 - ratio, 12.0 - ratio])
    # All three are real: the cubic is 2 at -1 and not above 0 at 0. At the upper end the root is 0,
    # and may be rounded to below it.
    return max(float(roots.real.max()), 0.0)


@checked
def sigma_rel_from_gamma(gamma: float) -> float:
    """((gamma + 1) / ((gamma + 2)^2 (gamma + 3)))^1/2, the profile's width as a share of t.

    Karras et al. 2024, section 3.1: the standard deviation of a power-function profile that has run
    from 0 to t, divided by t.

    Args:
      gamma: not below 0.

    Raises:
      ValueError: gamma below 0.

    >>> import diffjax as dj
    >>> print(round(dj.ema.sigma_rel_from_gamma(6.94), 3))  # EDM2's wider average
    0.1
    """
    if not gamma >= 0:
        raise ValueError(f"gamma must not be below 0, not {gamma}")
    return float(np.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2))


@checked
def update(average: Any, params: Any, *, decay: Float[ArrayLike, ""]) -> Any:
    """average + (1 - decay) (params - average), leaf by leaf, in the average's types.

    Args:
      average, params: pytrees of the same structure.
      decay: scalar in [0, 1].

    Raises:
      ValueError: trees of different structures.

    Returns:
      A pytree of the average's structure and types.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> average = dj.ema.update({"w": jnp.zeros(2)}, {"w": jnp.ones(2)}, decay=0.75)
    >>> print(average["w"])
    [0.25 0.25]
    """
    return jax.tree.map(
        lambda a, p: (a + (1 - decay) * (p - a)).astype(jnp.result_type(a)), average, params
    )
