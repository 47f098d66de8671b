"""What networks are made of and called with: UserError for anything else.

It happens when a network is traced, and costs nothing when it runs.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.models.condition import Condition


def check_wholes(module: nn.Module, least: dict[str, int]) -> None:
    """Fields that are whole numbers, each of at least its value in `least`."""
    for name, low in least.items():
        arguments.whole(_of(module, name), getattr(module, name), least=low)


def check_listed(module: nn.Module, *names: str, filled: bool = False) -> None:
    """Fields that are tuples of whole numbers, of one or more and positive if `filled`."""
    for name in names:
        value = getattr(module, name)
        found = arguments.wholes(_of(module, name), value)
        if filled and (not found or min(found) < 1):
            raise UserError(
                f"{_of(module, name)} is {value!r}: expected whole numbers of at least 1, one or "
                "more"
            )


def check_functions(module: nn.Module, *names: str) -> None:
    """Fields that are called."""
    for name in names:
        arguments.function(_of(module, name), getattr(module, name))


def check_share(module: nn.Module, name: str) -> None:
    """A field that is a number in [0, 1]."""
    if not 0 <= arguments.number(_of(module, name), getattr(module, name)) <= 1:
        raise UserError(f"{_of(module, name)} is {getattr(module, name)}: expected [0, 1]")


def check_dtype(module: nn.Module) -> None:
    """The field `dtype`, a floating-point type."""
    given: Any = module.dtype
    try:
        floating = given is not None and jnp.issubdtype(jnp.dtype(given), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise UserError(
            f"{_of(module, 'dtype')} is {given!r}: expected a floating-point type, such as "
            "jnp.float32 or jnp.bfloat16"
        )


def check_backbone(module: nn.Module) -> None:
    """The fields that all backbones have: dropout, dtype, attention_fn, perturbed, out_channels and
    remat."""
    fields: Any = module
    check_share(module, "dropout")
    check_dtype(module)
    check_functions(module, "attention_fn")
    arguments.texts(_of(module, "perturbed"), fields.perturbed)
    if fields.out_channels is not None:
        check_wholes(module, {"out_channels": 1})
    if fields.remat is not None:
        check_functions(module, "remat")


def check_images(module: nn.Module, x: Any, *, name: str = "x") -> None:
    """(B, H, W, C) floating-point, none of them 0."""
    what = f"{name} of a {type(module).__name__}"
    kind, shape = getattr(x, "dtype", None), getattr(x, "shape", ())
    if kind is None or not jnp.issubdtype(kind, jnp.floating) or len(shape) != 4 or 0 in shape:
        raise UserError(
            f"{what} is {arguments.shown(x)}: expected floating-point (B, H, W, C), images in "
            "[-1, 1] or latents"
        )


def check_batch(module: nn.Module, x: Any, t: Any, cond: Any, *, spans: bool = False) -> None:
    """Times (B,), or (B, 2) with spans, and a `Condition` or labels, for a batch of images."""
    check_images(module, x)
    what, batch = type(module).__name__, x.shape[0]
    shape = getattr(t, "shape", None)
    expected = (batch, 2) if spans else (batch,)
    if shape != expected or not jnp.issubdtype(t.dtype, jnp.number):
        axes = "(B, 2)" if spans else "(B,)"
        raise UserError(
            f"t of a {what} is {arguments.shown(t)}: expected numbers {axes}, {expected}"
        )
    label = cond.label if isinstance(cond, Condition) else cond
    if label is not None and not isinstance(label, jax.Array | np.ndarray):
        raise UserError(
            f"cond of a {what} is {arguments.shown(label)}: expected None, labels or a Condition"
        )
    if label is not None and (
        label.shape != (batch,) or not jnp.issubdtype(label.dtype, jnp.integer)
    ):
        raise UserError(
            f"the labels (cond) of a {what} are {arguments.shown(label)}: expected integers "
            f"({batch},)"
        )


def _of(module: nn.Module, name: str) -> str:
    return f"{type(module).__name__}.{name}"
