"""Sets that TFDS has prepared, here by a tiny builder of the test's own, without TensorFlow."""

import io
import json
import logging
import socket
import struct
import sys
import urllib.request
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from diffjax.data import ArraySource, StreamedSource, batches, has_split, load, tfds_sets
from diffjax.errors import UserError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


class TinyShapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Twenty images; the label is the image's number modulo three."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURES: ClassVar = {
        "image": tfds.features.Image(shape=(6, 5, 3)),
        "label": tfds.features.ClassLabel(names=["disc", "square", "star"]),
    }

    def _info(self):
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(self.FEATURES))

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(range(14)),
            "test": self._generate_examples(range(14, 20)),
        }

    def _generate_examples(self, numbers):
        for i in numbers:
            example = {"image": png(PIXELS[i]), "label": i % 3}
            yield i, {key: example.get(key, 0) for key in self.FEATURES}


def prepare(root: Path, builder=TinyShapes) -> Path:
    with tfds_sets.quiet():
        made = builder(data_dir=str(root), file_format="array_record")
        made.download_and_prepare()
    return Path(made.data_dir)


def as_tfrecords(directory: Path) -> None:
    """Rewrites a prepared set as TFDS with TensorFlow would have written it by default."""
    builder = tfds.builder_from_directory(str(directory))
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    for split in ("train", "test"):
        records = list(builder.as_data_source(split, deserialize_method=raw))
        data = b"".join(
            struct.pack("<QI", len(record), 0) + record + struct.pack("<I", 0) for record in records
        )
        (directory / f"tiny_shapes-{split}.tfrecord-00000-of-00001").write_bytes(data)
    for path in directory.glob("*.array_record*"):
        path.unlink()
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))


def check_content(source, numbers) -> None:
    expected = {(PIXELS[i].tobytes(), i % 3) for i in numbers}
    found = {(source[i]["image"].tobytes(), int(source[i]["label"])) for i in range(len(source))}
    assert len(source) == len(expected) and found == expected


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "tfds"


@pytest.mark.parametrize("limit", [1024, 0])
@pytest.mark.parametrize("layout", ["array_record", "tfrecord"])
def test_prepared_sets_are_read_without_tensorflow(root, layout, limit):
    directory = prepare(root)
    if layout == "tfrecord":
        as_tfrecords(directory)
    name = "tfds:tiny_shapes"
    train = load(name, data_dir=str(root), memory_limit_mb=limit)
    assert type(train) is (ArraySource if limit else StreamedSource)
    assert train.image_shape == (6, 5, 3)
    assert train.class_names == ("disc", "square", "star")
    check_content(train, range(14))
    check_content(
        load(name, split="test", data_dir=str(root), memory_limit_mb=limit), range(14, 20)
    )
    part = load(name, split="train[2:5]", data_dir=str(root), memory_limit_mb=limit)
    whole = [train[i]["image"].tobytes() for i in range(2, 5)]
    assert [part[i]["image"].tobytes() for i in range(len(part))] == whole
    assert "tensorflow" not in sys.modules


def test_default_dirs(root, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    directory = prepare(root)
    check_content(load("tfds:tiny_shapes"), range(14))
    check_content(load("tfds:tiny_shapes:1.0.0"), range(14))
    check_content(load("tfds:tiny_shapes", data_dir=str(directory)), range(14))
    monkeypatch.delenv("TFDS_DATA_DIR")
    root.rename(tmp_path / "home" / "tensorflow_datasets")
    check_content(load("tfds:tiny_shapes"), range(14))


def test_size_and_channels(root):
    prepare(root)
    source = load("tfds:tiny_shapes", data_dir=str(root), image_size=4, channels=1)
    assert source.image_shape == (4, 4, 1)


def test_splits(root):
    prepare(root)
    assert has_split("tfds:tiny_shapes", split="test", data_dir=str(root))
    assert not has_split("tfds:tiny_shapes", split="val", data_dir=str(root))
    for split in ("val", "val[:3]"):
        with pytest.raises(UserError, match="expected one of test, train"):
            load("tfds:tiny_shapes", split=split, data_dir=str(root))
    with pytest.raises(UserError, match="it has test, train"):
        load("tfds:tiny_shapes", split="train[:x]", data_dir=str(root))


def test_newest_version_and_half_written_ones(root):
    directory = prepare(root)
    (directory.parent / "incomplete.ABC_2.0.0").mkdir()
    (directory.parent / "3.0.0").mkdir()  # no dataset_info.json: not whole
    assert tfds_sets.find_prepared("tiny_shapes", root) == directory
    newer = directory.parent / "1.10.0"
    directory.rename(newer)
    info = newer / "dataset_info.json"
    info.write_text(info.read_text().replace("1.0.0", "1.10.0"))
    prepare(root)
    assert tfds_sets.find_prepared("tiny_shapes", root) == newer
    assert tfds_sets.find_prepared("tiny_shapes:1.0.0", root) == directory
    assert tfds_sets.find_prepared("tiny_shapes:1.1.0", root) is None


def test_configs(root):
    directory = prepare(root)
    for config in ("one", "two"):
        (root / "sets" / "many" / config).mkdir(parents=True)
    moved = root / "sets" / "many" / "one" / "1.0.0"
    directory.rename(moved)
    assert tfds_sets.find_prepared("many", root / "sets") == moved
    assert tfds_sets.find_prepared("many/one", root / "sets") == moved
    assert tfds_sets.find_prepared("many/two", root / "sets") is None
    prepare(root).rename(root / "sets" / "many" / "two" / "1.0.0")
    with pytest.raises(UserError, match="tfds:many/one, tfds:many/two"):
        tfds_sets.find_prepared("many", root / "sets")


def test_unlabelled_set(root):
    class TinyPlain(TinyShapes, skip_registration=True):
        FEATURES: ClassVar = {"image": tfds.features.Image(shape=(None, None, 3))}

    prepare(root, TinyPlain)
    for limit in (1024, 0):
        source = load("tfds:tiny_plain", data_dir=str(root), memory_limit_mb=limit)
        assert source.image_shape == (6, 5, 3) and source.class_names == ()
        assert int(source[0]["label"]) == -1


def test_sets_that_are_no_image_classification(root):
    class TinyNumbers(TinyShapes, skip_registration=True):
        FEATURES: ClassVar = {"number": tfds.features.Scalar(np.int64)}

    class TinyScores(TinyShapes, skip_registration=True):
        FEATURES: ClassVar = {
            "image": tfds.features.Image(shape=(6, 5, 3)),
            "label": tfds.features.Scalar(np.float32),
        }

    prepare(root, TinyNumbers)
    with pytest.raises(UserError, match=r'no 8-bit feature "image" \(it has number\)'):
        load("tfds:tiny_numbers", data_dir=str(root))
    prepare(root, TinyScores)
    with pytest.raises(UserError, match="not a ClassLabel"):
        load("tfds:tiny_scores", data_dir=str(root))


def test_damage_is_told(root):
    directory = prepare(root)
    as_tfrecords(directory)
    path = directory / "tiny_shapes-train.tfrecord-00000-of-00001"
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    with pytest.raises(UserError, match="ends within a record"):
        load("tfds:tiny_shapes", data_dir=str(root))
    (length,) = struct.unpack_from("<Q", data)
    path.write_bytes(data[: length + 16])
    with pytest.raises(UserError, match="has 1 records"):
        load("tfds:tiny_shapes", data_dir=str(root))
    path.unlink()
    with pytest.raises(UserError, match="cannot read split"):
        load("tfds:tiny_shapes", data_dir=str(root))
    (directory / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="not a readable TFDS set"):
        load("tfds:tiny_shapes", data_dir=str(root))


def test_damaged_array_record_is_told(root):
    directory = prepare(root)
    path = next(directory.glob("*train*"))
    path.write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match=r"tiny_shapes.1\.0\.0"):
        load("tfds:tiny_shapes", data_dir=str(root))


def test_a_folder_of_images_stands_in_and_says_so(root, caplog):
    for i, split in enumerate(["train", "test"]):
        (root / split / "cat").mkdir(parents=True)
        (root / split / "cat" / "1.png").write_bytes(png(PIXELS[i]))
    with caplog.at_level(logging.INFO, logger="diffjax"):
        source = load("tfds:cifar10", data_dir=str(root))
    assert "reading it as a folder" in caplog.text
    assert source.class_names == ("cat",) and (source[0]["image"] == PIXELS[0]).all()
    assert has_split("tfds:cifar10", split="test", data_dir=str(root))
    assert not has_split("tfds:cifar10", split="val", data_dir=str(root))


def test_what_cannot_be_had_is_one_line_with_the_ways(root, capfd):
    root.mkdir()
    for name in ("tfds:cifar10", "tfds:no_such_set"):
        with pytest.raises(UserError) as caught:
            load(name, data_dir=str(root))
        assert name in str(caught.value) and "--config.data.dir" in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no network in tests"):
        load("tfds:cifar10")
    assert not list(root.rglob("*.json"))
    with pytest.raises(UserError, match="is not a folder"):
        load("tfds:cifar10", data_dir=str(root / "typo"))
    with pytest.raises(UserError, match="not a TFDS name"):
        load("tfds:../x")
    assert "TensorFlow" not in capfd.readouterr().out


def test_reachability(monkeypatch):
    monkeypatch.undo()  # of the stand-in that conftest puts in its place
    asked = []

    def getaddrinfo(host, port):
        asked.append(host)
        raise socket.gaierror("unknown host")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    with pytest.raises(OSError, match="unknown host"):
        tfds_sets.check_reachable(["https://example.org/a.tar.gz", "https://example.org/b.tar.gz"])
    assert asked == ["example.org"]
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": "proxy:3128"})
    tfds_sets.check_reachable(["https://example.org/a.tar.gz"])
    assert asked == ["example.org"]


def test_streamed_records_resume_exactly(root):
    prepare(root)
    source = load("tfds:tiny_shapes", data_dir=str(root), memory_limit_mb=0)
    whole = batches(source, batch_size=4, seed=1)
    expected = [next(whole)["image"] for _ in range(9)]
    iterator = batches(source, batch_size=4, seed=1)
    for _ in range(5):
        next(iterator)
    resumed = batches(source, batch_size=4, seed=1)
    resumed.set_state(json.loads(json.dumps(iterator.get_state())))
    for image in expected[5:]:
        assert (next(resumed)["image"] == image).all()
