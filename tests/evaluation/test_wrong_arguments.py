"""What the measures of samples say of wrong arguments: one line that names the argument."""

import numpy as np
import pytest

from diffjax.evaluation.feature_function import embedding_features
from diffjax.evaluation.frechet import FeatureStatistics, frechet_distance
from diffjax.evaluation.precision_recall import precision_recall
from diffjax.evaluation.real_images import drawn_rows
from diffjax.evaluation.reconstruction import codebook_use, similarity
from diffjax.perceptual.feature_network import EmbeddingNetwork
from tests.messages import refuses

FEATURES = np.random.default_rng(0).normal(size=(8, 3))
PIXELS = np.zeros((2, 8, 8, 1), np.uint8)
STATS = FeatureStatistics.empty(3).update(FEATURES)
NOT_ARRAYS = (None, 3, "text", [[1], [2, 3]], FEATURES.astype(object), 1j * FEATURES, [["a"] * 3])
NOT_WHOLE = (None, "2", 1.5, True, [2], np.nan, -1, 0)
NETWORK = EmbeddingNetwork(
    name="mean", digest="0", dimensions=1, params=None, apply=lambda p, x: x.mean((1, 2))
)


def each(function, right, name, values):
    return [(function, right, {name: value}, name) for value in values]


def update(features):
    return FeatureStatistics.empty(3).update(features)


def embed(images):
    return embedding_features(NETWORK, (8, 8, 1)).of_images(images)


NOT_FEATURES = (*NOT_ARRAYS, FEATURES[0], FEATURES[:, :2], np.nan * FEATURES, np.inf * FEATURES)
SETS = dict(real=FEATURES, generated=FEATURES)
PAIR = dict(a=STATS, b=STATS)
CALLS = [
    *each(FeatureStatistics.empty, {}, "dimensions", NOT_WHOLE),
    *[(update, {}, dict(features=value), "feature") for value in NOT_FEATURES],
    *[
        (frechet_distance, PAIR, {side: value}, word)
        for side in ("a", "b")
        for value, word in (
            (None, side), (FEATURES, side), ((8, FEATURES[0], FEATURES), side), ("text", side),
            (FeatureStatistics.empty(2).update(FEATURES[:, :2]), "dimensions"),
            (FeatureStatistics.empty(3), "0 feature vectors"),
            (FeatureStatistics.empty(3).update(FEATURES[:1]), "1 feature vectors"),
            (FeatureStatistics(8, STATS.mean, np.nan * STATS.scatter), "NaN"),
        )
    ],
    *[(STATS.merge, {}, dict(other=value), "other") for value in (None, FEATURES, 3)],
    *each(precision_recall, SETS, "real", (*NOT_FEATURES, FEATURES[:3])),
    *each(precision_recall, SETS, "generated", (*NOT_FEATURES, FEATURES[:3])),
    *each(precision_recall, SETS, "neighbours", (*NOT_WHOLE, 8)),
    *each(embed, {}, "images", (None, 3, "text", PIXELS[0], PIXELS / 255, PIXELS[:, 1:], [PIXELS])),
    *each(similarity, dict(images=PIXELS, reconstructed=PIXELS), "images",
          (None, 3, "text", PIXELS[0], PIXELS / 255, PIXELS[:1], PIXELS[:0])),
    *each(similarity, dict(images=PIXELS, reconstructed=PIXELS), "reconstructed",
          (None, 3, "text", PIXELS[0], PIXELS / 255, PIXELS[:1], PIXELS[:0])),
    *each(codebook_use, dict(indices=np.arange(4), size=8), "indices",
          (None, "text", [0.5], [8], [-1], [])),
    *each(codebook_use, dict(indices=np.arange(4), size=8), "size", NOT_WHOLE),
    *each(drawn_rows, dict(total=4, count=2, draw=0), "count", (*NOT_WHOLE[:-1], 5)),
]  # fmt: skip


@pytest.mark.parametrize(("function", "right", "changes", "word"), CALLS)
def test_a_wrong_argument_is_named(function, right, changes, word):
    call = {**right, **changes}
    positional = [call.pop(name) for name in list(call)[:2] if name not in ("neighbours", "draw")]
    refuses(lambda: function(*positional, **call), word)


def test_lists_and_numpy_scalars_are_as_good():
    lists = FeatureStatistics.empty(np.int64(3)).update(FEATURES.tolist())
    assert frechet_distance(lists, STATS) == pytest.approx(0, abs=1e-12)
    assert precision_recall(FEATURES.tolist(), FEATURES, neighbours=np.int64(2)).precision == 1
