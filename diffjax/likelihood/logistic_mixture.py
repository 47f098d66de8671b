r"""Mixtures of discretised logistics over a pixel's channels (Salimans et al. 2017, section 2).

A logistic variable of mean m and scale s has the distribution function sigmoid((x - m) / s). Images
have `levels` values from -1 to 1, 2 h apart with h = 1 / (levels - 1), and each stands for a bin of
half-width h around it; the first and the last bin go on to infinity. With the bin's edges
a = (x - h - m) / s and b = (x + h - m) / s, its mass is

    sigmoid(b) - sigmoid(a) = (e^-a - e^-b) / ((1 + e^-a) (1 + e^-b))
                            = sigmoid(b) sigmoid(-a) (1 - e^-(b - a)),                         (1)

so that each factor's logarithm keeps its digits, in a narrow bin and in a far tail alike. (The
paper's code takes the density in place of the mass where that is below 1e-5; (1) needs no such
case.) In an open bin the factors of the edge at infinity are 1: sigmoid(b) in the first one and
sigmoid(-a) in the last. The masses of all levels thus add up to 1.

A pixel's channels have a mixture of K components in common, within which each channel's mean is
linear in the channels before it (equation 3):

    p(x) = sum_k softmax(logits)_k prod_c P(x_c; m_kc(x), s_kc)
    m_kc(x) = mean_kc + sum_{d < c} coefficient_kcd x_d.                                       (2)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from diffjax.checks import checked
from diffjax.likelihood.bits import bits_per_dim
from diffjax.types import Array, Images, PerExample, PRNGKey

# The lowest log-scale, as in the paper's code: 1/9 of the distance of two levels of 256.
_LOWEST = -7.0


class LogisticMixture(NamedTuple):
    """The parameters of equation (2), of K components and C channels.

    Attributes:
      logits: (..., K).
      means: (..., K, C).
      log_scales: (..., K, C), at least -7.
      coefficients: (..., K, C, C) in (-1, 1), strictly lower triangular.
    """

    logits: Array
    means: Array
    log_scales: Array
    coefficients: Array


@checked
def number_of_outputs(*, channels: int, components: int) -> int:
    """K (1 + 2 C + C (C - 1) / 2): how many numbers parametrise a pixel's mixture.

    Args:
      channels: C of the images.
      components: K.

    >>> number_of_outputs(channels=1, components=10), number_of_outputs(channels=3, components=10)
    (30, 100)
    """
    return components * (1 + 2 * channels + channels * (channels - 1) // 2)


@checked
def mixture_from_outputs(
    outputs: Float[Array, "*pixels outputs"], *, channels: int
) -> LogisticMixture:
    """The mixture that a network's outputs parametrise; any real numbers are valid.

    Args:
      outputs: (..., `number_of_outputs`).
      channels: C of the images.

    Raises:
      ValueError: the outputs are not those of a whole number of components.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> outputs = jnp.array([0.0, 0.0, 0.5, 1.0, -0.5, -99.0])  # of two components, one channel
    >>> mixture = dj.likelihood.mixture_from_outputs(outputs, channels=1)
    >>> print(mixture.logits, mixture.means.ravel(), mixture.log_scales.ravel())  # at least -7
    [0. 0.] [ 0.5 -0.5] [ 1. -7.]
    """
    count = outputs.shape[-1]
    each = number_of_outputs(channels=channels, components=1)
    if count % each:
        raise ValueError(f"{count} outputs: expected a multiple of {each} for {channels} channels")
    components = count // each
    logits, rest = outputs[..., :components], outputs[..., components:]
    rest = rest.reshape(*rest.shape[:-1], components, each - 1)
    means, log_scales, below = jnp.split(rest, (channels, 2 * channels), axis=-1)
    rows, columns = jnp.tril_indices(channels, -1)
    coefficients = jnp.zeros((*means.shape, channels), outputs.dtype)
    coefficients = coefficients.at[..., rows, columns].set(jnp.tanh(below))
    return LogisticMixture(logits, means, jnp.maximum(log_scales, _LOWEST), coefficients)


@checked
def conditional_means(
    mixture: LogisticMixture, x: Float[Array, "*pixels channels"]
) -> Float[Array, "*pixels components channels"]:
    """m_kc(x) of equation (2): each channel's means given the channels before it.

    Args:
      mixture: its parameters.
      x: (..., C) data.
    """
    return mixture.means + (mixture.coefficients * x[..., None, None, :]).sum(-1)


@checked
def discretised_logistic_log_prob(
    x: Float[Array, "*shape"],
    *,
    mean: Float[Array, "*shape"],
    log_scale: Float[Array, "*shape"],
    levels: int = 256,
) -> Float[Array, "*shape"]:
    """log of the mass that a logistic distribution gives to the bin of x, equation (1), in nats.

    Args:
      x: data on `levels` levels in [-1, 1].
      mean, log_scale: the distribution's.
      levels: 256 for images of 8 bits.

    Raises:
      ValueError: fewer than 2 levels.

    >>> x = jnp.array([-1.0, 1.0])  # all the data there is: two levels, each half of the mass
    >>> zeros = jnp.zeros(2)
    >>> jnp.exp(discretised_logistic_log_prob(x, mean=zeros, log_scale=zeros, levels=2)).tolist()
    [0.5, 0.5]
    """
    if levels < 2:
        raise ValueError(f"levels must be at least 2, not {levels}")
    half = 1 / (levels - 1)
    precision = jnp.exp(-log_scale)
    below_upper = jax.nn.log_sigmoid((x + half - mean) * precision)
    above_lower = jax.nn.log_sigmoid((mean - x + half) * precision)
    width = jnp.log(-jnp.expm1(-2 * half * precision))
    first, last = x < -1 + half, x > 1 - half
    return jnp.where(
        first, below_upper, jnp.where(last, above_lower, below_upper + above_lower + width)
    )


@checked
def logistic_mixture_log_prob(
    mixture: LogisticMixture, x: Float[Array, "*pixels channels"], *, levels: int = 256
) -> Float[Array, "*pixels"]:
    """log p(x) of whole pixels, equation (2), in nats.

    Args:
      mixture: its parameters.
      x: data on `levels` levels in [-1, 1].
      levels: 256 for images of 8 bits.

    Returns:
      (...,), one a pixel.

    Raises:
      ValueError: fewer than 2 levels.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> mixture = dj.likelihood.mixture_from_outputs(
    ...     jnp.array([0.0, 1.0, 0.5, -1.0, -0.5, -2.0]), channels=1
    ... )
    >>> every = jnp.array([[-1.0], [0.0], [1.0]])  # of three levels
    >>> log_prob = jax.jit(lambda x: dj.likelihood.logistic_mixture_log_prob(mixture, x, levels=3))
    >>> print(f"{sum(jnp.exp(log_prob(level)) for level in every):.4f}")
    1.0000
    """
    means = conditional_means(mixture, x)
    each = discretised_logistic_log_prob(
        jnp.broadcast_to(x[..., None, :], means.shape),
        mean=means,
        log_scale=mixture.log_scales,
        levels=levels,
    )
    log_weights = jax.nn.log_softmax(mixture.logits)
    return jax.nn.logsumexp(log_weights + each.sum(-1), axis=-1)


@checked
def image_bits_per_dim(
    outputs: Float[Array, "batch height width outputs"], x: Images, *, levels: int = 256
) -> PerExample:
    """-log2 p(x) / (H W C): minus the sum of equation (2) over the pixels of each image.

    Exact if the outputs at a pixel depend on the pixels before it alone.

    Args:
      outputs: a network's parameters of the mixtures of x.
      x: (B, H, W, C) on `levels` levels in [-1, 1].
      levels: 256 for images of 8 bits.

    Returns:
      (B,).

    Raises:
      ValueError: fewer than 2 levels, or outputs that are no mixture's.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> images, outputs = jnp.ones((1, 2, 2, 1)), jnp.zeros((1, 2, 2, 3))
    >>> bits = jax.jit(dj.likelihood.image_bits_per_dim, static_argnames="levels")
    >>> print(f"{bits(outputs, images, levels=2).item():.3f}")  # a fair coin a pixel
    1.000
    """
    mixture = mixture_from_outputs(outputs, channels=x.shape[-1])
    nats = -logistic_mixture_log_prob(mixture, x, levels=levels).sum((1, 2))
    return bits_per_dim(nats, dimensions=x[0].size)


@checked
def sample_logistic_mixture(
    mixture: LogisticMixture, key: PRNGKey, *, levels: int = 256
) -> Float[Array, "*pixels channels"]:
    """A draw of every pixel from equation (2), exactly: on `levels` levels in [-1, 1].

    A component, then one channel after the other, each rounded to its level before the next one's
    mean is computed of it.

    Args:
      mixture: its parameters.
      key: of all randomness.
      levels: 256 for images of 8 bits.

    Returns:
      (..., C).

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> outputs = jnp.array([[0.0, 1.0, -7.0], [0.0, -1.0, -7.0]])  # narrow: certain to the level
    >>> mixture = dj.likelihood.mixture_from_outputs(outputs, channels=1)
    >>> draw = jax.jit(dj.likelihood.sample_logistic_mixture, static_argnames="levels")
    >>> print(draw(mixture, jax.random.key(0), levels=3).ravel())
    [ 1. -1.]
    """
    of_component, of_value = jax.random.split(key)
    component = jax.random.categorical(of_component, mixture.logits)[..., None, None]
    means, log_scales = (
        jnp.take_along_axis(each, component, axis=-2)[..., 0, :]
        for each in (mixture.means, mixture.log_scales)
    )
    coefficients = jnp.take_along_axis(mixture.coefficients, component[..., None], axis=-3)[
        ..., 0, :, :
    ]
    noise = jnp.exp(log_scales) * jax.random.logistic(of_value, means.shape, means.dtype)
    x = jnp.zeros_like(means)
    for channel in range(means.shape[-1]):
        mean = means[..., channel] + (coefficients[..., channel, :] * x).sum(-1)
        bin_of = jnp.round((mean + noise[..., channel] + 1) * ((levels - 1) / 2))
        value = jnp.clip(bin_of, 0, levels - 1) * (2 / (levels - 1)) - 1
        x = x.at[..., channel].set(value)
    return x
