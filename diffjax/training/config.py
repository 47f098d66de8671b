"""What a config must hold, checked before anything is loaded or written."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from diffjax.errors import UserError


class Rule(NamedTuple):
    """A key's type and what its values must satisfy."""

    kind: type | tuple[type, ...]
    expected: str
    holds: Callable[[Any], bool] = lambda value: True


# JAX counts and indexes in int32.
LARGEST = 2**31 - 1


def _whole(low: int, high: int = LARGEST) -> Rule:
    expected = f"a whole number >= {low}"
    if high != LARGEST:
        expected += f" and <= {high}"
    return Rule(int, expected, lambda value: low <= value <= high)


# jax.random.key wraps larger seeds, or refuses them, according to its settings.
SEED = Rule(int, "a whole number in [0, 2**32)", lambda value: 0 <= value < 2**32)


def _share() -> Rule:
    return Rule((int, float), "a number in [0, 1)", lambda value: 0 <= value < 1)


CHECKPOINT = Rule(
    str,
    "'latest', 'best' or a step",
    lambda value: (
        value in ("latest", "best")
        or (value.isascii() and value.isdecimal() and int(value[:11]) <= LARGEST)
    ),
)
# A diffusion model's average can be rebuilt, too.
MODEL_CHECKPOINT = Rule(
    str,
    "'latest', 'best', 'ema' or a step",
    lambda value: value == "ema" or CHECKPOINT.holds(value),
)
TEXT = Rule(str, "a text")
SWITCH = Rule(bool, "True or False")
NUMBER = Rule((int, float), "a number that is finite", math.isfinite)
POSITIVE = Rule((int, float), "a number > 0 that is finite", lambda v: v > 0 and math.isfinite(v))
NOT_NEGATIVE = Rule(
    (int, float), "a number >= 0 that is finite", lambda v: v >= 0 and math.isfinite(v)
)
WHOLES = Rule(tuple, "a tuple of whole numbers", lambda v: all(type(x) is int for x in v))
NUMBERS = Rule(
    tuple,
    "a tuple of numbers",
    lambda v: all(type(x) in (int, float) and abs(x) < 1e30 for x in v),
)
SIZES = Rule(
    tuple,
    "a tuple of at least one whole number >= 1",
    lambda v: len(v) > 0 and all(type(x) is int and 1 <= x <= LARGEST for x in v),
)
# 2^n pi of a float32 in [-1, 1] has no digits left long before.
EXPONENTS = Rule(
    tuple,
    "a tuple of whole numbers in [0, 24]",
    lambda v: all(type(x) is int and 0 <= x <= 24 for x in v),
)
# The memory of an image or of a table of steps is taken before anything tells that it is too much.
IMAGE_SIZE = _whole(0, 8192)
STEPS = _whole(1, 10**6)


def _overrides(value: Any) -> bool:
    def holds(pair: Any) -> bool:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str):
            return False
        try:
            re.compile(pair[0])
        except re.error:
            return False
        return pair[1] is None or (type(pair[1]) is int and pair[1] >= 0)

    return all(map(holds, value))


SHARED: dict[str, Rule] = {
    "seed": SEED,
    "data.name": TEXT,
    "data.dir": TEXT,
    "data.image_size": IMAGE_SIZE,
    "data.channels": Rule(int, "0 (as stored), 1 or 3", lambda value: value in (0, 1, 3)),
    "data.flip": SWITCH,
    "data.memory_limit_mb": _whole(0),
    "train.steps": _whole(1),
    "train.batch_size": _whole(1),
    "train.optimizer": TEXT,
    "train.learning_rate": POSITIVE,
    "train.schedule": TEXT,
    "train.warmup_steps": _whole(0),
    "train.grad_clip": NOT_NEGATIVE,
    "train.on_not_finite": Rule(str, "'stop' or 'skip'", lambda value: value in ("stop", "skip")),
    "train.ema_decay": _share(),
    "train.log_every": _whole(1),
    "train.eval_every": _whole(1),
    "train.checkpoint_every": _whole(1),
    "train.sample_every": _whole(1),
    "parallel.strategy": TEXT,
    "parallel.fsdp": _whole(0),
    "parallel.min_size": _whole(1),
    "parallel.overrides": Rule(
        tuple, "a tuple of (regular expression, axis or None) pairs", _overrides
    ),
    "parallel.devices": _whole(0),
    "parallel.compile": SWITCH,
    "sample.count": _whole(1),
    "sample.batch_size": _whole(1),
    "sample.checkpoint": CHECKPOINT,
    "evaluate.num_samples": _whole(2),
}
# A config with a section `diffusion`.
DIFFUSION: dict[str, Rule] = SHARED | {
    "first_stage.workdir": TEXT,
    "first_stage.checkpoint": CHECKPOINT,
    "first_stage.tile": _whole(0),
    "condition.text": TEXT,
    "condition.map": TEXT,
    "model.channels": _whole(1),
    "model.multipliers": SIZES,
    "model.blocks": _whole(1),
    "model.attention_resolutions": WHOLES,
    "model.transformer_depth": _whole(1),
    "model.head_channels": _whole(1),
    "model.dropout": _share(),
    "model.class_conditional": SWITCH,
    "model.fourier": EXPONENTS,
    "model.patch": _whole(1),
    "model.block": TEXT,
    "model.scale_shift": SWITCH,
    "model.attention": TEXT,
    "model.dtype": TEXT,
    "model.kernels": TEXT,
    "model.remat": TEXT,
    "diffusion.objective": TEXT,
    "diffusion.schedule": TEXT,
    "diffusion.zero_terminal_snr": SWITCH,
    "diffusion.log_snr_shift": NUMBER,
    "diffusion.parametrisation": TEXT,
    "diffusion.loss_target": TEXT,
    "diffusion.weighting": TEXT,
    "diffusion.time_sampling": TEXT,
    "diffusion.learned_weighting": SWITCH,
    "diffusion.self_conditioning": _share(),
    "diffusion.offset_noise": NOT_NEGATIVE,
    "diffusion.condition_dropout": _share(),
    "train.accumulate": _whole(1),
    "train.ema": TEXT,
    "train.ema_snapshots": NUMBERS,
    "sample.sampler": TEXT,
    "sample.grid": TEXT,
    "sample.steps": STEPS,
    "sample.guidance": TEXT,
    "sample.threshold": TEXT,
    "sample.labels": WHOLES,
    "sample.prompt": TEXT,
    "sample.negative_prompt": TEXT,
    "sample.maps": TEXT,
    "sample.seed": SEED,
    "sample.checkpoint": MODEL_CHECKPOINT,
    "edit.task": TEXT,
    "edit.images": TEXT,
    "edit.mask": TEXT,
    "edit.labels": WHOLES,
    "edit.prompt": TEXT,
    "edit.count": _whole(1),
    "evaluate.scales": NUMBERS,
    "evaluate.likelihood": TEXT,
    "evaluate.images": _whole(0),
    "ema.sigma_rel": POSITIVE,
    "ema.step": _whole(0),
}
# A config with a section `autoencoder`.
AUTOENCODER: dict[str, Rule] = SHARED | {
    "autoencoder.latent_channels": _whole(1),
    "autoencoder.channels": _whole(1),
    "autoencoder.multipliers": SIZES,
    "autoencoder.blocks": _whole(1),
    "autoencoder.patch": _whole(1),
    "autoencoder.regulariser": TEXT,
    "autoencoder.dtype": TEXT,
    "autoencoder.kernels": TEXT,
    "loss.reconstruction": TEXT,
    "loss.perceptual": TEXT,
    "loss.perceptual_weight": NOT_NEGATIVE,
    "loss.adversarial": TEXT,
    "loss.adversarial_weight": NOT_NEGATIVE,
    "loss.adversarial_start": _whole(0),
}


def is_autoencoder(config: Any) -> bool:
    """Whether a config trains a first stage, rather than a diffusion model."""
    return "autoencoder" in config


def check(config: Any) -> None:
    """Every key is there, none is unknown, and each value is of its kind.

    Raises:
      UserError: names the first key that is not so.
    """
    found = flatten(config)
    rules = AUTOENCODER if is_autoencoder(config) else DIFFUSION
    for key in found:
        if key not in rules:
            raise UserError(f"config.{key} is not a key of diffjax's configs: remove it")
    for key, rule in rules.items():
        if key not in found:
            raise UserError(f"config.{key} is missing: expected {rule.expected}")
        value = found[key]
        wrong_kind = not isinstance(value, rule.kind) or (
            isinstance(value, bool) and rule.kind is not bool
        )
        # A comparison with NaN is false, so a rule with bounds refuses it.
        if wrong_kind or not rule.holds(value) or value != value:
            raise UserError(f"config.{key} = {value!r}: expected {rule.expected}")


def from_json(tree: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(tree, dict):
        return {key: from_json(value) for key, value in tree.items()}
    return tuple(map(from_json, tree)) if isinstance(tree, list) else tree


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
