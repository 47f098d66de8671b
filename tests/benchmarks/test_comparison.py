"""The comparison's measures, on sets whose answer is known, and its page."""

import json

import numpy as np
import pytest

from benchmarks.comparison import measures, models, page, runs
from diffjax.errors import UserError

RNG = np.random.default_rng(0)


def test_nearest_is_a_brute_force_search_s():
    queries = RNG.integers(0, 256, (7, 4, 5, 1)).astype(np.uint8)
    references = RNG.integers(0, 256, (600, 4, 5, 1)).astype(np.uint8)
    references[300] = queries[2]
    found = measures.nearest(queries, references)
    distances = [[np.linalg.norm(q.astype(float) - r) for r in references] for q in queries]
    np.testing.assert_array_equal(found.indices, np.argmin(distances, axis=1))
    np.testing.assert_allclose(found.distance, np.min(distances, axis=1))
    assert found.indices[2] == 300 and found.distance[2] == 0.0


def test_copies_are_told_from_new_samples():
    train, held_out = RNG.normal(size=(2000, 6)), RNG.normal(size=(1000, 6))
    new = RNG.normal(size=(1000, 6))
    half = np.concatenate([new[:500], train[:500] + 1e-3])
    distance = {
        name: measures.nearest(some, train).distance
        for name, some in (("held out", held_out), ("new", new), ("half", half))
    }
    # 1 % are expected; five standard errors of 1,000 draws, and of the quantile itself.
    assert measures.copied_share(distance["new"], distance["held out"]) < 0.03
    assert 0.5 <= measures.copied_share(distance["half"], distance["held out"]) < 0.53


def test_a_collapsed_model_has_few_neighbours():
    train = RNG.normal(size=(500, 3))
    modes = train[RNG.integers(0, 4, 200)] + 1e-4
    assert measures.distinct_share(measures.nearest(modes, train).indices) == 4 / 200
    whole = measures.nearest(train[:200], train).indices
    assert measures.distinct_share(whole) == 1.0


def planned(flops):
    class Plan:
        batch_size, parameters = 32, 1000

    Plan.flops = flops
    return lambda config: Plan


def test_a_budget_is_split_among_the_parts(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "plan", planned(1e9))
    stage, latents = (
        models.training(part, tmp_path, budget=1e12, seed=3)
        for part in models.MODELS["latents"].parts
    )
    assert (stage.steps, latents.steps) == (600, 400)
    assert stage.images == 600 * 32
    assert "--config.loss.adversarial_start=200" in stage.arguments
    assert f"--config.first_stage.workdir={tmp_path}/autoencoder" in latents.arguments
    assert {"--config.seed=3", "--config.train.steps=400"} < set(latents.arguments)


def result(distance, *, bits=None):
    return {
        "settings": {"budget": 8e13, "samples": 2000}, "frechet_distance": distance,
        "precision": 0.7, "recall": 0.6, "agreement": 0.9, "least_class_share": 0.95,
        "classifier_accuracy": 0.9255, "distinct_neighbours": 0.9,
        "test_distinct_neighbours": 0.97, "copied_share": 0.012, "bits_per_dim": bits,
        "parameters": 2.1e6, "images": 115_200, "training_seconds": 360.0,
        "seconds_per_image": 0.025, "floor_equal_count": 0.21,
        "floor_equal_count_range": [0.145, 0.38], "test_precision": 0.8, "test_recall": 0.81,
    }  # fmt: skip


def test_the_page_has_medians_ranges_and_gaps(tmp_path):
    results = {
        "one": [result(3.0, bits=2.9), result(1.0, bits=2.7), result(2.0, bits=2.8)],
        "two": [result(9.0)],
    }
    results["one"][0]["training_seconds"] = results["one"][2]["training_seconds"] = 900.0
    pictures = {
        name: dict.fromkeys(("images", "neighbours"), np.zeros((12, 28, 28, 1), np.uint8))
        for name in results
    }
    written = page.write(results, pictures, tmp_path / "docs")
    assert all(path.exists() for path in written)
    text = written[0].read_text()
    assert "| one | 2 (1 to 3) | 0.70 | 0.60 | 90% | 0.95 | 0.90 | 1.2% | 2.80 |" in text
    assert "| two | 9 | 0.70 | 0.60 | 90% | 0.95 | 0.90 | 1.2% | - |" in text
    assert "| one | 2.10 M | 115,200 | 6 min | 25 ms an image |" in text
    assert "0.21 (0.145 to 0.38 in ten draws)" in text and "8e+13 FLOPs" in text


def test_results_are_read_again_or_refused(monkeypatch, tmp_path):
    model = models.MODELS["pixels"]
    settings = runs.Settings(budget=1e9, samples=10)
    about = {**settings._asdict(), "more": [], "seed": 0}
    stored = {"settings": about, "frechet_distance": 1.5}
    (tmp_path / "pixels.json").write_text(json.dumps(stored))
    monkeypatch.setattr(runs, "train", None)  # not called
    assert runs.finished(model, tmp_path, settings, seed=0) == stored
    with pytest.raises(UserError, match="other settings: give another --workdir"):
        runs.finished(model, tmp_path, settings._replace(samples=20), seed=0)
