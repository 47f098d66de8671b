"""ControlNets of folders, for the U-Net of another one: config.json to networks, files to
parameters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax.errors import UserError
from diffjax.files import expanded
from diffjax.models.controlnet import ControlNet
from diffjax.models.stable_diffusion import StableDiffusionUNet
from diffjax.stable_diffusion import names, weights
from diffjax.stable_diffusion.fields import Fields
from diffjax.stable_diffusion.unet import STEM, check_others, encoder_fields, example

# Fields that a ControlNet must share with the U-Net, and their names in config.json.
_SHARED = {
    "channels": "block_out_channels",
    "blocks": "layers_per_block",
    "text_width": "cross_attention_dim",
    "pooled_width": "projection_class_embeddings_input_dim",
}


class Control(NamedTuple):
    """A ControlNet with its weights.

    Attributes:
      module: see `models.controlnet`.
      params: its parameters.
      name: of its folder.
    """

    module: ControlNet
    params: Any
    name: str


def shapes(module: ControlNet, latent_channels: int) -> Any:
    """The parameters with jax.ShapeDtypeStruct for arrays."""
    x, t, condition = example(module, latent_channels)
    sides = (module.factor * x.shape[1], module.factor * x.shape[2])
    image = jax.ShapeDtypeStruct((1, *sides, module.image_channels), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), x, t, condition, image)["params"]


def read(folder: Path, unet: StableDiffusionUNet, *, latent_channels: int) -> ControlNet:
    """The ControlNet of a folder's config.json, of the U-Net's compute type.

    Args:
      folder: with config.json.
      unet: that it is for.
      latent_channels: of x_0.

    Raises:
      UserError: no such file, another class of networks, a field that is not supported, or a
        network of another family than the U-Net.
    """
    fields = Fields(folder / "config.json")
    fields.only("_class_name", "ControlNetModel")
    encoder = encoder_fields(fields)
    for name, field in _SHARED.items():
        if encoder[name] != getattr(unet, name):
            raise UserError(
                f"found {field}={fields.values.get(field)!r} in {fields.path}; expected that of "
                f"the U-Net, with {name} {getattr(unet, name)}; use a ControlNet of the same family"
            )
    fields.only("in_channels", latent_channels)
    order = fields.one_of("controlnet_conditioning_channel_order", ("rgb", "bgr"), "rgb")
    fields.only("global_pool_conditions", False)
    fields.only("conditioning_channels", 3)
    module = ControlNet(
        image_widths=fields.wholes("conditioning_embedding_out_channels", (16, 32, 96, 256)),
        flipped=order == "bgr",
        dtype=unet.dtype,
        ops=unet.ops,
        **encoder,
    )
    check_others(fields)
    fields.finish()
    return module


def load(
    folder: str | Path,
    unet: StableDiffusionUNet,
    *,
    latent_channels: int = 4,
    factor: int = 8,
    variant: str | None = None,
    shardings: Any = None,
) -> Control:
    """A ControlNet from a folder that diffusers wrote.

    Args:
      folder: with config.json and diffusion_pytorch_model.safetensors.
      unet: that it is for.
      latent_channels: of x_0.
      factor: pixels per latent along a side.
      variant, shardings: of the weights, as for `weights.find` and `weights.load`.

    Raises:
      UserError: as `read`, and files that are missing or corrupt.
    """
    path = expanded(folder, name="control")
    module = read(path, unet, latent_channels=latent_channels)
    if module.factor != factor:
        raise UserError(
            f"found conditioning_embedding_out_channels={module.image_widths!r} in "
            f"{path / 'config.json'}, for {module.factor} pixels a latent; expected one more than "
            f"there are halvings in the autoencoder, of {factor} pixels a latent; use a ControlNet "
            "of the same family"
        )
    params = weights.load(
        shapes(module, latent_channels),
        weights.find(path, STEM, variant=variant),
        names.of_controlnet(len(module.channels)),
        folder=path,
        dtype=module.dtype,
        shardings=shardings,
    )
    return Control(module, params, path.resolve().name)


def paths_of(control: str | Path | Sequence[str | Path]) -> tuple[str | Path, ...]:
    """One folder or several as a tuple.

    Raises:
      UserError: something else.
    """
    given = (control,) if isinstance(control, str | Path) else control
    if not isinstance(given, list | tuple) or not all(isinstance(p, str | Path) for p in given):
        raise UserError(f"control is {control!r}: expected a folder, or a list of folders")
    return tuple(given)
