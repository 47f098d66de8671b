"""What of one run's arrays fits another run's state."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

Place = tuple[str, ...]
Shape = tuple[int, ...]


class Fit(NamedTuple):
    """A comparison of stored arrays with those of a state, by name.

    Attributes:
      taken: names that both have, in one shape.
      reshaped: (name, the stored shape, the state's shape) of those in two shapes.
      new: names that the state alone has.
      unused: names that are stored alone.
    """

    taken: tuple[str, ...] = ()
    reshaped: tuple[tuple[str, Shape, Shape], ...] = ()
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether every array of the state was taken, and every stored one used."""
        return not (self.reshaped or self.new or self.unused)

    def __str__(self) -> str:
        """Such as "10 of 12 arrays fit; of another shape: out.kernel (3, 4), not (3, 5); ..."."""
        parts = [f"{len(self.taken)} of {self._wanted} arrays fit"]
        other = [f"{name} {theirs}, not {ours}" for name, theirs, ours in self.reshaped]
        for what, names in (
            ("of another shape", other), ("new", self.new), ("not used", self.unused)
        ):  # fmt: skip
            if names:
                parts.append(f"{what}: {_some(names)}")
        return "; ".join(parts)

    @property
    def _wanted(self) -> int:
        return len(self.taken) + len(self.reshaped) + len(self.new)


def _some(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def fit(tree: Any, stored: Any) -> tuple[Any, Fit]:
    """A tree with the stored arrays that have the place and the shape of its own.

    Args:
      tree: arrays, or jax.ShapeDtypeStruct, in any structure.
      stored: nested dictionaries of arrays, list indices being strings, as `parameters` reads them.

    Returns:
      The tree, in its own dtypes, and the comparison.
    """
    ours, structure = jax.tree_util.tree_flatten_with_path(tree)
    theirs = dict(_flat(stored))
    leaves, taken, reshaped, new = [], [], [], []
    for path, leaf in ours:
        place = tuple(map(_name, path))
        name, array = ".".join(place), theirs.pop(place, None)
        if array is None:
            new.append(name)
        elif array.shape != leaf.shape:
            reshaped.append((name, array.shape, leaf.shape))
        else:
            taken.append(name)
            leaf = array.astype(leaf.dtype)
        leaves.append(leaf)
    unused = tuple(".".join(place) for place in theirs)
    compared = Fit(tuple(taken), tuple(reshaped), tuple(new), unused)
    return jax.tree.unflatten(structure, leaves), compared


def without_counts(stored: Any) -> Any:
    """An optimizer's stored state without the steps that only a schedule counts.

    A count next to moments belongs to their bias correction. A count alone is a schedule's, which
    begins again with a new run.
    """
    if not isinstance(stored, dict):
        return stored
    kept = {name: without_counts(node) for name, node in stored.items()}
    if set(kept) == {"count"}:
        return {}
    return kept


def _flat(tree: Any, place: Place = ()) -> Iterable[tuple[Place, np.ndarray]]:
    if isinstance(tree, dict):
        for name, node in tree.items():
            yield from _flat(node, (*place, name))
    else:
        yield place, np.asarray(tree)


def _name(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))
