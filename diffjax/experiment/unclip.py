"""`config.sample.prior`: the prior that draws a decoder's image embeddings from prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffjax.conditioning.conditions import Conditions
from diffjax.errors import UserError
from diffjax.inference.sample_conditions import Embed
from diffjax.inference.unclip import Prior


def embed_of(config: Any, conditions: Conditions) -> Embed | None:
    """The prior of a decoder's config as (texts, first number, seed) -> embeddings; None for none.

    Args:
      config: of the decoder.
      conditions: of the decoder.

    Raises:
      UserError: a model without image embeddings, no such run, or a prior of other embeddings.
    """
    text, candidates = config.sample.prior, config.sample.candidates
    if not text:
        return None
    what = f"config.sample.prior = {text!r}"
    if conditions.embedding is None:
        raise UserError(
            f"{what} but the model is given no image embedding: leave it empty, or train with "
            "config.condition.embedding"
        )
    from diffjax.experiment.load import load

    folder, _, checkpoint = text.partition("@")
    try:
        prior = Prior(load(folder, checkpoint=checkpoint or "latest"), what="it")
        prior.check(conditions.embedding.fitted)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error

    def embed(captions: Sequence[str], start: int, seed: int) -> np.ndarray:
        return prior(captions, candidates=candidates, start=start, seed=seed)

    return embed
