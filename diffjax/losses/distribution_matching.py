r"""Distribution matching distillation (Yin et al. 2024; DMD2, Yin et al. 2024b).

A generator's samples x = G(z) have the data's distribution if at every noise level the scores of
both, noised, are equal. The gradient of the Kullback-Leibler divergence between the two by x is the
difference of the scores, which two denoisers give: the teacher for the data, and a "fake" one that
is trained along on the generator's samples. In x_0's terms, with x_t ~ q(x_t | x),

    gradient = w (x_0_fake(x_t) - x_0_teacher(x_t)),    w = 1 / mean |x - x_0_teacher|    (1)
    loss     = 1/2 || x - sg(x - gradient) ||^2                                           (2)

(2) has the gradient (1) (equations 7 and 8 of the first paper); its value means nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp

from diffjax.checks import checked
from diffjax.denoisers import Denoiser
from diffjax.process import broadcast, q_sample
from diffjax.schedules import Schedule
from diffjax.types import Data, PerExample, TimePerExample


@checked
def distribution_matching_loss(
    x: Data,
    *,
    teacher: Denoiser,
    fake: Denoiser,
    schedule: Schedule,
    t: TimePerExample,
    eps: Data,
    cond: Any = None,
) -> PerExample:
    """(2) for each example, averaged over its dimensions; its gradient goes to x alone.

    Args:
      x: (B, ...) the generator's samples.
      teacher: denoiser of the data.
      fake: denoiser of the generator's samples.
      schedule: of both.
      t: (B,) times of the noise.
      eps: (B, ...) standard normal noise.
      cond: passed to both.

    Returns:
      (B,).

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> flow, x = dj.schedules.rectified_flow(), jnp.array([[0.0]])
    >>> data, samples = (dj.denoisers.gaussian_denoiser(flow, mean=mean) for mean in (1.0, 0.0))
    >>> loss = dj.distribution_matching.distribution_matching_loss
    >>> options = dict(schedule=flow, t=jnp.array([0.5]), eps=jnp.array([[0.5]]), teacher=data)
    >>> for fake in (samples, data):  # samples are to rise; nothing to do where both are the data
    ...     slope = jax.grad(lambda x: loss(x, fake=fake, **options).sum())(x)
    ...     print(f"{slope.item() + 0.0:.2f}")
    -0.67
    0.00
    """
    x_t = q_sample(schedule, jax.lax.stop_gradient(x), t=t, eps=eps)
    real, ours = (denoise(x_t, t, cond).x_0 for denoise in (teacher, fake))
    axes = tuple(range(1, x.ndim))
    weight = 1 / jnp.maximum(jnp.mean(jnp.abs(x - real), axis=axes), 1e-6)
    goal = jax.lax.stop_gradient(x - broadcast(weight, x) * (ours - real))
    return jnp.mean(jnp.square(x - goal), axis=axes) / 2
