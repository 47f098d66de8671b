"""Low-rank adapters as a file that diffusers loads (`pipeline.load_lora_weights`).

An adapter adds (alpha / rank) down up to a kernel (Hu et al. 2021, "LoRA", section 4.1). Names are
those of diffusers and peft, `unet.<module>.lora_A.weight` for down and `lora_B.weight` for up.
Readers take alpha = rank where a file says nothing else, so that alpha / rank is multiplied into
up: the product is the same for all of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffjax.conditioning.clip import module_names
from diffjax.conditioning.model_folder import read_json
from diffjax.errors import UserError
from diffjax.files import expanded
from diffjax.models.lora import Adapter, Adapters
from diffjax.stable_diffusion import names
from diffjax.stable_diffusion.folder import DTYPES, Folder
from diffjax.stable_diffusion.names import Names
from diffjax.stable_diffusion.weights_writer import Stored, convolutions, write_file

FILE = "pytorch_lora_weights.safetensors"  # as diffusers looks for it in a folder


def save_lora(
    path: str | Path,
    adapters: Adapters,
    *,
    folder: Folder,
    texts: Sequence[Adapters] = (),
    dtype: str | None = None,
) -> Path:
    """Writes adapters as one file of safetensors.

    Args:
      path: of the file, such as "pytorch_lora_weights.safetensors".
      adapters: of the U-Net, by the paths of their kernels, such as ("down0_0_transformer",
        "self0_q", "kernel").
      folder: that the adapters are for.
      texts: of each text encoder, in the folder's order; () for none.
      dtype: of the file, "float32", "bfloat16" or "float16"; None for that of the adapters
        or, if it is another, float32.

    Returns:
      The path.

    Raises:
      UserError: no adapters, one that does not fit a kernel of the folder, or a path in a
        folder that is not writable.
    """
    path = expanded(path, name="path")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}: expected {' or '.join(DTYPES)}")
    if len(texts) > len(folder.texts):
        raise UserError(
            f"found adapters of {len(texts)} text encoders; {folder.path} has {len(folder.texts)}"
        )
    linear = read_json(folder.path / "unet" / "config.json").get("use_linear_projection")
    of_unet = names.of_unet(len(folder.unet.module.channels))
    tensors = list(_tensors("unet", adapters, folder.unet.shapes(), of_unet, bool(linear), dtype))
    for number, (part, given) in enumerate(zip(folder.texts, texts, strict=False)):
        prefix = "text_encoder_2" if number else "text_encoder"
        modules = names.of_text(module_names(part.encoder.module.layers))
        tensors += _tensors(prefix, given, part.encoder.shapes(), modules, True, dtype)
    if not tensors:
        raise UserError("there are no adapters to write: expected one or more")
    return write_file(path, tensors)


def _tensors(
    prefix: str, adapters: Adapters, shapes: Any, of: Names, linear: bool, dtype: str | None
) -> Iterator[Stored]:
    is_conv = convolutions(linear_projection=linear)
    for place in sorted(adapters):
        shape = _shape_at(place, shapes, prefix)
        down, up = _pair(place, adapters[place], shape)
        (module,) = of("/".join(place[:-1]))[0]
        for name, array in (("lora_A", down), ("lora_B", up)):
            name_of = dtype or (array.dtype.name if array.dtype.name in DTYPES else "float32")
            kind = np.dtype(jnp.dtype(DTYPES[name_of]))
            if array.ndim == 2:
                array = array.T[..., None, None] if is_conv(module) else array.T
            else:
                array = array.transpose(3, 2, 0, 1)
            array = np.ascontiguousarray(array, kind)
            yield Stored(
                f"{prefix}.{module}.{name}.weight", array.shape, kind, partial(_itself, array)
            )


def _itself(array: np.ndarray) -> np.ndarray:
    return array


def _shape_at(place: tuple[str, ...], shapes: Any, prefix: str) -> tuple[int, ...]:
    """The shape of the kernel at a path."""
    found = shapes
    for key in place:
        found = found.get(key) if isinstance(found, Mapping) else None
    if place[-1:] != ("kernel",) or found is None:
        raise UserError(
            f"found an adapter of {'/'.join(map(str, place))}, which is no kernel of the {prefix}: "
            "expected the path of one, such as ('down0_0', 'conv1', 'kernel')"
        )
    return found.shape


def _pair(
    place: tuple[str, ...], adapter: Adapter, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Down, and up times alpha / rank, of the kernel's number of axes."""
    down, up = np.asarray(adapter.down), np.asarray(adapter.up)
    rank = down.shape[-1] if down.ndim else 0
    expected = (*shape[:-1], rank), (*(1,) * (len(shape) - 2), rank, shape[-1])
    if (down.shape, up.shape) != expected or not rank:
        raise UserError(
            f"found an adapter of shapes {down.shape} and {up.shape} of {'/'.join(place)}; "
            f"expected {(*shape[:-1], 'rank')} and {(*expected[1][:-2], 'rank', shape[-1])}"
        )
    return down, (up * (float(adapter.alpha) / rank)).astype(up.dtype)
