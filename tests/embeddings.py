"""An image embedding and a text encoder of one's own, as config strings name them, and data."""

import json

import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffjax.conditioning.text_encoder import Encoded, TextEncoder, Tokens
from diffjax.models.embedding_network import EmbeddingNetwork

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def quarters(scale=1.0):
    """The mean colours of an 8x8 image's quarters: 12 features."""

    def apply(params, images):
        cells = images.reshape(len(images), 2, 4, 2, 4, 3).mean((2, 4))
        return cells.reshape(len(images), 12) * params

    return EmbeddingNetwork("quarters", jnp.float32(scale), apply, 12, f"quarters {scale}")


def letters(length=6):
    """Counts of some letters in each word, as a frozen encoder of texts."""
    known = "redgnblu"

    def tokenise(captions):
        ids = np.zeros((len(captions), length), np.int32)
        mask = np.zeros((len(captions), length), bool)
        for row, caption in enumerate(captions):
            words = caption.split()[:length]
            mask[row, : len(words)] = True
            for place, word in enumerate(words):
                bits = [1 << i for i, letter in enumerate(known) if letter in word]
                ids[row, place] = sum(bits)
        return Tokens(ids, mask)

    def encode(params, ids, mask):
        bits = (ids[..., None] >> jnp.arange(len(known))) & 1
        tokens = bits.astype(jnp.float32) * mask[..., None] * params
        return Encoded(tokens, mask, tokens.sum(1))

    return TextEncoder(
        "letters", len(known), length, tokenise, encode, np.float32(1), f"letters {length}"
    )


def write_squares(root, *, train=40, test=6):
    """A folder of captioned 8x8 squares before white, of several sizes and places."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        folder = root / split
        folder.mkdir(parents=True)
        rows = []
        for i in range(count):
            name = list(COLOURS)[i % 3]
            top, left, side = (int(rng.integers(*span)) for span in ((0, 4), (0, 4), (2, 5)))
            image = np.full((8, 8, 3), 255, np.uint8)
            image[top : top + side, left : left + side] = COLOURS[name]
            Image.fromarray(image).save(folder / f"{i:02d}.png")
            rows.append({"file_name": f"{i:02d}.png", "text": f"a {name} square"})
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root
