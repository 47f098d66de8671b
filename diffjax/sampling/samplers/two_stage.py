"""Steps of order 2 between noises: ancestral DPM2 and DPM-Solver++(2S), and DPM2 with churn.

A step of the probability-flow ODE goes not to the next point of the grid but below it, with noise
after it (ancestral), or not from the present one but from above it, with noise before it (churn).
So its stage, half-way in lambda = log(signal / noise), is at no point of a grid: the schedule says
at which time it is, and a step evaluates twice. From pure or nearly pure noise, and to clean data,
a step is a plain one, (1) of the package: 2N - 1 evaluations at most.
"""

from typing import Any

import jax
import numpy as np

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.process import posterior_coefficients
from diffjax.sampling.samplers.linear import NEARLY_PURE_NOISE
from diffjax.sampling.samplers.loop import NoiseFn, Samples, require_key, run, step_scales
from diffjax.sampling.samplers.stochastic import churn_up, churned
from diffjax.schedules import Scales, Schedule
from diffjax.types import Array, Data, PRNGKeys, Times


def dpm2_ancestral(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    schedule: Schedule,
    eta: float = 1.0,
) -> Samples:
    """`dpm2`'s step below the next noise level, then noise: k-diffusion's `sample_dpm_2_ancestral`.

    The noise and the level below are those of `euler_ancestral`; the step between is the midpoint
    rule in rho = noise / signal with the geometric mean as the midpoint.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: as in `ancestral`; needed when eta > 0.
      schedule: the grid's; it says at which time a stage is.
      eta: in [0, 1]: 0 is the ODE's solver, 1 has the variance of DDPM's posterior.

    Raises:
      ValueError: eta out of range, or eta > 0 without a key.

    >>> import jax, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jax.random.normal(jax.random.key(0), (32, 32))
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> options = dict(grid=dj.grids.trailing(flow, 50), key=jax.random.key(1), schedule=flow)
    >>> x_0 = dj.samplers.dpm2_ancestral(denoise, noise, **options).x_0
    >>> print(x_0.mean().round(1), x_0.std().round(1))  # the data's
    1.0 0.5
    """
    return _ancestral(
        denoise, x_T, grid=grid, key=key, cond=cond, keep_trajectory=keep_trajectory,
        schedule=schedule, eta=eta, estimate="eps", name="dpm2_ancestral",
    )  # fmt: skip


def dpm_solver_pp_2s_ancestral(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    schedule: Schedule,
    eta: float = 1.0,
) -> Samples:
    """DPM-Solver++(2S)'s step below the next level, then noise.

    k-diffusion's `sample_dpmpp_2s_ancestral`: `dpm_solver_pp_2s` (Lu et al. 2022b, algorithm 1 with
    r = 1/2) in place of the step of `euler_ancestral`.

    Args:
      denoise, x_T, grid, key, cond, keep_trajectory, schedule, eta: as in `dpm2_ancestral`.

    Raises:
      ValueError: eta out of range, or eta > 0 without a key.

    >>> import jax, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jax.random.normal(jax.random.key(0), (32, 32))
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> options = dict(grid=dj.grids.trailing(flow, 50), key=jax.random.key(1), schedule=flow)
    >>> x_0 = dj.samplers.dpm_solver_pp_2s_ancestral(denoise, noise, **options).x_0
    >>> print(x_0.mean().round(1), x_0.std().round(1))  # the data's
    1.0 0.5
    """
    return _ancestral(
        denoise, x_T, grid=grid, key=key, cond=cond, keep_trajectory=keep_trajectory,
        schedule=schedule, eta=eta, estimate="x_0", name="dpm_solver_pp_2s_ancestral",
    )  # fmt: skip


def dpm2_churn(
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
    """`dpm2` with EDM's churn: some noise is added back before each of its steps.

    Karras et al. 2022, algorithm 2, with the midpoint in place of Heun's correction: k-diffusion's
    `sample_dpm_2` with s_churn.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: as in `ancestral`; needed when churn > 0.
      schedule, churn, lowest, highest, noise_factor: as in `edm_stochastic`.

    Raises:
      ValueError: no key, or a negative churn.

    >>> import jax, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jax.random.normal(jax.random.key(0), (32, 32))
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> options = dict(grid=dj.grids.trailing(flow, 50), key=jax.random.key(1), schedule=flow)
    >>> x_0 = dj.samplers.dpm2_churn(denoise, noise, **options).x_0
    >>> print(x_0.mean().round(1), x_0.std().round(1))  # the data's
    1.0 0.5
    """
    start, columns = churned(
        grid, schedule, churn=churn, lowest=lowest, highest=highest, noise_factor=noise_factor
    )
    if churn > 0:
        require_key(key, "dpm2_churn with churn > 0")
    columns |= _columns(schedule, start, step_scales(grid)[1], "eps")

    def step(carry: None, x_t: Data, c: dict[str, Array], draw_noise: NoiseFn) -> tuple[None, Data]:
        x_t = churn_up(x_t, c, draw_noise if churn > 0 else None)
        return carry, _step(denoise, x_t, c["t_up"], cond, c, "eps")

    return run(
        step, x_T, grid=grid, coefficients=columns, key=key if churn > 0 else None,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip


def _ancestral(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None,
    cond: Any,
    keep_trajectory: bool,
    schedule: Schedule,
    eta: float,
    estimate: str,
    name: str,
) -> Samples:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], not {eta}")
    if eta > 0:
        require_key(key, f"{name} with eta > 0")
    now, after = step_scales(grid)
    std = eta * np.sqrt(posterior_coefficients(after, now)[2])
    below = np.sqrt(np.maximum(after.noise_scale**2 - std**2, 0))
    columns = _columns(schedule, now, Scales(after.signal_scale, below), estimate) | {"std": std}

    def step(carry: None, x_t: Data, c: dict[str, Array], draw_noise: NoiseFn) -> tuple[None, Data]:
        x_s = _step(denoise, x_t, c["t"], cond, c, estimate)
        return carry, x_s + c["std"] * draw_noise(0) if eta > 0 else x_s

    return run(
        step, x_T, grid=grid, coefficients=columns, key=key if eta > 0 else None,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip


def _columns(
    schedule: Schedule, begin: Scales[np.ndarray], end: Scales[np.ndarray], estimate: str
) -> dict[str, np.ndarray]:
    """What `_step` weighs on the way from the scales `begin` to those of `end`, (N,) each.

    On eps a stage is exact where eps stays: x / signal moves by eps drho. On x_0 it is exact where
    x_0 stays: x / noise moves by x_0 d(1 / rho).
    """
    with np.errstate(divide="ignore"):
        lam, lam_end = (np.log(signal) - np.log(noise) for signal, noise in (begin, end))
    two = np.isfinite(lam) & np.isfinite(lam_end) & (lam > NEARLY_PURE_NOISE)
    middle = np.where(two, lam, 0) / 2 + np.where(two, lam_end, 0) / 2
    t_middle = np.asarray(schedule.time(2 * middle))
    columns = {"two": two, "t_middle": t_middle, "of_x_0": end.signal_scale,
               "of_eps": end.noise_scale}  # fmt: skip
    # The places in Scales of what x is divided by, and of what the estimate is multiplied by.
    by, of = (0, 1) if estimate == "eps" else (1, 0)
    for name, scales in (("middle", schedule(t_middle)), ("end", end)):
        kept = np.divide(scales[by], begin[by], out=np.zeros(len(two)), where=two)
        columns[f"{name}_of_x"] = kept
        columns[f"{name}_of_estimate"] = np.where(two, scales[of] - kept * begin[of], 0)
    return columns


def _step(
    denoise: Denoiser, x_t: Data, t: Times, cond: Any, c: dict[str, Array], estimate: str
) -> Data:
    first = denoise(x_t, t, cond)

    def in_two_stages() -> Data:
        x = c["middle_of_x"] * x_t + c["middle_of_estimate"] * getattr(first, estimate)
        second = denoise(x, c["t_middle"], cond)
        return c["end_of_x"] * x_t + c["end_of_estimate"] * getattr(second, estimate)

    return jax.lax.cond(
        c["two"] > 0,
        in_two_stages,
        lambda: c["of_x_0"] * first.x_0 + c["of_eps"] * first.eps,
    )
