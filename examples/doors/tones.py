"""Waveforms (L, 1) from a custom data source, with a network as a pair of functions.

python -m diffjax.main --config=examples/doors/tones.py
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.experiment import defaults


class Tones:
    """Example i is computed from i on access."""

    class_names = ("sine", "square")

    def __init__(self, count=2000, length=32, first=0):
        self.count, self.length, self.first = count, length, first
        if first == 0:
            self.held_out = Tones(count // 10, length, first=count)

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        phase = np.random.default_rng(self.first + i).uniform(0, 2 * np.pi)
        wave = np.sin(np.linspace(0, 4 * np.pi, self.length) + phase)
        label = i % 2
        return {"x_0": (np.sign(wave) if label else wave)[:, None], "label": label}


def perceptron(shape, num_classes, *, width=256):
    """A network as a pair of functions; diffjax sets `shape` (of x_0) and `num_classes`."""
    length, channels = shape
    sizes = [length * channels + 16 + num_classes + 1, width, width, length * channels]

    def init(key, x, t, cond):
        keys = jax.random.split(key, len(sizes) - 1)
        return [
            {"w": jax.random.normal(k, (a, b)) / np.sqrt(a), "b": jnp.zeros(b)}
            for k, (a, b) in zip(keys, itertools.pairwise(sizes), strict=True)
        ]

    def apply(params, x, t, cond, *, train=False, key=None):
        angles = t[:, None] * jnp.exp(-jnp.arange(8))
        of_class = jnp.eye(num_classes + 1)[cond.label]
        h = jnp.concatenate([x.reshape(len(x), -1), jnp.sin(angles), jnp.cos(angles), of_class], -1)
        for layer in params[:-1]:
            h = jax.nn.silu(h @ layer["w"] + layer["b"])
        return (h @ params[-1]["w"] + params[-1]["b"]).reshape(x.shape)

    return init, apply


def get_config():
    config = defaults.diffusion()
    config.data.name = "tones:Tones(length=32)"
    config.model.name = "tones:perceptron(width=384)"
    config.diffusion.weighting = "tones:low_noise(power=0.5)"
    config.train.update(steps=6000, batch_size=128, learning_rate=2e-3, warmup_steps=100)
    config.train.update(ema_decay=0.995, log_every=500, sample_every=2000)
    config.sample.update(sampler="ddim", steps=40, count=16, threshold="none")
    return config


def low_noise(schedule, t, target, *, power=1.0):
    """A custom weighting: signal_scale^power on the squared error of the prediction."""
    return schedule(t).signal_scale ** power
