"""The Inception network of the FID (Heusel et al. 2017), with weights from a user's file.

The FID's features are those of the Inception v3 that TensorFlow published on 2015-12-05: Szegedy et
al. 2016, "Rethinking the Inception architecture", table 1, with three differences to the network
that torchvision has. Average pooling in the branches of blocks A, C and the first E divides by the
number of pixels under the window, not by 9 at the borders; the last block E pools by the maximum;
and the classifier, unused here, has 1008 classes. The weights are a state_dict with torchvision's
names, as pytorch-fid publishes it (`pt_inception-2015-12-05-6726825d.pth`).

Preprocessing is pytorch-fid's: images in [0, 1] are resized to 299x299, bilinear without a low-pass
filter, and scaled to [-1, 1]. Resizing commutes with the scaling, so images in [-1, 1] are resized.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.errors import UserError
from diffjax.files import expanded
from diffjax.perceptual.feature_network import EmbeddingNetwork
from diffjax.perceptual.images import resize, to_rgb
from diffjax.perceptual.weight_files import checked, file_digest, read_weights
from diffjax.types import Array

NAME = "Inception v3"
WHAT = "the FID's Inception"
ADVICE = "give pytorch-fid's pt_inception-2015-12-05-6726825d.pth"
SIDE = 299
FEATURES = 2048
EPSILON = 1e-3
# The first digits of the SHA-256 of the published file, which are part of its name.
PUBLISHED = "6726825d"

Size = tuple[int, int]
# (name, input channels, output channels, kernel) of each convolution, in order.
Convolution = tuple[str, int, int, Size]
Params = dict[str, dict[str, Array]]


def inception(file: str) -> EmbeddingNetwork:
    """The 2048 pooled features of the FID's Inception.

    Args:
      file: a state_dict with torchvision's names, .pth or .safetensors; with the file that
        pytorch-fid publishes, the Fréchet distance is the FID.

    Returns:
      a network named "inception" if the file is the published one, else "inception of FILE'S
      DIGEST", whose distances are no FIDs.

    Raises:
      UserError: no such file, or other weights.
    """
    if not file:
        raise UserError(f"inception needs a file of weights, inception(file='PATH'); {ADVICE}")
    path = expanded(file)
    digest = file_digest(path)
    name = "inception" if digest.startswith(PUBLISHED) else f"inception of {digest[:8]}"
    return EmbeddingNetwork(name, read_params(path), apply, FEATURES, digest)


def read_params(path: str | os.PathLike[str]) -> Params:
    """The convolutions by name, batch normalisation folded in: "kernel" (h, w, in, out), "bias".

    Raises:
      UserError: a file that is not a state_dict, or is another network's.
    """
    stored = read_weights(path, what=WHAT)

    def get(name: str, shape: tuple[int, ...]) -> Any:
        return checked(stored, name, shape, what=WHAT, path=path, advice=ADVICE)

    params: Params = {}
    for name, inputs, outputs, (height, width) in convolutions():
        kernel = get(f"{name}.conv.weight", (outputs, inputs, height, width))
        scale, shift, mean, variance = (
            get(f"{name}.bn.{part}", (outputs,))
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = scale / np.sqrt(variance + EPSILON)
        kernel = (kernel * scale[:, None, None, None]).transpose(2, 3, 1, 0)
        params[name] = {
            "kernel": jnp.asarray(kernel.astype(np.float32)),
            "bias": jnp.asarray((shift - mean * scale).astype(np.float32)),
        }
    return params


def convolutions() -> list[Convolution]:
    """Every convolution of the network: (name, input channels, output channels, kernel)."""
    found: list[Convolution] = []

    def chain(at: str, inputs: int, *layers: tuple[str, int, Size]) -> None:
        for name, outputs, kernel in layers:
            found.append((f"{at}{name}", inputs, outputs, kernel))
            inputs = outputs

    one, three, five = (1, 1), (3, 3), (5, 5)
    wide, tall = (1, 7), (7, 1)
    chain(
        "", 3, ("Conv2d_1a_3x3", 32, three), ("Conv2d_2a_3x3", 32, three),
        ("Conv2d_2b_3x3", 64, three), ("Conv2d_3b_1x1", 80, one), ("Conv2d_4a_3x3", 192, three),
    )  # fmt: skip
    for letter, inputs, pooled in (("b", 192, 32), ("c", 256, 64), ("d", 288, 64)):
        at = f"Mixed_5{letter}."
        chain(at, inputs, ("branch1x1", 64, one))
        chain(at, inputs, ("branch5x5_1", 48, one), ("branch5x5_2", 64, five))
        chain(
            at, inputs, ("branch3x3dbl_1", 64, one), ("branch3x3dbl_2", 96, three),
            ("branch3x3dbl_3", 96, three),
        )  # fmt: skip
        chain(at, inputs, ("branch_pool", pooled, one))
    at = "Mixed_6a."
    chain(at, 288, ("branch3x3", 384, three))
    chain(
        at, 288, ("branch3x3dbl_1", 64, one), ("branch3x3dbl_2", 96, three),
        ("branch3x3dbl_3", 96, three),
    )  # fmt: skip
    for letter, width in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
        at = f"Mixed_6{letter}."
        chain(at, 768, ("branch1x1", 192, one))
        chain(
            at, 768, ("branch7x7_1", width, one), ("branch7x7_2", width, wide),
            ("branch7x7_3", 192, tall),
        )  # fmt: skip
        chain(
            at, 768, ("branch7x7dbl_1", width, one), ("branch7x7dbl_2", width, tall),
            ("branch7x7dbl_3", width, wide), ("branch7x7dbl_4", width, tall),
            ("branch7x7dbl_5", 192, wide),
        )  # fmt: skip
        chain(at, 768, ("branch_pool", 192, one))
    at = "Mixed_7a."
    chain(at, 768, ("branch3x3_1", 192, one), ("branch3x3_2", 320, three))
    chain(
        at, 768, ("branch7x7x3_1", 192, one), ("branch7x7x3_2", 192, wide),
        ("branch7x7x3_3", 192, tall), ("branch7x7x3_4", 192, three),
    )  # fmt: skip
    for letter, inputs in (("b", 1280), ("c", 2048)):
        at = f"Mixed_7{letter}."
        chain(at, inputs, ("branch1x1", 320, one))
        chain(at, inputs, ("branch3x3_1", 384, one), ("branch3x3_2a", 384, (1, 3)))
        chain(at, 384, ("branch3x3_2b", 384, (3, 1)))
        chain(
            at, inputs, ("branch3x3dbl_1", 448, one), ("branch3x3dbl_2", 384, three),
            ("branch3x3dbl_3a", 384, (1, 3)),
        )  # fmt: skip
        chain(at, 384, ("branch3x3dbl_3b", 384, (3, 1)))
        chain(at, inputs, ("branch_pool", 192, one))
    return found


def apply(params: Params, images: Array) -> Array:
    """(B, H, W, 1 or 3) images in [-1, 1] -> (B, 2048) features, the means over the last map.

    Raises:
      ValueError: images that are neither grey nor RGB.
    """
    x = resize(to_rgb(images, NAME), SIDE)
    conv = _with_params(params, "")
    x = conv(x, "Conv2d_1a_3x3", stride=2, padding="VALID")
    x = conv(x, "Conv2d_2a_3x3", padding="VALID")
    x = _largest(conv(x, "Conv2d_2b_3x3"), stride=2, padding="VALID")
    x = conv(x, "Conv2d_3b_1x1", padding="VALID")
    x = _largest(conv(x, "Conv2d_4a_3x3", padding="VALID"), stride=2, padding="VALID")
    for name in ("5b", "5c", "5d"):
        x = _block_a(_with_params(params, f"Mixed_{name}."), x)
    x = _block_b(_with_params(params, "Mixed_6a."), x)
    for name in ("6b", "6c", "6d", "6e"):
        x = _block_c(_with_params(params, f"Mixed_{name}."), x)
    x = _block_d(_with_params(params, "Mixed_7a."), x)
    x = _block_e(_with_params(params, "Mixed_7b."), x, pool=_mean)
    x = _block_e(_with_params(params, "Mixed_7c."), x, pool=_largest)
    return x.mean((1, 2))


Conv = Callable[..., Array]


def _with_params(params: Params, at: str) -> Conv:
    """conv(x, *names): convolutions in a row, each with its ReLU."""

    def conv(x: Array, *names: str, stride: int = 1, padding: str = "SAME") -> Array:
        for name in names:
            part = params[f"{at}{name}"]
            x = jax.lax.conv_general_dilated(
                x, part["kernel"], (stride, stride), padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )  # fmt: skip
            x = jax.nn.relu(x + part["bias"])
        return x

    return conv


def _largest(x: Array, *, stride: int = 1, padding: str = "SAME") -> Array:
    """The maxima of 3x3 windows."""
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding
    )


def _mean(x: Array) -> Array:
    """The means of 3x3 windows, over the pixels inside the image."""

    def total(of: Array) -> Array:
        return jax.lax.reduce_window(of, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1)))


def _block_a(conv: Conv, x: Array) -> Array:
    parts = (
        conv(x, "branch1x1"),
        conv(x, "branch5x5_1", "branch5x5_2"),
        conv(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
        conv(_mean(x), "branch_pool"),
    )
    return jnp.concatenate(parts, axis=-1)


def _block_b(conv: Conv, x: Array) -> Array:
    halved: dict[str, Any] = {"stride": 2, "padding": "VALID"}
    parts = (
        conv(x, "branch3x3", **halved),
        conv(conv(x, "branch3x3dbl_1", "branch3x3dbl_2"), "branch3x3dbl_3", **halved),
        _largest(x, **halved),
    )
    return jnp.concatenate(parts, axis=-1)


def _block_c(conv: Conv, x: Array) -> Array:
    parts = (
        conv(x, "branch1x1"),
        conv(x, *(f"branch7x7_{i}" for i in (1, 2, 3))),
        conv(x, *(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5))),
        conv(_mean(x), "branch_pool"),
    )
    return jnp.concatenate(parts, axis=-1)


def _block_d(conv: Conv, x: Array) -> Array:
    halved: dict[str, Any] = {"stride": 2, "padding": "VALID"}
    h = conv(x, *(f"branch7x7x3_{i}" for i in (1, 2, 3)))
    parts = (
        conv(conv(x, "branch3x3_1"), "branch3x3_2", **halved),
        conv(h, "branch7x7x3_4", **halved),
        _largest(x, **halved),
    )
    return jnp.concatenate(parts, axis=-1)


def _block_e(conv: Conv, x: Array, *, pool: Callable[[Array], Array]) -> Array:
    h = conv(x, "branch3x3_1")
    double = conv(x, "branch3x3dbl_1", "branch3x3dbl_2")
    parts = (
        conv(x, "branch1x1"),
        conv(h, "branch3x3_2a"),
        conv(h, "branch3x3_2b"),
        conv(double, "branch3x3dbl_3a"),
        conv(double, "branch3x3dbl_3b"),
        conv(pool(x), "branch_pool"),
    )
    return jnp.concatenate(parts, axis=-1)
