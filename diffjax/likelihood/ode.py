r"""The exact log-likelihood of a diffusion model: its probability-flow ODE as a continuous flow.

The ODE has x_t's marginals and is deterministic (Song et al. 2021b, section 4.3), so that it is a
change of variables from data to the prior (Chen et al. 2018; Grathwohl et al. 2019, FFJORD):

    log p(x_start) = log N(x_T; 0, noise_T^2 I) + int div(dx/dt) dt                       (1)

The integral runs from t_start to T. The flow depends on the schedule through log-SNR alone: with
the angle phi, tan phi = noise / signal, and y = x / sqrt(signal^2 + noise^2) every process is
variance preserving, y = cos(phi) x_0 + sin(phi) eps, and

    dy/dphi = cos(phi) eps - sin(phi) x_0                (Salimans & Ho 2022, appendix D)  (2)

We integrate over tau = log tan(phi / 2), for which dphi/dtau = sin(phi) and

    sin(phi) = 1 / cosh(tau),   cos(phi) = -tanh(tau),   log_snr = 2 log sinh(-tau).      (3)

tau is half the log-SNR (and a constant) where there is little noise, and finite, 0, where there is
no signal; at low noise each factor of it then costs the same number of steps, and float32 keeps its
digits. The error that a step may make is measured in units of the noise: a direction in which data
are thin is stretched by 1 / noise on the way up, so that an error of 1e-4 in a pixel at noise 1e-3
would be one of 0.1 in the prior.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32

from diffjax.checks import checked
from diffjax.denoisers import Denoiser
from diffjax.likelihood.bits import bits_per_dim
from diffjax.likelihood.dequantisation import Dequantiser, per_example_keys, start_time
from diffjax.schedules import Schedule
from diffjax.types import Array, Data, PerExample, PRNGKeys

# Dormand & Prince 1980, the pair of orders 5 and 4: row i makes stage i, and row 6, whose stage is
# the next step's first, is the solution of order 5.
_STAGES = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0],
        [1 / 5, 0, 0, 0, 0, 0, 0],
        [3 / 40, 9 / 40, 0, 0, 0, 0, 0],
        [44 / 45, -56 / 15, 32 / 9, 0, 0, 0, 0],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0, 0],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0, 0],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0],
    ]
)
_ORDER_4 = np.array([5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40])
_ROWS_AT_ONCE = 16  # of the Jacobian, in an exact divergence.

# (y, divergence a dimension): (B, ...) and (B,). Slopes have one more axis, the stages, in front.
_Point = tuple[Array, Array]


class OdeSolver(NamedTuple):
    """How the ODE of a likelihood is solved.

    Attributes:
      divergence: "hutchinson" or "exact".
      probe: of Hutchinson's: "rademacher" (signs; exact for a diagonal Jacobian) or "gaussian".
      rtol, atol: relative and absolute tolerance of a step, about in nats per dimension.
      max_steps: tries in all, six evaluations each, after which the result is NaN; also where no
        step is small enough.
    """

    divergence: str = "hutchinson"
    probe: str = "rademacher"
    rtol: float = 1e-4
    atol: float = 1e-4
    max_steps: int = 1000

    def check(self) -> None:
        """Raises ValueError for an invalid option."""
        if self.divergence not in ("hutchinson", "exact"):
            raise ValueError(f"divergence must be 'hutchinson' or 'exact', not {self.divergence!r}")
        if self.probe not in ("rademacher", "gaussian"):
            raise ValueError(f"probe must be 'rademacher' or 'gaussian', not {self.probe!r}")
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"rtol and atol must be positive, not {self.rtol} and {self.atol}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, not {self.max_steps}")


DEFAULT_SOLVER = OdeSolver()


class OdeLikelihood(NamedTuple):
    """log p(x), and what it is made of; log_prob = prior + divergence.

    Attributes:
      log_prob: (B,) nats an example, of the density at x_{t_start}.
      prior: (B,) log N(x_T; 0, noise_T^2 I).
      divergence: (B,) the integral of equation (1).
      latent: (B, ...) x_T, from which a deterministic sampler leads back to x.
      evaluations: how often the network was asked, each time with its divergence; a scalar.
      finished: whether T was reached; if not, the rest is NaN.
    """

    log_prob: PerExample
    prior: PerExample
    divergence: PerExample
    latent: Data
    evaluations: Int32[Array, ""]
    finished: Bool[Array, ""]


class OdeBitsPerDim(NamedTuple):
    """An upper bound on -log2 P(x_0) / D.

    Attributes:
      bits_per_dim: (B,).
      evaluations: of the network, over all samples; a scalar.
      finished: whether every solve reached T; if not, the bound is NaN.
    """

    bits_per_dim: PerExample
    evaluations: Int32[Array, ""]
    finished: Bool[Array, ""]


@checked
def ode_log_likelihood(
    denoise: Denoiser,
    x: Data,
    *,
    schedule: Schedule,
    key: PRNGKeys | None = None,
    cond: Any = None,
    t_start: float | None = None,
    solver: OdeSolver = DEFAULT_SOLVER,
) -> OdeLikelihood:
    """log p(x) by equation (1), x at the noise level of t_start.

    Song et al. 2021b, section 4.3 and appendix D.2. The density is the model's at x_{t_start}, so
    that clean data must first be scaled by signal_scale(t_start) and noised (or dequantised, which
    `ode_bits_per_dim` does). The prior is what samplers start from, N(0, noise_T^2 I): signal that
    a schedule leaves at T is not counted.

    The divergence is either exact, by one backward pass a dimension, or probe . J probe, whose mean
    over probes it is (Hutchinson 1990; Skilling 1989). A probe is drawn once an example and kept
    along the path, so that the ODE is smooth and log_prob unbiased.

    The steps are those of Dormand & Prince's pair. One is taken when for every example both the
    root mean square over pixels of error / (noise (atol + rtol |dy/dphi|)) and the error of the
    divergence a dimension over (atol + rtol |divergence a dimension|) are at most 1: the worst of
    the batch decides. A discrete schedule is asked between its steps. For a mixture of narrow
    Gaussians in 64 dimensions, in float32 and on eight schedules, tolerances of 1e-4 left an error
    of 2e-4 to 1e-3 nats a dimension for 80 to 130 evaluations, and 1e-5 one of 2e-5 to 6e-5 for 110
    to 150.

    Args:
      denoise: x_t, t, cond -> Estimates; each example's own, and finite at T (no eps or score
        network on a schedule without signal there).
      x: (B, ...) float, at the noise level of t_start.
      schedule: the noise schedule.
      key: for "hutchinson": a PRNG key, or (B,) keys, one an example.
      cond: passed to the denoiser.
      t_start: in [t_min, T); by default t_min.
      solver: how the ODE is solved.

    Returns:
      An `OdeLikelihood`; nats an example.

    Raises:
      ValueError: a bad option or time, x not of a float type, or no key where one is needed.

    >>> import jax, jax.numpy as jnp, diffjax as dj, scipy.stats
    >>> cosine, x = dj.schedules.continuous_cosine(), jnp.array([[0.5, -1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(cosine, std=0.5)
    >>> options = dict(schedule=cosine, solver=dj.likelihood.OdeSolver(divergence="exact"))
    >>> found = jax.jit(lambda x: dj.likelihood.ode_log_likelihood(denoise, x, **options))(x)
    >>> print(f"{found.log_prob.item():.2f} {scipy.stats.norm.logpdf(x, scale=0.5).sum():.2f}")
    -2.95 -2.95
    """
    solver.check()
    t_start = start_time(schedule, t_start)
    with_divergence: Callable[[Callable[[Data], Data], Data], _Point] = _exact
    if solver.divergence == "hutchinson":
        if key is None:
            raise ValueError("a Hutchinson divergence draws probes: pass key=jax.random.key(seed)")
        draw = jax.random.rademacher if solver.probe == "rademacher" else jax.random.normal
        keys = per_example_keys(key, len(x))
        probes = jax.vmap(lambda k: draw(k, x.shape[1:], x.dtype))(keys)
        with_divergence = functools.partial(_hutchinson, probes=probes)

    def slope(y: Data, tau: Float[Array, ""]) -> _Point:
        """dy/dtau, and its divergence a dimension."""
        t = jnp.clip(schedule.time(2 * jnp.log(jnp.sinh(-tau))), t_start, schedule.T)
        scale = jnp.hypot(*schedule(t)).astype(y.dtype)
        sin, cos = 1 / jnp.cosh(tau), -jnp.tanh(tau)

        def flow(y: Data) -> Data:
            estimates = denoise(scale * y, t.astype(y.dtype), cond)
            return (sin * (cos * estimates.eps - sin * estimates.x_0)).astype(y.dtype)

        return with_divergence(flow, y)

    ends = np.array([t_start, schedule.T], np.float64)
    tau = -jnp.arcsinh(jnp.exp(jnp.asarray(schedule.log_snr(ends), x.dtype) / 2))
    signal, noise = (jnp.asarray(scale, x.dtype) for scale in schedule(ends))
    scale = jnp.hypot(signal, noise)
    (y, mean_divergence), tries, finished = _solve(
        slope,
        x / scale[0],
        tau[0],
        tau[1],
        rtol=solver.rtol,
        atol=solver.atol,
        max_steps=solver.max_steps,
    )
    given_up = jnp.where(finished, 0.0, math.nan).astype(x.dtype)
    dimensions = math.prod(x.shape[1:])
    latent = scale[1] * y + given_up
    # Of x, not of y: the change from one to the other at both ends.
    integral = dimensions * (mean_divergence + jnp.log(scale[1]) - jnp.log(scale[0])) + given_up
    squares = jnp.square(latent / noise[1]).sum(tuple(range(1, x.ndim)))
    prior = -squares / 2 - dimensions * (jnp.log(noise[1]) + math.log(2 * math.pi) / 2)
    return OdeLikelihood(prior + integral, prior, integral, latent, 1 + 6 * tries, finished)


def _hutchinson(flow: Callable[[Data], Data], y: Data, *, probes: Data) -> _Point:
    # Backward, not forward: some layers have only that derivative.
    value, pull = jax.vjp(flow, y)
    return value, (probes * pull(probes)[0]).mean(tuple(range(1, y.ndim)))


def _exact(flow: Callable[[Data], Data], y: Data) -> _Point:
    value, pull = jax.vjp(flow, y)
    dimensions = math.prod(y.shape[1:])

    def entry(i: Array) -> Array:
        """Entry (i, i) of every example's Jacobian."""
        unit = jax.nn.one_hot(i, dimensions, dtype=y.dtype).reshape(y.shape[1:])
        (row,) = pull(jnp.broadcast_to(unit, y.shape))
        return (row * unit).sum(tuple(range(1, y.ndim)))

    entries = jax.lax.map(entry, jnp.arange(dimensions), batch_size=min(_ROWS_AT_ONCE, dimensions))
    return value, entries.mean(0)


def _solve(
    slope: Callable[[Data, Float[Array, ""]], _Point],
    y: Data,
    tau: Float[Array, ""],
    tau_end: Float[Array, ""],
    *,
    rtol: float,
    atol: float,
    max_steps: int,
) -> tuple[_Point, Int32[Array, ""], Bool[Array, ""]]:
    """From y at tau to tau_end: (y and the mean divergence there, tries, whether it got there)."""
    rows, nodes = jnp.asarray(_STAGES, y.dtype), jnp.asarray(_STAGES.sum(1), y.dtype)
    of_error = jnp.asarray(_STAGES[6] - _ORDER_4, y.dtype)
    # Where a step no longer moves tau, a smaller one won't help.
    smallest = 16 * jnp.finfo(y.dtype).eps

    def weighted(weights: Array, slopes: _Point) -> _Point:
        y_slopes, d_slopes = (
            jnp.tensordot(weights, s, axes=1, precision=jax.lax.Precision.HIGHEST) for s in slopes
        )
        return y_slopes, d_slopes

    def rms(a: Array) -> Array:
        return jnp.sqrt(jnp.square(a).mean(tuple(range(1, a.ndim))))

    def unfinished(state: tuple[Any, ...]) -> Array:
        _, _, tau, h, tries, _ = state
        return (tau < tau_end) & (tries < max_steps) & (h > smallest)

    def attempt(state: tuple[Any, ...]) -> tuple[Any, ...]:
        (y, d), first, tau, h, tries, known = state
        reaches = tau + h >= tau_end
        h = jnp.where(reaches, tau_end - tau, h)

        def stage(i: Array, slopes: _Point) -> _Point:
            y_i = y + h * weighted(rows[i], slopes)[0]
            y_slope, d_slope = slope(y_i, jnp.where(i == 6, tau_next, tau + nodes[i] * h))
            return slopes[0].at[i].set(y_slope), slopes[1].at[i].set(d_slope)

        tau_next = jnp.where(reaches, tau_end, tau + h)
        slopes = tuple(jnp.zeros((7, *s.shape), s.dtype).at[0].set(s) for s in first)
        # Stage 0 is the last try's last stage, or its first; only the very first try asks for it.
        # A loop, so that the network is compiled once and not seven times.
        slopes = jax.lax.fori_loop(known, 7, stage, slopes)
        y_step, d_step = weighted(rows[6], slopes)
        y_error, d_error = weighted(of_error, slopes)
        d_next = d + h * d_step
        noise = 1 / jnp.cosh(tau)
        # slopes[0] is noise times dy/dphi.
        y_allowed = atol * noise + rtol * jnp.abs(slopes[0][0])
        d_allowed = atol + rtol * jnp.maximum(jnp.abs(d), jnp.abs(d_next))
        worst = jnp.maximum(rms(h * y_error / y_allowed), jnp.abs(h * d_error / d_allowed)).max()
        good = worst <= 1
        # Written so that NaN asks for the smallest factor.
        factor = jnp.where(worst < 1e5, 0.9 * jnp.maximum(worst, 1e-6) ** -0.2, 0.1)

        def kept(new: Array, old: Array) -> Array:
            return jnp.where(good, new, old)

        return (
            (kept(y + h * y_step, y), kept(d_next, d)),
            (kept(slopes[0][6], slopes[0][0]), kept(slopes[1][6], slopes[1][0])),
            kept(tau_next, tau),
            h * jnp.clip(factor, 0.1, 10.0),
            tries + 1,
            jnp.ones_like(known),
        )

    start = (y, jnp.zeros(y.shape[:1], y.dtype))
    zero = jnp.zeros((), jnp.int32)
    state = (start, start, tau, (tau_end - tau) / 50, zero, zero)
    point, _, tau, _, tries, _ = jax.lax.while_loop(unfinished, attempt, state)
    return point, tries, tau >= tau_end


@checked
def ode_bits_per_dim(
    denoise: Denoiser,
    x_0: Data,
    *,
    schedule: Schedule,
    key: PRNGKeys,
    dequantise: Dequantiser,
    samples: int = 1,
    cond: Any = None,
    solver: OdeSolver = DEFAULT_SOLVER,
) -> OdeBitsPerDim:
    """Bits per dimension of discrete data: an upper bound on -log2 P(x_0) / D.

        -log2( 1/K sum_k p(z_k) / q(z_k | x_0) ) / D,   z_k ~ q(z | x_0)

    One sample is the bound of `dequantisation`, equation (1); more tighten it (Burda et al. 2016,
    IWAE, section 3). With "hutchinson" one sample's mean is still a bound, for its noise has mean
    zero; more samples average exponentials of that noise, which flatters the model: take "exact".

    Args:
      denoise, schedule, cond, solver: as in `ode_log_likelihood`.
      x_0: (B, ...) float: clean data, levels of [-1, 1].
      key: a PRNG key, or (B,) keys, one an example.
      dequantise: `dequantisation.uniform(schedule)` or another; its t_start is where the ODE
        starts.
      samples: K, one after another.

    Returns:
      An `OdeBitsPerDim`.

    Raises:
      ValueError: no samples, or as `ode_log_likelihood`.

    >>> import jax, jax.numpy as jnp, diffjax as dj, numpy as np, scipy.stats
    >>> cosine, x = dj.schedules.continuous_cosine(), jnp.array([[0.5, -1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(cosine, std=0.5)
    >>> options = dict(schedule=cosine, dequantise=dj.likelihood.uniform(cosine, levels=256))
    >>> options |= dict(key=jax.random.key(0))
    >>> found = jax.jit(lambda x: dj.likelihood.ode_bits_per_dim(denoise, x, **options))(x)
    >>> mass = scipy.stats.norm.pdf(x, scale=0.5) * 2 / 255  # of a bin, but for its bend
    >>> print(f"{found.bits_per_dim.item():.1f} {-np.log2(mass).mean():.1f}")
    9.1 9.1
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, not {samples}")
    keys = per_example_keys(key, len(x_0))

    def log_weight(k: Array) -> tuple[Array, Array, Array]:
        pairs = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, k)))(keys)
        to_bin, to_probe = pairs[:, 0], pairs[:, 1]
        z, log_q = dequantise(x_0, key=to_bin)
        likelihood = ode_log_likelihood(
            denoise, z, schedule=schedule, key=to_probe, cond=cond, t_start=dequantise.t_start,
            solver=solver,
        )  # fmt: skip
        return likelihood.log_prob - log_q, likelihood.evaluations, likelihood.finished

    log_weights, evaluations, finished = jax.lax.map(log_weight, jnp.arange(samples))
    log_prob = jax.nn.logsumexp(log_weights, axis=0) - math.log(samples)
    bound = bits_per_dim(-log_prob, dimensions=math.prod(x_0.shape[1:]))
    return OdeBitsPerDim(bound, evaluations.sum(), finished.all())
