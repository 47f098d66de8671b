"""Peers that round to float32, or draw noise, made to compute in float64 with noise of ours."""

import contextlib
import importlib
import itertools
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np


class _Torch:
    """torch, with some names meaning something else."""

    def __init__(self, torch: Any, instead: dict[str, Any]) -> None:
        self._torch, self._instead = torch, instead

    def __getattr__(self, name: str) -> Any:
        return self._instead[name] if name in self._instead else getattr(self._torch, name)


@contextlib.contextmanager
def in_double(module: ModuleType, noise: np.ndarray | None) -> Iterator[None]:
    """Within it `torch.float32` in the module is float64, and its draws are `noise`, in turn, or 0.

    Their arithmetic is left as it is: only names that the module looks up are others.
    """
    torch: Any = importlib.import_module("torch")
    rest = itertools.repeat(0.0) if noise is None else iter(noise)

    def draw(*_: Any, **__: Any) -> Any:
        return torch.tensor(next(rest))

    instead: dict[str, Any] = {"torch": _Torch(torch, {"float32": torch.float64,
                                                       "randn_like": draw})}  # fmt: skip
    if hasattr(module, "randn_tensor"):
        instead["randn_tensor"] = draw
    before = {name: getattr(module, name) for name in instead}
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    vars(module).update(instead)
    try:
        yield
    finally:
        vars(module).update(before)
        torch.set_default_dtype(default)
