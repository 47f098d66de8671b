"""Samplers that go back up in noise, or around in it: EDM's churn, Langevin correctors, Restart."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.process import posterior_coefficients, transition
from diffjax.sampling.samplers.linear import noise_to_signal
from diffjax.sampling.samplers.loop import NoiseFn, Samples, require_key, run, step_scales
from diffjax.sampling.samplers.one_step import heun_columns, heun_step
from diffjax.schedules import Scales, Schedule
from diffjax.types import Array, Data, PRNGKeys


def churned(
    grid: Grid,
    schedule: Schedule,
    *,
    churn: float,
    lowest: float,
    highest: float,
    noise_factor: float,
) -> tuple[Scales[np.ndarray], dict[str, np.ndarray]]:
    """The scales that steps begin from after churn, and the columns of `churn_up`.

    Raises:
      ValueError: a negative churn.
    """
    if churn < 0:
        raise ValueError(f"churn must be at least 0, not {churn}")
    rho = noise_to_signal(grid)[:-1]
    most = min(churn / grid.steps, np.sqrt(2) - 1)
    gamma = np.where((lowest <= rho) & (rho <= highest), most, 0.0)
    # No more noise than the schedule has.
    ceiling: Any = np.exp(-schedule.log_snr(np.float64(schedule.T)) / 2)
    raised = np.where(gamma > 0, np.minimum(rho * (1 + gamma), np.maximum(rho, ceiling)), rho)
    moved = raised > rho
    t_up = np.where(moved, np.asarray(schedule.time(-2 * np.log(raised))), grid.t[:-1])
    now, _ = step_scales(grid)
    at = schedule(t_up)
    signal: Any = np.where(moved, at.signal_scale, now.signal_scale)
    noise = np.where(moved, at.noise_scale, now.noise_scale)
    with np.errstate(invalid="ignore"):
        std = signal * noise_factor * np.sqrt(np.where(moved, raised**2 - rho**2, 0.0))
        up = np.where(moved, signal / now.signal_scale, 1.0)
    return Scales(signal, noise), {"t_up": t_up, "up": up, "std_up": std}


def churn_up(x_t: Data, c: dict[str, Array], draw_noise: NoiseFn | None) -> Data:
    """x_t at the raised noise level."""
    return x_t if draw_noise is None else c["up"] * x_t + c["std_up"] * draw_noise(0)


def edm_stochastic(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    schedule: Schedule,
    churn: float = 40.0,
    lowest: float = 0.05,
    highest: float = 50.0,
    noise_factor: float = 1.003,
) -> Samples:
    """EDM's stochastic sampler: some noise is added back before each of Heun's steps.

    Karras et al. 2022, algorithm 2, with rho = noise / signal as sigma: from rho to
    (1 + gamma) rho by fresh noise, gamma = min(churn / N, sqrt(2) - 1) where rho is in
    [lowest, highest], then down to the next time. Up to 2N - 1 evaluations.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: as in `ancestral`; needed when churn > 0.
      schedule: the grid's; it says at which time a noise level is.
      churn, lowest, highest, noise_factor: the paper's S_churn, S_tmin, S_tmax, S_noise.

    Raises:
      ValueError: no key, or a negative churn.

    >>> import jax, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jax.random.normal(jax.random.key(0), (32, 32))
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> options = dict(grid=dj.grids.trailing(flow, 50), key=jax.random.key(1), schedule=flow)
    >>> x_0 = dj.samplers.edm_stochastic(denoise, noise, **options).x_0
    >>> print(x_0.mean().round(1), x_0.std().round(1))  # the data's
    1.0 0.5
    """
    start, columns = churned(
        grid, schedule, churn=churn, lowest=lowest, highest=highest, noise_factor=noise_factor
    )
    if churn > 0:
        require_key(key, "edm_stochastic with churn > 0")
    columns |= heun_columns(start, step_scales(grid)[1])

    def step(carry: None, x_t: Data, c: dict[str, Array], draw_noise: NoiseFn) -> tuple[None, Data]:
        x_t = churn_up(x_t, c, draw_noise if churn > 0 else None)
        return carry, heun_step(denoise, x_t, c["t_up"], c["t_next"], cond, c)

    return run(
        step, x_T, grid=grid, coefficients=columns, key=key if churn > 0 else None,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip


def euler_churn(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    schedule: Schedule,
    churn: float = 40.0,
    lowest: float = 0.05,
    highest: float = 50.0,
    noise_factor: float = 1.003,
) -> Samples:
    """Euler's method with EDM's churn: some noise is added back before each step (1).

    Karras et al. 2022, algorithm 2 without lines 6 to 8, k-diffusion's `sample_euler` with
    s_churn. N evaluations.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: as in `ancestral`; needed when churn > 0.
      schedule, churn, lowest, highest, noise_factor: as in `edm_stochastic`.

    Raises:
      ValueError: no key, or a negative churn.

    >>> import jax, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jax.random.normal(jax.random.key(0), (32, 32))
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> options = dict(grid=dj.grids.trailing(flow, 100), key=jax.random.key(1), schedule=flow)
    >>> x_0 = dj.samplers.euler_churn(denoise, noise, churn=5.0, **options).x_0
    >>> print(x_0.mean().round(1), x_0.std().round(1))  # the data's
    1.0 0.5
    """
    _, columns = churned(
        grid, schedule, churn=churn, lowest=lowest, highest=highest, noise_factor=noise_factor
    )
    if churn > 0:
        require_key(key, "euler_churn with churn > 0")
    after = step_scales(grid)[1]
    columns |= {"of_x_0": after.signal_scale, "of_eps": after.noise_scale}

    def step(carry: None, x_t: Data, c: dict[str, Array], draw_noise: NoiseFn) -> tuple[None, Data]:
        x_t = churn_up(x_t, c, draw_noise if churn > 0 else None)
        x_0, eps, _ = denoise(x_t, c["t_up"], cond)
        return carry, c["of_x_0"] * x_0 + c["of_eps"] * eps

    return run(
        step, x_T, grid=grid, coefficients=columns, key=key if churn > 0 else None,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip


def predictor_corrector(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    corrections: int = 1,
    snr: float = 0.16,
) -> Samples:
    """Ancestral steps, each followed by Langevin steps at the new noise level.

    Song et al. 2021b, algorithms 2 to 5: x += a score + sqrt(2 a) z with score = -eps / noise and
    a = 2 (snr |z| / |score|)^2, norms taken per example. N (1 + corrections) - corrections
    evaluations: the step to clean data is not corrected.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: as in `ancestral`; needed.
      corrections: Langevin steps a step.
      snr: their signal-to-noise ratio; 0.16 in the paper.

    Raises:
      ValueError: no key, negative corrections, an snr that is not positive.

    >>> import jax, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jax.random.normal(jax.random.key(0), (32, 32))
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> options = dict(grid=dj.grids.trailing(flow, 50), key=jax.random.key(1))
    >>> x_0 = dj.samplers.predictor_corrector(denoise, noise, **options).x_0
    >>> print(x_0.mean().round(1), x_0.std().round(1))  # the data's
    1.0 0.5
    """
    require_key(key, "predictor_corrector")
    if corrections < 0 or snr <= 0:
        raise ValueError(
            f"corrections must be at least 0 and snr positive, not {corrections} and {snr}"
        )
    now, after = step_scales(grid)
    of_x_t, of_x_0, variance = posterior_coefficients(after, now)
    columns = {
        "of_x_t": of_x_t, "of_x_0": of_x_0, "std": np.sqrt(variance),
        "inverse_noise": np.divide(1, after.noise_scale, where=after.noise_scale > 0,
                                   out=np.zeros(grid.steps)),
    }  # fmt: skip

    def norm(x: Data) -> Array:
        return jnp.sqrt(jnp.square(x).sum(tuple(range(1, x.ndim)), keepdims=True))

    def step(carry: None, x_t: Data, c: dict[str, Array], draw_noise: NoiseFn) -> tuple[None, Data]:
        x_0 = denoise(x_t, c["t"], cond).x_0
        x_s = c["of_x_t"] * x_t + c["of_x_0"] * x_0 + c["std"] * draw_noise(0)

        def corrected(x: Data) -> Data:
            for k in range(corrections):
                score = -denoise(x, c["t_next"], cond).eps * c["inverse_noise"]
                z = draw_noise(k + 1)
                size = 2 * jnp.square(snr * norm(z) / norm(score))
                x = x + size * score + jnp.sqrt(2 * size) * z
            return x

        return carry, jax.lax.cond(c["inverse_noise"] > 0, corrected, lambda x: x, x_s)

    return run(step, x_T, grid=grid, coefficients=columns, key=key, keep_trajectory=keep_trajectory)


def restart(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    intervals: Sequence[tuple[float, float, int]] = ((0.1, 2.0, 1),),
) -> Samples:
    """Restart: Heun's method that now and then goes back up in noise, and down again.

    Xu et al. 2023, "Restart sampling for improving generative processes", algorithm 1, with
    rho = noise / signal as their t. On the way down, at the grid's point nearest to `low`, noise
    takes x back to the point nearest to `high`, `times` times.

    Args:
      denoise, x_T, grid, cond: as in `ancestral`.
      key: as in `ancestral`; needed.
      keep_trajectory: whether to return every x_t, of all ways down in their order.
      intervals: (low, high, times) in rho.

    Raises:
      ValueError: no key, or an interval that holds no step of the grid.

    >>> import jax, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jax.random.normal(jax.random.key(0), (32, 32))
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> options = dict(grid=dj.grids.trailing(flow, 50), key=jax.random.key(1))
    >>> options |= dict(intervals=[(0.1, 2.0, 2)])
    >>> x_0 = dj.samplers.restart(denoise, noise, **options).x_0
    >>> print(x_0.mean().round(1), x_0.std().round(1))  # the data's
    1.0 0.5
    """
    require_key(key, "restart")
    rho = noise_to_signal(grid)
    returns: dict[int, list[int]] = {}
    for low, high, times in intervals:
        if not 0 < low < high or times < 0:
            raise ValueError(
                f"interval ({low}, {high}, {times}): expected 0 < low < high, times >= 0"
            )
        bottom, top = (int(np.abs(rho[:-1] - level).argmin()) for level in (low, high))
        if top >= bottom:
            raise ValueError(
                f"interval ({low}, {high}, {times}) holds no step of the grid: take more steps or "
                "a wider interval"
            )
        returns.setdefault(bottom, []).extend([top] * times)
    path = [0]
    for i in range(1, grid.steps + 1):
        path.append(i)
        for top in returns.get(i, []):
            path += range(top, i + 1)
    walk = Grid(*(column[path] for column in grid))
    now, after = step_scales(walk)
    up = np.diff(path) < 0
    signal_ts, variance = transition(
        Scales(*(np.where(up, a, 1.0) for a in now)), Scales(*(np.where(up, a, 1.0) for a in after))
    )
    columns = heun_columns(now, after) | {
        "up": up, "of_x_t": signal_ts, "std": np.sqrt(variance)
    }  # fmt: skip

    def step(carry: None, x_t: Data, c: dict[str, Array], draw_noise: NoiseFn) -> tuple[None, Data]:
        noise = draw_noise(0)
        return carry, jax.lax.cond(
            c["up"] > 0,
            lambda x: c["of_x_t"] * x + c["std"] * noise,
            lambda x: heun_step(denoise, x, c["t"], c["t_next"], cond, c),
            x_t,
        )

    return run(step, x_T, grid=walk, coefficients=columns, key=key, keep_trajectory=keep_trajectory)
