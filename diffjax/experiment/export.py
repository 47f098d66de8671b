"""Exports a trained model to a folder that needs no workdir, orbax or data."""

import logging
from pathlib import Path
from typing import Any

from diffjax.checkpoints import exported, origin
from diffjax.errors import UserError
from diffjax.experiment import (
    autoencoder_networks,
    export_programs,
    first_stage,
    folder_sampling,
    model_folder,
    restore,
)
from diffjax.experiment.export_programs import restored
from diffjax.experiment.inversion import Inverted
from diffjax.experiment.load import about_of
from diffjax.experiment.lora import Adapted
from diffjax.experiment.model import kept, resolve_model
from diffjax.experiment.paths import names_a_path
from diffjax.experiment.run import STAGE_FIELDS, read_config, read_model
from diffjax.experiment.schema import is_autoencoder, is_diffusion
from diffjax.experiment.spec import parse_spec
from diffjax.files import expanded, new_folder
from diffjax.models.lora import of_tree
from diffjax.stable_diffusion import learned_tokens, save_file, vae_writer
from diffjax.stable_diffusion.lora_writer import FILE, save_lora
from diffjax.stable_diffusion.save import save, with_process

_logger = logging.getLogger("diffjax")


def export(config: Any, workdir: Path, out: Path, form: str = "diffjax") -> list[Path]:
    """Writes a model in one of `FORMATS`; all of it or, but for "diffjax", nothing.

    Args:
      config: complete; config.sample.checkpoint selects the parameters.
      workdir: the run directory.
      out: a new or empty folder.
      form: "diffjax" for model.safetensors, config.json, and a latent model's first stage, which
        `load` reads; or one of the others.

    Returns:
      The written files.

    Raises:
      UserError: no such run, a folder that is not empty or not writable, or a model that does not
        fit the format.
    """
    out = expanded(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out} is not empty: give a new folder")
    if is_autoencoder(config) and form not in ("diffjax", "diffusers"):
        raise UserError(
            f"--format={form} is for diffusion models, and this config is of an autoencoder: "
            "export a latent model of this first stage, with which the decoder is written"
        )
    if is_diffusion(config):
        folder_sampling.refuse(config, "--mode=export")
    return FORMATS[form](config, workdir, out)


def _diffjax(config: Any, workdir: Path, out: Path) -> list[Path]:
    if is_autoencoder(config):
        return _stage(workdir, out, wanted=config.sample.checkpoint)
    if not any((workdir / "checkpoints").glob("[0-9]*")):
        raise restore.untrained(workdir)
    model = resolve_model(config, about_of(workdir, config))
    found = restore.read(model, workdir)
    about = model.about
    if model.conditions.texts is not None:
        about = about._replace(vocabulary=model.conditions.texts.vocabulary)
    stored = config.copy_and_resolve_references()
    stored.sample.checkpoint = "latest"
    written = []
    if config.first_stage.workdir:
        stage = expanded(config.first_stage.workdir)
        written += _stage(stage, out / exported.FIRST_STAGE, wanted=config.first_stage.checkpoint)
        stored.first_stage.workdir, stored.first_stage.checkpoint = exported.FIRST_STAGE, "latest"
    if is_guided_by_another(config):
        _logger.info(
            "config.sample.guidance = %r needs another run, which is not exported: 'none' is "
            "stored instead", config.sample.guidance,
        )  # fmt: skip
        stored.sample.guidance = "none"
    found = found._replace(about=kept(about, model.identity))
    if names_a_path(config.condition.text, key="condition.text") or model.folder is not None:
        origin.record(out)  # a relative path is one from this working folder
    return written + exported.write(out, found, stored.to_dict())


def is_guided_by_another(config: Any) -> bool:
    """Whether sampling needs another run's model."""
    return parse_spec(config.sample.guidance, key="sample.guidance").path == "autoguidance"


def _stage(workdir: Path, out: Path, *, wanted: str) -> list[Path]:
    config = read_config(workdir)
    found = None if config is None else read_model(workdir, wanted=wanted, fields=STAGE_FIELDS)
    if found is None:
        raise restore.untrained(workdir)
    config.sample.checkpoint = "latest"
    return exported.write(out, found, config.to_dict())


def _diffusers(config: Any, workdir: Path, out: Path) -> list[Path]:
    if is_autoencoder(config):
        return _autoencoder_kl(config, workdir, out)
    if not model_folder.is_named(config):
        raise UserError(
            f"--format=diffusers is for models of config.model.folder, and config.model.name = "
            f"{config.model.name!r}: {_unfit(config)}: use --format=stablehlo or onnx"
        )
    model, _, params = restored(config, workdir, dtype="float32")  # all parts of one type
    assert model.folder is not None
    return save(with_process(model.folder, model.diffusion), out, params=params)


def _autoencoder_kl(config: Any, workdir: Path, out: Path) -> list[Path]:
    if config.autoencoder.layout != "diffusers":
        raise UserError(
            f"config.autoencoder.layout = {config.autoencoder.layout!r}: for --format=diffusers "
            "train with config.autoencoder.layout=diffusers, in a new --workdir"
        )
    found = read_model(workdir, wanted=config.sample.checkpoint, fields=STAGE_FIELDS)
    if found is None:
        raise restore.untrained(workdir)
    height, width, channels = about_of(workdir, config).shape
    stage = autoencoder_networks.stage(config, image_shape=(height, width, channels))
    params = first_stage.params_from_fields(found.fields, stage, what=f"--workdir={workdir}")
    with new_folder(out) as aside:
        names = [path.name for path in vae_writer.write_vae(aside, stage, params)]
    return [out / name for name in names]


def _original(config: Any, workdir: Path, out: Path) -> list[Path]:
    if not model_folder.is_named(config):
        raise UserError(
            "--format=original is for networks of config.model.folder: use another --format"
        )
    model, _, params = restored(config, workdir, dtype="float32")  # all parts of one type
    assert model.folder is not None
    with new_folder(out) as aside:
        save_file.save_file(
            with_process(model.folder, model.diffusion), aside / save_file.FILE, params=params
        )
    return [out / save_file.FILE]


def _lora(config: Any, workdir: Path, out: Path) -> list[Path]:
    if not model_folder.is_named(config) or config.model.lora == "none":
        raise UserError(
            "--format=lora is for runs with config.model.lora, whose adapters it writes: use "
            "another --format"
        )
    model = resolve_model(config, about_of(workdir, config))
    found = restore.read(model, workdir)
    assert model.folder is not None and isinstance(model.adapted, Adapted)
    adapters = of_tree(found.fields["ema_params"], alpha=model.adapted.lora.alpha)
    with new_folder(out) as aside:
        save_lora(aside / FILE, adapters, folder=model.folder)
    return [out / FILE]


def _token(config: Any, workdir: Path, out: Path) -> list[Path]:
    if not model_folder.is_named(config) or config.model.inversion == "none":
        raise UserError(
            "--format=token is for runs with config.model.inversion, whose token it writes: use "
            "another --format"
        )
    model = resolve_model(config, about_of(workdir, config))
    found = restore.read(model, workdir)
    assert isinstance(model.adapted, Inverted)
    with new_folder(out) as aside:
        learned_tokens.save(
            aside / learned_tokens.FILE, model.adapted.learned(found.fields["ema_params"])
        )
    return [out / learned_tokens.FILE]


def _unfit(config: Any) -> str:
    """Why diffusers has no pipeline of a model with diffjax's own networks."""
    if config.model.name != "unet":
        return "diffusers has no such network"
    if config.condition.text != "none":
        return (
            "its U-Net attends to a learned token before the text and not to padding, and adds the "
            "pooled text to the embedding of time, which diffusers' text-to-image pipelines do not"
        )
    if config.first_stage.workdir:
        return (
            "its first stage pads images on all sides and normalises with eps 1e-5, and diffusers' "
            "AutoencoderKL below and to the right, with 1e-6"
        )
    return "diffusers' pipelines of folders are of latents and texts"


FORMATS = {
    "diffjax": _diffjax, "diffusers": _diffusers, "original": _original, "lora": _lora,
    "token": _token, "stablehlo": export_programs.stablehlo, "onnx": export_programs.onnx,
}  # fmt: skip
