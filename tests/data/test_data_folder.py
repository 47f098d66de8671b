"""Folders of images: layouts, labels, splits, order, and everything that can be wrong."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffjax.data import ArraySource, StreamedSource, batches, has_split, load
from diffjax.errors import UserError


def save(path: Path, value: int = 0, *, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> Path:
    """Writes an image of one value, size being (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = value if mode in ("L", "1", "I;16") else (value,) * len(mode)
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower(), "PNG")
    Image.new(mode, size, colour).save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return path


def values(source) -> list[int]:
    return [int(source[i]["image"].flat[0]) for i in range(len(source))]


def labels(source) -> list[int]:
    return [int(source[i]["label"]) for i in range(len(source))]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "set"


@pytest.fixture(params=[1024, 0], ids=["memory", "streamed"])
def limit(request) -> int:
    return request.param


def test_flat_folder_is_unlabelled_and_sorted(root, limit):
    for value, name in enumerate(["a.png", "b.JPG", "c.jpeg", "d.WebP"]):
        save(root / name, value)
    source = load(f"folder:{root}", memory_limit_mb=limit)
    assert type(source) is (ArraySource if limit else StreamedSource)
    assert source.image_shape == (5, 6, 3)
    assert source.class_names == ()
    assert values(source) == [0, 1, 2, 3]
    assert labels(source) == [-1] * 4
    example = source[0]
    assert example["image"].dtype == np.uint8 and example["label"].dtype == np.int32
    assert example["image"].shape == (5, 6, 3) and example["label"].shape == ()


def test_order_does_not_depend_on_the_file_system(root, monkeypatch):
    names = ["b.png", "a/z.png", "a/b/c.png", "c/d.png", "a.png"]
    for value, name in enumerate(names):
        save(root / "x" / name, value)
    expected = [value for _, value in sorted((name, v) for v, name in enumerate(names))]
    assert values(load(f"folder:{root}")) == expected
    scandir = os.scandir

    class Reversed:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda e: e.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert values(load(f"folder:{root}")) == expected


def test_one_sub_folder_a_class(root, limit):
    save(root / "dog" / "1.png", 1)
    save(root / "cat" / "deep" / "2.png", 2)
    save(root / "cat" / "3.png", 3)
    (root / "README.md").write_text("not an image")
    source = load(f"folder:{root}", memory_limit_mb=limit)
    assert source.class_names == ("cat", "dog")
    assert values(source) == [3, 2, 1]
    assert labels(source) == [0, 0, 1]


def test_numbered_classes_sort_as_numbers(root):
    for number in (10, 9, 2):
        save(root / str(number) / "x.png", number)
    source = load(f"folder:{root}")
    assert source.class_names == ("2", "9", "10")
    assert dict(zip(values(source), labels(source), strict=True)) == {2: 0, 9: 1, 10: 2}


def test_labels_table(root):
    save(root / "a.png", 1)
    save(root / "sub" / "b.png", 2)
    (root / "labels.csv").write_text("\ufefffile,label,note\n./sub/b.png,x,hello\na.png, y ,\n")
    source = load(f"folder:{root}")
    assert source.class_names == ("x", "y")
    assert values(source) == [1, 2]
    assert labels(source) == [1, 0]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("name,class\na.png,1\n", "file,label"),
        ("", "file,label"),
        ("file,label\na.png,1\n", "no row for b.png"),
        ("file,label\na.png,1\nb.png,1\nc.png,1\nd.png,1\n", r"c\.png \(and 1 others\)"),
        ("file,label\na.png,1\na.png,2\nb.png,1\n", "line 3.*twice"),
        ("file,label\na.png,\nb.png,1\n", "line 2"),
        ("file,label\na.png\nb.png,1\n", "line 2"),
        (b"file,label\n\xff\xfe,1\n", "UTF-8"),
    ],
)
def test_a_wrong_labels_table_is_refused(root, table, words):
    save(root / "a.png")
    save(root / "b.png")
    data = table if isinstance(table, bytes) else table.encode()
    (root / "labels.csv").write_bytes(data)
    with pytest.raises(UserError, match=words):
        load(f"folder:{root}")


def test_splits(root):
    save(root / "train" / "a" / "1.png", 1)
    save(root / "train" / "b" / "2.png", 2)
    save(root / "test" / "b" / "3.png", 3)
    name = f"folder:{root}"
    assert has_split(name, split="train") and has_split(name, split="test")
    assert not has_split(name, split="val")
    assert values(load(name)) == [1, 2]
    test = load(name, split="test")
    assert values(test) == [3]
    assert test.class_names == ("a", "b") and labels(test) == [1]  # as in train, where a exists
    with pytest.raises(UserError, match="it has test, train"):
        load(name, split="val")


def test_a_folder_without_splits_is_all_train(root):
    save(root / "a.png", 1)
    assert has_split(f"folder:{root}", split="train")
    assert not has_split(f"folder:{root}", split="test")
    with pytest.raises(UserError, match="no split 'test'"):
        load(f"folder:{root}", split="test")


def test_train_may_be_a_class(root):
    save(root / "train" / "1.png", 1)
    save(root / "car" / "2.png", 2)
    assert load(f"folder:{root}").class_names == ("car", "train")
    assert not has_split(f"folder:{root}", split="test")


def test_only_train(root):
    save(root / "train" / "a" / "1.png", 1)
    assert load(f"folder:{root}").class_names == ("a",)
    assert not has_split(f"folder:{root}", split="test")


def test_splits_must_agree_on_labels(root):
    save(root / "train" / "a" / "1.png")
    save(root / "test" / "c" / "1.png")
    with pytest.raises(UserError, match="class c"):
        load(f"folder:{root}", split="test")
    (root / "test" / "c" / "1.png").rename(root / "test" / "1.png")
    (root / "test" / "c").rmdir()
    with pytest.raises(UserError, match="one has labels"):
        load(f"folder:{root}", split="test")
    (root / "labels.csv").write_text("file,label\n")
    with pytest.raises(UserError, match="next to the splits"):
        load(f"folder:{root}")


def test_images_beside_classes_are_refused(root):
    save(root / "a" / "1.png")
    save(root / "stray.png")
    with pytest.raises(UserError, match=r"stray\.png"):
        load(f"folder:{root}")


def test_sizes_that_differ_name_two_files(root, limit):
    save(root / "a.png", size=(6, 5))
    save(root / "b.png", size=(7, 5))
    message = r"a\.png is 6x5, .*b\.png is 7x5; set --config\.data\.image_size"
    with pytest.raises(UserError, match=message):
        load(f"folder:{root}", memory_limit_mb=limit)
    source = load(f"folder:{root}", memory_limit_mb=limit, image_size=4)
    assert source.image_shape == (4, 4, 3) and source[1]["image"].shape == (4, 4, 3)


def test_grey_only_if_all_are_grey(root, limit):
    save(root / "a.png", 10, mode="L")
    save(root / "b.png", 255 * 257 // 2, mode="I;16")
    source = load(f"folder:{root}", memory_limit_mb=limit)
    assert source.image_shape == (5, 6, 1)
    assert values(source) == [10, 127]
    save(root / "c.png", 30)
    source = load(f"folder:{root}", memory_limit_mb=limit)
    assert source.image_shape == (5, 6, 3)
    assert values(source) == [10, 127, 30]
    assert load(f"folder:{root}", channels=1, memory_limit_mb=limit).image_shape == (5, 6, 1)
    (root / "c.png").unlink()
    assert load(f"folder:{root}", channels=3, memory_limit_mb=limit).image_shape == (5, 6, 3)


def test_the_limit_counts_the_decoded_channels(root):
    for i in range(5):
        save(root / f"{i}.png", i, size=(400, 500), mode="L")
    # 0.95 MiB in grey, 2.9 MiB as colour: fits, once the headers say it is grey.
    assert isinstance(load(f"folder:{root}", memory_limit_mb=1), ArraySource)
    assert isinstance(load(f"folder:{root}", memory_limit_mb=1, channels=3), StreamedSource)


def test_streamed_equals_in_memory(root):
    rng = np.random.default_rng(0)
    for i in range(9):
        path = save(root / "ab"[i % 2] / f"{i}.png")
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    one, two = (
        batches(load(f"folder:{root}", image_size=8, memory_limit_mb=m), batch_size=4, seed=0)
        for m in (1024, 0)
    )
    for _ in range(6):
        first, second = next(one), next(two)
        assert (first["image"] == second["image"]).all()
        assert (first["label"] == second["label"]).all()


def test_unreadable_files_are_named_and_counted(root, limit):
    save(root / "a.png")
    (root / "b.png").write_bytes(b"")
    (root / "c.png").write_text("<html>404</html>")
    (root / "d.png").symlink_to(root / "nowhere.png")
    with pytest.raises(
        UserError,
        match=r"3 of 4 images: .*b\.png: the file is empty; .*c\.png: not a PNG, .*d\.png",
    ):
        load(f"folder:{root}", memory_limit_mb=limit)


def test_when_no_file_is_readable(root):
    root.mkdir()
    (root / "b.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"b\.png: the file is empty; replace or remove it"):
        load(f"folder:{root}")


def test_a_truncated_file_is_named(root):
    save(root / "a.jpg")
    path = save(root / "b.jpg", size=(64, 64))
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match=r"b\.jpg.*truncated"):
        load(f"folder:{root}", image_size=4)
    source = load(f"folder:{root}", image_size=4, memory_limit_mb=0)
    assert source[0]["image"].shape == (4, 4, 3)
    with pytest.raises(UserError, match=r"b\.jpg.*truncated"):
        next(batches(source, batch_size=2, seed=0))


def test_a_file_that_may_not_be_read_is_named(root, monkeypatch):
    save(root / "a.png")
    (root / "b.png").mkdir()  # a folder is no image, whatever its name
    save(root / "b.png" / "c.png")
    assert load(f"folder:{root / 'b.png'}").class_names == ()
    loop = root / "e.png"
    loop.symlink_to(loop)
    (root / "a.png").rename(root / "b.png" / "d.png")
    loop.rename(root / "b.png" / "e.png")
    with pytest.raises(UserError, match=r"e\.png"):
        load(f"folder:{root}")


def test_missing_and_empty_folders(root, tmp_path):
    with pytest.raises(UserError, match="missing"):
        load(f"folder:{root}")
    with pytest.raises(UserError, match="missing"):
        has_split(f"folder:{root}", split="test")
    root.mkdir()
    with pytest.raises(UserError, match="holds no images"):
        load(f"folder:{root}")
    (root / "x.gif").write_bytes(b"GIF89a")
    with pytest.raises(UserError, match=r"convert .* other formats than .*: 1 \(x\.gif\)"):
        load(f"folder:{root}")
    with pytest.raises(UserError, match="is a file"):
        load(f"folder:{root / 'x.gif'}")


def test_hidden_files_are_no_data_and_other_formats_are_mentioned(root, caplog):
    save(root / "a.png", 1)
    (root / "._a.png").write_bytes(b"resource fork")
    save(root / ".thumbs" / "t.png", 9)
    save(root / "__MACOSX" / "t.png", 9)
    (root / "scan.tiff").write_bytes(b"II*")
    with caplog.at_level(logging.WARNING, logger="diffjax"):
        assert values(load(f"folder:{root}")) == [1]
    assert "scan.tiff" in caplog.text


def test_links_are_followed_but_not_in_circles(root, tmp_path):
    save(tmp_path / "elsewhere" / "1.png", 7)
    save(root / "a" / "0.png", 3)
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    source = load(f"folder:{root}")
    assert source.class_names == ("a", "b")
    assert values(source) == [3, 7]
    (root / "a" / "up").unlink()


def test_home_is_expanded(root, monkeypatch):
    save(root / "a.png", 1)
    monkeypatch.setenv("HOME", str(root.parent))
    assert values(load("folder:~/set")) == [1]


def test_more_than_one_chunk_in_order(root):
    for i in range(600):
        save(root / f"{i:04}.png", i % 256, size=(2, 2), mode="L")
    assert values(load(f"folder:{root}")) == [i % 256 for i in range(600)]
    (root / "0300.png").write_bytes(b"")
    (root / "0599.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 of 600 images: .*0300\.png.*0599\.png"):
        load(f"folder:{root}")
