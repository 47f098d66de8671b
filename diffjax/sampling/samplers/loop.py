"""The one loop of all samplers, and what they share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer, Key

from diffjax.grids import Grid
from diffjax.parametrisations import Estimates
from diffjax.sampling import memory
from diffjax.schedules import Scales
from diffjax.types import Array, Data, PRNGKey, PRNGKeys


class Samples(NamedTuple):
    """What a sampler returns.

    Attributes:
      x_0: (B, ...) the result.
      trajectory: (N+1, B, ...) x_t at every time of the grid, first x_T and last x_0; None unless
        it was asked for.
    """

    x_0: Data
    trajectory: Float[Array, "N+1 batch *shape"] | None


# draw_noise(k) -> standard normal noise of x_t's shape; another for every k, step and example.
NoiseFn = Callable[[int], Data]
# (carry, x_t, coefficients of this step, draw_noise) -> (carry, x_s)
Step = Callable[[Any, Data, dict[str, Array], NoiseFn], tuple[Any, Data]]


def run(
    step: Step,
    x_T: Data,
    *,
    grid: Grid,
    coefficients: dict[str, np.ndarray],
    carry: Any = None,
    key: PRNGKeys | None,
    keep_trajectory: bool,
) -> Samples:
    """Scans `step` over the grid.

    Args:
      step: one step of the sampler.
      x_T: (B, ...) where to start.
      grid: N steps.
      coefficients: (N, ...) float64 columns; a step gets its row, in x_T's type, and the times t
        and t_next.
      carry: what steps hand on besides x_t.
      key: as in `ancestral`; None for samplers that draw nothing.
      keep_trajectory: whether to return every x_t.

    Raises:
      ValueError: a key of another shape.
    """
    steps = grid.steps
    table = {name: jnp.asarray(value[:steps], x_T.dtype) for name, value in coefficients.items()}
    table["t"] = jnp.asarray(grid.t[:-1], None if grid.t.dtype.kind == "i" else x_T.dtype)
    table["t_next"] = jnp.asarray(grid.t[1:], table["t"].dtype)
    keys = None if key is None else per_example_keys(key, len(x_T))
    step, carry = memory.through(step, carry)

    def body(state: tuple[Any, Data], inputs: tuple[Array, dict[str, Array]]) -> tuple[Any, Any]:
        carry, x_t = state
        i, row = inputs

        def draw_noise(k: int) -> Data:
            assert keys is not None
            return step_noise(keys, i, k, x_t)

        carry, x_s = step(carry, x_t, row, draw_noise)
        return (carry, x_s), (x_s if keep_trajectory else None)

    (_, x_0), visited = jax.lax.scan(body, (carry, x_T), (jnp.arange(steps), table))
    if not keep_trajectory:
        return Samples(x_0, None)
    return Samples(x_0, jnp.concatenate([x_T[None], visited]))


def per_example_keys(key: PRNGKeys, batch: int) -> Key[Array, " batch"]:
    """(B,) keys from one key, or from keys that are one an example already.

    Raises:
      ValueError: anything else.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape not in ((), (batch,)):
        raise ValueError(
            f"key must be jax.random.key(seed) or one such key an example, ({batch},), not an "
            f"array of {key.dtype} and shape {key.shape}"
        )
    if key.ndim:
        return key
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch))


def step_noise(keys: Key[Array, " batch"], i: Integer[Array, ""], k: int, x: Data) -> Data:
    """The k-th standard normal noise of step i, of x's shape; keys (B,)."""

    def draw_noise(key: PRNGKey) -> Array:
        key = jax.random.fold_in(key, i)
        if k:
            key = jax.random.fold_in(key, k)
        return jax.random.normal(key, x.shape[1:], x.dtype)

    return jax.vmap(draw_noise)(keys)


def step_scales(grid: Grid) -> tuple[Scales[np.ndarray], Scales[np.ndarray]]:
    """The pairs at the present times and at the next times: (N,) each."""
    signal, noise = grid.scales
    return Scales(signal[:-1], noise[:-1]), Scales(signal[1:], noise[1:])


def require_key(key: PRNGKeys | None, name: str) -> None:
    """Raises ValueError where a sampler that draws noise has no key."""
    if key is None:
        raise ValueError(f"{name} draws noise: pass key=jax.random.key(seed)")


def check_variance(variance: str) -> None:
    """Raises ValueError where `variance` names no variance of a step back in time."""
    if variance not in ("beta_tilde", "beta", "learned"):
        raise ValueError(f"variance must be 'beta_tilde', 'beta' or 'learned', not {variance!r}")


def learned_mix(pair: Estimates) -> Data:
    """The pair's variance_mix.

    Raises:
      ValueError: it has none.
    """
    if pair.variance_mix is None:
        raise ValueError(
            "variance='learned' needs a denoiser with a variance_mix, such as "
            "learned_variance_denoiser's: take 'beta_tilde' or 'beta'"
        )
    return pair.variance_mix
