"""The patch discriminator."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from diffjax.models.norm import GroupNorm
from diffjax.models.ops import XLA, Ops
from diffjax.types import Array, Dtype


class PatchDiscriminator(nn.Module):
    """PatchGAN: a logit for every patch of an image, higher for real images.

    Isola et al. 2017, "Image-to-image translation with conditional adversarial networks", section
    3.2: 4x4 convolutions of stride 2, two more of stride 1, leaky ReLU. Group normalisation
    replaces batch normalisation, so that an image's logits do not depend on the batch.

    Attributes:
      channels: of the first convolution; doubled by each next one, up to a factor of 8.
      layers: convolutions of stride 2; the receptive field is 70x70 pixels for 3, 34x34 for 2,
        16x16 for 1.
      dtype: compute type.
      ops: kernels of convolutions and normalisation.
    """

    channels: int = 64
    layers: int = 3
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, H, W, C) in [-1, 1] -> (B, h, w) float32 logits.

        Raises:
          ValueError: images too small for the downsampling.
        """
        if min(x.shape[1:3]) < 2 ** (self.layers + 1):
            raise ValueError(
                f"a discriminator of {self.layers} layers needs images of at least "
                f"{2 ** (self.layers + 1)} pixels, not {x.shape[1]}x{x.shape[2]}: use fewer layers"
            )
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        h = x.astype(self.dtype)
        for i in range(self.layers + 1):
            features, stride = self.channels * min(2**i, 8), 2 if i < self.layers else 1
            h = _Conv4x4(features, stride=stride, bias=i == 0, name=f"conv_{i}", **common)(h)
            if i:
                h = GroupNorm(name=f"norm_{i}", **common)(h)
            h = nn.leaky_relu(h, 0.2)
        logits = _Conv4x4(1, name="head", **common)(h)
        return logits[..., 0].astype(jnp.float32)


class _Conv4x4(nn.Module):
    """A 4x4 convolution with one pixel of zero padding."""

    features: int
    stride: int = 1
    bias: bool = True
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (4, 4, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.linear.default_kernel_init, shape)
        bias = jnp.zeros(self.features)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return self.ops.conv(x.astype(self.dtype), kernel, bias, stride=self.stride, padding=1)
