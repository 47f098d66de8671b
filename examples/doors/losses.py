"""Custom losses: functions of (params, x_0, cond, key).

A maker gets the network and the `Prediction`: schedule, parametrisation and time input.
"""

import jax
import jax.numpy as jnp

import diffjax as dj


def huber(network, prediction, sample_times, *, delta=0.1):
    """The Huber loss of the network's output, at times sampled as configured."""
    schedule, parametrisation, time_input = prediction[:3]

    def loss(params, x_0, cond, key):
        for_times, for_noise, for_dropout = jax.random.split(key, 3)
        indices = jnp.arange(len(x_0))
        t = sample_times(for_times, schedule, indices=indices, batch_size=len(x_0))
        eps = jax.random.normal(for_noise, x_0.shape)
        scales = dj.process.scales_like(schedule, t, x_0)
        x = parametrisation.input_scale(scales) * dj.q_sample(schedule, x_0, t=t, eps=eps)
        output = network.apply(
            params, x, time_input(t, schedule), cond, train=True, key=for_dropout
        )
        error = jnp.abs(output - parametrisation.target(x_0, eps, scales))
        each = jnp.where(error < delta, error**2 / (2 * delta), error - delta / 2)
        return each.mean(axis=range(1, x_0.ndim))  # (B,)

    return loss


class Normalised:
    """The Huber loss divided by its running mean: a loss with a state, saved in checkpoints."""

    def __init__(self, network, prediction, sample_times, *, delta=0.1, decay=0.99):
        self._loss = huber(network, prediction, sample_times, delta=delta)
        self._decay = decay

    def init(self, key):
        return {"mean": jnp.ones(())}

    def loss(self, params, x_0, cond, key, state):
        each = self._loss(params, x_0, cond, key)
        now = jax.lax.stop_gradient(each.mean())
        mean = self._decay * state["mean"] + (1 - self._decay) * now
        return each / mean, {"mean": mean}
