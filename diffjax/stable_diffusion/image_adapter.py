"""IP-Adapters: an image as a prompt (Ye et al. 2023, "IP-Adapter", section 3.2).

An image's CLIP embedding z becomes a few tokens c = norm(W z + b), and each cross-attention of the
U-Net attends to them with keys and values of their own, next to the text's:

    softmax(Q K^T / sqrt(d)) V + scale softmax(Q K_c^T / sqrt(d)) V_c          (equation 5)

Files have "image_proj.*" and, for the attentions in the order down, up, middle, the odd numbers
1, 3, ... of "ip_adapter.<number>.to_k_ip.weight" and "to_v_ip.weight".
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diffjax.conditioning.clip_image import clip_image
from diffjax.conditioning.model_folder import Tensors
from diffjax.errors import UserError
from diffjax.files import expanded
from diffjax.images import to_model_range
from diffjax.models.embedding_network import EmbeddingNetwork
from diffjax.models.stable_diffusion import StableDiffusionUNet
from diffjax.stable_diffusion import torch_tensors
from diffjax.stable_diffusion.unet import example
from diffjax.types import Array

_PROJECTION = {
    ("image_proj", "kernel"): "image_proj.proj.weight",
    ("image_proj", "bias"): "image_proj.proj.bias",
    ("image_norm", "scale"): "image_proj.norm.weight",
    ("image_norm", "bias"): "image_proj.norm.bias",
}
_KINDS = {"image_proj.latents": "IP-Adapter Plus", "image_proj.ff.net.0": "IP-Adapter Full"}
IMAGES_A_TIME = 8
SCALE = ("image_scale",)


class ImageAdapter(NamedTuple):
    """An adapter with its image encoder.

    Attributes:
      tokens: number of tokens that an image becomes.
      params: what the U-Net's parameters have besides, {path: array}.
      encoder: CLIP's image model.
      name: of the file.
    """

    tokens: int
    params: Mapping[tuple[str, ...], Any]
    encoder: EmbeddingNetwork
    name: str

    def extended(self, module: StableDiffusionUNet) -> StableDiffusionUNet:
        """The network that attends to the image."""
        return module.clone(image_tokens=self.tokens, image_width=self.encoder.dimensions)

    def merged(self, params: Any) -> Any:
        """The parameters of `extended` from the U-Net's."""
        return traverse_util.unflatten_dict(traverse_util.flatten_dict(params) | self.params)

    def scaled(self, scale: float) -> "ImageAdapter":
        """The same with another scale of equation 5."""
        return self._replace(params={**self.params, SCALE: jnp.asarray(scale, jnp.float32)})

    def embeddings(self, images: np.ndarray) -> np.ndarray:
        """The embeddings of images, uint8 (n, H, W, 3), of any size: float32 (n, D)."""
        starts = range(0, len(images), IMAGES_A_TIME)
        parts = [
            _embedded(self.encoder.apply, self.encoder.params, images[i : i + IMAGES_A_TIME])
            for i in starts
        ]
        return np.concatenate([np.asarray(part) for part in parts])


@partial(jax.jit, static_argnums=0)
def _embedded(apply: Any, params: Any, images: Any) -> Array:
    with jax.default_matmul_precision("float32"):
        return apply(params, to_model_range(images)).astype(jnp.float32)


def load(file: str | Path, encoder: str | Path | None, module: StableDiffusionUNet) -> ImageAdapter:
    """Reads an adapter.

    Args:
      file: .safetensors or .bin.
      encoder: folder of the image encoder, as Hugging Face writes it.
      module: the U-Net that it is for.

    Raises:
      UserError: a file or a folder that can't be read, another kind of adapter, or one for another
        U-Net or encoder.
    """
    path = expanded(file, name="image_adapter")
    if encoder is None:
        raise UserError(
            f"{path} has no image encoder: give image_encoder=FOLDER with CLIP's image model, such "
            'as the folder "image_encoder" next to the adapters'
        )
    tensors = torch_tensors.of_file(path)
    for beginning, kind in _KINDS.items():
        if any(name.startswith(beginning) for name in tensors.files):
            raise UserError(
                f"found {beginning} in {path}, which is of {kind}; expected an adapter whose image "
                "projection is one linear map; choose another file"
            )
    image = clip_image(folder=encoder)
    width = module.text_width
    rows = _shape(tensors, "image_proj.proj.weight", path)[0]
    tokens = rows // width
    adapter = ImageAdapter(tokens, {}, image, path.name)
    shapes = _own_shapes(adapter.extended(module))
    names = _PROJECTION | _attentions(module)
    left = set(tensors.files) - set(names.values())
    if not tokens or left or set(names) != set(shapes):
        what = f"{min(left)}" if left else f"image_proj.proj.weight of {rows} rows"
        raise UserError(
            f"found {what} in {path}; expected an IP-Adapter for a U-Net with text_width {width} "
            "and no other tensors; choose another file"
        )
    params = {}
    for place, name in names.items():
        shape = shapes[place].shape
        _shape(tensors, name, path)
        array = tensors.read(name, shape=shape[::-1])
        params[place] = jnp.asarray(np.ascontiguousarray(array.T), module.dtype)
    return adapter._replace(params=params).scaled(1.0)


def _shape(tensors: Tensors, name: str, path: Path) -> tuple[int, ...]:
    if name not in tensors.files:
        raise UserError(
            f"found no {name} in {path}; expected an IP-Adapter for this U-Net; choose another file"
        )
    return tensors.shape(name)


def _own_shapes(module: StableDiffusionUNet) -> dict[tuple[str, ...], Any]:
    """What the adapter adds to the parameters, besides its scale."""
    shapes: Any = jax.eval_shape(
        module.init, jax.random.key(0), *example(module, module.out_channels or 4)
    )["params"]
    flat = traverse_util.flatten_dict(shapes)
    return {
        place: leaf
        for place, leaf in flat.items()
        if any(part.startswith("image") for part in place) and place != SCALE
    }


def _attentions(module: StableDiffusionUNet) -> dict[tuple[str, ...], str]:
    """The names of all attentions' keys and values."""
    blocks = module.attention_blocks(0)
    # diffusers counts the middle last.
    blocks = (*(b for b in blocks if b != "middle_0"), *(b for b in blocks if b == "middle_0"))
    depths = {name: module.depth_of(name) for name in blocks}
    places = [(f"{name}_transformer", i) for name in blocks for i in range(depths[name])]
    return {
        (block, f"image{i}_{part}", "kernel"): f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight"
        for number, (block, i) in enumerate(places)
        for part in ("k", "v")
    }
