"""LPIPS with VGG16, a perceptual distance with weights fitted to human judgements.

Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric",
version 0.1: `autoencoding.perceptual_distance` of VGG16's maps, each channel weighted by a "head".
LPIPS's scaling of images in [-1, 1] equals torchvision's normalisation.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from diffjax.errors import UserError
from diffjax.perceptual.feature_network import FeatureNetwork
from diffjax.perceptual.installed import installed_file
from diffjax.perceptual.vgg16 import BLOCKS, torchvision_vgg16
from diffjax.torch_files import read_state_dict

INSTALL = "pip install --no-deps lpips"


def lpips(vgg: str, heads: str = "") -> FeatureNetwork:
    """VGG16 with LPIPS's channel weights as `FeatureNetwork.weights`.

    Args:
      vgg: torchvision's VGG16 (IMAGENET1K_V1), .pth or .safetensors. The published heads were
        fitted to that network; with another one the distance is not LPIPS.
      heads: a file with LPIPS's keys, "lin0.model.1.weight" (1, 64, 1, 1) etc.; "" for the
        published ones from the installed package `lpips`, which is not imported.

    Returns:
      `vgg16(vgg)`'s maps, and a vector of weights for each.

    Raises:
      UserError: no such file, one of another layout, heads that are negative or not finite, or a
        package that is not installed.
    """
    network = torchvision_vgg16(vgg)
    path = heads or installed_file("lpips", "weights/v0.1/vgg.pth", install=INSTALL)
    stored = read_state_dict(path, prefix="lin")
    weights = [_head(stored, layer, block[-1], str(path)) for layer, block in enumerate(BLOCKS)]
    return network._replace(name="LPIPS", weights=tuple(jnp.asarray(w) for w in weights))


def _head(
    stored: dict[str, npt.NDArray[Any]], layer: int, channels: int, path: str
) -> npt.NDArray[np.float32]:
    # Entry 0 of an LPIPS layer is a dropout; in heads trained without one it has the weights.
    name = f"lin{layer}.model.1.weight"
    if name not in stored:
        name = f"lin{layer}.model.0.weight"
    found = stored[name].shape if name in stored else "nothing"
    if found != (1, channels, 1, 1):
        raise UserError(
            f"the heads in {path} are not LPIPS' for VGG16: found {found} for "
            f"lin{layer}.model.1.weight, expected {(1, channels, 1, 1)}; give lpips' vgg.pth"
        )
    head = stored[name].reshape(channels).astype(np.float32)
    if not (np.isfinite(head).all() and (head >= 0).all()):
        raise UserError(
            f"the heads in {path} have negative weights or NaN in {name}; expected weights >= 0, "
            "or the distance decreases as images differ; give lpips' published vgg.pth"
        )
    return head
