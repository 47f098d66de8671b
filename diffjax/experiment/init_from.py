"""`config.train.init_from`: a new run from the weights of another.

What has the name and the shape of an array of the new network is taken; the rest stays as it is
initialised, and is listed. Step, data order and learning-rate schedule begin again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from diffjax.checkpoints import transfer
from diffjax.checkpoints.parameters import Parameters
from diffjax.errors import UserError
from diffjax.experiment import rules, run, schema
from diffjax.files import expanded

# Fields of a stored state -> those of the new one that start from it, besides the optimizer's.
_AVERAGED = {"ema_params": ("params", "ema_params", "profiles")}
_RAW = {"params": ("params",), "ema_params": ("ema_params", "profiles")}
_OTHERS = ("learned", "codebook", "scaling")  # what an objective or a first stage keeps
_OPTIMIZERS = ("opt_state", "learned_opt_state")


class Start(NamedTuple):
    """Where a new run starts from.

    Attributes:
      what: the run and the step, for messages.
      fields: arrays for fields of the new state.
    """

    what: str
    fields: dict[str, Any]


def read(config: Any, state: Any) -> Start | None:
    """Reads and compares what config.train.init_from names; None if it is empty.

    Args:
      config: of the new run.
      state: the new run's stored state, with jax.ShapeDtypeStruct for arrays.

    Raises:
      UserError: no such run or checkpoint, one of another kind of model, nothing that fits, or with
        config.train.init_strict something that does not.
    """
    c = config.train
    if not c.init_from:
        return None
    key = f"config.train.init_from = {c.init_from!r}"
    folder, checkpoint = split(c.init_from)
    theirs = run.read_config(folder)
    if theirs is None:
        raise UserError(f"{key}: {folder} holds no run: give the workdir of one")
    if schema.kind(theirs) != schema.kind(config):
        raise UserError(
            f"{key} is a run of {schema.kind(theirs)}, and this config trains {schema.kind(config)}"
        )
    taken = _AVERAGED if c.init_parameters == "averaged" else _RAW
    wanted = (*taken, *_OTHERS, *(_OPTIMIZERS if c.init_optimizer else ()), "discriminator")
    found = _stored(folder, checkpoint, theirs, [f for f in wanted if f in _known(state, taken)])
    if found is None:
        raise UserError(f"{key}: {folder} has no checkpoint: train it first")
    if not any(found.fields.get(name) for name, targets in taken.items() if "params" in targets):
        raise UserError(
            f"{key}: {folder} has no {c.init_parameters} parameters, as an exported model, which "
            "has averaged ones alone: set config.train.init_parameters to the others"
        )
    fields: dict[str, Any] = {}
    for source, targets in taken.items():
        for target in targets:
            if target in state._fields:
                fields[target] = found.fields.get(source, {})
    for name in (*_OTHERS, *_OPTIMIZERS, "discriminator"):
        if found.fields.get(name) and name in state._fields:
            stored = found.fields[name]
            fields[name] = transfer.without_counts(stored) if name in _OPTIMIZERS else stored
    _, compared = transfer.fit(state.params, fields["params"])
    if not compared.taken:
        raise UserError(f"{key}: nothing in it fits this config's network: {compared}")
    if c.init_strict and not compared.whole:
        raise UserError(
            f"{key}, config.train.init_strict = True: {compared}: change the config, or set it to "
            "False to take what fits"
        )
    return Start(f"step {found.step} of {folder}, {c.init_parameters} parameters", fields)


def start(state: Any, begin: Start, *, log: Callable[[str], None]) -> Any:
    """A new run's stored state with what fits, which is listed in the log."""
    changed = {}
    for name, stored in begin.fields.items():
        now = getattr(state, name)
        if name == "profiles":  # one average for each width
            changed[name] = tuple(transfer.fit(one, stored)[0] for one in now)
            continue
        changed[name], compared = transfer.fit(now, stored)
        if name == "params":
            log(f"starting from {begin.what}: {compared}")
        elif name in ("opt_state", "discriminator") and not _only_schedules(compared):
            log(f"{name}: {compared}")
    return state._replace(**changed)


def _only_schedules(compared: transfer.Fit) -> bool:
    """Whether all fits but the steps that schedules count, which begin again."""
    begun_again = all(name.endswith(".count") for name in compared.new)
    return begun_again and not compared.reshaped and not compared.unused


def split(text: str) -> tuple[Path, str]:
    """`<workdir>[@checkpoint]` as (folder, checkpoint), "latest" by default.

    >>> split("runs/digits@400")
    (PosixPath('runs/digits'), '400')
    """
    folder, at, checkpoint = text.rpartition("@")
    if at and rules.MODEL_CHECKPOINT.holds(checkpoint) and not expanded(text).exists():
        return expanded(folder), checkpoint
    return expanded(text), "latest"


def _known(state: Any, taken: dict[str, Any]) -> set[str]:
    return set(state._fields) | set(taken)


def _stored(folder: Path, checkpoint: str, theirs: Any, fields: list[str]) -> Parameters | None:
    if checkpoint != "ema":
        return run.read_model(folder, wanted=checkpoint, fields=fields)

    from diffjax.experiment.load import about_of
    from diffjax.experiment.model import resolve_model

    def shapes() -> Any:
        return resolve_model(theirs, about_of(folder, theirs)).parameter_shapes()

    return run.read_model(folder, wanted=checkpoint, fields=fields, shapes=shapes)
