r"""Losses of a first stage: an autoencoder that is judged by features and by a discriminator.

Esser et al. 2021 and Rombach et al. 2022 train an encoder E and a decoder D on

    L = |x - D(z)| + perceptual(x, D(z)) + w adversarial(D(z)) + regulariser(z)             (1)

where z is drawn from a Gaussian around E(x) and the regulariser is its divergence from N(0, 1), or
z is E(x) quantised and the regulariser is the commitment to the codes (`models.quantiser`). w
balances the adversarial part's slope against the rest's (`adaptive_weight`).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float

from diffjax.checks import checked
from diffjax.types import Array, Data, Images, PerExample

# images (B, H, W, C) in [-1, 1] -> maps (B, h, w, features), one a layer.
Features = Callable[[Images], Sequence[Array]]


@checked
def split_gaussian(
    moments: Float[Array, "*shape moments"],
) -> tuple[Float[Array, "*shape channels"], Float[Array, "*shape channels"]]:
    """(..., 2C) -> mean and log-variance, (..., C) each; the latter cut to [-30, 20].

    Args:
      moments: (..., 2C), what an encoder returns.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> mean, log_variance = dj.autoencoding.split_gaussian(jnp.array([[0.5, -0.5, 0.0, 99.0]]))
    >>> print(mean, log_variance)
    [[ 0.5 -0.5]] [[ 0. 20.]]
    """
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(log_variance, -30.0, 20.0)


@checked
def sample_gaussian(mean: Data, log_variance: Data, *, eps: Data) -> Data:
    """mean + exp(log_variance / 2) eps, differentiable in both (Kingma & Welling 2014).

    Args:
      mean, log_variance: (B, ...) each.
      eps: (B, ...) standard normal noise.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> mean, log_variance = jnp.array([[1.0]]), jnp.log(jnp.array([[4.0]]))
    >>> print(dj.autoencoding.sample_gaussian(mean, log_variance, eps=jnp.array([[-0.5]])).round(2))
    [[0.]]
    """
    return mean + jnp.exp(log_variance / 2) * eps


@checked
def gaussian_kl(mean: Data, log_variance: Data) -> PerExample:
    """KL(N(mean, variance) || N(0, 1)) in nats, summed over all but the batch: (B,).

    Kingma & Welling 2014, appendix B.

    Args:
      mean, log_variance: (B, ...) each.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> mean, zeros = jnp.array([[0.0, 0.0], [1.0, 2.0]]), jnp.zeros((2, 2))
    >>> print(dj.autoencoding.gaussian_kl(mean, zeros))  # |mean|^2 / 2 at variance 1
    [0.  2.5]
    """
    axes = tuple(range(1, mean.ndim))
    # expm1(l) - l, not exp(l) - 1 - l: near l = 0 the divergence is l^2 / 2.
    return (jnp.square(mean) + jnp.expm1(log_variance) - log_variance).sum(axes) / 2


@checked
def adaptive_weight(
    reconstruction_slope: Array, adversarial_slope: Array, *, most: float = 1e4
) -> Float[Array, ""]:
    """|slope of reconstruction| / |slope of adversarial|, taken at the decoder's last layer.

    Esser et al. 2021, equation 7. No gradient passes.

    Args:
      reconstruction_slope, adversarial_slope: gradients of the two losses by the last kernel.
      most: the largest weight.

    Returns:
      A scalar in [0, most].

    >>> import jax.numpy as jnp, diffjax as dj
    >>> weight = dj.autoencoding.adaptive_weight(jnp.array([3.0, 4.0]), jnp.array([0.0, 0.5]))
    >>> print(f"{weight:.1f}")  # 5 / 0.5
    10.0
    """
    target, own = (
        jnp.sqrt(jnp.square(slope).sum()) for slope in (reconstruction_slope, adversarial_slope)
    )
    return jax.lax.stop_gradient(jnp.clip(target / (own + 1e-4), 0.0, most))


@checked
def perceptual_distance(
    features: Features, x: Images, y: Images, *, weights: Sequence[Array] | None = None
) -> PerExample:
    """LPIPS: the square distance of features of unit length, over places and layers.

    Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric",
    equation 1.

    Args:
      features: any network's maps.
      x, y: (B, H, W, C) images as the network wants them.
      weights: (features,) not negative, a layer; 1 by default, the paper's "uncalibrated" one.

    Returns:
      (B,).

    Raises:
      ValueError: weights that are not one vector a layer.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> x, y = jnp.array([2.0, 0.0]).reshape(1, 1, 1, 2), jnp.array([0.0, 5.0]).reshape(1, 1, 1, 2)
    >>> distance = lambda a, b: dj.autoencoding.perceptual_distance(lambda x: [x], a, b).item()
    >>> print(f"{distance(x, 3 * x):.2f} {distance(x, y):.2f}")  # only directions count
    0.00 2.00
    """
    pairs = list(zip(features(x), features(y), strict=True))
    if weights is not None and len(weights) != len(pairs):
        raise ValueError(f"{len(weights)} vectors of weights for {len(pairs)} layers of features")
    total = jnp.zeros(len(x))
    for layer, (a, b) in enumerate(pairs):
        change = jnp.square(_unit(a) - _unit(b))
        if weights is not None:
            change = change * weights[layer]
        total += change.sum(-1).mean((1, 2))
    return total


def _unit(maps: Array) -> Array:
    """Every place's features over their length; no features stay none, with a finite slope."""
    return maps * jax.lax.rsqrt(jnp.square(maps).sum(-1, keepdims=True) + 1e-10)
