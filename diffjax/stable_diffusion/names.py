"""Where diffusers and transformers keep what diffjax's networks have: paths of modules -> names.

A path such as "up1_2/conv1" has alternatives, since older files have other names, and each is a
tuple of modules: an attention's queries, keys and values are one linear map here and three there.
Leaves are renamed alike everywhere, see `LEAVES`.
"""

import re
from collections.abc import Callable, Sequence

# Path of a module -> its alternatives, each the names of the modules that it is the union of.
Names = Callable[[str], Sequence[tuple[str, ...]]]

LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}

_BLOCK = re.compile(r"(down|up|middle)(\d*)(?:_(\d+))?(_transformer)?")
_RESNET = {"embedding": "time_emb_proj", "skip": "conv_shortcut"}
_ENDS = {"stem": "conv_in", "norm": "conv_norm_out", "head": "conv_out"}
_EMBEDDINGS = {"time": "time_embedding", "added": "add_embedding"}
_LINEAR = {"in": "linear_1", "out": "linear_2"}
_TRANSFORMER = re.compile(r"norm(\d+)_(self|cross|mlp)|(self|cross|mlp)(\d+)_(q|k|v|in|out)")
_PARTS = {
    "self": {"q": "attn1.to_q", "k": "attn1.to_k", "v": "attn1.to_v", "out": "attn1.to_out.0"},
    "cross": {"q": "attn2.to_q", "k": "attn2.to_k", "v": "attn2.to_v", "out": "attn2.to_out.0"},
    "mlp": {"in": "ff.net.0.proj", "out": "ff.net.2"},
}
# The autoencoder's, with the names of older files after those of newer ones.
_ATTENTION: dict[str, list[tuple[str, ...]]] = {
    "norm": [("group_norm",)],
    "qkv": [("to_q", "to_k", "to_v"), ("query", "key", "value")],
    "out": [("to_out.0",), ("proj_attn",)],
}
_NORMS = {"self": "norm1", "cross": "norm2", "mlp": "norm3"}


def of_unet(levels: int) -> Names:
    """Names of `models.stable_diffusion.StableDiffusionUNet` in diffusers' UNet2DConditionModel.

    >>> names = of_unet(4)
    >>> names("up3_0/skip"), names("down1_0_transformer/cross0_k")[0]
    ([('up_blocks.0.resnets.0.conv_shortcut',)], \
('down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k',))
    """

    def names(path: str) -> Sequence[tuple[str, ...]]:
        first, _, rest = path.partition("/")
        if first in _ENDS:
            return [(_ENDS[first],)]
        if first in _EMBEDDINGS:
            return [(f"{_EMBEDDINGS[first]}.{_LINEAR[rest]}",)]
        inner = _in_transformer(rest) if "_transformer" in first else _RESNET.get(rest, rest)
        return [(f"{_block(first, levels)}.{inner}",)]

    return names


def of_controlnet(levels: int) -> Names:
    """Names of `models.controlnet.ControlNet` in diffusers' ControlNetModel.

    >>> names = of_controlnet(4)
    >>> names("image/down0"), names("skip_middle")
    ([('controlnet_cond_embedding.blocks.1',)], [('controlnet_mid_block',)])
    """
    of_encoder = of_unet(levels)

    def names(path: str) -> Sequence[tuple[str, ...]]:
        if path.startswith("skip_"):
            end = path.removeprefix("skip_")
            return [(f"controlnet_{'mid_block' if end == 'middle' else f'down_blocks.{end}'}",)]
        first, _, rest = path.partition("/")
        if first != "image":
            return of_encoder(path)
        if rest in _ENDS:
            return [(f"controlnet_cond_embedding.{_ENDS[rest]}",)]
        kind, number = rest[:-1], int(rest[-1])
        return [(f"controlnet_cond_embedding.blocks.{2 * number + (kind == 'down')}",)]

    return names


def of_vae(levels: int) -> Names:
    """Names of {"encoder": Encoder, "decoder": Decoder} in diffusers' AutoencoderKL."""

    def names(path: str) -> Sequence[tuple[str, ...]]:
        side, first, *others = path.split("/")
        rest = "/".join(others)
        if first == "projection":
            return [("quant_conv" if side == "encoder" else "post_quant_conv",)]
        if first in _ENDS:
            return [(f"{side}.{_ENDS[first]}",)]
        if first != "middle":
            return [(f"{side}.{_block(first, levels)}.{_RESNET.get(rest, rest)}",)]
        part, inner = others
        if part != "attention":
            number = part.removeprefix("block_")
            return [(f"{side}.mid_block.resnets.{number}.{_RESNET.get(inner, inner)}",)]
        start = f"{side}.mid_block.attentions.0"
        return [tuple(f"{start}.{name}" for name in names) for names in _ATTENTION[inner]]

    return names


def of_text(modules: dict[str, list[str]]) -> Names:
    """Names of a text encoder: with the prefix of transformers 4, or without, as 5 writes them.

    Args:
      modules: path -> its names without the prefix, see `conditioning.clip.module_names`.
    """

    def names(path: str) -> Sequence[tuple[str, ...]]:
        if path == "projection":
            return [("text_projection",)]
        return [(prefix + name,) for name in modules[path] for prefix in ("text_model.", "")]

    return names


def _block(name: str, levels: int) -> str:
    """ "up3_0" -> "up_blocks.0.resnets.0", "down0" -> "down_blocks.0.downsamplers.0"."""
    found = _BLOCK.fullmatch(name)
    assert found is not None, name
    side, level, number, transformer = found.groups()
    kind = "attentions" if transformer else "resnets"
    if side == "middle":
        return f"mid_block.{kind}.{number}"
    place = int(level) if side == "down" else levels - 1 - int(level)
    start = f"{side}_blocks.{place}"
    return f"{start}.{side}samplers.0" if number is None else f"{start}.{kind}.{number}"


def _in_transformer(name: str) -> str:
    """ "cross0_k" -> "transformer_blocks.0.attn2.to_k", "in" -> "proj_in"."""
    if name in ("in", "out"):
        return f"proj_{name}"
    if name == "norm":
        return name
    found = _TRANSFORMER.fullmatch(name)
    assert found is not None, name
    norm, of_norm, part, number, end = found.groups()
    if of_norm:
        return f"transformer_blocks.{norm}.{_NORMS[of_norm]}"
    return f"transformer_blocks.{number}.{_PARTS[part][end]}"
