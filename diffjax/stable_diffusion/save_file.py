"""One file of the original layout from a folder's networks: the inverse of `sources`.

Such a file has weights alone, and what is not in them follows from its family. So a model is
written whose networks and noise are those of a family; where the prediction or the end of the
schedule differ, there are the empty tensors "v_pred" and "ztsnr", by which other programs tell.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffjax import schedules
from diffjax.conditioning.clip import module_names
from diffjax.errors import UserError
from diffjax.files import expanded
from diffjax.stable_diffusion import families, names, original_names
from diffjax.stable_diffusion.families import Encoder, Family
from diffjax.stable_diffusion.folder import DTYPES, Folder
from diffjax.stable_diffusion.text import Part
from diffjax.stable_diffusion.weights_writer import Stored, convolutions, tensors_of, write_file
from diffjax.types import Dtype

FILE = "model.safetensors"
_QKV = ("q_proj", "k_proj", "v_proj")


def save_file(
    folder: Folder, path: str | Path, *, params: Any = None, dtype: str | None = None
) -> Path:
    """Writes a file for `load_folder` and programs that read Stable Diffusion's own checkpoints.

    Args:
      folder: as it was read, or with other parameters.
      path: of the file, with the suffix .safetensors.
      params: of the U-Net; None for the folder's.
      dtype: of the weights, "float32", "bfloat16" or "float16"; None for that of the parameters.

    Returns:
      The path.

    Raises:
      UserError: another suffix, a model of no known family, or a noise process that is not its
        family's.
    """
    path = expanded(path, name="path")
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is written as safetensors: name it {path.stem}.safetensors")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}: expected {' or '.join(DTYPES)}")
    family = _family(folder)
    kind = None if dtype is None else DTYPES[dtype]
    tensors = [*_marks(folder, family), *_unet(folder, params, kind), *_vae(folder, kind)]
    for part, encoder in zip(folder.texts, family.texts, strict=True):
        tensors += _text(part, encoder, kind)
    return write_file(path, tensors)


def _family(folder: Folder) -> Family:
    module = folder.unet.module
    family = families.FAMILIES.get((module.channels[0], module.text_width))
    scaling = folder.stage_params.scaling
    known = family is not None and (
        tuple(family.unet.get("block_out_channels", (320, 640, 1280, 1280))) == module.channels
        and family.unet.get("layers_per_block", 2) == module.blocks
        and _last(family.unet.get("transformer_layers_per_block", 1)) == module.middle_depth
        and [one.config["num_hidden_layers"] for one in family.texts]
        == [part.encoder.module.layers for part in folder.texts]
        and np.allclose(scaling.factor, family.vae["scaling_factor"])
    )
    if family is None or not known or np.any(scaling.shift):
        raise UserError(
            f"{folder.path} is of no family that files of the original layout are read of, "
            f"{', '.join(family.name for family in families.FAMILIES.values())}: save it as a "
            "folder of diffusers"
        )
    return family


def _last(value: Any) -> Any:
    return value[-1] if isinstance(value, list | tuple) else value


def _marks(folder: Folder, family: Family) -> Iterator[Stored]:
    """Empty tensors that tell what the family does not."""
    prediction = folder.scheduler.prediction
    config = family.scheduler
    plain = schedules.quadratic_beta(
        config.get("num_train_timesteps", 1000), beta_start=config["beta_start"],
        beta_end=config["beta_end"],
    )  # fmt: skip
    scales: Any = getattr(prediction.schedule, "signal_scale", None)  # a continuous one has none
    rescaled = schedules.zero_terminal_snr(plain).signal_scale
    kinds = {"eps": "epsilon", "v": "v_prediction"}
    predicts = kinds.get(prediction.parametrisation.name)
    if predicts is None or not any(
        np.array_equal(scales, one) for one in (plain.signal_scale, rescaled)
    ):
        raise UserError(
            f"a file of the original layout has the noise of {family.name}, and this model has "
            "another schedule or prediction: save it as a folder of diffusers"
        )
    if predicts != (family.predicts or predicts):
        yield _mark("v_pred")
    if not np.array_equal(scales, plain.signal_scale):
        yield _mark("ztsnr")


def _mark(name: str) -> Stored:
    kind = np.dtype(np.float32)
    return Stored(name, (0,), kind, lambda: np.empty(0, kind))


def _unet(folder: Folder, params: Any, kind: Dtype | None) -> Iterator[Stored]:
    module = folder.unet.module
    levels = len(module.channels)
    # Only the first family has the projections of its transformers as convolutions.
    is_conv = convolutions(linear_projection=len(folder.texts) > 1 or _is_second(folder))
    found = tensors_of(
        folder.params if params is None else params, names.of_unet(levels), is_conv=is_conv,
        dtype=kind,
    )  # fmt: skip
    back = original_names.turned(original_names.of_unet(levels, module.blocks))
    for stored in found:
        places = original_names.originals(stored.name, back)
        # An upsampler is after the transformer, if there is one.
        start, _, rest = stored.name.partition(".upsamplers.")
        level = levels - 1 - int(start.rpartition(".")[2]) if rest else 0
        name = places[bool(rest) and module.depths[level] > 0]
        yield stored._replace(name=families.UNET + name)


def _is_second(folder: Folder) -> bool:
    family = families.FAMILIES[folder.unet.module.channels[0], folder.unet.module.text_width]
    return family.texts[0].is_open_clip


def _vae(folder: Folder, kind: Dtype | None) -> Iterator[Stored]:
    stage = folder.stage
    levels, blocks = len(stage.encoder.multipliers), stage.encoder.blocks
    back = original_names.turned(original_names.of_vae(levels, blocks))
    found = tensors_of(
        folder.stage_params.params, names.of_vae(levels),
        is_conv=lambda name: ".attentions." in name or convolutions(linear_projection=True)(name),
        dtype=kind,
    )  # fmt: skip
    for stored in found:
        places = original_names.originals(stored.name, back)
        yield stored._replace(name=families.VAE + (places[0] if places else stored.name))


def _text(part: Part, encoder: Encoder, kind: Dtype | None) -> list[Stored]:
    modules = names.of_text(module_names(part.encoder.module.layers))
    found = tensors_of(part.params, modules, is_conv=lambda name: False, dtype=kind)
    if not encoder.is_open_clip:
        return [stored._replace(name=encoder.prefix + stored.name) for stored in found]
    by_name = {stored.name.removeprefix("text_model."): stored for stored in found}
    back = original_names.turned(original_names.of_open_clip(part.encoder.module.layers))
    made = []
    for name, stored in by_name.items():
        owner, _, leaf = name.rpartition(".")
        of_attention, _, which = owner.rpartition(".")
        if which in _QKV:
            if which != _QKV[0]:
                continue
            thirds = [by_name[f"{of_attention}.{one}.{leaf}"] for one in _QKV]
            place = original_names.originals(of_attention, back)[0]
            made.append(_joined(f"{encoder.prefix}{place}.in_proj_{leaf}", thirds))
            continue
        place = original_names.originals(name, back)[0]
        if name == "text_projection.weight":
            place, stored = "text_projection", _transposed(stored)
        if owner == "embeddings.position_embedding":
            place = place.removesuffix(".weight")
        made.append(stored._replace(name=encoder.prefix + place))
    return made


def _joined(name: str, parts: list[Stored]) -> Stored:
    first = parts[0]
    shape = (len(parts) * first.shape[0], *first.shape[1:])
    return Stored(name, shape, first.dtype, lambda: np.concatenate([p.array() for p in parts]))


def _transposed(stored: Stored) -> Stored:
    return Stored(
        stored.name, stored.shape[::-1], stored.dtype,
        lambda: np.ascontiguousarray(stored.array().T),
    )  # fmt: skip
