"""Likelihoods of images under a trained model, by `config.evaluate.likelihood`.

    vlb    the bound of a chain of steps                                `likelihood.vlb`
    vdm    the bound in continuous time                                 `likelihood.vdm`
    ode    the probability-flow ODE's exact density, dequantised        `likelihood.ode`

Each is a function of a batch of images that returns numbers per image, in bits per dimension. An
image's noise depends only on its index in the data set, not on the batch or the devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import categorical, grids, rng
from diffjax.checkpoints import parameters
from diffjax.denoisers import Denoiser, predict
from diffjax.distributed import processes
from diffjax.distributed.placement import Placement
from diffjax.errors import UserError
from diffjax.experiment import strategies
from diffjax.experiment.restore import read
from diffjax.experiment.spec import from_table
from diffjax.inference.sampling import apply_network
from diffjax.likelihood import bits, dequantisation, ode, vdm
from diffjax.likelihood.vlb import vlb
from diffjax.losses import learned_schedules
from diffjax.parametrisations import Estimates
from diffjax.process import scales_like
from diffjax.sampling.thresholding import clip_x0
from diffjax.schedules import Schedule, linear_log_snr, variance_preserving
from diffjax.training.objective import ObjectiveState
from diffjax.training.vdm_objective import VdmObjective
from diffjax.types import Array, Times

if TYPE_CHECKING:
    from diffjax.experiment.diffusion import Experiment

# The golden ratio's fraction: its multiples modulo 1 cover [0, 1] evenly, however many there are.
_GOLDEN = (5**0.5 - 1) / 2

# Per-image results by name: "total" and the terms of the kind; each (B,) or (B, n).
Numbers = dict[str, Array]
# (model, x (B, ...), indices of the images (B,), keys (B,)) -> Numbers
Measure = Callable[["_Model", Array, Array, Array], Numbers]


class _Model(NamedTuple):
    """The inputs of a measure."""

    denoise: Denoiser
    schedule: Schedule
    decode: vdm.Decoder | None
    grid: grids.Grid | None
    variance: str


class Likelihood(NamedTuple):
    """A resolved `config.evaluate.likelihood`.

    Attributes:
      name: "vlb", "vdm" or "ode".
      what: a description of the result.
      batch: (params, {"image": ..., "label": ...}, indices) -> per-image results by name.
    """

    name: str
    what: str
    batch: Callable[[Any, Mapping[str, np.ndarray], np.ndarray], dict[str, np.ndarray]]


class _Kind(NamedTuple):
    name: str
    what: str
    measure: Measure
    clipped: bool
    steps: int | None  # of a grid; 0 for all
    variance: str


def _vlb(steps: int = 0, variance: str = "") -> _Kind:
    if steps < 0:
        raise ValueError(f"steps must be at least 0 (0: all), not {steps}")
    if variance not in ("", "beta_tilde", "beta", "learned"):
        raise ValueError(f"variance must be beta_tilde, beta or learned, not {variance!r}")

    def measure(model: _Model, x: Array, numbers: Array, keys: Array) -> Numbers:
        assert model.grid is not None
        bound = vlb(model.denoise, x, grid=model.grid, key=keys, variance=model.variance)
        return {
            "total": bound.total,
            "prior": bound.prior,
            "reconstruction": bound.reconstruction,
            "steps": bound.steps.T,
        }

    what = "upper bound: the variational bound of the chain of steps"
    return _Kind("vlb", what, measure, True, steps, variance)


def _vdm(samples: int = 8) -> _Kind:
    if samples < 1:
        raise ValueError(f"samples must be at least 1, not {samples}")

    def measure(model: _Model, x: Array, numbers: Array, keys: Array) -> Numbers:
        def eps(k: Array | int) -> Array:
            draw = partial(jax.random.normal, shape=x.shape[1:])
            return jax.vmap(lambda key: draw(jax.random.fold_in(key, k)))(keys)

        # Stratified times: each image has one in each of `samples` equal parts of [0, 1], and the
        # images cover each part evenly.
        offset = (numbers * _GOLDEN) % 1.0

        def draw(k: Array) -> vdm.DiffusionSample:
            t = (offset + k) / samples
            return vdm.diffusion_draw(
                model.denoise, x, schedule=model.schedule, t=t, eps=eps(k + 1)
            )

        drawn = jax.lax.map(draw, jnp.arange(samples))
        start = scales_like(model.schedule, jnp.zeros(()), x)
        decode = model.decode or vdm.level_decoder(start)
        x_0 = start.signal_scale * x + start.noise_scale * eps(0)
        axes = tuple(range(1, x.ndim))
        nats = {
            "prior": vdm.prior_term(x, model.schedule.log_snr(jnp.ones(()))),
            "reconstruction": -decode(x, x_0).mean(axes),
            "diffusion": drawn.value.mean(0),
        }
        parts = {name: bits.bits_per_dim(value, dimensions=1) for name, value in nats.items()}
        per_log_snr = bits.bits_per_dim(drawn.value / drawn.fall, dimensions=1)
        return {
            "total": sum(parts.values(), jnp.zeros(len(x))),
            **parts,
            "log_snr": drawn.log_snr.T,
            "bits_per_log_snr": per_log_snr.T,
        }

    what = "upper bound: the variational bound in continuous time"
    return _Kind("vdm", what, measure, True, None, "")


def _ode(
    dequantise: str = "truncated_normal",
    divergence: str = "hutchinson",
    rtol: float = 1e-4,
    atol: float = 1e-4,
    samples: int = 1,
) -> _Kind:
    dequantisers = {
        "uniform": dequantisation.uniform,
        "truncated_normal": dequantisation.truncated_normal,
    }
    if dequantise not in dequantisers:
        raise ValueError(f"dequantise must be {' or '.join(dequantisers)}, not {dequantise!r}")
    if divergence not in ("hutchinson", "exact"):
        raise ValueError(f"divergence must be hutchinson or exact, not {divergence!r}")

    def measure(model: _Model, x: Array, numbers: Array, keys: Array) -> Numbers:
        result = ode.ode_bits_per_dim(
            model.denoise, x, schedule=model.schedule, key=keys,
            dequantise=dequantisers[dequantise](model.schedule), samples=samples,
            solver=ode.OdeSolver(divergence, rtol=rtol, atol=atol),
        )  # fmt: skip
        evaluations = jnp.full(len(x), result.evaluations)
        return {"total": result.bits_per_dim, "evaluations": evaluations}

    what = f"the probability-flow ODE's, with {dequantise} dequantisation ({divergence} divergence)"
    return _Kind("ode", what, measure, False, None, "")


LIKELIHOODS: Mapping[str, Callable[..., _Kind | None]] = {
    "none": lambda: None,
    "vlb": _vlb,
    "vdm": _vdm,
    "ode": _ode,
}


def wanted(config: Any) -> _Kind | None:
    """The kind of `config.evaluate.likelihood`; None for 'none'.

    Raises:
      UserError: an unknown kind, or invalid arguments.
    """
    kind: _Kind | None = from_table(
        config.evaluate.likelihood, LIKELIHOODS, key="evaluate.likelihood"
    )
    return kind


def likelihood(setup: Experiment, learned: ObjectiveState) -> Likelihood:
    """The likelihood of `config.evaluate.likelihood`, computed on all devices.

    Args:
      setup: a resolved config.
      learned: the learned state of the objective, with its schedule.

    Raises:
      UserError: a kind that is not defined for the model or its data.
    """
    config = setup.config
    kind = wanted(config)
    assert kind is not None
    key = f"config.evaluate.likelihood = {config.evaluate.likelihood!r}"
    schedule = _schedule(setup, learned, kind)
    _refuse(setup, kind, schedule, key=key)
    grid, variance = None, kind.variance
    if kind.steps is not None:
        grid = _grid(kind, schedule, key=key)
        variance = variance or ("learned" if setup.diffusion.learned_variance else "beta_tilde")
        if variance == "learned" and not setup.diffusion.learned_variance:
            raise UserError(f"{key}: the model has no learned variance: train with hybrid or vlb")

    diffusion = setup.diffusion._replace(schedule=schedule)

    def numbers_of(params: Any, batch: Mapping[str, Array], numbers: Array) -> Numbers:
        network = apply_network(setup.network, params)
        stream = rng.stream(config.sample.seed, "likelihood")
        x, spatial = setup.space.read(
            batch,
            key=lambda name: rng.stream(config.sample.seed, name),
            indices=numbers,
        )
        condition = setup.conditions.of_batch(batch, spatial)

        def conditional(x_t: Array, t: Times, cond: Any = None) -> Estimates:
            del cond  # always the images' own condition
            return diffusion.denoiser(network)(x_t, t, condition)

        def decode(x: Array, x_0: Array) -> Array:
            start = jnp.zeros(len(x))
            output, scales = predict(
                network, x_0, t=start, cond=condition, schedule=schedule,
                parametrisation=diffusion.parametrisation, time_input=diffusion.time_input,
            )  # fmt: skip
            return categorical.log_prob(output, x_0, x_0=x, scales=scales)

        # Clipping to the data's range never increases an error, but an ODE needs a smooth field.
        denoise: Denoiser = clip_x0(conditional, schedule) if kind.clipped else conditional
        has_levels = diffusion.parametrisation.outputs > 1 and not diffusion.self_conditioned
        model = _Model(denoise, schedule, decode if has_levels else None, grid, variance)
        keys = jax.vmap(lambda i: jax.random.fold_in(stream, i))(numbers)
        return kind.measure(model, x, numbers, keys)

    return Likelihood(kind.name, kind.what, on_all_devices(numbers_of))


def _refuse(setup: Experiment, kind: _Kind, schedule: Schedule, *, key: str) -> None:
    """Raises UserError if this kind of likelihood is not defined for the model or its data."""
    config = setup.config
    if not setup.space.images:
        raise UserError(
            f"{key} counts bits of 256 grey levels and needs images: for arrays use "
            "diffjax.load(workdir).log_likelihood, the density in nats"
        )
    if setup.space.image_shape != setup.space.shape or config.first_stage.workdir:
        raise UserError(f"{key} is not defined for latents: train on pixels")
    if setup.conditions.texts is not None or setup.conditions.embedding is not None:
        raise UserError(
            f"{key} is not supported for a model of texts or image embeddings: use another model"
        )
    if config.diffusion.offset_noise:
        raise UserError(f"{key} does not hold with offset noise, which changes the process")
    if kind.name != "vdm":
        return
    preserving = getattr(schedule, "geometry", None) is variance_preserving
    if not isinstance(setup.objective, VdmObjective) and not preserving:
        raise UserError(
            f"{key} needs a continuous, variance preserving schedule, such as continuous_cosine, "
            f"not {config.diffusion.schedule!r}: use vlb or ode"
        )


def _schedule(setup: Experiment, learned: ObjectiveState, kind: _Kind) -> Schedule:
    """The model's schedule: the learned one for `vdm`, a linear log-SNR with its ends otherwise.

    The grid of `vlb` and the start of `ode` are computed on the host, and a network conditioned on
    log-SNR accepts any schedule between the ends.
    """
    objective = setup.objective
    if not isinstance(objective, VdmObjective):
        return setup.diffusion.schedule
    if kind.name == "vdm":
        return learned_schedules.as_schedule(objective.form, learned.params)
    high, low = (float(objective.form.log_snr(learned.params, jnp.full((), t))) for t in (0.0, 1.0))
    return linear_log_snr(log_snr_min=low, log_snr_max=high)


def restore_learned(setup: Experiment, folder: Path) -> tuple[int, Any, ObjectiveState]:
    """`restore_params`, and the learned state of the objective: (step, params, state).

    Raises:
      UserError: the workdir belongs to another config or has no such checkpoint.
    """
    stored = read(setup, folder)
    what = f"the checkpoint of step {stored.step}"
    params = strategies.to_compute(setup.from_fields(stored.fields, what=what), setup.config)
    learned = parameters.like(
        stored.fields["learned"] or {"params": {}}, setup.state_shapes().objective_state, what=what
    )
    return stored.step, params, learned


def drawn_schedules(
    setup: Experiment, learned: ObjectiveState
) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    """The learned schedule and its initial one as (t, log-SNR); None for a fixed schedule."""
    objective = setup.objective
    if not isinstance(objective, VdmObjective):
        return None
    t = np.linspace(0, 1, 201, dtype=np.float32)
    now = np.asarray(objective.form.log_snr(learned.params, jnp.asarray(t)))
    before = np.asarray(setup.diffusion.schedule.log_snr(t))
    return {f"learned ({objective.form.name})": (t, now), "at the start": (t, before)}


def _grid(kind: _Kind, schedule: Schedule, *, key: str) -> grids.Grid:
    if not schedule.discrete and not kind.steps:
        raise UserError(f"{key} needs a number of steps with a continuous schedule: set steps=1000")
    try:
        return grids.trailing(schedule, kind.steps or int(schedule.T))
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None


def on_all_devices(function: Callable[..., Numbers]) -> Callable[..., dict[str, np.ndarray]]:
    """The function over batches that are padded and sharded over all devices."""
    placement = Placement()
    compiled = jax.jit(function)

    def run(
        params: Any, batch: Mapping[str, np.ndarray], numbers: np.ndarray
    ) -> dict[str, np.ndarray]:
        count = len(numbers)
        rows = np.arange(placement.round_up_batch(count)) % count
        filled = {name: x[rows] for name, x in batch.items()}
        results = compiled(params, *placement.shard_batch((filled, numbers[rows])))
        return {name: processes.on_host(x)[:count] for name, x in results.items()}

    return run
