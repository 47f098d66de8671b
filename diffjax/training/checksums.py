"""SHA-256 of what a checkpoint holds, told in a manifest that is stored in the same commit.

The digests are of the arrays in memory, before they are written and after they are read, so they
cover the disk, the file system and the library in between. The manifest holds a digest of itself:
a flipped bit in a name must not look like a state of another structure.
"""

import hashlib
import json
from typing import Any

import jax
import numpy as np

Manifest = dict[str, Any]


class Damaged(Exception):
    """What was read is not what was written; the message says where, in a few words."""


def manifest(state: Any, data: dict[str, Any], *, loss: float) -> Manifest:
    """What `verify` compares with; JSON can hold it.

    Args:
      state: a pytree of arrays.
      data: the batch iterator's position.
      loss: what the best checkpoint is told by.
    """
    content = {
        "arrays": {key: [*_kind(leaf), _digest(leaf)] for key, leaf in _flat(state).items()},
        "data": _digest_json(data),
        "loss": float(loss),
    }
    return {**content, "digest": _digest_json(content)}


def check(stored: Any) -> Manifest:
    """A manifest that was read, if it is one.

    Raises:
      Damaged: it is not what `manifest` made.
    """
    if isinstance(stored, dict):
        content = {key: value for key, value in stored.items() if key != "digest"}
        if stored.get("digest") == _digest_json(content):
            return stored
    raise Damaged("the list of checksums itself")


def difference(stored: Manifest, like: Any) -> str | None:
    """The first way in which a checked manifest is of another structure than `like`, in words."""
    ours = {key: _kind(leaf) for key, leaf in _flat(like).items()}
    theirs = {key: kind for key, (*kind, _) in stored["arrays"].items()}
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in theirs:
            return f"it has no {key}"
        if key not in ours:
            return f"it has {key}, which this config has not"
        if ours[key] != theirs[key]:
            return f"its {key} is {_told(theirs[key])}, this config's {_told(ours[key])}"
    return None


def verify(stored: Manifest, state: Any, data: dict[str, Any]) -> None:
    """Compares what was read with a checked manifest of the same structure.

    Raises:
      Damaged: names the first thing that differs.
    """
    for key, leaf in _flat(state).items():
        if stored["arrays"][key] != [*_kind(leaf), _digest(leaf)]:
            raise Damaged(f"the checksum of {key} differs")
    if stored["data"] != _digest_json(data):
        raise Damaged("the checksum of the data position differs")


def _flat(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _kind(leaf: Any) -> list[Any]:
    return [str(leaf.dtype), list(leaf.shape)]


def _told(kind: list[Any]) -> str:
    return f"{kind[0]} {tuple(kind[1])}"


def _digest(leaf: Any) -> str:
    # As bytes by a view: bfloat16 has no buffer that hashlib takes.
    return hashlib.sha256(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data).hexdigest()


def _digest_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
