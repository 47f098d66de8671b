"""The DDPM / ADM U-Net."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax import arguments
from diffjax.models.attention import Mixer, SelfAttention, no_attention
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
    check_batch,
    check_dtype,
    check_functions,
    check_listed,
    check_share,
    check_wholes,
)
from diffjax.models.condition import Condition, SpatialMap, Text
from diffjax.models.embeddings import (
    ClassEmbedding,
    TimeEmbedding,
    fourier_features,
    timestep_embedding,
)
from diffjax.models.levels import LevelHead
from diffjax.models.norm import GroupNorm
from diffjax.models.ops import XLA, Ops
from diffjax.models.remat import Policy
from diffjax.models.transformer import Context, SpatialTransformer
from diffjax.types import Array, Dtype

RESAMPLINGS = ("conv", "average", "adm")
# Log-SNRs are about -15..15, and the time embedding's features are for 0..1000.
LOG_SNR_SCALE = 32.0
SKIP_SCALE = 2**-0.5
# Of an image embedding, in cross-attention.
EMBEDDING_TOKENS = 4


class UNet(nn.Module):
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

    Text is attended to by transformer blocks with cross-attention, which replace self-attention
    (Rombach et al. 2022, section 3.3), and its pooled vector is added to the time embedding; a map
    is concatenated to the image; an image embedding is projected to four more tokens that are
    attended to, and added to the time embedding (Ramesh et al. 2022, section 2.1). Supported
    conditions that are not passed are treated as dropped.

    Attributes:
      base_channels: channels at the first level.
      channel_multipliers: channels of each level over `base_channels`.
      num_res_blocks: residual blocks per level.
      attention_resolutions: heights of the maps (after the patch stem) with self-attention or
        transformer blocks; the first middle block always has it.
      transformer_depth: transformer blocks in a row, for a network with text.
      head_channels: channels per attention head.
      dropout: rate in the residual blocks, if train = True.
      num_classes: 0 for a network without classes.
      text_width: features per text token; 0 for a network without text.
      text_encoder: (ids, mask) -> (tokens, pooled), trained with the network, for texts as ids;
        None for texts that are already encoded.
      map_channels: of the map; 0 for a network without one.
      map_level: whether the network is given the log-SNR of the map (Saharia et al. 2022, "Imagen",
        section 2.4), whose embedding is added to that of the time.
      augmentation_width: parameters of the augmentation that the network is given (Karras et al.
        2022, appendix F.2); 0 for a network without one.
      embedding_width: length of the image embedding; 0 for a network without one.
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
      time_features: (t, number) -> (B, number): `embeddings.timestep_embedding` or
        `embeddings.random_time_features`.
      spans: whether t is (B, 2), a time and the span of a step, each with an embedding.
      attention_fn: `jax.nn.dot_product_attention` or `attention.linear_attention`.
      perturbed: blocks whose attention is replaced by `attention.no_attention`, by name:
        "middle_0", "down1_0" (level, block), "up1_2"; for perturbed-attention guidance.
      out_channels: None for the input's.
      num_pixel_levels: 0, or the number of pixel values whose logits are returned for each of the
        out_channels; see `LevelHead`.
      level_features: features per channel of the `LevelHead`.
      dtype: compute type; parameters stay float32.
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
    num_classes: int = 0
    text_width: int = 0
    text_encoder: nn.Module | None = None
    map_channels: int = 0
    map_level: bool = False
    augmentation_width: int = 0
    embedding_width: int = 0
    fourier: tuple[int, ...] = ()
    patch: int = 1
    block: Callable[..., nn.Module] = ResNetBlock
    scale_shift: bool = True
    resample: str = "conv"
    resample_first: bool = False
    scale_skips: bool = False
    time_features: Callable[[Array, int], Array] = timestep_embedding
    spans: bool = False
    attention_fn: Mixer = jax.nn.dot_product_attention
    perturbed: tuple[str, ...] = ()
    out_channels: int | None = None
    num_pixel_levels: int = 0
    level_features: int = 32
    dtype: Dtype = jnp.float32
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
        missing = sorted(set(self.perturbed) - set(attending))
        if missing:
            raise ValueError(f"block {missing[0]!r} has no attention: expected one of {attending}")
        condition = self._complete(cond, x)
        context, pooled = self._context(condition.text)
        context = self._with_embedding(context, condition.embedding)
        embedding = self._embedding(t, condition, pooled)
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
        h = fourier_features(self._with_map(x, condition.map), x, self.fourier)
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
        check_functions(self, "block", "time_features", "attention_fn")
        check_share(self, "dropout")
        check_dtype(self)
        arguments.texts("UNet.perturbed", self.perturbed)
        if self.out_channels is not None:
            check_wholes(self, {"out_channels": 1})
        if self.remat is not None:
            check_functions(self, "remat")

    def _complete(self, cond: Condition | Array | None, x: Array) -> Condition:
        """The condition with null values for conditions that were not passed."""
        condition = cond if isinstance(cond, Condition) else Condition(label=cond)
        for name, has in (
            ("label", self.num_classes), ("text", self.text_width), ("map", self.map_channels),
            ("augmentation", self.augmentation_width), ("embedding", self.embedding_width),
        ):  # fmt: skip
            if getattr(condition, name) is not None and not has:
                raise ValueError(
                    f"a {name} was given to a U-Net that does not support it: set num_classes, "
                    "text_width, map_channels, augmentation_width or embedding_width"
                )
        batch, height, width, _ = x.shape
        label, text, spatial, augmentation, embedding = condition
        nothing = jnp.zeros((batch, 1), bool)
        if self.num_classes and label is None:
            label = jnp.full(batch, -1)
        if self.text_width and text is None:
            shape = (batch, 1) if self.text_encoder else (batch, 1, self.text_width)
            text = Text(jnp.zeros(shape, int if self.text_encoder else float), nothing)
        if self.map_channels and spatial is None:
            values = jnp.zeros((batch, height, width, self.map_channels))
            spatial = SpatialMap(
                values, nothing[:, 0], jnp.zeros(batch) if self.map_level else None
            )
        if spatial is not None and (spatial.log_snr is not None) != self.map_level:
            raise ValueError(
                "a map without its log_snr was given to a U-Net with map_level=True"
                if self.map_level
                else "a map's log_snr was given to a U-Net that does not support it: set map_level"
            )
        if self.augmentation_width and augmentation is None:
            augmentation = jnp.zeros((batch, self.augmentation_width))
        if self.embedding_width and embedding is None:
            embedding = jnp.zeros((batch, self.embedding_width))
        if embedding is not None and embedding.shape != (batch, self.embedding_width):
            raise ValueError(
                f"an image embedding of {embedding.shape} was given for {batch} images: expected "
                f"{(batch, self.embedding_width)}"
            )
        return Condition(label, text, spatial, augmentation, embedding)

    def _embedding(self, t: Array, condition: Condition, pooled: Array | None) -> Array:
        width = 4 * self.base_channels
        time, *span = jnp.unstack(t, axis=1) if self.spans else [t]
        embed_time: Any = partial(
            TimeEmbedding, self.base_channels, width, self.time_features, dtype=self.dtype
        )
        embedding = embed_time(name="time")(time)
        if self.spans:  # zero at first: then a network that was trained without spans is one of 0
            embedding = embedding + embed_time(name="span", zero=True)(*span)
        if condition.label is not None:
            embed = ClassEmbedding(self.num_classes, width, dtype=self.dtype, name="label")
            embedding = embedding + embed(condition.label)
        if condition.map is not None and condition.map.log_snr is not None:
            embed_level = TimeEmbedding(
                self.base_channels, width, dtype=self.dtype, name="map_level"
            )
            level = embed_level(LOG_SNR_SCALE * condition.map.log_snr)
            embedding = embedding + jnp.where(condition.map.present[:, None], level, 0.0)
        if pooled is not None:
            embedding = embedding + nn.Dense(width, dtype=self.dtype, name="pooled")(pooled)
        if condition.augmentation is not None:
            # Without a bias: zeros, which are no augmentation, add nothing.
            linear = nn.Dense(width, use_bias=False, dtype=self.dtype, name="augmentation")
            embedding = embedding + linear(condition.augmentation)
        if condition.embedding is not None:
            linear = nn.Dense(width, dtype=self.dtype, name="image_embedding")
            embedding = embedding + linear(condition.embedding)
        return embedding

    def _with_embedding(self, context: Context | None, embedding: Array | None) -> Context | None:
        """The context with the image embedding's tokens after those of the text, if any."""
        if embedding is None:
            return context
        width = self.text_width or self.embedding_width
        linear = nn.Dense(EMBEDDING_TOKENS * width, name="image_tokens")
        tokens = linear(embedding).reshape(-1, EMBEDDING_TOKENS, width)
        there = jnp.ones(tokens.shape[:2], bool)
        if context is None:
            return Context(tokens, there)
        return Context(
            jnp.concatenate([context.tokens, tokens], axis=1),
            jnp.concatenate([context.mask, there], axis=1),
        )

    def _context(self, text: Text | None) -> tuple[Context | None, Array | None]:
        """The text's tokens after a learned one that is always valid, and the pooled vector (0 if
        there is no text)."""
        if text is None:
            return None, None
        tokens, mask, pooled = text
        if self.text_encoder is None and tokens.shape[-1] != self.text_width:
            raise ValueError(
                f"text of {tokens.shape[-1]} features a token was given to a U-Net of text_width "
                f"{self.text_width}: use the encoder that it was made for"
            )
        if self.text_encoder is not None:
            tokens, pooled = self.text_encoder(tokens, mask)
        if pooled is None:
            pooled = jnp.zeros((len(mask), self.text_width))
        init = nn.initializers.normal(1.0)
        first = self.param("no_text", init, (1, 1, self.text_width))
        first = jnp.broadcast_to(first, (len(mask), 1, self.text_width))
        tokens = jnp.concatenate([first, tokens.astype(jnp.float32)], axis=1)
        there = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        return Context(tokens, there), jnp.where(mask.any(1, keepdims=True), pooled, 0.0)

    def _with_map(self, x: Array, spatial: SpatialMap | None) -> Array:
        """The image, the map and one more channel, 1 where the map is present."""
        if spatial is None:
            return x
        if spatial.values.shape != (*x.shape[:3], self.map_channels):
            raise ValueError(
                f"a map of {spatial.values.shape} was given for {x.shape}: expected "
                f"{(*x.shape[:3], self.map_channels)}"
            )
        present = spatial.present[:, None, None, None].astype(x.dtype)
        there = jnp.broadcast_to(present, (*x.shape[:3], 1))
        return jnp.concatenate([x, spatial.values.astype(x.dtype) * present, there], axis=-1)

    def attention_blocks(self, height: int) -> tuple[str, ...]:
        """The names of the blocks with attention, for images of this height.

        Raises:
          ValueError: an attention resolution that no level has.
        """
        heights = [-(-height // self.patch)]
        for _ in self.channel_multipliers:
            heights.append(-(-heights[-1] // 2))
        heights = heights[1:] if self.resample_first else heights[:-1]
        missing = set(self.attention_resolutions) - set(heights)
        if missing:
            raise ValueError(
                f"attention_resolutions {sorted(missing)} are not among this network's map "
                f"heights {heights} for images {height} high"
            )
        levels = [i for i, h in enumerate(heights) if h in self.attention_resolutions]
        down = [f"down{level}_{i}" for level in levels for i in range(self.num_res_blocks)]
        up = [
            f"up{level}_{i}" for level in reversed(levels) for i in range(self.num_res_blocks + 1)
        ]
        return (*down, "middle_0", *up)
