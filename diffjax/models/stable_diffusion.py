"""The U-Net of Stable Diffusion 1, 2 and XL, and of their inpainting variants."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.models.attention import Mixer, check_perturbed, no_attention
from diffjax.models.blocks import Conv3x3, Dense, Downsample, ResNetBlock, Upsample
from diffjax.models.checks import (
    check_backbone,
    check_batch,
    check_listed,
    check_wholes,
)
from diffjax.models.condition import Condition
from diffjax.models.embeddings import TimeEmbedding, timestep_embedding
from diffjax.models.norm import GroupNorm
from diffjax.models.ops import XLA, Ops
from diffjax.models.remat import Policy
from diffjax.models.transformer import Context, SpatialTransformer
from diffjax.types import Array, Dtype

# Numbers that SDXL is given of an image: height and width of the original, top and left of the
# crop, height and width of the target (Podell et al. 2023, section 2.2).
SIZES = 6

# (h, level, name, depth of the transformer) -> h
Residual = Callable[[Array, int, str, int], Array]


class Residuals(NamedTuple):
    """What is added to the results of the encoder.

    Attributes:
      skips: to the maps that the decoder is given, in the encoder's order.
      middle: to the result of the middle.
    """

    skips: tuple[Array, ...]
    middle: Array


class StableDiffusionUNet(nn.Module):
    """A U-Net over latents with cross-attention to the tokens of a text.

    Rombach et al. 2022, appendix E, in the sizes of Stable Diffusion 1 and 2; Podell et al. 2023,
    "SDXL", section 2. As in `UNet`, level i has `channels[i]` channels at 1 / 2^i of the latents'
    size; blocks have the same names, such as "down1_0" (level, block), "middle_0", "up1_2".

    All tokens are attended to, those of padding included, on which these networks were trained.

    Attributes:
      channels: of each level.
      blocks: residual blocks per level; one more in the decoder.
      depths: transformer blocks after each residual block of a level; 0 for none.
      middle_depth: those in the middle.
      heads: attention heads of each level; the middle has those of the last one.
      text_width: features per token.
      pooled_width: features of a text's pooled vector, which is embedded together with the sizes
        of the image (`SIZES` numbers in `Condition.augmentation`); 0 for a network without either.
      size_features: sinusoidal features of each of those numbers.
      map_channels: channels of a map that are concatenated to the latents: for inpainting 5, the
        mask and the latents of the masked image; 0 for none.
      image_tokens: number of tokens of an image prompt, which is an image embedding of image_width
        (`stable_diffusion.image_adapter`); 0 for none.
      groups, eps: of the normalisations, as in `GroupNorm`; those of transformers have eps 1e-6.
      time_shift: `shift` of `timestep_embedding`.
      sine_first: of `timestep_embedding`, too.
      dropout: rate in the residual blocks, if train = True.
      attention_fn: of the self-attention, see `attention.SelfAttention`.
      perturbed: blocks whose self-attention is replaced by `attention.no_attention`, as in `UNet`.
      out_channels: None for the latents'.
      dtype: compute type.
      ops: kernels of convolutions and normalisation.
      remat: which results are kept for the backward pass, as in `UNet`.
    """

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2
    depths: tuple[int, ...] = (1, 1, 1, 0)
    middle_depth: int = 1
    heads: tuple[int, ...] = (8, 8, 8, 8)
    text_width: int = 768
    pooled_width: int = 0
    size_features: int = 256
    map_channels: int = 0
    image_tokens: int = 0
    image_width: int = 0
    groups: int = 32
    eps: float = 1e-5
    time_shift: float = 0.0
    sine_first: bool = False
    dropout: float = 0.0
    attention_fn: Mixer = jax.nn.dot_product_attention
    perturbed: tuple[str, ...] = ()
    out_channels: int | None = None
    dtype: Dtype = jnp.float32
    ops: Ops = XLA
    remat: Policy | None = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array,
        cond: Condition,
        train: bool = False,
        control: Residuals | None = None,
    ) -> Array:
        """Applies the network.

        Args:
          x: (B, h, w, C) latents, of any size.
          t: (B,) times, 0..999.
          cond: with `text`, (B, L, text_width) tokens, with pooled_width its `pooled`, (B,
            pooled_width), and `augmentation`, (B, 6); with map_channels a `map`.
          train: whether dropout is on, which needs a "dropout" key.
          control: what is added to the encoder's results, see `models.controlnet`.

        Returns:
          (B, h, w, out_channels) float32.

        Raises:
          UserError: a field, latents or times of another type, shape or range.
          ValueError: a condition that is missing or of another shape, or a perturbed block without
            attention.
        """
        self._check_fields()
        check_batch(self, x, t, cond)
        check_perturbed(self.perturbed, self.attention_blocks(x.shape[1]))
        context, vector, with_map = self._inputs(x, t, cond)
        residual = self._residual(context, vector, train)
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        h = Conv3x3(self.channels[0], name="stem", **common)(with_map.astype(self.dtype))
        skips, h = self._encode(h, residual)
        if control is not None:
            pairs = zip(skips, control.skips, strict=True)
            skips = [skip + added.astype(self.dtype) for skip, added in pairs]
            h = h + control.middle.astype(self.dtype)

        for level in reversed(range(len(self.channels))):
            for i in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = residual(h, level, f"up{level}_{i}", self.depths[level])
            if level:
                h = Upsample(name=f"up{level}", **common)(h, *skips[-1].shape[1:3])

        h = GroupNorm(self.groups, self.eps, silu=True, name="norm", **common)(h)
        h = Conv3x3(self.out_channels or x.shape[-1], zero=True, name="head", **common)(h)
        return h.astype(jnp.float32)

    def _residual(self, context: Context, vector: Array, train: bool) -> Residual:
        """A residual block with its transformer: (h, level, name, depth) -> h."""
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        block, transformer = ResNetBlock, SpatialTransformer
        if self.remat is not None:
            block = nn.remat(block, static_argnums=(3,), policy=self.remat)
            transformer = nn.remat(transformer, policy=self.remat)

        def residual(h: Array, level: int, name: str, depth: int) -> Array:
            width = self.channels[level]
            h = block(
                width, dropout=self.dropout, scale_shift=False, groups=self.groups, eps=self.eps,
                name=name, **common,
            )(h, vector, train)  # fmt: skip
            if depth:
                h = transformer(
                    depth, width // self.heads[level], groups=self.groups, eps=1e-6,
                    mix=no_attention if name in self.perturbed else self.attention_fn,
                    name=f"{name}_transformer", **common,
                )(h, context)  # fmt: skip
            return h

        return residual

    def _encode(self, h: Array, residual: Residual) -> tuple[list[Array], Array]:
        """The stem's result to the maps that the decoder is given, and that of the middle."""
        skips, last = [h], len(self.channels) - 1
        for level, depth in enumerate(self.depths):
            for i in range(self.blocks):
                h = residual(h, level, f"down{level}_{i}", depth)
                skips.append(h)
            if level != last:
                h = Downsample(dtype=self.dtype, ops=self.ops, name=f"down{level}")(h)
                skips.append(h)
        h = residual(h, last, "middle_0", self.middle_depth)
        return skips, residual(h, last, "middle_1", 0)

    def _inputs(self, x: Array, t: Array, cond: Condition) -> tuple[Context, Array, Array]:
        """The tokens to attend to, the vector of the residual blocks, and latents with the map."""
        text = cond.text if isinstance(cond, Condition) else None
        if text is None or text.tokens.shape[-1] != self.text_width:
            found = "no text" if text is None else f"a text of {text.tokens.shape}"
            raise ValueError(
                f"{found} was given to a network of text_width {self.text_width}: expected tokens "
                f"(B, L, {self.text_width}), the null condition's are those of an empty text"
            )
        features = partial(timestep_embedding, shift=self.time_shift, sine_first=self.sine_first)
        width = 4 * self.channels[0]
        embed: Any = partial(TimeEmbedding, width=width, dtype=self.dtype)
        vector = embed(self.channels[0], features_of=features, name="time")(t)
        if self.pooled_width:
            pooled, sizes, batch = text.pooled, cond.augmentation, x.shape[0]
            if pooled is None or pooled.shape != (batch, self.pooled_width):
                raise ValueError(
                    f"the network needs a text's pooled ({batch}, {self.pooled_width})"
                )
            if sizes is None or sizes.shape != (batch, SIZES):
                raise ValueError(f"the network needs the sizes ({batch}, {SIZES}) of the images")
            waves = features(sizes.reshape(-1), self.size_features).reshape(batch, -1)
            added = jnp.concatenate([pooled.astype(jnp.float32), waves], axis=-1)
            vector += embed(added.shape[-1], features_of=lambda v, n: v, name="added")(added)
        if self.map_channels:
            shape = (*x.shape[:3], self.map_channels)
            if cond.map is None or cond.map.values.shape != shape:
                raise ValueError(f"the network needs a map of {shape}")
            x = jnp.concatenate([x, cond.map.values.astype(x.dtype)], axis=-1)
        context = Context(text.tokens.astype(self.dtype), None)
        if self.image_tokens:
            context = context._replace(
                image=self._image(cond), scale=self.param("image_scale", nn.initializers.ones, ())
            )
        return context, vector, x

    def _image(self, cond: Condition) -> Array:
        """The tokens of an image embedding, (B, image_tokens, text_width)."""
        z = cond.embedding
        if z is None or z.shape[-1] != self.image_width:
            raise ValueError(f"the network needs an image embedding (B, {self.image_width})")
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        h = Dense(self.image_tokens * self.text_width, name="image_proj", **common)(z)
        h = h.reshape(len(z), self.image_tokens, self.text_width)
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="image_norm")(h)

    def _check_fields(self) -> None:
        """Raises UserError for a field of another type or out of range."""
        check_wholes(
            self,
            {
                "blocks": 1, "middle_depth": 0, "text_width": 1, "pooled_width": 0,
                "size_features": 2, "map_channels": 0, "image_tokens": 0, "image_width": 0,
                "groups": 1,
            },
        )  # fmt: skip
        check_listed(self, "channels", "heads", filled=True)
        check_listed(self, "depths")
        check_backbone(self)
        levels = len(self.channels)
        if len(self.depths) != levels or len(self.heads) != levels:
            raise ValueError(
                f"channels {self.channels}, depths {self.depths} and heads {self.heads} must have "
                "one number a level each"
            )
        for width, heads in zip(self.channels, self.heads, strict=True):
            if width % heads or width % self.groups:
                raise ValueError(
                    f"{width} channels can't have {heads} heads and {self.groups} groups: both "
                    "must divide the channels"
                )

    def depth_of(self, block: str) -> int:
        """The depth of a block's transformer, by its name as in `attention_blocks`."""
        if block.startswith("middle"):
            return self.middle_depth
        return self.depths[int(block.lstrip("downup").split("_")[0])]

    def attention_blocks(self, height: int) -> tuple[str, ...]:
        """The names of the blocks with attention, which do not depend on the height."""
        levels = [level for level, depth in enumerate(self.depths) if depth]
        down = [f"down{level}_{i}" for level in levels for i in range(self.blocks)]
        up = [f"up{level}_{i}" for level in reversed(levels) for i in range(self.blocks + 1)]
        return (*down, *(["middle_0"] if self.middle_depth else []), *up)
