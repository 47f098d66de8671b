"""A network's parameters from files of weights, cast while they are read."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from diffjax.conditioning.model_folder import Tensors, tensors_of
from diffjax.errors import UserError
from diffjax.stable_diffusion import sources, torch_tensors
from diffjax.stable_diffusion.names import LEAVES, Names
from diffjax.types import Dtype

# Tensors of older files that hold no weights.
IGNORED = ("position_ids",)
VARIANTS = ("fp16", "bf16")
# Stems of torch's files that differ.
TORCH_STEMS = {"model": "pytorch_model"}


def find(folder: Path, stem: str, *, variant: str | None = None) -> Tensors:
    """The tensors of a folder: safetensors or, where there are none, what torch.save wrote.

    Args:
      folder: of a network, or a part of a file, see `sources`.
      stem: "model" or "diffusion_pytorch_model".
      variant: "fp16" for the files of that name; None for those without a variant or, where there
        are none, those of `VARIANTS`.

    Raises:
      UserError: no such files, or corrupt ones.
    """
    file = sources.file_of(folder)
    if file is not None:
        return sources.tensors_of(folder, file)
    variants = [variant] if variant else ["", *VARIANTS]
    found = None
    if not any(folder.glob(f"{stem}*.safetensors*")):
        found = torch_tensors.of_folder(folder, stem=TORCH_STEMS.get(stem, stem), variants=variants)
    tensors = found or tensors_of(folder, stem=stem, variants=variants)
    tensors.check()
    return tensors


def digest(tensors: Tensors) -> str:
    """SHA-256 of the name, the shape and the first row of each tensor, in hex.

    Fine-tuning changes them, and weights of gigabytes need not be read as a whole.
    """
    sha256 = hashlib.sha256()
    for name in sorted(tensors.files):
        shape = tensors.shape(name)
        index = (slice(0, 1), *(slice(None),) * (len(shape) - 1))[: len(shape)]
        row = tensors.read(name, shape=shape, index=index)
        sha256.update(f"{name} {shape} {row.dtype}".encode())
        sha256.update(np.ascontiguousarray(row).tobytes())
    return sha256.hexdigest()


def load(
    shapes: Any,
    tensors: Tensors,
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
      tensors: of its files.
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
        for name in tensors.files
        if not name.endswith(IGNORED) and not name.startswith(tuple(unused))
    }
    found = {}
    for path, leaf in flat.items():
        parts = _parts(path, tensors, names, folder)
        left -= set(parts)
        view = _view(tensors, parts, leaf.shape, is_kernel=path.endswith("/kernel"))
        found[path] = _place(view, leaf.shape, dtype, placed.get(path))
    if left:
        raise UserError(
            f"found {len(left)} tensors in {folder} that its network does not have, such as "
            f"{min(left)}; expected none; use the config.json and the weights of the same model"
        )
    return traverse_util.unflatten_dict(found, sep="/")


def _parts(path: str, tensors: Tensors, names: Names, folder: Path) -> list[str]:
    owner, _, parameter = path.rpartition("/")
    alternatives = [[f"{name}.{LEAVES[parameter]}" for name in ones] for ones in names(owner)]
    for wanted in alternatives:
        if all(name in tensors.files for name in wanted):
            return wanted
    absent = next(name for name in alternatives[0] if name not in tensors.files)
    raise UserError(
        f"found no tensor {absent} in {folder}; expected a complete network; download its weights "
        "again"
    )


def _view(
    tensors: Tensors, parts: Sequence[str], shape: tuple[int, ...], *, is_kernel: bool
) -> Callable[[tuple[slice, ...]], np.ndarray]:
    """An index into a parameter -> that part of it, read from the files.

    torch has a kernel's axes in the order (out, in, height, width).
    """
    each = (*shape[:-1], shape[-1] // len(parts))
    # The file's axis of each of ours.
    axes = {2: (1, 0), 4: (2, 3, 1, 0)}[len(shape)] if is_kernel else tuple(range(len(shape)))
    stored = tuple(each[axes.index(axis)] for axis in range(len(shape)))
    # A linear map may be stored as a 1x1 convolution.
    is_linear = is_kernel and len(shape) == 2
    pointwise = (1, 1) if is_linear and tensors.shape(parts[0])[2:] == (1, 1) else ()

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
        place = tuple(index[axes.index(axis)] for axis in range(len(shape)))
        array = tensors.read(
            name, shape=(*stored, *pointwise), index=place + (slice(None),) * len(pointwise)
        )
        return array.reshape(array.shape[: len(shape)]).transpose(axes)

    def view(index: tuple[slice, ...]) -> np.ndarray:
        if len(parts) == 1:
            return read(parts[0], index)
        everything = (slice(None),) * len(shape)
        return np.concatenate([read(name, everything) for name in parts], axis=-1)[index]

    return view


def _place(
    view: Callable[[tuple[slice, ...]], np.ndarray],
    shape: tuple[int, ...],
    dtype: Dtype,
    sharding: Any,
) -> Any:
    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        return np.array(view(index or (slice(None),) * len(shape)), dtype, order="C")

    if sharding is None:
        return jax.device_put(part(None))
    return jax.make_array_from_callback(shape, sharding, part)
