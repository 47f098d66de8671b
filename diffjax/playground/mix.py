"""The panel "mix": pictures between two seeds, along a walk of several, or between conditions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffjax.errors import UserError
from diffjax.inference.mixing import sample_between_conditions, sample_between_seeds
from diffjax.inference.pipeline import Pipeline
from diffjax.playground.draw import condition_of
from diffjax.playground.pictures import packed
from diffjax.playground.runs import Run
from diffjax.playground.values import SETTINGS, Values, how_of
from diffjax.playground.worker import Report

NAMES = (
    "run", "label", "prompt", "label_to", "prompt_to", "seed", "seed_to", "seeds", "between",
    "count", *SETTINGS,
)  # fmt: skip
BETWEEN = ("seeds", "walk", "conditions")
MOST_SEEDS = 8
MOST = 64


class Mixture(NamedTuple):
    """One picture of a mixture.

    Attributes:
      ends: two seeds, or two conditions.
      weight: of the second.
    """

    ends: tuple[Any, Any]
    weight: float


class Mix(NamedTuple):
    """What a view describes.

    Attributes:
      between: "seeds", also of a walk, or "conditions".
      mixtures: of each picture in turn.
      given: arguments that all pictures share.
    """

    between: str
    mixtures: tuple[Mixture, ...]
    given: dict[str, Any]

    @property
    def function(self) -> Callable[..., np.ndarray]:
        """What draws a picture of it."""
        return sample_between_seeds if self.between == "seeds" else sample_between_conditions


def mix_of(values: Values, model: Pipeline) -> Mix:
    """What the settings of a view describe.

    Raises:
      UserError: a wrong value, or more pictures than `MOST`.
    """
    values.known(NAMES)
    between = values.one_of("between", BETWEEN, "seeds")
    count = values.whole("count", 7, least=2, most=16)
    condition, how = condition_of(values, model), how_of(values)
    # A deterministic sampler unless another is chosen: its ends are the seeds' own pictures.
    if between == "conditions" or not model.generator().sampling.jumps:
        how = {"sampler": "ddim", **how}
    if between == "conditions":
        if not condition:
            raise UserError("this run has neither classes nor texts: mix two seeds instead")
        other = condition_of(values, model, label="label_to", prompt="prompt_to")
        return Mix("conditions", _between(condition, other, count), {"seed": values.seed(), **how})
    given = {**condition, **how}
    if between == "seeds":
        first, second = values.seed(), values.seed("seed_to")
        return Mix("seeds", _between(first, second, count), given)
    seeds = values.wholes("seeds", (0, 1, 2), most=2**32 - 1)
    if not 2 <= len(seeds) <= MOST_SEEDS:
        raise UserError(f"seeds has {len(seeds)} numbers: a walk needs 2 to {MOST_SEEDS}")
    # Back to the first seed, so that it can be shown again and again; each seed comes once.
    stages = zip(seeds, (*seeds[1:], seeds[0]), strict=True)
    mixtures = tuple(m for a, b in stages for m in _between(a, b, count + 1)[:-1])
    if len(mixtures) > MOST:
        raise UserError(f"a walk of {len(mixtures)} pictures: expected at most {MOST}")
    return Mix("seeds", mixtures, given)


def _between(start: Any, end: Any, count: int) -> tuple[Mixture, ...]:
    return tuple(Mixture((start, end), round(i / (count - 1), 4)) for i in range(count))


def run(values: Values, of: Run, report: Report) -> None:
    """Draws the pictures one after the other."""
    stepwise = of.stepwise()
    mix = mix_of(values, of.model)
    report({"mixtures": [{"ends": _shown(m), "weight": m.weight} for m in mix.mixtures]})
    for number, mixture in enumerate(mix.mixtures):
        with stepwise.running(on_evaluation=lambda: report({})) as model:
            ends = (mixture.ends,) if mix.between == "seeds" else mixture.ends
            images = mix.function(model, *ends, weight=mixture.weight, **mix.given)
        report({"item": number, "image": packed(images[0])})


def _shown(mixture: Mixture) -> list[str]:
    return [
        str(end) if not isinstance(end, dict) else str(next(iter(end.values()))[0])
        for end in mixture.ends
    ]
