"""SHA-256 digests of a checkpoint's arrays, in a manifest stored with the checkpoint.

The digests are of the arrays in memory, before writing and after reading, so they cover the disk,
the file system and orbax. The manifest holds a digest of itself, so that a flipped bit in a name is
not mistaken for a state of another structure.
"""

import hashlib
import json
from typing import Any

import numpy as np

Manifest = dict[str, Any]


class Damaged(Exception):
    """The data read differ from the data written; the message names the first difference."""


def manifest(
    state: Any, data: dict[str, Any], *, loss: float, about: dict[str, Any] | None = None
) -> Manifest:
    """The digests of a checkpoint, for `verify`; serialisable as JSON.

    Args:
      state: a pytree of arrays.
      data: the batch iterator's position.
      loss: the held-out loss that selects the best checkpoint.
      about: description of the training data, or None.
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
    """A stored manifest, verified against its own digest.

    Raises:
      Damaged: it is not a manifest, or its digest differs.
    """
    if isinstance(stored, dict):
        content = {key: value for key, value in stored.items() if key != "digest"}
        if stored.get("digest") == digest_json(content):
            return stored
    raise Damaged("the checksum of its manifest differs")


def difference(stored: Manifest, like: Any) -> str | None:
    """Describes the first structural difference between a checked manifest and `like`, or None."""
    ours = {key: kind(leaf) for key, leaf in _flat(like).items()}
    theirs = {key: kind for key, (*kind, _) in stored["arrays"].items()}
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in theirs:
            return f"it has no {key}"
        if key not in ours:
            return f"it has {key}, which this config does not"
        if ours[key] != theirs[key]:
            return f"its {key} is {_describe(theirs[key])}, this config's {_describe(ours[key])}"
    return None


def verify(stored: Manifest, state: Any, data: dict[str, Any]) -> None:
    """Compares a restored state with a checked manifest of the same structure.

    Raises:
      Damaged: names the first difference.
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
    """[dtype, shape], as JSON stores them."""
    return [str(leaf.dtype), list(leaf.shape)]


def _describe(kind: list[Any]) -> str:
    return f"{kind[0]} {tuple(kind[1])}"


def digest(leaf: Any) -> str:
    """SHA-256 of an array's bytes, in hex."""
    # Viewed as bytes: hashlib does not accept bfloat16 buffers.
    return hashlib.sha256(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data).hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of a JSON value, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
