"""A folder of Stable Diffusion 1.5 with random weights, written by diffusers and transformers."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = 49408


def write(folder: Path) -> None:
    """Writes it; the weights are the initial ones of diffusers' and transformers' classes."""
    aside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    _write(aside)
    aside.rename(folder)


def _write(aside: Path) -> None:
    import transformers

    diffusers: Any = importlib.import_module("diffusers")
    unet = diffusers.UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8
    )
    unet.save_pretrained(aside / "unet")
    del unet
    vae = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), latent_channels=4, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )  # fmt: skip
    vae.save_pretrained(aside / "vae")
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_attention_heads=12, eos_token_id=2,
            num_hidden_layers=12, vocab_size=TOKENS, projection_dim=768, bos_token_id=0,
            pad_token_id=1, hidden_act="quick_gelu",
        )
    )  # fmt: skip
    text.save_pretrained(aside / "text_encoder")
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
        steps_offset=1, set_alpha_to_one=False,
    )  # fmt: skip
    scheduler.save_pretrained(aside / "scheduler")
    _tokenizer(aside / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (aside / "model_index.json").write_text(json.dumps(index, indent=2))


def _tokenizer(folder: Path) -> None:
    """CLIP's number of tokens, of pairs of letters, since the true ones can't be had offline."""
    from tokenizers import pre_tokenizers

    folder.mkdir()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends = [letter + "</w>" for letter in letters]
    count = TOKENS - 2 * len(letters) - 2
    merges = [(a, b) for a in letters for b in ends + letters][:count]
    entries = [*letters, *ends, *(a + b for a, b in merges), BEGIN, END]
    (folder / "vocab.json").write_text(json.dumps({e: i for i, e in enumerate(entries)}))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": END})
    )
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END})
    )
