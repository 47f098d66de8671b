r"""Discrete data to continuous: x, the middle of a bin, becomes a point z of that bin.

A density p over the continuous z gives the discrete x the mass of its bin, and by Jensen

    log P(x) = log int_bin p(z) dz >= E_{q(z | x)} [log p(z) - log q(z | x)]              (1)

for any q that lives in the bin (Theis et al. 2016, "A note on the evaluation of generative
models"; Ho et al. 2019, Flow++, section 3.1). Data are the levels 2k / (levels - 1) - 1 in [-1, 1];
a bin is a level and half of the distance to its neighbours on either side, width 2 / (levels - 1).

What is returned is what `ode_log_likelihood` starts from: z lives at x_{t_start}, so it is already
multiplied by signal_scale(t_start), and log q is the density of that z, which counts the volume of
the bin and of the scaling:

    z = signal (x + u),   -width / 2 <= u <= width / 2                                    (2)

A maker (`uniform`, `truncated_normal`, `variational`) returns a `Dequantiser`, called as
`dequantise(x, key=key)`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Key

from diffjax.checks import checked
from diffjax.schedules import Scales, Schedule
from diffjax.types import Array, Data, PerExample, PRNGKeys

# x -> (mean, log_scale) of x's shape: a pixel's q before it is squashed into the bin.
Parameters = Callable[[Data], tuple[Data, Data]]


class Dequantised(NamedTuple):
    """A draw z ~ q(z | x).

    Attributes:
      x: (B, ...) z, at the noise level of t_start: signal_scale(t_start) is already in it.
      log_q: (B,) log q(z | x), in nats an example.
    """

    x: Data
    log_q: PerExample


@dataclasses.dataclass(frozen=True, eq=False)
class Dequantiser:
    """dequantise(x, key=key) -> Dequantised.

    Attributes:
      t_start: the time at which what it returns lives.
      draw: (x, keys), keys (B,) one an example -> Dequantised.
    """

    t_start: float
    draw: Callable[[Data, Array], Dequantised]

    def __call__(self, x: Data, *, key: PRNGKeys) -> Dequantised:
        """A draw of q(z | x).

        Args:
          x: (B, ...) float: levels of [-1, 1].
          key: a PRNG key, or (B,) keys, one an example.

        Raises:
          ValueError: x not of a float type, or a key of another shape.
        """
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"x must be float levels of [-1, 1], not {x.dtype}")
        return self.draw(x, per_example_keys(key, len(x)))


@checked
def per_example_keys(key: PRNGKeys, batch: int) -> Key[Array, " batch"]:
    """(batch,) keys from one key, by `fold_in` of the example's place; (batch,) keys as they are.

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


@checked
def start_time(schedule: Schedule, t_start: float | None) -> float:
    """t_start, by default schedule.t_min.

    Raises:
      ValueError: a time outside [t_min, T).
    """
    if t_start is None:
        return schedule.t_min
    if not schedule.t_min <= t_start < schedule.T:
        raise ValueError(
            f"t_start must lie in [t_min, T), [{schedule.t_min}, {schedule.T}) here, not {t_start}"
        )
    return t_start


def _ends(
    schedule: Schedule, t_start: float | None, levels: int
) -> tuple[float, Scales[float], float]:
    """(t_start, the pair there, the bin's width in data space)."""
    if levels < 2:
        raise ValueError(f"levels must be at least 2, not {levels}")
    t = start_time(schedule, t_start)
    return t, schedule(np.float64(t)), 2 / (levels - 1)


def _sum(a: Data) -> PerExample:
    return a.sum(tuple(range(1, a.ndim)))


def _dimensions(x: Data) -> int:
    return math.prod(x.shape[1:])


@checked
def uniform(schedule: Schedule, *, t_start: float | None = None, levels: int = 256) -> Dequantiser:
    """Equation (2) with u even over the bin: log q = -D log(signal width).

    Uria et al. 2013 (RNADE); Theis et al. 2016, section 3.1. The bound (1) of a density that is
    constant in every bin is exact.

    Args:
      schedule: the noise schedule.
      t_start: the time at which z is to live, in [t_min, T); by default t_min.
      levels: of the data.

    Raises:
      ValueError: t_start out of range, or fewer than 2 levels.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> dequantise = uniform(dj.schedules.rectified_flow())
    >>> bool(abs(dequantise(jnp.ones((1, 3)), key=jax.random.key(0)).x - 0.999).max() < 1 / 255)
    True
    """
    t, (signal, _), width = _ends(schedule, t_start, levels)

    def draw(x: Data, keys: Key[Array, " batch"]) -> Dequantised:
        half = width / 2
        u = jax.vmap(lambda k: jax.random.uniform(k, x.shape[1:], x.dtype, -half, half))(keys)
        scale = jnp.asarray(signal, x.dtype)
        log_q = -_dimensions(x) * jnp.log(scale * width)
        return Dequantised(scale * (x + u), jnp.broadcast_to(log_q, x.shape[:1]))

    return Dequantiser(t, draw)


@checked
def truncated_normal(
    schedule: Schedule, *, t_start: float | None = None, levels: int = 256
) -> Dequantiser:
    """z = signal x + noise eps, eps standard normal but cut where z would leave the bin.

    Zheng et al. 2023, "Improved techniques for maximum likelihood estimation for diffusion ODEs".
    With eps in [-a, a], a = signal width / (2 noise),

        log q = sum (log N(eps; 0, 1) - log noise - log erf(a / sqrt(2))).

    A network is trained on signal x + noise eps, which is this z but for the tails beyond a. Where
    a is 3 or more (choose t_start so) the network sees what it was trained on; the smaller a, the
    nearer to `uniform`.

    Args:
      schedule, t_start, levels: as in `uniform`.

    Raises:
      ValueError: as `uniform`.

    >>> import jax, jax.numpy as jnp, numpy as np, diffjax as dj
    >>> dequantise = dj.likelihood.truncated_normal(dj.schedules.rectified_flow(), t_start=0.5)
    >>> z, log_q = jax.jit(lambda x: dequantise(x, key=jax.random.key(0)))(jnp.zeros((1, 3)))
    >>> print((abs(z) < 0.5 / 255).all())  # in the bin, scaled by the signal
    True
    >>> print(f"{log_q.item():.2f} {3 * np.log(255):.2f}")  # so much noise: nearly even
    16.62 16.62
    """
    t, (signal, noise), width = _ends(schedule, t_start, levels)

    def draw(x: Data, keys: Key[Array, " batch"]) -> Dequantised:
        cut = jnp.asarray(signal * width / (2 * noise), x.dtype)
        signal_scale, noise_scale = jnp.asarray(signal, x.dtype), jnp.asarray(noise, x.dtype)
        eps = jax.vmap(
            lambda key: jax.random.truncated_normal(key, -cut, cut, x.shape[1:], x.dtype)
        )(keys)
        a_pixel = jnp.log(noise_scale) + jnp.log(jax.scipy.special.erf(cut / math.sqrt(2)))
        log_q = _sum(_log_normal(eps)) - _dimensions(x) * a_pixel
        return Dequantised(signal_scale * x + noise_scale * eps, log_q)

    return Dequantiser(t, draw)


@checked
def variational(
    parameters: Parameters,
    schedule: Schedule,
    *,
    t_start: float | None = None,
    levels: int = 256,
) -> Dequantiser:
    """A learned q: equation (2) with u a Gaussian squashed into the bin by a sigmoid.

    Ho et al. 2019, Flow++, section 3.1, with one Gaussian a pixel in place of a flow:

        u = width (sigmoid(g) - 1/2),   g = mean + exp(log_scale) eps
        log q = sum (log N(eps; 0, 1) - log_scale - log sigmoid'(g) - log(signal width)).

    Both z and log q are differentiable in what `parameters` closes over, so that q is trained by
    raising the bound (1) under any differentiable log p. mean 0 and log_scale about log 1.7 are
    near the uniform q.

    Args:
      parameters: x -> (mean, log_scale), each of x's shape; it may mix pixels as it likes.
      schedule, t_start, levels: as in `uniform`.

    Raises:
      ValueError: as `uniform`; when called, parameters of another shape.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> flow, x, key = dj.schedules.rectified_flow(), jnp.zeros((1, 3)), jax.random.key(0)
    >>> parameters = lambda x: (jnp.full_like(x, 9.0), jnp.zeros_like(x))  # q at the upper edges
    >>> z, _ = jax.jit(lambda x: dj.likelihood.variational(parameters, flow)(x, key=key))(x)
    >>> print((z > 0.99 * 0.999 / 255).all(), (z < 0.999 / 255 + 1e-6).all())
    True True
    """
    t, (signal, _), width = _ends(schedule, t_start, levels)

    def draw(x: Data, keys: Key[Array, " batch"]) -> Dequantised:
        mean, log_scale = parameters(x)
        if mean.shape != x.shape or log_scale.shape != x.shape:
            raise ValueError(
                f"parameters must give a mean and a log-scale of x's shape {x.shape}, not "
                f"{mean.shape} and {log_scale.shape}"
            )
        eps = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
        g = mean + jnp.exp(log_scale) * eps
        log_slope = jax.nn.log_sigmoid(g) + jax.nn.log_sigmoid(-g)
        scale = jnp.asarray(signal, x.dtype)
        z = scale * (x + width * (jax.nn.sigmoid(g) - 0.5))
        log_q = _sum(_log_normal(eps) - log_scale - log_slope)
        return Dequantised(z, log_q - _dimensions(x) * jnp.log(scale * width))

    return Dequantiser(t, draw)


def _log_normal(eps: Data) -> Data:
    return -(jnp.square(eps) + math.log(2 * math.pi)) / 2
