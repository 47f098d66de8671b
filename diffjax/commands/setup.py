"""Setup shared by the commands: the resolved config or model, and its restored parameters."""

import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from diffjax import data
from diffjax.commands import Request
from diffjax.distributed import processes
from diffjax.errors import UserError
from diffjax.experiment import (
    folder_sampling,
    kinds,
    model_folder,
    process,
    restore,
    sampling,
    strategies,
)
from diffjax.experiment.dataset import load_held_out, load_train
from diffjax.experiment.kinds import resolve
from diffjax.experiment.load import about_of, fitted
from diffjax.experiment.model import Model, held_out_examples, resolve_model
from diffjax.experiment.other_model import with_weak
from diffjax.experiment.run import read_about
from diffjax.inference.sample_conditions import Examples


def say_kernels(setup: Any) -> None:
    """Logs the kernel backend; the training loop logs it itself."""
    logging.getLogger("diffjax").info(setup.kernels.line)


def say_if_other_data(setup: Any, workdir: Path) -> None:
    """Warns if the images are not those that the run was trained on, such as another folder."""
    stored = read_about(workdir) if has_run(workdir) else None
    now = data.describe(setup.source).index_crc32
    before = None if stored is None else stored.get("index_crc32")
    if None not in (before, now) and before != now:
        logging.getLogger("diffjax").warning(
            "warning: %s has other files than the images that %s was trained on: it is measured "
            "against these", setup.config.data.name, workdir,
        )  # fmt: skip


def model_of(config: Any, workdir: Path, *, prompt: str = "") -> Model:
    """The diffusion model of a run, with the data description that the run stored.

    The data set is loaded only if the config leaves prompts or maps open, or if there is no run.

    Args:
      config: complete and checked.
      workdir: the run directory.
      prompt: the key of the prompts that will be encoded; "" for none, as where none are.

    Raises:
      UserError: any invalid or inconsistent value.
    """

    def examples() -> Examples:
        return held_out_examples(config, load_held_out(config) or load_train(config))

    is_folder = model_folder.is_named(config)
    if not has_run(workdir) and not is_folder:
        return resolve(
            config, trains=False
        ).model  # report config errors before the missing checkpoint
    sampling.sampling(config, process.diffusion(config).schedule)  # check names before files
    about = about_of(workdir, config) if has_run(workdir) else model_folder.about(config)
    has_data = config.data.name != model_folder.NO_DATA
    own = examples if has_data else None
    texts = partial(folder_sampling.texts, config, own, key=prompt)
    model = with_weak(resolve_model(config, about, examples=own, texts=texts))
    say_kernels(model)
    return model


def image_model_of(config: Any, workdir: Path) -> Any:
    """The PixelCNN or GAN of a run, with the data description that it stored; loads no data set.

    Raises:
      UserError: any invalid or inconsistent value.
    """
    if not has_run(workdir):
        return resolve(
            config, trains=False
        ).model  # report config errors before the missing checkpoint
    model = kinds.resolve_model(config, about_of(workdir, config))
    say_kernels(model)
    return model


def has_run(workdir: Path) -> bool:
    """Whether a workdir has a checkpoint; False if it is a file."""
    return any((workdir / "checkpoints").glob("[0-9]*"))


def results_folder(request: Request) -> Path:
    """The folder of a command's results, --out or the workdir, which must be writable.

    Raises:
      UserError: it is read-only, as the workdir of another user's run, or a file.
    """
    flag, folder = ("workdir", request.workdir) if request.out is None else ("out", request.out)

    def write() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(
                f"--{flag}={folder} can't be written to: {error.strerror}: give another folder for "
                "the results by --out"
            ) from error

    processes.run_on_primary(write)
    return folder


def parameters_of(model: Model, workdir: Path) -> tuple[int, Any]:
    """(step, averaged parameters on the sampling devices) of config.sample.checkpoint.

    Without a run, a folder's model has the folder's parameters, of step 0, unless it is one of a
    new token.

    Raises:
      UserError: a workdir without a run, of another config, or without the checkpoint.
    """
    if model.folder is not None and not model.is_inverted and not has_run(workdir):
        places = strategies.shardings(model.folder.unet.shapes(), model.config)
        params = model.folder.unet_params(shardings=places)
        return 0, _for_sampling(model, params)
    stored = restore.read(model, workdir)
    return stored.step, _for_sampling(model, fitted(model, stored))


def _for_sampling(model: Model, params: Any) -> Any:
    return model.for_sampling(strategies.to_compute(params, model.config))
