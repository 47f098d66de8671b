"""`config.cascade`: models that were trained one by one, as one that samples."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffjax import data
from diffjax.conditioning.conditions import Conditions
from diffjax.data.info import DataInfo
from diffjax.errors import UserError
from diffjax.experiment import prompts
from diffjax.experiment.dataset import load_held_out, load_train
from diffjax.experiment.keys import PER_STAGE
from diffjax.experiment.load import load_cascade
from diffjax.experiment.model import held_out_examples
from diffjax.experiment.run import read_config
from diffjax.files import expanded
from diffjax.inference.cascade import CascadeGenerator
from diffjax.inference.sample_conditions import Choice


class CascadeData(NamedTuple):
    """What an evaluation compares: samples, and the images that the last stage was trained on."""

    config: Any
    generator: CascadeGenerator
    source: data.ImageSource
    last: Any

    def load_held_out(self) -> data.ImageSource | None:
        """The held-out images, or None."""
        return load_held_out(self.last, self.source)


class CascadeModel(NamedTuple):
    """A cascade with the data of its last stage.

    Attributes:
      config: with the settings and the data set that follow from the stages' runs.
      last: the stored config of the last stage's run.
      about: the last stage's data, with the shape of the cascade's samples.
      conditions: of the first stage.
      generator: see `inference.cascade.CascadeGenerator`.
      params: of each stage.
      step: number of updates of each stage, as "200-100".
      truth: uint8 (n, H, W, C), the held-out images whose captions are the prompts; or None.
    """

    config: Any
    last: Any
    about: DataInfo
    conditions: Conditions
    generator: CascadeGenerator
    params: tuple[Any, ...]
    step: str
    truth: np.ndarray | None

    def at_level(self, level: float) -> CascadeModel:
        """A copy with another augmentation level of the last stage.

        Raises:
          UserError: the last stage's maps are without noise.
        """
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            earlier = tuple(config.cascade.augmentation_level[:-1])
            config.cascade.augmentation_level = (*earlier, level)
        return self._replace(config=config, generator=self.generator.at_level(level))

    def load_data(self) -> CascadeData:
        """The cascade's samples next to the data of its last stage.

        Raises:
          UserError: they are of another size than the samples.
        """
        source = load_train(self.last)
        if tuple(source.image_shape) != self.about.shape:
            raise UserError(
                f"the cascade draws images of {self.about.shape}, and its last stage's data are "
                f"{tuple(source.image_shape)}: distances need images of one size"
            )
        return CascadeData(self.config, self.generator, source, self.last)


def resolve(config: Any) -> CascadeModel:
    """Loads the stages' models, checks that they fit, and reads the prompts; nothing is drawn.

    Args:
      config: complete and checked.

    Raises:
      UserError: a stage without a run, stages that do not fit, or an invalid setting.
    """
    c = config.cascade
    settings = _settings(config)
    loaded = load_cascade(
        [str(expanded(stage)) for stage in c.stages],
        settings=settings,
        negative_prompt=config.sample.negative_prompt,
    )
    runs = [read_config(expanded(stage)) for stage in c.stages]
    generator = loaded.generator
    conditions = generator.conditions.model
    texts, truth = prompts.read(config.sample.prompt, key="sample.prompt"), None
    labels = tuple(config.sample.labels)
    if conditions.texts and not texts:
        last = runs[-1].copy_and_resolve_references()
        last.condition.text = runs[0].condition.text
        last.sample.count = config.sample.count
        last.evaluate.num_samples = config.evaluate.num_samples
        examples = held_out_examples(last, load_held_out(last) or load_train(last))
        texts = examples.captions
        if conditions.num_classes and not labels:
            labels = tuple(examples.labels.tolist())
        if examples.images.shape[1:] == generator.image_shape:
            truth = examples.images
    if texts and not conditions.texts:
        raise UserError(
            f"config.sample.prompt = {config.sample.prompt!r} but the first stage takes no text: "
            "leave it empty"
        )
    choice = Choice(labels=labels, prompts=tuple(texts))
    about = loaded.stages[-1].about._replace(
        shape=generator.image_shape, class_names=loaded.stages[0].about.class_names
    )
    return CascadeModel(
        _filled(config, runs, settings),
        runs[-1],
        about,
        conditions,
        generator.of(choice, seed=config.sample.seed),
        loaded.params,
        "-".join(str(stage.step) for stage in loaded.stages),
        truth,
    )


def how_to_train(config: Any) -> str:
    """The commands that train the stages, in one line."""
    c = config.cascade
    if not c.configs:
        return (
            f"a cascade is trained stage by stage: train {', '.join(map(str, c.stages))}, each by "
            "its own config, then use --mode=sample"
        )
    if len(c.configs) != len(c.stages):
        return (
            f"config.cascade.configs = {tuple(c.configs)!r}: expected () or one for each of the "
            f"{len(c.stages)} stages"
        )
    commands = []
    for path, stage in zip(c.configs, c.stages, strict=True):
        name, _, variant = path.partition(":")
        name = f"{Path(name).stem}-{variant}" if variant else Path(name).stem
        where = "" if Path("runs") / name == Path(stage) else f" --workdir={shlex.quote(stage)}"
        commands.append(f"python -m diffjax.main --config={shlex.quote(path)}{where}")
    return f"a cascade is trained stage by stage: {'; '.join(commands)}; then use --mode=sample"


def _settings(config: Any) -> list[dict[str, Any]]:
    """What `config.cascade` overrides of each stage.

    Raises:
      UserError: another number of values than of stages.
    """
    c = config.cascade
    settings: list[dict[str, Any]] = [{} for _ in c.stages]
    for name in (*PER_STAGE, "checkpoint"):
        if len(c[name]) not in (0, len(c.stages)):
            raise UserError(
                f"config.cascade.{name} = {tuple(c[name])!r}: expected () or one value for each of "
                f"the {len(c.stages)} stages, None for that of its run"
            )
        for stage, value in zip(settings, c[name], strict=False):
            if value is not None:
                stage[name] = value
    return settings


def _filled(config: Any, runs: list[Any], settings: Sequence[Mapping[str, Any]]) -> Any:
    """The config with what each stage's run sets, and the name of the last one's data."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for name in PER_STAGE:
            config.cascade[name] = tuple(
                how.get(name, run.sample[name]) for run, how in zip(runs, settings, strict=True)
            )
        config.data = {"name": runs[-1].data.name}
    return config
