"""Random parameters of any shapes, for which nothing is compiled: operations are NumPy's."""

import jax
import numpy as np


def normal_like(tree, *, scale, seed=1):
    """Normal numbers times `scale`, of each leaf's shape and of JAX's default type.

    jax.random compiles a program for every shape, and jnp.asarray one for its copy.
    """
    draw, dtype = np.random.default_rng(seed), jax.dtypes.canonicalize_dtype(float)
    return jax.tree.map(
        lambda x: jax.device_put(np.asarray(scale * draw.normal(size=x.shape), dtype)), tree
    )


def moved(tree, *, scale):
    """The tree's arrays moved by `normal_like`: zeros at the start hide what comes before them."""
    return jax.tree.map(
        lambda x, by: jax.device_put(np.add(x, by)), tree, normal_like(tree, scale=scale)
    )
