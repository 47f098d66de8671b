"""Weights in a user's file: PyTorch's format or safetensors, neither of which is unpickled."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from diffjax.errors import UserError
from diffjax.files import expanded
from diffjax.torch_files import read_state_dict


def read_weights(
    path: str | os.PathLike[str], *, what: str, prefix: str = ""
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a .safetensors file, or of one written by torch.save, by name.

    Args:
      path: the file; ".safetensors" is read as such, any other suffix as PyTorch's.
      what: whose weights are expected, for the message.
      prefix: only names that start with it are read; names keep it.

    Raises:
      UserError: no such file, a truncated one, or one of another format.
    """
    path = expanded(path)
    if path.suffix != ".safetensors":
        return read_state_dict(path, prefix=prefix)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as stored:
            names = [name for name in stored.keys() if name.startswith(prefix)]  # noqa: SIM118
            return {name: stored.get_tensor(name) for name in names}
    except (OSError, SafetensorError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"cannot read {path} ({reason}); expected {what} as .safetensors; "
            "save or download it again"
        ) from error


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hex.

    Raises:
      UserError: the file can't be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"cannot open {path} ({error.strerror or error}); expected a file of weights; check "
            "the path"
        ) from error


def checked(
    stored: dict[str, npt.NDArray[Any]],
    name: str,
    shape: tuple[int, ...],
    *,
    what: str,
    path: str | os.PathLike[str],
    advice: str,
) -> npt.NDArray[np.float64]:
    """One array in float64, which must have a shape and be finite.

    Raises:
      UserError: no such array, or one of another shape or with NaN; `advice` says what to do.
    """
    found = stored[name].shape if name in stored else "nothing"
    if found != shape:
        raise UserError(
            f"the weights in {path} are not {what}: found {found} for {name}, expected {shape}; "
            f"{advice}"
        )
    array = stored[name].astype(np.float64)
    if not np.isfinite(array).all():
        raise UserError(
            f"the weights in {path} have NaN or infinity in {name}; expected finite numbers; "
            f"{advice}"
        )
    return array
