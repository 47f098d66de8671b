"""What conditions do to any backbone: a vector for its blocks, a context, and more input channels.

A conditioned network is this stem and a backbone. The U-Net and the transformer have the same
conditions, the same fields for them, and the same names of their parameters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Initializer

from diffjax.models.condition import Condition, SpatialMap, Text
from diffjax.models.embeddings import ClassEmbedding, TimeEmbedding, timestep_embedding
from diffjax.models.transformer import Context
from diffjax.types import Array, Dtype

# Log-SNRs are about -15..15, and the time embedding's features are for 0..1000.
LOG_SNR_SCALE = 32.0
# Of an image embedding, in cross-attention.
EMBEDDING_TOKENS = 4


class Stem(NamedTuple):
    """What a backbone is given.

    Attributes:
      x: (B, H, W, C') the image, with a map and whether it is present.
      vector: (B, width) of time, class, pooled text and the like.
      label: (B, width) of the class alone; None for a network without classes.
      context: the tokens to attend to, or None.
    """

    x: Array
    vector: Array
    label: Array | None
    context: Context | None


class Conditioned(nn.Module):
    """The fields of a network's conditions, and their parameters.

    A text's pooled vector is added to the time embedding, and its tokens are a context; a map is
    concatenated to the image; an image embedding is projected to four more tokens of the context,
    and added to the time embedding (Ramesh et al. 2022, section 2.1). Supported conditions that are
    not passed are treated as dropped.

    Attributes:
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
      time_features: (t, number) -> (B, number): `embeddings.timestep_embedding` or
        `embeddings.random_time_features`.
      spans: whether t is (B, 2), a time and the span of a step, each with an embedding.
      dtype: compute type; parameters stay float32.
    """

    num_classes: int = 0
    text_width: int = 0
    text_encoder: nn.Module | None = None
    map_channels: int = 0
    map_level: bool = False
    augmentation_width: int = 0
    embedding_width: int = 0
    time_features: Callable[[Array, int], Array] = timestep_embedding
    spans: bool = False
    dtype: Dtype = jnp.float32

    def stem(
        self,
        x: Array,
        t: Array,
        cond: Condition | Array | None,
        *,
        features: int,
        width: int,
        init: Initializer | None = None,
        dtype: Dtype | None = None,
    ) -> Stem:
        """The backbone's inputs; to be called once, within a compact method.

        Args:
          x: (B, H, W, C) images.
          t: (B,) times, or (B, 2) with spans.
          cond: see `Condition`; an array is a label.
          features: of the time embedding.
          width: of the vector.
          init: of the kernels of the time's embedding and of the classes' vectors; None for the
            layers' own.
          dtype: compute type of the vector; None for the network's.

        Raises:
          ValueError: a condition that the network does not support, or of another shape.
        """
        condition = self._complete(cond, x)
        context, pooled = self._context(condition.text)
        dtype = dtype or self.dtype
        label = None
        if condition.label is not None:
            options = {"embedding_init": init} if init else {}
            embed = ClassEmbedding(self.num_classes, width, dtype=dtype, name="label", **options)
            label = embed(condition.label)
        embed_time: Any = partial(
            TimeEmbedding, features, width, dtype=dtype, **({"kernel_init": init} if init else {})
        )
        vector = self._vector(t, condition, label, pooled, embed_time, width, dtype)
        images = with_map(x, condition.map, channels=self.map_channels)
        return Stem(images, vector, label, self._with_embedding(context, condition.embedding))

    def _complete(self, cond: Condition | Array | None, x: Array) -> Condition:
        """The condition with null values for conditions that were not passed."""
        condition = cond if isinstance(cond, Condition) else Condition(label=cond)
        what = type(self).__name__
        for name, has in (
            ("label", self.num_classes), ("text", self.text_width), ("map", self.map_channels),
            ("augmentation", self.augmentation_width), ("embedding", self.embedding_width),
            ("control", False),
        ):  # fmt: skip
            if getattr(condition, name) is not None and not has:
                raise ValueError(
                    f"a {name} was given to a {what} that does not support it: set num_classes, "
                    "text_width, map_channels, augmentation_width or embedding_width"
                )
        batch, height, width, _ = x.shape
        label, text, spatial, augmentation, embedding, _ = condition
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
                f"a map without its log_snr was given to a {what} with map_level=True"
                if self.map_level
                else f"a map's log_snr was given to a {what} without map_level"
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

    def _vector(
        self,
        t: Array,
        condition: Condition,
        label: Array | None,
        pooled: Array | None,
        embed_time: Callable[..., Any],
        width: int,
        dtype: Dtype,
    ) -> Array:
        time, *span = jnp.unstack(t, axis=1) if self.spans else [t]
        embedding = embed_time(self.time_features, name="time")(time)
        if self.spans:  # zero at first: then a network that was trained without spans is one of 0
            embedding = embedding + embed_time(self.time_features, name="span", zero=True)(*span)
        if label is not None:
            embedding = embedding + label
        if condition.map is not None and condition.map.log_snr is not None:
            level = embed_time(name="map_level")(LOG_SNR_SCALE * condition.map.log_snr)
            embedding = embedding + jnp.where(condition.map.present[:, None], level, 0.0)
        if pooled is not None:
            embedding = embedding + nn.Dense(width, dtype=dtype, name="pooled")(pooled)
        if condition.augmentation is not None:
            # Without a bias: zeros, which are no augmentation, add nothing.
            linear = nn.Dense(width, use_bias=False, dtype=dtype, name="augmentation")
            embedding = embedding + linear(condition.augmentation)
        if condition.embedding is not None:
            linear = nn.Dense(width, dtype=dtype, name="image_embedding")
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
        assert context.mask is not None
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
                f"text of {tokens.shape[-1]} features a token was given to a network of text_width "
                f"{self.text_width}: use the encoder that it was made for"
            )
        if self.text_encoder is not None:
            tokens, pooled = self.text_encoder(tokens, mask)
        if pooled is None:
            pooled = jnp.zeros((mask.shape[0], self.text_width))
        init = nn.initializers.normal(1.0)
        first = self.param("no_text", init, (1, 1, self.text_width))
        first = jnp.broadcast_to(first, (mask.shape[0], 1, self.text_width))
        tokens = jnp.concatenate([first, tokens.astype(jnp.float32)], axis=1)
        there = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        return Context(tokens, there), jnp.where(mask.any(1, keepdims=True), pooled, 0.0)


def with_map(x: Array, spatial: SpatialMap | None, *, channels: int) -> Array:
    """The image, the map and one more channel, 1 where the map is present.

    Args:
      x: (B, H, W, C) images.
      spatial: the map; None is treated as absent, which is zeros.
      channels: of the map; 0 for none, which returns x.

    Raises:
      ValueError: a map of another shape.
    """
    if not channels:
        return x
    shape = (*x.shape[:3], channels)
    if spatial is None:
        spatial = SpatialMap(jnp.zeros(shape), jnp.zeros(x.shape[0], bool))
    if spatial.values.shape != shape:
        raise ValueError(
            f"a map of {spatial.values.shape} was given for {x.shape}: expected {shape}"
        )
    present = spatial.present[:, None, None, None].astype(x.dtype)
    there = jnp.broadcast_to(present, (*x.shape[:3], 1))
    return jnp.concatenate([x, spatial.values.astype(x.dtype) * present, there], axis=-1)
