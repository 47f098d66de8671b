"""Keys of a config, and what their values may be."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """The type and the bounds of a value."""

    kind: type | tuple[type, ...]
    expected: str
    holds: Callable[[Any], bool] = lambda value: True


class Key(NamedTuple):
    """One key of a config."""

    rule: Rule
    default: Any
    meaning: str


# JAX counts and indexes in int32.
LARGEST = 2**31 - 1


def whole(low: int, high: int = LARGEST) -> Rule:
    """A whole number in [low, high]."""
    expected = f"a whole number >= {low}"
    if high != LARGEST:
        expected += f" and <= {high}"
    return Rule(int, expected, lambda value: low <= value <= high)


# jax.random.key wraps larger seeds, or refuses them, according to its settings.
SEED = Rule(int, "a whole number in [0, 2**32)", lambda value: 0 <= value < 2**32)
SHARE = Rule((int, float), "a number in [0, 1)", lambda value: 0 <= value < 1)
LEVEL = Rule((int, float), "a number in [0, 1]", lambda value: 0 <= value <= 1)
CHECKPOINT = Rule(
    str,
    "'latest', 'best' or a step",
    lambda value: (
        value in ("latest", "best")
        or (value.isascii() and value.isdecimal() and int(value[:11]) <= LARGEST)
    ),
)
# A diffusion model also has the average that --mode=ema rebuilds.
MODEL_CHECKPOINT = Rule(
    str,
    "'latest', 'best', 'ema' or a step",
    lambda value: value == "ema" or CHECKPOINT.holds(value),
)
# A GAN has no loss that its best checkpoint could be known by.
STEP_CHECKPOINT = Rule(
    str, "'latest' or a step", lambda value: value != "best" and CHECKPOINT.holds(value)
)
TEXT = Rule(str, "a string")
SPEC = Rule(str, "a name, name(argument=value) or 'module:Name(argument=value)'")
SPECS = Rule(
    tuple,
    "a tuple of names or name(argument=value), such as ('flip', 'crop(padding=4)')",
    lambda v: all(isinstance(x, str) for x in v),
)
NAME = Rule(
    str,
    "one of fashion_mnist, digits, tfds:<name>, folder:<path>, or module:Name for your own",
    lambda value: value != "",
)
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
# Beyond n = 24, sin(2^n pi x) of a float32 x in [-1, 1] has no significant digits.
EXPONENTS = Rule(
    tuple,
    "a tuple of whole numbers in [0, 24]",
    lambda v: all(type(x) is int and 0 <= x <= 24 for x in v),
)
# Bounds for values that are allocated before any other check could reject them.
LARGEST_SIDE = 8192


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, tuple) else (value,)
    if not all(type(side) is int and 0 <= side <= LARGEST_SIDE for side in sides):
        return False
    return len(sides) == 1 or (len(sides) == 2 and min(sides) > 0)


IMAGE_SIZE = Rule(
    object,
    f"a whole number in [0, {LARGEST_SIDE}], or two in [1, {LARGEST_SIDE}]: (height, width)",
    _is_size,
)
STEPS = whole(1, 10**6)
CHANNELS = Rule(int, "0 (as stored), 1 or 3", lambda value: value in (0, 1, 3))
PARAMETERS = Rule(str, "'averaged' or 'raw'", lambda value: value in ("averaged", "raw"))
ON_BROKEN = Rule(str, "'stop' or 'skip'", lambda value: value in ("stop", "skip"))
SAMPLE_FORMATS = ("png", "grid", "npz")


def _are_formats(value: str) -> bool:
    names = [name.strip() for name in value.split(",")]
    return len(set(names)) == len(names) and set(names) <= set(SAMPLE_FORMATS)


FORMATS = Rule(str, "png, grid or npz, or several of them joined by commas", _are_formats)
PREDICTION = Rule(
    str,
    "'epsilon', 'v_prediction' or ''",
    lambda value: value in ("", "epsilon", "v_prediction"),
)
LONG_PROMPTS = Rule(
    str,
    "'cut', 'refuse' or 'chunks'",
    lambda value: value in ("cut", "refuse", "chunks"),
)
PROMPT_WEIGHTS = Rule(
    str,
    "'none', 'scale' or 'scale_keep_mean'",
    lambda value: value in ("none", "scale", "scale_keep_mean"),
)
ON_NOT_FINITE = Rule(str, "'stop' or 'skip'", lambda value: value in ("stop", "skip"))


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


TIME_INPUT = Rule(
    str,
    "'auto', 'scaled', 'unit', 'log_sigma' or 'step'",
    lambda value: value in ("auto", "scaled", "unit", "log_sigma", "step"),
)
STAGES = Rule(
    tuple,
    "a tuple of two workdirs or more, the base model's first",
    lambda v: len(v) >= 2 and all(isinstance(x, str) and x for x in v),
)
TEXTS = Rule(tuple, "a tuple of strings", lambda v: all(isinstance(x, str) for x in v))
LEVELS = Rule(
    tuple,
    "a tuple of numbers in [0, 1]",
    lambda v: all(type(x) in (int, float) and LEVEL.holds(x) for x in v),
)


def per_stage(rule: Rule) -> Rule:
    """A value of each stage of a cascade."""

    def holds(value: Any) -> bool:
        of_kind = isinstance(value, rule.kind) and not isinstance(value, bool)
        return value is None or (of_kind and rule.holds(value))

    return Rule(
        tuple,
        f"() or one for each stage in a tuple: {rule.expected}, or None for that of its run",
        lambda v: all(map(holds, v)),
    )


OVERRIDES = Rule(tuple, "a tuple of (regular expression, axis or None) pairs", _overrides)
