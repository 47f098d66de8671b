r"""Noise schedules that are learned: log-SNR as a falling function of t in [0, 1] with parameters.

    log SNR(t) = start + (end - start) f(t),    f(0) = 0, f(1) = 1, f increasing         (1)

Kingma et al. 2021 (VDM) write gamma = -log SNR. In continuous time the bound depends on the two
ends alone (their section 5.1, equation 18); what f changes is the variance of its estimate, and so
of the gradient. So the ends are trained on the bound, and f on the square of the loss (their
appendix I.2), `value_and_grad`. Three forms:

    fixed      start and end are constants, f(t) = t: without parameters
    scalar     start and end are learned, f(t) = t
    network    start and end are learned, and f, a monotone network of t                 (2)

    f(t) = (g(t) - g(0)) / (g(1) - g(0)),  g(t) = a t + c . sigmoid(b (a t + d)) + e, a, b, c > 0

(2) is appendix H's: a line, and a hidden layer in its residual branch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from diffjax.checks import checked
from diffjax.schedules import ContinuousSchedule, variance_preserving
from diffjax.types import Array, ArrayLike, PerExample, PRNGKey, TimePerExample

Params = dict[str, Any]
# Halvings of [0, 1] that find t for a log-SNR: below float32's resolution.
_HALVINGS = 30


class LearnedSchedule(NamedTuple):
    """A family of schedules.

    Attributes:
      name: its name in configs.
      init: key -> params: {"ends": ..., "shape": ...}, either of them possibly empty.
      log_snr: (params, t) -> log-SNR, elementwise.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> form = dj.learned_schedules.scalar(log_snr_min=-5.0, log_snr_max=5.0)
    >>> params = form.init(jax.random.key(0))
    >>> print(form.log_snr(params, jnp.array([0.0, 0.5, 1.0])).round(2) + 0.0)
    [ 5.  0. -5.]
    """

    name: str
    init: Callable[[PRNGKey], Params]
    log_snr: Callable[[Params, Array], Array]


def _check(log_snr_min: float, log_snr_max: float) -> None:
    if not log_snr_min < log_snr_max:
        raise ValueError(
            f"log_snr_min must be less than log_snr_max, not {log_snr_min} and {log_snr_max}"
        )


@checked
def fixed(*, log_snr_min: float = -5.0, log_snr_max: float = 13.3) -> LearnedSchedule:
    """Linear in t between constants: VDM's fixed gamma, with the ends of its code.

    Args:
      log_snr_min, log_snr_max: log-SNR at t = 1 and t = 0.

    Raises:
      ValueError: ends in the wrong order.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> form = dj.learned_schedules.fixed(log_snr_min=-5.0, log_snr_max=5.0)
    >>> print(form.init(jax.random.key(0)), form.log_snr({}, jnp.array([0.0, 0.5, 1.0])))
    {'ends': {}, 'shape': {}} [ 5.  0. -5.]
    """
    _check(log_snr_min, log_snr_max)
    return LearnedSchedule(
        "fixed",
        lambda key: {"ends": {}, "shape": {}},
        lambda params, t: log_snr_max + (log_snr_min - log_snr_max) * t,
    )


def _ends(log_snr_min: float, log_snr_max: float) -> dict[str, Array]:
    # The difference by its logarithm, so that it stays positive.
    return {
        "start": jnp.asarray(log_snr_max, jnp.float32),
        "log_fall": jnp.log(jnp.asarray(log_snr_max - log_snr_min, jnp.float32)),
    }


def _between(ends: dict[str, Array], f: Array) -> Array:
    return ends["start"] - jnp.exp(ends["log_fall"]) * f


@checked
def scalar(*, log_snr_min: float = -5.0, log_snr_max: float = 13.3) -> LearnedSchedule:
    """Linear in t between two learned ends, which start at the arguments.

    Args:
      log_snr_min, log_snr_max: where log-SNR at t = 1 and t = 0 starts.

    Raises:
      ValueError: ends in the wrong order.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> form = dj.learned_schedules.scalar(log_snr_min=-5.0, log_snr_max=5.0)
    >>> params = form.init(jax.random.key(0))
    >>> print(form.log_snr(params, jnp.array([0.0, 0.5, 1.0])).round(2) + 0.0)
    [ 5.  0. -5.]
    """
    _check(log_snr_min, log_snr_max)
    return LearnedSchedule(
        "scalar",
        lambda key: {"ends": _ends(log_snr_min, log_snr_max), "shape": {}},
        lambda params, t: _between(params["ends"], t),
    )


@checked
def network(
    *, log_snr_min: float = -5.0, log_snr_max: float = 13.3, features: int = 1024
) -> LearnedSchedule:
    """Equation (2) between two learned ends; nearly linear in t at first.

    Args:
      log_snr_min, log_snr_max: where the ends start.
      features: width of the hidden layer.

    Raises:
      ValueError: no features, or ends in the wrong order.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> form = dj.learned_schedules.network(log_snr_min=-5.0, log_snr_max=5.0, features=16)
    >>> log_snr = jax.jit(form.log_snr)(form.init(jax.random.key(0)), jnp.linspace(0.0, 1.0, 11))
    >>> print(log_snr[::10].round(2), (jnp.diff(log_snr) < 0).all())  # its ends, and it falls
    [ 5. -5.] True
    """
    _check(log_snr_min, log_snr_max)
    if features < 1:
        raise ValueError(f"features must be at least 1, not {features}")

    def init(key: PRNGKey) -> Params:
        of_in, of_shift, of_out = jax.random.split(key, 3)
        # Steps of the sigmoids lie all over [0, 1], and are small against the line.
        return {
            "ends": _ends(log_snr_min, log_snr_max),
            "shape": {
                "line": jnp.zeros(()),
                "steepness": jnp.log(4.0) + 0.5 * jax.random.normal(of_in, (features,)),
                "place": jax.random.uniform(of_shift, (features,)),
                "size": jnp.log(0.1 / features) + 0.5 * jax.random.normal(of_out, (features,)),
            },
        }

    def g(shape: dict[str, Array], t: Array) -> Array:
        steepness, size = jnp.exp(shape["steepness"]), jnp.exp(shape["size"])
        hidden = jax.nn.sigmoid(steepness * (t[..., None] - shape["place"]))
        return jnp.exp(shape["line"]) * t + jnp.sum(size * hidden, axis=-1)

    def log_snr(params: Params, t: Array) -> Array:
        shape = params["shape"]
        t = jnp.asarray(t, jnp.float32)
        low, high = g(shape, jnp.zeros(())), g(shape, jnp.ones(()))
        return _between(params["ends"], (g(shape, t) - low) / (high - low))

    return LearnedSchedule("network", init, log_snr)


@checked
def log_snr_and_fall(
    form: LearnedSchedule, params: Params, t: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """log SNR(t) and -d log SNR / dt > 0, by one forward derivative; both of t's shape.

    Args:
      form, params: the schedule.
      t: times in [0, 1], of any shape.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> form = dj.learned_schedules.fixed(log_snr_min=-5.0, log_snr_max=5.0)
    >>> print(*dj.learned_schedules.log_snr_and_fall(form, {}, jnp.array([0.25, 0.5])))
    [2.5 0. ] [10. 10.]
    """
    t = jnp.asarray(t, jnp.float32)
    value, slope = jax.jvp(lambda u: form.log_snr(params, u), (t,), (jnp.ones_like(t),))
    return value, -slope


@checked
def as_schedule(form: LearnedSchedule, params: Params) -> ContinuousSchedule:
    """The variance preserving schedule that given parameters make, for samplers and likelihoods.

    `time` is found by bisection. Times are JAX arrays: there is no float64 form.

    Args:
      form, params: the schedule.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> form = dj.learned_schedules.fixed(log_snr_min=-5.0, log_snr_max=5.0)
    >>> schedule = dj.learned_schedules.as_schedule(form, {})
    >>> signal, noise = schedule(jnp.array(0.5))
    >>> print(f"{signal**2:.2f} {noise**2:.2f} {schedule.time(jnp.array(2.5)):.2f}")
    0.50 0.50 0.25
    """

    def log_snr(t: ArrayLike) -> Array:
        return form.log_snr(params, jnp.asarray(t, jnp.float32))

    def time(log_snr_at: ArrayLike) -> Array:
        wanted = jnp.asarray(log_snr_at, jnp.float32)

        def halve(_: Array, interval: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = interval
            middle = (low + high) / 2
            is_later = log_snr(middle) > wanted
            return jnp.where(is_later, middle, low), jnp.where(is_later, high, middle)

        ends = jnp.zeros_like(wanted), jnp.ones_like(wanted)
        low, high = jax.lax.fori_loop(0, _HALVINGS, halve, ends)
        return (low + high) / 2

    return ContinuousSchedule(
        log_snr, time, lambda value: variance_preserving(jnp.asarray(value, jnp.float32))
    )


@checked
def value_and_grad(
    loss: Callable[[Any, PerExample, PerExample], tuple[PerExample, Any]],
    params: Any,
    *,
    form: LearnedSchedule,
    schedule_params: Params,
    t: TimePerExample,
) -> tuple[tuple[Float[Array, ""], Any], tuple[Any, Params]]:
    """The mean loss, and gradients: the network's, and the schedule's that lower its variance.

    Kingma et al. 2021, appendix I.2: for parameters eta of f, the gradient is that of E[loss^2],
    2 loss d loss / d eta an example, which by equation (1)'s invariance lowers the variance of the
    loss and leaves its mean. It takes no second pass: each example's derivative by its own log-SNR
    and fall is found on the way back, and is scaled before it enters the schedule. The ends get
    the plain gradient.

    Args:
      loss: (params, log_snr (B,), fall (B,)) -> ((B,) losses, anything); an example's loss must
        depend on its own log-SNR and fall alone.
      params: the network's parameters.
      form, schedule_params: the schedule.
      t: (B,) times.

    Returns:
      ((mean loss, the anything), (gradient by params, gradient by schedule_params)).

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> form = dj.learned_schedules.scalar(log_snr_min=-5.0, log_snr_max=5.0)
    >>> loss = lambda w, log_snr, fall: (w * fall, None)  # fall is exp(log_fall), 10
    >>> options = dict(form=form, schedule_params=form.init(jax.random.key(0)), t=jnp.array([0.5]))
    >>> (value, _), (of_w, of_schedule) = dj.learned_schedules.value_and_grad(loss, 2.0, **options)
    >>> print(f"{value:.1f} {of_w:.1f} {of_schedule['ends']['log_fall']:.1f}")
    20.0 10.0 20.0
    """
    (log_snr, fall), pull_back = jax.vjp(
        lambda eta: log_snr_and_fall(form, eta, t), schedule_params
    )

    def mean_loss(
        params: Any, log_snr: PerExample, fall: PerExample
    ) -> tuple[Float[Array, ""], tuple[PerExample, Any]]:
        losses, more = loss(params, log_snr, fall)
        return losses.mean(), (losses, more)

    (value, (losses, more)), slopes = jax.value_and_grad(
        mean_loss, argnums=(0, 1, 2), has_aux=True
    )(params, log_snr, fall)
    of_params, of_log_snr, of_fall = slopes
    (plain,) = pull_back((of_log_snr, of_fall))
    (squared,) = pull_back((2 * losses * of_log_snr, 2 * losses * of_fall))
    return (value, more), (of_params, {"ends": plain["ends"], "shape": squared["shape"]})
