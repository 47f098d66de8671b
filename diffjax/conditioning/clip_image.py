"""CLIP's image model (Radford et al. 2021, "Learning transferable visual models from natural
language supervision"), and its weights from a Hugging Face folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diffjax.conditioning.attention import layer_norm
from diffjax.conditioning.clip import ACTIVATIONS, ClipLayer, layer_names, quick_gelu
from diffjax.conditioning.hugging_face import load_params, read_config
from diffjax.conditioning.model_folder import read_json
from diffjax.errors import UserError
from diffjax.files import expanded
from diffjax.models.embedding_network import EmbeddingNetwork
from diffjax.types import Array

# Mean and standard deviation of CLIP's training images in [0, 1], where a folder has no others.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PREPROCESSING = "preprocessor_config.json"
CHANNELS = 3


class ClipImage(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021) whose class token is projected.

    Attributes:
      side: S, of the images.
      patch: side of a patch, a divisor of S.
      width: channels of a token.
      hidden: channels inside of the layers' MLPs.
      layers: number of layers.
      heads: number of heads, a divisor of width.
      projected: length of the embedding.
      activation: of the MLPs.
      eps: added to variances.
    """

    side: int
    patch: int
    width: int
    hidden: int
    layers: int
    heads: int
    projected: int
    activation: Callable[[Array], Array] = quick_gelu
    eps: float = 1e-5

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Normalised images (B, S, S, 3) -> (B, projected)."""
        batch, count = len(images), self.side // self.patch
        h = _Patches(self.width, self.patch, name="patches")(images)
        first = self.param("class_token", nn.initializers.normal(0.02), (self.width,))
        first = jnp.broadcast_to(first, (batch, 1, self.width))
        h = jnp.concatenate([first, h], axis=1)
        places = count**2 + 1
        h += nn.Embed(places, self.width, name="position")(jnp.arange(places))
        h = layer_norm(self.eps, "norm_before")(h)
        everything = jnp.ones((1, 1, 1, 1), bool)
        for i in range(self.layers):
            layer = ClipLayer(self.hidden, self.heads, self.activation, self.eps, name=f"layer_{i}")
            h = layer(h, everything)
        pooled = layer_norm(self.eps, "norm_after")(h[:, 0])
        return nn.Dense(self.projected, use_bias=False, name="projection")(pooled)


class _Patches(nn.Module):
    """A linear map of each patch, row by row: (B, S, S, 3) -> (B, (S / patch)^2, width)."""

    width: int
    patch: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        p = self.patch
        batch, height, width, channels = images.shape
        # (column, row, in, out): torch's (out, in, row, column), reversed.
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (p, p, channels, self.width))
        patches = images.reshape(batch, height // p, p, width // p, p, channels)
        h = jnp.einsum("bhywxc,xyco->bhwo", patches, kernel)
        return h.reshape(batch, -1, self.width)


def clip_image(*, folder: str | os.PathLike[str]) -> EmbeddingNetwork:
    """CLIP's image model from a Hugging Face folder: its projected embedding, not normalised.

    Images are resized so that their shorter side is that of the network (bicubic, with a low-pass
    filter where they shrink) and cropped to the centre square, as in CLIP's training.

    Args:
      folder: of a model of type "clip_vision_model" with its projection, or "clip"; of the latter
        only the image model's tensors are read. Its preprocessor_config.json may have another
        image_mean and image_std than CLIP's.

    Raises:
      UserError: a folder that is missing, incomplete, corrupt or of another model.
    """
    folder = expanded(folder, name="folder")
    config = read_config(folder, ["clip_vision_model", "clip"])
    whole = config.values["model_type"] == "clip"
    vision = config.part("vision_config") if whole else config
    channels = vision.get("num_channels", CHANNELS)
    if channels != CHANNELS:
        raise UserError(
            f"found num_channels={channels} in {config.path}; expected {CHANNELS}; choose another "
            "model"
        )
    module = ClipImage(
        side=vision.get("image_size", 224),
        patch=vision.get("patch_size", 32),
        width=vision.get("hidden_size", 768),
        hidden=vision.get("intermediate_size", 3072),
        layers=vision.get("num_hidden_layers", 12),
        heads=vision.get("num_attention_heads", 12),
        projected=config.get("projection_dim", 512),
        activation=ACTIVATIONS[vision.one_of("hidden_act", list(ACTIVATIONS), "quick_gelu")],
        eps=vision.get("layer_norm_eps", 1e-5),
    )
    vision.check_heads(module.width, module.heads)
    if not module.patch or module.side % module.patch:
        raise UserError(
            f"found patch_size={module.patch} for image_size={module.side} in {config.path}; "
            "expected a divisor; correct the file or download it again"
        )
    images = jax.ShapeDtypeStruct((1, module.side, module.side, CHANNELS), jnp.float32)
    names = _module_names(module.layers)
    params = load_params(module, folder, names, prefix="vision_model.", inputs=(images,))
    mean, std = _statistics(folder)

    def apply(params: Any, images: Array) -> Array:
        x = (_square(images, module.side) + 1) / 2
        embedded = module.apply(params, (x - mean) / std)
        assert not isinstance(embedded, tuple)
        return embedded

    name = folder.resolve().name
    digest = hashlib.sha256(
        json.dumps([config.values, mean.tolist(), std.tolist()], sort_keys=True).encode()
    )
    for path, array in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        digest.update(f"{path} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return EmbeddingNetwork(name, params, apply, module.projected, digest.hexdigest())


def text_projection(folder: str | os.PathLike[str], *, width: int) -> np.ndarray:
    """The matrix by which a whole CLIP takes a pooled text into its images' space: (width, D).

    Args:
      folder: as for `clip_image`.
      width: of the pooled encodings that `conditioning.clip.clip` returns.

    Raises:
      UserError: a folder of another model, or without that matrix.
    """
    folder = expanded(folder, name="folder")
    config = read_config(folder, ["clip"])
    module = nn.Dense(config.get("projection_dim", 512), use_bias=False)
    inputs = (jax.ShapeDtypeStruct((1, width), jnp.float32),)
    params = load_params(module, folder, {"": ["text_projection"]}, inputs=inputs)
    kernel: np.ndarray = params["params"]["kernel"]
    return kernel


def _statistics(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of pixels in [0, 1], by channel."""
    path = folder / PREPROCESSING
    values = read_json(path) if path.is_file() else {}
    found = []
    for key, default in (("image_mean", MEAN), ("image_std", STD)):
        given = values.get(key, default)
        numbers = np.asarray(given, np.float32) if _are_numbers(given) else np.empty(0)
        if numbers.shape != (CHANNELS,) or (key == "image_std" and not (numbers > 0).all()):
            raise UserError(
                f"found {key}={given!r} in {path}; expected {CHANNELS} numbers such as {default}; "
                "correct the file or download it again"
            )
        found.append(numbers)
    return found[0], found[1]


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(type(x) in (int, float) for x in values)


def _square(images: Array, side: int) -> Array:
    """(B, H, W, 1 or 3) -> (B, side, side, 3): the shorter side resized, the centre cut out."""
    if images.shape[-1] not in (1, CHANNELS):
        raise ValueError(
            f"got images of {images.shape[-1]} channels for CLIP; expected 1 (grey) or 3 (RGB); "
            "drop the others"
        )
    batch, height, width, channels = images.shape
    shorter = min(height, width)
    size = (side * height // shorter, side * width // shorter)
    x = jax.image.resize(images.astype(jnp.float32), (batch, *size, channels), "cubic")
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    x = jnp.clip(x[:, top : top + side, left : left + side], -1.0, 1.0)
    return jnp.repeat(x, CHANNELS, axis=-1) if channels == 1 else x


def _module_names(layers: int) -> dict[str, list[str]]:
    return {
        "": ["embeddings"],
        "patches": ["embeddings.patch_embedding"],
        "position": ["embeddings.position_embedding"],
        "norm_before": ["pre_layrnorm"],  # spelt so in the files
        "norm_after": ["post_layernorm"],
        "projection": ["visual_projection"],
        **layer_names(layers),
    }
