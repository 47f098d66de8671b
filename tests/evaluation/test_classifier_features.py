"""The shipped weights, the recipe, and the file format."""

import dataclasses
import gzip
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import data
from diffjax.data.fashion_mnist import DEBIAN_DIR
from diffjax.errors import UserError
from diffjax.evaluation import classifier_features
from diffjax.evaluation.classifier_features import (
    SHIPPED_WEIGHTS,
    Recipe,
    classifier_for,
    main,
    train_classifier,
)
from diffjax.evaluation.feature_function import accuracy, make_feature_function
from diffjax.evaluation.frechet import FeatureStatistics, frechet_distance
from diffjax.evaluation.labelled_images import fingerprint, read_in_order
from diffjax.models.classifier import Classifier, _space_to_depth
from diffjax.perceptual.classifier_weights import load_classifier, round_weights, save_classifier

SHORT = Recipe(steps=40, batch_size=64, seed=3)


def quiet(line):
    pass


class Images:
    """A labelled set in memory."""

    def __init__(self, images, labels, class_names, name="made up"):
        self.images, self.labels = images, np.asarray(labels, np.int32)
        self.class_names, self.name = tuple(class_names), name
        self.image_shape = images.shape[1:]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return {"image": self.images[i], "label": self.labels[i]}


class Streamed:
    """The same set, one example at a time."""

    def __init__(self, source):
        self._source = source
        self.class_names, self.name = source.class_names, source.name
        self.image_shape = source.image_shape

    def __len__(self):
        return len(self._source)

    def __getitem__(self, i):
        return self._source[i]


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", split="train"), data.load("digits", split="test")


@pytest.fixture(scope="module")
def trained(digits):
    return train_classifier(*digits, recipe=SHORT, log=quiet)


@pytest.fixture(scope="module")
def fashion_test():
    names = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
    if not all((DEBIAN_DIR / name).exists() for name in names):
        pytest.skip(
            f"no Fashion-MNIST in {DEBIAN_DIR}: the shipped weights' accuracy goes UNCHECKED; "
            "apt-get install dataset-fashion-mnist"
        )
    images, labels = (
        np.frombuffer(gzip.decompress((DEBIAN_DIR / name).read_bytes()), np.uint8) for name in names
    )
    return Images(images[16:].reshape(-1, 28, 28, 1), labels[8:], [str(i) for i in range(10)])


def test_shipped_weights_are_as_accurate_as_they_say(fashion_test):
    shipped = load_classifier(SHIPPED_WEIGHTS)
    some = Images(fashion_test.images[:2000], fashion_test.labels[:2000], shipped.class_names)
    # Two standard errors of a share of 2,000.
    error = 2 * np.sqrt(shipped.accuracy * (1 - shipped.accuracy) / 2000)
    assert shipped.accuracy > 0.92
    assert accuracy(shipped, some) == pytest.approx(shipped.accuracy, abs=error)


def test_noise_is_much_farther_from_real_images_than_other_real_images_are(fashion_test):
    features = make_feature_function(load_classifier(SHIPPED_WEIGHTS))
    pixels = fashion_test.images[:4000]
    noise = np.random.default_rng(0).integers(0, 256, (2000, 28, 28, 1)).astype(np.uint8)
    # Slight noise has to show as well, or the measure would only tell pictures from snow.
    grainy = np.clip(
        pixels[2000:] + np.random.default_rng(1).normal(0, 12, pixels[2000:].shape), 0, 255
    )
    sets = (pixels[:2000], pixels[2000:], grainy.astype(np.uint8), noise)
    real, other, grainy_stats, snow = (
        FeatureStatistics.empty(128).update(features(images)[0]) for images in sets
    )
    assert frechet_distance(real, snow) > 100 * frechet_distance(real, other)
    assert frechet_distance(real, grainy_stats) > 3 * frechet_distance(real, other)


def test_shipped_file_is_small_plain_and_says_where_it_is_from():
    assert SHIPPED_WEIGHTS.stat().st_size < 600_000
    shipped = load_classifier(SHIPPED_WEIGHTS)
    assert shipped.data == "fashion_mnist"
    assert shipped.recipe_version == classifier_features.RECIPE_VERSION
    assert (shipped.accuracy_split, shipped.steps) == ("test", Recipe().steps)
    assert len(shipped.class_names) == 10
    assert 150_000 < sum(array.size for array in shipped.weights.values()) < 250_000


def test_a_few_steps_beat_none_by_far_and_chance_by_farther(digits, trained):
    first = classifier_features.first_state(10, SHORT, (8, 8, 1))[0]
    untrained = dataclasses.replace(trained, weights=round_weights(first))
    assert trained.accuracy > 0.6
    assert trained.accuracy > accuracy(untrained, digits[1]) + 0.3
    assert trained.accuracy == accuracy(trained, digits[1])


def test_training_depends_on_the_seed_and_on_nothing_else(digits, trained):
    again = train_classifier(*digits, recipe=SHORT, log=quiet)
    assert again.weights_digest == trained.weights_digest
    streamed = train_classifier(Streamed(digits[0]), None, recipe=SHORT, log=quiet)
    assert streamed.weights_digest == trained.weights_digest
    assert streamed.accuracy_split == "train"
    kernels = [
        classifier_features.first_state(10, recipe, (8, 8, 1))[0]["params"]["logits"]["kernel"]
        for recipe in (SHORT, dataclasses.replace(SHORT, seed=4))
    ]
    assert not np.array_equal(*kernels)
    orders = [
        next(iter(classifier_features.example_order(100, recipe)))
        for recipe in (SHORT, dataclasses.replace(SHORT, seed=4))
    ]
    assert not np.array_equal(*orders)


def test_every_image_is_seen_once_a_pass():
    recipe = Recipe(steps=7, batch_size=30)
    seen = np.concatenate(list(classifier_features.example_order(70, recipe)))
    assert len(seen) == 210
    for start in (0, 70, 140):
        assert sorted(seen[start : start + 70]) == list(range(70))
    assert not np.array_equal(seen[:70], seen[70:140])


def test_weights_survive_the_file_bit_for_bit(tmp_path, trained, digits):
    save_classifier(tmp_path / "weights.npz", trained)
    loaded = load_classifier(tmp_path / "weights.npz")
    assert loaded.weights_digest == trained.weights_digest
    for name in ("data", "class_names", "image_shape", "accuracy", "seed", "data_fingerprint"):
        assert getattr(loaded, name) == getattr(trained, name)
    images = digits[1].images[:50]
    for before, after in zip(
        make_feature_function(trained)(images), make_feature_function(loaded)(images), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_features_do_not_depend_on_how_images_are_batched(trained, digits):
    features_and_classes = make_feature_function(trained)
    images = digits[0].images[:1100]
    features, classes = features_and_classes(images)
    assert features.shape == (1100, 128) and features.dtype == np.float32
    assert classes.shape == (1100,) and classes.dtype == np.int32
    np.testing.assert_allclose(
        features_and_classes(images[497:503])[0], features[497:503], rtol=1e-5
    )


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 1)), np.zeros((0, 8, 8, 1), np.uint8)],
)
def test_other_images_are_refused(trained, images):
    with pytest.raises(UserError, match="expected"):
        make_feature_function(trained)(images)


def corrupt(path, *, drop=None, change=None):
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    if drop:
        del arrays[drop]
    arrays.update(change or {})
    np.savez(path, **arrays)


def test_damaged_and_foreign_files_are_one_line_errors(tmp_path, trained):
    path = tmp_path / "weights.npz"
    with pytest.raises(UserError, match="found no classifier weights"):
        load_classifier(path)
    save_classifier(path, trained)
    whole = path.read_bytes()
    kernel = "params/features/kernel"
    damages = [
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(whole[: len(whole) // 2]),
        lambda: path.write_bytes(b"not a zip file at all"),
        lambda: corrupt(path, drop="metadata"),
        lambda: corrupt(path, drop=kernel),
        lambda: corrupt(path, change={kernel: np.zeros((3, 3), np.float16)}),
        lambda: corrupt(path, change={"metadata": np.array('{"data": 1}')}),
        lambda: corrupt(path, change={kernel: np.array([object()])}),
    ]
    for damage in damages:
        path.write_bytes(whole)
        damage()
        with pytest.raises(UserError, match=r"weights\.npz") as caught:
            load_classifier(path)
        assert "\n" not in str(caught.value)


def test_weights_that_float16_cannot_hold_are_refused():
    for value in (np.nan, 1e6):
        with pytest.raises(UserError, match="params/kernel"):
            round_weights({"params": {"kernel": np.array([0.0, value], np.float32)}})


def test_fingerprint_is_of_the_content_not_of_the_order():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (600, 8, 8, 1)).astype(np.uint8), rng.integers(0, 2, 600)
    order = rng.permutation(600)
    whole = fingerprint(Images(images, labels, "ab"))
    assert fingerprint(Images(images[order], labels[order], "ab", name="other")) == whole
    changed = images.copy()
    changed[77, 3, 3, 0] ^= 1
    relabelled = labels.copy()
    relabelled[77] ^= 1
    assert fingerprint(Images(changed, labels, "ab")) != whole
    assert fingerprint(Images(images, relabelled, "ab")) != whole
    assert fingerprint(Images(images[1:], labels[1:], "ab")) != whole


def test_classifier_is_trained_once_and_again_only_for_other_data(tmp_path, monkeypatch, digits):
    monkeypatch.setattr(classifier_features, "Recipe", lambda: SHORT)
    lines = []

    def get(source):
        lines.clear()
        return classifier_for(
            source, load_test=lambda: None, cache_dir=tmp_path / "cache", log=lines.append
        )

    first = get(digits[0])
    assert any("training on" in line for line in lines)
    assert get(digits[0]).weights_digest == first.weights_digest
    assert not any("training on" in line for line in lines)
    fewer = Images(digits[0].images[:-1], digits[0].labels[:-1], digits[0].class_names)
    get(fewer)
    assert any("training on" in line for line in lines)
    assert len(os.listdir(tmp_path / "cache")) == 2


def test_sets_without_labels_are_refused(tmp_path):
    pixels = np.zeros((4, 8, 8, 1), np.uint8)
    unlabelled = Images(pixels, [-1] * 4, ())
    with pytest.raises(UserError, match="labelled set"):
        train_classifier(unlabelled, None, recipe=SHORT, log=quiet)
    with pytest.raises(UserError, match="labelled set"):
        classifier_for(unlabelled, load_test=lambda: None, cache_dir=tmp_path, log=quiet)
    with pytest.raises(UserError, match="labels from -1"):
        train_classifier(Images(pixels, [0, 1, -1, 0], "ab"), None, recipe=SHORT, log=quiet)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 0}, {"seed": -1}])
def test_recipes_out_of_range_are_refused(digits, wrong):
    with pytest.raises(UserError, match="expected steps >= 1"):
        train_classifier(*digits, recipe=Recipe(**wrong), log=quiet)


def test_command_line_writes_the_file_and_says_errors_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        classifier_features, "Recipe", lambda seed: dataclasses.replace(SHORT, seed=seed)
    )
    out = tmp_path / "w.npz"
    assert main(["--data=digits", f"--out={out}", "--seed=3"]) == 0
    assert load_classifier(out).seed == 3
    capsys.readouterr()
    assert main(["--data=no_such_set", f"--out={out}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 13, 3), (28, 28, 1), (33, 16, 4)])
def test_network_takes_any_size_from_8_up(shape):
    model = Classifier(num_classes=7)
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    (logits, features), variables = jax.eval_shape(
        lambda key, x: model.init_with_output(key, x, train=False), jax.random.key(0), images
    )
    assert logits.shape == (2, 7) and features.shape == (2, 128)
    assert set(variables) == {"params", "batch_stats"}


@pytest.mark.parametrize("shape", [(2, 7, 8, 1), (8, 8, 1)])
def test_network_refuses_smaller_images(shape):
    with pytest.raises(UserError, match="H, W >= 8"):
        Classifier(num_classes=2).init(jax.random.key(0), jnp.zeros(shape), train=False)


def test_space_to_depth_keeps_every_pixel_of_an_odd_side():
    image = np.arange(1, 16, dtype=np.float32).reshape(1, 3, 5, 1)
    blocks = np.asarray(_space_to_depth(jnp.asarray(image)))
    assert blocks.shape == (1, 2, 3, 4)
    np.testing.assert_array_equal(blocks[0, 0, 0], [1, 2, 6, 7])
    np.testing.assert_array_equal(blocks[0, 1, 2], [15, 15, 15, 15])
    assert set(blocks.ravel()) == set(image.ravel())


def test_reading_in_order_gives_every_example_once(digits):
    for source in (digits[1], Streamed(digits[1])):
        batches = list(read_in_order(source, 100))
        np.testing.assert_array_equal(np.concatenate([b[0] for b in batches]), digits[1].images)
        np.testing.assert_array_equal(np.concatenate([b[1] for b in batches]), digits[1].labels)
