r"""Progressive distillation: one step of the student for two of the teacher (Salimans & Ho 2022).

From x_t the teacher takes two DDIM steps, t -> m -> s, to x_s. The student's x_0 is to be the one
that takes DDIM from t to s at once (appendix G of the paper):

    x_0* = (x_s - r x_t) / (signal_s - r signal_t),      r = noise_s / noise_t            (1)

Unlike the posterior mean, (1) is a function of x_t: a student can learn it without error, and
again be a teacher to a student of half its steps.
"""

from typing import Any

import jax

from diffjax.checks import checked
from diffjax.denoisers import Denoiser
from diffjax.flow_maps import ddim_map
from diffjax.parametrisations import Estimates, eps_from_x0
from diffjax.process import scales_like
from diffjax.schedules import Schedule
from diffjax.types import Data, TimePerExample


@checked
def two_steps_in_one(
    teacher: Denoiser,
    x_t: Data,
    *,
    schedule: Schedule,
    t: TimePerExample,
    middle: TimePerExample,
    s: TimePerExample,
    cond: Any = None,
) -> Estimates:
    """x_0* of (1) and its eps, without a gradient: what the student should estimate at (x_t, t).

    Args:
      teacher: whose steps are taken.
      x_t: (B, ...) noisy data.
      schedule: of both.
      t, middle, s: (B,) times, s < middle < t; s = 0 is clean data.
      cond: passed to the teacher.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x_t = dj.schedules.rectified_flow(), jnp.array([[-1.0, 2.0]])
    >>> teacher = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> t, middle, s = jnp.array([[0.8], [0.6], [0.4]])
    >>> jump, options = dj.flow_maps.ddim_map(teacher, flow), dict(t=t, middle=middle, s=s)
    >>> find = dj.progressive_distillation.two_steps_in_one
    >>> goal = find(teacher, x_t, schedule=flow, **options)
    >>> in_one, in_two = 0.6 * goal.x_0 + 0.4 * goal.eps, jump(jump(x_t, t, middle), middle, s)
    >>> print(jnp.allclose(in_one, in_two, atol=1e-5))  # DDIM to s = 0.4 by the student's x_0
    True
    """
    step = ddim_map(teacher, schedule)
    x_s = step(step(x_t, t, middle, cond), middle, s, cond)
    now, after = scales_like(schedule, t, x_t), scales_like(schedule, s, x_t)
    ratio = after.noise_scale / now.noise_scale
    x_0 = (x_s - ratio * x_t) / (after.signal_scale - ratio * now.signal_scale)
    return jax.lax.stop_gradient(Estimates(x_0, eps_from_x0(x_t, x_0, now)))
