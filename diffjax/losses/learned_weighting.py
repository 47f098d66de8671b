r"""A loss weighting that is learned along with the network: one log-variance a noise level.

    loss' = loss / exp(u) + u,    u = u(log SNR) learned by the same gradient               (1)
    argmin_u E[loss'] = log E[loss | log SNR]                                               (2)
    u     = w . f / sqrt(n),      f_k = sqrt(2) cos(2 pi (a_k c + b_k))                     (3)
    c     = log(sigma) / 4 = -log SNR / 8

By (2) the expected loss / exp(u) comes to 1 at every noise level, so that none of them outweighs
the others in the gradient, however the loss falls in training, and no weight is chosen by hand.
(1) and (3) are of Karras et al. 2024, EDM2, configuration B, after Kendall et al. 2018: a and b are
drawn once and kept, w is learned, and EDM2's loss has its `weightings.edm` inside. `loss'` is a
means for training only: it may be negative and does not compare across runs, so log the loss.
"""

import math

import jax
import jax.numpy as jnp

from diffjax.checks import checked
from diffjax.types import Array, Floats, PRNGKey

# log SNR of pure noise and of clean data may be infinite, and their features NaN.
_LARGEST_LOG_SNR = 40.0


@checked
def init(key: PRNGKey, *, features: int = 128) -> dict[str, Array]:
    """The parameters of u, which is 0 at first: the loss is weighted as it came.

    Keep them out of weight decay, which would pull u to 0, and the frozen features with it.

    Args:
      key: a PRNG key for the features.
      features: n of equation (3), at least 1.

    Returns:
      float32 (features,) each: "weights", which is trained; "frequencies", standard normal, and
      "phases", uniform in [0, 1), whose gradient `log_variance` stops.

    Raises:
      ValueError: no features.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> params = dj.learned_weighting.init(jax.random.key(0), features=16)
    >>> u = dj.learned_weighting.log_variance(params, jnp.array([-5.0, 5.0]))
    >>> print(dj.learned_weighting.weighted(jnp.array([3.0, 4.0]), u))  # as it came
    [3. 4.]
    """
    if features < 1:
        raise ValueError(f"features must be at least 1, not {features}")
    of_frequencies, of_phases = jax.random.split(key)
    return {
        "weights": jnp.zeros(features, jnp.float32),
        "frequencies": jax.random.normal(of_frequencies, (features,), jnp.float32),
        "phases": jax.random.uniform(of_phases, (features,), jnp.float32),
    }


@checked
def log_variance(params: dict[str, Array], log_snr: Floats) -> Floats:
    """u of equation (3): (B,) log-SNR -> (B,).

    Args:
      params: of `init`.
      log_snr: (B,), cut to [-40, 40].

    >>> import jax.numpy as jnp, diffjax as dj
    >>> params = dict(weights=jnp.array([1.0]), frequencies=jnp.array([1.0]), phases=jnp.zeros(1))
    >>> u = dj.learned_weighting.log_variance(params, jnp.array([0.0, 8.0, 16.0]))
    >>> print(f"{u[0]:.2f} {u[1]:.2f} {u[2]:.2f}")  # sqrt(2) cos(2 pi c), and c is -log SNR / 8
    1.41 1.41 1.41
    """
    frequencies, phases = jax.lax.stop_gradient((params["frequencies"], params["phases"]))
    quarter_log_sigma = -jnp.clip(log_snr, -_LARGEST_LOG_SNR, _LARGEST_LOG_SNR) / 8
    angles = 2 * jnp.pi * (quarter_log_sigma[..., None] * frequencies + phases)
    # A sum, not a dot product: accelerators would round its factors to fewer digits.
    each = params["weights"] * jnp.cos(angles)
    return math.sqrt(2 / len(frequencies)) * jnp.sum(each, axis=-1)


@checked
def weighted(loss: Floats, log_variance: Floats) -> Floats:
    """Equation (1), an example each: (B,), (B,) -> (B,).

    Args:
      loss: (B,) at each example's noise level.
      log_variance: (B,) u there.

    Raises:
      ValueError: two shapes, which would broadcast without a word.

    >>> import jax.numpy as jnp
    >>> found = weighted(jnp.array([3.0, 3.0]), jnp.log(jnp.array([1.0, 3.0])))
    >>> [round(float(loss), 3) for loss in found]
    [3.0, 2.099]
    """
    return loss * jnp.exp(-log_variance) + log_variance
