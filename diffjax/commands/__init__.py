"""One module per `--mode`, each with `run(request) -> exit code`."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from diffjax.distributed import processes
from diffjax.errors import UserError

# mode -> description for --help. Each mode is the module of its name.
MODES = {
    "train": "train, or resume where the last run stopped",
    "sample": "draw samples",
    "edit": "edit images from files",
    "evaluate": "measure samples, likelihoods or reconstructions",
    "ema": "rebuild an average of another length from stored snapshots",
    "export": "write the model to --out: safetensors and config.json",
    "report": "write a page about the run: curves, samples, evaluations, config, machine",
    "plan": "memory and FLOPs of training on config.parallel.devices devices; trains nothing",
    "config": "print the complete config and mark values that differ from the defaults",
}
# format -> what `export` writes, for --help.
FORMATS = {
    "diffjax": "model.safetensors and config.json, for diffjax.load (the default)",
    "diffusers": "a folder that diffusers loads: of config.model.folder, or an AutoencoderKL",
    "original": "one file of Stable Diffusion's original layout, of a model of config.model.folder",
    "lora": "a LoRA file that diffusers loads, of a run with config.model.lora",
    "token": "a learned token that diffusers loads, of a run with config.model.inversion",
    "stablehlo": "the denoiser as a program for jax.export.deserialize, on CPU, GPU and TPU",
    "onnx": "the denoiser as a program for onnxruntime",
}
# Modes that write to --out: their results, or, for "export", the model.
TO_OUT = ("sample", "edit", "evaluate", "export", "report")
# Modes that run in a single process.
ONE_PROCESS = ("edit", "ema", "export", "report", "plan", "config")
_OF_IMAGE_MODELS = (
    ("train", "sample", "evaluate", "report", "plan", "config"),
    "to edit, rebuild averages or export, train a diffusion model",
)
# What a config trains -> its modes, where it hasn't all of them, and what to do for the others.
MODES_OF = {
    "an autoencoder": (
        ("train", "evaluate", "export", "report", "plan", "config"),
        "to sample, train a diffusion model with config.first_stage.workdir set to this run",
    ),
    "a PixelCNN": _OF_IMAGE_MODELS,
    "a GAN": _OF_IMAGE_MODELS,
    "a cascade": (
        ("train", "sample", "evaluate", "config"),
        "for the others, use the config of one of its stages",
    ),
}


class Request(NamedTuple):
    """Arguments of a command.

    Attributes:
      config: complete and checked.
      workdir: the run directory.
      profile: whether training writes a trace of a few steps.
      out: the folder that `export` writes, or that of the results, which are in the workdir
        otherwise.
      format: of `export`, one of `FORMATS`; None for the first.
    """

    config: Any
    workdir: Path
    profile: bool = False
    out: Path | None = None
    format: str | None = None


def command(mode: str) -> Callable[[Request], int]:
    """The function of a mode, imported on first use."""
    run: Callable[[Request], int] = importlib.import_module(f"diffjax.commands.{mode}").run
    return run


def check_mode(
    mode: str, *, profile: bool, out: str | Path | None, export_format: str | None
) -> None:
    """Raises UserError for an unknown mode or format, or a flag of another mode."""
    if mode not in list(MODES):
        raise UserError(f"mode {mode!r}: expected one of {', '.join(MODES)}")
    if mode in ONE_PROCESS and processes.is_multiprocess():
        raise UserError(f"--mode={mode} runs in a single process: start only one")
    if profile and mode != "train":
        raise UserError(f"--profile is only for --mode=train, not --mode={mode}: remove it")
    if out is not None and mode not in TO_OUT:
        raise UserError(f"--out is only for --mode={', '.join(TO_OUT)}, not {mode}: remove it")
    if export_format is not None and mode != "export":
        raise UserError(f"--format is only for --mode=export, not --mode={mode}: remove it")
    if export_format not in (None, *FORMATS):
        raise UserError(f"format {export_format!r}: expected one of {', '.join(FORMATS)}")


def check_kind(mode: str, kind: str) -> None:
    """Raises UserError for a mode that a config's kind, such as "a GAN", does not have."""
    modes, instead = MODES_OF.get(kind, (MODES, ""))
    if mode not in modes:
        raise UserError(
            f"--mode={mode} is for diffusion models, and this config is of {kind}: "
            f"expected one of {', '.join(modes)}; {instead}"
        )
