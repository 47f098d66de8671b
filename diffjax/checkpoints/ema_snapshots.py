"""EMA snapshots stored during training, <workdir>/ema/, and post-hoc EMAs rebuilt from them.

One file holds the average of one width at one step, so an interrupted save damages no other file:
<step>_<sigma_rel>.npz, a zip of float32 arrays named by their path in the tree. zip stores a CRC-32
of each, which is checked on reading; np.load can read the file. `posthoc_ema` has the maths. The
last rebuilt average is stored in the same folder and format as rebuilt.npz.
"""

import contextlib
import functools
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np

from diffjax import posthoc_ema
from diffjax.ema import gamma_from_sigma_rel
from diffjax.errors import UserError
from diffjax.files import atomic_write
from diffjax.posthoc_ema import Profile

FOLDER = "ema"  # of a workdir
REBUILT = "rebuilt.npz"
DOUBTFUL = 0.1  # residual above which the rebuilt EMA is a poor fit to the requested sigma_rel
_NAME = re.compile(r"(\d+)_(\d[\d.e-]*)\.npz")
# A snapshot with less weight than this changes no digit of a float32.
_NOTHING = 1e-9
# Scalars stored with a rebuilt average; no path in a tree has these names.
_NUMBERS = ("step", "sigma_rel", "residual")


class Snapshot(NamedTuple):
    """A stored average: its step and width, and its file."""

    profile: Profile
    path: Path


class Rebuilt(NamedTuple):
    """An average rebuilt from snapshots.

    Attributes:
      params: NumPy arrays in the requested structure and types.
      step: number of updates it averages over.
      sigma_rel: its width.
      residual: `posthoc_ema.residual`; above DOUBTFUL it is a poor fit to `sigma_rel`.
      used: the snapshots combined; () if it was read from a file.
    """

    params: Any
    step: int
    sigma_rel: float
    residual: float
    used: tuple[Snapshot, ...] = ()


def save(folder: str | Path, step: int, averages: Mapping[float, Any]) -> list[Snapshot]:
    """Writes one file per average; one of the same step and width is replaced.

    Args:
      folder: <workdir>/ema, created if missing.
      step: updates made, from 1.
      averages: sigma_rel -> parameters, averaged by `ema.power_decay`; stored as float32.

    Returns:
      The snapshots written.

    Raises:
      ValueError: step below 1, or a sigma_rel out of range.
      UserError: the folder can't be written to, or the disk is full.
    """
    if step < 1:
        raise ValueError(f"step must be 1 or more, not {step}")
    written = []
    for sigma_rel, params in averages.items():
        gamma_from_sigma_rel(sigma_rel)  # validates the range
        profile = Profile(int(step), float(sigma_rel))
        # repr is the shortest text that parses to the same float64.
        path = Path(folder) / f"{profile.step:09d}_{profile.sigma_rel!r}.npz"
        _save(path, _float32(params))
        written.append(Snapshot(profile, path))
    return written


def listing(folder: str | Path) -> list[Snapshot]:
    """All snapshots of a folder by step and width, from file names alone; [] without a folder.

    Raises:
      UserError: the folder can't be read.
    """
    found = []
    try:
        for path in Path(folder).iterdir():
            match = _NAME.fullmatch(path.name)
            if match:
                found.append(Snapshot(Profile(int(match[1]), float(match[2])), path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"can't read {folder}: {error.strerror}; expected the ema folder of a workdir"
        ) from error
    return sorted(found)


def load(path: str | Path, like: Any) -> Any:
    """A stored average in the structure of `like`, as float32 NumPy arrays.

    Args:
      path: a file of `save`.
      like: parameters of the expected structure and shapes, or jax.ShapeDtypeStruct.

    Raises:
      UserError: the file is missing, damaged, or of another structure.
    """
    try:
        arrays = _load(path, _flat(like), what="the snapshot")
    except FileNotFoundError:
        raise UserError(f"there is no snapshot {path}: use one of that folder") from None
    except _Damaged as error:
        raise UserError(
            f"the snapshot {path} is damaged or not a snapshot ({error}): remove it and rebuild "
            "from the others"
        ) from error
    return jax.tree.unflatten(jax.tree.structure(like), arrays.values())


def drop_after(folder: str | Path, step: int) -> list[Snapshot]:
    """Removes the snapshots after a step, which a run resumed from that step writes again.

    An average rebuilt for a later step is removed too.

    Args:
      folder: <workdir>/ema; it may be missing.
      step: the last step to keep.

    Returns:
      The snapshots removed.

    Raises:
      UserError: a file can't be removed.
    """
    later = [snapshot for snapshot in listing(folder) if snapshot.profile.step > step]
    for snapshot in later:
        _remove(snapshot.path)
    rebuilt = Path(folder) / REBUILT
    # A damaged file is kept; `load_rebuilt` reports it.
    with contextlib.suppress(FileNotFoundError, _Damaged):
        if _numbers(rebuilt)["step"] > step:
            _remove(rebuilt)
    return later


def rebuild(folder: str | Path, like: Any, *, sigma_rel: float, step: int | None = None) -> Rebuilt:
    """The average of any width, from the snapshots up to a step.

    Files are read one at a time, and only those of nonzero weight: a stored average is read from
    its own file alone.

    Args:
      folder: <workdir>/ema.
      like: parameters of the structure, shapes and types to return.
      sigma_rel: the requested width, in (0, 12^-1/2].
      step: number of updates to average over; by default the last snapshot's. Between two snapshots
        the parameters since the first are unknown, which the residual shows.

    Raises:
      UserError: no snapshots, none up to `step`, `step` after the last, sigma_rel out of range, or
        a file that can't be read.
    """
    snapshots = listing(folder)
    if not snapshots:
        raise UserError(
            f"there are no snapshots in {folder}: expected the ema folder of a run that stores them"
        )
    steps = sorted({snapshot.profile.step for snapshot in snapshots})
    step = steps[-1] if step is None else step
    if not steps[0] <= step <= steps[-1]:
        raise UserError(
            f"step {step} is outside of the snapshots in {folder}: use one from {steps[0]} to "
            f"{steps[-1]}"
        )
    snapshots = [snapshot for snapshot in snapshots if snapshot.profile.step <= step]
    profiles, wanted = [snapshot.profile for snapshot in snapshots], Profile(step, sigma_rel)
    try:
        weights = posthoc_ema.posthoc_weights(profiles, wanted=wanted)
    except ValueError as error:
        raise UserError(f"can't rebuild from {folder}: {error}") from None
    weights[np.abs(weights) < _NOTHING] = 0.0
    used = [i for i, weight in enumerate(weights) if weight]

    def trees() -> Iterator[Any]:
        for i in used:
            yield load(snapshots[i].path, like)

    params = posthoc_ema.combine(trees(), weights[used])
    return Rebuilt(
        _in_types_of(like, params),
        step,
        sigma_rel,
        posthoc_ema.residual(profiles, weights, wanted=wanted),
        tuple(snapshots[i] for i in used),
    )


def save_rebuilt(folder: str | Path, rebuilt: Rebuilt) -> Path:
    """Writes <folder>/rebuilt.npz in place of the last one, and returns its path.

    It holds the parameters as float32, and the numbers step, sigma_rel and residual.

    Raises:
      UserError: the folder can't be written to, or the disk is full.
    """
    numbers = {name: np.asarray(getattr(rebuilt, name), np.float64) for name in _NUMBERS}
    path = Path(folder) / REBUILT
    _save(path, _float32(rebuilt.params) | numbers)
    return path


def load_rebuilt(folder: str | Path, like: Any) -> Rebuilt:
    """Reads the average that `save_rebuilt` wrote.

    Args:
      folder: <workdir>/ema.
      like: parameters of the structure, shapes and types to return.

    Raises:
      UserError: the file is missing, damaged or of another structure.
    """
    path = Path(folder) / REBUILT
    try:
        numbers = _numbers(path)
        arrays = _load(path, _flat(like), what="the average", scalars=_NUMBERS)
    except FileNotFoundError:
        raise UserError(
            f"there is no {path}: rebuild an average first, with the same command and --mode=ema"
        ) from None
    except _Damaged as error:
        raise UserError(
            f"the average {path} is damaged or not an average ({error}): rebuild it with --mode=ema"
        ) from error
    params = jax.tree.unflatten(jax.tree.structure(like), arrays.values())
    return Rebuilt(
        _in_types_of(like, params), int(numbers["step"]), numbers["sigma_rel"], numbers["residual"]
    )


class _Damaged(Exception):
    """Why a file can't be read, on one line."""


def _load(
    path: str | Path, expected: dict[str, Any], *, what: str, scalars: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Arrays of the names and shapes of `expected`; the file also holds `scalars`."""
    with _reading(path) as archive:
        found = {name.removesuffix(".npy") for name in archive.namelist()} - set(scalars)
        _compare(f"{what} {path}", found, set(expected))
        arrays = {key: _read(archive, key) for key in expected}
    for key, array in arrays.items():
        if array.shape != np.shape(expected[key]):
            raise UserError(
                f"{what} {path} has {key} of {array.shape} where this config has "
                f"{np.shape(expected[key])}: use the config of the run that wrote it"
            )
    return arrays


def _numbers(path: Path) -> dict[str, float]:
    with _reading(path) as archive:
        return {name: float(_read(archive, name)) for name in _NUMBERS}


@contextlib.contextmanager
def _reading(path: str | Path) -> Iterator[zipfile.ZipFile]:
    """The open archive; raises FileNotFoundError, or _Damaged for any other failure to read it."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (FileNotFoundError, UserError):
        raise
    # A truncated file, invalid bytes and a wrong CRC raise many types of exceptions.
    except Exception as error:
        raise _Damaged(_first_line(error)) from error


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        atomic_write(path, functools.partial(_write, arrays=arrays))
    except OSError as error:
        raise UserError(
            f"can't write {path}: {error.strerror or error}; snapshots written before are "
            "untouched: free space or use another --workdir, and run the same command again"
        ) from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"can't remove {path}: {error.strerror}; remove it by hand, or use another --workdir"
        ) from error


def _float32(tree: Any) -> dict[str, np.ndarray]:
    return {key: np.asarray(leaf, np.float32) for key, leaf in _flat(tree).items()}


def _in_types_of(like: Any, params: Any) -> Any:
    return jax.tree.map(lambda array, leaf: array.astype(leaf.dtype), params, like)


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by their path, such as ['conv']['kernel']."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _member(key: str) -> str:
    return f"{key}.npy"


def _write(file: BinaryIO, *, arrays: dict[str, np.ndarray]) -> None:
    # The format of np.savez, which rejects some array names, such as "file".
    with zipfile.ZipFile(file, "w") as archive:
        for key, array in arrays.items():
            with archive.open(_member(key), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _read(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    with archive.open(_member(key)) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _compare(file: str, found: set[str], expected: set[str]) -> None:
    for keys, what in ((expected - found, "lacks"), (found - expected, "has")):
        if keys:
            more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
            raise UserError(
                f"{file} {what} {min(keys)}{more}, unlike this config: use the config "
                "of the run that wrote it"
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
