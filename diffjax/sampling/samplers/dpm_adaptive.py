"""DPM-Solver with steps of a size that a PID controller chooses."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.sampling.samplers.linear import half_log_snr
from diffjax.sampling.samplers.loop import NoiseFn, Samples, run, step_scales
from diffjax.schedules import Schedule
from diffjax.types import Array, Data, PRNGKeys

# k-diffusion's: the first step in lambda, and how much smaller a next step may be proposed to be
# before this one is taken again.
FIRST_STEP, ACCEPT_ABOVE = 0.05, 0.81
# x / signal by the lower order, the step's size, tries so far, 1 / E of the last two steps.
_Carry = tuple[Data, Array, Array, Array, Array]


def dpm_solver_adaptive(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    schedule: Schedule,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    pid: tuple[float, float, float] = (0.0, 1.0, 0.0),
    max_steps: int = 1000,
) -> Samples:
    """DPM-Solver-23 or -12: steps of `dpm_solver_3`, or 2, with a lower order to tell their error.

    Lu et al. 2022a, section 3.4 and appendix C, with k-diffusion's `sample_dpm_adaptive` error and
    controller. On x / signal, E is the root mean square of (high - low) / max(atol, rtol |x|), the
    largest of the batch, and with k = order the step is multiplied by

        1 + arctan(f - 1),  f = (E_n^-(P+I+D) E_(n-1)^(P+2D) E_(n-2)^-D)^(1/k)

    where E_(n-1), E_(n-2) are of steps that were taken; one is where that is at least 0.81. All
    times of the grid are visited, with as many steps between two of them as the tolerance asks: a
    grid of few times leaves the choice to the tolerance. A step that was cut short, to meet a time,
    is judged by its cut size (k-diffusion's rule tries the same step again). Steps from pure noise
    and to clean data, where lambda is infinite, are `ddim`'s. `order` evaluations a try.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.
      schedule: the grid's, to find the time of a noise level.
      order: 3 (with 2 to compare) or 2 (with 1).
      rtol, atol: relative and absolute tolerance, of x / signal.
      pid: the controller's P, I and D; (0, 1, 0) looks at the present error alone.
      max_steps: tries in all, after which the result is NaN.

    Raises:
      ValueError: another order, or a tolerance that is not positive.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> grid = dj.grids.at(flow, 4, times=(1.0, 0.9, 0.5, 0.01))
    >>> x_0 = dj.samplers.dpm_solver_adaptive(denoise, noise, grid=grid, schedule=flow).x_0
    >>> print(x_0.round(2))  # the steps between are its own
    [[0.5 1.5]]
    """
    del key
    if order not in (2, 3):
        raise ValueError(f"dpm_solver_adaptive has orders 2 and 3, not {order}")
    if rtol <= 0 or atol <= 0:
        raise ValueError(f"rtol and atol must be positive, not {rtol} and {atol}")
    lam, (now, after) = half_log_snr(grid), step_scales(grid)
    is_plain = ~np.isfinite(np.diff(lam))
    columns = {
        "lam": np.where(is_plain, 0, lam[:-1]), "lam_next": np.where(is_plain, 0, lam[1:]),
        "signal": np.where(is_plain, 1, now.signal_scale), "signal_next": after.signal_scale,
        "noise_next": after.noise_scale, "is_plain": is_plain,
    }  # fmt: skip
    P, I, D = pid  # noqa: E741
    of_now, of_last, of_before = (P + I + D) / order, -(P + 2 * D) / order, D / order

    def eps_at(z: Data, lam: Array, c: dict[str, Array]) -> Data:
        """eps between two times of the grid, which are met as they are tabled."""
        t = jnp.clip(schedule.time(2 * lam), c["t_next"], c["t"])
        t = jnp.where(lam <= c["lam"], c["t"], jnp.where(lam >= c["lam_next"], c["t_next"], t))
        signal = schedule(t).signal_scale.astype(z.dtype)  # whose numbers would widen z's type
        return denoise(signal * z, t, cond).eps

    def both_orders(z: Data, lam: Array, h: Array, c: dict[str, Array]) -> tuple[Data, Data]:
        """x / signal a step h further, by the lower and the higher order."""
        rho = jnp.exp(-(lam + h))
        r = 1 / 2 if order == 2 else 1 / 3
        eps = eps_at(z, lam, c)
        plain = z - rho * jnp.expm1(h) * eps
        stage = z - jnp.exp(-(lam + r * h)) * jnp.expm1(r * h) * eps
        change = eps_at(stage, lam + r * h, c) - eps
        second = plain - rho / (2 * r) * jnp.expm1(h) * change
        if order == 2:
            return plain, second
        g = 2 / 3 * h
        stage = z - jnp.exp(-(lam + g)) * (jnp.expm1(g) * eps + 2 * (jnp.expm1(g) / g - 1) * change)
        change = eps_at(stage, lam + g, c) - eps
        return second, plain - 1.5 * rho * (jnp.expm1(h) / h - 1) * change

    def attempt(state: tuple[Array, ...], c: dict[str, Array]) -> tuple[Array, ...]:
        z, lam, previous, h, tries, last, before = state
        reaches = h >= c["lam_next"] - lam
        size = jnp.where(reaches, c["lam_next"] - lam, h)
        low, high = both_orders(z, lam, size, c)
        allowed = jnp.maximum(atol, rtol * jnp.maximum(jnp.abs(low), jnp.abs(previous)))
        squares = jnp.square((low - high) / allowed)
        inverse = 1 / (jnp.sqrt(squares.mean(tuple(range(1, z.ndim))).max()) + 1e-8)
        last, before = (jnp.where(tries == 0, inverse, old) for old in (last, before))
        factor = inverse**of_now * last**of_last * before**of_before
        factor = 1 + jnp.arctan(factor - 1)
        good = factor >= ACCEPT_ABOVE
        proposed = size * factor
        # A step that the grid cut short says nothing against a longer one.
        h = jnp.where(good & reaches, jnp.maximum(h, proposed), proposed)
        lam_new = jnp.where(reaches, c["lam_next"], lam + size)
        new, old = (high, lam_new, low, inverse, last), (z, lam, previous, last, before)
        z, lam, previous, last, before = (
            jnp.where(good, a, b) for a, b in zip(new, old, strict=True)
        )
        return z, lam, previous, h, tries + 1, last, before

    def step(
        carry: _Carry, x_t: Data, c: dict[str, Array], draw_noise: NoiseFn
    ) -> tuple[_Carry, Data]:
        def plain(carry: _Carry) -> tuple[_Carry, Data]:
            x_0, eps, _ = denoise(x_t, c["t"], cond)
            x_s = c["signal_next"] * x_0 + c["noise_next"] * eps
            return (x_s / c["signal_next"], *carry[1:]), x_s

        def in_steps(carry: _Carry) -> tuple[_Carry, Data]:
            state: tuple[Array, ...] = (x_t / c["signal"], c["lam"], *carry)
            z, lam, *rest = jax.lax.while_loop(
                lambda state: (state[1] < c["lam_next"]) & (state[4] < max_steps),
                lambda state: attempt(state, c),
                state,
            )
            given_up = jnp.where(lam < c["lam_next"], math.nan, 0.0).astype(x_t.dtype)
            previous, h, tries, last, before = rest
            return (previous, h, tries, last, before), c["signal_next"] * (z + given_up)

        return jax.lax.cond(c["is_plain"] > 0, plain, in_steps, carry)

    begin = x_T / (now.signal_scale[0] or 1.0)
    one = jnp.ones((), x_T.dtype)
    first = (begin, FIRST_STEP * one, jnp.asarray(0), one, one)
    return run(
        step, x_T, grid=grid, coefficients=columns, carry=first, key=None,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip
