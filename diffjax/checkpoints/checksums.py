"""SHA-256 of what a checkpoint holds, told in a manifest that is stored in the same commit.

The digests are of the arrays in memory, before they are written and after they are read, so they
cover the disk, the file system and the library in between. The manifest holds a digest of itself:
a flipped bit in a name must not look like a state of another structure.
"""

import hashlib
import json
from typing import Any

import numpy as np

Manifest = dict[str, Any]


class Damaged(Exception):
    """What was read is not what was written; the message says where, in a few words."""


def manifest(
    state: Any, data: dict[str, Any], *, loss: float, about: dict[str, Any] | None = None
) -> Manifest:
    """What `verify` compares with; JSON can hold it.

    Args:
      state: a pytree of arrays.
      data: the batch iterator's position.
      loss: what the best checkpoint is told by.
      about: what the run knows of its data, where it says so.
    """
    content: Manifest = {
        "arrays": {key: [*kind(leaf), digest(leaf)] for key, leaf in _flat(state).items()},
        "data": digest_json(data),
        "loss": float(loss),
    }
    if about is not None:
        content["about"] = digest_json(about)
    return {**content, "digest": digest_json(content)}


def check(stored: Any) -> Manifest:
    """A manifest that was read, if it is one.

    Raises:
      Damaged: it is not what `manifest` made.
    """
    if isinstance(stored, dict):
        content = {key: value for key, value in stored.items() if key != "digest"}
        if stored.get("digest") == digest_json(content):
            return stored
    raise Damaged("the list of checksums itself")


def difference(stored: Manifest, like: Any) -> str | None:
    """The first way in which a checked manifest is of another structure than `like`, in words."""
    ours = {key: kind(leaf) for key, leaf in _flat(like).items()}
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
        if stored["arrays"][key] != [*kind(leaf), digest(leaf)]:
            raise Damaged(f"the checksum of {key} differs")
    if stored["data"] != digest_json(data):
        raise Damaged("the checksum of the data position differs")


def _flat(tree: Any) -> dict[str, Any]:
    import jax

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def kind(leaf: Any) -> list[Any]:
    """[dtype, shape] as JSON has them."""
    return [str(leaf.dtype), list(leaf.shape)]


def _told(kind: list[Any]) -> str:
    return f"{kind[0]} {tuple(kind[1])}"


def digest(leaf: Any) -> str:
    """SHA-256 of an array's bytes, in hex."""
    # As bytes by a view: bfloat16 has no buffer that hashlib takes.
    return hashlib.sha256(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data).hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of a value that JSON can hold, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
