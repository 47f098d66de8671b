"""Frozen feature networks for perceptual distances.

Each module reads one network's weights and returns a `FeatureNetwork`, for
`autoencoding.perceptual_distance`.
"""

from diffjax.perceptual.feature_network import FeatureNetwork

__all__ = ["FeatureNetwork"]
