"""Samplers that look at the present alone: DDPM, DDIM, Euler, Heun."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.process import posterior_coefficients, transition
from diffjax.sampling.samplers.loop import (
    NoiseFn,
    Samples,
    check_variance,
    learned_mix,
    require_key,
    run,
    step_scales,
)
from diffjax.schedules import Scales
from diffjax.types import Array, Data, PRNGKeys, Times


def ancestral(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    variance: str = "beta_tilde",
) -> Samples:
    """DDPM's sampler: x_s ~ N(posterior mean at the estimate of x_0, variance).

    Ho et al. 2020, algorithm 2 and section 3.2, for any grid: "beta_tilde" is the variance of
    q(x_s | x_t, x_0) (fixed small), "beta" that of q(x_t | x_s) (fixed large), "learned" is
    between their logarithms as the denoiser's `variance_mix` says (Nichol & Dhariwal 2021, equation
    15). A step to clean data adds no noise; a step to noise adds it, be it the grid's last.

    Args:
      denoise: x_t, t, cond -> Estimates.
      x_T: (B, ...) noise to start from.
      grid: the times.
      key: needed: a PRNG key, or (B,) keys, one an example, so that an example's noise does not
        depend on the batch it is drawn in.
      cond: passed to the denoiser.
      keep_trajectory: whether to return every x_t.
      variance: "beta_tilde", "beta" or "learned".

    Raises:
      ValueError: no key, a key of another shape, an unknown variance, or a learned one of a
        denoiser that has none.

    >>> import jax, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jax.random.normal(jax.random.key(0), (32, 32))
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> options = dict(grid=dj.grids.trailing(flow, 50), key=jax.random.key(1))
    >>> x_0 = dj.samplers.ancestral(denoise, noise, **options).x_0
    >>> print(x_0.mean().round(1), x_0.std().round(1))  # the data's
    1.0 0.5
    """
    require_key(key, "ancestral")
    check_variance(variance)
    now, after = step_scales(grid)
    of_x_t, of_x_0, small = posterior_coefficients(after, now)
    large = transition(after, now)[1]
    std = np.sqrt(large if variance == "beta" else small)
    # "beta" is above 0 in the step to clean data as well, whose law has no noise.
    std[after.noise_scale == 0] = 0.0
    # The logarithm of the ratio of standard deviations; where there is no noise, nothing to widen.
    widening = np.log(np.divide(large, small, out=np.ones_like(small), where=small > 0)) / 2

    def step(carry: None, x_t: Data, c: dict[str, Array], draw_noise: NoiseFn) -> tuple[None, Data]:
        pair = denoise(x_t, c["t"], cond)
        noise = c["std"] * draw_noise(0)
        if variance == "learned":
            noise *= jnp.exp(learned_mix(pair) * c["widening"])
        return carry, c["of_x_t"] * x_t + c["of_x_0"] * pair.x_0 + noise

    coefficients = {"of_x_t": of_x_t, "of_x_0": of_x_0, "std": std, "widening": widening}
    return run(
        step, x_T, grid=grid, coefficients=coefficients, key=key, keep_trajectory=keep_trajectory
    )


def ddim(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    eta: float = 0.0,
) -> Samples:
    """DDIM: x_s = signal_s x_0 + sqrt(noise_s^2 - std^2) eps + std noise.

    Song et al. 2021a, equations 12 and 16, with std = eta sqrt(beta-tilde): eta = 0 is
    deterministic and of order 1, eta = 1 has the law of `ancestral`.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: as in `ancestral`; needed when eta > 0.
      eta: in [0, 1].

    Raises:
      ValueError: eta out of range, or eta > 0 without a key.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> x_0 = dj.samplers.ddim(denoise, noise, grid=dj.grids.trailing(flow, 50)).x_0
    >>> print(x_0.round(1))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], not {eta}")
    if eta > 0:
        require_key(key, "ddim with eta > 0")
    now, after = step_scales(grid)
    std = eta * np.sqrt(posterior_coefficients(after, now)[2])
    coefficients = {
        "of_x_0": after.signal_scale,
        "of_eps": np.sqrt(np.maximum(after.noise_scale**2 - std**2, 0)),
        "std": std,
    }

    def step(carry: None, x_t: Data, c: dict[str, Array], draw_noise: NoiseFn) -> tuple[None, Data]:
        x_0, eps, _ = denoise(x_t, c["t"], cond)
        x_s = c["of_x_0"] * x_0 + c["of_eps"] * eps
        return carry, x_s + c["std"] * draw_noise(0) if eta > 0 else x_s

    return run(
        step, x_T, grid=grid, coefficients=coefficients,
        key=key if eta > 0 else None, keep_trajectory=keep_trajectory,
    )  # fmt: skip


def euler_ancestral(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    eta: float = 1.0,
) -> Samples:
    """k-diffusion's `sample_euler_ancestral`: Euler's step below the next level, then noise.

    With rho = noise / signal it steps to rho_down and adds rho_up, where
    rho_up = eta rho_s sqrt(rho_t^2 - rho_s^2) / rho_t and rho_s^2 = rho_down^2 + rho_up^2: that is
    `ddim` with the same eta.

    Args:
      denoise, x_T, grid, key, cond, keep_trajectory, eta: as in `ddim`.

    >>> import jax, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jax.random.normal(jax.random.key(0), (32, 32))
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> options = dict(grid=dj.grids.trailing(flow, 50), key=jax.random.key(1))
    >>> x_0 = dj.samplers.euler_ancestral(denoise, noise, **options).x_0
    >>> print(x_0.mean().round(1), x_0.std().round(1))  # the data's
    1.0 0.5
    """
    return ddim(
        denoise, x_T, grid=grid, key=key, cond=cond, keep_trajectory=keep_trajectory, eta=eta
    )


def euler(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
) -> Samples:
    r"""Euler's method on the probability-flow ODE, along straight paths. Order 1.

    Divided by signal + noise every process is z = (1 - u) x_0 + u eps with
    u = noise / (signal + noise), and dz/du = eps - x_0 (Liu et al. 2023). For a rectified flow that
    is x_s = x_t + (s - t) velocity. (1) is linear in u, so it is DDIM (eta = 0) by another route,
    as EDM's Euler steps are (Karras et al. 2022, section 3).

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> grids = dj.grids.trailing(flow, 20), dj.grids.trailing(flow, 40)
    >>> error, of_half = (dj.samplers.euler(denoise, noise, grid=grid).x_0 - 1.5 for grid in grids)
    >>> print((error / of_half).round())  # order 1: half the step, half the error
    [[2.]]
    """
    del key
    total = grid.signal_scale + grid.noise_scale
    u = grid.noise_scale / total
    coefficients = {"into": 1 / total[:-1], "out": total[1:], "du": np.diff(u)}

    def step(carry: None, x_t: Data, c: dict[str, Array], draw_noise: NoiseFn) -> tuple[None, Data]:
        x_0, eps, _ = denoise(x_t, c["t"], cond)
        return carry, c["out"] * (c["into"] * x_t + c["du"] * (eps - x_0))

    return run(
        step, x_T, grid=grid, coefficients=coefficients, key=None, keep_trajectory=keep_trajectory
    )


def heun(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    last: str = "plain",
) -> Samples:
    """Heun's method: a step (1), corrected by the mean of both ends. Order 2.

    By (1) and its derivative the probability-flow ODE is dx = x_0 dsignal + eps dnoise, and

        x_s = x_t + (signal_s - signal_t) mean x_0 + (noise_s - noise_t) mean eps,

    where the means are over the estimates at x_t and at the first guess of x_s. With signal = 1 it
    is algorithm 1 of Karras et al. 2022; for a rectified flow, Heun's method on the velocity.
    Unlike Heun's method on x / signal it is as good where the signal vanishes. The step to clean
    data stays a plain one.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.
      last: of the step to clean data: "plain", or "full", which corrects it, too. That asks the
        denoiser at t = 0 for eps, which the parametrisations eps, v and velocity give there; of x0,
        score, edm and thresholding, where it is 0 / 0, the result is NaN, unless the schedule has
        noise left at t = 0.

    Raises:
      ValueError: another `last`.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> x_0 = dj.samplers.heun(denoise, noise, grid=dj.grids.trailing(flow, 50)).x_0
    >>> print(x_0.round(2))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
    """
    del key
    if last not in ("plain", "full"):
        raise ValueError(f"last must be 'plain' or 'full', not {last!r}")
    columns = heun_columns(*step_scales(grid))
    if last == "full":
        columns["correct"] = np.ones(grid.steps)

    def step(carry: None, x_t: Data, c: dict[str, Array], draw_noise: NoiseFn) -> tuple[None, Data]:
        return carry, heun_step(denoise, x_t, c["t"], c["t_next"], cond, c)

    return run(
        step, x_T, grid=grid, coefficients=columns, key=None, keep_trajectory=keep_trajectory
    )


def heun_columns(now: Scales, after: Scales) -> dict[str, np.ndarray]:
    """What `heun_step` reads of a step from the scales `now` to those `after`."""
    return {
        "of_x_0": after.signal_scale, "of_eps": after.noise_scale,
        "half_dsignal": (after.signal_scale - now.signal_scale) / 2,
        "half_dnoise": (after.noise_scale - now.noise_scale) / 2,
        "correct": after.noise_scale > 0,
    }  # fmt: skip


def heun_step(
    denoise: Denoiser, x_t: Data, t: Times, t_next: Times, cond: Any, c: dict[str, Array]
) -> Data:
    """One step of `heun`."""
    x_0, eps, _ = denoise(x_t, t, cond)
    x_s = c["of_x_0"] * x_0 + c["of_eps"] * eps

    def corrected(x_s: Data) -> Data:
        x_0_s, eps_s, _ = denoise(x_s, t_next, cond)
        # The first guess holds x_0 and eps in full: half of the change is still to be added.
        return x_s + c["half_dsignal"] * (x_0_s - x_0) + c["half_dnoise"] * (eps_s - eps)

    return jax.lax.cond(c["correct"] > 0, corrected, lambda x_s: x_s, x_s)
