"""A two-dimensional toy: points on two rings, in memory, with an NNX network and scatter plots.

python -m diffjax.main --config=examples/doors/rings.py
"""

import itertools

import jax.numpy as jnp
import numpy as np
from flax import nnx

from diffjax.data import ArraySource
from diffjax.experiment import defaults


def points(count=4000, noise=0.05, seed=0):
    """float32 (N, 2) in two classes, and N / 10 held-out points."""

    def draw(n, seed):
        random = np.random.default_rng(seed)
        label = random.integers(0, 2, n)
        angle, radius = random.uniform(0, 2 * np.pi, n), np.where(label, 2.0, 1.0)
        ring = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        return ring + noise * random.normal(size=(n, 2)), label

    train, test = draw(count, seed), draw(max(1, count // 10), seed + 1)
    names = ("inner", "outer")
    return ArraySource(*train, class_names=names, held_out=ArraySource(*test, class_names=names))


class MLP(nnx.Module):
    def __init__(self, width=64, depth=3, *, rngs):
        sizes = [2 + 16 + 3, *[width] * depth]
        pairs = itertools.pairwise(sizes)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in pairs])
        self.dropout = nnx.Dropout(0.05, rngs=rngs)
        self.out = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x, t, cond):
        angles = t[:, None] * jnp.exp(-jnp.arange(8))
        of_class = jnp.eye(3)[cond.label]  # -1, no class, is the last row
        h = jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles), of_class], axis=-1)
        for layer in self.layers:
            h = self.dropout(nnx.silu(layer(h)))
        return self.out(h)


def get_config():
    config = defaults.diffusion()
    config.data.name = "rings:points(noise=0.03)"
    config.model.update(name="rings:MLP", width=96)
    config.diffusion.update(schedule="rectified_flow", parametrisation="velocity")
    config.train.update(
        steps=3000, batch_size=256, learning_rate=2e-3, warmup_steps=100, ema_decay=0.99
    )
    config.train.update(log_every=200, sample_every=1000)
    config.sample.update(sampler="heun", steps=40, count=1000, batch_size=1000, threshold="none")
    return config
