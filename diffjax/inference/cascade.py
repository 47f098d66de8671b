"""Cascades: a base model and models of super-resolution after it.

    import diffjax
    cascade = diffjax.cascade(["runs/base", "runs/upsampler"], settings=[{}, {"steps": 20}])
    images = cascade.sample(["a red apple"], seed=1)

Ho et al. 2021 ("Cascaded diffusion models", section 4): with x^(1) of the lowest resolution and a
class or text c,

    x^(1) ~ p_1(x | c),    x^(k) ~ p_k(x | c, z^(k-1)),    k = 2, ..., K,

where z^(k-1) is x^(k-1), resized to the size of x^(k) and noised at the stage's augmentation level;
see `conditioning.super_resolution`. The samples are x^(K).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import arguments, rng
from diffjax.errors import UserError
from diffjax.inference.generator import Generated, Generator
from diffjax.inference.inputs import choice_of, seed_of
from diffjax.inference.pipeline import Pipeline
from diffjax.inference.sample_conditions import OPEN, Choice, SampleConditions


class CascadeGenerator:
    """Sample i, for any i, as a function of (the parameters of all stages, seed, i).

    As of a `Generator`, the first eight samples of a hundred equal the eight samples of eight. The
    first stage draws what it would draw alone with the same seed.
    """

    def __init__(self, generators: Sequence[Generator], *, seed: int = 0) -> None:
        """Takes generators that fit to each other, as those of a `Cascade` do.

        Args:
          generators: of the stages, each at the size that it draws.
          seed: of the noise of all stages.
        """
        self.generators, self._seed = tuple(generators), seed
        self._choice = OPEN

    def of(self, choice: Choice = OPEN, *, seed: int | None = None) -> CascadeGenerator:
        """A generator with other classes and prompts, and the same compiled programs.

        Args:
          choice: see `SampleConditions.of`; without maps.
          seed: of the noise; None for the same.

        Raises:
          UserError: a class or prompts that the first stage does not take.
        """
        other = copy.copy(self)
        other._choice = choice
        other._seed = self._seed if seed is None else seed
        first, *later = self.generators
        other.generators = (first.of(choice, seed=other._seed), *later)
        return other

    def at_level(self, level: float) -> CascadeGenerator:
        """A generator with another augmentation level of the last stage, and the same programs.

        Raises:
          UserError: a level other than 0 where the last stage's maps are without noise.
        """
        other = copy.copy(self)
        *earlier, last = self.generators
        other.generators = (*earlier, last.of(level=level))
        return other

    @property
    def conditions(self) -> SampleConditions:
        """The labels and prompts of the samples."""
        return self.generators[0].conditions

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C) of the samples."""
        return self.generators[-1].image_shape

    @property
    def weak_params(self) -> tuple[Any, ...]:
        """The parameters of each stage's weaker model, or None."""
        return tuple(generator.weak_params for generator in self.generators)

    def __call__(
        self, params: Sequence[Any], *, start: int, count: int, batch_size: int | None = None
    ) -> Generated:
        """Samples start .. start + count - 1, with the images of all stages in `stages`.

        Args:
          params: the parameters of each stage.
          start: index of the first sample.
          count: number of samples.
          batch_size: of every stage; see `Generator`.

        Raises:
          UserError: a sample is not finite.
        """
        how: dict[str, Any] = {"start": start, "count": count, "batch_size": batch_size}
        drawn = [self.generators[0](params[0], **how).images]
        for stage, generator in enumerate(self.generators[1:], start=1):
            choice = self._given(generator)._replace(
                # Sample number i is given image i modulo their number.
                low_resolution=np.roll(drawn[-1], start % count, axis=0)
            )
            of_samples = generator.of(choice, seed=stage_seed(self._seed, stage))
            drawn.append(of_samples(params[stage], **how).images)
        return Generated(drawn[-1], None, tuple(drawn))

    def _given(self, generator: Generator) -> Choice:
        """What of the labels and prompts a later stage takes."""
        has = generator.conditions
        labels = self._choice.labels if has.has_labels else ()
        if has.has_labels and not self.conditions.has_labels:
            labels = (-1,)  # the first stage's guidance composes several classes
        return Choice(labels, self._choice.prompts if has.has_texts else ())


def stage_seed(seed: int, stage: int) -> int:
    """The seed of a stage, counted from 0: the cascade's own, then seeds that follow from it.

    So the noise of a stage is independent of that of the others, and does not depend on them.
    """
    if not stage:
        return seed
    return int(jax.random.bits(rng.stream(seed, "cascade_stage", stage), dtype=jnp.uint32))


class _Stage(NamedTuple):
    name: str
    pipeline: Pipeline
    generator: Generator

    @property
    def conditions(self) -> Any:
        return self.generator.conditions.model


class Cascade:
    """Trained models, each of which enlarges what the one before it draws.

    Attributes:
      stages: the models.
    """

    def __init__(
        self,
        stages: Sequence[Pipeline],
        *,
        settings: Sequence[Mapping[str, Any]] = (),
        names: Sequence[str] = (),
        negative_prompt: str = "",
    ) -> None:
        """Checks that the stages fit; nothing is compiled yet.

        Args:
          stages: a base model, then models of `super_resolution`, each of the size of the one
            before it times its factor. One that was trained on windows takes any size.
          settings: of each stage, which override its run's; see `Pipeline.sample`. () for none.
          names: what the stages are called in messages.
          negative_prompt: for the stages that take a text and whose guidance uses it.

        Raises:
          UserError: stages that do not fit, or an invalid setting.
        """
        if len(stages) < 2:
            raise UserError(f"a cascade has two stages or more, and {len(stages)} was given")
        names = tuple(names) or tuple(f"stage {k}" for k in range(1, len(stages) + 1))
        settings = tuple(settings) or ({},) * len(stages)
        if len(settings) != len(stages):
            raise UserError(f"{len(settings)} settings for {len(stages)} stages: expected as many")
        made = [
            _stage(name, pipeline, how, negative_prompt)
            for name, pipeline, how in zip(names, stages, settings, strict=True)
        ]
        if negative_prompt and not any(_uses_negative_prompt(s.generator) for s in made):
            raise UserError(
                f"negative_prompt = {negative_prompt!r}, but no stage takes a text and has a "
                "guidance that uses it: leave it empty, or set for example "
                "guidance='classifier_free(scale=3.0)'"
            )
        _check_base(made[0])
        generators = [made[0].generator]
        for before, stage in itertools.pairwise(made):
            _check_condition(stage, made[0])
            generators.append(_sized(stage, generators[-1].image_shape, before=before.name))
        self.stages = tuple(stages)
        self.params = tuple(pipeline.params for pipeline in stages)
        self._generator = CascadeGenerator(generators)

    @property
    def generator(self) -> CascadeGenerator:
        """The samples as a function of the parameters."""
        return self._generator

    def sample(
        self,
        prompts: Sequence[str] = (),
        *,
        labels: Sequence[int] = (),
        count: int | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """Draws samples of the last stage: uint8 (count, H, W, C).

        Args:
          prompts: texts, for stages with text; repeated cyclically if `count` is larger.
          labels: classes, for class-conditional stages; likewise.
          count: number of samples; by default the length of the longest of these.
          seed: of the noise of all stages.

        Raises:
          UserError: a condition that the first stage does not take.
        """
        return self.sample_stages(prompts, labels=labels, count=count, seed=seed)[-1]

    def sample_stages(
        self,
        prompts: Sequence[str] = (),
        *,
        labels: Sequence[int] = (),
        count: int | None = None,
        seed: int = 0,
    ) -> tuple[np.ndarray, ...]:
        """As `sample`, the images of every stage: uint8 (count, h, w, C) of each."""
        choice = choice_of(prompts, labels, None)
        longest = max(1, len(choice.prompts), len(choice.labels))
        number = longest if count is None else arguments.whole("count", count, least=1)
        generator = self._generator.of(choice, seed=seed_of(seed))
        return generator(self.params, start=0, count=number).stages


def _stage(
    name: str, pipeline: Pipeline, settings: Mapping[str, Any], negative_prompt: str
) -> _Stage:
    """A stage with its settings, and the negative prompt where it has an effect."""
    try:
        generator = pipeline.generator(**settings)
        if negative_prompt and _uses_negative_prompt(generator):
            generator = pipeline.generator(**settings, negative_prompt=negative_prompt)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    if not pipeline.space.images:
        raise UserError(f"{name} draws arrays of {pipeline.space.shape}: cascades are of images")
    return _Stage(name, pipeline, generator)


def _uses_negative_prompt(generator: Generator) -> bool:
    return generator.conditions.has_texts and generator.sampling.uses_null


def _check_base(base: _Stage) -> None:
    make = base.conditions.make_map
    if hasattr(make, "enlarged"):
        raise UserError(
            f"{base.name} enlarges images by {make.factor}, and nothing is drawn before it: put a "
            "base model first, one without config.condition.map"
        )
    if make is not None:
        raise UserError(
            f"{base.name} is conditioned on a map, which a cascade has none of: use a base model "
            "without config.condition.map"
        )


def _check_condition(stage: _Stage, base: _Stage) -> None:
    """Checks that a stage takes no class or text that the base does not have."""
    ours, theirs = stage.conditions, base.conditions
    names, base_names = stage.pipeline.about.class_names, base.pipeline.about.class_names
    for what, takes, base_takes in (
        ("a class", ours.num_classes, theirs.num_classes),
        ("a text", ours.texts, theirs.texts),
    ):
        if takes and not base_takes:
            raise UserError(
                f"{stage.name} takes {what} and {base.name} does not, so its images would be of "
                "another: use stages of the same condition, or upsamplers without it"
            )
    if ours.num_classes and names != base_names:
        raise UserError(
            f"{stage.name} has the classes {_some(names)}, and {base.name} {_some(base_names)}: "
            "use stages of the same classes"
        )
    if ours.texts and ours.texts.identity != theirs.texts.identity:
        raise UserError(
            f"{stage.name} has another text encoder or vocabulary than {base.name}: use stages "
            "trained with the same config.condition.text, on the same captions"
        )


def _sized(stage: _Stage, below: tuple[int, ...], *, before: str) -> Generator:
    """The generator of a later stage at the size that it makes of images of the shape `below`."""
    make, shape = stage.conditions.make_map, stage.pipeline.space.image_shape
    if not hasattr(make, "enlarged"):
        raise UserError(
            f"{stage.name} is not conditioned on low-resolution images: train it with "
            "config.condition.map = 'super_resolution(factor=4)'"
        )
    if stage.pipeline.space.shape != shape:
        raise UserError(f"{stage.name} is a model of latents: use an upsampler of pixels")
    if shape[-1] != below[-1]:
        raise UserError(
            f"{stage.name} takes images of {shape[-1]} channels, and {before} draws {below[-1]}: "
            "use stages of the same config.data.channels"
        )
    height, width = (make.factor * side for side in below[:2])
    if (height, width) == shape[:2]:
        return stage.generator
    if stage.pipeline.trained_shape == stage.pipeline.space.shape:  # not on windows
        low = "x".join(str(side // make.factor) for side in shape[:2])
        raise UserError(
            f"{stage.name} makes {shape[0]}x{shape[1]} of {low} (factor {make.factor}), and "
            f"{before} draws {below[0]}x{below[1]}: use stages of fitting sizes, or an upsampler "
            "trained on windows (config.data.augment), which takes any size"
        )
    generator = stage.generator.at_size((height, width))
    _check_network(stage, generator)
    return generator


def _check_network(stage: _Stage, generator: Generator) -> None:
    """Traces a stage's network at a size that it was not trained on."""
    shape = generator.image_shape
    kind = jnp.int32 if stage.pipeline.diffusion.schedule.discrete else jnp.float32
    x, t = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), kind)
    try:
        jax.eval_shape(
            lambda params, weak, x, t, cond: generator.guided(params, weak)(x, t, cond),
            stage.pipeline.params, generator.weak_params, x, t, stage.conditions.example(shape),
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{stage.name} at {shape[0]}x{shape[1]}: {first}") from error


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"({shown}; {len(names)} in all)"
