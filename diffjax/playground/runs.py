"""The runs that the page may look at: each a folder, by a name of its own, loaded when needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffjax
from diffjax.errors import UserError
from diffjax.experiment import own_settings
from diffjax.files import expanded
from diffjax.inference.pipeline import Pipeline
from diffjax.inference.step_by_step import StepByStep
from diffjax.stable_diffusion.folder import is_folder
from diffjax.stable_diffusion.sources import is_file

MOST_LOADED = 3


class Run:
    """A run's folder; its model is read by the worker at the first request that needs it."""

    def __init__(self, name: str, folder: Path) -> None:
        """Reads the run's config.

        Args:
          name: of the run on the page.
          folder: a workdir, an exported model, or Stable Diffusion.

        Raises:
          UserError: there is no run.
        """
        self.name, self.folder = name, folder
        self.is_stable_diffusion = is_folder(folder) or is_file(folder)
        kind = None if self.is_stable_diffusion else own_settings.kind_of(folder)
        if kind is None and not self.is_stable_diffusion:
            raise UserError(
                f"--workdir={folder}: there is no run: give the folder of a training run, or of an "
                "exported model"
            )
        self.draws = self.is_stable_diffusion or bool(own_settings.own_settings(folder))
        self.kind = "Stable Diffusion" if self.is_stable_diffusion else str(kind)
        self._loaded: StepByStep | None = None
        self._model: Pipeline | None = None

    @property
    def model(self) -> Pipeline:
        """The model as it is after `stepwise`."""
        self.stepwise()
        assert self._model is not None
        return self._model

    def stepwise(self) -> StepByStep:
        """The model, to run step by step.

        Raises:
          UserError: a run without a checkpoint, or one that is no diffusion model.
        """
        if self._loaded is None:
            self._model = diffjax.load(self.folder)
            self._loaded = StepByStep(self._model)
        return self._loaded

    def drop(self) -> None:
        """Frees the model's memory."""
        self._loaded = self._model = None

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._loaded is not None

    def listed(self) -> dict[str, Any]:
        """What the page shows in its list of runs."""
        return {"name": self.name, "kind": self.kind, "draws": self.draws}

    def described(self) -> dict[str, Any]:
        """What the panels need to know of the model: its condition, size and own settings."""
        model = self.model
        conditions = model.generator().conditions
        numbers = map(str, range(conditions.model.num_classes))
        names = list(model.about.class_names) or list(numbers)
        return {
            "name": self.name,
            "step": model.step,
            "shape": list(model.space.image_shape),
            "images": bool(model.space.images),
            "classes": names if conditions.has_labels else [],
            "texts": bool(conditions.has_texts or conditions.has_prior),
            "enlarges": hasattr(conditions.model.make_map, "enlarged"),
            "jumps": model.generator().sampling.jumps,
            "parametrisation": model.diffusion.parametrisation.name,
            "own": own_settings.own_settings(self.folder),
        }


class Runs:
    """All runs by name; the models that were used last stay loaded."""

    def __init__(self, folders: Sequence[str | Path]) -> None:
        """Reads their configs.

        Raises:
          UserError: none, or a folder without a run.
        """
        if not folders:
            raise UserError("no run was given: pass --workdir=FOLDER, once or several times")
        self._runs: dict[str, Run] = {}
        self._used: list[str] = []
        for given in folders:
            folder = expanded(given, name="--workdir").resolve()
            if any(run.folder == folder for run in self._runs.values()):
                raise UserError(f"--workdir={given} was given twice: leave one out")
            name, number = folder.name or "run", 2
            while name in self._runs:
                name, number = f"{folder.name}-{number}", number + 1
            self._runs[name] = Run(name, folder)

    def __getitem__(self, name: object) -> Run:
        """A run.

        Raises:
          UserError: no run of this name.
        """
        if not isinstance(name, str) or name not in self._runs:
            raise UserError(f"run is {str(name)[:60]!r}: expected one of {', '.join(self._runs)}")
        return self._runs[name]

    def used(self, run: Run) -> Run:
        """The run, after models that were not used for long are dropped. The worker calls this."""
        self._used = [name for name in self._used if name != run.name] + [run.name]
        for name in self._used[:-MOST_LOADED]:
            self._runs[name].drop()
        return run

    def listed(self) -> list[dict[str, Any]]:
        """What the page shows."""
        return [run.listed() for run in self._runs.values()]
