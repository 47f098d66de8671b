r"""Samplers: from x_T to x_0 by asking a denoiser on a grid of times.

All have one signature,

    sampler(denoise, x_T, *, grid, key=None, cond=None, keep_trajectory=False, ...) -> Samples

and one loop. A sampler computes its coefficients for every step from the grid, on the host in
float64, and states one step; `_scan` runs it under `lax.scan`, so neither memory nor compile time
grows with the number of steps. With signal, noise at the present time t and at the next time s, all
deterministic ones solve the probability-flow ODE, which has the exact solution

    x_s = signal_s x_0 + noise_s eps                                                      (1)

where x_0 and eps, the denoiser's estimates, do not change along the step (DDIM). They differ in how
they correct for the change.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.process import posterior_coefficients, transition
from diffjax.schedules import Array, Scales


class Samples(NamedTuple):
    """What a sampler returns.

    Attributes:
      x_0: (B, ...) the result.
      trajectory: (N+1, B, ...) x_t at every time of the grid, first x_T and last x_0; None unless
        it was asked for.
    """

    x_0: Array
    trajectory: Array | None


# (carry, x_t, coefficients of this step, noise or None) -> (carry, x_s)
Step = Callable[[Any, Array, dict[str, Array], Array], tuple[Any, Array]]


def _scan(
    step: Step,
    x_T: Array,
    *,
    grid: Grid,
    coefficients: dict[str, np.ndarray],
    carry: Any = None,
    key: Array | None,
    keep_trajectory: bool,
) -> Samples:
    steps = grid.steps
    table = {name: jnp.asarray(value[:steps], x_T.dtype) for name, value in coefficients.items()}
    table["t"] = jnp.asarray(grid.t[:-1], None if grid.t.dtype.kind == "i" else x_T.dtype)
    table["t_next"] = jnp.asarray(grid.t[1:], table["t"].dtype)
    keys = None if key is None else _per_example_keys(key, len(x_T))

    def body(state: tuple[Any, Array], inputs: tuple[Array, dict[str, Array]]) -> tuple[Any, Any]:
        carry, x_t = state
        i, row = inputs
        noise = jnp.zeros_like(x_t) if keys is None else _noise(keys, i, x_t)
        carry, x_s = step(carry, x_t, row, noise)
        return (carry, x_s), (x_s if keep_trajectory else None)

    (_, x_0), visited = jax.lax.scan(body, (carry, x_T), (jnp.arange(steps), table))
    if not keep_trajectory:
        return Samples(x_0, None)
    return Samples(x_0, jnp.concatenate([x_T[None], visited]))


def _per_example_keys(key: Array, batch: int) -> Array:
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape not in ((), (batch,)):
        raise ValueError(
            f"key must be jax.random.key(seed) or one such key an example, ({batch},), not an "
            f"array of {key.dtype} and shape {key.shape}"
        )
    if key.ndim:
        return key
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch))


def _noise(keys: Array, i: Array, x: Array) -> Array:
    def draw(key: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(key, i), x.shape[1:], x.dtype)

    return jax.vmap(draw)(keys)


def _ends(grid: Grid) -> tuple[Scales, Scales]:
    """The pairs at the present times and at the next times: (N,) each."""
    signal, noise = grid.scales
    return Scales(signal[:-1], noise[:-1]), Scales(signal[1:], noise[1:])


def _require_key(key: Array | None, name: str) -> None:
    if key is None:
        raise ValueError(f"{name} draws noise: pass key=jax.random.key(seed)")


def ancestral(
    denoise: Denoiser,
    x_T: Array,
    *,
    grid: Grid,
    key: Array | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    variance: str = "beta_tilde",
) -> Samples:
    """DDPM's sampler: x_s ~ N(posterior mean at the estimate of x_0, variance).

    Ho et al. 2020, algorithm 2 and section 3.2, for any grid: "beta_tilde" is the variance of
    q(x_s | x_t, x_0) (fixed small), "beta" that of q(x_t | x_s) (fixed large). The last step adds
    no noise.

    Args:
      denoise: x_t, t, cond -> Estimates.
      x_T: (B, ...) noise to start from.
      grid: the times.
      key: needed: a PRNG key, or (B,) keys, one an example, so that an example's noise does not
        depend on the batch it is drawn in.
      cond: passed to the denoiser.
      keep_trajectory: whether to return every x_t.
      variance: "beta_tilde" or "beta".

    Raises:
      ValueError: no key, a key of another shape, or an unknown variance.
    """
    _require_key(key, "ancestral")
    if variance not in ("beta_tilde", "beta"):
        raise ValueError(f"variance must be 'beta_tilde' or 'beta', not {variance!r}")
    now, after = _ends(grid)
    of_x_t, of_x_0, small = posterior_coefficients(after, now)
    large = transition(after, now)[1]
    std = np.sqrt(small if variance == "beta_tilde" else large)
    std[-1] = 0.0

    def step(carry: None, x_t: Array, c: dict[str, Array], noise: Array) -> tuple[None, Array]:
        x_0 = denoise(x_t, c["t"], cond).x_0
        return carry, c["of_x_t"] * x_t + c["of_x_0"] * x_0 + c["std"] * noise

    coefficients = {"of_x_t": of_x_t, "of_x_0": of_x_0, "std": std}
    return _scan(
        step, x_T, grid=grid, coefficients=coefficients, key=key, keep_trajectory=keep_trajectory
    )


def ddim(
    denoise: Denoiser,
    x_T: Array,
    *,
    grid: Grid,
    key: Array | None = None,
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
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], not {eta}")
    if eta > 0:
        _require_key(key, "ddim with eta > 0")
    now, after = _ends(grid)
    std = eta * np.sqrt(posterior_coefficients(after, now)[2])
    coefficients = {
        "of_x_0": after.signal_scale,
        "of_eps": np.sqrt(np.maximum(after.noise_scale**2 - std**2, 0)),
        "std": std,
    }

    def step(carry: None, x_t: Array, c: dict[str, Array], noise: Array) -> tuple[None, Array]:
        x_0, eps = denoise(x_t, c["t"], cond)
        return carry, c["of_x_0"] * x_0 + c["of_eps"] * eps + c["std"] * noise

    return _scan(
        step, x_T, grid=grid, coefficients=coefficients,
        key=key if eta > 0 else None, keep_trajectory=keep_trajectory,
    )  # fmt: skip


def euler(
    denoise: Denoiser,
    x_T: Array,
    *,
    grid: Grid,
    key: Array | None = None,
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
    """
    del key
    total = grid.signal_scale + grid.noise_scale
    u = grid.noise_scale / total
    coefficients = {"into": 1 / total[:-1], "out": total[1:], "du": np.diff(u)}

    def step(carry: None, x_t: Array, c: dict[str, Array], noise: Array) -> tuple[None, Array]:
        x_0, eps = denoise(x_t, c["t"], cond)
        return carry, c["out"] * (c["into"] * x_t + c["du"] * (eps - x_0))

    return _scan(
        step, x_T, grid=grid, coefficients=coefficients, key=None, keep_trajectory=keep_trajectory
    )


def heun(
    denoise: Denoiser,
    x_T: Array,
    *,
    grid: Grid,
    key: Array | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
) -> Samples:
    """Heun's method: a step (1), corrected by the mean of both ends. Order 2; 2N - 1 evaluations.

    By (1) and its derivative the probability-flow ODE is dx = x_0 dsignal + eps dnoise, and

        x_s = x_t + (signal_s - signal_t) mean x_0 + (noise_s - noise_t) mean eps,

    where the means are over the estimates at x_t and at the first guess of x_s. With signal = 1 it
    is algorithm 1 of Karras et al. 2022; for a rectified flow, Heun's method on the velocity.
    Unlike Heun's method on x / signal it is as good where the signal vanishes. The step to clean
    data stays a plain one.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.
    """
    del key
    now, after = _ends(grid)
    coefficients = {
        "of_x_0": after.signal_scale,
        "of_eps": after.noise_scale,
        "half_dsignal": (after.signal_scale - now.signal_scale) / 2,
        "half_dnoise": (after.noise_scale - now.noise_scale) / 2,
        "correct": after.noise_scale > 0,
    }

    def step(carry: None, x_t: Array, c: dict[str, Array], noise: Array) -> tuple[None, Array]:
        x_0, eps = denoise(x_t, c["t"], cond)
        x_s = c["of_x_0"] * x_0 + c["of_eps"] * eps

        def corrected(x_s: Array) -> Array:
            x_0_s, eps_s = denoise(x_s, c["t_next"], cond)
            # The first guess holds x_0 and eps in full: half of the change is still to be added.
            return x_s + c["half_dsignal"] * (x_0_s - x_0) + c["half_dnoise"] * (eps_s - eps)

        return carry, jax.lax.cond(c["correct"] > 0, corrected, lambda x_s: x_s, x_s)

    return _scan(
        step, x_T, grid=grid, coefficients=coefficients, key=None, keep_trajectory=keep_trajectory
    )


def dpm_solver_pp_2m(
    denoise: Denoiser,
    x_T: Array,
    *,
    grid: Grid,
    key: Array | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
) -> Samples:
    """DPM-Solver++(2M): multistep, order 2, one evaluation a step.

    Lu et al. 2022, "DPM-Solver++", algorithm 2. With h the step in log(signal / noise) and h' the
    one before, x_0 is extrapolated to D = x_0 + h / (2 h') (x_0 - previous x_0), and

        x_s = noise_s / noise_t x_t - signal_s (exp(-h) - 1) D.

    The first step and the one to clean data (h infinite) are of order 1: D = x_0.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.
    """
    del key
    now, after = _ends(grid)
    with np.errstate(divide="ignore", invalid="ignore"):
        half_log_snr = np.log(grid.signal_scale) - np.log(grid.noise_scale)
        h = np.diff(half_log_snr)
        previous_h = np.concatenate([[np.inf], h[:-1]])
        weight = np.where(np.isfinite(h), h / (2 * previous_h), 0.0)
    coefficients = {
        "of_x_t": after.noise_scale / now.noise_scale,
        "of_D": -after.signal_scale * np.expm1(-h),
        "weight": weight,
    }

    def step(previous: Array, x_t: Array, c: dict[str, Array], noise: Array) -> tuple[Array, Array]:
        x_0 = denoise(x_t, c["t"], cond).x_0
        D = x_0 + c["weight"] * (x_0 - previous)
        return x_0, c["of_x_t"] * x_t + c["of_D"] * D

    return _scan(
        step, x_T, grid=grid, coefficients=coefficients, carry=jnp.zeros_like(x_T),
        key=None, keep_trajectory=keep_trajectory,
    )  # fmt: skip
