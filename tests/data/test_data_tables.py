"""Tables as spreadsheets and other systems write them, and files that could block for ever."""

import logging
import os
import signal
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from diffjax.data import load
from diffjax.errors import UserError


def save(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 3), value).save(path)


def labels_of(root: Path, files: list[str]) -> dict[int, str]:
    """{pixel value, the number of the file: name of its class}."""
    source = load(f"folder:{root}")
    examples = [source[i] for i in range(len(source))]
    assert len(examples) == len(files)
    return {int(e["image"].flat[0]): source.class_names[e["label"]] for e in examples}


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (["a.png", "b.png"], "sep=;\r\nfile;label\r\na.png;x\r\nb.png;y\r\n"),
        (["a.png", "b.png"], '"sep=,"\nfile,label\na.png,x\nb.png,y\n'),
        (["a.png", "b.png"], "file,label,,\na.png,x,,\n,,,\nb.png,y,,\n,,,\n"),
        (["c/a.png", "c/b.png"], "file,label\nc\\a.png,x\n.\\c\\b.png,y\n"),
        (["c/a.png", "c/b.png"], "file,label\n./c//a.png,x\nc/../c/b.png,y\n"),
        (["a.png", "b.png"], "file,label\n{root}/a.png,x\n{root}/b.png,y\n"),
        (["é.png", "b.png"], unicodedata.normalize("NFD", "file,label\né.png,x\nb.png,y\n")),
        ([unicodedata.normalize("NFD", "é.png"), "b.png"], "file,label\né.png,x\nb.png,y\n"),
        (["c\\a.png", "c/a.png"], "file,label\nc\\a.png,x\nc/a.png,y\n"),
    ],
)
def test_files_are_found_as_a_table_plainly_means_them(tmp_path, files, text):
    for number, name in enumerate(files):
        save(tmp_path / name, number)
    (tmp_path / "labels.csv").write_text(text.replace("{root}", str(tmp_path)), encoding="utf-8")
    assert labels_of(tmp_path, files) == {0: "x", 1: "y"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label,label\na.png,x,1\n", "the column 'label' twice"),
        ("file,label\nc/a.png,x\nc\\a.png,y\n", "c/a.png is listed twice"),
        ("file,label\nc/a.png,\n", "line 2: c/a.png has no label"),
        ("sep=;\nfile;label\nc/a.png;\n", "line 3: c/a.png has no label"),
    ],
)
def test_a_table_with_two_meanings_is_refused(tmp_path, text, message):
    save(tmp_path / "c" / "a.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        load(f"folder:{tmp_path}")


@pytest.fixture
def hangs():
    """Fails a test that waits for a pipe, rather than waiting with it."""

    def fail(*_):
        raise AssertionError("it waits for ever")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["labels.csv", "metadata.jsonl", "metadata.json", "a.txt"])
def test_a_pipe_is_not_read(tmp_path, hangs, name):
    save(tmp_path / "a.png")
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="not a regular file"):
        load(f"folder:{tmp_path}")


def test_two_text_files_for_one_image_are_refused(tmp_path):
    save(tmp_path / "a.png")
    for name in ("a.txt", "a.TXT"):
        (tmp_path / name).write_text("a cat")
    if len(os.listdir(tmp_path)) < 3:
        pytest.skip("this file system has no upper case")
    with pytest.raises(UserError, match=r"both a.TXT and a.txt"):
        load(f"folder:{tmp_path}")


def test_splits_one_folder_below_are_no_single_class(tmp_path):
    for name in ("pets/train/cat/1.png", "pets/test/cat/2.png"):
        save(tmp_path / name)
    with pytest.raises(UserError, match=r"splits test, train; set config.data.name=folder:.*pets"):
        load(f"folder:{tmp_path}")


def test_files_of_many_kinds_are_told_in_one_short_line(tmp_path, caplog):
    save(tmp_path / "a.png")
    (tmp_path / "b.tiff").touch()
    for number in range(300):
        (tmp_path / f"f{number}.x{number}").touch()
    caplog.set_level(logging.INFO, logger="diffjax")
    load(f"folder:{tmp_path}")
    (line,) = (r.getMessage() for r in caplog.records if "left out" in r.getMessage())
    assert "b.tiff" in line and "files of 293 other kinds: 293" in line and len(line) < 1000
