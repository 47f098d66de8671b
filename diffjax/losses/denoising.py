"""The training loss: a weighted squared error between a network's prediction and its target.

    L = E_{t, eps} w(t) || target(x_0, eps) - target(network(x_t, t)) ||^2

x_t by `process.q_sample`, w by `weightings`, t by `time_sampling`. The network may be trained in
another space than it predicts in: an eps network with the error measured on x_0, v or velocity.
"""

from typing import Any

import jax.numpy as jnp

from diffjax.checks import checked
from diffjax.denoisers import NetworkFn, predict
from diffjax.losses.weightings import Weighting, uniform
from diffjax.parametrisations import Parametrisation, convert
from diffjax.prediction import Prediction
from diffjax.process import q_sample
from diffjax.types import Data, PerExample, TimePerExample


@checked
def diffusion_loss(
    network: NetworkFn,
    x_0: Data,
    *,
    prediction: Prediction,
    t: TimePerExample,
    eps: Data,
    cond: Any = None,
    target: Parametrisation | None = None,
    weighting: Weighting = uniform,
) -> PerExample:
    """The weighted squared error of each example, averaged over its pixels and channels.

    Ho et al. 2020, equation 14, is Prediction(schedule, eps) with the uniform weighting.

    Args:
      network: (x, time_input, cond) -> output of x's shape.
      x_0: (B, ...) data, float32.
      prediction: the schedule, what the network predicts, and its time input.
      t: (B,) times.
      eps: (B, ...) standard normal noise.
      cond: what the network is conditioned on, or None.
      target: in which space the error is measured; by default the one that is predicted.
      weighting: the factor on the squared error of `target`.

    Returns:
      (B,) float32; in nats per dimension for `weightings.vlb`.

    Raises:
      ValueError: eps or the network's output not of x_0's shape, or t not one per example: all of
        them would broadcast silently.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> x_0, eps, t = jnp.full((2, 3), 0.5), jnp.ones((2, 3)), jnp.array([10, 900])
    >>> options = dict(prediction=dj.Prediction(dj.schedules.cosine(), dj.parametrisations.x0))
    >>> options |= dict(t=t, eps=eps)
    >>> for guess in (0.5, 0.0):  # a network that knows x_0, and one that does not
    ...     network = lambda x, time_input, cond: jnp.full_like(x, guess)
    ...     print(jax.jit(lambda x_0: dj.diffusion_loss(network, x_0, **options))(x_0))
    [0. 0.]
    [0.25 0.25]
    """
    schedule, parametrisation, time_input = prediction[:3]
    target = target or parametrisation
    x_t = q_sample(schedule, x_0, t=t, eps=eps)
    output, scales = predict(
        network, x_t, t=t, cond=cond,
        schedule=schedule, parametrisation=parametrisation, time_input=time_input,
    )  # fmt: skip
    if target is not parametrisation:
        output = convert(output, x_t, source=parametrisation, target=target, scales=scales)
    error = jnp.square(output - target.target(x_0, eps, scales))
    return weighting(schedule, t, target) * jnp.mean(error, axis=tuple(range(1, x_0.ndim)))
