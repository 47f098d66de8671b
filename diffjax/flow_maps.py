r"""Flow maps: from x_t to x_s in one evaluation, for any s < t.

A denoiser gives the direction of the probability-flow ODE at (x_t, t), and a sampler follows it in
small steps. A flow map gives where the ODE's path from (x_t, t) is at time s:

    jump(x_t, t, s) = x_t - int_s^t dx_r/dr dr                                           (1)
                    = x_t - (t - s) u(x_t, t, s)                                         (2)

with u the average velocity (Geng et al. 2025, "Mean flows", equation 3). It maps t to t by the
identity, and jumps compose: jump(jump(x_t, t, r), r, s) = jump(x_t, t, s). Its limit s -> t is a
denoiser's ODE, du/ds -> the velocity, so a flow map has a denoiser, too (`parametrisations`,
`average_velocity`). A consistency model knows the map to s = 0 alone (Song et al. 2023): it is a
denoiser whose x_0 is the path's end instead of the posterior's mean, and needs no type of its own;
see `samplers.consistency`.

(2) is for straight paths, `schedules.rectified_flow`, where dx_t/dt is the velocity eps - x_0.
"""

from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp

from diffjax.checks import checked
from diffjax.denoisers import Denoiser, NetworkFn, TimeInput, predict, unit_time
from diffjax.parametrisations import Parametrisation, average_velocity
from diffjax.process import broadcast, scales_like
from diffjax.schedules import Schedule
from diffjax.types import Array, Data, Times


@runtime_checkable
class FlowMap(Protocol):
    """jump(x_t, t, s, cond) -> x_s: x_t (B, ...), t and s scalar or (B,), cond any pytree."""

    def __call__(self, x_t: Data, t: Times, s: Times, cond: Any = None) -> Data: ...


@runtime_checkable
class AverageVelocity(Protocol):
    """u(x_t, t, s, cond) -> (B, ...): the average velocity between s and t; at s = t, the ODE's."""

    def __call__(self, x_t: Data, t: Times, s: Times, cond: Any = None) -> Data: ...


@checked
def average_velocity_of(
    network: NetworkFn,
    schedule: Schedule,
    *,
    parametrisation: Parametrisation = average_velocity,
    time_input: TimeInput = unit_time,
) -> AverageVelocity:
    """A network with the span of a step as a function u of (x_t, t, s, cond).

    It can be differentiated in x_t, t and s (`jax.jvp`) if the network can.

    Args:
      network: (x, times (B, 2), cond) -> output of x's shape; times are the time input and the
        span.
      schedule: `rectified_flow`.
      parametrisation: what the output means: `average_velocity` or `average_x0(...)`.
      time_input: what the network's time embedding is fed for t; the span is fed as it is.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> network = lambda x, times, cond: x * times.sum(-1, keepdims=True)  # of t and the span t - s
    >>> u = dj.flow_maps.average_velocity_of(network, dj.schedules.rectified_flow())
    >>> print(u(jnp.ones((1, 1)), 1.0, 0.75))
    [[1.25]]
    """

    def velocity(x_t: Data, t: Times, s: Times, cond: Any = None) -> Data:
        output, scales = predict(
            network, x_t, t=t, cond=cond, span=jnp.asarray(t) - jnp.asarray(s),
            schedule=schedule, parametrisation=parametrisation, time_input=time_input,
        )  # fmt: skip
        if parametrisation.target is average_velocity.target:
            return output
        pair = parametrisation.estimates(output, x_t, scales)
        return pair.eps - pair.x_0

    return velocity


@checked
def average_velocity_map(
    network: NetworkFn,
    schedule: Schedule,
    *,
    parametrisation: Parametrisation = average_velocity,
    time_input: TimeInput = unit_time,
) -> FlowMap:
    """The flow map of equation (2); arguments as `average_velocity_of`.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> x_t, eps = jnp.array([[0.8]]), jnp.array([[2.0]])  # data are one point, 0.5: at t = 0.2
    >>> network = lambda x, times, cond: jnp.full_like(x, 1.5)  # eps - x_0, all along its path
    >>> jump = dj.flow_maps.average_velocity_map(network, dj.schedules.rectified_flow())
    >>> print(jump(x_t, 0.2, 0.0).round(2), jump(x_t, 0.2, 1.0).round(2))
    [[0.5]] [[2.]]
    """
    velocity = average_velocity_of(
        network, schedule, parametrisation=parametrisation, time_input=time_input
    )

    def jump(x_t: Data, t: Times, s: Times, cond: Any = None) -> Data:
        span: Array = broadcast(jnp.asarray(t, x_t.dtype) - jnp.asarray(s, x_t.dtype), x_t)
        return x_t - span * velocity(x_t, t, s, cond)

    return jump


@checked
def ddim_map(denoise: Denoiser, schedule: Schedule) -> FlowMap:
    """One DDIM step from t to s: the ODE's path if x_0 and eps did not change along it.

    Song et al. 2021a, equation 12 with eta = 0. It makes a flow map of any denoiser, right to first
    order in t - s.

    Args:
      denoise: x_t, t, cond -> Estimates.
      schedule: its schedule.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 2.0]])
    >>> point = dj.denoisers.gaussian_denoiser(flow, mean=0.5, std=0.0)  # data are one point
    >>> jump = dj.flow_maps.ddim_map(point, flow)
    >>> print(jump(noise, 1.0, 0.0), jump(jump(noise, 1.0, 0.4), 0.4, 0.0).round(2))
    [[0.5 0.5]] [[0.5 0.5]]
    """

    def jump(x_t: Data, t: Times, s: Times, cond: Any = None) -> Data:
        pair = denoise(x_t, t, cond)
        signal, noise = scales_like(schedule, s, x_t)
        return signal * pair.x_0 + noise * pair.eps

    return jump
