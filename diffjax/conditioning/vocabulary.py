"""A vocabulary of words from a data set's captions, for a text network trained from scratch."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from diffjax import arguments
from diffjax.conditioning.text_encoder import Tokens
from diffjax.errors import UserError

PADDING = 0
UNKNOWN = 1

# A run of letters or a run of digits; everything else separates words.
_WORD = re.compile(r"[^\W\d_]+|\d+")

_logger = logging.getLogger("diffjax")


def split_words(caption: str) -> list[str]:
    """Lower-cased words and numbers of a text, in any script.

    Texts are normalised (Unicode's NFKC), so that composed and decomposed accents are equal.

    >>> split_words("Two CATS, 3 dogs: l'Été 2024!")
    ['two', 'cats', '3', 'dogs', 'l', 'été', '2024']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", caption).lower())


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A network's words. Id 0 is padding, id 1 any unknown word, and the words start at 2.

    Attributes:
      words: distinct, in the order of their ids.
      length: number of ids that `tokenise` pads or cuts captions to.
    """

    words: tuple[str, ...]
    length: int
    # Words and captions already warned about; not part of the value.
    _warned: set[str] = dataclasses.field(
        default_factory=set, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        arguments.whole("length", self.length, least=1)
        if len(set(self.words)) != len(self.words):
            raise UserError(
                "got a vocabulary with repeated words; expected each once; build it from captions "
                "with Vocabulary.of"
            )

    @classmethod
    def of(cls, captions: Iterable[str], *, length: int = 16) -> Vocabulary:
        """All words of the captions, in alphabetical order.

        Raises:
          UserError: captions without any word, a single text for `captions`, or a length below 1.
        """
        if isinstance(captions, str):
            raise UserError(
                f"got captions={captions!r:.60}; expected a list of texts; put a single one in a "
                "list"
            )
        words = sorted({word for caption in captions for word in split_words(caption)})
        if not words:
            raise UserError(
                "found no word in the captions; expected some with letters or digits; check the "
                "data set's captions"
            )
        return cls(tuple(words), length)

    @property
    def size(self) -> int:
        """The number of ids, for an embedding table."""
        return len(self.words) + 2

    def tokenise(self, captions: Sequence[str]) -> Tokens:
        """Captions as ids: (B, length).

        Warns once for each unknown word and for each caption that is cut.
        """
        number = {word: i for i, word in enumerate(self.words, start=2)}
        ids = np.full((len(captions), self.length), PADDING, np.int32)
        cut: dict[str, None] = {}
        unknown: dict[str, None] = {}
        for row, caption in enumerate(captions):
            words = split_words(caption)
            if len(words) > self.length:
                cut[f"caption {caption}"] = None
            kept = words[: self.length]
            unknown |= {f"word {word}": None for word in kept if word not in number}
            ids[row, : len(kept)] = [number.get(word, UNKNOWN) for word in kept]
        self._warn(cut, f"captions were cut to {self.length} words; raise length to keep them")
        self._warn(unknown, f"words are not in the vocabulary of {len(self.words)} words")
        return Tokens(ids, ids != PADDING)

    def _warn(self, items: dict[str, None], what: str) -> None:
        new = [item for item in items if item not in self._warned]
        if new:
            self._warned.update(new)
            shown = [item.partition(" ")[2][:60] for item in new[:5]]
            _logger.warning("%d %s: %s%s", len(new), what, shown, " ..." * (len(new) > 5))

    def to_json(self) -> str:
        """The vocabulary as JSON, for `from_json`."""
        return json.dumps({"length": self.length, "words": self.words}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """The inverse of `to_json`.

        Raises:
          UserError: a text of another format.
        """
        try:
            values = json.loads(text)
            words, length = values["words"], values["length"]
            if type(length) is not int or not isinstance(words, list):
                raise TypeError
            if not all(isinstance(word, str) for word in words):
                raise TypeError
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"cannot read a vocabulary from {text!r:.60}; expected the output of "
                "Vocabulary.to_json; build it again from the captions"
            ) from error
        return cls(tuple(words), length)
