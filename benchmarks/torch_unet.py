"""diffjax's U-Net (diffjax/models/unet.py, block "resnet") in plain PyTorch.

Written as PyTorch is fastest: modules that run in channels_last, fused attention, nothing that
breaks a graph. Modules bear the names of their Flax counterparts, so that parameters can be copied
by path. Maps are (B, C, H, W).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffjax.errors import UserError


def from_config(model: Any, *, image_shape: tuple[int, int, int], num_classes: int) -> "UNet":
    """The U-Net of a config's `model` section, in float32, on the CPU.

    Args:
      model: the section.
      image_shape: (H, W, C).
      num_classes: of the data set; used where the model is class-conditional.

    Raises:
      UserError: something in the section that was not written for PyTorch.
    """
    supported = {
        "block": "resnet", "attention": "softmax", "remat": "none", "resample": "conv",
        "time_features": "sinusoidal",
    }  # fmt: skip
    refuse_others(model, supported, file="benchmarks/torch_unet.py")
    return UNet(
        image_shape=image_shape,
        channels=model.channels,
        multipliers=tuple(model.multipliers),
        blocks=model.blocks,
        attention_resolutions=tuple(model.attention_resolutions),
        head_channels=model.head_channels,
        dropout=model.dropout,
        num_classes=num_classes if model.class_conditional else 0,
        patch=model.patch,
        scale_shift=model.scale_shift,
    )


def refuse_others(model: Any, supported: Mapping[str, Any], *, file: str) -> None:
    """Raises UserError for a field of the section with another value than the supported one."""
    for key, value in supported.items():
        if model[key] != value:
            raise UserError(
                f"config.model.{key} = {model[key]!r}: the PyTorch network has {value!r} only: "
                f"write the other in {file}"
            )


def group_norm(channels: int) -> nn.GroupNorm:
    """Up to 32 groups, a power of two, of 4 channels or more each."""
    fitting = [g for g in (1, 2, 4, 8, 16, 32) if channels % g == 0 and channels >= 4 * g]
    return nn.GroupNorm(max(fitting, default=1), channels, eps=1e-5)


def conv3x3(inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution with a border of one pixel on every side."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


def zeroed(layer: Any) -> Any:
    """The layer with parameters that start at zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResNetBlock(nn.Module):
    """GroupNorm - SiLU - conv twice, with the embedding in between."""

    def __init__(
        self, inputs: int, features: int, embedding: int, *, dropout: float, scale_shift: bool
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = group_norm(inputs)
        self.conv1 = conv3x3(inputs, features)
        self.embedding = nn.Linear(embedding, features * (2 if scale_shift else 1))
        self.norm2 = group_norm(features)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(conv3x3(features, features))
        self.skip = nn.Conv2d(inputs, features, 1) if inputs != features else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        e = self.embedding(F.silu(embedding))[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + e)
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))


class SelfAttention(nn.Module):
    """x + out(attention(qkv(norm(x)))) over the pixels."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.head_channels = head_channels
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        h = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        heads = (batch, height * width, channels // self.head_channels, self.head_channels)
        q, k, v = (a.reshape(heads).transpose(1, 2) for a in self.qkv(h).chunk(3, dim=-1))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        h = self.out(h.reshape(batch, height, width, channels))
        return x + h.permute(0, 3, 1, 2)


class TimeAndClass(nn.Module):
    """The embeddings of time and class, added."""

    frequencies: Tensor

    def __init__(self, features: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        half = features // 2
        self.register_buffer(
            "frequencies", torch.exp(-math.log(10_000) * torch.arange(half) / half)
        )
        self.odd = features % 2
        layers = {"in": nn.Linear(features, width), "out": nn.Linear(width, width)}
        self.time = nn.ModuleDict(layers)
        if num_classes:
            # The last row is "no class".
            self.label = nn.ModuleDict({"table": nn.Embedding(num_classes + 1, width)})

    def forward(self, t: Tensor, labels: Tensor | None) -> Tensor:
        angles = t.float()[:, None] * self.frequencies
        features = torch.cat([angles.cos(), angles.sin()], dim=1)
        h = self.time["in"](F.pad(features, (0, self.odd)))
        embedding = self.time["out"](F.silu(h))
        if self.num_classes:
            labels = torch.full_like(t, -1, dtype=torch.int64) if labels is None else labels
            rows = torch.where(labels < 0, self.num_classes, labels)
            embedding = embedding + self.label["table"](rows)
        return embedding


def space_to_depth(x: Tensor, p: int) -> Tensor:
    """Patches into channels, (row, column, channel) in this order; edges repeated to fit."""
    if p == 1:
        return x
    height, width = x.shape[2:]
    x = F.pad(x, (0, -width % p, 0, -height % p), mode="replicate")
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // p, p, width // p, p)
    x = x.permute(0, 2, 4, 3, 5, 1).reshape(batch, height // p, width // p, -1)
    return x.permute(0, 3, 1, 2)


def depth_to_space(x: Tensor, p: int) -> Tensor:
    """The inverse of `space_to_depth`, with what it repeated."""
    if p == 1:
        return x
    batch, depth, rows, columns = x.shape
    x = x.permute(0, 2, 3, 1).reshape(batch, rows, columns, p, p, depth // p**2)
    x = x.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows * p, columns * p, -1)
    return x.permute(0, 3, 1, 2)


class UNet(nn.Module):
    """The network; attributes as of `diffjax.models.UNet`."""

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        channels: int,
        multipliers: tuple[int, ...],
        blocks: int,
        attention_resolutions: tuple[int, ...],
        head_channels: int,
        dropout: float,
        num_classes: int,
        patch: int,
        scale_shift: bool,
    ) -> None:
        super().__init__()
        self.multipliers, self.blocks = multipliers, blocks
        self.patch = patch
        width = 4 * channels
        self.embedding = TimeAndClass(channels, width, num_classes)
        self.layers = nn.ModuleDict()

        def add(name: str, inputs: int, level: int, attend: bool) -> int:
            features = channels * multipliers[level]
            self.layers[name] = ResNetBlock(
                inputs, features, width, dropout=dropout, scale_shift=scale_shift
            )
            if attend:
                self.layers[f"{name}_attention"] = SelfAttention(features, head_channels)
            return features

        depth = image_shape[2] * patch**2
        heights = [-(-image_shape[0] // patch)]
        for _ in multipliers[1:]:
            heights.append(-(-heights[-1] // 2))
        attend = [height in attention_resolutions for height in heights]
        last = len(multipliers) - 1

        self.stem = conv3x3(depth, channels)
        current, skips = channels, [channels]
        for level in range(len(multipliers)):
            for i in range(blocks):
                current = add(f"down{level}_{i}", current, level, attend[level])
                skips.append(current)
            if level != last:
                self.layers[f"down{level}"] = nn.ModuleDict(
                    {"conv": conv3x3(current, current, stride=2)}
                )
                skips.append(current)
        current = add("middle_0", current, last, True)
        current = add("middle_1", current, last, False)
        for level in reversed(range(len(multipliers))):
            for i in range(blocks + 1):
                current = add(f"up{level}_{i}", current + skips.pop(), level, attend[level])
            if level:
                self.layers[f"up{level}"] = nn.ModuleDict({"conv": conv3x3(current, current)})
        self.norm = group_norm(current)
        self.head = zeroed(conv3x3(current, depth))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W), t: (B,) about 0..1000, labels: (B,) int64 -> (B, C, H, W) float32."""
        height, width = x.shape[2:]
        embedding = self.embedding(t, labels)
        h = self.stem(space_to_depth(x, self.patch))
        skips = [h]
        last = len(self.multipliers) - 1
        for level in range(len(self.multipliers)):
            for i in range(self.blocks):
                h = self._residual(h, embedding, f"down{level}_{i}")
                skips.append(h)
            if level != last:
                h = self.layers[f"down{level}"]["conv"](h)
                skips.append(h)
        h = self._residual(h, embedding, "middle_0")
        h = self._residual(h, embedding, "middle_1")
        for level in reversed(range(len(self.multipliers))):
            for i in range(self.blocks + 1):
                h = self._residual(torch.cat([h, skips.pop()], 1), embedding, f"up{level}_{i}")
            if level:
                rows, columns = skips[-1].shape[2:]
                h = F.interpolate(h, scale_factor=2, mode="nearest")[:, :, :rows, :columns]
                h = self.layers[f"up{level}"]["conv"](h)
        h = self.head(F.silu(self.norm(h)))
        return depth_to_space(h, self.patch)[:, :, :height, :width].float()

    def _residual(self, h: Tensor, embedding: Tensor, name: str) -> Tensor:
        h = self.layers[name](h, embedding)
        attention = f"{name}_attention"
        return self.layers[attention](h) if attention in self.layers else h
