"""The tokenizer of a folder: prompts to chunks of token ids with weights."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import AddedToken, Tokenizer

from diffjax.conditioning.clip import END, clip_tokenizer
from diffjax.conditioning.model_folder import read_json
from diffjax.errors import UserError
from diffjax.stable_diffusion.prompts import Ids, Span, chunked, count_chunks, weighted

LONG = ("cut", "refuse", "chunks")
WEIGHTS = ("none", "scale", "scale_keep_mean")

_logger = logging.getLogger("diffjax")


class Prompts(NamedTuple):
    """How prompts are read.

    Attributes:
      long: of a prompt of more tokens than the encoder has positions: "cut" logs a warning,
        "refuse" raises, "chunks" encodes it in chunks of 75 tokens, all prompts of a call and the
        negative one in as many.
      weights: "none" takes parentheses as text; "scale" multiplies the states of tokens by the
        weights of `prompts.weighted`, "scale_keep_mean" restores the mean of each chunk, too.
    """

    long: str = "cut"
    weights: str = "none"

    def check(self) -> "Prompts":
        """Itself.

        Raises:
          UserError: another value.
        """
        for name, value, allowed in (
            ("long_prompts", self.long, LONG), ("prompt_weights", self.weights, WEIGHTS),
        ):  # fmt: skip
            if value not in allowed:
                raise UserError(f"{name} is {value!r}: expected {' or '.join(allowed)}")
        return self


PLAIN = Prompts()


class PromptTokenizer:
    """Texts to token ids.

    Attributes:
      ends: ids of the begin and the end token.
      padding: id of the token after the end.
      length: the encoder's number of positions.
      name: of the folder, for messages.
    """

    def __init__(self, tokenizer: Tokenizer, *, padding: int, length: int, name: str) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        begin, end = tokenizer.encode("").ids
        self.ends = begin, end
        self.padding, self.length, self.name = padding, length, name
        self._warned: set[str] = set()
        self._learned: dict[int, tuple[int, ...]] = {}

    def with_token(self, token: str, ids: Sequence[int]) -> "PromptTokenizer":
        """A tokenizer that makes these ids of a new token.

        Raises:
          UserError: a token that it knows.
        """
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        if tokenizer.token_to_id(token) is not None:
            raise UserError(
                f"{self.name}: the token {token!r} is known already: choose another name, such as "
                f"<{token.strip('<>')}-1>"
            )
        tokenizer.add_tokens([AddedToken(token, normalized=False)])
        (placeholder,) = tokenizer.encode(token, add_special_tokens=False).ids
        made = copy.copy(self)
        made._tokenizer, made._warned = tokenizer, set()
        made._learned = {**self._learned, placeholder: tuple(ids)}
        return made

    @property
    def most(self) -> int:
        """The number of tokens that a chunk has besides the special ones."""
        return self.length - 2

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """int32 (B, L), padded or cut to the encoder's number of positions."""
        return self.chunks(texts).ids[:, 0]

    def pieces(self, text: str, how: Prompts = PLAIN) -> tuple[list[int], list[float]]:
        """The ids of a text's tokens, without special ones, and their weights.

        Raises:
          UserError: a parenthesis without its counterpart, in a prompt with weights.
        """
        spans = (Span(text, 1.0),) if how.weights == "none" else weighted(text)
        ids: list[int] = []
        weights: list[float] = []
        for span in spans:
            plain = self._tokenizer.encode(span.text, add_special_tokens=False).ids
            found = [made for one in plain for made in self._learned.get(one, (one,))]
            ids += found
            weights += [span.weight] * len(found)
        return ids, weights

    def count(self, texts: Sequence[str], how: Prompts) -> int:
        """The number of chunks of the longest text; 1 unless `how.long` is "chunks".

        Raises:
          UserError: as `pieces`.
        """
        if how.long != "chunks":
            return 1
        numbers = [len(self.pieces(text, how)[0]) for text in texts]
        return count_chunks(max(numbers, default=0), length=self.length)

    def chunks(self, texts: Sequence[str], *, chunks: int = 1, how: Prompts = PLAIN) -> Ids:
        """Texts in chunks, (B, chunks, L); what does not fit is cut, and said once, or refused.

        Raises:
          UserError: as `pieces`, or a text that does not fit.
        """
        shape, cut = (len(texts), chunks, self.length), []
        made = Ids(np.zeros(shape, np.int32), np.zeros(shape, np.float32))
        for i, text in enumerate(texts):
            ids, weights = self.pieces(text, how)
            if len(ids) > chunks * self.most:
                cut.append(text)
            made.ids[i], made.weights[i] = chunked(
                ids, weights, chunks=chunks, ends=self.ends, padding=self.padding,
                length=self.length,
            )  # fmt: skip
        if cut and how.long == "refuse":
            raise UserError(
                f"{self.name}: the prompt {cut[0]!r:.60} has more than {chunks * self.most} "
                'tokens: shorten it, or load the folder with long_prompts="chunks"'
            )
        self._warn([text for text in cut if text not in self._warned])
        return made

    def _warn(self, cut: Sequence[str]) -> None:
        self._warned.update(cut)
        if cut:
            _logger.warning(
                "%s: %d captions were cut to %d tokens, the first of them %.60r; load the folder "
                'with long_prompts="chunks" to keep them whole',
                self.name, len(cut), self.length, cut[0],
            )  # fmt: skip


def read(
    folder: Path, *, vocabulary: int, length: int, padding: str | None = None
) -> PromptTokenizer:
    """The tokenizer of a folder.

    Args:
      folder: with vocab.json and merges.txt, or tokenizer.json.
      vocabulary: the encoder's number of tokens.
      length: its number of positions.
      padding: the token; None for the folder's.

    Raises:
      UserError: a file that is missing or that can't be read, or the tokenizer of another model.
    """
    tokenizer = clip_tokenizer(_existing(folder))
    known = tokenizer.get_vocab(with_added_tokens=True)
    if max(known.values()) >= vocabulary:
        raise UserError(
            f"found the id {max(known.values())} in the tokenizer of {folder}; expected ids below "
            f"vocab_size={vocabulary} of the text encoder's config.json; use both files of the "
            "same model"
        )
    token = padding or _padding(folder)
    padding_id = known.get(token)
    if padding_id is None:
        raise UserError(
            f"found pad_token={token!r} in {folder}; expected a token of its vocabulary; download "
            "its files again"
        )
    # As in transformers, where the token is also found in texts: "!" of Stable Diffusion 2 and XL.
    tokenizer.add_special_tokens([token])
    tokenizer.no_padding()
    tokenizer.no_truncation()
    empty = tokenizer.encode("").ids
    if len(empty) != 2:
        raise UserError(
            f"found a tokenizer in {folder} that makes {empty} of an empty text; expected CLIP's "
            "begin and end token; use the files of the same model"
        )
    return PromptTokenizer(tokenizer, padding=padding_id, length=length, name=folder.name)


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(
            f"found no folder {folder}; expected one with vocab.json and merges.txt; download it"
        )
    return folder


def _padding(folder: Path) -> str:
    """The padding token of the tokenizer's files, or else the end token."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        token = read_json(path).get("pad_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    return END
