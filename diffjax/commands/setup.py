"""What commands begin with: the resolved config, and the line that says what computes."""

import logging
from pathlib import Path
from typing import Any

from diffjax.experiment import process, restore, sampling, strategies
from diffjax.experiment.dataset import load_held_out, load_train
from diffjax.experiment.load import about_of, fitted
from diffjax.experiment.model import Model, held_out_examples, resolve_model, with_weak
from diffjax.experiment.schema import is_autoencoder
from diffjax.inference.generator import Examples


def resolve(config: Any) -> Any:
    """The config with its data and its training, of either kind of model.

    Raises:
      UserError: any invalid or inconsistent value.
    """
    if is_autoencoder(config):
        from diffjax.experiment.autoencoder import resolve as resolve_autoencoder

        return resolve_autoencoder(config)
    from diffjax.experiment.diffusion import resolve as resolve_diffusion

    return resolve_diffusion(config)


def say_kernels(setup: Any) -> None:
    """Logs what computes; a training says so itself."""
    logging.getLogger("diffjax").info(setup.kernels.line)


def model_of(config: Any, workdir: Path) -> Model:
    """A diffusion model as its run knows it.

    Its data set is loaded only where the config leaves prompts or maps open, and where there is no
    run that says what it is.

    Raises:
      UserError: any invalid or inconsistent value.
    """

    def examples() -> Examples:
        return held_out_examples(config, load_held_out(config) or load_train(config))

    if not has_run(workdir):
        return resolve(config).model  # so that what is wrong with the config is said first
    sampling.sampling(config, process.diffusion(config).schedule)  # names before files
    model = with_weak(resolve_model(config, about_of(workdir, config), examples=examples))
    say_kernels(model)
    return model


def has_run(workdir: Path) -> bool:
    """Whether a workdir has a checkpoint; False, too, where it is a file."""
    return any((workdir / "checkpoints").glob("[0-9]*"))


def parameters_of(model: Model, workdir: Path) -> tuple[int, Any]:
    """(step, the averaged parameters where they compute), as config.sample.checkpoint says.

    Raises:
      UserError: a workdir without a run, of another config, or without the checkpoint.
    """
    found = restore.read(model, workdir)
    return found.step, strategies.to_compute(fitted(model, found), model.config)
