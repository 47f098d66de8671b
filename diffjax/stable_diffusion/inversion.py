"""Textual inversion (Gal et al. 2022, "An image is worth one word", section 3): the vectors v of a
new token are trained,

    v* = argmin_v E || eps - eps_theta(x_t, t, c_v(y)) ||^2        (equation 2)

over images and texts y with the token, and neither the U-Net eps_theta nor the rest of the text
encoders c_v. Since c_v depends on v, the network is given ids of tokens, and contains the encoders.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffjax.conditioning.conditions import Texts
from diffjax.models.condition import Condition, Text
from diffjax.models.linen import LinenNetwork
from diffjax.stable_diffusion.text import Encoder, Part
from diffjax.types import Array

WORD = "word"  # the table of embeddings


class InvertedNetwork(NamedTuple):
    """A U-Net after its text encoders, as a network (`models.network`) of token ids.

    Its parameters are {"unet": ..., "texts": (...), "vectors": (...)}, with vectors (n, D) for each
    encoder. `cond.text` has int32 tokens (B, L), those of all encoders one after another, and
    a mask that is False where the text is zeros instead.

    Attributes:
      unet: the network.
      encoders: see `text.Encoder`.
      vectors: their number; their ids are those after the vocabulary's.
    """

    unet: LinenNetwork
    encoders: tuple[Encoder, ...]
    vectors: int

    def init(self, key: Array, x: Array, t: Array, cond: Condition) -> Any:
        """Random parameters of the U-Net, and zeros."""

        def zeros(shapes: Any) -> Any:
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        texts = tuple(zeros(encoder.shapes()) for encoder in self.encoders)
        vectors = tuple(jnp.zeros((self.vectors, one.module.width)) for one in self.encoders)
        params = {"texts": texts, "vectors": vectors}
        return {"unet": self.unet.init(key, x, t, self._encoded(params, cond)), **params}

    def apply(
        self,
        params: Any,
        x: Array,
        t: Array,
        cond: Condition,
        *,
        train: bool = False,
        key: Any = None,
    ) -> Array:
        """The U-Net's output; `key` is its "dropout" stream."""
        cond = self._encoded(params, cond)
        return self.unet.apply(params["unet"], x, t, cond, train=train, key=key)

    def attention_blocks(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """The names of the U-Net's blocks with attention, for x_0 of this shape."""
        return self.unet.module.attention_blocks(shape[0])

    def perturbed(self, blocks: tuple[str, ...]) -> "InvertedNetwork":
        """The network with the same parameters and without attention in these of its blocks."""
        module = self.unet.module.clone(perturbed=blocks)
        return self._replace(unet=self.unet._replace(module=module))

    def _encoded(self, params: Any, cond: Condition) -> Condition:
        assert cond.text is not None
        ids = jnp.split(jnp.asarray(cond.text.tokens), len(self.encoders), axis=1)
        kept = jnp.asarray(cond.text.mask).any(axis=1)
        made = [
            states(encoder, of, vectors, part)
            for encoder, of, vectors, part in zip(
                self.encoders, params["texts"], params["vectors"], ids, strict=True
            )
        ]
        tokens = jnp.concatenate([tokens for tokens, _ in made], axis=-1)
        tokens = jnp.where(kept[:, None, None], tokens, 0)
        pooled = None
        if self.encoders[-1].projection:
            pooled = jnp.where(kept[:, None], made[-1][1], 0)
        return cond._replace(text=Text(tokens, jnp.ones(tokens.shape[:2], bool), pooled))


def states(encoder: Encoder, params: Any, vectors: Array, ids: Array) -> tuple[Array, Array]:
    """An encoder's tokens and pooled vector, with `vectors` for the ids after its vocabulary's.

    Args:
      encoder, params: its network.
      vectors: (k, D).
      ids: (B, L) below vocabulary + k.
    """
    size = encoder.module.vocabulary

    def embedded(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.module.name != WORD or context.method_name != "__call__":
            return call(*args, **kwargs)
        known = call(jnp.minimum(args[0], size - 1))
        new = vectors[jnp.maximum(args[0] - size, 0)].astype(known.dtype)
        return jnp.where((args[0] >= size)[..., None], new, known)

    with nn.intercept_methods(embedded), jax.default_matmul_precision("float32"):
        return encoder(params, ids)


def texts_of_ids(parts: Sequence[Part], *, zeros_for_none: bool, identity: str) -> Texts:
    """Texts as ids of tokens for `InvertedNetwork`.

    Args:
      parts: the encoders, whose tokenizers know the new token.
      zeros_for_none, identity: as for `text.texts`.
    """
    encoders = [part.encoder.module for part in parts]

    def encode(captions: Sequence[str]) -> Text:
        ids = np.concatenate([part.tokenizer(captions) for part in parts], axis=1)
        return Text(ids, np.ones(ids.shape, bool))

    def null() -> Text:
        empty = encode([""])
        return empty._replace(mask=np.full_like(empty.mask, not zeros_for_none))

    made: Callable[[], Text] = cache(null)
    length = sum(encoder.positions for encoder in encoders)
    width = sum(encoder.width for encoder in encoders)
    return Texts(width, encoders[0], length, encode, identity, null=made)
