"""The report in an embedding network's features, for sets with and without labels.

The network's two features are the means of an image's halves; their distance is known by hand.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.data.sources import ArraySource
from diffjax.errors import UserError
from diffjax.evaluation.report import evaluate
from diffjax.perceptual import EmbeddingNetwork


def halves(params, images):
    left, right = jnp.split(images, 2, axis=2)
    return params * jnp.stack([left.mean((1, 2, 3)), right.mean((1, 2, 3))], axis=-1)


NETWORK = EmbeddingNetwork("halves", jnp.float32(2.0), halves, 2, "0" * 64)
CLASSES = {"none": (), "one": ("all",), "two": ("odd", "even")}


def images(count, seed, shape=(4, 6, 3)):
    rng = np.random.default_rng(seed)
    base = rng.normal(100, 20, (count, 1, 1, 1))
    return np.clip(rng.normal(base, 10, (count, *shape)), 0, 200).astype(np.uint8)


def source(pixels, classes="none"):
    names = CLASSES[classes]
    labels = np.arange(len(pixels)) % len(names) if names else None
    return ArraySource(pixels, labels, name="own", class_names=names)


def report(samples, train, test, cache, **options):
    lines = []
    found = evaluate(
        lambda start, count: samples[start : start + count], train=train, load_test=lambda: test,
        cache_dir=cache, network=NETWORK, num_samples=len(samples), log=lines.append, **options,
    )  # fmt: skip
    return found, lines


@pytest.mark.parametrize("classes", CLASSES)
def test_brighter_images_are_at_the_distance_of_their_shift(tmp_path, classes):
    """With equal covariances it is the squared shift of the mean: each feature by 2 x 51/127.5."""
    pixels = images(60, 0)
    found, lines = report(pixels + np.uint8(51), source(pixels, classes), None, tmp_path)
    assert found["frechet_distance"] == pytest.approx(2 * (2 * 0.4) ** 2, rel=1e-4)
    assert found["features"] == "halves" and found["features_dimensions"] == 2
    assert found["features_weights"] == NETWORK.digest
    assert "class_counts" not in found and "classifier_frechet_distance" not in found
    assert json.loads(json.dumps(found)) == found
    assert any("halves" in line for line in lines)


def test_the_floors_are_of_test_images_and_of_halves_without_them(tmp_path):
    train, test = source(images(600, 1)), source(images(90, 2))
    found, _ = report(images(50, 3), train, test, tmp_path)
    low, high = found["floor_equal_count_range"]
    assert low <= found["floor_equal_count"] <= high
    assert found["floor_train_test_images"] == 90 and found["floor_equal_count_images"] == 50
    # The same distribution: the samples' distance is one more such draw.
    assert low / 5 < found["frechet_distance"] < 5 * high
    assert found["floor_halves"] is None and found["floor_halves_images"] == 0
    assert found["notes"] == []

    alone, lines = report(images(50, 3), train, None, tmp_path)
    assert alone["frechet_distance"] == found["frechet_distance"]
    assert alone["floor_train_test"] is None and alone["floor_equal_count"] is None
    assert alone["floor_halves_images"] == 25 and 0 < alone["floor_halves"] < 20 * high
    assert any("no test split" in line for line in lines)


def test_precision_and_recall_of_samples_and_of_test_images(tmp_path):
    train, test = source(images(300, 4)), source(images(300, 5))
    same, _ = report(images(300, 6), train, test, tmp_path)
    assert same["precision_recall_images"] == same["test_precision_recall_images"] == 300
    for name in ("precision", "recall"):
        assert same[name] == pytest.approx(same[f"test_{name}"], abs=0.1)
        assert 0.8 < same[name] <= 1
    # One kind of image only: nothing is implausible, and most is missing.
    one, _ = report(np.repeat(images(300, 4)[:1], 300, axis=0), train, test, tmp_path)
    assert one["precision"] == 1 and one["recall"] < 0.05
    far, _ = report(225 + images(300, 6) // 10, train, test, tmp_path)
    assert far["precision"] == 0


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_few_images(tmp_path, count):
    found, lines = report(
        images(count, 7), source(images(count, 8)), source(images(1, 9)), tmp_path
    )
    assert np.isfinite(found["frechet_distance"])
    assert found["floor_train_test"] is None and found["floor_train_test_images"] == 1
    assert (found["precision"] is None) == (count <= 3)
    if count == 2:
        assert any("singular" in note for note in found["notes"])
    if count <= 3:
        assert any("precision and recall: none" in line for line in lines)


def test_what_is_cached_is_found_again_and_a_broken_file_made_again(tmp_path):
    train, test = source(images(80, 10)), source(images(70, 11))
    first, _ = report(images(40, 12), train, test, tmp_path)
    files = sorted(tmp_path.glob("*.npz"))
    assert len(files) == 4  # statistics and drawn features of both splits
    for file in files:
        file.write_bytes(file.read_bytes()[:200])
    again, lines = report(images(40, 12), train, test, tmp_path)
    assert again == first and sum("cannot use" in line for line in lines) == 4


def test_other_weights_do_not_share_the_cache(tmp_path):
    pixels = images(40, 13)
    first, _ = report(pixels, source(images(40, 14)), None, tmp_path)
    other = NETWORK._replace(params=jnp.float32(4.0), digest="1" * 64)
    found = evaluate(
        lambda start, count: pixels[start : start + count], train=source(images(40, 14)),
        load_test=lambda: None, cache_dir=tmp_path, network=other, num_samples=40,
        log=lambda line: None,
    )  # fmt: skip
    assert found["frechet_distance"] == pytest.approx(4 * first["frechet_distance"], rel=1e-4)


def test_networks_that_do_not_fit_are_refused(tmp_path):
    def run(network, pixels):
        return evaluate(
            lambda start, count: pixels[start : start + count], train=source(pixels),
            load_test=lambda: None, cache_dir=tmp_path, network=network, num_samples=len(pixels),
        )  # fmt: skip

    with pytest.raises(UserError, match=r"returned \(1, 2\).*expected \(1, 3\)"):
        run(NETWORK._replace(dimensions=3), images(5, 15))
    with pytest.raises(UserError, match="features halves: "):
        run(NETWORK, images(5, 15, shape=(4, 5, 3)))
    with pytest.raises(UserError, match="got 1 images in own; expected 2"):
        evaluate(
            lambda start, count: images(2, 16), train=source(images(1, 15)),
            load_test=lambda: None, cache_dir=tmp_path, network=NETWORK, num_samples=2,
        )  # fmt: skip
