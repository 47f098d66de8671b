"""A trained run as a function: from a workdir to images, in three lines.

from diffjax.training.model import load
model = load("runs/emoji_text_to_image-tiny")
images = model.sample(["a red apple", "a blue heart"])      # uint8 (2, 64, 64, 3)
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffjax.errors import UserError
from diffjax.training import config as configs
from diffjax.training.checkpoints import read_json
from diffjax.training.experiment import Experiment, resolve
from diffjax.training.restoring import restore_frozen


def load(
    workdir: str | Path, *, checkpoint: str = "latest", first_stage: str | Path | None = None
) -> "Model":
    """Reads the run of a diffusion model, and the first stage that it names.

    Args:
      workdir: the run's folder.
      checkpoint: "latest", "best", "ema" (what --mode=ema rebuilt) or a step.
      first_stage: where the first stage's workdir lies now, if it was moved.

    Raises:
      UserError: no such run, or one that can't be read.
    """
    folder = Path(os.path.expanduser(workdir))
    stored = read_json(folder / "config.json")
    if stored is None:
        raise UserError(f"{folder} holds no run: name the workdir of a training")
    if configs.is_autoencoder(stored):
        raise UserError(f"{folder} is the run of an autoencoder, which draws nothing by itself")
    stored["sample"]["checkpoint"] = checkpoint
    stored["model"]["remat"] = "none"  # goes forwards only; and it was True or False once
    if first_stage is not None:
        stored["first_stage"]["workdir"] = str(first_stage)
    config = ConfigDict(configs.from_json(stored))
    configs.check(config)
    setup = resolve(config)
    step, params = restore_frozen(setup, folder)
    return Model(setup, params, step=step)


class Model:
    """A trained diffusion model.

    Attributes:
      setup: the config and all that it was resolved to.
      params: the averaged parameters.
      step: updates that they have seen.
    """

    def __init__(self, setup: Experiment, params: Any, *, step: int) -> None:
        self.setup = setup
        self.params = params
        self.step = step
        self._setups: dict[str, Experiment] = {}

    def sample(
        self,
        prompts: Sequence[str] = (),
        *,
        labels: Sequence[int] = (),
        map_images: np.ndarray | None = None,
        count: int | None = None,
        seed: int = 0,
        guidance: str | None = None,
    ) -> np.ndarray:
        """Draws images as the run's `sample` section says.

        Args:
          prompts: texts, for a model with text; they go round where `count` is more.
          labels: classes, for a class-conditional model; likewise.
          map_images: uint8 (n, H, W, C) that maps are made of, for a model with one; likewise.
          count: how many images; as many as there are of the longest of these by default.
          seed: of the noise.
          guidance: in place of the run's, "classifier_free(scale=3.0)" say.

        Returns:
          uint8 (count, H, W, C).

        Raises:
          UserError: a condition that the model has no use for, or guidance that can't be.
        """
        if isinstance(prompts, str):
            raise UserError(f"prompts is the text {prompts!r}: put it in a list")
        given = (prompts, labels, () if map_images is None else map_images)
        number = max(1, *map(len, given)) if count is None else count
        if number < 1:
            raise UserError(f"count is {count}: expected at least 1")
        if not configs.SEED.holds(seed):
            raise UserError(f"seed is {seed}: expected {configs.SEED.expected}")
        wanted = self.setup.config.sample.guidance if guidance is None else guidance
        if wanted not in self._setups:
            self._setups[wanted] = self._guided_by(wanted)
        generator = self._setups[wanted].generator.of(
            prompts=tuple(prompts), labels=tuple(labels), map_images=map_images, seed=seed
        )
        return generator(self.params, start=0, count=number).images

    def _guided_by(self, guidance: str) -> Experiment:
        if guidance == self.setup.config.sample.guidance:
            return self.setup
        if guidance.strip().startswith("autoguidance"):
            raise UserError("autoguidance reads another run: name it in the run's own config")
        config = self.setup.config.copy_and_resolve_references()
        with config.unlocked():
            config.sample.guidance = guidance
        setup = self.setup._replace(config=config)
        return setup._replace(generator=setup.make_generator())
