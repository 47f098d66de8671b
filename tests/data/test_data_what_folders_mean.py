"""What people call splits, tables and captions; and what is left out is counted and named."""

import json
import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from diffjax.data import batches, has_split, load
from diffjax.errors import UserError


def save(path: Path, value: int = 0, *, size: tuple[int, int] = (4, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


def values(source) -> list[int]:
    return [int(source[i]["image"].flat[0]) for i in range(len(source))]


def texts(source) -> list[str]:
    return [source.captions[source[i]["caption"]] for i in range(len(source))]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "set"


# Splits


@pytest.mark.parametrize(
    ("train", "test", "split"),
    [
        ("Train", "Test", "test"), ("training", "testing", "test"), ("TRAINING", "val", "val"),
        ("train", "validation", "val"), ("train", "Valid", "val"), ("train", "dev", "val"),
    ],
)  # fmt: skip
def test_splits_as_people_call_them(root, caplog, train, test, split):
    save(root / train / "a" / "1.png", 1)
    save(root / train / "b" / "2.png", 2)
    save(root / test / "b" / "3.png", 3)
    caplog.set_level(logging.INFO, logger="diffjax")
    source = load(f"folder:{root}")
    assert values(source) == [1, 2] and source.class_names == ("a", "b")
    assert f"{test}/" in caplog.text and "its splits are" in caplog.text
    assert has_split(f"folder:{root}", split=split)
    assert values(load(f"folder:{root}", split=split)) == [3]


def test_one_split_under_two_names_is_refused(root):
    for name in ("train", "training", "test"):
        save(root / name / "1.png")
    with pytest.raises(UserError, match="train and training, both names of the split 'train'"):
        load(f"folder:{root}")


def test_what_is_beside_the_splits_is_named(root, caplog):
    for name in ("train/1.png", "test/2.png", "extra/3.png", "stray.png"):
        save(root / name)
    caplog.set_level(logging.WARNING, logger="diffjax")
    assert len(load(f"folder:{root}")) == 1
    assert "folders next to the splits: 1 (extra)" in caplog.text
    assert "images next to the splits: 1 (stray.png)" in caplog.text


# What diffjax has written


def test_runs_within_the_folder_are_no_data(root, caplog):
    save(root / "a" / "1.png", 1)
    save(root / "b" / "2.png", 2)
    before = load(f"folder:{root}")
    save(root / "runs" / "mine" / "samples.png", 9)
    (root / "runs" / "mine" / "config.json").write_text("{}")
    (root / "runs" / "mine" / ".lock").touch()
    caplog.set_level(logging.INFO, logger="diffjax")
    source = load(f"folder:{root}")
    assert source.class_names == ("a", "b") and values(source) == [1, 2]
    assert "folders of diffjax runs: 1 (runs/mine)" in caplog.text
    state = batches(before, batch_size=2, seed=0).get_state()
    batches(source, batch_size=2, seed=0).set_state(state)


def test_a_folder_of_runs_is_no_class_beside_a_split(root):
    save(root / "train" / "a" / "1.png", 1)
    (root / "runs" / "x" / "checkpoints").mkdir(parents=True)
    save(root / "runs" / "x" / "samples.png", 9)
    (root / "runs" / "x" / "config.json").write_text("{}")
    assert load(f"folder:{root}").class_names == ("a",)


# What is left out


def test_every_file_that_is_left_out_is_counted_by_kind(root, caplog):
    save(root / "a.png")
    for name in ("._a.png", "Thumbs.db", ".DS_Store", "b.tiff", "c.bmp", "README.md", "notes.md",
                 "boxes.parquet", "LICENSE"):  # fmt: skip
        (root / name).write_bytes(b"x")
    save(root / "@eaDir" / "a.png")
    caplog.set_level(logging.INFO, logger="diffjax")
    assert len(load(f"folder:{root}")) == 1
    for said in (
        "hidden: 4 (", "other formats than PNG, JPEG and WebP: 2 (b.tiff, c.bmp)",
        ".md files: 2 (README.md, notes.md)", "files without a suffix: 1 (LICENSE)",
        "or of other names than labels.csv and metadata.jsonl: 1 (boxes.parquet)",
    ):  # fmt: skip
        assert said in caplog.text
    assert [r.levelname for r in caplog.records if "left out" in r.message] == ["WARNING"]


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe", "a.JPEG"])
def test_all_suffixes_of_jpegs_are_read(root, name):
    root.mkdir()
    Image.new("L", (4, 3), 7).save(root / name, "JPEG")
    assert len(load(f"folder:{root}")) == 1


# Tables


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "file, label\na.png, x\nb.png, y\n"),
        ("Labels.csv", "File,Label\na.png,x\nb.png,y\n"),
        ("labels.csv", "filename;class\na.png;x\nb.png;y\n"),
        ("labels.tsv", "path\tcategory\na.png\tx\nb.png\ty\n"),
        ("LABELS.CSV", 'label,note,image\nx,"a, b",a.png\ny,,b.png\n'),
        ("metadata.csv", "file_name,label\na.png,x\nb.png,y\n"),
    ],
)
def test_labels_are_read_as_they_are_plainly_meant(root, name, text):
    save(root / "a.png", 1)
    save(root / "b.png", 2)
    (root / name).write_text(text)
    source = load(f"folder:{root}")
    assert source.class_names == ("x", "y")
    assert [int(source[i]["label"]) for i in range(2)] == [0, 1]
    assert source.captions == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Metadata.JSONL", '{"file_name": "a.png", "caption": "x"}\n'
                           '{"file_name": "b.png", "caption": "y"}\n'),
        ("metadata.json", '[{"file": "a.png", "prompt": "x"}, {"file": "b.png", "prompt": "y"}]'),
        ("metadata.json", '{"a.png": "x", "b.png": "y"}'),
        ("metadata.json", '{"a.png": {"text": "x"}, "b.png": {"text": "y"}}'),
        ("metadata.csv", "File_Name, Text\na.png, x\nb.png, y\n"),
    ],
)  # fmt: skip
def test_captions_are_read_as_they_are_plainly_meant(root, name, text):
    save(root / "a.png", 1)
    save(root / "b.png", 2)
    (root / name).write_text(text)
    source = load(f"folder:{root}")
    assert texts(source) == ["x", "y"] and source.class_names == ()


def test_the_column_of_captions_is_a_key(root, caplog):
    save(root / "a.png")
    row = {"file_name": "a.png", "text": "short", "blip": "long", "caption": "other"}
    (root / "metadata.jsonl").write_text(json.dumps(row))
    caplog.set_level(logging.INFO, logger="diffjax")
    assert texts(load(f"folder:{root}")) == ["short"]
    assert "captions are read from the column 'text'" in caplog.text
    assert texts(load(f"folder:{root}", caption="blip")) == ["long"]
    with pytest.raises(UserError, match="no column 'tags', but file_name, text, blip, caption"):
        load(f"folder:{root}", caption="tags")
    (root / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match="has no table of captions"):
        load(f"folder:{root}", caption="blip")


def test_a_text_file_beside_each_image_is_its_caption(root, caplog):
    for value, name in enumerate(["a.png", "sub/b.jpg", "sub/c.png"]):
        save(root / name, value)
        (root / name).with_suffix(".txt").write_text(f" caption {value}\n", encoding="utf-8")
    (root / "credits.txt").write_text("nobody's caption")
    caplog.set_level(logging.INFO, logger="diffjax")
    source = load(f"folder:{root}")
    assert texts(source) == ["caption 0", "caption 1", "caption 2"] and source.class_names == ()
    assert ".txt files: 1 (credits.txt)" in caplog.text
    (root / "sub" / "c.txt").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images have no caption .* such as sub/c\.png"):
        load(f"folder:{root}")
    (root / "sub" / "c.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"c\.txt .*UTF-8"):
        load(f"folder:{root}")


def test_labels_in_some_lines_alone_are_refused(root):
    save(root / "a.png")
    save(root / "b.png")
    rows = [{"file_name": "a.png", "text": "x"}, {"file_name": "b.png", "text": "y", "label": 1}]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="line 2 has a label, line 1 has none"):
        load(f"folder:{root}")


# Broken images, and images that only seem so


@pytest.fixture(params=[1024, 0], ids=["memory", "streamed"])
def limit(request) -> int:
    return request.param


def _break(root: Path, numbers) -> None:
    for i in numbers:
        path = root / f"{i}.png"
        path.write_bytes(path.read_bytes()[:45])


def test_broken_images_are_skipped_where_that_is_asked_for(root, limit, caplog):
    for i in range(6):
        save(root / f"{i}.png", 10 * i, size=(40, 30))
        (root / f"{i}.txt").write_text(f"caption {i}")
    _break(root, (1, 3))
    source = load(f"folder:{root}", on_broken="skip", memory_limit_mb=limit)
    assert values(source) == [0, 20, 40, 50]
    assert texts(source) == ["caption 0", "caption 2", "caption 4", "caption 5"]
    assert re.search(r"2 of 6 images that can't be read: .*1\.png.*3\.png", caplog.text)
    listed = Path(re.search(r"listed in (.*)\)", caplog.text)[1]).read_text()
    assert len(listed.splitlines()) == 2 and f"{root / '3.png'}: " in listed
    whole = load(f"folder:{root}", on_broken="skip")
    state = batches(source, batch_size=2, seed=0).get_state()
    batches(whole, batch_size=2, seed=0).set_state(state)


def test_all_broken_images_are_named_or_listed(root):
    for i in range(9):
        save(root / f"{i}.png", size=(40, 30))
    _break(root, range(7))
    with pytest.raises(UserError, match=r"cannot read 7 of 9 images.*0\.png.*4\.png") as caught:
        load(f"folder:{root}")
    listed = Path(re.search(r"listed in (.*)\); replace", str(caught.value))[1])
    assert [line.split(": ")[0] for line in listed.read_text().splitlines()] == [
        str(root / f"{i}.png") for i in range(7)
    ]
    _break(root, range(9))
    with pytest.raises(UserError, match="cannot read 9 of 9 images"):
        load(f"folder:{root}", on_broken="skip")


@pytest.mark.parametrize("compressed", [True, False], ids=["compressed", "plain"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_an_image_with_much_text_is_read(root, limit, compressed, late):
    """Generation tools keep workflows in PNG chunks, and Pillow refuses large ones."""
    root.mkdir()
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 3_000_000, zip=compressed)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    path = root / "a.png"
    Image.fromarray(pixels).save(path, pnginfo=info)
    if late:  # texts may also stand after the pixels
        data = path.read_bytes()
        at = data.index(b"zTXt" if compressed else b"tEXt") - 4
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        path.write_bytes(data[:at] + data[end:-12] + data[at:end] + data[-12:])
    source = load(f"folder:{root}", memory_limit_mb=limit)
    assert (source[0]["image"][..., 0] == pixels).all()


# Sizes and names


def test_a_size_of_two_sides_is_the_largest_centred_part(root, limit):
    root.mkdir()
    pixels = np.zeros((40, 60), np.uint8)
    pixels[5:35] = 200  # 60 x 30 within 60 x 40
    Image.fromarray(pixels).save(root / "a.png")
    source = load(f"folder:{root}", image_size=(15, 30), memory_limit_mb=limit)
    assert source.image_shape == (15, 30, 1)
    assert (source[0]["image"][2:-2] == 200).all() and source[0]["image"].min() > 150
    tall = load(f"folder:{root}", image_size=(40, 10), memory_limit_mb=limit)
    np.testing.assert_array_equal(tall[0]["image"][..., 0], pixels[:, 25:35])


def test_two_equal_sides_are_a_square():
    one, two = load("digits", image_size=12), load("digits", image_size=(12, 12))
    np.testing.assert_array_equal(one.images, two.images)


@pytest.mark.parametrize("size", [0, -1, 2.5, "32", (32,), (32, 0), (1, 2, 3), True, 9000])
def test_a_wrong_size_is_refused(size):
    with pytest.raises(UserError, match="image_size is"):
        load("digits", image_size=size)


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": None}, {"name": 3}, {"split": None}, {"channels": "3"}, {"channels": True},
        {"memory_limit_mb": "1"}, {"on_broken": True}, {"on_broken": "ignore"}, {"caption": "x"},
    ],
)  # fmt: skip
def test_wrong_arguments_of_load_are_told_in_words(arguments):
    with pytest.raises(UserError, match=next(iter(arguments))):
        load(**{"name": "fashion_mnist", **arguments})


def test_class_names_may_be_any_bytes(tmp_path):
    folder = os.fsencode(tmp_path)
    for name in (b"caf\xe9", b"th\xe9"):
        os.makedirs(os.path.join(folder, name))
        with open(os.path.join(folder, name, b"\xff.png"), "wb") as file:
            Image.new("L", (2, 2)).save(file, "PNG")
    source = load(f"folder:{tmp_path}")
    assert [os.fsencode(name) for name in source.class_names] == [b"caf\xe9", b"th\xe9"]
    iterator = batches(source, batch_size=2, seed=0)
    iterator.set_state(json.loads(json.dumps(iterator.get_state())))


# Where a set is


def test_a_set_is_known_by_its_files_and_not_by_its_place(root, tmp_path, limit):
    for i in range(4):
        save(root / "ab"[i % 2] / f"{i}.png", i)
    first = batches(load(f"folder:{root}", memory_limit_mb=limit), batch_size=2, seed=0)
    next(first)
    state = first.get_state()
    moved = tmp_path / "moved"
    root.rename(moved)
    second = batches(load(f"folder:{moved}"), batch_size=2, seed=0)
    second.set_state(state)
    np.testing.assert_array_equal(next(second)["image"], next(first)["image"]) if limit else None
    (moved / "a" / "0.png").rename(moved / "a" / "00.png")
    third = batches(load(f"folder:{moved}"), batch_size=2, seed=0)
    with pytest.raises(UserError, match=r"names or sizes\s+differ.*train\.init_from"):
        third.set_state(state)
    old = {key: value for key, value in state.items() if key != "index_crc32"}
    third.set_state(old)  # a run of an older version kept no index
