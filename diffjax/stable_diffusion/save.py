"""A folder that diffusers loads, from a folder that was read and parameters of its networks.

Weights are written as they are now. The configs, the tokenizers and model_index.json are those of
the folder that was read, since parameters are all that training changes; where the noise process
was replaced, so are its fields of the scheduler's config.
"""

import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from diffjax import arguments
from diffjax.conditioning.clip import module_names
from diffjax.conditioning.model_folder import read_json
from diffjax.errors import UserError
from diffjax.files import atomic_write, expanded, new_folder
from diffjax.prediction import Prediction
from diffjax.schedules import DiscreteSchedule
from diffjax.stable_diffusion import names, scheduler, text, unet, vae
from diffjax.stable_diffusion.folder import DTYPES, INDEX, Folder, is_folder
from diffjax.stable_diffusion.weights_writer import (
    SHARD_BYTES,
    Stored,
    convolutions,
    tensors_of,
    write,
    write_json,
)

# Files besides weights, and weights that are no pickles.
_TEXTS = (".json", ".txt")
_WEIGHTS = ".safetensors"
# Parts that are not used here: copied where they are, and left out where they are not.
_COPIED = ("safety_checker", "feature_extractor")
_PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}

_logger = logging.getLogger("diffjax")


def save(
    folder: Folder,
    out: str | Path,
    *,
    params: Any = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Writes a folder for diffusers and `load_folder`; nothing is written if it fails.

    Args:
      folder: as it was read, or with other parameters of the texts' encoders, of the first stage,
        or another `scheduler`.
      out: a new or empty folder.
      params: of the U-Net; None for the folder's.
      dtype: of the weights, "float32", "bfloat16" or "float16"; None for that of the parameters.
      shard_bytes: of a file of weights; a network with more is written as several, with an index.

    Returns:
      The written files.

    Raises:
      UserError: a folder that is not empty or not writable, a folder whose files are gone,
        parameters of another network, or a noise process that diffusers does not have.
    """
    out = expanded(out, name="out")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}: expected {' or '.join(DTYPES)}")
    shard_bytes = arguments.whole("shard_bytes", shard_bytes, least=1)
    if not is_folder(folder.path):
        raise UserError(
            f"found no {INDEX} in {folder.path}; expected the folder that the model was read from, "
            "whose configs and tokenizers are written again; load it from a diffusers folder"
        )
    index = read_json(folder.path / INDEX)
    process = _scheduler_config(folder)
    networks = _networks(folder, folder.params if params is None else params, dtype)
    with new_folder(out) as aside:
        for place, stem, config, tensors in networks:
            write(aside / place, stem, tensors, shard_bytes=shard_bytes)
            write_json(aside / place / "config.json", config)
        for place in _encoders(folder, "tokenizer"):
            _copy(folder.path / place, aside / place, _TEXTS)
        write_json(aside / "scheduler" / "scheduler_config.json", process)
        for part in _COPIED:
            if index.get(part) not in (None, [None, None]):
                index[part] = _copied_part(folder.path / part, aside / part, index[part])
        write_json(aside / INDEX, index)
        written = sorted(path.relative_to(aside) for path in aside.rglob("*") if path.is_file())
    return [out / path for path in written]


def with_process(folder: Folder, prediction: Prediction) -> Folder:
    """A folder with another noise process or meaning of the network's output."""
    return folder._replace(scheduler=folder.scheduler._replace(prediction=prediction))


def _networks(
    folder: Folder, params: Any, dtype: str | None
) -> list[tuple[str, str, dict[str, Any], list[Stored]]]:
    """The part, stem of the weights' files, config and tensors of each network."""
    kind = None if dtype is None else DTYPES[dtype]
    path, size = folder.path, folder.unet.size
    config = read_json(path / "unet" / "config.json")
    _check(params, unet.read(path / "unet").shapes(), path / "unet")
    of_unet = convolutions(linear_projection=bool(config.get("use_linear_projection")))
    levels = len(folder.unet.module.channels)
    found = tensors_of(params, names.of_unet(levels), is_conv=of_unet, dtype=kind)
    networks = [("unet", unet.STEM, config, found)]

    stage, _ = vae.read(path / "vae", size=size)
    _check(folder.stage_params.params, vae.shapes(stage), path / "vae")
    networks.append((
        "vae", vae.STEM, read_json(path / "vae" / "config.json"),
        tensors_of(
            folder.stage_params.params, names.of_vae(len(stage.encoder.multipliers)),
            is_conv=convolutions(linear_projection=True), dtype=kind,
        ),
    ))  # fmt: skip
    for place, part in zip(_encoders(folder, "text_encoder"), folder.texts, strict=True):
        encoder = text.read(path / place, penultimate=part.encoder.penultimate)
        _check(part.params, encoder.shapes(), path / place)
        modules = names.of_text(module_names(part.encoder.module.layers))
        found = tensors_of(part.params, modules, is_conv=lambda name: False, dtype=kind)
        config = read_json(path / place / "config.json")
        # transformers loads weights in the type that the config names.
        named: dict[str, Any] = {
            key: found[0].dtype.name for key in ("dtype", "torch_dtype") if key in config
        }
        networks.append((place, text.STEM, {**config, **named}, found))
    return networks


def _encoders(folder: Folder, name: str) -> tuple[str, ...]:
    """The folders of each text encoder's weights or tokenizer."""
    return (name, f"{name}_2")[: len(folder.texts)]


def _check(params: Any, shapes: Any, place: Path) -> None:
    """Raises UserError for parameters of another network than that of a folder's config."""
    found, expected = jax.tree.map(np.shape, params), jax.tree.map(lambda x: x.shape, shapes)
    if found != expected:
        raise UserError(
            f"found parameters of another network than that of {place / 'config.json'}; expected "
            "those of the folder that was read; merge adapters before saving"
        )


def _scheduler_config(folder: Folder) -> dict[str, Any]:
    """The folder's scheduler, with the fields of another noise process where it has another one."""
    config = read_json(folder.path / "scheduler" / "scheduler_config.json")
    stored, now = scheduler.read(folder.path / "scheduler").prediction, folder.scheduler.prediction
    if not (isinstance(now.schedule, DiscreteSchedule) and _counts_steps(now)):
        raise UserError(
            "diffusers' pipelines give the network a step's number: expected a discrete schedule "
            "and config.diffusion.time_input = 'step'"
        )
    if now.parametrisation.name != stored.parametrisation.name:
        if now.parametrisation.name not in _PREDICTIONS:
            raise UserError(
                f"diffusers has no scheduler for the parametrisation {now.parametrisation.name!r}: "
                f"expected {' or '.join(_PREDICTIONS)}"
            )
        config["prediction_type"] = _PREDICTIONS[now.parametrisation.name]
    assert isinstance(stored.schedule, DiscreteSchedule)
    if not np.array_equal(now.schedule.signal_scale, stored.schedule.signal_scale):
        betas = now.schedule.beta[1:].tolist()
        config |= {"trained_betas": betas, "num_train_timesteps": len(betas)}
        config.pop("rescale_betas_zero_snr", None)
    return config


def _counts_steps(prediction: Prediction) -> bool:
    """Whether the network is given a step's number, from 0."""
    steps = np.arange(prediction.schedule.T)
    return np.array_equal(prediction.time_input(steps + 1, prediction.schedule), steps)


def _copied_part(source: Path, to: Path, entry: Any) -> Any:
    """Copies a part that is not used here; returns its entry of the index, of nulls without it."""
    needed = _WEIGHTS if source.name == "safety_checker" else ".json"
    if not any(source.glob(f"*{needed}")):
        _logger.warning("%s: no %s files: that part is left out", source, needed)
        return [None, None]
    _copy(source, to, (*_TEXTS, _WEIGHTS))
    return entry


def _copy(source: Path, to: Path, endings: tuple[str, ...]) -> None:
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in endings:
            atomic_write(to / path.name, partial(_pour, path))


def _pour(path: Path, into: BinaryIO) -> None:
    with path.open("rb") as file:
        shutil.copyfileobj(file, into)
