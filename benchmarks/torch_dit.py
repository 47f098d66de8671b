"""diffjax's transformer (diffjax/models/dit.py, its default form) in plain PyTorch.

Written as PyTorch is fastest: fused attention, nothing that breaks a graph. Modules bear the names
of their Flax counterparts; `blocks` is a list where Flax has one stacked layer. Maps are
(B, C, H, W).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.torch_unet import (
    TimeAndClass,
    depth_to_space,
    refuse_others,
    space_to_depth,
    zeroed,
)
from diffjax.models.dit import TIME_FEATURES
from diffjax.models.dit_blocks import grid_positions, rotary_angles, sincos_positions

EPSILON = 1e-6


def from_config(model: Any, *, image_shape: tuple[int, int, int], num_classes: int) -> "DiT":
    """The transformer of a config's `model` section, in float32, on the CPU.

    Args:
      model: the section.
      image_shape: (H, W, C).
      num_classes: of the data set; used where the model is class-conditional.

    Raises:
      UserError: something in the section that was not written for PyTorch.
    """
    supported = {
        "mlp": "swiglu", "norm": "rms", "qk_norm": True, "rotary": True, "sincos": True,
        "bottleneck": 0, "class_tokens": 0, "dropout": 0.0, "time_features": "sinusoidal",
        "attention": "softmax", "remat": "none",
    }  # fmt: skip
    refuse_others(model, supported, file="benchmarks/torch_dit.py")
    return DiT(
        image_shape=image_shape,
        width=model.width,
        depth=model.depth,
        head_channels=model.head_channels,
        patch=model.patch,
        num_classes=num_classes if model.class_conditional else 0,
    )


class SwiGlu(nn.Module):
    """out(silu(gate) value)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 2 * 4 * width // 3
        self.add_module("in", nn.Linear(width, 2 * hidden))
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self._modules["in"](x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class Block(nn.Module):
    """Attention and MLP with adaLN-zero."""

    def __init__(self, width: int, head_channels: int) -> None:
        super().__init__()
        self.head_channels = head_channels
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.norm = nn.RMSNorm(width, eps=EPSILON)
        self.mlp_norm = nn.RMSNorm(width, eps=EPSILON)
        self.q_norm = nn.RMSNorm(head_channels, eps=EPSILON)
        self.k_norm = nn.RMSNorm(head_channels, eps=EPSILON)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = SwiGlu(width)

    def forward(self, x: Tensor, c: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        parts = self.modulation(c)[:, None].chunk(6, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        q, k, v = self.qkv(self.norm(x) * (1 + scale) + shift).chunk(3, dim=-1)
        q, k, v = (y.unflatten(-1, (-1, self.head_channels)) for y in (q, k, v))
        q, k = turned(self.q_norm(q), cos, sin), turned(self.k_norm(k), cos, sin)
        q, k, v = (y.transpose(1, 2) for y in (q.to(v.dtype), k.to(v.dtype), v))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate * self.out(h)
        return x + mlp_gate * self.mlp(self.mlp_norm(x) * (1 + mlp_scale) + mlp_shift)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair of channels of (B, L, heads, D), turned by its angle."""
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return pairs.flatten(-2)


class DiT(nn.Module):
    """The network; attributes as of `diffjax.models.dit.DiT`."""

    positions: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        width: int,
        depth: int,
        head_channels: int,
        patch: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.patch = patch
        channels = image_shape[2] * patch**2
        self.embedding = TimeAndClass(TIME_FEATURES, width, num_classes)
        self.patches = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(Block(width, head_channels) for _ in range(depth))
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.norm_out = nn.RMSNorm(width, eps=EPSILON)
        self.head = zeroed(nn.Linear(width, channels))
        places = grid_positions(*(-(-side // patch) for side in image_shape[:2]))
        angles = torch.tensor(rotary_angles(places, head_channels).__array__())[:, None]
        self.register_buffer("positions", torch.tensor(sincos_positions(places, width)))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W), t: (B,) about 0..1000, labels: (B,) int64 -> (B, C, H, W) float32."""
        height, width = x.shape[2:]
        c = F.silu(self.embedding(t, labels))
        h = space_to_depth(x, self.patch)
        rows, columns = h.shape[2:]
        h = self.patches(h.flatten(2).transpose(1, 2)) + self.positions
        for block in self.blocks:
            h = block(h, c, self.cos, self.sin)
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=-1)
        h = self.head(self.norm_out(h) * (1 + scale) + shift)
        h = h.transpose(1, 2).unflatten(2, (rows, columns))
        return depth_to_space(h, self.patch)[:, :, :height, :width].float()
