"""The patch discriminator."""

import flax.linen as nn
import jax.numpy as jnp

from diffjax.models.norm import GroupNorm
from diffjax.models.types import Array, Dtype


class PatchDiscriminator(nn.Module):
    """PatchGAN: a logit for every patch of an image, higher for what looks real.

    Isola et al. 2017, "Image-to-image translation with conditional adversarial networks", section
    3.2: 4x4 convolutions of stride 2, two more of stride 1, leaky ReLU. Group normalisation stands
    in place of batch normalisation, so that an image's logits are its own.

    Attributes:
      channels: of the first convolution, doubled by each, up to 8 times.
      layers: convolutions of stride 2; 3 see patches of 70x70 pixels, 2 of 34x34, 1 of 16x16.
      dtype: compute type.
    """

    channels: int = 64
    layers: int = 3
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, H, W, C) in [-1, 1] -> (B, h, w) float32 logits.

        Raises:
          ValueError: images smaller than the network can halve.
        """
        if min(x.shape[1:3]) < 2 ** (self.layers + 1):
            raise ValueError(
                f"a discriminator of {self.layers} layers needs images of at least "
                f"{2 ** (self.layers + 1)} pixels, not {x.shape[1]}x{x.shape[2]}: take fewer layers"
            )
        h = x.astype(self.dtype)
        for i in range(self.layers + 1):
            h = nn.Conv(
                self.channels * min(2**i, 8), (4, 4), strides=2 if i < self.layers else 1,
                padding=1, use_bias=i == 0, dtype=self.dtype, name=f"conv_{i}",
            )(h)  # fmt: skip
            if i:
                h = GroupNorm(dtype=self.dtype, name=f"norm_{i}")(h)
            h = nn.leaky_relu(h, 0.2)
        logits = nn.Conv(1, (4, 4), padding=1, dtype=self.dtype, name="head")(h)
        return logits[..., 0].astype(jnp.float32)
