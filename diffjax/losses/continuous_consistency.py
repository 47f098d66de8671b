r"""Continuous-time consistency models: sCT and sCD (Lu & Song 2024).

All is said in the angle between data and noise ("TrigFlow"): with d the data's standard deviation,

    x_a = cos(a) x_0 + sin(a) d eps,         a = arctan(sigma / d) in [0, pi / 2]         (1)
    f   = cos(a) x_a - sin(a) d F(x_a / d, a)                                             (2)

A denoiser's x_0 and eps give F = cos(a) eps - sin(a) x_0 / d, whatever its schedule is, so any
continuous diffusion model can be tuned. Of the consistency loss in the limit s -> t (`consistency`)
only the change of f along the path is left:

    df/da = cos(a) [dx/da - d F] - sin(a) [x_a + d dF/da]                                 (3)
    dx/da = cos(a) d eps - sin(a) x_0   (sCT),     d F_teacher   (sCD)
    loss  = w(a) / D || F - sg(F) - g ||^2,   g = cos(a) df/da, normalised                (4)

(equations 6, 7 and 8 there). g is computed with cos(a) sin(a) within the Jacobian-vector product of
F, so that nothing grows towards pure noise; its second bracket, the unstable one, is multiplied by
a factor that rises from 0 to 1 in a warm-up; and g / (|g| + 0.1), |g| the root mean square of an
example's, keeps outliers small. The prior weight is w = 1 / (d tan(a)); `learned_weighting` does
the rest.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.checks import checked
from diffjax.denoisers import Denoiser
from diffjax.process import broadcast
from diffjax.schedules import Schedule
from diffjax.types import Array, Data, PerExample, TimePerExample

# (x_a, a (B,), cond) -> F of equation (2).
TrigNetwork = Callable[[Data, PerExample, Any], Array]
NORM_OFFSET = 0.1


@checked
def trig_network(denoise: Denoiser, schedule: Schedule, *, sigma_data: float) -> TrigNetwork:
    """A denoiser as F(x_a, a, cond), equation (2).

    Args:
      denoise: of any parametrisation, differentiable in x_t and t.
      schedule: its schedule; continuous.
      sigma_data: d.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> edm = dj.schedules.karras()
    >>> denoise = dj.denoisers.gaussian_denoiser(edm, std=0.5)  # data N(0, d^2), as at all angles
    >>> F = dj.continuous_consistency.trig_network(denoise, edm, sigma_data=0.5)
    >>> print(jnp.abs(F(jnp.array([[0.5, -2.0]]), jnp.array([0.7]), None)).max() < 1e-4)  # stays
    True
    """

    def network(x_a: Data, a: PerExample, cond: Any = None) -> Array:
        t = schedule.time(-2 * jnp.log(sigma_data * jnp.tan(a)))
        signal, noise = schedule(t)
        pair = denoise(broadcast(jnp.hypot(signal, noise / sigma_data), x_a) * x_a, t, cond)
        return broadcast(jnp.cos(a), x_a) * pair.eps - broadcast(jnp.sin(a), x_a) * (
            pair.x_0 / sigma_data
        )

    return network


@checked
def angle(schedule: Schedule, t: TimePerExample, *, sigma_data: float) -> PerExample:
    """a of equation (1) at time t, (B,).

    Args:
      schedule: the noise schedule.
      t: (B,) times.
      sigma_data: d.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> a = dj.continuous_consistency.angle
    >>> flow, t = dj.schedules.rectified_flow(), jnp.array([0.0, 0.5, 1.0])
    >>> print((a(flow, t, sigma_data=1.0) / (jnp.pi / 2)).round(2))
    [0.  0.5 1. ]
    """
    signal, noise = schedule(t)
    return jnp.arctan2(noise, sigma_data * signal)


@checked
def continuous_consistency_loss(
    student: TrigNetwork,
    x_0: Data,
    *,
    a: PerExample,
    eps: Data,
    sigma_data: float,
    target: TrigNetwork,
    warm_up: Array | float = 1.0,
    cond: Any = None,
    teacher: TrigNetwork | None = None,
    normalise: bool = True,
) -> PerExample:
    """(4) for each example, without a learned weight.

    Args:
      student: F.
      x_0: (B, ...) data.
      a: (B,) angles in (0, pi / 2).
      eps: (B, ...) standard normal noise.
      sigma_data: d.
      target: F without a gradient, differentiable by `jax.jvp`; with the student's dropout mask.
      warm_up: in [0, 1]: the factor on the second bracket of (3).
      cond: passed to the networks.
      teacher: whose ODE the path is of (sCD); None for the data's own (sCT).
      normalise: whether g is normalised.

    Returns:
      (B,), averaged over an example's dimensions.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> teacher = lambda x, a, cond: 0 * x  # data N(0, 0.5^2): x does not move along its path
    >>> f_is_x = lambda x, a, cond: -jnp.tan(a / 2)[:, None] * x / 0.5  # so (2) must be x
    >>> options = dict(a=jnp.array([0.7]), eps=jnp.array([[1.0, -2.0]]), sigma_data=0.5)
    >>> options |= dict(target=f_is_x, teacher=teacher)
    >>> loss = dj.continuous_consistency.continuous_consistency_loss
    >>> of_batch = jax.jit(lambda x_0: loss(f_is_x, x_0, **options))
    >>> print(f"{of_batch(jnp.array([[0.3, 0.1]])).item():.4f}")
    0.0000
    """
    cos, sin = (broadcast(f(a), x_0) for f in (jnp.cos, jnp.sin))
    x_a = cos * x_0 + sin * sigma_data * eps
    if teacher is None:
        slope = cos * sigma_data * eps - sin * x_0
    else:
        slope = sigma_data * teacher(x_a, a, cond)
    held, turned = jax.jvp(
        lambda x, a: target(x, a, cond),
        (x_a, a),
        (cos * sin * slope, jnp.cos(a) * jnp.sin(a)),
    )
    g = cos**2 * (slope - sigma_data * held)
    g = g - warm_up * (cos * sin * x_a + sigma_data * turned)
    axes = tuple(range(1, x_0.ndim))
    if normalise:
        size = jnp.sqrt(jnp.mean(jnp.square(g), axis=axes))
        g = g / broadcast(size + NORM_OFFSET, x_0)
    goal = jax.lax.stop_gradient(held + g)
    error = jnp.mean(jnp.square(student(x_a, a, cond) - goal), axis=axes)
    return error / (sigma_data * jnp.tan(a))
