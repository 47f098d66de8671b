"""Fashion-MNIST: where it comes from, that it is whole, and that nothing half-done is left."""

import gzip
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from diffjax.data import fashion_mnist, has_split, load, tfds_sets
from diffjax.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = {
    "train": RNG.integers(0, 256, (12, 28, 28), dtype=np.uint8),
    "test": RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8),
}
LABELS = {"train": np.arange(12, dtype=np.uint8) % 10, "test": np.arange(5, dtype=np.uint8)}


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim])
    return header + np.array(array.shape, ">u4").tobytes() + array.tobytes()


FILES = {
    f"{prefix}-{kind}": idx(arrays[split])
    for split, prefix in (("train", "train"), ("test", "t10k"))
    for kind, arrays in (("images-idx3-ubyte", IMAGES), ("labels-idx1-ubyte", LABELS))
}


def write(directory: Path, *, zipped: bool = True) -> Path:
    directory.mkdir(parents=True)
    for name, data in FILES.items():
        if zipped:
            (directory / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (directory / name).write_bytes(data)
    return directory


@pytest.fixture
def tiny(monkeypatch, tmp_path) -> Path:
    """Makes twelve images pass for the original, and no Debian package; returns a folder."""
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    monkeypatch.setattr(fashion_mnist, "CHECKSUMS", sums)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", tmp_path / "no-debian")
    return tmp_path / "idx"


def default_dir() -> Path:
    return Path(os.environ["HOME"]) / "tensorflow_datasets"


def check_content(source, split: str = "train") -> None:
    pairs = zip(IMAGES[split], LABELS[split], strict=True)
    expected = {(image.tobytes(), int(label)) for image, label in pairs}
    found = {(source[i]["image"].tobytes(), int(source[i]["label"])) for i in range(len(source))}
    assert len(source) == len(expected) and found == expected


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_folder_is_prepared_for_every_tfds_user(tiny, zipped, caplog, capfd):
    with caplog.at_level(logging.INFO):
        source = load("fashion_mnist", data_dir=str(write(tiny, zipped=zipped)))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 and str(tiny) in messages[0] and str(default_dir()) in messages[0]
    assert capfd.readouterr() == ("", "")
    assert source.name == "fashion_mnist" and source.image_shape == (28, 28, 1)
    assert source.class_names[0] == "T-shirt/top" and len(source.class_names) == 10
    check_content(source)
    check_content(load("fashion_mnist", split="test"), "test")
    check_content(load("tfds:fashion_mnist", split="test"), "test")
    # TFDS's own builder takes it for its own.
    stock = tfds.builder("fashion_mnist", data_dir=str(default_dir()))
    assert stock.is_prepared() and stock.info.splits["train"].num_examples == 12
    read = {record["image"].tobytes() for record in stock.as_data_source("train")}
    assert read == {image.tobytes() for image in IMAGES["train"]}
    assert sorted(path.name for path in default_dir().iterdir()) == ["fashion_mnist"]
    assert "tensorflow" not in sys.modules


def test_debian_package_and_tfds_data_dir(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", write(tmp_path / "debian"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    check_content(load("fashion_mnist"))
    assert (tmp_path / "elsewhere" / "fashion_mnist" / "3.0.1" / "dataset_info.json").is_file()
    assert not default_dir().exists()
    shutil.rmtree(fashion_mnist.DEBIAN_DIR)
    check_content(load("fashion_mnist"))  # from what was prepared
    check_content(load("fashion_mnist", data_dir=str(tmp_path / "elsewhere")))
    check_content(
        load("fashion_mnist", data_dir=str(tmp_path / "elsewhere" / "fashion_mnist" / "3.0.1"))
    )


def test_tfds_download(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(tfds_sets, "check_reachable", lambda urls: None)
    write(tiny)

    def download(self, urls):
        assert all(url.startswith("http") for url in urls.values())
        return {name: tiny / url.rsplit("/", 1)[1] for name, url in urls.items()}

    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    check_content(load("fashion_mnist"))


def test_a_damaged_download_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(tfds_sets, "check_reachable", lambda urls: None)
    write(tiny)
    (tiny / "t10k-labels-idx1-ubyte.gz").write_bytes(b"<html>busy</html>")

    def download(self, urls):
        return {name: tiny / url.rsplit("/", 1)[1] for name, url in urls.items()}

    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    with pytest.raises(UserError, match="t10k-labels"):
        load("fashion_mnist")
    assert not list(default_dir().iterdir())


def test_nothing_works(tiny):
    with pytest.raises(UserError) as caught:
        load("fashion_mnist")
    message = str(caught.value)
    assert "\n" not in message
    for way in ("--config.data.dir=", "apt-get install dataset-fashion-mnist", "network"):
        assert way in message


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-10], "cannot read"),
        (lambda data: b"", "not the original"),
        (lambda data: data[:40] + b"xxxx" + data[44:], "cannot read|not the original"),
        (lambda data: gzip.compress(FILES["train-images-idx3-ubyte"][:-1]), "not the original"),
        (lambda data: gzip.compress(FILES["t10k-images-idx3-ubyte"]), "not the original"),
    ],
)
def test_wrong_files_are_named(tiny, damage, words):
    path = write(tiny) / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=words) as caught:
        load("fashion_mnist", data_dir=str(tiny))
    assert str(path) in str(caught.value)
    assert not default_dir().exists()


def test_a_damaged_file_is_told_even_where_the_set_is_prepared(tiny):
    load("fashion_mnist", data_dir=str(write(tiny)))
    (tiny / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(UserError, match="t10k-labels"):
        load("fashion_mnist", data_dir=str(tiny))


def test_a_given_folder_is_never_replaced_by_another(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", write(tmp_path / "debian"))
    load("fashion_mnist")  # prepared, so there would be something to fall back to
    with pytest.raises(UserError, match="is not a folder"):
        load("fashion_mnist", data_dir=str(tmp_path / "typo"))
    (write(tiny) / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"missing: t10k-labels-idx1-ubyte,"):
        load("fashion_mnist", data_dir=str(tiny))


def test_no_idx_file():
    data = b"\1\2\3\4hello"
    path = Path(os.environ["HOME"]) / "x"
    path.write_bytes(data)
    with pytest.raises(UserError, match="not an IDX file"):
        fashion_mnist.read_idx(path, sha256=hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left on device")])
def test_an_interruption_leaves_nothing(tiny, monkeypatch, error):
    write(tiny)
    encode, calls = fashion_mnist.encode_png, []

    def interrupted(pixels):
        calls.append(1)
        if len(calls) == 14:  # in the second split
            raise error
        return encode(pixels)

    with monkeypatch.context() as patch:
        patch.setattr(fashion_mnist, "encode_png", interrupted)
        with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else UserError):
            load("fashion_mnist", data_dir=str(tiny))
    assert not list(default_dir().rglob("*"))
    check_content(load("fashion_mnist", data_dir=str(tiny)))


def test_a_killed_preparation_is_not_taken_for_whole(tiny):
    write(tiny)
    script = f"""
        import os
        from diffjax.data import fashion_mnist
        fashion_mnist.CHECKSUMS = {fashion_mnist.CHECKSUMS!r}
        rename = os.rename

        def die(source, target):
            # The process ends where it would have given the finished set its name.
            if "incomplete" not in str(target):
                os._exit(9)
            rename(source, target)

        os.rename = die
        fashion_mnist.locate({str(tiny)!r})
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, check=False
    )
    assert done.returncode == 9
    assert list(default_dir().rglob("*.array_record*"))
    assert tfds_sets.find_prepared("fashion_mnist", default_dir()) is None
    assert not tfds.builder("fashion_mnist", data_dir=str(default_dir())).is_prepared()
    check_content(load("fashion_mnist", data_dir=str(tiny)))


def test_a_faster_process_wins(tiny, monkeypatch, tmp_path):
    write(tiny)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "other"))
    load("fashion_mnist", data_dir=str(tiny))
    monkeypatch.delenv("TFDS_DATA_DIR")
    rename = os.rename

    def late(source, target):
        if "incomplete" not in str(target):
            shutil.copytree(tmp_path / "other" / "fashion_mnist" / "3.0.1", target)
        rename(source, target)

    monkeypatch.setattr(fashion_mnist.os, "rename", late)
    check_content(load("fashion_mnist", data_dir=str(tiny)))
    assert sorted(path.name for path in default_dir().iterdir()) == ["fashion_mnist"]


def test_what_is_in_the_way_is_named(tiny):
    write(tiny)
    junk = default_dir() / "fashion_mnist" / "3.0.1"
    junk.mkdir(parents=True)
    (junk / "junk").touch()
    with pytest.raises(UserError, match=r"3\.0\.1 exists and is not"):
        load("fashion_mnist", data_dir=str(tiny))


def test_a_place_that_cannot_be_written(tiny, monkeypatch, tmp_path):
    write(tiny)
    (tmp_path / "file").touch()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match="TFDS_DATA_DIR"):
        load("fashion_mnist", data_dir=str(tiny))


def test_splits(tiny):
    assert has_split("fashion_mnist", split="test")
    assert not has_split("fashion_mnist", split="val")
    with pytest.raises(UserError, match="expected one of test, train"):
        load("fashion_mnist", split="val", data_dir=str(write(tiny)))


@pytest.mark.slow
def test_the_real_set_is_the_original():
    if not fashion_mnist.DEBIAN_DIR.is_dir():
        pytest.skip("the package dataset-fashion-mnist is not installed")
    for split, prefix, size in (("train", "train", 60_000), ("test", "t10k", 10_000)):
        source = load("fashion_mnist", split=split)
        assert source.images.shape == (size, 28, 28, 1) and source.images.dtype == np.uint8
        images, labels = (
            fashion_mnist.read_idx(
                fashion_mnist.DEBIAN_DIR / f"{prefix}-{kind}.gz",
                sha256=fashion_mnist.CHECKSUMS[f"{prefix}-{kind}"],
            )
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        # TFDS shuffles as it writes; which image has which label is what must be kept.
        expected = sorted(zip(map(bytes, images), labels.tolist(), strict=True))
        found = sorted(zip(map(bytes, source.images), source.labels.tolist(), strict=True))
        assert found == expected
        assert np.bincount(source.labels).tolist() == [size // 10] * 10
