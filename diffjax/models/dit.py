"""A diffusion transformer over patches (DiT; LightningDiT's and JiT's forms by options)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.models.attention import Mixer, check_perturbed
from diffjax.models.blocks import Dense, depth_to_space, space_to_depth
from diffjax.models.checks import check_backbone, check_batch, check_functions, check_wholes
from diffjax.models.condition import Condition
from diffjax.models.conditioned import Conditioned
from diffjax.models.dit_blocks import (
    LINEAR_INIT,
    ZERO,
    Block,
    RMSNorm,
    SwiGlu,
    grid_positions,
    rotary_angles,
    sincos_positions,
)
from diffjax.models.ops import XLA, Ops
from diffjax.models.remat import Policy
from diffjax.models.transformer import Context
from diffjax.types import Array

TIME_FEATURES = 256
EMBEDDING_INIT = nn.initializers.normal(0.02)


class DiT(Conditioned):
    """A transformer over an image's patches, conditioned by adaLN-zero.

    Peebles & Xie 2023. Positions are those of the patches, so any size goes, at sampling another
    one than in training, too; an image whose sides the patch does not divide is padded at the
    bottom and the right, and the result is cut. Blocks are one scanned layer: compile time does not
    grow with their number.

    With norm=RMSNorm, SwiGLU, rotary positions and normalised queries and keys, the defaults, it is
    LightningDiT (Yao et al. 2025); with a bottleneck and class tokens JiT (Li & He 2025). The
    published DiT is DiT(norm=LayerNorm, mlp=Gelu, rotary=False, sincos=True, qk_norm=False). The
    fields of conditions are those of `Conditioned`.

    Attributes:
      width: channels of a token.
      depth: number of blocks.
      head_channels: channels per head.
      patch: side of a patch.
      mlp_ratio: hidden channels of the MLPs / width.
      norm, mlp, qk_norm: as in `dit_blocks.Block`.
      rotary: whether queries and keys are turned by their position.
      sincos: whether the positions' features are added to the tokens.
      bottleneck: channels between the two linear maps that embed a patch (JiT); 0 for one map.
      class_tokens: copies of the class's vector among the tokens (JiT); 0 for none.
      class_tokens_from: the block before which they join.
      dropout: rate, if train = True.
      dropout_middle: whether the middle half of the blocks alone has dropout (JiT).
      attention_fn: `jax.nn.dot_product_attention` or another `attention.Mixer`.
      perturbed: blocks whose tokens attend to themselves alone: "block_0", "block_1" ...
      out_channels: None for the input's.
      ops: kernels of the linear maps: `ops.XLA`, or an accelerator's.
      unroll: whether the loop over blocks is unrolled when it is compiled.
      remat: as in `UNet`.
    """

    width: int = 384
    depth: int = 12
    head_channels: int = 64
    patch: int = 2
    mlp_ratio: float = 4.0
    norm: Callable[..., nn.Module] = RMSNorm
    mlp: Callable[..., nn.Module] = SwiGlu
    qk_norm: bool = True
    rotary: bool = True
    sincos: bool = True
    bottleneck: int = 0
    class_tokens: int = 0
    class_tokens_from: int = 4
    dropout: float = 0.0
    dropout_middle: bool = False
    attention_fn: Mixer = jax.nn.dot_product_attention
    perturbed: tuple[str, ...] = ()
    out_channels: int | None = None
    ops: Ops = XLA
    unroll: bool = False
    remat: Policy | None = None

    scanned: ClassVar[tuple[str, ...]] = ("blocks", "joined")

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
          (B, H, W, out_channels) float32.

        Raises:
          UserError: a field, images, times or labels of another type, shape or range.
          ValueError: a condition that the network does not support, a width that the heads do not
            divide, or a perturbed block that there is not.
        """
        self._check()
        check_batch(self, x, t, cond, spans=self.spans)
        height, width, channels = x.shape[1:]
        # The vector is float32 for every compute type, as are shift, scale and gate until they act.
        with_map, vector, label, context = self.stem(
            x, t, cond, features=TIME_FEATURES, width=self.width, init=EMBEDDING_INIT,
            dtype=jnp.float32,
        )  # fmt: skip
        h = space_to_depth(with_map, self.patch)
        rows, columns = h.shape[1:3]
        h = self._embedded(h.reshape(len(x), rows * columns, -1).astype(self.dtype))
        positions = grid_positions(rows, columns)
        if self.sincos:
            h = h + jnp.asarray(sincos_positions(positions, self.width), self.dtype)
        angles = rotary_angles(positions, self.head_channels) if self.rotary else None
        start = min(self.class_tokens_from, self.depth) if self.class_tokens else self.depth
        given = vector, angles, context, train
        h = self._blocks(h, given, first=0, last=start, name="blocks")
        if label is not None and self.class_tokens:
            tokens = self.param(
                "class_tokens", nn.initializers.normal(0.02), (self.class_tokens, self.width)
            )
            joined = (label[:, None] + tokens).astype(self.dtype)
            h = jnp.concatenate([h, joined], axis=1)
            h = self._blocks(h, given, first=start, last=self.depth, name="joined")
            h = h[:, : rows * columns]
        modulation = nn.Dense(2 * self.width, kernel_init=ZERO, name="modulation")(nn.silu(vector))
        shift, scale = jnp.split(modulation[:, None], 2, axis=-1)
        h = self.norm(dtype=jnp.float32, ops=self.ops, name="norm_out")(h) * (1 + scale) + shift
        out = (self.out_channels or channels) * self.patch**2
        h = nn.Dense(out, kernel_init=ZERO, dtype=self.dtype, name="head")(h.astype(self.dtype))
        h = h.reshape(x.shape[0], rows, columns, out)
        return depth_to_space(h, self.patch, height, width).astype(jnp.float32)

    def _embedded(self, h: Array) -> Array:
        if self.bottleneck:
            linear: Any = partial(nn.Dense, use_bias=False, kernel_init=LINEAR_INIT)
            h = linear(self.bottleneck, dtype=self.dtype, name="bottleneck")(h)
        linear = partial(Dense, kernel_init=LINEAR_INIT, dtype=self.dtype, ops=self.ops)
        return linear(self.width, name="patches")(h)

    def _blocks(
        self,
        h: Array,
        given: tuple[Array, Array | None, Context | None, bool],
        *,
        first: int,
        last: int,
        name: str,
    ) -> Array:
        """The blocks first .. last - 1, as one layer that is scanned over; see `Block` on given."""
        if first == last:
            return h
        vector, angles, context, train = given
        block: Any = Block
        if self.remat is not None:
            block = nn.remat(Block, static_argnums=(7,), policy=self.remat, prevent_cse=False)
        made = partial(
            block, self.head_channels, round(self.mlp_ratio * self.width), self.norm, self.mlp,
            self.qk_norm, self.dropout, self.attention_fn, self.dtype, self.ops,
        )  # fmt: skip
        numbers = range(first, last)
        perturbed, dropped = None, None
        if self.perturbed:
            perturbed = jnp.array([f"block_{i}" in self.perturbed for i in numbers])
        if self.dropout_middle:
            quarter = self.depth // 4
            dropped = jnp.array([quarter <= i < 3 * quarter for i in numbers])

        def body(one: Any, h: Array, of_block: tuple[Array | None, ...]) -> tuple[Array, None]:
            return one(h, vector, angles, context, *of_block, train), None

        scanned = nn.scan(
            body,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=0,
            length=last - first,
            unroll=last - first if self.unroll else 1,
        )
        return scanned(made(name=name), h, (perturbed, dropped))[0]

    def attention_blocks(self, height: int) -> tuple[str, ...]:
        """The names of the blocks, all of which have attention."""
        del height
        return tuple(f"block_{i}" for i in range(self.depth))

    def block_map(self, found: Mapping[str, Array], block: str, shape: tuple[int, ...]) -> Array:
        """One block's tokens of the image, (B, rows, columns, width).

        Args:
          found: the results of `scanned` layers, (blocks, B, L, width).
          block: "block_0", "block_1" ...
          shape: of the images.

        Raises:
          ValueError: there is no such block.
        """
        if block not in self.attention_blocks(0):
            raise ValueError(f"block {block!r} is not among block_0 to block_{self.depth - 1}")
        index = int(block.removeprefix("block_"))
        first = len(found.get("blocks", ()))
        tokens = found["blocks"][index] if index < first else found["joined"][index - first]
        rows, columns = (-(-side // self.patch) for side in shape[1:3])
        return tokens[:, : rows * columns].reshape(shape[0], rows, columns, self.width)

    def _check(self) -> None:
        check_wholes(
            self,
            {
                "width": 1, "depth": 1, "head_channels": 4, "patch": 1, "bottleneck": 0,
                "class_tokens": 0, "class_tokens_from": 0, "num_classes": 0, "text_width": 0,
                "map_channels": 0, "augmentation_width": 0, "embedding_width": 0,
            },
        )  # fmt: skip
        check_functions(self, "norm", "mlp", "time_features")
        if not arguments.number("DiT.mlp_ratio", self.mlp_ratio) > 0:
            raise UserError(f"DiT.mlp_ratio is {self.mlp_ratio}: expected a number above 0")
        check_backbone(self)
        if self.width % self.head_channels:
            raise ValueError(
                f"a transformer of width {self.width} can't have heads of {self.head_channels}: "
                "head_channels must divide width"
            )
        if self.head_channels % 4 or self.width % 4:
            raise ValueError(
                f"positions in the plane need channels in fours, not head_channels = "
                f"{self.head_channels} and width = {self.width}"
            )
        if self.class_tokens and not self.num_classes:
            raise ValueError(f"class_tokens = {self.class_tokens} needs a network with classes")
        check_perturbed(self.perturbed, self.attention_blocks(0))


# The fields of the published sizes (Peebles & Xie 2023, table 1): DiT(**SIZES["B"]).
SIZES = {
    "S": {"width": 384, "depth": 12, "head_channels": 64},
    "B": {"width": 768, "depth": 12, "head_channels": 64},
    "L": {"width": 1024, "depth": 24, "head_channels": 64},
    "XL": {"width": 1152, "depth": 28, "head_channels": 72},
}
