r"""Offset noise: a part of the noise that all pixels of a channel share.

    eps' = eps + strength z,    z ~ N(0, 1), one an example and channel                     (1)
    Cov[eps'_p, eps'_q] = [p = q] + strength^2      (pixels p, q of one channel)            (2)

Guttenberg 2023, "Diffusion with offset noise". The mean over a channel of n pixels has the variance
1 / n + strength^2 in place of 1 / n, and what has mean zero is left as it was. White noise hides
the mean last of all, so that near t = T a network finds it still there and learns to keep it, while
a sample starts from a mean near 0 and stays grey; (1) makes it learn to change the mean, too.

What it means for the process: each marginal is N(signal_scale x_0, noise_scale^2 C) with the C of
(2), and x_T is no longer N(0, I) but has the covariance noise_scale^2 C. Since C is the same at all
times, the posterior's mean and deterministic samplers hold as they are; x_T, and the noise that
stochastic samplers add, must have the covariance C as well (draw x_T through `offset_noise`, with
the strength of training). To start from white noise is to start from a law that training never
showed; for a small strength (the paper's is 0.1) it is commonly done. `weightings.vlb` and the
likelihoods take C = I and give no bound of such a process.
"""

import jax

from diffjax import rng
from diffjax.checks import checked
from diffjax.types import Data, Indices, PRNGKey


@checked
def offset_noise(key: PRNGKey, indices: Indices, eps: Data, *, strength: float) -> Data:
    """Equation (1).

    Args:
      key: a PRNG key of a stream other than eps's own, or z would repeat numbers of eps.
      indices: (B,) integers: the examples' places in the global batch.
      eps: (B, ..., C) standard normal noise.
      strength: at least 0, which leaves eps as it is; the paper's is 0.1.

    Returns:
      Noise of eps's shape.

    Raises:
      ValueError: a strength below 0, eps without a channel axis, or indices not one an example.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> eps = jnp.zeros((2, 8, 8, 3))
    >>> draw = jax.jit(lambda key: offset_noise(key, jnp.arange(2), eps, strength=0.1))
    >>> noise = draw(jax.random.key(0))
    >>> print((noise == noise[:, :1, :1]).all(), noise[0, 0, 0, 0] == noise[1, 0, 0, 0])
    True False
    """
    if not strength >= 0:
        raise ValueError(f"strength must be at least 0, not {strength}")
    if eps.ndim < 2:
        raise ValueError(f"eps must be (B, ..., C), not {eps.shape}")
    if indices.shape != eps.shape[:1]:
        raise ValueError(f"indices must be one an example, {eps.shape[:1]}, not {indices.shape}")
    channels = eps.shape[-1]
    z = rng.per_example(key, indices, lambda k: jax.random.normal(k, (channels,), eps.dtype))
    return eps + strength * z.reshape(len(eps), *(1,) * (eps.ndim - 2), channels)
