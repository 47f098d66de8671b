"""Networks that judge images: frozen features for a perceptual distance.

Each module reads one network's weights from where they lie and returns a `Network`, which
`autoencoding.perceptual_distance` takes as a function.
"""

from diffjax.perceptual.network import Network

__all__ = ["Network"]
