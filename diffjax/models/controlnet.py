"""ControlNet: a copy of the U-Net's encoder that is given an image of the same size as the result.

Zhang, Rao & Agrawala 2023, "Adding conditional control to text-to-image diffusion models", section
3: an image c (edges, depth, a pose) is embedded at the latents' size and added after the stem of
the copy, whose results z_i go through zero convolutions Z_i to what the U-Net's decoder is given,

    skip_i + scale Z_i(z_i),

and likewise in the middle. Several of them are summed.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.models.blocks import Conv3x3, Dense
from diffjax.models.checks import check_batch
from diffjax.models.condition import Condition
from diffjax.models.ops import XLA, Ops
from diffjax.models.stable_diffusion import Residuals, StableDiffusionUNet
from diffjax.types import Array, Dtype


class ControlNet(StableDiffusionUNet):
    """The encoder of a `StableDiffusionUNet`, with its fields, and the embedding of an image.

    Attributes:
      image_channels: of the image.
      image_widths: channels of its embedding's levels; each but the first halves the sides.
      flipped: whether the image's channels are taken in reversed order, BGR.
    """

    image_channels: int = 3
    image_widths: tuple[int, ...] = (16, 32, 96, 256)
    flipped: bool = False

    @property
    def factor(self) -> int:
        """Pixels of the image per latent along a side."""
        return 2 ** (len(self.image_widths) - 1)

    @nn.compact
    def __call__(
        self, x: Array, t: Array, cond: Condition, image: Array, train: bool = False
    ) -> Residuals:
        """What is added to the results of the U-Net's encoder.

        Args:
          x, t, cond: as for the U-Net, without a map.
          image: (B, factor h, factor w, image_channels) in [0, 1].
          train: whether dropout is on.

        Raises:
          UserError: latents or times of another type, shape or range.
          ValueError: a condition or an image of another shape.
        """
        self._check_fields()
        check_batch(self, x, t, cond)
        batch, height, width = x.shape[:3]
        expected = (batch, self.factor * height, self.factor * width, self.image_channels)
        if image.shape != expected:
            raise ValueError(f"the image of a ControlNet is {image.shape}: expected {expected}")
        context, vector, x = self._inputs(x, t, cond)
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        h = Conv3x3(self.channels[0], name="stem", **common)(x.astype(self.dtype))
        image = image[..., ::-1] if self.flipped else image
        h = h + ImageStem(self.channels[0], self.image_widths, name="image", **common)(image)
        skips, middle = self._encode(h, self._residual(context, vector, train))

        def zero(z: Array, name: str) -> Array:
            return Dense(z.shape[-1], zero=True, name=name, **common)(z)

        zeros = [zero(skip, f"skip_{i}") for i, skip in enumerate(skips)]
        return Residuals(tuple(zeros), zero(middle, "skip_middle"))


class ImageStem(nn.Module):
    """Convolutions from an image to features at the latents' size, zero at initialisation.

    Attributes:
      features: output channels.
      widths: see `ControlNet.image_widths`.
      dtype, ops: of the convolutions.
    """

    features: int
    widths: tuple[int, ...]
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """(B, factor h, factor w, C) -> (B, h, w, features)."""
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        h = nn.silu(Conv3x3(self.widths[0], name="stem", **common)(image.astype(self.dtype)))
        for i, wider in enumerate(self.widths[1:]):
            h = nn.silu(Conv3x3(h.shape[-1], name=f"conv{i}", **common)(h))
            h = nn.silu(Conv3x3(wider, stride=2, name=f"down{i}", **common)(h))
        return Conv3x3(self.features, zero=True, name="head", **common)(h)


class ControlledNetwork(NamedTuple):
    """A U-Net with one or more ControlNets, as a network (`models.network`).

    Its parameters are {"unet": ..., "controls": (...)}; their images and scales are `cond.control`.
    """

    unet: StableDiffusionUNet
    controls: tuple[ControlNet, ...]

    def init(self, key: Array, x: Array, t: Array, cond: Condition) -> Any:
        """Random parameters, with which the controls add nothing."""
        first, *others = jax.random.split(key, 1 + len(self.controls))
        controls = tuple(
            net.init(one, x, t, cond, image)["params"]
            for net, one, image in zip(self.controls, others, _images(cond), strict=True)
        )
        return {"unet": self.unet.init(first, x, t, cond)["params"], "controls": controls}

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
        """The U-Net's output; `key` is the "dropout" stream of all.

        Raises:
          ValueError: no images, or not as many as there are ControlNets.
        """
        images = _images(cond)
        if len(images) != len(self.controls):
            raise ValueError(f"{len(images)} control images for {len(self.controls)} ControlNets")
        rngs = {"dropout": key} if train and key is not None else {}
        total: Any = None
        for i, (net, image) in enumerate(zip(self.controls, images, strict=True)):
            variables = {"params": params["controls"][i]}
            made = net.apply(variables, x, t, cond, image, train, rngs=rngs)
            scale = cond.control.scale[:, i, None, None, None]  # type: ignore[union-attr]
            made = jax.tree.map(lambda leaf, scale=scale: scale * leaf, made)
            total = made if total is None else jax.tree.map(jnp.add, total, made)
        return self.unet.apply({"params": params["unet"]}, x, t, cond, train, total, rngs=rngs)

    def attention_blocks(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """The names of the U-Net's blocks with attention, for x_0 of this shape."""
        return self.unet.attention_blocks(shape[0])

    def perturbed(self, blocks: tuple[str, ...]) -> "ControlledNetwork":
        """The network with the same parameters and without attention in these of its blocks."""
        return self._replace(unet=self.unet.clone(perturbed=blocks))


def _images(cond: Condition) -> tuple[Array, ...]:
    return () if cond.control is None else tuple(cond.control.images)
