"""Files of a model's folder: JSON, and tensors by the library safetensors. No pickle is read."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax  # noqa: F401  NumPy's bfloat16
import numpy as np
from safetensors import SafetensorError, safe_open

from diffjax.errors import UserError

# What is read of a file stays in memory until it is closed.
BYTES_A_TIME = 1 << 25


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
      UserError: no such folder or file, or other content.
    """
    if not path.parent.is_dir():
        raise UserError(
            f"found no folder {path.parent}; expected one with config.json, model.safetensors and "
            "a tokenizer, as Hugging Face's save_pretrained writes it; check the path"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"found no {path.name} in {path.parent}; expected a model's folder as Hugging Face's "
            "save_pretrained writes it; download the missing file"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"cannot read {path} ({type(error).__name__}); expected JSON; download it again"
        ) from error
    if not isinstance(value, dict):
        raise UserError(
            f"found a {type(value).__name__} in {path}; expected a JSON object; download it again"
        )
    return value


class Tensors:
    """The tensors of a folder, read one by one.

    Attributes:
      files: the file of each tensor, by the tensor's name.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = files
        self._path: Path | None = None
        self._file: Any = None
        self._left = 0

    def check(self) -> None:
        """Checks that each file has what it should.

        Raises:
          UserError: a tensor that its file does not have, or a file that is missing or corrupt.
        """
        for path in sorted(set(self.files.values())):
            there = set(self._opened(path).keys())
            for name, place in self.files.items():
                if place == path and name not in there:
                    raise UserError(
                        f"found no {name} in {path}; expected it there by the index; download both "
                        "again"
                    )

    def shape(self, name: str) -> tuple[int, ...]:
        """As stored.

        Raises:
          UserError: no such file or tensor, or a corrupt file.
        """
        path = self.files[name]
        try:
            return tuple(self._opened(path).get_slice(name).get_shape())
        except SafetensorError as error:
            raise _unreadable(name, path, error) from error

    def metadata(self) -> dict[str, str]:
        """What the files say about themselves.

        Raises:
          UserError: a file that is missing or corrupt.
        """
        made: dict[str, str] = {}
        for path in sorted(set(self.files.values())):
            made |= self._opened(path).metadata() or {}
        return made

    def read(self, name: str, *, shape: Sequence[int], index: tuple[slice, ...] = ()) -> np.ndarray:
        """A tensor, or a part of it, in its own type.

        Args:
          name: one of `files`.
          shape: that it must have.
          index: of the part; () for all.

        Raises:
          UserError: no such file or tensor, another shape, or a corrupt file.
        """
        path = self.files[name]
        self.check_shape(name, shape)
        try:
            file = self._opened(path)
            array: np.ndarray = file.get_slice(name)[index] if index else file.get_tensor(name)
        except (SafetensorError, TypeError, AttributeError) as error:  # a type that NumPy lacks
            raise _unreadable(name, path, error) from error
        self._left -= array.nbytes
        return array

    def check_shape(self, name: str, shape: Sequence[int]) -> None:
        """Raises UserError for a tensor of another shape."""
        found = self.shape(name)
        if found != tuple(shape):
            raise UserError(
                f"found {name} of shape {found} in {self.files[name]}; expected {tuple(shape)} for "
                "its network; use the config.json and the weights of the same model"
            )

    def beginning(self, prefix: str) -> Self:
        """Those whose names begin with a prefix, which they keep."""
        made = copy.copy(self)
        made.files = {name: path for name, path in self.files.items() if name.startswith(prefix)}
        return made

    def _opened(self, path: Path) -> Any:
        if path != self._path or self._left <= 0:
            self._file = None  # closes it
            self._path, self._file, self._left = path, _open(path), BYTES_A_TIME
        return self._file


def tensors_of_file(path: Path) -> Tensors:
    """The tensors of one safetensors file.

    Raises:
      UserError: no such file, or a corrupt one.
    """
    return Tensors(dict.fromkeys(_open(path).keys(), path))


def tensors_of(folder: Path, *, stem: str = "model", variants: Sequence[str] = ("",)) -> Tensors:
    """The tensors of a folder's safetensors, of one file or of several with an index.

    Args:
      folder: the folder.
      stem: of the files' names.
      variants: such as "fp16" for `<stem>.fp16.safetensors`, "" for none: the first one that is
        there is taken.

    Raises:
      UserError: no safetensors, or a corrupt file or index; a folder with only pickles.
    """
    if not folder.is_dir():
        raise UserError(
            f"found no folder {folder}; expected one with config.json and {stem}.safetensors; "
            "download it"
        )
    for middle in (f".{variant}" if variant else "" for variant in variants):
        whole = folder / f"{stem}{middle}.safetensors"
        if whole.is_file():
            return tensors_of_file(whole)
        for name in (
            f"{stem}.safetensors.index{middle}.json", f"{stem}{middle}.safetensors.index.json",
        ):  # fmt: skip
            if (folder / name).is_file():
                return Tensors(of_index(folder / name))
    wanted = f"{stem}{variants[0] and '.'}{variants[0]}.safetensors"
    pickles = sorted(
        path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt")
    )
    if pickles:
        raise UserError(
            f"found {pickles[0]} in {folder} and no {wanted}; expected safetensors, since a pickle "
            "can run code; if you trust it, convert the model with the library that wrote it, by "
            "from_pretrained and save_pretrained"
        )
    raise UserError(
        f"found no {wanted} in {folder}; expected that or {wanted}.index.json; download it"
    )


def first_line(error: Exception) -> str:
    """Of an error's message; its type's name if there is none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def of_index(index: Path) -> dict[str, Path]:
    """The file of each tensor by an index of shards.

    Raises:
      UserError: no such index.
    """
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(
        isinstance(shard, str) and Path(shard).name == shard for shard in shards.values()
    ):
        raise UserError(
            f"found no usable weight_map in {index}; expected names of files in that folder; "
            "download it again"
        )
    return {name: index.parent / shard for name, shard in shards.items()}


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except FileNotFoundError as error:
        raise UserError(
            f"found no {path.name} in {path.parent}; expected that part of the weights; download it"
        ) from error
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot read {path} ({first_line(error)}); expected a safetensors file; download it "
            "again"
        ) from error


def _unreadable(name: str, path: Path, error: Exception) -> UserError:
    return UserError(
        f"cannot read {name} from {path} ({first_line(error)}); expected that tensor, as numbers; "
        "download the weights again"
    )
