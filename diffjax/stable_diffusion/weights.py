"""A network's parameters from a folder's safetensors, cast while they are read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from diffjax.conditioning.hugging_face import read_json
from diffjax.errors import UserError
from diffjax.stable_diffusion import safetensors
from diffjax.stable_diffusion.names import LEAVES, Names
from diffjax.stable_diffusion.safetensors import Tensor
from diffjax.types import Dtype

# Tensors of older files that hold no weights.
IGNORED = ("position_ids",)
VARIANTS = ("fp16", "bf16")


def find(folder: Path, stem: str, *, variant: str | None = None) -> dict[str, Tensor]:
    """The tensors of a folder by name, of one file or of several with an index.

    Args:
      folder: of a network.
      stem: "model" or "diffusion_pytorch_model".
      variant: "fp16" for the files of that name; None for those without a variant or, where there
        are none, those of `VARIANTS`.

    Raises:
      UserError: no such files, or corrupt ones; a folder with pickles alone.
    """
    if not folder.is_dir():
        raise UserError(
            f"found no folder {folder}; expected one with config.json and {stem}.safetensors; "
            "download it"
        )
    for one in [variant] if variant else [None, *VARIANTS]:
        middle = f".{one}" if one else ""
        whole = folder / f"{stem}{middle}.safetensors"
        if whole.is_file():
            return safetensors.read(whole)
        for name in dict.fromkeys(
            (f"{stem}.safetensors.index{middle}.json", f"{stem}{middle}.safetensors.index.json")
        ):
            if (folder / name).is_file():
                return _of_index(folder / name)
    wanted = f"{stem}{f'.{variant}' if variant else ''}.safetensors"
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".ckpt"))
    if pickles:
        raise UserError(
            f"found {pickles[0]} in {folder} and no {wanted}; expected safetensors, since a pickle "
            "can run code; download those, or convert the folder with diffusers"
        )
    raise UserError(f"found no {wanted} in {folder}; expected the weights; download them")


def _of_index(index: Path) -> dict[str, Tensor]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(
        isinstance(shard, str) and Path(shard).name == shard for shard in shards.values()
    ):
        raise UserError(
            f"found no usable weight_map in {index}; expected names of files in that folder; "
            "download it again"
        )
    read = {shard: safetensors.read(index.parent / shard) for shard in sorted(set(shards.values()))}
    missing = [name for name, shard in shards.items() if name not in read[shard]]
    if missing:
        raise UserError(
            f"found no {missing[0]} in {index.parent / shards[missing[0]]}; expected it there by "
            f"{index.name}; download both again"
        )
    return {name: read[shard][name] for name, shard in shards.items()}


def load(
    shapes: Any,
    tensors: Mapping[str, Tensor],
    names: Names,
    *,
    folder: Path,
    dtype: Dtype,
    shardings: Any = None,
    unused: Sequence[str] = (),
) -> Any:
    """The parameters of a network, each placed on its devices as soon as it is read.

    No more than one tensor is in host memory besides the result. Where an array is sharded, a
    process reads the parts that its devices hold.

    Args:
      shapes: tree of parameters with jax.ShapeDtypeStruct for arrays.
      tensors: by name in the files.
      names: path of a module -> names.
      folder: for messages.
      dtype: of the result.
      shardings: tree of `shapes`' structure; None for the default device.
      unused: beginnings of names that are left out.

    Raises:
      UserError: a missing tensor, one of another shape, or one that the network does not have.
    """
    flat = traverse_util.flatten_dict(shapes, sep="/")
    placed = {} if shardings is None else traverse_util.flatten_dict(shardings, sep="/")
    left = {
        name
        for name in tensors
        if not name.endswith(IGNORED) and not name.startswith(tuple(unused))
    }
    found = {}
    for path, leaf in flat.items():
        parts = _parts(path, tensors, names, folder)
        left -= {part.name for part in parts}
        views = [_view(part, leaf.shape, len(parts), path.endswith("/kernel")) for part in parts]
        found[path] = _place(views, leaf.shape, dtype, placed.get(path))
        for part in parts:
            part.forget()
    if left:
        raise UserError(
            f"found {len(left)} tensors in {folder} that the network of its config.json does not "
            f"have, such as {min(left)}; expected none; use both files of the same model"
        )
    return traverse_util.unflatten_dict(found, sep="/")


def _parts(path: str, tensors: Mapping[str, Tensor], names: Names, folder: Path) -> list[Tensor]:
    owner, _, parameter = path.rpartition("/")
    alternatives = [[f"{name}.{LEAVES[parameter]}" for name in ones] for ones in names(owner)]
    for wanted in alternatives:
        if all(name in tensors for name in wanted):
            return [tensors[name] for name in wanted]
    absent = next(name for name in alternatives[0] if name not in tensors)
    raise UserError(
        f"found no tensor {absent} in {folder}; expected a complete network of its config.json; "
        "download its weights again"
    )


def _view(part: Tensor, shape: tuple[int, ...], number: int, is_kernel: bool) -> np.ndarray:
    """A tensor in diffjax's order of axes: torch stores (out, in, height, width)."""
    wanted = (*shape[:-1], shape[-1] // number)
    array = part.array
    if is_kernel and len(wanted) == 2 and part.shape[2:] == (1, 1):
        array = array.reshape(part.shape[:2])
    if is_kernel:
        array = array.transpose((2, 3, 1, 0) if array.ndim == 4 else None)
    if array.shape != wanted:
        expected = wanted
        if is_kernel:
            expected = (wanted[-1], wanted[-2], *wanted[:-2])
        raise UserError(
            f"found {part.name} of shape {part.shape} in {part.path}; expected {expected} from "
            "config.json; use both files of the same model"
        )
    return array


def _place(views: list[np.ndarray], shape: tuple[int, ...], dtype: Dtype, sharding: Any) -> Any:
    whole = views[0] if len(views) == 1 else np.concatenate(views, axis=-1)

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        return np.array(whole if index is None else whole[index], dtype, order="C")

    if sharding is None:
        return jax.device_put(part(None))
    return jax.make_array_from_callback(shape, sharding, part)
