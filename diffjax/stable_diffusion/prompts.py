r"""Prompts as weighted spans of text, and long ones as chunks of tokens.

    a (red:1.3) cat        the tokens of "red" have the weight 1.3
    a ((red)) cat          1.1 for each pair of parentheses: 1.21
    a [red] cat            1 / 1.1 for each pair of brackets
    a \(red\) cat          parentheses of the text

This is AUTOMATIC1111's syntax, without its schedules ("[cat:dog:0.5]") and "BREAK". CLIP has 77
positions, the begin and the end token among them: a longer prompt is encoded in chunks of 75
tokens, and their states are concatenated.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from diffjax.errors import UserError
from diffjax.types import Array

# What a pair of parentheses multiplies a weight by.
STEP = 1.1

_CLOSED_BY = {"(": ")", "[": "]"}
_TOKEN = re.compile(
    r"\\[()\[\]\\]"  # an escaped character
    r"|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"  # the end of a group with its weight
    r"|[()\[\]]"
    r"|[^\\()\[\]:]+|[\\:]"
)


class Span(NamedTuple):
    """A part of a prompt with the weight of its tokens."""

    text: str
    weight: float


def weighted(prompt: str) -> tuple[Span, ...]:
    """The spans of a prompt, neighbours of different weights; one or more.

    Raises:
      UserError: a parenthesis or bracket without its counterpart.

    >>> weighted("a (red:1.3) [cat]")[1]
    Span(text='red', weight=1.3)
    """
    found: list[Span] = []
    opened: list[tuple[str, int, int]] = []  # which, where, and the number of spans before
    for match in _TOKEN.finditer(prompt):
        token, weight, place = match[0], match["weight"], match.start()
        if token in _CLOSED_BY:
            opened.append((token, place, len(found)))
        elif weight is not None or token in (")", "]"):
            if not opened or _CLOSED_BY[opened[-1][0]] != token[-1]:
                raise _unbalanced(prompt, token[-1], place + len(token) - 1, "opened")
            bracket, _, first = opened.pop()
            step = STEP if bracket == "(" else 1 / STEP
            factor = step if weight is None else float(weight)
            found[first:] = [span._replace(weight=span.weight * factor) for span in found[first:]]
        else:
            found.append(Span(token[1] if len(token) == 2 and token[0] == "\\" else token, 1.0))
    if opened:
        raise _unbalanced(prompt, *opened[-1][:2], "closed")
    merged: list[Span] = []
    for span in found:
        if merged and merged[-1].weight == span.weight:
            merged[-1] = Span(merged[-1].text + span.text, span.weight)
        else:
            merged.append(span)
    return tuple(merged) or (Span("", 1.0),)


def _unbalanced(prompt: str, bracket: str, place: int, what: str) -> UserError:
    return UserError(
        f"the prompt {prompt!r:.80} has a {bracket!r} at character {place + 1} that is not {what}; "
        f"expected pairs, which are weights; write \\{bracket} for the character itself"
    )


class Ids(NamedTuple):
    """Chunks of one prompt.

    Attributes:
      ids: int32 (chunks, length), each beginning and ending with the special tokens.
      weights: float32 (chunks, length), 1 at special tokens and padding.
    """

    ids: np.ndarray
    weights: np.ndarray


def count_chunks(tokens: int, *, length: int = 77) -> int:
    """How many chunks a number of tokens needs; 1 for none.

    >>> [count_chunks(n) for n in (0, 75, 76, 151)]
    [1, 1, 2, 3]
    """
    return max(1, -(-tokens // (length - 2)))


def chunked(
    ids: Sequence[int],
    weights: Sequence[float],
    *,
    chunks: int,
    ends: tuple[int, int],
    padding: int,
    length: int = 77,
) -> Ids:
    """Tokens in chunks of length - 2, between the special tokens; chunks of none at the end.

    Args:
      ids: of all tokens, without special ones; those that do not fit are left out.
      weights: one each.
      chunks: their number.
      ends: ids of the begin and the end token.
      padding: id after the end token.
      length: of a chunk.
    """
    inside = length - 2
    made = Ids(np.full((chunks, length), padding, np.int32), np.ones((chunks, length), np.float32))
    made.ids[:, 0] = ends[0]
    for i in range(chunks):
        part = ids[i * inside : (i + 1) * inside]
        made.ids[i, 1 : 1 + len(part)] = part
        made.ids[i, 1 + len(part)] = ends[1]
        made.weights[i, 1 : 1 + len(part)] = weights[i * inside : (i + 1) * inside]
    return made


def scaled(states: Array, weights: Array, *, keep_mean: bool) -> Array:
    """States (B, L, D) multiplied by weights (B, L).

    With keep_mean, the mean of all a chunk's states is restored by a factor,

        z_l w_l mean(z) / mean(z w),

    as AUTOMATIC1111 does by default, where it is the mean over a batch.
    """
    result = states * weights[..., None]
    if keep_mean:
        means = (jnp.mean(z, axis=(1, 2), keepdims=True) for z in (states, result))
        before, after = means
        # Weights of 1 leave a chunk as it is, whatever its mean.
        factor = jnp.where((weights == 1).all(1)[:, None, None], 1.0, before / after)
        result = result * factor
    return result
