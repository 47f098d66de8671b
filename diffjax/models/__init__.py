"""Flax Linen networks, independent of diffusion."""

from diffjax.models.attention import SelfAttention, linear_attention, no_attention
from diffjax.models.blocks import ConvNeXtBlock, ResNetBlock
from diffjax.models.dit import DiT
from diffjax.models.unet import UNet

__all__ = [
    "ConvNeXtBlock",
    "DiT",
    "ResNetBlock",
    "SelfAttention",
    "UNet",
    "linear_attention",
    "no_attention",
]
