"""Random parameters of any shapes, for which nothing is compiled: operations are NumPy's."""

import jax
import jax.numpy as jnp
import numpy as np


def normal_like(tree, *, scale, seed=1):
    """Normal numbers times `scale`, of each leaf's shape and of JAX's default type.

    jax.random compiles a program for every shape.
    """
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(scale * draw.normal(size=x.shape)), tree)


def moved(tree, *, scale):
    """The tree's arrays moved by `normal_like`: zeros at the start hide what comes before them."""
    return jax.tree.map(
        lambda x, by: jnp.asarray(np.add(x, by)), tree, normal_like(tree, scale=scale)
    )
