"""Regularisers of latents: a KL divergence from N(0, 1), or a codebook.

A regulariser is a NamedTuple of numbers with these methods:

  map_channels(latent_channels)        channels of the encoder's output
  init(key, latent_channels)           its state: a codebook, or ()
  train(state, latents_map, ...)       z for the decoder, a penalty, the next state, metrics
  sample(latents_map, eps)             z for the diffusion model, before scaling
  quantise(state, z)                   the decoder's input for z
  codes(state, z)                      indices of the codes nearest to z, None without a codebook
"""

from typing import Any, NamedTuple

from diffjax.losses import autoencoding
from diffjax.models import quantiser
from diffjax.models.quantiser import Codebook
from diffjax.types import Array


class Regularised(NamedTuple):
    """z (B, h, w, C); penalty (B,); the next state; scalars to log."""

    z: Array
    penalty: Array
    state: Any
    metrics: dict[str, Array]


class Kl(NamedTuple):
    """Gaussian latents with a KL penalty towards N(0, 1) (Rombach et al. 2022, appendix G).

    Attributes:
      weight: of the divergence in nats, divided by the number of an image's values. The other
        losses are means over these values, so this equals LDM's weight on sums.
    """

    weight: float = 1e-6

    def map_channels(self, latent_channels: int) -> int:
        """Means and log-variances."""
        return 2 * latent_channels

    def init(self, key: Array, latent_channels: int) -> Any:
        """(): it has no state."""
        return ()

    def train(
        self, state: Any, latents_map: Array, *, values: int, eps: Array, key: Array
    ) -> Regularised:
        """values: number of values in an image; eps: (B, h, w, C); key is unused."""
        mean, log_variance = autoencoding.split_gaussian(latents_map)
        z = autoencoding.sample_gaussian(mean, log_variance, eps=eps)
        kl = autoencoding.gaussian_kl(mean, log_variance)
        return Regularised(z, self.weight * kl / values, state, {"kl": kl.mean()})

    def sample(self, latents_map: Array, eps: Array | None) -> Array:
        """A sample for eps (B, h, w, C); the mean for None."""
        mean, log_variance = autoencoding.split_gaussian(latents_map)
        if eps is None:
            return mean
        return autoencoding.sample_gaussian(mean, log_variance, eps=eps)

    def quantise(self, state: Any, z: Array) -> Array:
        """z unchanged."""
        return z

    def codes(self, state: Any, z: Array) -> None:
        """None: there is no codebook."""


class Vq(NamedTuple):
    """Vector-quantised latents; see `models.quantiser`.

    Diffusion models the encoder's output before quantisation, which is part of decoding (Rombach et
    al. 2022, section 4.1).

    Attributes:
      size: number of codes.
      weight: of the commitment loss (van den Oord et al. 2017, equation 3).
      decay: of the codebook's moving averages.
    """

    size: int = 512
    weight: float = 0.25
    decay: float = 0.99

    def map_channels(self, latent_channels: int) -> int:
        """The number of latent channels."""
        return latent_channels

    def init(self, key: Array, latent_channels: int) -> Codebook:
        """A codebook."""
        return quantiser.init_codebook(key, self.size, latent_channels)

    def train(
        self, state: Codebook, latents_map: Array, *, values: int, eps: Array, key: Array
    ) -> Regularised:
        """key: selects vectors that replace dead codes; values and eps are unused."""
        z, indices = quantiser.quantise(state, latents_map)
        penalty = self.weight * quantiser.commitment(state, latents_map, indices)
        updated = quantiser.update(state, latents_map, indices, key=key, decay=self.decay)
        used = quantiser.perplexity(indices, self.size)
        return Regularised(z, penalty, updated, {"codebook_perplexity": used})

    def sample(self, latents_map: Array, eps: Array | None) -> Array:
        """The map unchanged."""
        return latents_map

    def quantise(self, state: Codebook, z: Array) -> Array:
        """The nearest codes."""
        return quantiser.quantise(state, z)[0]

    def codes(self, state: Codebook, z: Array) -> Array:
        """(..., D) -> (...) int32."""
        return quantiser.nearest(state, z)


Regulariser = Kl | Vq
