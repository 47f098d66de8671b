"""A first stage as pure functions between images and scaled latents.

    image x --encoder--> map --sample--> z --scale--> x_0 of the diffusion   (encode, sample)
    x_0 of the diffusion --unscale--> z --quantise--> --decoder--> image x   (decode)

Rombach et al. 2022, section 3. Scaling brings every channel of z to mean 0 and variance 1, as noise
schedules assume of data; its constants are measured on the data and stored in the checkpoint.
"""

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.latent.regularisers import Regulariser
from diffjax.latent.tiled_decode import decode_tiled, encode_tiled
from diffjax.models.autoencoder import Decoder, Encoder
from diffjax.types import Array


class Scaling(NamedTuple):
    """x_0 = factor (z - shift); (C,) float32 each."""

    shift: Array
    factor: Array


class StageParams(NamedTuple):
    """The arrays of a trained first stage.

    Attributes:
      params: {"encoder": ..., "decoder": ...}, the averaged ones.
      codebook: the regulariser's state, () for a Gaussian.
      scaling: see `Scaling`.
    """

    params: Any
    codebook: Any
    scaling: Scaling


def digest(params: StageParams) -> str:
    """SHA-256 of all arrays, in hex: stages with equal digests compute equal latents."""
    sha256 = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        sha256.update(f"{path} {leaf.shape} {leaf.dtype}".encode())
        sha256.update(np.ascontiguousarray(leaf).tobytes())
    return sha256.hexdigest()


class FirstStage(NamedTuple):
    """The functions of a first stage; all arrays are in `StageParams`.

    Attributes:
      encoder, decoder: the networks.
      regulariser: of the latents.
      image_shape: (H, W, C) of the images.
      latent_shape: (h, w, c) of the latents.
      tile: side in latents of the tiles of tiled decoding; 0 decodes whole.
      encode_tile: likewise of encoding.
    """

    encoder: Encoder
    decoder: Decoder
    regulariser: Regulariser
    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    tile: int = 0
    encode_tile: int = 0

    @property
    def factor(self) -> int:
        """f: the downsampling factor; the latents' sides are rounded up."""
        return self.encoder.patch * 2 ** (len(self.encoder.multipliers) - 1)

    def encode(self, params: StageParams, images: Array) -> Array:
        """(B, H, W, C) in [-1, 1] -> the encoder's map, (B, h, w, map channels)."""
        variables = {"params": params.params["encoder"]}
        if self.encode_tile:
            return encode_tiled(
                lambda part: self.encoder.apply(variables, part),
                images, tile=self.encode_tile, factor=self.factor,
            )  # fmt: skip
        return self.encoder.apply(variables, images)

    def sample(self, params: StageParams, latents_map: Array, *, eps: Array | None = None) -> Array:
        """Scaled latents of an encoder's map: (B, h, w, c), the Gaussian's mean for eps = None."""
        z = self.regulariser.sample(latents_map.astype(jnp.float32), eps)
        return params.scaling.factor * (z - params.scaling.shift)

    def decode(self, params: StageParams, latents: Array) -> Array:
        """Scaled latents (B, h, w, c) -> images (B, H, W, C), about [-1, 1]."""
        z = latents / params.scaling.factor + params.scaling.shift
        return self._decode(params, z)

    def _decode(self, params: StageParams, z: Array) -> Array:
        """Latents before scaling -> images."""
        z = self.regulariser.quantise(params.codebook, z)
        if self.tile:
            return decode_tiled(
                lambda part: self._decoded(params, part, None),
                z, size=self.image_shape[:2], tile=self.tile, factor=self.factor,
            )  # fmt: skip
        return self._decoded(params, z, self.image_shape[:2])

    def _decoded(self, params: StageParams, z: Array, size: tuple[int, int] | None) -> Array:
        return self.decoder.apply({"params": params.params["decoder"]}, z, size)

    def reconstruct(self, params: StageParams, images: Array) -> Array:
        """(B, H, W, C) -> the same shape, through the latents' means."""
        return self._decode(params, self.regulariser.sample(self.encode(params, images), None))


def latent_mask(mask: Array, *, latent_shape: tuple[int, ...], factor: int) -> Array:
    """(H, W, 1) -> (h, w, 1): 1 where all pixels of a latent's block are kept."""
    height, width = latent_shape[:2]
    missing = ((0, height * factor - mask.shape[0]), (0, width * factor - mask.shape[1]), (0, 0))
    whole = jnp.pad(mask, missing, mode="edge")
    return jax.lax.reduce_window(
        whole, jnp.inf, jax.lax.min, (factor, factor, 1), (factor, factor, 1), "VALID"
    )
