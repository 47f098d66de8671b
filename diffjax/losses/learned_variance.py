r"""Learned variances: losses of networks that return 2C channels.

Improved DDPM (Nichol & Dhariwal 2021): the first C channels are what `losses` trains, the last C
give where a step's log-variance lies between those of beta-tilde and beta (their equation 15;
`denoisers.predict_with_variance`). The squared error has no use for a variance, the variational
bound has:

    L_hybrid = L_simple + vlb_weight L_vlb                  their section 3.1            (1)
    L_vlb    = E_t T L_{t-1},  t uniform over 1..T                                       (2)

With T in (2) the mean over uniform t is the bound's sum over the steps (all of it but the prior,
which no network enters). L_{t-1} is `likelihood.vlb`'s: a KL divergence, or for t = 1 the
reconstruction. All are in nats per dimension. Improved DDPM's code has the bound in bits, 1 / log 2
as large: its loss is that of vlb_weight = 0.001 / log 2 here.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer

from diffjax import grids
from diffjax.checks import checked
from diffjax.denoisers import NetworkFn, predict_with_variance
from diffjax.likelihood.discretised import discretised_gaussian_log_prob
from diffjax.likelihood.vlb import step_kl, step_table
from diffjax.losses.denoising import diffusion_loss
from diffjax.parametrisations import Estimates, interpolated_log_variance
from diffjax.prediction import Prediction
from diffjax.process import broadcast, q_sample
from diffjax.sampling.samplers.loop import learned_mix
from diffjax.schedules import Schedule
from diffjax.types import Array, Data, PerExample

__all__ = ["hybrid_loss", "interpolated_log_variance", "vlb_loss", "vlb_term"]


@checked
def vlb_term(
    pair: Estimates,
    x_0: Data,
    *,
    step: Integer[Array, " batch"],
    grid: grids.Grid,
    levels: int = 256,
) -> PerExample:
    """L_{t-1} of each example for one step t -> s of a grid, in nats per dimension.

    KL(q(x_s | x_t, x_0) || p(x_s | x_t)), or where s is clean data the reconstruction -log p(x_0 |
    x_t) (`likelihood.vlb`, equations 2 to 4). x_t is not asked for: both means hold it alike.

    Args:
      pair: the estimates at x_t and t, with a variance_mix.
      x_0: (B, ...) data on `levels` levels in [-1, 1].
      step: (B,) integers in 0..N-1: which of the grid's steps; 0 is the first, from noise.
      grid: N steps of a schedule: any subset of its times, down to clean data.
      levels: of the data; 256 for images of 8 bits.

    Returns:
      (B,), in x_0's type.

    Raises:
      ValueError: estimates without a variance_mix or of another shape than x_0, steps not one an
        example, a grid that stops early.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> x_0, half = jnp.full((1, 4), 1.0), jnp.full((1, 4), 0.5)
    >>> options = dict(step=jnp.array([0]), grid=dj.grids.trailing(dj.schedules.cosine(100), 10))
    >>> term = jax.jit(lambda pair: dj.learned_variance.vlb_term(pair, x_0, **options))
    >>> for mix in (0.0, 0.5):  # the mean is right: what is left is the variance's KL
    ...     pair = dj.Estimates(x_0, half, variance_mix=jnp.full_like(x_0, mix))
    ...     print(term(pair) > 0)
    [False]
    [ True]
    """
    mix = learned_mix(pair)
    if not pair.x_0.shape == mix.shape == x_0.shape:
        raise ValueError(
            f"estimates of {pair.x_0.shape} and a variance_mix of {mix.shape} for x_0 of "
            f"{x_0.shape}: they must be the same"
        )
    log_small, log_large, log_ratio, of_error = (
        broadcast(jnp.asarray(column, x_0.dtype)[step], x_0) for column in step_table(grid)
    )
    kl = step_kl(x_0 - pair.x_0, mix=mix, log_ratio=log_ratio, of_error=of_error)
    log_std = interpolated_log_variance(mix, log_small, log_large) / 2
    log_mass = discretised_gaussian_log_prob(x_0, mean=pair.x_0, log_std=log_std, levels=levels)
    is_last = broadcast(jnp.asarray(step) == grid.steps - 1, x_0)
    return jnp.where(is_last, -log_mass, kl).mean(tuple(range(1, x_0.ndim)))


@checked
def hybrid_loss(
    network: NetworkFn,
    x_0: Data,
    *,
    prediction: Prediction,
    t: Integer[Array, " batch"],
    eps: Data,
    cond: Any = None,
    simple_loss: Callable[..., PerExample] = diffusion_loss,
    vlb_weight: float = 0.001,
) -> PerExample:
    """L_hybrid of each example, equation (1), by one evaluation of the network.

    The bound sees the mean through a stop-gradient: it trains the variance alone, and L_simple the
    mean (Nichol & Dhariwal 2021, section 3.1).

    Args:
      network: (x, time_input, cond) -> output of x's shape with twice its channels.
      x_0: (B, ...) data on 256 levels in [-1, 1], float32.
      prediction: as in `losses.diffusion_loss`, with a discrete schedule.
      t: (B,) integer times in 1..T; if drawn other than uniformly, the loss is to be divided by T
        times their probability.
      eps: (B, ...) standard normal noise.
      cond: what the network is conditioned on, or None.
      simple_loss: `diffusion_loss`, with its target and weighting bound where they are not the
        default ones.
      vlb_weight: lambda of equation (1).

    Returns:
      (B,) float32.

    Raises:
      ValueError: as `losses.diffusion_loss`, or a schedule that is not discrete.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> prediction = dj.Prediction(dj.schedules.cosine(100), dj.parametrisations.x0)
    >>> x_0, eps, t = jnp.ones((1, 2)), jnp.ones((1, 2)), jnp.array([50])
    >>> network = lambda x, time, cond: jnp.concatenate([0 * x + 0.5, 0 * x - 1], axis=-1)
    >>> options = dict(prediction=prediction, t=t, eps=eps, vlb_weight=0.0)
    >>> loss = jax.jit(lambda x_0: dj.learned_variance.hybrid_loss(network, x_0, **options))
    >>> print(loss(x_0))  # (1 - 1/2)^2
    [0.25]
    """
    value, pair = _evaluate(network, x_0, prediction=prediction, t=t, eps=eps, cond=cond)
    simple = simple_loss(lambda x, time, cond: value, x_0, prediction=prediction, t=t, eps=eps)
    pair = pair._replace(x_0=jax.lax.stop_gradient(pair.x_0))
    return simple + vlb_weight * _scaled_term(pair, x_0, t=t, schedule=prediction.schedule)


@checked
def vlb_loss(
    network: NetworkFn,
    x_0: Data,
    *,
    prediction: Prediction,
    t: Integer[Array, " batch"],
    eps: Data,
    cond: Any = None,
) -> PerExample:
    """L_vlb of each example, equation (2): T L_{t-1}, which trains mean and variance.

    Its mean over uniform t is the bound on -log p(x_0) less the prior. Nichol & Dhariwal 2021,
    section 3.3, draw t by importance, since the terms differ by orders of magnitude.

    Args:
      network, x_0, prediction, t, eps, cond: as in `hybrid_loss`.

    Returns:
      (B,) float32, in nats per dimension.

    Raises:
      ValueError: as `hybrid_loss`.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> prediction = dj.Prediction(dj.schedules.cosine(100), dj.parametrisations.x0)
    >>> x_0, eps, t = jnp.ones((1, 2)), jnp.ones((1, 2)), jnp.array([50])
    >>> network = lambda x, time, cond: jnp.concatenate([0 * x + 1, 0 * x - 1], axis=-1)
    >>> options = dict(prediction=prediction, t=t, eps=eps)
    >>> loss = jax.jit(lambda x_0: dj.learned_variance.vlb_loss(network, x_0, **options))
    >>> print(loss(x_0))  # the right mean and beta-tilde: no divergence
    [0.]
    """
    _, pair = _evaluate(network, x_0, prediction=prediction, t=t, eps=eps, cond=cond)
    return _scaled_term(pair, x_0, t=t, schedule=prediction.schedule)


def _evaluate(
    network: NetworkFn,
    x_0: Data,
    *,
    prediction: Prediction,
    t: Integer[Array, " batch"],
    eps: Data,
    cond: Any,
) -> tuple[Data, Estimates]:
    """The network's value and estimates at (x_t, t)."""
    schedule, parametrisation, time_input = prediction[:3]
    if not schedule.discrete:
        raise ValueError("a learned variance's bound needs a discrete schedule, with steps 1..T")
    x_t = q_sample(schedule, x_0, t=t, eps=eps)
    value, mix, scales = predict_with_variance(
        network, x_t, t=t, cond=cond,
        schedule=schedule, parametrisation=parametrisation, time_input=time_input,
    )  # fmt: skip
    return value, parametrisation.estimates(value, x_t, scales)._replace(variance_mix=mix)


def _scaled_term(
    pair: Estimates, x_0: Data, *, t: Integer[Array, " batch"], schedule: Schedule
) -> PerExample:
    """T L_{t-1} over all steps of the schedule."""
    T = int(schedule.T)
    whole = grids.from_times(schedule, np.arange(T, 0, -1))
    return T * vlb_term(pair, x_0, step=T - jnp.asarray(t), grid=whole)
