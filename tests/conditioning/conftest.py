"""Tiny tokenizers, saved models and an encoder that needs no file."""

import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from diffjax.conditioning.text_encoder import Encoded, TextEncoder, Tokens

WORDS = ("a", "red", "cat", "dog", "sits", "on", "the", "mat", "blue", "one", "two", "three")


def word_tokenizer(begin, end):
    """Knows WORDS; `begin` (or None) and `end` are (token, id) around every text."""
    special = [pair for pair in (begin, end) if pair is not None]
    taken = {number for _, number in special}
    free = (i for i in range(3, 100) if i not in taken)
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {word: next(free) for word in WORDS} | dict(special)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin[0]} $A {end[0]}" if begin else f"$A {end[0]}", special_tokens=special
    )
    return tokenizer


@pytest.fixture
def saved(tmp_path):
    """saved(torch_model, begin=, end=) -> the folder it was saved to, with a tokenizer.

    Every parameter is moved off its start first, since ones and zeros hide what is swapped.
    """

    def save(model, *, begin=("[CLS]", 20), end=("[SEP]", 30), scale=0.05, name="model"):
        import torch

        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += scale * torch.randn(parameter.shape, generator=generator)
        model.eval()
        folder = tmp_path / name
        model.save_pretrained(folder)
        word_tokenizer(begin, end).save(str(folder / "tokenizer.json"))
        return folder

    return save


@pytest.fixture
def edit_json():
    """edit_json(path, key=value, ...) changes fields of a JSON file; None takes one out."""

    def edit(path, **changes):
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))

    return edit


@pytest.fixture
def warnings(caplog):
    """warnings() -> the diffjax logger's warnings so far."""
    logger = logging.getLogger("diffjax")
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = True

    def so_far():
        return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]

    yield so_far
    logger.setLevel(level)
    logger.propagate = propagate


class Letters:
    """An encoder of letters, whose features are rows of a table; it counts what it does."""

    def __init__(self, *, length=6, width=4, digest="letters"):
        self.texts = []
        self.traces = 0
        table = np.random.default_rng(0).normal(size=(30, width)).astype(np.float32)
        self.encoder = TextEncoder(
            "letters", width, length, self.tokenise, self.encode, {"table": table}, digest
        )

    def tokenise(self, captions):
        self.texts += captions
        ids = np.zeros((len(captions), self.encoder.length), np.int32)
        for row, caption in enumerate(captions):
            numbers = [ord(letter) - ord("a") + 1 for letter in caption[: ids.shape[1]]]
            ids[row, : len(numbers)] = numbers
        return Tokens(ids, ids > 0)

    def encode(self, params, ids, mask):
        self.traces += 1
        tokens = params["table"][ids] * mask[..., None]
        return Encoded(tokens, mask, jnp.sum(tokens, axis=1))


@pytest.fixture
def letters():
    return Letters
