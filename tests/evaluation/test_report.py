"""The report: who is compared with whom, and what is refused."""

import json
import threading

import numpy as np
import pytest

from diffjax.data.sources import ArraySource
from diffjax.errors import UserError
from diffjax.evaluation import classifier_features
from diffjax.evaluation import report as report_module
from diffjax.evaluation.classifier_features import Recipe
from diffjax.evaluation.report import evaluate

SHAPE = (8, 8, 1)


def bars(count, seed):
    """Two classes: a bright bar across, or down, with some grain; sorted by class."""
    rng = np.random.default_rng(seed)
    labels = np.sort(np.arange(count) % 2)
    images = rng.normal(40, 15, (count, 8, 8))
    for i, label in enumerate(labels):
        place = rng.integers(1, 7)
        images[(i, place) if label == 0 else (i, slice(None), place)] += 170
    return ArraySource(
        np.clip(images, 0, 255).astype(np.uint8)[..., None],
        labels,
        name="bars",
        class_names=("across", "down"),
    )


SETS = {"train": bars(1200, 0), "test": bars(300, 1)}
SPLITS = {}  # of one test


@pytest.fixture
def bars_set(monkeypatch):
    """The splits, and a recipe short enough for a test."""
    SPLITS.clear()
    SPLITS.update(SETS)
    monkeypatch.setattr(classifier_features, "Recipe", lambda: Recipe(steps=60, batch_size=32))
    return SPLITS


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def from_source(source):
    return lambda start, count: source.images[start : start + count]


def report(generate, cache_dir, **options):
    lines = []
    result = evaluate(
        generate, train=SPLITS["train"], load_test=lambda: SPLITS.get("test"), cache_dir=cache_dir,
        log=lines.append, **options,
    )  # fmt: skip
    return result, lines


def test_unseen_real_images_are_near_the_floor_and_noise_is_far(bars_set, shared_cache):
    unseen = bars(300, 2)
    result, _ = report(from_source(unseen), shared_cache, num_samples=300, batch_size=64)
    noise = np.random.default_rng(3).integers(0, 256, (300, *SHAPE)).astype(np.uint8)
    far, _ = report(
        lambda start, count: noise[start : start + count], shared_cache, num_samples=300
    )
    assert result["classifier_frechet_distance"] < 3 * result["floor_train_test"]
    assert far["classifier_frechet_distance"] > 10 * result["classifier_frechet_distance"]
    assert result["floor_train_test_images"] == result["floor_equal_count_images"] == 300
    assert result["floor_equal_count"] == result["floor_train_test"]
    assert result["classifier_accuracy"] > 0.9 and result["classifier_accuracy_split"] == "test"
    assert result["features"] == "classifier"
    assert result["frechet_distance"] == result["classifier_frechet_distance"]
    assert result["precision"] > 0.7 and result["recall"] > 0.7
    assert far["precision"] < 0.2
    assert json.loads(json.dumps(result)) == result


def test_the_whole_training_set_is_at_no_distance(bars_set, shared_cache):
    result, _ = report(from_source(SETS["train"]), shared_cache, num_samples=1200)
    assert result["classifier_frechet_distance"] == pytest.approx(0, abs=1e-6)


def test_predicted_classes_are_counted(bars_set, shared_cache):
    across = SETS["train"].images[SETS["train"].labels == 0]
    result, _ = report(lambda s, n: across[s : s + n], shared_cache, num_samples=200)
    assert sum(result["class_counts"].values()) == 200
    assert result["class_counts"]["across"] > 180


def test_samples_are_asked_for_once_each_in_order(bars_set, shared_cache):
    asked = []

    def generate(start, count):
        asked.append((start, count))
        return SETS["test"].images[start : start + count]

    whole, _ = report(generate, shared_cache, num_samples=250, batch_size=100)
    assert asked == [(0, 100), (100, 100), (200, 50)]
    parts, _ = report(generate, shared_cache, num_samples=250, batch_size=7)
    assert parts["classifier_frechet_distance"] == pytest.approx(
        whole["classifier_frechet_distance"], rel=1e-4
    )


def test_sampling_is_one_batch_ahead_and_no_more(bars_set, shared_cache, monkeypatch):
    """The first features are asked for only when the second batch is being made."""
    asked, second_begun, ahead = [], threading.Event(), []
    make = report_module.make_feature_function

    def make_watching(classifier):
        features = make(classifier)

        def watching(images):
            if len(images) == 50:  # a batch of samples; real images come by the hundred
                assert second_begun.wait(timeout=60)
                ahead.append(len(asked) - len(ahead))
            return features(images)

        return watching

    def generate(start, count):
        asked.append(start)
        if len(asked) == 2:
            second_begun.set()
        return SETS["test"].images[start : start + count]

    monkeypatch.setattr(report_module, "make_feature_function", make_watching)
    report(generate, shared_cache, num_samples=200, batch_size=50)
    assert asked == [0, 50, 100, 150]
    assert len(ahead) == 4 and max(ahead) <= 2


def test_what_generate_raises_is_raised(bars_set, shared_cache):
    def generate(start, count):
        if start:
            raise UserError("no second batch")
        return SETS["test"].images[start : start + count]

    with pytest.raises(UserError, match="no second batch"):
        report(generate, shared_cache, num_samples=100, batch_size=50)


def test_floor_for_fewer_samples_is_higher_and_draws_from_all_classes(bars_set, shared_cache):
    result, lines = report(from_source(SETS["train"]), shared_cache, num_samples=150)
    low, high = result["floor_equal_count_range"]
    assert result["floor_equal_count_images"] == 150
    assert low < result["floor_equal_count"] < high
    assert result["floor_train_test"] < result["floor_equal_count"]
    # The first 150 test images are all of one class, which would be far off.
    one_class, _ = report(from_source(SETS["test"]), shared_cache, num_samples=150)
    assert high < one_class["classifier_frechet_distance"] / 5
    assert any("150 test images" in line for line in lines)


def test_more_samples_than_test_images_is_said(bars_set, shared_cache):
    result, lines = report(from_source(SETS["train"]), shared_cache, num_samples=600)
    assert result["floor_equal_count_images"] == 300
    assert any("from 300 test images only" in line for line in lines)


def test_without_a_test_split_there_is_no_floor_and_the_log_says_why(bars_set, tmp_path):
    del bars_set["test"]
    result, lines = report(from_source(SETS["train"]), tmp_path, num_samples=100)
    assert result["floor_train_test"] is None and result["floor_equal_count"] is None
    assert result["floor_equal_count_range"] is None
    assert result["floor_train_test_images"] == result["floor_equal_count_images"] == 0
    assert result["classifier_accuracy_split"] == "train"
    assert any("no test split" in line and "floor" in line for line in lines)
    assert json.loads(json.dumps(result)) == result


def test_statistics_are_kept_and_a_damaged_file_is_made_again(bars_set, tmp_path):
    generate = from_source(SETS["test"])
    first, lines = report(generate, tmp_path, num_samples=300)
    kept = sorted(tmp_path.glob("statistics-*.npz"))
    assert len(kept) == 2 and not any("statistics from" in line for line in lines)
    second, lines = report(generate, tmp_path, num_samples=300)
    assert second == first and sum("statistics from" in line for line in lines) == 2
    kept[0].write_bytes(kept[0].read_bytes()[:500])
    kept[1].write_bytes(b"")
    third, lines = report(generate, tmp_path, num_samples=300)
    assert third == first and sum("cannot use" in line for line in lines) == 2


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros((10, 9, 9, 1), np.uint8),
        np.zeros((10, 8, 8, 3), np.uint8),
        np.zeros((9, *SHAPE), np.uint8),
        np.zeros((10, *SHAPE), np.float32),
        np.zeros((10, 8, 8), np.uint8),
    ],
)
def test_samples_unlike_the_data_are_refused(bars_set, shared_cache, samples):
    with pytest.raises(UserError, match=r"expected uint8 \(10, 8, 8, 1\)"):
        report(lambda start, count: samples, shared_cache, num_samples=10)


@pytest.mark.parametrize("wrong", [{"num_samples": 1}, {"batch_size": 0}])
def test_numbers_out_of_range_are_refused(bars_set, shared_cache, wrong):
    with pytest.raises(UserError, match="num_samples >= 2"):
        report(from_source(SETS["test"]), shared_cache, **wrong)


def test_sets_without_labels_are_refused(bars_set, tmp_path):
    bars_set["train"] = ArraySource(SETS["train"].images, None, name="folder", class_names=())
    with pytest.raises(UserError, match="labelled set"):
        report(from_source(SETS["test"]), tmp_path, num_samples=10)
