"""Frozen feature networks for perceptual distances.

Each module reads one network's weights and returns a `Network`, for
`autoencoding.perceptual_distance`.
"""

from diffjax.perceptual.network import Network

__all__ = ["Network"]
