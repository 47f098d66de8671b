r"""Self-conditioning: the network also sees an earlier estimate of x_0 of its own.

Chen et al. 2023, "Analog bits", section 3.2: the input is x_t and an estimate of x_0, side by side
on the last axis (2C channels in, C out), where zeros stand for no estimate:

    output_1 = network([c x_t, 0], t)                                                       (1)
    output_2 = network([c x_t, stop_gradient(x_0 of output_1)], t)                          (2)

c is the parametrisation's `input_scale`; it belongs to x_t alone. In training a fair coin an
example decides between (1) and (2) (`training_network`). For sampling, `self_conditioned` evaluates
(1) and then (2) at the same x_t: just what training showed the network, for twice the evaluations.
The paper's cheap variant, `self_conditioned_by_step`, hands on the estimate of the previous step,
one evaluation a step; it needs a sampler of `memory.carried`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool

from diffjax.checks import checked
from diffjax.denoisers import Denoiser, NetworkFn, TimeInput, predict, scaled_time
from diffjax.parametrisations import Estimates, Parametrisation
from diffjax.process import broadcast, scales_like
from diffjax.sampling import memory
from diffjax.schedules import Schedule
from diffjax.types import Array, Data, PerExample, TimePerExample, Times


def _showing(network: NetworkFn, estimate: Data, limit: float | None) -> NetworkFn:
    """The plain network (x, time_input, cond) -> output that is shown one estimate."""
    if limit is not None:
        estimate = jnp.clip(estimate, -limit, limit)

    def shown(x: Data, time_input: PerExample, cond: Any) -> Array:
        return network(jnp.concatenate([x, estimate.astype(x.dtype)], axis=-1), time_input, cond)

    return shown


def _check_limit(limit: float | None) -> None:
    if limit is not None and not limit > 0:
        raise ValueError(f"limit must be above 0, or None, not {limit}")


@checked
def training_network(
    network: NetworkFn,
    schedule: Schedule,
    *,
    t: TimePerExample,
    use_estimate: Bool[Array, " batch"],
    parametrisation: Parametrisation,
    limit: float | None = None,
) -> NetworkFn:
    """A self-conditioned network as the plain one that `losses.diffusion_loss` takes.

    Examples whose coin is true get (2), the others (1). No gradient goes through the first pass,
    which costs an evaluation more, and no backward pass.

        network = training_network(net, schedule, t=t, use_estimate=use_estimate, parametrisation=v)
        loss = diffusion_loss(network, x_0, prediction=Prediction(schedule, v), t=t, eps=eps)

    Args:
      network: (x (B, ..., 2C), time_input, cond) -> (B, ..., C).
      schedule: the noise schedule.
      t: (B,) times, those of the loss.
      use_estimate: (B,) bool: `rng.per_example(key, indices, jax.random.bernoulli)`.
      parametrisation: what the network predicts, as in the loss.
      limit: the largest magnitude of an estimate that the network is shown. An eps or a score
        network needs one (1 for images in [-1, 1]): its error in x_0 grows as 1 / signal_scale.

    Raises:
      TypeError: use_estimate that is not of bools.
      ValueError: use_estimate that is not one per example, or a limit of 0 or less; when called,
        times or use_estimate of another batch, or an output not of x_t's shape.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, t, x0 = dj.schedules.rectified_flow(), jnp.array([0.5, 0.5]), dj.parametrisations.x0
    >>> network = lambda x, time_input, cond: x[..., 1:] + 1  # the estimate that it is shown, and 1
    >>> options = dict(t=t, use_estimate=jnp.array([True, False]), parametrisation=x0)
    >>> plain = dj.self_conditioning.training_network(network, flow, **options)
    >>> print(plain(jnp.zeros((2, 1)), 1000 * t, None).ravel())
    [2. 1.]
    """
    _check_limit(limit)

    def plain(x: Data, time_input: PerExample, cond: Any) -> Data:
        if use_estimate.shape != x.shape[:1]:
            raise ValueError(
                f"use_estimate has {len(use_estimate)} values for a batch of {len(x)}: "
                "expected one per example"
            )
        none = jnp.zeros_like(x)
        scales = scales_like(schedule, t, x)
        output = jax.lax.stop_gradient(_showing(network, none, limit)(x, time_input, cond))
        if output.shape != x.shape:
            raise ValueError(f"the network returned {output.shape} for x_t of {x.shape}")
        x_t = x / parametrisation.input_scale(scales)
        estimate = parametrisation.estimates(output.astype(x.dtype), x_t, scales).x_0
        # A choice, not a product: where the signal is zero an estimate may be infinite.
        estimate = jax.lax.stop_gradient(jnp.where(broadcast(use_estimate, x), estimate, none))
        return _showing(network, estimate, limit)(x, time_input, cond)

    return plain


@checked
def self_conditioned(
    network: NetworkFn,
    schedule: Schedule,
    *,
    parametrisation: Parametrisation,
    time_input: TimeInput = scaled_time,
    passes: int = 2,
    limit: float | None = None,
) -> Denoiser:
    """A self-conditioned network as a denoiser: (1), then (2) `passes - 1` times.

    A denoiser's evaluation costs `passes` of the network; memory and compile time are those of one.
    With passes = 1 the network sees no estimate; more than 2 show it what training did not.

    Args:
      network: (x (B, ..., 2C), time_input, cond) -> (B, ..., C).
      schedule: the noise schedule the network was trained with.
      parametrisation: what the output means.
      time_input: what the network's time embedding is fed.
      passes: evaluations at each x_t, at least 1.
      limit: as in training, see `training_network`; the estimates that are returned keep theirs.

    Raises:
      ValueError: no pass, or a limit of 0 or less; when called, an output not of x_t's shape.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x0 = dj.schedules.rectified_flow(), dj.parametrisations.x0
    >>> network = lambda x, time_input, cond: x[..., 1:] + 1  # the estimate that it is shown, and 1
    >>> for passes in (1, 2):
    ...     denoise = dj.self_conditioning.self_conditioned(
    ...         network, flow, parametrisation=x0, passes=passes
    ...     )
    ...     print(denoise(jnp.zeros((1, 1)), 0.5).x_0)
    [[1.]]
    [[2.]]
    """
    _check_limit(limit)
    if passes < 1:
        raise ValueError(f"passes must be at least 1, not {passes}")

    def denoise(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        def once(_: Array, before: Estimates) -> Estimates:
            output, scales = predict(
                _showing(network, before.x_0, limit), x_t, t=t, cond=cond,
                schedule=schedule, parametrisation=parametrisation, time_input=time_input,
            )  # fmt: skip
            now = parametrisation.estimates(output, x_t, scales)
            return Estimates(now.x_0.astype(x_t.dtype), now.eps.astype(x_t.dtype))

        none = jnp.zeros_like(x_t)
        return jax.lax.fori_loop(0, passes, once, Estimates(none, none))

    return denoise


@checked
def self_conditioned_by_step(
    network: NetworkFn,
    schedule: Schedule,
    *,
    parametrisation: Parametrisation,
    time_input: TimeInput = scaled_time,
    limit: float | None = None,
) -> Denoiser:
    """A self-conditioned network as a denoiser that is shown its estimate of the step before.

    Chen et al. 2023, algorithm 2: (1) at the first step, then (2) with the x_0 of the last step's
    first evaluation. One evaluation of the network each.

        sampler = memory.carried(samplers.ddim)

    Args:
      network, schedule, parametrisation, time_input, limit: as in `self_conditioned`.

    Raises:
      ValueError: a limit of 0 or less; when called, an output not of x_t's shape, or a sampler
        without memory.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x0 = dj.schedules.rectified_flow(), dj.parametrisations.x0
    >>> network = lambda x, time_input, cond: x[..., 1:] + 1  # the estimate that it is shown, and 1
    >>> denoise = dj.self_conditioning.self_conditioned_by_step(network, flow, parametrisation=x0)
    >>> sampler, grid = dj.memory.carried(dj.samplers.ddim), dj.grids.trailing(flow, 5)
    >>> print(sampler(denoise, jnp.zeros((1, 1)), grid=grid).x_0)  # one more in each step
    [[5.]]
    """
    _check_limit(limit)
    estimate = memory.Slot()

    def denoise(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        output, scales = predict(
            _showing(network, estimate.read(x_t), limit), x_t, t=t, cond=cond,
            schedule=schedule, parametrisation=parametrisation, time_input=time_input,
        )  # fmt: skip
        pair = parametrisation.estimates(output, x_t, scales)
        estimate.write(pair.x_0)
        return pair

    return denoise
