"""Reads the averaged parameters of a checkpoint, without the rest of the state and without orbax.

orbax writes a state with tensorstore, as a database of Zarr arrays (OCDBT) with a list of their
names. Here tensorstore reads the requested arrays; their checksums are compared as in `store`.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffjax.checkpoints.checksums import Damaged, Manifest, check, digest, digest_json, kind
from diffjax.errors import UserError

_logger = logging.getLogger("diffjax")

# The path of an array in a state: keys, names and indices, starting with the field.
Place = tuple[str, ...]

STATE, CHECKSUMS, ABOUT = "state", "checksums", "about"  # items of a checkpoint
# A path in a tree as jax.tree_util.keystr writes it.
_PLACE = re.compile(r"\.([A-Za-z_]\w*)|\[(\d+)\]|\['((?:[^'\\]|\\.)*)'\]")


class Parameters(NamedTuple):
    """A part of a state.

    Attributes:
      step: updates made.
      fields: of the state, by name: nested dictionaries of NumPy arrays with string keys, including
        list indices. `like` converts them to another structure.
      about: description of the training data; None in checkpoints of older versions.
    """

    step: int
    fields: dict[str, Any]
    about: dict[str, Any] | None


def read_parameters(workdir: Path, *, wanted: str, fields: Sequence[str]) -> Parameters | None:
    """Fields of the state of the checkpoint "latest", "best" or of a step.

    "latest" is the latest intact one; each damaged one skipped logs a warning. If "best" or a given
    step is damaged, it is an error.

    Returns:
      None if there are no checkpoints.

    Raises:
      UserError: no such checkpoint, or a damaged one.
    """
    folder = workdir / "checkpoints"
    steps = _steps(folder)
    if not steps:
        return None
    if wanted == "best":
        candidates = [_best(folder, steps)]
    elif wanted.isdecimal():
        if int(wanted) not in steps:
            raise UserError(
                f"there is no checkpoint of step {wanted} in {folder}: use one of {steps}"
            )
        candidates = [int(wanted)]
    else:
        candidates = steps[::-1]
    damaged: dict[int, Damaged] = {}
    for step in candidates:
        try:
            found = _read(folder / str(step), step, fields)
        except Damaged as error:
            damaged[step] = error
            continue
        for bad, why in damaged.items():
            _logger.warning(
                "warning: checkpoint %d is damaged (%s): using that of step %d", bad, why, step
            )
        return found
    first, why = next(iter(damaged.items()))
    if wanted == "latest":
        raise UserError(
            f"none of the checkpoints {steps} in {folder} is intact (step {first}: {why}): "
            "restore a copy of one"
        ) from why
    raise UserError(
        f"the checkpoint {folder / str(first)} is damaged ({why}): use 'latest', the newest intact "
        f"one, or another of {steps}"
    ) from why


def read_about(workdir: Path) -> dict[str, Any] | None:
    """The newest description of the training data in a run's checkpoints; None without any."""
    folder = workdir / "checkpoints"
    for step in reversed(_steps(folder)):
        try:
            found: dict[str, Any] | None = _json(folder / str(step) / ABOUT)
        except Damaged:
            continue
        if found is not None:
            return found
    return None


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def _best(folder: Path, steps: list[int]) -> int:
    losses = {}
    for step in steps:
        try:
            manifest = _json(folder / str(step) / CHECKSUMS)
            if manifest is None:  # an older version: orbax stored the loss
                manifest = json.loads((folder / str(step) / "metrics" / "metrics").read_text())
            losses[step] = float(manifest["loss"])
        except (Damaged, OSError, ValueError, TypeError, KeyError):
            continue
    # Ties go to the later one.
    return min(losses, key=lambda step: (losses[step], -step), default=steps[-1])


def _json(item: Path) -> Any:
    """The content of an item that orbax saved as JSON; None without such an item."""
    path = item / "metadata"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Damaged(f"its {item.name} can't be read: {error}") from error


def _read(folder: Path, step: int, fields: Sequence[str]) -> Parameters:
    stored = _json(folder / CHECKSUMS)
    manifest = None if stored is None else check(stored)
    if manifest is None and _lists(folder, CHECKSUMS):
        raise Damaged("its checksums are missing")
    about = _json(folder / ABOUT)
    if manifest is not None and manifest.get(ABOUT) != (about and digest_json(about)):
        raise Damaged(f"the checksum of its {ABOUT} differs")
    metadata = _json_file(folder / STATE / "_METADATA")
    places = list(_places(metadata, fields))
    try:
        names = [".".join(place) for place in places]
        arrays = _arrays(folder / STATE, names, zarr3=bool(metadata.get("use_zarr3")))
    except Exception as error:  # tensorstore raises several types
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Damaged(f"it can't be read: {first[:100]}") from error
    found = list(zip(places, arrays, strict=True))
    if manifest is not None:
        _verify(manifest, dict(found), fields)
    return Parameters(step, assemble(found, fields), about)


def assemble(found: Iterable[tuple[Place, np.ndarray]], fields: Sequence[str]) -> dict[str, Any]:
    """A nested dictionary of arrays for each field; {} for one without arrays."""
    tree: dict[str, Any] = {}
    for place, array in found:
        _put(tree, place, array)
    return {name: tree.get(name, {}) for name in fields}


def _lists(folder: Path, item: str) -> bool:
    """Whether orbax's metadata lists an item of a checkpoint."""
    try:
        return item.encode() in (folder / "_CHECKPOINT_METADATA").read_bytes()
    except OSError:
        return False


def _json_file(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("tree_metadata"), dict):
            return found
        raise ValueError("it lists no arrays")
    except (OSError, ValueError) as error:
        raise Damaged(f"its list of arrays can't be read: {error}") from error


def _places(metadata: dict[str, Any], fields: Sequence[str]) -> Iterator[Place]:
    """The path of each array of the fields."""
    for entry in metadata["tree_metadata"].values():
        try:
            keys = tuple(str(k["key"]) for k in entry["key_metadata"])
            empty = entry["value_metadata"]["skip_deserialize"]
        except (KeyError, TypeError) as error:
            raise Damaged("its list of arrays is malformed") from error
        if keys[0] in fields and not empty:
            yield keys


def _arrays(state: Path, names: list[str], *, zarr3: bool) -> list[np.ndarray]:
    import tensorstore as ts

    context = ts.Context()
    driver, base = "zarr3" if zarr3 else "zarr", state.resolve().as_uri() + "/"
    stores = [{"driver": "ocdbt", "base": base, "path": name} for name in names]
    opened = [
        ts.open({"driver": driver, "kvstore": store}, context=context, open=True)
        for store in stores
    ]
    reads = [store.result().read() for store in opened]
    return [np.asarray(read.result()) for read in reads]


def _put(tree: dict[str, Any], place: Place, array: np.ndarray) -> None:
    *sections, name = place
    for key in sections:
        tree = tree.setdefault(key, {})
    tree[name] = array


def _verify(manifest: Manifest, arrays: dict[Place, np.ndarray], fields: Sequence[str]) -> None:
    expected = {}
    for name, entry in manifest["arrays"].items():
        place = tuple(field or index or key for field, index, key in _PLACE.findall(name))
        if place and place[0] in fields:
            expected[place] = (name, entry)
    if missing := sorted(expected.keys() ^ arrays.keys()):
        raise Damaged(f"its manifest and its list of arrays disagree on {'.'.join(missing[0])}")
    for place, (name, entry) in expected.items():
        if entry != [*kind(arrays[place]), digest(arrays[place])]:
            raise Damaged(f"the checksum of {name} differs")


def like(tree: Any, shapes: Any, *, what: str) -> Any:
    """Converts nested dictionaries to the structure of a tree of shapes, with lists and tuples.

    Args:
      tree: the nested dictionaries.
      shapes: a network's parameters, with jax.ShapeDtypeStruct for arrays.
      what: the source of the tree, for the message.

    Raises:
      UserError: names the first array that differs.
    """
    import jax

    def flat(tree: Any) -> dict[tuple[str, ...], Any]:
        found = jax.tree_util.tree_leaves_with_path(tree)
        return {
            tuple(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path): x
            for path, x in found
        }

    theirs, ours = flat(tree), flat(shapes)
    for place in sorted(theirs.keys() | ours.keys()):
        name = ".".join(place)
        if place not in theirs:
            raise UserError(f"{what} has no {name}, which this config's network has")
        if place not in ours:
            raise UserError(f"{what} has {name}, which this config's network does not have")
        if theirs[place].shape != ours[place].shape:
            raise UserError(
                f"{what} has {name} of {theirs[place].shape}, this config's network "
                f"{ours[place].shape}"
            )
    return jax.tree.unflatten(jax.tree.structure(shapes), [theirs[place] for place in ours])
