"""Low-rank adapters: a few trained numbers next to frozen kernels (Hu et al. 2021, "LoRA").

    W' = W + scale (alpha / rank) down up                                                  (1)

of a linear map's kernel W (in, out), with down (in, rank) and up (rank, out). Of a convolution's, W
(h, w, in, out), down is (h, w, in, rank) and up (1, 1, rank, out): a convolution to `rank` channels
and a linear map of every pixel. At first up is 0, so that W' = W.

`merge` computes W' for a network of the same speed as before. `intercepted` adds the adapter's own
path instead, x down up, in which a small change is not rounded away by W's type, and whose gradient
needs no matrix of W's size.
"""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from diffjax.models import blocks
from diffjax.types import Array

# Names from the root of the parameters to a kernel, as in flax.traverse_util.flatten_dict.
Path = tuple[str, ...]


class Adapter(NamedTuple):
    """A kernel's adapter.

    Attributes:
      down: (in, rank), or (h, w, in, rank).
      up: (rank, out), or (1, 1, rank, out).
      alpha: see (1).
    """

    down: Any
    up: Any
    alpha: float

    def product(self, scale: float = 1.0) -> Array:
        """scale (alpha / rank) down up, float32, of the kernel's shape."""
        down, up = (jnp.asarray(x, jnp.float32) for x in (self.down, self.up))
        return (scale * self.alpha / down.shape[-1]) * (down @ up)


Adapters = Mapping[Path, Adapter]


def chosen(shapes: Any, layers: str) -> dict[Path, tuple[int, ...]]:
    """The kernels of linear maps and convolutions whose names match, with their shapes.

    Args:
      shapes: parameters, nested dictionaries of what has a shape.
      layers: regular expression, searched for in the name of a layer, its path joined by "/".

    Raises:
      ValueError: no regular expression, or one that no layer matches.

    >>> kernel = jax.ShapeDtypeStruct((3, 4), jnp.float32)
    >>> chosen({"in": {"kernel": kernel}, "self_q": {"kernel": kernel}}, "self")
    {('self_q', 'kernel'): (3, 4)}
    """
    try:
        pattern = re.compile(layers)
    except (re.error, TypeError) as error:
        raise ValueError(f"layers = {layers!r} is no regular expression: {error}") from None
    flat = traverse_util.flatten_dict(shapes)
    kernels = {p: x.shape for p, x in flat.items() if p[-1] == "kernel" and x.ndim in (2, 4)}
    found = {p: shape for p, shape in kernels.items() if pattern.search("/".join(p[:-1]))}
    if not found:
        names = [" ".join("/".join(p[:-1]) for p in list(kernels)[:: max(1, len(kernels) // 4)])]
        raise ValueError(f"layers = {layers!r} matches none of the layers, such as {names[0]}")
    return found


def init(key: Array, shapes: Any, *, rank: int, layers: str) -> Any:
    """New adapters as parameters: the tree of `shapes` with {"down", "up"} for chosen kernels.

    down is normal with the variance 1 / fan-in, up is zero.

    Args:
      key: of the normal numbers.
      shapes: as for `chosen`.
      rank: of all adapters.
      layers: as for `chosen`.

    Raises:
      ValueError: as `chosen`.
    """
    flat: dict[Path, Array] = {}
    for number, (path, shape) in enumerate(sorted(chosen(shapes, layers).items())):
        *window, inside, outside = shape
        fan_in = jnp.prod(jnp.array([*window, inside]))
        normal = jax.random.normal(jax.random.fold_in(key, number), (*window, inside, rank))
        flat[*path, "down"] = normal * jax.lax.rsqrt(fan_in.astype(jnp.float32))
        flat[*path, "up"] = jnp.zeros((*(1,) * len(window), rank, outside))
    return traverse_util.unflatten_dict(flat)


def of_tree(tree: Any, *, alpha: float) -> dict[Path, Adapter]:
    """The adapters of `init`'s tree."""
    flat = traverse_util.flatten_dict(tree)
    return {
        path[:-1]: Adapter(down, flat[*path[:-1], "up"], alpha)
        for path, down in flat.items()
        if path[-1] == "down"
    }


def merge(params: Any, adapters: Adapters, *, scale: float = 1.0) -> Any:
    """The parameters with (1) in the place of the adapters' kernels; the rest is not copied.

    Args:
      params: nested dictionaries of arrays.
      adapters: of some kernels.
      scale: of all adapters; 0 changes nothing.

    Raises:
      ValueError: an adapter of no kernel, or of another shape.
    """
    flat = traverse_util.flatten_dict(params)
    for path, adapter in adapters.items():
        name = "/".join(path)
        if path not in flat:
            raise ValueError(f"the adapter of {name} fits no parameter of the network")
        kernel, change = flat[path], adapter.product(scale)
        if kernel.shape != change.shape:
            raise ValueError(f"the adapter of {name} is of {change.shape}, not {kernel.shape}")
        flat[path] = (kernel.astype(jnp.float32) + change).astype(kernel.dtype)
    return traverse_util.unflatten_dict(flat)


def intercepted(adapters: Adapters, *, scale: float = 1.0) -> AbstractContextManager[Any]:
    """A context in which Linen modules add their adapters' paths to their results.

    Args:
      adapters: of kernels of linear maps and convolutions.
      scale: as for `merge`.

    Raises:
      ValueError: when an adapter's module is applied that is neither.
    """

    def add(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        adapter = adapters.get((*module.path, "kernel"))
        y = call(*args, **kwargs)
        if adapter is None or context.method_name != "__call__":
            return y
        x = args[0].astype(y.dtype)
        down, up = (jnp.asarray(one).astype(y.dtype) for one in (adapter.down, adapter.up))
        factor = scale * adapter.alpha / down.shape[-1]
        if isinstance(module, nn.Dense | blocks.Dense):
            return y + factor * ((x @ down) @ up)
        if isinstance(module, blocks.Conv3x3):
            no_bias = jnp.zeros(down.shape[-1], y.dtype)
            h = module.ops.conv(x, down, no_bias, stride=module.stride, padding=module.padding)
            return y + factor * (h @ up[0, 0])
        raise ValueError(f"{'/'.join(module.path)} is a {type(module).__name__}: it can't have an "
                         "adapter")  # fmt: skip

    return nn.intercept_methods(add)
