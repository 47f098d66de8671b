"""Names of modules in files of the original layout (CompVis, Stability) and in diffusers' folders.

A table has the original names as keys and diffusers' as values; what follows such a name is the
same in both. The original U-Net numbers its blocks consecutively, each with a residual block at 0,
a transformer at 1 and the resampling after them.
"""

from collections.abc import Mapping, Sequence

Table = Mapping[str, str]

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_VAE_RESNET = {**{name: name for name in ("norm1", "conv1", "norm2", "conv2")},
               "nin_shortcut": "conv_shortcut"}  # fmt: skip
_VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
_OPEN_CLIP = {
    "token_embedding": "embeddings.token_embedding",
    "positional_embedding": "embeddings.position_embedding",
    "ln_final": "final_layer_norm",
    "text_projection": "text_projection",
}
_OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn": "self_attn",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def of_unet(levels: int, blocks: int) -> Table:
    """Names of a U-Net.

    >>> table = of_unet(levels=4, blocks=2)
    >>> table["output_blocks.5.1"], table["input_blocks.1.0.in_layers.0"]
    ('up_blocks.1.attentions.2', 'down_blocks.0.resnets.0.norm1')
    """
    table = dict(_UNET)
    resnets = {"middle_block.0": "mid_block.resnets.0", "middle_block.2": "mid_block.resnets.1"}
    table["middle_block.1"] = "mid_block.attentions.0"
    for level in range(levels):
        for block in range(blocks):
            ours, theirs = (
                f"input_blocks.{1 + level * (blocks + 1) + block}",
                f"down_blocks.{level}",
            )
            resnets[f"{ours}.0"] = f"{theirs}.resnets.{block}"
            table[f"{ours}.1"] = f"{theirs}.attentions.{block}"
        table[f"input_blocks.{(level + 1) * (blocks + 1)}.0.op"] = f"{theirs}.downsamplers.0.conv"
        for block in range(blocks + 1):
            ours, theirs = f"output_blocks.{level * (blocks + 1) + block}", f"up_blocks.{level}"
            resnets[f"{ours}.0"] = f"{theirs}.resnets.{block}"
            table[f"{ours}.1"] = f"{theirs}.attentions.{block}"
        # After the transformer, if there is one.
        for place in (1, 2):
            table[f"{ours}.{place}.conv"] = f"{theirs}.upsamplers.0.conv"
    return table | _joined(resnets, _RESNET)


def of_vae(levels: int, blocks: int) -> Table:
    """Names of an autoencoder.

    >>> of_vae(levels=4, blocks=2)["decoder.up.3.block.0.nin_shortcut"]
    'decoder.up_blocks.0.resnets.0.conv_shortcut'
    """
    table, resnets = {}, {}
    for side in ("encoder", "decoder"):
        table[f"{side}.norm_out"] = f"{side}.conv_norm_out"
        for i in (1, 2):
            resnets[f"{side}.mid.block_{i}"] = f"{side}.mid_block.resnets.{i - 1}"
        middle = {f"{side}.mid.attn_1": f"{side}.mid_block.attentions.0"}
        table |= _joined(middle, _VAE_ATTENTION)
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        for block in range(blocks):
            resnets[f"encoder.down.{level}.block.{block}"] = f"{down}.resnets.{block}"
        for block in range(blocks + 1):
            resnets[f"decoder.up.{level}.block.{block}"] = f"{up}.resnets.{block}"
        table[f"encoder.down.{level}.downsample"] = f"{down}.downsamplers.0"
        table[f"decoder.up.{level}.upsample"] = f"{up}.upsamplers.0"
    return table | _joined(resnets, _VAE_RESNET)


def of_open_clip(layers: int) -> Table:
    """Names of OpenCLIP's text encoder, of its first layers."""
    blocks = {f"transformer.resblocks.{i}": f"encoder.layers.{i}" for i in range(layers)}
    return _OPEN_CLIP | _joined(blocks, _OPEN_CLIP_LAYER)


def renamed(name: str, table: Table) -> str | None:
    """The name with its longest beginning that the table has replaced; None if it has none.

    >>> renamed("input_blocks.1.1.norm.weight", of_unet(levels=4, blocks=2))
    'down_blocks.0.attentions.0.norm.weight'
    """
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        start = table.get(".".join(parts[:count]))
        if start is not None:
            return ".".join((start, *parts[count:]))
    return None


def turned(table: Table) -> dict[str, list[str]]:
    """diffusers' names -> the original ones."""
    made: dict[str, list[str]] = {}
    for ours, theirs in table.items():
        made.setdefault(theirs, []).append(ours)
    return made


def originals(name: str, back: Mapping[str, Sequence[str]]) -> list[str]:
    """The original names of a module or tensor: the inverse of `renamed`, with `turned`'s names.

    >>> originals("up_blocks.0.upsamplers.0.conv.bias", turned(of_unet(levels=4, blocks=2)))
    ['output_blocks.2.1.conv.bias', 'output_blocks.2.2.conv.bias']
    """
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        starts = back.get(".".join(parts[:count]))
        if starts:
            return [".".join((start, *parts[count:])) for start in starts]
    return []


def _joined(owners: Table, parts: Table) -> dict[str, str]:
    return {
        f"{owner}.{part}": f"{new}.{new_part}"
        for owner, new in owners.items()
        for part, new_part in parts.items()
    }
