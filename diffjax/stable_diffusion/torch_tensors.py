"""Tensors of files that torch.save wrote: .bin, .ckpt, .pt and .pth. No pickle is executed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diffjax.conditioning.model_folder import Tensors, of_index, tensors_of_file
from diffjax.errors import UserError
from diffjax.torch_files import StateDict


class TorchTensors(Tensors):
    """The tensors of one file or of several, read one by one; see `torch_files.StateDict`."""

    def __init__(self, files: Mapping[str, Path], stored: Mapping[Path, StateDict]) -> None:
        """Takes the files of `files`, opened."""
        super().__init__(files)
        self._stored = stored

    def check(self) -> None:
        """See `Tensors.check`."""
        there = {path: set(stored) for path, stored in self._stored.items()}
        for name, path in self.files.items():
            if name not in there[path]:
                raise UserError(
                    f"found no {name} in {path}; expected it there by the index; download both "
                    "again"
                )

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Tensors.shape`."""
        return self._stored[self.files[name]].shape(name)

    def metadata(self) -> dict[str, str]:
        """None."""
        return {}

    def read(self, name: str, *, shape: Sequence[int], index: tuple[slice, ...] = ()) -> np.ndarray:
        """See `Tensors.read`; a part is read with its whole."""
        self.check_shape(name, shape)
        return self._stored[self.files[name]].read(name)[index]


def of_file(path: Path) -> Tensors:
    """The tensors of a file: safetensors by its suffix, or else torch's.

    Raises:
      UserError: no such file, or one that can't be read.
    """
    if path.suffix == ".safetensors":
        return tensors_of_file(path)
    stored = StateDict(path)
    return TorchTensors(dict.fromkeys(stored, stored.path), {stored.path: stored})


def of_folder(folder: Path, *, stem: str, variants: Sequence[str] = ("",)) -> TorchTensors | None:
    """The tensors of a folder's .bin files; None if there are none.

    Args:
      folder: the folder.
      stem: of the files' names.
      variants: as for `model_folder.tensors_of`.

    Raises:
      UserError: a file that is missing or that can't be read.
    """
    for middle in (f".{variant}" if variant else "" for variant in variants):
        whole = folder / f"{stem}{middle}.bin"
        if whole.is_file():
            stored = StateDict(whole)
            return TorchTensors(dict.fromkeys(stored, whole), {whole: stored})
        for name in (f"{stem}.bin.index{middle}.json", f"{stem}{middle}.bin.index.json"):
            if (folder / name).is_file():
                files = of_index(folder / name)
                return TorchTensors(files, {path: StateDict(path) for path in set(files.values())})
    return None
