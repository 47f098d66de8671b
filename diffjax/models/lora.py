"""Low-rank adapters: a few trained numbers next to frozen kernels (Hu et al. 2021, "LoRA").

    W' = W + scale (alpha / rank) down up                                                  (1)

of a linear map's kernel W (in, out), with down (in, rank) and up (rank, out). Of a convolution's, W
(h, w, in, out), down is (h, w, in, rank) and up (1, 1, rank, out): a convolution to `rank` channels
and a linear map of every pixel.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import traverse_util

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
