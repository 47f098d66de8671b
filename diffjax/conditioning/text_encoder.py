"""The interface of frozen text encoders, and a cache of encoded captions.

An encoder maps a caption to one vector per token and one pooled vector. Its weights are not
trained, so each distinct caption of a data set is encoded once before training and cached on disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.files import atomic_write
from diffjax.progress import Bar
from diffjax.types import Array

_logger = logging.getLogger("diffjax")


class Tokens(NamedTuple):
    """Captions as token ids, padded to one length.

    Attributes:
      ids: (B, L) int32, 0 at padding.
      mask: (B, L) bool, True at non-padding tokens.
    """

    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]


class Encoded(NamedTuple):
    """Captions as features.

    Attributes:
      tokens: (B, L, D) float32, zero at padding.
      mask: (B, L) bool, True at non-padding tokens.
      pooled: (B, D) float32, one vector per caption; zero for a caption without tokens.
    """

    tokens: Array
    mask: Array
    pooled: Array


class TextEncoder(NamedTuple):
    """A frozen text encoder.

    Attributes:
      name: for logs.
      width: D, the size of a vector.
      length: L, the number of tokens that `tokenise` pads or cuts captions to.
      tokenise: captions -> Tokens; warns once for each caption that is cut.
      encode: (params, ids, mask) -> Encoded; pure, jittable, takes any length up to L, and its
        result does not depend on padding.
      params: NumPy arrays on the host; `jax.device_put` them once before many calls.
      digest: cache key; changes with weights, tokenizer and length.
    """

    name: str
    width: int
    length: int
    tokenise: Callable[[Sequence[str]], Tokens]
    encode: Callable[[Any, Array, Array], Encoded]
    params: Any
    digest: str


class EncodedCaptions(NamedTuple):
    """`Encoded` on the host; row i is caption i.

    Attributes:
      tokens: (N, L, D) float16, zero at padding.
      mask: (N, L) bool, True at non-padding tokens.
      pooled: (N, D) float32.
    """

    tokens: npt.NDArray[np.float16]
    mask: npt.NDArray[np.bool_]
    pooled: npt.NDArray[np.float32]


def encode_captions(
    encoder: TextEncoder, captions: Sequence[str], *, cache_dir: Path, batch_size: int = 64
) -> EncodedCaptions:
    """Encodes every distinct caption once, or reads the result of an earlier call from the cache.

    One program is compiled, for the longest caption. A cache file that cannot be read is replaced.

    Args:
      encoder: a frozen text encoder.
      captions: N texts, in any order; may repeat.
      cache_dir: folder for the .npz file, named by the SHA-256 of the encoder's digest and the
        distinct captions; created if missing.
      batch_size: captions encoded at a time.

    Returns:
      N rows in the captions' order.

    Raises:
      UserError: no captions, a single text for `captions`, a batch size below 1, features beyond
        float16's range, or a folder that cannot be written to.
    """
    captions = arguments.texts("captions", captions)
    batch_size = arguments.whole("batch_size", batch_size, least=1)
    if not captions:
        raise UserError(
            "got no captions to encode; expected one or more; check the data set's captions"
        )

    distinct = sorted(set(captions))
    path = Path(cache_dir) / f"captions-{_key(encoder, distinct)}.npz"
    encoded = _read(path, (len(distinct), encoder.length, encoder.width))
    if encoded is None:
        encoded = _encode_all(encoder, distinct, batch_size)
        arrays: dict[str, Any] = encoded._asdict()
        atomic_write(path, lambda file: np.savez(file, **arrays))
    if distinct == list(captions):
        return encoded
    row = {caption: i for i, caption in enumerate(distinct)}
    rows = np.array([row[caption] for caption in captions])
    return EncodedCaptions(*(array[rows] for array in encoded))


def _key(encoder: TextEncoder, distinct: list[str]) -> str:
    # ASCII JSON encodes every str, including lone surrogates, and separates the texts.
    return hashlib.sha256(json.dumps([encoder.digest, distinct]).encode()).hexdigest()


def _read(path: Path, shape: tuple[int, int, int]) -> EncodedCaptions | None:
    count, length, width = shape
    expected = {
        "tokens": (np.float16, (count, length, width)),
        "mask": (np.bool_, (count, length)),
        "pooled": (np.float32, (count, width)),
    }
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in expected}
        for name, (dtype, size) in expected.items():
            if arrays[name].dtype != dtype or arrays[name].shape != size:
                raise ValueError(f"{name} is {arrays[name].dtype} {arrays[name].shape}")
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        _logger.warning("encoding captions again: cannot read %s (%s)", path, error)
        return None
    _logger.info("read %d encoded captions from %s", count, path)
    return EncodedCaptions(**arrays)


def _encode_all(encoder: TextEncoder, distinct: list[str], batch_size: int) -> EncodedCaptions:
    start = time.monotonic()
    ids, mask = encoder.tokenise(distinct)
    count = len(distinct)
    used = max(1, int(np.flatnonzero(mask.any(0)).max(initial=0)) + 1)
    size = min(batch_size, count)
    encode = jax.jit(encoder.encode)
    params = jax.device_put(encoder.params)

    tokens = np.zeros((count, encoder.length, encoder.width), np.float16)
    pooled = np.zeros((count, encoder.width), np.float32)
    # Full float32 on every device, since the file may be read on another one.
    with (
        jax.default_matmul_precision("float32"),
        Bar(f"{encoder.name}: encoding captions", count, unit="caption") as bar,
    ):
        for first in range(0, count, size):
            # The last batch is padded with repeats: one shape, one program.
            rows = np.arange(first, first + size) % count
            batch = encode(params, ids[rows, :used], mask[rows, :used])
            end = min(first + size, count)
            with np.errstate(over="ignore"):
                tokens[first:end, :used] = np.asarray(batch.tokens)[: end - first]
            pooled[first:end] = np.asarray(batch.pooled)[: end - first]
            bar(end)
    if not (np.isfinite(tokens).all() and np.isfinite(pooled).all()):
        raise UserError(
            f"{encoder.name} gave NaN or features beyond float16; expected finite ones; check "
            "its weights"
        )
    _logger.info("%s: encoded %d captions in %.1f s", encoder.name, count, time.monotonic() - start)
    return EncodedCaptions(tokens, mask, pooled)
