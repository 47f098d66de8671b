"""Tiny Stable Diffusion folders with random weights, written by diffusers and transformers."""

import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from tokenizers import pre_tokenizers

from diffjax import rng
from diffjax.training.objective import LossInputs

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
MERGES = ["c a", "ca t</w>", "d o", "do g</w>", "r e", "re d</w>", "o n</w>", "a</w> c"]
FAMILIES = ("sd15", "sd21", "sdxl", "sd15_inpaint", "sdxl_inpaint")
LATENT_SIDE = 8
SIDE = 16  # the tiny VAE has a factor of 2

SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
DOWN, UP = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")


def randomise(model, seed):
    """Weights of moderate size everywhere, the zero-initialised and the biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(noise * 0.1 + ("norm" in name and name.endswith("weight")))
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return model.eval()


def unet(family, seed=0):
    config = {
        "block_out_channels": (32, 64), "layers_per_block": 2, "sample_size": LATENT_SIDE,
        "down_block_types": DOWN, "up_block_types": UP, "cross_attention_dim": 32,
        "norm_num_groups": 8, "attention_head_dim": 4,
    }  # fmt: skip
    if family.startswith("sd15"):
        config |= {"down_block_types": DOWN[::-1], "up_block_types": UP[::-1]}
    if family.startswith("sd21"):
        config |= {"attention_head_dim": (2, 4), "use_linear_projection": True}
    if family.startswith("sdxl"):
        config |= {
            "attention_head_dim": (2, 4), "use_linear_projection": True,
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "transformer_layers_per_block": (1, 2), "cross_attention_dim": 64,
            "projection_class_embeddings_input_dim": 32 + 48,
        }  # fmt: skip
    if family.endswith("inpaint"):
        config["in_channels"] = 9
    return randomise(diffusers.UNet2DConditionModel(**config), seed)


def vae(family, seed=1):
    made = diffusers.AutoencoderKL(
        block_out_channels=[32, 64], in_channels=3, out_channels=3, latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        layers_per_block=1, norm_num_groups=8, sample_size=SIDE,
        scaling_factor=0.13025 if family.startswith("sdxl") else 0.18215,
    )  # fmt: skip
    return randomise(made, seed)


def text_encoder(kind, vocabulary, seed=2):
    """ "quick": CLIP-L's kind; "exact": OpenCLIP's; "projected": bigG's, with a projection."""
    config = transformers.CLIPTextConfig(
        bos_token_id=vocabulary - 2, eos_token_id=2 if kind == "quick" else vocabulary - 1,
        hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=3,
        vocab_size=vocabulary, pad_token_id=1, projection_dim=32,
        hidden_act="quick_gelu" if kind == "quick" else "gelu",
    )  # fmt: skip
    which = "CLIPTextModelWithProjection" if kind == "projected" else "CLIPTextModel"
    return randomise(getattr(transformers, which)(config), seed)


def write_tokenizer(folder, pad=END):
    """vocab.json and merges.txt as on the hub; returns the number of tokens."""
    folder.mkdir(parents=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    joined = [merge.replace(" ", "") for merge in MERGES]
    entries = ["!", *(x for x in letters if x != "!"), *(x + "</w>" for x in letters), *joined]
    entries = [*dict.fromkeys(entries), BEGIN, END]
    (folder / "vocab.json").write_text(json.dumps({e: i for i, e in enumerate(entries)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad})
    )
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": pad})
    )
    return len(entries)


def scheduler(family, **changes):
    prediction = "v_prediction" if family == "sd21" else "epsilon"
    return diffusers.DDIMScheduler(**{**SCHEDULE, "prediction_type": prediction, **changes})


def write(folder, family):
    """A whole folder of a family; returns diffusers' pipeline of the same parts."""
    xl, inpaint = family.startswith("sdxl"), family.endswith("inpaint")
    size = write_tokenizer(folder / "tokenizer", pad="!" if family == "sd21" else END)
    load = transformers.CLIPTokenizer.from_pretrained
    parts = {
        "vae": vae(family), "unet": unet(family), "scheduler": scheduler(family),
        "text_encoder": text_encoder("exact" if family == "sd21" else "quick", size),
        "tokenizer": load(folder / "tokenizer"),
    }  # fmt: skip
    if xl:
        write_tokenizer(folder / "tokenizer_2", pad="!")
        parts["text_encoder_2"] = text_encoder("projected", size, seed=3)
        parts["tokenizer_2"] = load(folder / "tokenizer_2")
    else:
        parts |= {"safety_checker": None, "feature_extractor": None}
    name = f"StableDiffusion{'XL' if xl else ''}{'Inpaint' if inpaint else ''}Pipeline"
    options = {} if xl else {"requires_safety_checker": False}
    pipeline = getattr(diffusers, name)(**parts, **options)
    pipeline.set_progress_bar_config(disable=True)
    for part in ("vae", "unet", "scheduler", "text_encoder", "text_encoder_2"):
        if part in parts:
            parts[part].save_pretrained(folder / part)
    pipeline.save_config(folder)
    return pipeline


def nhwc(tensor):
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def nchw(array):
    return torch.tensor(np.array(np.moveaxis(array, -1, 1)))


def draws_of(setup, state, batch, *, seed):
    """x_0, t and eps, and which captions are dropped, in a step of a run of this seed."""

    def key(name):
        return rng.stream(seed, name, 0)

    indices = jnp.arange(setup.config.train.batch_size)
    x_0, _ = setup.space.read(jax.tree.map(jnp.asarray, batch), key=key, indices=indices)
    inputs = LossInputs(x_0, None, key, indices, len(indices), state.step)
    draws = setup.objective.of_network(setup.network).draw(state.objective_state, inputs)
    dropped = rng.per_example(key("label"), indices, lambda k: jax.random.bernoulli(k, 0.5))
    return x_0, draws, dropped
