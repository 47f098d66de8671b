"""Decoded sets that are kept: the same arrays, dropped at the least doubt, and never a failure."""

import logging
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets

from diffjax.data import ArraySource, decoded, encoded, fashion_mnist, load
from diffjax.data.batches import batches
from diffjax.files import cache_folder

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
LABELS = np.arange(6, dtype=np.uint8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A TFDS data directory with six Fashion-MNIST images in each split."""
    parts = {"train": (PIXELS, LABELS), "test": (PIXELS[::-1], LABELS[::-1])}
    monkeypatch.setattr(fashion_mnist, "read_all", lambda paths: parts)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    fashion_mnist.prepare(tmp_path / "tfds", {})
    return tmp_path / "tfds"


@pytest.fixture
def decodings(monkeypatch) -> list[str]:
    """Grows by one whenever images are decoded."""
    calls: list[str] = []
    build = encoded.build_source

    def counted(records, **options):
        calls.append(options["name"])
        return build(records, **options)

    monkeypatch.setattr(encoded, "build_source", counted)
    return calls


def by_label(source) -> list[bytes]:
    return [source.images[i].tobytes() for i in np.argsort(source.labels)]


def entries() -> list[Path]:
    return sorted((cache_folder() / "data").iterdir())


def test_the_second_load_decodes_nothing_and_gives_the_same(root, decodings, monkeypatch):
    first = load("fashion_mnist")
    assert by_label(first) == [image.tobytes() for image in PIXELS]
    asked = lambda directory: pytest.fail("TFDS was asked")  # noqa: E731
    monkeypatch.setattr(tensorflow_datasets, "builder_from_directory", asked)
    second = load("fashion_mnist")
    assert decodings == ["fashion_mnist"]
    assert isinstance(second, ArraySource) and not second.images.flags.owndata
    assert (second.images == first.images).all() and (second.labels == first.labels).all()
    assert second.class_names == first.class_names and second.class_names[9] == "Ankle boot"
    one, other = (next(batches(source, batch_size=4, seed=1)) for source in (first, second))
    assert (one["image"] == other["image"]).all() and (one["label"] == other["label"]).all()


def test_splits_and_decodings_are_kept_apart(root, decodings):
    load("fashion_mnist")
    assert load("fashion_mnist", split="test").images.shape == (6, 28, 28, 1)
    assert load("fashion_mnist", split="train[:2]").images.shape == (2, 28, 28, 1)
    assert load("fashion_mnist", image_size=8).images.shape == (6, 8, 8, 1)
    assert load("fashion_mnist", channels=3).images.shape == (6, 28, 28, 3)
    assert len(decodings) == 5


def test_changed_files_are_decoded_anew(root, decodings):
    load("fashion_mnist")
    path = next(root.rglob("*train*"))
    os.utime(path, ns=(0, 0))
    load("fashion_mnist")
    assert len(decodings) == 2


def test_a_limit_below_the_set_streams_it_as_ever(root):
    load("fashion_mnist")
    assert not isinstance(load("fashion_mnist", memory_limit_mb=0), ArraySource)


@pytest.mark.parametrize("name", ["images.npy", "labels.npz"])
@pytest.mark.parametrize("size", [0, 50, -1])
def test_torn_files_are_not_trusted(root, decodings, name, size):
    load("fashion_mnist")
    [folder] = entries()
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:size])
    again = load("fashion_mnist")
    assert len(decodings) == 2
    assert by_label(again) == [image.tobytes() for image in PIXELS]
    assert (folder / name).read_bytes()[:64] == data[:64]  # mended
    load("fashion_mnist")
    assert len(decodings) == 2


def test_what_can_not_be_kept_is_no_error(root, decodings, tmp_path, caplog, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "cache"))  # nor in the second place
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert by_label(load("fashion_mnist")) == [image.tobytes() for image in PIXELS]
    assert len(decodings) == 2 and not caplog.records


def test_the_sets_unused_for_longest_are_dropped(monkeypatch):
    source = ArraySource(np.zeros((3, 512, 1024, 1), np.uint8))  # 1.5 MiB
    monkeypatch.setattr(decoded, "LIMIT_MB", 4)
    for i, key in enumerate("ab"):
        decoded.keep(key, source)
        os.utime(cache_folder() / "data" / key, (i, i))
    assert decoded.find("a", name="used", memory_limit_mb=2) is not None
    mapped = decoded.find("b", name="mapped", memory_limit_mb=2)
    os.utime(cache_folder() / "data" / "b", (0, 0))
    decoded.keep("c", source)
    assert [folder.name for folder in entries()] == ["a", "c"]
    assert mapped is not None and not mapped.images.any()
    decoded.keep("d", ArraySource(np.zeros((9, 512, 1024, 1), np.uint8)))
    assert [folder.name for folder in entries()] == ["a", "c"]
