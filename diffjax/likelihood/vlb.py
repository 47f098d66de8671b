r"""The variational bound on -log p(x_0) of a model that steps down a grid.

The model starts from p(x_T) and takes the grid's steps t -> s with p(x_s | x_t) = N(mean,
variance), where the mean is the posterior's at the estimate of x_0. Jensen's inequality over q
gives (Ho et al. 2020, equation 5)

    -log p(x_0) <= KL(q(x_T | x_0) || p(x_T))                    the prior             (1)
                   + sum E KL(q(x_s | x_t, x_0) || p(x_s | x_t)) the steps             (2)
                   - E log p(x_0 | x_t)                          the reconstruction    (3)

for any grid of any schedule, since q(x_s | x_t, x_0) needs the two pairs of scales alone. With the
posterior N(mean, small) and a model of variance small exp(d), each dimension of (2) is

    (d + exp(-d) - 1) / 2 + exp(-d) of_x_0^2 / (2 small) (x_0 - estimate)^2             (4)

where of_x_0 is the posterior mean's coefficient of x_0 and d = mix log(large / small): mix is 0 for
beta-tilde, 1 for beta, the network's for a learned variance. of_x_0^2 / small is
SNR_s - SNR_t. What (4) needs of the grid is computed in float64, so float32 never sees the
difference of near-equal variances.

The last step, to clean data, is (3): the mass that N(estimate of x_0, variance) gives to the bins
of x_0 (`discretised`). There beta-tilde is 0 and is clipped to

    max(beta-tilde of the step before, beta / 2)                                        (5)

and both fixed variances take the clipped value. On the whole grid of a schedule whose beta rises
that is beta-tilde_2, at least half of beta_1, which DDPM's code lends to t = 1 for "fixedsmall" and
"fixedlarge" alike. On grids that are fine in log-SNR down to clean data, beta-tilde of the step
before vanishes with the step while the variance of x_0 given x_t does not: there the half is taken.
A learned variance lies between the clipped value and beta, as in Nichol & Dhariwal 2021's code. On
a grid of one step all are beta.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64

from diffjax.checks import checked
from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.likelihood.bits import bits_per_dim
from diffjax.likelihood.discretised import discretised_gaussian_log_prob
from diffjax.parametrisations import interpolated_log_variance
from diffjax.process import posterior_coefficients, transition
from diffjax.sampling.samplers.loop import (
    check_variance,
    learned_mix,
    per_example_keys,
    step_noise,
    step_scales,
)
from diffjax.types import Array, Data, PerExample, PRNGKeys


class Vlb(NamedTuple):
    """The bound's terms in bits per dimension; total = prior + steps' sum + reconstruction.

    Attributes:
      prior: (B,) equation (1).
      steps: (N-1, B) equation (2), from the noisiest step on; one draw of x_t each.
      reconstruction: (B,) equation (3).
      total: (B,).
    """

    prior: PerExample
    steps: Float[Array, "N-1 batch"]
    reconstruction: PerExample
    total: PerExample


class StepTable(NamedTuple):
    """What the bound asks of a grid's N steps: (N,) float64 each, NumPy.

    Attributes:
      log_small, log_large: log beta-tilde, with equation (5) at the last step, and log beta.
      log_ratio: their difference, log(large / small).
      of_error: of_x_0^2 / (2 small), equation (4)'s factor on the squared error of x_0; 0 at the
        step to clean data.
    """

    log_small: Float64[np.ndarray, " N"]
    log_large: Float64[np.ndarray, " N"]
    log_ratio: Float64[np.ndarray, " N"]
    of_error: Float64[np.ndarray, " N"]


@checked
def step_table(grid: Grid) -> StepTable:
    """The columns of equation (4).

    Raises:
      ValueError: a grid that does not end at clean data, or has a step without noise.
    """
    if grid.noise_scale[-1] != 0 or grid.signal_scale[-1] != 1:
        raise ValueError("the bound needs a grid that ends at clean data, not one that stops early")
    now, after = step_scales(grid)
    _, of_x_0, small = posterior_coefficients(after, now)
    large = transition(after, now)[1]
    if not (np.all(large > 0) and np.all(small[:-1] > 0)):
        raise ValueError("the bound needs a grid whose every step takes noise away")
    of_error = of_x_0**2 / np.append(2 * small[:-1], np.inf)
    small[-1] = max(small[-2], large[-1] / 2) if grid.steps > 1 else large[-1]
    log_small, log_large = np.log(small), np.log(large)
    return StepTable(log_small, log_large, log_large - log_small, of_error)


@checked
def step_kl(error: Data, *, mix: Array, log_ratio: Array, of_error: Array) -> Data:
    """Equation (4), elementwise, in nats.

    Args:
      error: x_0 less its estimate.
      mix: where the model's log-variance lies between beta-tilde's (0) and beta's (1).
      log_ratio, of_error: of a `StepTable`, shaped to broadcast.
    """
    d = mix * log_ratio
    return _excess(d) / 2 + jnp.exp(-d) * of_error * jnp.square(error)


def _excess(d: Array) -> Array:
    """d + exp(-d) - 1, by its series where the two terms would cancel."""
    near = jnp.abs(d) < 0.1
    close = jnp.where(near, d, 0.0)
    series = 1 - close / 3 * (1 - close / 4 * (1 - close / 5 * (1 - close / 6 * (1 - close / 7))))
    apart = jnp.where(near, 1.0, d)
    return jnp.where(near, close**2 / 2 * series, apart + jnp.expm1(-apart))


@checked
def vlb(
    denoise: Denoiser,
    x_0: Data,
    *,
    grid: Grid,
    key: PRNGKeys,
    cond: Any = None,
    variance: str = "beta_tilde",
    levels: int = 256,
) -> Vlb:
    """The bound on -log2 p(x_0) per dimension, equations (1) to (3).

    One draw of x_t and one evaluation of the network a step. p(x_T) is N(0, signal^2 + noise^2) of
    the grid's first time: N(0, 1) on a variance preserving schedule; where the signal there is not
    small against the noise, (1) says so.

    Args:
      denoise: x_t, t, cond -> Estimates.
      x_0: (B, ...) data on `levels` levels in [-1, 1].
      grid: the model's steps, to clean data: all of a discrete schedule's by
        `grids.trailing(schedule, schedule.T)`.
      key: a PRNG key, or (B,) keys, one an example, so that an example's noise does not depend on
        the batch it is in.
      cond: passed to the denoiser.
      variance: "beta_tilde", "beta" or "learned", as in `samplers.ancestral`.
      levels: of the data; 256 for images of 8 bits.

    Returns:
      A `Vlb`.

    Raises:
      ValueError: x_0 not of floats, a key of another shape, a grid that stops early, an unknown
        variance, or a learned one of a denoiser that has none.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> ddpm, x_0 = dj.schedules.linear_beta(1000), jnp.ones((1, 4))
    >>> denoise = dj.denoisers.gaussian_denoiser(ddpm, mean=1.0, std=0.0)  # knows the data
    >>> options = dict(grid=dj.grids.trailing(ddpm, 100), key=jax.random.key(0))
    >>> bound = jax.jit(lambda x_0: dj.likelihood.vlb(denoise, x_0, **options))(x_0)
    >>> print(f"{bound.prior.item():.3f} {bound.steps.sum():.3f}")  # and needs no bits
    0.000 0.000
    """
    if not jnp.issubdtype(x_0.dtype, jnp.floating):
        raise ValueError(f"x_0 must be floats in [-1, 1], not {x_0.dtype}")
    check_variance(variance)
    table = step_table(grid)
    keys = per_example_keys(key, len(x_0))
    axes = tuple(range(1, x_0.ndim))

    def mix_of(pair: Any) -> Array:
        if variance == "learned":
            return learned_mix(pair).astype(x_0.dtype)
        return jnp.full((), float(variance == "beta"), x_0.dtype)

    def body(last: Any, inputs: tuple[Array, dict[str, Array]]) -> tuple[Any, Array]:
        del last
        i, c = inputs
        x_t = c["signal"] * x_0 + c["noise"] * step_noise(keys, i, 0, x_0)
        pair = denoise(x_t, c["t"], cond)
        estimate, mix = pair.x_0.astype(x_0.dtype), mix_of(pair)
        kl = step_kl(x_0 - estimate, mix=mix, log_ratio=c["log_ratio"], of_error=c["of_error"])
        return (estimate, mix), kl.mean(axes)

    columns = {
        "signal": grid.signal_scale[:-1], "noise": grid.noise_scale[:-1],
        "log_ratio": table.log_ratio, "of_error": table.of_error,
    }  # fmt: skip
    rows = {name: jnp.asarray(value, x_0.dtype) for name, value in columns.items()}
    rows["t"] = jnp.asarray(grid.t[:-1], None if grid.t.dtype.kind == "i" else x_0.dtype)
    # The last evaluation is the reconstruction's: it leaves the loop as its carry.
    start = (x_0, jnp.zeros(x_0.shape if variance == "learned" else (), x_0.dtype))
    (estimate, mix), kl = jax.lax.scan(body, start, (jnp.arange(grid.steps), rows))
    log_variance = interpolated_log_variance(
        mix if variance == "learned" else 0.0,
        *(jnp.asarray(a[-1], x_0.dtype) for a in (table.log_small, table.log_large)),
    )
    log_mass = discretised_gaussian_log_prob(
        x_0, mean=estimate, log_std=log_variance / 2, levels=levels
    )
    # Means over the dimensions: what is left is nats to bits.
    prior, steps, reconstruction = (
        bits_per_dim(term, dimensions=1)
        for term in (_prior(x_0, grid), kl[:-1], -log_mass.mean(axes))
    )
    return Vlb(prior, steps, reconstruction, prior + steps.sum(0) + reconstruction)


def _prior(x_0: Data, grid: Grid) -> PerExample:
    """Equation (1) in nats per dimension."""
    signal, noise = grid.signal_scale[0], grid.noise_scale[0]
    power = signal**2 + noise**2
    # log(power / noise^2) + noise^2 / power - 1
    excess = np.log1p((signal / noise) ** 2) - signal**2 / power
    square = jnp.square(x_0).mean(tuple(range(1, x_0.ndim)))
    return float(excess) / 2 + float(signal**2 / (2 * power)) * square
