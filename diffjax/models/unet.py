"""The DDPM / ADM U-Net."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.models.attention import (
    Mixer,
    SelfAttention,
    attention_blocks,
    check_perturbed,
    no_attention,
)
from diffjax.models.blocks import (
    Conv3x3,
    Downsample,
    ResNetBlock,
    Upsample,
    average_pool,
    depth_to_space,
    nearest,
    space_to_depth,
)
from diffjax.models.checks import (
    check_backbone,
    check_batch,
    check_functions,
    check_listed,
    check_wholes,
)
from diffjax.models.condition import Condition
from diffjax.models.conditioned import Conditioned
from diffjax.models.embeddings import fourier_features
from diffjax.models.levels import LevelHead
from diffjax.models.norm import GroupNorm
from diffjax.models.ops import XLA, Ops
from diffjax.models.remat import Policy
from diffjax.models.transformer import SpatialTransformer
from diffjax.types import Array

RESAMPLINGS = ("conv", "average", "adm")
SKIP_SCALE = 2**-0.5


class UNet(Conditioned):
    """A U-Net over images of any size, conditioned on time and optionally on class, text or a map.

    Ho et al. 2020, appendix B, with Dhariwal & Nichol 2021's scale-shift normalisation. Level i has
    base_channels channel_multipliers[i] channels, at 1 / (patch 2^i) of the image's size. Each
    level has `num_res_blocks` blocks and a downsampling in the encoder, one block more and an
    upsampling in the decoder, and every encoder map is concatenated to its counterpart in the
    decoder. Odd sizes are rounded up in the encoder and cropped in the decoder.

    With `resample_first` and `scale_skips` it has the order of Imagen's Efficient U-Net (Saharia et
    al. 2022, appendix B): every level, the last included, begins with a downsampling and ends with
    an upsampling in the decoder, so that level i is at 1 / (patch 2^(i + 1)) of the image's size,
    and at the full size there are only the stem and the head, which it is concatenated before.

    Text and image embeddings are attended to by transformer blocks with cross-attention, which
    replace self-attention (Rombach et al. 2022, section 3.3). The fields of conditions are those of
    `Conditioned`.

    Attributes:
      base_channels: channels at the first level.
      channel_multipliers: channels of each level over `base_channels`.
      num_res_blocks: residual blocks per level.
      attention_resolutions: heights of the maps (after the patch stem) with self-attention or
        transformer blocks; the first middle block always has it.
      transformer_depth: transformer blocks in a row, for a network with text.
      head_channels: channels per attention head.
      dropout: rate in the residual blocks, if train = True.
      fourier: exponents n of the features sin(2^n pi x) and cos(2^n pi x) that are concatenated to
        the image to resolve the lowest bits (Kingma et al. 2021, VDM, section 5.1 and appendix C);
        () for none.
      patch: patch side of the space-to-depth stem; 1 for none.
      block: `ResNetBlock` or `ConvNeXtBlock`.
      scale_shift: as in `ResNetBlock`.
      resample: how the resolution changes between levels: "conv", by a convolution with stride 2
        and by one after nearest-neighbour upsampling (DDPM); "average", by `average_pool` and
        `nearest` without parameters; "adm", by those within one more `ResNetBlock` (Dhariwal &
        Nichol 2021, section 3).
      resample_first: whether a level's downsampling is before its blocks, and its upsampling after
        those of the decoder.
      scale_skips: whether encoder maps are multiplied by 1 / sqrt(2) where they are concatenated.
      attention_fn: `jax.nn.dot_product_attention` or `attention.linear_attention`.
      perturbed: blocks whose attention is replaced by `attention.no_attention`, by name:
        "middle_0", "down1_0" (level, block), "up1_2"; for perturbed-attention guidance.
      out_channels: None for the input's.
      num_pixel_levels: 0, or the number of pixel values whose logits are returned for each of the
        out_channels; see `LevelHead`.
      level_features: features per channel of the `LevelHead`.
      ops: kernels of convolutions and normalisation: `ops.XLA`, or an accelerator's.
      remat: which of the blocks' results are kept for the backward pass, to save memory: one of
        `models.remat`, or any policy of `jax.checkpoint`; None keeps all.
    """

    base_channels: int = 64
    channel_multipliers: tuple[int, ...] = (1, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = ()
    transformer_depth: int = 1
    head_channels: int = 32
    dropout: float = 0.0
    fourier: tuple[int, ...] = ()
    patch: int = 1
    block: Callable[..., nn.Module] = ResNetBlock
    scale_shift: bool = True
    resample: str = "conv"
    resample_first: bool = False
    scale_skips: bool = False
    attention_fn: Mixer = jax.nn.dot_product_attention
    perturbed: tuple[str, ...] = ()
    out_channels: int | None = None
    num_pixel_levels: int = 0
    level_features: int = 32
    ops: Ops = XLA
    remat: Policy | None = None

    @nn.compact
    def __call__(
        self, x: Array, t: Array, cond: Condition | Array | None = None, *, train: bool = False
    ) -> Array:
        """The network's prediction for noisy images.

        Args:
          x: (B, H, W, C) float images.
          t: (B,) times, about 0..1000; (B, 2) with `spans`.
          cond: see `Condition`; an array is a label, and None is treated as dropped.
          train: whether dropout is on, which needs a "dropout" key.

        Returns:
          (B, H, W, out_channels) float32; (B, H, W, out_channels num_pixel_levels) logits.

        Raises:
          UserError: a field, images, times or labels of another type, shape or range.
          ValueError: a condition that the network does not support, an attention resolution that
            no level has, a perturbed block without attention, or an unknown `resample`, or "adm" of
            another block.
        """
        self._check_fields()
        check_batch(self, x, t, cond, spans=self.spans)
        if self.resample not in RESAMPLINGS:
            raise ValueError(f"resample must be one of {RESAMPLINGS}, not {self.resample!r}")
        if self.resample == "adm" and self.block is not ResNetBlock:
            raise ValueError("resample='adm' needs ResNetBlock: use 'conv' or 'average'")
        height, width, channels = x.shape[1:]
        attending = self.attention_blocks(height)
        check_perturbed(self.perturbed, attending)
        with_map, embedding, _, context = self.stem(
            x, t, cond, features=self.base_channels, width=4 * self.base_channels
        )
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        block, attention, transformer = self.block, SelfAttention, SpatialTransformer
        if self.remat is not None:
            block = nn.remat(block, static_argnums=(3,), policy=self.remat)
            attention = nn.remat(attention, policy=self.remat)
            transformer = nn.remat(transformer, policy=self.remat)

        def residual(h: Array, level: int, name: str, **options: Any) -> Array:
            h = block(
                self.base_channels * self.channel_multipliers[level],
                dropout=self.dropout,
                scale_shift=self.scale_shift,
                name=name,
                **options,
                **common,
            )(h, embedding, train)
            if name in attending:
                mix = no_attention if name in self.perturbed else self.attention_fn
                heads: dict[str, Any] = {"head_channels": self.head_channels, "mix": mix, **common}
                if context is None:
                    h = attention(name=f"{name}_attention", **heads)(h)
                else:
                    named = {"name": f"{name}_transformer", **heads}
                    h = transformer(self.transformer_depth, **named)(h, context)
            return h

        def down(h: Array, level: int) -> Array:
            if self.resample == "conv":
                return Downsample(name=f"down{level}", **common)(h)
            if self.resample == "average":
                return average_pool(h)
            return residual(h, level, f"down{level}", resample=average_pool)

        def up(h: Array, level: int, height: int, width: int) -> Array:
            if self.resample == "conv":
                return Upsample(name=f"up{level}", **common)(h, height, width)
            larger = partial(nearest, height=height, width=width)
            if self.resample == "average":
                return larger(h)
            return residual(h, level, f"up{level}", resample=larger)

        def with_skip(h: Array, skip: Array) -> Array:
            return jnp.concatenate([h, skip * SKIP_SCALE if self.scale_skips else skip], axis=-1)

        levels = range(len(self.channel_multipliers))
        h = fourier_features(with_map, x, self.fourier)
        h = space_to_depth(h, self.patch).astype(self.dtype)
        h = Conv3x3(self.base_channels, name="stem", **common)(h)
        skips = [h]
        for level in levels:
            if self.resample_first:
                h = down(h, level)
                skips.append(h)
            for i in range(self.num_res_blocks):
                h = residual(h, level, f"down{level}_{i}")
                skips.append(h)
            if not self.resample_first and level != levels[-1]:
                h = down(h, level)
                skips.append(h)

        h = residual(h, levels[-1], "middle_0")
        h = residual(h, levels[-1], "middle_1")

        for level in reversed(levels):
            for i in range(self.num_res_blocks + 1):
                h = residual(with_skip(h, skips.pop()), level, f"up{level}_{i}")
            if self.resample_first or level:
                h = up(h, level, *skips[-1].shape[1:3])
        if self.resample_first:
            h = with_skip(h, skips.pop())

        h = GroupNorm(silu=True, name="norm", **common)(h)
        out_channels = self.out_channels or channels
        features = out_channels * (self.level_features if self.num_pixel_levels else 1)
        h = Conv3x3(features * self.patch**2, zero=True, name="head", **common)(h)
        h = depth_to_space(h, self.patch, height, width).astype(jnp.float32)
        if self.num_pixel_levels:
            h = LevelHead(out_channels, self.num_pixel_levels, name="levels")(h)
        return h

    def _check_fields(self) -> None:
        """Raises UserError for a field of another type or out of range."""
        check_wholes(
            self,
            {
                "base_channels": 1, "num_res_blocks": 0, "head_channels": 1, "num_classes": 0,
                "transformer_depth": 1, "text_width": 0, "map_channels": 0, "patch": 1,
                "augmentation_width": 0, "embedding_width": 0, "num_pixel_levels": 0,
                "level_features": 1,
            },
        )  # fmt: skip
        check_listed(self, "channel_multipliers", filled=True)
        check_listed(self, "attention_resolutions", "fourier")
        check_functions(self, "block", "time_features")
        check_backbone(self)

    def attention_blocks(self, height: int) -> tuple[str, ...]:
        """The names of the blocks with attention, for images of this height.

        Raises:
          ValueError: an attention resolution that no level has.
        """
        return attention_blocks(
            height,
            patch=self.patch,
            levels=len(self.channel_multipliers),
            blocks=self.num_res_blocks,
            resolutions=self.attention_resolutions,
            resample_first=self.resample_first,
        )
