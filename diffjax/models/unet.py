"""The DDPM / ADM U-Net."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.models.attention import Mixer, SelfAttention, no_attention
from diffjax.models.blocks import (
    Conv3x3,
    Downsample,
    ResNetBlock,
    Upsample,
    depth_to_space,
    space_to_depth,
)
from diffjax.models.embeddings import ClassEmbedding, TimeEmbedding
from diffjax.models.norm import GroupNorm
from diffjax.models.ops import XLA, Ops
from diffjax.models.types import Array, Dtype


class UNet(nn.Module):
    """A U-Net over images of any size, conditioned on time and, if asked, on a class.

    Ho et al. 2020, appendix B, with Dhariwal & Nichol 2021's scale-shift normalisation. Level i has
    multipliers[i] * channels channels at 1 / (patch 2^i) of the image's size; each level of the way
    down is `blocks` blocks and a halving, each of the way up `blocks` + 1 blocks and a doubling,
    and every map of the way down is concatenated to its counterpart on the way up. Odd sizes are
    halved to the ceiling and cut back on the way up.

    Attributes:
      channels: channels at the first level.
      multipliers: channels of each level over `channels`.
      blocks: residual blocks a level.
      attention_resolutions: heights of the maps (after the patch stem) that get self-attention;
        the lowest map's middle block has it always.
      head_channels: channels an attention head.
      dropout: rate in the residual blocks, when train = True.
      num_classes: 0 for an unconditional network; else cond holds labels, negative for no class.
      patch: side of the patches that a space-to-depth stem folds into channels; 1 for none.
      block: `ResNetBlock` or `ConvNeXtBlock`.
      scale_shift: how the embedding enters a block.
      mix: `jax.nn.dot_product_attention` or `attention.linear_attention`.
      perturbed: blocks whose attention is `attention.no_attention`, with the same parameters, by
        name: "middle_0", "down1_0" (level, block), "up1_2"; for perturbed-attention guidance.
      out_channels: None for as many as the input has.
      dtype: compute type; parameters stay float32.
      ops: what computes convolutions and normalisations: `ops.XLA`, or an accelerator's.
      remat: whether blocks are computed anew on the way back, to save memory.
    """

    channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attention_resolutions: tuple[int, ...] = ()
    head_channels: int = 32
    dropout: float = 0.0
    num_classes: int = 0
    patch: int = 1
    block: Callable[..., nn.Module] = ResNetBlock
    scale_shift: bool = True
    mix: Mixer = jax.nn.dot_product_attention
    perturbed: tuple[str, ...] = ()
    out_channels: int | None = None
    dtype: Dtype = jnp.float32
    ops: Ops = XLA
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Array, t: Array, cond: Array | None = None, *, train: bool = False
    ) -> Array:
        """Maps a noisy image to the network's statement about it.

        Args:
          x: (B, H, W, C) float images.
          t: (B,) times, about 0..1000.
          cond: (B,) int labels where num_classes > 0; None stands for no class.
          train: whether dropout is on; needs a "dropout" key then.

        Returns:
          (B, H, W, out_channels) float32.

        Raises:
          ValueError: labels for an unconditional network, an attention resolution that no level
            has, or a perturbed block without attention.
        """
        batch, height, width, channels = x.shape
        attending = self.attention_blocks(height)
        missing = sorted(set(self.perturbed) - set(attending))
        if missing:
            raise ValueError(f"block {missing[0]!r} has no attention: expected of {attending}")
        embedding = self._embedding(t, cond, batch)
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        block = nn.remat(self.block, static_argnums=(3,)) if self.remat else self.block

        def residual(h: Array, level: int, name: str) -> Array:
            h = block(
                self.channels * self.multipliers[level],
                dropout=self.dropout,
                scale_shift=self.scale_shift,
                name=name,
                **common,
            )(h, embedding, train)
            if name in attending:
                mix = no_attention if name in self.perturbed else self.mix
                h = SelfAttention(self.head_channels, mix=mix, name=f"{name}_attention", **common)(
                    h
                )
            return h

        levels = range(len(self.multipliers))
        h = space_to_depth(x, self.patch).astype(self.dtype)
        h = Conv3x3(self.channels, name="stem", **common)(h)
        skips = [h]
        for level in levels:
            for i in range(self.blocks):
                h = residual(h, level, f"down{level}_{i}")
                skips.append(h)
            if level != levels[-1]:
                h = Downsample(name=f"down{level}", **common)(h)
                skips.append(h)

        h = residual(h, levels[-1], "middle_0")
        h = residual(h, levels[-1], "middle_1")

        for level in reversed(levels):
            for i in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = residual(h, level, f"up{level}_{i}")
            if level:
                h = Upsample(name=f"up{level}", **common)(h, *skips[-1].shape[1:3])

        h = GroupNorm(silu=True, name="norm", **common)(h)
        out_channels = self.out_channels or channels
        h = Conv3x3(out_channels * self.patch**2, zero=True, name="head", **common)(h)
        return depth_to_space(h, self.patch, height, width).astype(jnp.float32)

    def _embedding(self, t: Array, cond: Array | None, batch: int) -> Array:
        width = 4 * self.channels
        embedding = TimeEmbedding(self.channels, width, dtype=self.dtype, name="time")(t)
        if self.num_classes:
            labels = jnp.full(batch, -1) if cond is None else cond
            embed = ClassEmbedding(self.num_classes, width, dtype=self.dtype, name="label")
            embedding = embedding + embed(labels)
        elif cond is not None:
            raise ValueError("labels were given to an unconditional U-Net: set num_classes")
        return embedding

    def attention_blocks(self, height: int) -> tuple[str, ...]:
        """The names of the blocks that have self-attention, for images of a height.

        Raises:
          ValueError: an attention resolution that no level has.
        """
        heights = [-(-height // self.patch)]
        for _ in self.multipliers[1:]:
            heights.append(-(-heights[-1] // 2))
        missing = set(self.attention_resolutions) - set(heights)
        if missing:
            raise ValueError(
                f"attention_resolutions {sorted(missing)} are not among this network's map "
                f"heights {heights} for images {height} high"
            )
        levels = [i for i, h in enumerate(heights) if h in self.attention_resolutions]
        down = [f"down{level}_{i}" for level in levels for i in range(self.blocks)]
        up = [f"up{level}_{i}" for level in reversed(levels) for i in range(self.blocks + 1)]
        return (*down, "middle_0", *up)
