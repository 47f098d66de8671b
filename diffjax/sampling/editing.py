"""Editing: sampling from images that are there already, in part or as a start.

What can be said of the estimate of x_0 alone is a denoiser -> denoiser and works with every
sampler: `known_region`. What needs its own way through the grid is a sampler: `repaint`,
`image_to_image`. From an image to its noise and back go `samplers.ddim_inversion` and `slerp`.

A mask is 1 where an image is known and to be kept, 0 where it is to be drawn, and broadcasts
against the images: (B, H, W, 1), (1, H, W, 1) or (H, W, 1).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Real

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.process import posterior_coefficients, transition
from diffjax.sampling.samplers.loop import NoiseFn, Samples, require_key, run, step_scales
from diffjax.sampling.thresholding import map_x0
from diffjax.schedules import Scales, Schedule
from diffjax.types import Array, ArrayLike, Data, PRNGKeys


def _checked_mask(mask: ArrayLike, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    mask = jnp.asarray(mask)
    try:
        fits = np.broadcast_shapes(mask.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"the mask's shape {mask.shape} does not broadcast against images of {shape}: give it "
            "(B, H, W, 1), (1, H, W, 1) or (H, W, 1), 1 where the image is kept"
        )
    return mask > 0.5


def known_region(
    denoise: Denoiser, schedule: Schedule, *, known: Data, mask: ArrayLike
) -> Denoiser:
    """Inpainting by replacement: where the mask is 1, x_0 is `known`.

    Song et al. 2021b, appendix I.2, on the estimate of x_0: a sampler that lands on it returns the
    known region to the bit (`midpoint`, `rk4`, `lms`, `ipndm`, `plms`, `pndm`, and `deis` in t and
    rho up to rounding), and on the way x_t there is `known` with noise. What is drawn around it may
    fit it badly, since x_t's unknown part never learns of its future; see `repaint`.

    Args:
      denoise: x_t, t, cond -> Estimates.
      schedule: its schedule.
      known: (B, ...) images, of any value where they are not known.
      mask: 1 where `known` is known.

    Raises:
      ValueError: a mask that does not fit.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> known, mask = jnp.array([[0.25, 0.0]]), jnp.array([[1.0, 0.0]])  # the first pixel
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> denoise = dj.editing.known_region(denoise, flow, known=known, mask=mask)
    >>> print(dj.samplers.heun(denoise, noise, grid=dj.grids.trailing(flow, 50)).x_0.round(2))
    [[0.25 1.5 ]]
    """
    keep = _checked_mask(mask, known.shape)
    return map_x0(denoise, schedule, lambda x_0: jnp.where(keep, known, x_0))


def repaint_path(steps: int, *, jump: int, resamples: int) -> list[int]:
    """The grid's points in the order in which RePaint visits them.

    Lugmayr et al. 2022, appendix B. Jumps are counted from the end of the grid: from the points 1,
    1 + jump, 1 + 2 jump, ... steps before the last one, as far as there are `jump` steps back from
    there, x goes back `jump` steps, `resamples` - 1 times, each time when it comes by. The last
    step is taken once.

    Args:
      steps: N; the points are 0 (noise) to N.
      jump: steps in a jump.
      resamples: 1 is the straight path.

    Raises:
      ValueError: a jump or number of resamples below 1, or a grid too short for a jump.

    >>> repaint_path(5, jump=2, resamples=2)
    [0, 1, 2, 0, 1, 2, 3, 4, 2, 3, 4, 5]
    """
    if jump < 1 or resamples < 1:
        raise ValueError(f"jump and resamples must be at least 1, not {jump} and {resamples}")
    if resamples > 1 and steps <= jump:
        raise ValueError(
            f"a grid of {steps} steps has no jump of {jump}: take more steps, a shorter jump or "
            "resamples=1"
        )
    left = dict.fromkeys(range(steps - 1, jump - 1, -jump), resamples - 1)
    path = [0]
    while path[-1] < steps:
        point = path[-1]
        if left.get(point, 0):
            left[point] -= 1
            point -= jump
        else:
            point += 1
        path.append(point)
    return path


def repaint(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    known: Data,
    mask: ArrayLike,
    jump: int = 10,
    resamples: int = 10,
) -> Samples:
    """RePaint: ancestral steps around a known region, with jumps back that join both regions.

    Lugmayr et al. 2022, algorithm 1, on the path of appendix B: `repaint_path`. A jump is one draw
    from q(x_t | x_s), which has the law of the paper's `jump` single steps. The known region has
    fresh noise in every step and is returned to the bit where the grid ends at clean data.

    diffusers' RePaintScheduler has the same path, but draws the steps back with the betas of T / N
    training steps too late (from t + T / N, where x is at t), and so adds more noise than q says.

    Args:
      denoise, x_T, grid, cond: as in `samplers.ancestral`.
      key: as in `samplers.ancestral`; needed.
      keep_trajectory: whether to return every x_t along the path.
      known: (B, ...) images.
      mask: 1 where `known` is known.
      jump: the paper's jump length j, 10 there, of 250 steps.
      resamples: the paper's r, 10 there: how often each stretch of `jump` steps is taken; 1 is
        replacement along ancestral sampling.

    Raises:
      ValueError: no key, a mask that does not fit, or as `repaint_path`.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> known, mask = jnp.array([[0.25, 0.0]]), jnp.array([[1.0, 0.0]])  # the first pixel
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.0)  # the data are one point
    >>> options = dict(known=known, mask=mask, jump=2, resamples=2, key=jax.random.key(0))
    >>> print(dj.editing.repaint(denoise, noise, grid=dj.grids.trailing(flow, 8), **options).x_0)
    [[0.25 1.  ]]
    """
    require_key(key, "repaint")
    keep = _checked_mask(mask, x_T.shape)
    path = repaint_path(grid.steps, jump=jump, resamples=resamples)
    walk = Grid(*(column[path] for column in grid))
    now, after = step_scales(walk)
    up = np.diff(path) < 0

    def where_up(a: np.ndarray) -> np.ndarray:
        return np.where(up, a, 1.0)

    def where_down(a: np.ndarray, otherwise: float) -> np.ndarray:
        return np.where(up, otherwise, a)

    back, back_variance = transition(Scales(*map(where_up, now)), Scales(*map(where_up, after)))
    of_x_t, of_x_0, variance = posterior_coefficients(
        Scales(where_down(after.signal_scale, 1.0), where_down(after.noise_scale, 0.5)),
        Scales(where_down(now.signal_scale, 0.5), where_down(now.noise_scale, 1.0)),
    )
    columns = {
        "up": up, "back": back, "back_std": np.sqrt(back_variance), "of_x_t": of_x_t,
        "of_x_0": of_x_0, "std": np.sqrt(variance), "signal": after.signal_scale,
        "noise": after.noise_scale,
    }  # fmt: skip

    def step(carry: None, x_t: Data, c: dict[str, Array], draw_noise: NoiseFn) -> tuple[None, Data]:
        fresh, of_known = draw_noise(0), draw_noise(1)

        def down(x_t: Data) -> Data:
            x_0 = denoise(x_t, c["t"], cond).x_0
            unknown = c["of_x_t"] * x_t + c["of_x_0"] * x_0 + c["std"] * fresh
            return jnp.where(keep, c["signal"] * known + c["noise"] * of_known, unknown)

        return carry, jax.lax.cond(
            c["up"] > 0, lambda x: c["back"] * x + c["back_std"] * fresh, down, x_t
        )

    return run(step, x_T, grid=walk, coefficients=columns, key=key, keep_trajectory=keep_trajectory)


def image_to_image(
    sampler: Callable[..., Samples],
    denoise: Denoiser,
    x_0: Data,
    *,
    grid: Grid,
    strength: float,
    eps: Data,
    **options: Any,
) -> Samples:
    """SDEdit: noise is put on images up to a share of the grid, and sampled away again.

    Meng et al. 2022, algorithm 1.

    Args:
      sampler: any of `samplers`.
      denoise: x_t, t, cond -> Estimates.
      x_0: (B, ...) images to vary.
      grid: of the full way; its last round(strength N) steps are taken, at least 1.
      strength: in (0, 1]; 1 leaves next to nothing of the images.
      eps: standard normal noise of x_0's shape.
      **options: passed to the sampler (key, cond, ...).

    Raises:
      ValueError: a strength out of range.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, images = dj.schedules.rectified_flow(), jnp.array([[-1.0], [3.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> options = dict(grid=dj.grids.trailing(flow, 50), eps=jnp.ones((2, 1)))
    >>> vary = dj.editing.image_to_image
    >>> x_0 = vary(dj.samplers.heun, denoise, images, strength=1.0, **options).x_0
    >>> print(x_0.ravel().round(2))  # nothing is left of them: mean + std eps
    [1.5 1.5]
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be in (0, 1], not {strength}")
    first = grid.steps - max(1, round(strength * grid.steps))
    rest = Grid(*(column[first:] for column in grid))
    x_t = float(rest.signal_scale[0]) * x_0 + float(rest.noise_scale[0]) * eps
    return sampler(denoise, x_t, grid=rest, **options)


def slerp(
    a: Float[Array, "#batch *shape"],
    b: Float[Array, "#batch *shape"],
    weight: Real[ArrayLike, ""] | Real[ArrayLike, " #batch"],
) -> Data:
    """From a to b along a great circle: sin((1 - w) angle) a + sin(w angle) b, over sin(angle).

    Shoemake 1985. Between two draws of normal noise, whose lengths are nearly the same, it keeps
    the length, which a straight line does not; so does DDIM's latent interpolation (Song et al.
    2021a, section 5.3).

    Args:
      a, b: (B, ...) noise; the angle is each example's own.
      weight: scalar or (B,), 0 for a and 1 for b.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> a, b = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 2.0]])
    >>> middle = jax.jit(dj.editing.slerp)(a, b, 0.5)
    >>> print((middle**2).round(2))  # on the circle: on the chord it would be 1
    [[2. 2.]]
    """
    axes = tuple(range(1, a.ndim))
    w = jnp.asarray(weight)
    w = w.reshape(w.shape + (1,) * (a.ndim - w.ndim)) if w.ndim else w

    def length(x: Data) -> Array:
        return jnp.sqrt(jnp.square(x).sum(axes, keepdims=True))

    cosine = (a * b).sum(axes, keepdims=True) / (length(a) * length(b))
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    sine = jnp.sin(angle)
    near = sine < 1e-4  # parallel: the line is the circle
    safe = jnp.where(near, 1.0, sine)
    of_a = jnp.where(near, 1 - w, jnp.sin((1 - w) * angle) / safe)
    of_b = jnp.where(near, w, jnp.sin(w * angle) / safe)
    return of_a * a + of_b * b
