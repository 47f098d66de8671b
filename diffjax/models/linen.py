"""A Linen module as a network.

network = from_linen(UNet(base_channels=64, num_classes=10))
params = network.init(key, x, t, cond)
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn

from diffjax.types import Array


class LinenNetwork(NamedTuple):
    """See `models.network.Network`.

    Attributes:
      module: called as module(x, t, cond), with train=... if it has such a parameter. It may have a
        method project(params) -> params.
    """

    module: nn.Module

    @property
    def project(self) -> Callable[[Any], Any] | None:
        """The module's; None if it has none."""
        return getattr(self.module, "project", None)

    def init(self, key: Array, x: Array, t: Array, cond: Any) -> Any:
        """The parameters.

        Raises:
          ValueError: the module has variables other than parameters.
        """
        variables = self.module.init(key, x, t, cond, **self._train(False))
        others = sorted(set(variables) - {"params"})
        if others:
            raise ValueError(
                f"{type(self.module).__name__} has the variables {', '.join(others)}, which "
                "training would not update: expected params only; use e.g. GroupNorm or LayerNorm "
                "instead of BatchNorm"
            )
        return variables.get("params", {})

    def apply(
        self, params: Any, x: Array, t: Array, cond: Any, *, train: bool = False, key: Any = None
    ) -> Array:
        """The output; `key` is the module's "dropout" stream."""
        options = self._train(train)
        if train and key is not None:
            options["rngs"] = {"dropout": key}
        return self.module.apply({"params": params}, x, t, cond, **options)

    def apply_with_block(
        self,
        params: Any,
        x: Array,
        t: Array,
        cond: Any,
        *,
        block: str,
        train: bool = False,
        key: Any = None,
    ) -> tuple[Array, Array]:
        """The output, and the result of one of the module's blocks.

        Args:
          params, x, t, cond, train, key: as for `apply`.
          block: name of a submodule; "block_0", "block_1" ... of a module with `block_map`, whose
            blocks are scanned over.

        Returns:
          the output, and (B, h, w, features).

        Raises:
          ValueError: there is no such block.
        """
        of_blocks = getattr(self.module, "block_map", None)
        names = self.module.scanned if of_blocks else (block,)
        options = self._train(train)
        if train and key is not None:
            options["rngs"] = {"dropout": key}
        output, state = self.module.apply(
            {"params": params}, x, t, cond,
            mutable=["intermediates"],
            capture_intermediates=lambda module, method: (
                method == "__call__" and module.name in names
            ),
            **options,
        )  # fmt: skip
        found = {name: kept["__call__"][0] for name, kept in state.get("intermediates", {}).items()}
        if of_blocks:
            return output, of_blocks(found, block, x.shape)
        if block not in found:
            raise ValueError(f"there is no block {block!r} in a {type(self.module).__name__}")
        return output, found[block]

    def _train(self, train: bool) -> dict[str, Any]:
        takes = "train" in inspect.signature(type(self.module).__call__).parameters
        return {"train": train} if takes else {}


class AttentionNetwork(LinenNetwork):
    """A network with blocks that can be perturbed by perturbed-attention guidance.

    Its module has a method `attention_blocks(height)` and a field `perturbed`, like `UNet`.
    """

    def attention_blocks(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """The names of the blocks with attention, for x_0 of this shape."""
        return self.module.attention_blocks(shape[0])

    def perturbed(self, blocks: tuple[str, ...]) -> "AttentionNetwork":
        """The network with the same parameters and without attention in these blocks."""
        return AttentionNetwork(self.module.clone(perturbed=blocks))


def from_linen(module: nn.Module) -> LinenNetwork:
    """A Linen module, called as module(x, t, cond[, train=...]), as a network.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, t, cond=None):
    ...         return nn.Dense(2)(jnp.concatenate([x, t[:, None] / 1000], axis=-1))
    >>> network = from_linen(Net())
    >>> params = network.init(jax.random.key(0), jnp.zeros((4, 2)), jnp.zeros(4), None)
    >>> network.apply(params, jnp.zeros((4, 2)), jnp.zeros(4), None).shape
    (4, 2)
    """
    fields = getattr(module, "__dataclass_fields__", {})
    can_lose = hasattr(module, "attention_blocks") and "perturbed" in fields
    return AttentionNetwork(module) if can_lose else LinenNetwork(module)
