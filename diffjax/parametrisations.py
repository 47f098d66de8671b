r"""What a network's output means: x_0, eps, v, score or velocity, and EDM's preconditioned output.

With x_t = signal x_0 + noise eps every one of them is linear in (x_0, eps):

    x0        x_0                                                                        (1)
    eps       eps                                          Ho et al. 2020                (2)
    v         signal eps - noise x_0                       Salimans & Ho 2022            (3)
    score     grad log q(x_t | x_0) = -eps / noise         Song et al. 2021b             (4)
    velocity  eps - x_0                                    Liu et al. 2023               (5)
    edm       (noise x_0 / s - signal s eps) / c           Karras et al. 2022            (6)
              where s = sigma_data, c^2 = signal^2 s^2 + noise^2

A network can also be given the length of a step: `average_velocity` is (x_t - x_s) / (t - s) along
the ODE's path from t to s (Geng et al. 2025, equation 3), and `average_x0` is the same as an image.
The limit s -> t is the velocity, (5), and as such it becomes a denoiser; `flow_maps` has the step.

Velocity is that of the straight path from x_0 to eps: dx_t/dt of a rectified flow. (6) is the
target of F in EDM's D = c_skip x + c_out F(c_in x), table 1, written for any (signal, noise); for
sigma_data = 1 on a variance preserving schedule it is -v.

A `Parametrisation` holds the map from (x_0, eps) and its inverse given x_t; `convert` goes between
any two. The scales are arrays that broadcast against the images (`process.scales_like`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Float

from diffjax.checks import checked
from diffjax.schedules import Scales
from diffjax.types import Array, ArrayLike, Data, Floats


class Estimates(NamedTuple):
    """A pair with x_t = signal_scale x_0 + noise_scale eps; both of x_t's shape.

    A network with a learned variance says a third thing of a step back in time: `variance_mix`, of
    x_t's shape and about in [0, 1], is where its log-variance lies between beta-tilde's (0) and
    beta's (1) (`interpolated_log_variance`). None where the variance is fixed.
    """

    x_0: Data
    eps: Data
    variance_mix: Data | None = None


@checked
def interpolated_log_variance(mix: ArrayLike, log_small: Array, log_large: Array) -> Array:
    """log_small + mix (log_large - log_small): a learned variance between beta-tilde and beta.

    Nichol & Dhariwal 2021, equation 15: v log beta_t + (1 - v) log beta-tilde_t.

    Args:
      mix: v; 0 is the small variance, 1 the large one. Values out of [0, 1] extrapolate.
      log_small, log_large: log beta-tilde and log beta; they broadcast against mix.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> between = dj.parametrisations.interpolated_log_variance
    >>> log_variance = between(0.5, jnp.log(jnp.array(0.01)), jnp.log(jnp.array(0.04)))
    >>> print(f"{jnp.exp(log_variance):.3f}")  # half-way is the geometric mean
    0.020
    """
    return log_small + mix * (log_large - log_small)


@checked
def x0_from_eps(x_t: Floats, eps: Floats, scales: Scales[Array]) -> Floats:
    """x_0 = (x_t - noise_scale eps) / signal_scale; infinite where the signal is zero.

    Args:
      x_t, eps: noisy data and noise, of one shape.
      scales: the pair at t, broadcasting against x_t.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> scales = dj.Scales(jnp.array(0.8), jnp.array(0.6))
    >>> x_0, eps = jnp.array([0.5]), jnp.array([1.0])
    >>> x_t = 0.8 * x_0 + 0.6 * eps
    >>> print(dj.parametrisations.x0_from_eps(x_t, eps, scales).round(2))
    [0.5]
    """
    return (x_t - scales.noise_scale * eps) / scales.signal_scale


@checked
def eps_from_x0(x_t: Floats, x_0: Floats, scales: Scales[Array]) -> Floats:
    """eps = (x_t - signal_scale x_0) / noise_scale; infinite where the noise is zero.

    Args:
      x_t, x_0: noisy and clean data, of one shape.
      scales: the pair at t, broadcasting against x_t.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> scales = dj.Scales(jnp.array(0.8), jnp.array(0.6))
    >>> x_0, eps = jnp.array([0.5]), jnp.array([1.0])
    >>> x_t = 0.8 * x_0 + 0.6 * eps
    >>> print(dj.parametrisations.eps_from_x0(x_t, x_0, scales).round(2))
    [1.]
    """
    return (x_t - scales.signal_scale * x_0) / scales.noise_scale


def _one(scales: Scales[Array]) -> Array:
    return jnp.ones_like(scales.signal_scale)


class Parametrisation(NamedTuple):
    """The meaning of a network's output.

    Attributes:
      name: its name in configs.
      target: (x_0, eps, scales) -> the value that the network should return.
      estimates: (value, x_t, scales) -> Estimates, the inverse of `target` given x_t.
      input_scale: scales -> the factor on x_t before it enters the network (EDM's c_in).
      needs_signal: whether the estimates are infinite where signal_scale is zero.
      outputs: channels of the network's output for each channel of x_t.
      spans: whether the network also takes the span t - s of a step (see `flow_maps`); `estimates`
        is for its output at span 0.
    """

    name: str
    target: Callable[[Array, Array, Scales[Array]], Array]
    estimates: Callable[[Array, Floats, Scales[Array]], Estimates]
    input_scale: Callable[[Scales[Array]], Array] = _one
    needs_signal: bool = False
    outputs: int = 1
    spans: bool = False


def _eps_estimates(value: Floats, x_t: Floats, scales: Scales[Array]) -> Estimates:
    return Estimates(x0_from_eps(x_t, value, scales), value)


def _v_estimates(value: Floats, x_t: Floats, scales: Scales[Array]) -> Estimates:
    signal, noise = scales
    # signal^2 + noise^2 is 1 on variance preserving schedules.
    power = signal**2 + noise**2
    return Estimates((signal * x_t - noise * value) / power, (noise * x_t + signal * value) / power)


def _velocity_estimates(value: Floats, x_t: Floats, scales: Scales[Array]) -> Estimates:
    signal, noise = scales
    total = signal + noise
    return Estimates((x_t - noise * value) / total, (x_t + signal * value) / total)


x0 = Parametrisation(
    "x0",
    target=lambda x_0, eps, scales: x_0,
    estimates=lambda value, x_t, scales: Estimates(value, eps_from_x0(x_t, value, scales)),
)
eps = Parametrisation(
    "eps",
    target=lambda x_0, eps, scales: eps,
    estimates=_eps_estimates,
    needs_signal=True,
)
v = Parametrisation(
    "v",
    target=lambda x_0, eps, scales: scales.signal_scale * eps - scales.noise_scale * x_0,
    estimates=_v_estimates,
)
score = Parametrisation(
    "score",
    target=lambda x_0, eps, scales: -eps / scales.noise_scale,
    estimates=lambda value, x_t, scales: _eps_estimates(-scales.noise_scale * value, x_t, scales),
    needs_signal=True,
)
velocity = Parametrisation(
    "velocity",
    target=lambda x_0, eps, scales: eps - x_0,
    estimates=_velocity_estimates,
)
average_velocity = velocity._replace(name="average_velocity", spans=True)


@checked
def average_x0(least_time: float = 0.05) -> Parametrisation:
    """The image x_t - t u that an average velocity u points at: u = (x_t - value) / t.

    The form of pixel MeanFlow (pMF, 2026): small networks predict images more easily than
    velocities, whose noise they would have to copy. t, the noise scale of a straight path, is kept
    above `least_time` in the division.

    Args:
      least_time: in (0, 1).

    Raises:
      ValueError: least_time out of range.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> p, flow = dj.parametrisations.average_x0(), dj.Scales(jnp.array(0.75), jnp.array(0.25))
    >>> x_0, eps = jnp.array([0.5]), jnp.array([1.0])
    >>> pair = p.estimates(x_0, 0.75 * x_0 + 0.25 * eps, flow)  # of the true image
    >>> print(pair.x_0.round(2), pair.eps.round(2))
    [0.5] [1.]
    """
    if not 0 < least_time < 1:
        raise ValueError(f"least_time must be in (0, 1), not {least_time}")

    def estimates(value: Floats, x_t: Floats, scales: Scales[Array]) -> Estimates:
        u = (x_t - value) / jnp.maximum(scales.noise_scale, least_time)
        return _velocity_estimates(u, x_t, scales)

    return Parametrisation("average_x0", x0.target, estimates, spans=True)


@checked
def edm(sigma_data: float = 0.5) -> Parametrisation:
    """EDM's preconditioning, equation (6), with c_in = 1 / c.

    Args:
      sigma_data: the data's standard deviation (EDM's default: 0.5, for images in [-1, 1]).

    Raises:
      ValueError: sigma_data not above 0.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> x_0 = jnp.array([0.5, 0.5, -0.5, -0.5])  # of standard deviation sigma_data
    >>> eps = jnp.array([1.0, -1.0, 1.0, -1.0])  # of standard deviation 1, and independent
    >>> for sigma in (0.01, 80.0):  # the target's standard deviation is 1 at every noise level
    ...     scales = dj.Scales(jnp.array(1.0), jnp.array(sigma))
    ...     print(f"{dj.parametrisations.edm(0.5).target(x_0, eps, scales).std():.3f}")
    1.000
    1.000
    """
    if not sigma_data > 0:
        raise ValueError(f"sigma_data must be above 0, not {sigma_data}")

    def power(scales: Scales[Array]) -> Array:
        return (scales.signal_scale * sigma_data) ** 2 + scales.noise_scale**2

    def target(x_0: Array, eps: Array, scales: Scales[Array]) -> Array:
        signal, noise = scales
        return (noise / sigma_data * x_0 - signal * sigma_data * eps) / jnp.sqrt(power(scales))

    def estimates(value: Floats, x_t: Floats, scales: Scales[Array]) -> Estimates:
        signal, noise = scales
        c2 = power(scales)
        c_skip, c_out = signal * sigma_data**2 / c2, noise * sigma_data / jnp.sqrt(c2)
        # eps solved from both equations at once: no division by a small noise scale.
        return Estimates(
            c_skip * x_t + c_out * value,
            noise / c2 * x_t - signal * sigma_data / jnp.sqrt(c2) * value,
        )

    return Parametrisation("edm", target, estimates, lambda scales: 1 / jnp.sqrt(power(scales)))


@checked
def convert(
    value: Float[Array, "..."],
    x_t: Floats,
    *,
    source: Parametrisation,
    target: Parametrisation,
    scales: Scales[Array],
) -> Floats:
    """The same statement about (x_0, eps) given x_t, said in another parametrisation.

    Args:
      value: (B, ...) the quantity that `source` names.
      x_t: (B, ...) noisy data.
      source, target: parametrisations.
      scales: the pair at t, broadcasting against x_t.

    Returns:
      (B, ...) the quantity that `target` names.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> p, scales = dj.parametrisations, dj.Scales(jnp.array(0.8), jnp.array(0.6))
    >>> x_t = jnp.array([1.0])
    >>> dj.convert(jnp.array([0.5]), x_t, source=p.eps, target=p.x0, scales=scales).tolist()
    [0.875]
    """
    pair = source.estimates(value, x_t, scales)
    return target.target(pair.x_0, pair.eps, scales)


@checked
def gain(target: Parametrisation, scales: Scales[Array]) -> Array:
    """How many times a squared error in x_0 counts in `target`, at a given x_t.

    An error d in x_0 is an error -signal/noise d in eps, and `target` is linear: SNR for eps, 1 for
    x0, SNR + 1 for v on a variance preserving schedule. `losses` uses it to bring one weighting to
    every parametrisation.

    Args:
      target: a linear parametrisation, any but `categorical`.
      scales: the pair at t, of any shape; noise above 0.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> p, scales = dj.parametrisations, dj.Scales(jnp.array(0.8), jnp.array(0.6))  # SNR 16 / 9
    >>> print(*(f"{9 * p.gain(target, scales):.2f}" for target in (p.x0, p.eps, p.v)))  # SNR + 1
    9.00 16.00 25.00
    """
    error_in_x0 = _one(scales)
    error_in_eps = -scales.signal_scale / scales.noise_scale
    return target.target(error_in_x0, error_in_eps, scales) ** 2
