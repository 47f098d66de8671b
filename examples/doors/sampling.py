"""A custom sampler, grid, guidance and threshold, with the core's signatures."""

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj


def euler(denoise, x_T, *, grid, key=None, cond=None, keep_trajectory=False):
    """Euler's method along straight lines from x_t through the estimate of x_0: DDIM."""
    signal, noise = (
        jnp.asarray(column, jnp.float32) for column in (grid.signal_scale, grid.noise_scale)
    )

    def step(x_t, i):
        pair = denoise(x_t, jnp.asarray(grid.t)[i], cond)
        x_s = signal[i + 1] * pair.x_0 + noise[i + 1] * pair.eps
        return x_s, x_s if keep_trajectory else None

    x_0, path = jax.lax.scan(step, x_T, jnp.arange(len(grid.t) - 1))
    return dj.Samples(x_0, None if path is None else jnp.concatenate([x_T[None], path]))


def even(schedule, steps, *, power=1.0):
    """Times u^power T from noise on, denser near clean data for power > 1; clean data is added."""
    u = np.linspace(1, 0, steps, endpoint=False) ** power
    t = u * schedule.T if not schedule.discrete else np.rint(u * schedule.T).astype(np.int32)
    return dj.grids.from_times(schedule, t)


def classifier_free(denoise, schedule, *, null, scale=1.5):
    """Classifier-free guidance in x_0; `null` maps a condition to the null condition."""

    def guided(x_t, t, cond=None):
        with_cond, without = denoise(x_t, t, cond), denoise(x_t, t, null(cond))
        x_0 = without.x_0 + scale * (with_cond.x_0 - without.x_0)
        eps = without.eps + scale * (with_cond.eps - without.eps)
        return with_cond._replace(x_0=x_0, eps=eps)

    return guided


def soft(denoise, schedule, *, width=1.0):
    """Estimates of x_0 squashed to (-width, width)."""
    return dj.thresholding.map_x0(denoise, schedule, lambda x_0: width * jnp.tanh(x_0 / width))
