"""A network's parameters as safetensors in torch's layout: one file, or several with an index.

The inverse of `weights.load`. Tensors are written one after another, so that no more than one is
in memory besides the parameters; the library's writer takes all tensors of a file at once.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diffjax.files import atomic_write
from diffjax.stable_diffusion.names import LEAVES, Names
from diffjax.types import Dtype

# Of one file, as in diffusers.
SHARD_BYTES = 10_000_000_000

_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# Linear maps of the channels that torch has as 1x1 convolutions, the projections in some networks.
_CONVS = ("conv_shortcut", "quant_conv", "post_quant_conv")
_PROJECTIONS = ("proj_in", "proj_out")
# torch's axes of a kernel, by its number of axes here.
_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}


class Stored(NamedTuple):
    """A tensor of a file.

    Attributes:
      name: in the file.
      shape: in torch's order of axes.
      dtype: of the file.
      array: () -> its values.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    array: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """In bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def convolutions(*, linear_projection: bool) -> Callable[[str], bool]:
    """Whether a linear map is stored as a 1x1 convolution, by its module's name.

    Args:
      linear_projection: of a U-Net's config, `use_linear_projection`.
    """
    modules = _CONVS if linear_projection else (*_CONVS, *_PROJECTIONS)
    return lambda name: name.rpartition(".")[2] in modules


def tensors_of(
    params: Any, names: Names, *, is_conv: Callable[[str], bool], dtype: Dtype | None = None
) -> list[Stored]:
    """The tensors of a network's parameters, by the first of their alternative names.

    Args:
      params: the parameters.
      names: path of a module -> names.
      is_conv: see `convolutions`.
      dtype: of the tensors; None for that of each parameter.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    return [
        stored
        for path in sorted(flat)
        for stored in _parts(path, flat[path], names, is_conv, dtype)
    ]


def _parts(
    path: str,
    leaf: Any,
    names: Names,
    is_conv: Callable[[str], bool],
    dtype: Dtype | None,
) -> Iterator[Stored]:
    owner, _, parameter = path.rpartition("/")
    modules = names(owner)[0]
    is_kernel = parameter == "kernel"
    axes = _AXES[leaf.ndim] if is_kernel else tuple(range(leaf.ndim))
    width = leaf.shape[-1] // len(modules)
    kind = np.dtype(jnp.dtype(dtype or leaf.dtype))
    for number, module in enumerate(modules):
        shape = tuple((*leaf.shape[:-1], width)[axis] for axis in axes)
        if is_kernel and leaf.ndim == 2 and is_conv(module):
            shape = (*shape, 1, 1)

        def array(number: int = number, shape: tuple[int, ...] = shape) -> np.ndarray:
            part = np.asarray(leaf)[..., number * width : (number + 1) * width]
            return np.ascontiguousarray(part.transpose(axes), kind).reshape(shape)

        yield Stored(f"{module}.{LEAVES[parameter]}", shape, kind, array)


def write(
    folder: Path, stem: str, tensors: Sequence[Stored], *, shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Writes `<stem>.safetensors` or, if that were larger than `shard_bytes`, several and an index.

    Args:
      folder: of the network.
      stem: "model" or "diffusion_pytorch_model".
      tensors: those of `tensors_of`.
      shard_bytes: of a file; a larger tensor has one to itself.

    Returns:
      The written files.

    Raises:
      UserError: the folder can't be written to.
    """
    shards = _shards(tensors, shard_bytes)
    if len(shards) == 1:
        return [write_file(folder / f"{stem}.safetensors", tensors)]
    written: list[Path] = []
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        written.append(write_file(folder / name, shard))
        places |= {tensor.name: name for tensor in shard}
    total = sum(tensor.size for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    return [*written, write_json(folder / f"{stem}.safetensors.index.json", index)]


def write_file(
    path: Path, tensors: Sequence[Stored], metadata: dict[str, str] | None = None
) -> Path:
    """Writes a file of safetensors: the header's length, the header as JSON, the values.

    Raises:
      UserError: the folder can't be written to.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    start = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _CODES[tensor.dtype.name],
            "shape": tensor.shape,
            "data_offsets": (start, start + tensor.size),
        }
        start += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def content(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            # As bytes: bfloat16 has no buffer of its own.
            file.write(tensor.array().reshape(-1).view(np.uint8).data)

    atomic_write(path, content)
    return path


def write_json(path: Path, values: dict[str, Any]) -> Path:
    """Writes a JSON object.

    Raises:
      UserError: the folder can't be written to.
    """
    text = json.dumps(values, indent=2) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))
    return path


def _shards(tensors: Sequence[Stored], shard_bytes: int) -> list[list[Stored]]:
    shards: list[list[Stored]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.size > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size
    return shards
