"""EDM2's magnitude-preserving U-Net."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax import arguments
from diffjax.models import edm2_blocks
from diffjax.models.attention import Mixer, attention_blocks, check_perturbed, no_attention
from diffjax.models.blocks import average_pool, depth_to_space, nearest, space_to_depth
from diffjax.models.checks import (
    check_backbone,
    check_batch,
    check_listed,
    check_share,
    check_wholes,
)
from diffjax.models.condition import Condition
from diffjax.models.conditioned import with_map
from diffjax.models.edm2_blocks import (
    MPBlock,
    MPConv3x3,
    MPDense,
    mp_cat,
    mp_fourier,
    mp_silu,
    mp_sum,
)
from diffjax.models.ops import XLA, Ops
from diffjax.models.remat import Policy
from diffjax.types import Array, Dtype


class EDM2UNet(nn.Module):
    """A U-Net whose activations and weights keep their magnitudes, conditioned on class or a map.

    Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models",
    configuration G. The order of blocks is ADM's, with one more block for every change of
    resolution; the layers are those of `edm2_blocks`. Its input has to be of unit variance, as by
    `parametrisations.edm`, and its parameters have to be passed through `project` at first and
    after every update: the train step does. Odd sizes are rounded up in the encoder and cropped in
    the decoder.

    The null class has a vector of its own, as any class: a vector of zeros in its place would make
    what follows smaller by 1 / sqrt(2). A map that is absent is zeros, as in `UNet`.

    Attributes:
      base_channels: channels at the first level.
      channel_multipliers: channels of each level over `base_channels`.
      num_res_blocks: residual blocks per level; one more in the decoder.
      attention_resolutions: heights of the maps (after the patch stem) with attention; the first
        middle block always has it.
      head_channels: channels per attention head.
      patch: patch side of the space-to-depth stem; 1 for none.
      bandwidth: of the time's features, see `edm2_blocks.mp_fourier`: 1 for log(sigma) / 4, 0.003
        for times in 0..1000.
      dropout: rate in the residual blocks, if train = True.
      residual_balance, attention_balance, concat_balance, label_balance: share t of the new part
        where it is added to or concatenated with what there is; label_balance is the class's.
      attention_fn: `jax.nn.dot_product_attention` or another `attention.Mixer`.
      perturbed: blocks without attention between pixels, by name as in `UNet`.
      num_classes: 0 for a network without classes.
      map_channels: of the map; 0 for a network without one.
      out_channels: None for the input's.
      dtype: compute type; parameters stay float32.
      ops: kernels of convolutions: `ops.XLA`, or an accelerator's.
      remat: as in `UNet`.
    """

    base_channels: int = 64
    channel_multipliers: tuple[int, ...] = (1, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = ()
    head_channels: int = 64
    patch: int = 1
    bandwidth: float = 1.0
    dropout: float = 0.0
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    concat_balance: float = 0.5
    label_balance: float = 0.5
    attention_fn: Mixer = jax.nn.dot_product_attention
    perturbed: tuple[str, ...] = ()
    num_classes: int = 0
    map_channels: int = 0
    out_channels: int | None = None
    dtype: Dtype = jnp.float32
    ops: Ops = XLA
    remat: Policy | None = None

    @nn.compact
    def __call__(
        self, x: Array, t: Array, cond: Condition | Array | None = None, *, train: bool = False
    ) -> Array:
        """The network's prediction for noisy images; 0 at first.

        Args:
          x: (B, H, W, C) float images, of unit variance.
          t: (B,) times in the units of `bandwidth`.
          cond: see `Condition`; an array is a label, and None is treated as dropped.
          train: whether dropout is on, which needs a "dropout" key.

        Returns:
          (B, H, W, out_channels) float32.

        Raises:
          UserError: a field, images, times or labels of another type, shape or range.
          ValueError: a condition that the network does not support, an attention resolution that
            no level has, heads that do not divide the channels, or a perturbed block without
            attention.
        """
        self._check_fields()
        check_batch(self, x, t, cond)
        height, width, channels = x.shape[1:]
        attending = self.attention_blocks(height)
        check_perturbed(self.perturbed, attending)
        condition = self._condition(cond)
        vector = self._vector(t, condition.label)
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        block: Any = MPBlock
        if self.remat is not None:
            block = nn.remat(MPBlock, static_argnums=(3,), policy=self.remat)

        def residual(h: Array, level: int, name: str, **options: Any) -> Array:
            mix = self.attention_fn if name in attending else None
            return block(
                self.base_channels * self.channel_multipliers[level],
                encoder=name.startswith("down"),
                mix=no_attention if name in self.perturbed else mix,
                head_channels=self.head_channels,
                dropout=self.dropout,
                residual_balance=self.residual_balance,
                attention_balance=self.attention_balance,
                name=name,
                **options,
                **common,
            )(h, vector, train)

        levels = range(len(self.channel_multipliers))
        h = with_map(x, condition.map, channels=self.map_channels)
        h = space_to_depth(h, self.patch)
        # What a bias would do: the convolution sees a constant.
        h = jnp.concatenate([h, jnp.ones((*h.shape[:3], 1), h.dtype)], axis=-1)
        h = MPConv3x3(self.base_channels * self.channel_multipliers[0], name="stem", **common)(h)
        skips = [h]
        for level in levels:
            for i in range(self.num_res_blocks):
                h = residual(h, level, f"down{level}_{i}")
                skips.append(h)
            if level != levels[-1]:
                h = residual(h, level, f"down{level}", resample=average_pool)
                skips.append(h)

        h = residual(h, levels[-1], "middle_0")
        h = residual(h, levels[-1], "middle_1")

        for level in reversed(levels):
            for i in range(self.num_res_blocks + 1):
                h = mp_cat(h, skips.pop(), self.concat_balance)
                h = residual(h, level, f"up{level}_{i}")
            if level:
                rows, columns = skips[-1].shape[1:3]
                larger = partial(nearest, height=rows, width=columns)
                h = residual(h, level, f"up{level}", resample=larger)

        gain = self.param("gain", nn.initializers.zeros, ())
        features = (self.out_channels or channels) * self.patch**2
        h = MPConv3x3(features, name="head", **common)(h, gain)
        return depth_to_space(h, self.patch, height, width).astype(jnp.float32)

    def project(self, params: Any) -> Any:
        """Parameters with normalised weights, for the same function; see `edm2_blocks.project`."""
        return edm2_blocks.project(params)

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
        )

    def _vector(self, t: Array, label: Array | None) -> Array:
        """(B, E) float32 of time and class, E the largest number of channels."""
        width = self.base_channels * max(self.channel_multipliers)
        features = mp_fourier(t, self.base_channels, bandwidth=self.bandwidth)
        vector = MPDense(width, name="time")(features)
        if self.num_classes:
            rows = self.num_classes + 1  # the last one is the null class
            label = jnp.full(t.shape[0], -1) if label is None else label
            one_hot = jax.nn.one_hot(jnp.where(label < 0, self.num_classes, label), rows)
            of_label = MPDense(width, name="label")(one_hot * rows**0.5)
            vector = mp_sum(vector, of_label, self.label_balance)
        return mp_silu(vector)

    def _condition(self, cond: Condition | Array | None) -> Condition:
        condition = cond if isinstance(cond, Condition) else Condition(label=cond)
        has = {"label": self.num_classes, "map": self.map_channels}
        for name, part in zip(condition._fields, condition, strict=True):
            if part is not None and not has.get(name):
                raise ValueError(
                    f"a {name} was given to an EDM2UNet that does not support it: it takes classes "
                    "and a map, by num_classes and map_channels"
                )
        if condition.map is not None and condition.map.log_snr is not None:
            raise ValueError("a map's log_snr was given to an EDM2UNet, which does not take it")
        return condition

    def _check_fields(self) -> None:
        """Raises UserError for a field of another type or out of range."""
        check_wholes(
            self,
            {
                "base_channels": 1, "num_res_blocks": 0, "head_channels": 1, "patch": 1,
                "num_classes": 0, "map_channels": 0,
            },
        )  # fmt: skip
        check_listed(self, "channel_multipliers", filled=True)
        check_listed(self, "attention_resolutions")
        for name in ("residual_balance", "attention_balance", "concat_balance", "label_balance"):
            check_share(self, name)
        arguments.number("EDM2UNet.bandwidth", self.bandwidth)
        check_backbone(self)


_PUBLISHED = {"XS": 128, "S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448}
# The fields of the published sizes (Karras et al. 2024, table 2): EDM2UNet(**SIZES["XS"]).
SIZES: dict[str, dict[str, Any]] = {
    name: {
        "base_channels": channels,
        "channel_multipliers": (1, 2, 3, 4),
        "num_res_blocks": 3,
        "attention_resolutions": (16, 8),
    }
    for name, channels in _PUBLISHED.items()
}
