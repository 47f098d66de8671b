"""State dicts of the original layout, from those of diffusers and transformers.

Whether they are right is for diffusers' own converters to say, in test_single_file.py.
"""

import torch

from diffjax.stable_diffusion import original_names


def unet(state, levels, blocks):
    """Tensors of a UNet2DConditionModel by their original names."""
    back = original_names.turned(original_names.of_unet(levels, blocks))
    attending = {name.split(".attentions.")[0] for name in state if ".attentions." in name}
    made = {}
    for name, tensor in state.items():
        found = original_names.originals(name, back)
        # An upsampler is after the transformer, if there is one.
        is_second = len(found) == 2 and name.split(".upsamplers.")[0] in attending
        made[f"model.diffusion_model.{found[is_second]}"] = tensor
    return made


def vae(state, levels, blocks):
    """Tensors of an AutoencoderKL by their original names; its attention is of convolutions."""
    back = original_names.turned(original_names.of_vae(levels, blocks))
    made = {}
    for name, tensor in state.items():
        found = (original_names.originals(name, back) or [name])[0]
        is_linear = ".attn_1." in found and tensor.ndim == 2
        made[f"first_stage_model.{found}"] = tensor[..., None, None] if is_linear else tensor
    return made


def clip(state, prefix):
    """Tensors of a CLIPTextModel, with the name of its place, as transformers 4 wrote them."""
    return {f"{prefix}text_model.{n.removeprefix('text_model.')}": t for n, t in state.items()}


def open_clip(state, prefix, layers):
    """Tensors of a CLIPTextModel by OpenCLIP's names; queries, keys and values are one."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    made = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "logit_scale": torch.zeros(()),
    }
    if "text_projection.weight" in state:
        made["text_projection"] = state["text_projection.weight"].T.contiguous()
    for i in range(layers):
        ours, theirs = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
        for leaf in ("weight", "bias"):
            for new, old in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                             ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
                             ("attn.out_proj", "self_attn.out_proj")):  # fmt: skip
                made[f"{ours}.{new}.{leaf}"] = state[f"{theirs}.{old}.{leaf}"]
            made[f"{ours}.attn.in_proj_{leaf}"] = torch.cat(
                [state[f"{theirs}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            )
    return {prefix + name: tensor for name, tensor in made.items()}
