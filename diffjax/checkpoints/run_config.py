"""The stored config of a run: config.json, and nested keys joined by dots."""

import json
from pathlib import Path
from typing import Any

from diffjax.errors import UserError


def read_json(path: Path) -> Any:
    """The object that a JSON file holds, or None without a file.

    Raises:
      UserError: the file is not JSON, or holds something else.
    """
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not JSON ({error}): remove it or use another --workdir"
        ) from None
    if not isinstance(found, dict):
        raise UserError(
            f"{path} holds a {type(found).__name__}, expected a JSON object: remove it or use "
            "another --workdir"
        )
    return found


def from_json(tree: Any) -> Any:
    """Converts JSON's lists back to tuples."""
    if isinstance(tree, dict):
        return {key: from_json(value) for key, value in tree.items()}
    return tuple(map(from_json, tree)) if isinstance(tree, list) else tree


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
