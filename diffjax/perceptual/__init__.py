"""Frozen feature networks for perceptual distances.

Each module reads one network's weights and returns a `FeatureNetwork`, for
`autoencoding.perceptual_distance`, or an `EmbeddingNetwork`, for Fréchet distances.
"""

from diffjax.perceptual.feature_network import EmbeddingNetwork, FeatureNetwork

__all__ = ["EmbeddingNetwork", "FeatureNetwork"]
