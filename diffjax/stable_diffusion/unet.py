"""The U-Net of a folder: config.json to a network, its files to parameters."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax.models.condition import Condition, SpatialMap, Text
from diffjax.models.linen import LinenNetwork, from_linen
from diffjax.models.ops import Ops
from diffjax.models.stable_diffusion import SIZES, StableDiffusionUNet
from diffjax.stable_diffusion import names, weights
from diffjax.stable_diffusion.fields import Fields
from diffjax.types import Dtype

STEM = "diffusion_pytorch_model"
# Channels of the mask, besides those of the masked image's latents.
MASK = 1

_DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}


class UNet(NamedTuple):
    """A network of a folder.

    Attributes:
      module: see `models.stable_diffusion`.
      latent_channels: of x_0.
      size: height and width of the latents that it was trained on.
    """

    module: StableDiffusionUNet
    latent_channels: int
    size: tuple[int, int]

    @property
    def network(self) -> LinenNetwork:
        """The module as a network."""
        return from_linen(self.module)

    def with_ops(self, ops: Ops) -> "UNet":
        """The same with other kernels, those of softmax attention among them."""
        module = self.module
        if module.attention_fn == module.ops.attention:
            module = module.clone(attention_fn=ops.attention)
        return self._replace(module=module.clone(ops=ops))

    def shapes(self) -> Any:
        """The parameters with jax.ShapeDtypeStruct for arrays."""
        inputs = example(self.module, self.latent_channels)
        return jax.eval_shape(self.module.init, jax.random.key(0), *inputs)["params"]


def example(module: StableDiffusionUNet, latent_channels: int) -> tuple[Any, Any, Condition]:
    """x, t and a condition that the network takes, as jax.ShapeDtypeStruct."""

    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    side, pooled = 2 ** (len(module.channels) - 1), None
    if module.pooled_width:
        pooled = array(1, module.pooled_width)
    text = Text(array(1, 1, module.text_width), None, pooled)
    spatial = None
    if module.map_channels:
        spatial = SpatialMap(array(1, side, side, module.map_channels), None)
    sizes = array(1, SIZES) if module.pooled_width else None
    image = array(1, module.image_width) if module.image_tokens else None
    condition = Condition(text=text, map=spatial, augmentation=sizes, embedding=image)
    return array(1, side, side, latent_channels), array(1), condition


def read(folder: Path, *, dtype: Dtype = jnp.float32) -> UNet:
    """The network of a folder's config.json.

    Raises:
      UserError: no such file, or a field that is not supported.
    """
    fields = Fields(folder / "config.json")
    fields.only("_class_name", "UNet2DConditionModel")
    encoder = encoder_fields(fields)
    levels = len(encoder["channels"])
    up = fields.texts("up_block_types", ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3))
    if len(up) != levels or any(kind not in _UP for kind in up):
        fields.refuse("up_block_types", f"{levels} of {' and '.join(_UP)}")
    if [_UP[kind] for kind in reversed(up)] != [depth > 0 for depth in encoder["depths"]]:
        fields.refuse("up_block_types", "down_block_types reversed")
    inside = fields.whole("in_channels", 4)
    outside = fields.whole("out_channels", 4)
    if inside not in (outside, 2 * outside + MASK):
        fields.refuse("in_channels", f"{outside}, or {2 * outside + MASK} for inpainting")
    size = fields.value("sample_size", 64)
    size = (size, size) if type(size) is int else tuple(size or (64, 64))
    if len(size) != 2 or any(type(side) is not int or side < 1 for side in size):
        fields.refuse("sample_size", "a side, or height and width, in latents")
    module = StableDiffusionUNet(
        map_channels=inside - outside,
        dropout=fields.number("dropout", 0.0),
        out_channels=outside,
        dtype=dtype,
        **encoder,
    )
    check_others(fields)
    fields.finish()
    return UNet(module, outside, size)


def encoder_fields(fields: Fields) -> dict[str, Any]:
    """The fields of `StableDiffusionUNet` that its encoder has, as ControlNets have, too.

    Raises:
      UserError: a field that is not supported.
    """
    channels = fields.wholes("block_out_channels", (320, 640, 1280, 1280))
    levels = len(channels)
    down = fields.texts("down_block_types", (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"))
    if len(down) != levels or any(kind not in _DOWN for kind in down):
        fields.refuse("down_block_types", f"{levels} of {' and '.join(_DOWN)}")
    blocks = fields.value("layers_per_block", 2)
    if isinstance(blocks, list) and blocks and len(set(blocks)) == 1:
        blocks = blocks[0]
    if type(blocks) is not int or blocks < 1:
        fields.refuse("layers_per_block", "a whole number of at least 1")
    depths = fields.each("transformer_layers_per_block", 1, levels)
    # The number of heads, whatever it is called: diffusers' issue 2011.
    heads = fields.each("attention_head_dim", 8, levels)
    groups = fields.whole("norm_num_groups", 32)
    for width, number in zip(channels, heads, strict=True):
        if width % number:
            fields.refuse("attention_head_dim", f"numbers of heads that divide {channels}")
        if width % groups:
            fields.refuse("norm_num_groups", f"a divisor of {channels}")
    pooled_width, size_features = _added(fields)
    return {
        "channels": channels,
        "blocks": blocks,
        "depths": tuple(
            depth if _DOWN[kind] else 0 for depth, kind in zip(depths, down, strict=True)
        ),
        "middle_depth": depths[-1],
        "heads": heads,
        "text_width": fields.whole("cross_attention_dim", 1280),
        "pooled_width": pooled_width,
        "size_features": size_features,
        "groups": groups,
        "eps": fields.number("norm_eps", 1e-5, above=0),
        "time_shift": fields.number("freq_shift", 0),
        "sine_first": not fields.flag("flip_sin_to_cos", True),
    }


def load(unet: UNet, folder: Path, *, variant: str | None = None, shardings: Any = None) -> Any:
    """The parameters of a folder's files, in the network's compute type; see `weights.load`."""
    return weights.load(
        unet.shapes(),
        weights.find(folder, STEM, variant=variant),
        names.of_unet(len(unet.module.channels)),
        folder=folder,
        dtype=unet.module.dtype,
        shardings=shardings,
    )


def _added(fields: Fields) -> tuple[int, int]:
    """Widths of the pooled text and of each size's features, (0, 256) for none."""
    fields.only("addition_embed_type", None, "text_time")
    if fields.value("addition_embed_type") is None:
        fields.skip("addition_time_embed_dim", "addition_embed_type_num_heads")
        fields.only("projection_class_embeddings_input_dim", None)
        return 0, 256
    features = fields.whole("addition_time_embed_dim", 256, least=2)
    inside = fields.whole("projection_class_embeddings_input_dim", 2816)
    fields.skip("addition_embed_type_num_heads")
    if inside <= SIZES * features:
        fields.refuse("projection_class_embeddings_input_dim", f"more than {SIZES * features}")
    return inside - SIZES * features, features


def check_others(fields: Fields) -> None:
    """Refuses fields of other networks."""
    for name, *allowed in (
        ("act_fn", "silu", "swish"),
        ("attention_type", "default"),
        ("center_input_sample", False),
        ("class_embed_type", None),
        ("class_embeddings_concat", False, None),
        ("conv_in_kernel", 3),
        ("conv_out_kernel", 3),
        ("cross_attention_norm", None),
        ("downsample_padding", 1),
        ("dual_cross_attention", False),
        ("encoder_hid_dim", None),
        ("encoder_hid_dim_type", None),
        ("mid_block_only_cross_attention", None, False),
        ("mid_block_scale_factor", 1),
        ("mid_block_type", "UNetMidBlock2DCrossAttn"),
        ("num_attention_heads", None),
        ("num_class_embeds", None),
        ("only_cross_attention", False),
        ("resnet_out_scale_factor", 1),
        ("resnet_skip_time_act", False),
        ("resnet_time_scale_shift", "default"),
        ("reverse_transformer_layers_per_block", None),
        ("time_cond_proj_dim", None),
        ("time_embedding_act_fn", None),
        ("time_embedding_dim", None),
        ("time_embedding_type", "positional"),
        ("timestep_post_act", None),
    ):
        fields.only(name, *allowed)
    # A 1x1 convolution and a linear map of the channels are one, and softmax is float32 always.
    fields.skip("use_linear_projection", "upcast_attention")
