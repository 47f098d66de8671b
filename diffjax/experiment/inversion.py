"""`config.model.inversion`: the vectors of a new token are trained, in the place of a network.

config.model.inversion = "inversion(token='<toy>', word='toy', vectors=2)"
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.conditioning.conditions import Texts
from diffjax.errors import UserError
from diffjax.experiment.spec import from_table
from diffjax.models.network import Network
from diffjax.stable_diffusion.folder import ENCODERS, Folder
from diffjax.stable_diffusion.inversion import WORD, InvertedNetwork, texts_of_ids
from diffjax.stable_diffusion.learned_tokens import Learned, known, with_tokens
from diffjax.stable_diffusion.text import Part
from diffjax.types import Array

# Texts for images without captions, with the token in the place of {}.
THING = (
    "a photo of {}", "a photo of one {}", "a close-up photo of {}", "a cropped photo of {}",
    "a bright photo of {}", "a dark photo of {}", "a blurry photo of {}", "a photo of {} alone",
    "a picture of {}", "a picture of my {}", "a rendering of {}", "a good shot of {}",
)  # fmt: skip
STYLE = (
    "a painting in the style of {}", "a picture in the style of {}", "a detail in the style of {}",
    "a bright painting in the style of {}", "a dark painting in the style of {}",
    "a small painting in the style of {}", "a close-up in the style of {}",
    "a rendering in the style of {}",
)  # fmt: skip


class Inversion(NamedTuple):
    """A token, the word that its vectors start from, their number, and whether it is of a style."""

    token: str
    word: str
    vectors: int
    style: bool


def _inversion(token: str, word: str, vectors: int = 1, style: bool = False) -> Inversion:
    if not token.strip() or token != token.strip() or " " in token:
        raise ValueError(f"token = {token!r}: expected a word without spaces, such as '<toy>'")
    if not word.strip():
        raise ValueError("word is empty: expected one that says what the token is, such as 'toy'")
    if vectors < 1:
        raise ValueError(f"vectors must be at least 1, not {vectors}")
    return Inversion(token, word, vectors, style)


INVERSIONS: Mapping[str, Callable[..., Inversion | None]] = {
    "none": lambda: None,
    "inversion": _inversion,
}


def wanted(config: Any) -> Inversion | None:
    """The value of `config.model.inversion`; None for none, and for other models.

    Raises:
      UserError: an unknown name, or invalid arguments.
    """
    text = config.model.get("inversion", "none")
    found: Inversion | None = from_table(text, INVERSIONS, key="model.inversion")
    return found


def prompts_of(config: Any) -> tuple[str, ...]:
    """The texts of images without captions; () without an inversion."""
    found = wanted(config)
    if found is None:
        return ()
    return tuple(text.format(found.token) for text in (STYLE if found.style else THING))


class Inverted(NamedTuple):
    """What is trained of a folder: {"text_encoder": (k, D)}, and "text_encoder_2" of SDXL.

    Attributes:
      inversion: see `Inversion`.
      parts: the text encoders, whose tokenizers know the token.
      network, texts: given ids of tokens; see `stable_diffusion.inversion`.
      shapes: of the frozen parameters, with jax.ShapeDtypeStruct for arrays.
      base: reads the frozen parameters.
      digest: changes with those of the U-Net.
    """

    inversion: Inversion
    parts: tuple[Part, ...]
    network: InvertedNetwork
    texts: Texts
    shapes: Any
    base: Callable[[], Any]
    digest: str

    def init(self, key: Array) -> Any:
        """The vectors of step 0: those of the word's tokens, in turn."""
        made = {}
        for name, part in zip(ENCODERS, self.parts, strict=False):
            count, width = self.inversion.vectors, part.encoder.module.width
            if part.ids is None:  # shapes alone
                made[name] = jnp.zeros((count, width))
                continue
            ids, _ = part.ids.pieces(self.inversion.word)
            table = part.params[WORD]["embedding"]
            rows = [ids[i % len(ids)] for i in range(count)]
            made[name] = jnp.asarray(np.asarray(table)[np.array(rows)], jnp.float32)
        return made

    def merged(self, base: Any, vectors: Any) -> Any:
        """The parameters of `network`."""
        return {**base, "vectors": tuple(vectors[name] for name in ENCODERS[: len(vectors)])}

    def apply(
        self, network: Network, frozen: Any, vectors: Any, *args: Any, **options: Any
    ) -> Array:
        """The network's output, as a function of the vectors."""
        return network.apply(self.merged(frozen, vectors), *args, **options)

    def learned(self, vectors: Any) -> Learned:
        """The token with trained vectors."""
        each = tuple(np.asarray(vectors[name], np.float32) for name in ENCODERS[: len(vectors)])
        return Learned(self.inversion.token, each)

    def extended(self, folder: Folder, vectors: Any) -> Folder:
        """The folder whose text encoders know the token."""
        return with_tokens(folder, [self.learned(vectors)])


def of_folder(config: Any, folder: Folder) -> Inverted | None:
    """What `config.model.inversion` trains of a folder; None for none.

    Raises:
      UserError: an unknown name or invalid arguments, a token that the tokenizer knows, or adapters
        as well.
    """
    found = wanted(config)
    if found is None:
        return None
    key = f"config.model.inversion = {config.model.inversion!r}"
    if config.model.lora != "none":
        raise UserError(f"{key} trains a token alone: set config.model.lora to 'none'")
    parts = folder.texts
    if all(part.ids is not None for part in parts):
        try:
            parts = tuple(known(part, found.token, found.vectors) for part in parts)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
    kind = folder.unet.module.dtype
    shapes = {
        "unet": jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, kind), folder.unet.shapes()
        ),
        "texts": tuple(_shapes(part.params) for part in parts),
    }
    encoders = tuple(part.encoder for part in parts)
    texts = texts_of_ids(parts, zeros_for_none=folder.zeros_for_none, identity=folder.text_digest)
    return Inverted(
        found, parts, InvertedNetwork(folder.unet.network, encoders, found.vectors), texts, shapes,
        lambda: {"unet": folder.unet_params(), "texts": tuple(part.params for part in parts)},
        folder.unet_digest if all(part.ids is not None for part in parts) else "",
    )  # fmt: skip


def _shapes(params: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)


def check_captions(config: Any, captions: tuple[str, ...]) -> None:
    """Checks that the token is in the captions of the data.

    Raises:
      UserError: it is in none.
    """
    found = wanted(config)
    if found is not None and not any(found.token in caption for caption in captions):
        raise UserError(
            f"config.model.inversion = {config.model.inversion!r}, and no caption of "
            f"{config.data.name!r} has {found.token!r}: write it into them, or remove the captions "
            "for those of templates"
        )
