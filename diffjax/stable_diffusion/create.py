"""A new folder of Stable Diffusion's form, whose U-Net and text encoder have random weights.

For training from nothing: the parts of a folder that no one publishes in the size that is wanted.
The autoencoder is a trained one (`vae_writer`), since latents of random weights mean nothing.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from diffjax import arguments
from diffjax.conditioning.clip import BEGIN, END, module_names, with_words
from diffjax.conditioning.hugging_face import TEXT_INPUTS
from diffjax.conditioning.model_folder import read_json
from diffjax.errors import UserError
from diffjax.files import atomic_write, expanded, new_folder
from diffjax.stable_diffusion import names, text, unet
from diffjax.stable_diffusion.folder import load_folder
from diffjax.stable_diffusion.weights_writer import convolutions, tensors_of, write, write_json
from diffjax.types import Array

Config = Mapping[str, Any]

# Of Stable Diffusion 1 (Rombach et al. 2022), for a U-Net that predicts eps.
SCHEDULER: Config = {
    "_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085,
    "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False,
    "set_alpha_to_one": False, "prediction_type": "epsilon",
}  # fmt: skip
_PARTS = {
    "unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": "DDIMScheduler",
    "text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer",
}  # fmt: skip
_LIBRARY = {"text_encoder": "transformers", "tokenizer": "transformers"}
WORD_END = "</w>"


def create(
    out: str | os.PathLike[str],
    *,
    unet_config: Config,
    text_config: Config,
    vae: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str],
    scheduler: Config = SCHEDULER,
    seed: int = 0,
) -> list[Path]:
    """Writes a folder as diffusers does, for `config.model.folder` and `diffjax.load`.

    Args:
      out: a new or empty folder.
      unet_config: fields of UNet2DConditionModel's config.json that differ from its defaults.
      text_config: likewise of CLIPTextModel's; its vocab_size must be the tokenizer's.
      vae: folder of a trained AutoencoderKL, as `--mode=export --format=diffusers` writes one.
      tokenizer: folder with vocab.json and merges.txt; the number of tokens of a text becomes the
        text encoder's max_position_embeddings.
      scheduler: scheduler_config.json.
      seed: of the random weights.

    Returns:
      The written files.

    Raises:
      UserError: a folder that is not empty, files that are missing, or configs that don't fit.
    """
    out = expanded(out, name="out")
    first, second = jax.random.split(jax.random.key(seed))
    with new_folder(out) as aside:
        for part, source in (("vae", vae), ("tokenizer", tokenizer)):
            _copy(expanded(source, name=part), aside / part)
        _set_length(aside / "tokenizer", text_config.get("max_position_embeddings", 77))
        for part, config in (
            ("unet", {"_class_name": _PARTS["unet"], **unet_config}),
            ("text_encoder", {"model_type": "clip_text_model", **text_config}),
            ("scheduler", dict(scheduler)),
        ):
            (aside / part).mkdir()
            name = "scheduler_config.json" if part == "scheduler" else "config.json"
            write_json(aside / part / name, config)
        index: dict[str, Any] = {
            part: [_LIBRARY.get(part, "diffusers"), kind] for part, kind in _PARTS.items()
        }
        index["scheduler"][1] = scheduler.get("_class_name", _PARTS["scheduler"])
        missing = {"safety_checker": [None, None], "feature_extractor": [None, None]}
        write_json(
            aside / "model_index.json",
            {"_class_name": "StableDiffusionPipeline", **index, **missing,
             "requires_safety_checker": False},
        )  # fmt: skip
        _write_unet(aside / "unet", first)
        _write_text(aside / "text_encoder", second)
        load_folder(aside)  # refuses parts that don't fit each other
        written = sorted(path.relative_to(aside) for path in aside.rglob("*") if path.is_file())
    return [out / path for path in written]


def tokenizer_of(texts: Sequence[str], out: str | os.PathLike[str], *, size: int = 1000) -> int:
    """Writes vocab.json and merges.txt of CLIP's byte-level tokens, learned from texts.

    Sennrich et al. 2016, "Neural machine translation of rare words with subword units": the most
    frequent pairs are merged, after CLIP's normalisation of the text.

    Args:
      texts: that pairs are counted in.
      out: a new or empty folder.
      size: largest number of tokens, at least 514: all bytes, at the end of a word and elsewhere,
        and the begin and end tokens.

    Returns:
      The number of tokens: the text encoder's vocab_size.

    Raises:
      UserError: a folder that is not empty, or a size out of range.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = [*letters, *(f"{letter}{WORD_END}" for letter in letters)]
    least = len(alphabet) + 2
    if arguments.whole("size", size) < least:
        raise UserError(f"size is {size}: expected at least {least}, with every byte")
    learned = with_words(Tokenizer(models.BPE(end_of_word_suffix=WORD_END)))
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=letters, end_of_word_suffix=WORD_END, show_progress=False
    )
    learned.train_from_iterator(texts, trainer)
    merges = json.loads(learned.to_str())["model"]["merges"][: size - least]
    tokens = dict.fromkeys([*alphabet, *map("".join, merges), BEGIN, END])
    with new_folder(expanded(out, name="out")) as aside:
        write_json(aside / "vocab.json", {token: i for i, token in enumerate(tokens)})
        lines = ["#version: 0.2", *map(" ".join, merges), ""]
        atomic_write(aside / "merges.txt", lambda file: file.write("\n".join(lines).encode()))
        ends = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
        kind: dict[str, Any] = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
        write_json(aside / "tokenizer_config.json", kind | ends)
        write_json(aside / "special_tokens_map.json", ends)
    return len(tokens)


def _copy(source: Path, to: Path) -> None:
    if not source.is_dir():
        raise UserError(f"found no folder {source}; expected that of the {to.name}'s files")
    to.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file():
            shutil.copyfile(path, to / path.name)


def _set_length(folder: Path, length: int) -> None:
    """Makes transformers pad and cut texts to the text encoder's length."""
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.exists() else {"tokenizer_class": "CLIPTokenizer"}
    write_json(path, {**config, "model_max_length": length})


def _write_unet(folder: Path, key: Array) -> None:
    read = unet.read(folder)
    params = _initial(read.module, key, unet.example(read.module, read.latent_channels))
    is_linear = bool(read_json(folder / "config.json").get("use_linear_projection"))
    table = names.of_unet(len(read.module.channels))
    write(folder, unet.STEM,
          tensors_of(params, table, is_conv=convolutions(linear_projection=is_linear)))  # fmt: skip


def _write_text(folder: Path, key: Array) -> None:
    encoder = text.read(folder)
    params = _initial(encoder.module, key, TEXT_INPUTS)
    table = names.of_text(module_names(encoder.module.layers))
    write(folder, text.STEM, tensors_of(params, table, is_conv=lambda name: False))


def _initial(module: nn.Module, key: Array, inputs: Any) -> Any:
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), inputs)
    return jax.jit(module.init)(key, *zeros)["params"]
