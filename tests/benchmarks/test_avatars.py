"""The judge of avatars: what it reads off pictures that are known, and what it writes."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import avatars
from diffjax.errors import UserError

ATTRIBUTES = {"shade": ["dark", "grey", "bright"], "side": ["left", "right"]}
RNG = np.random.default_rng(0)


def bars(count):
    """Pictures of a bar of a shade at a side, and the answers."""
    shade, side = RNG.integers(0, 3, count), RNG.integers(0, 2, count)
    images = np.full((count, 16, 16, 3), 255, np.uint8)
    for image, a, b in zip(images, shade, side, strict=True):
        image[2:14, 2 + 8 * b : 6 + 8 * b] = 90 * a
    answers = {"shade": shade, "side": side}
    return avatars.Rows(images, answers, ["x"] * count, ["shade and side"] * count)


def test_a_judge_reads_what_is_there_and_no_more():
    train, test = bars(600), bars(300)
    judge = avatars.train_judge(train, bars(100), ATTRIBUTES, steps=60)
    found = avatars.score(judge(test.images), test)
    assert min(found["shade"], found["side"], found["all"], found["new pair"]) > 0.97
    # Pictures of other bars are right by chance.
    order = RNG.permutation(300)
    shuffled = avatars.score(judge(test.images[order]), test)
    assert abs(shuffled["shade"] - 1 / 3) < 0.15 and abs(shuffled["side"] - 1 / 2) < 0.15


def test_shares_of_known_answers():
    answers = {"a": np.array([0, 1, 2, 0]), "b": np.array([0, 0, 1, 1]), "c": np.zeros(4, int)}
    pairs = ["a and b", "a and c", "b and c", ""]
    rows = avatars.Rows(np.zeros((4, 1, 1, 3), np.uint8), answers, ["x"] * 4, pairs)
    said = {"a": np.array([0, 0, 2, 0]), "b": np.array([0, 0, 1, 0]), "c": np.array([0, 0, 1, 0])}
    found = avatars.score(said, rows)
    assert found["a"] == found["b"] == found["c"] == found["mean"] == 0.75
    assert found["all"] == 0.25 and found["new pair"] == pytest.approx(1 / 3)
    lines = avatars.table({"real": found, "w = 1": found}, about="about").splitlines()
    assert lines[2] == "| | real | w = 1 |" and lines[4] == "| a | 0.750 | 0.750 |"
    assert lines[-1] == "| new pair | 0.333 | 0.333 |"


def test_disturbed_pictures_stay_near_and_differ():
    import jax

    x = np.linspace(-1, 1, 2 * 16 * 16 * 3, dtype=np.float32).reshape(2, 16, 16, 3)
    one, other = (np.asarray(avatars.disturbed(x, jax.random.key(i))) for i in (0, 1))
    assert one.shape == x.shape and np.abs(one - other).max() > 0.01
    assert np.abs(one - x).mean() < 0.3


def test_rows_and_attributes_are_those_of_the_folder(tmp_path):
    with pytest.raises(UserError, match="holds no avatars: make the set by python examples/av"):
        avatars.read_attributes(tmp_path)
    with pytest.raises(UserError, match=r"metadata.jsonl is missing: make the set"):
        avatars.read_rows(tmp_path, ATTRIBUTES, size=16)
    (tmp_path / "build.json").write_text(json.dumps({"attributes": ATTRIBUTES}))
    table = []
    for number, (shade, side) in enumerate([("grey", "left"), ("dark", "right")]):
        pixels = np.full((16, 16, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        row = {"file_name": f"{number}.png", "text": f"{shade}, {side}", "shade": shade}
        table.append({**row, "side": side, **({"held_out": "shade and side"} if number else {})})
    text = "".join(json.dumps(row) + "\n" for row in table)
    (tmp_path / "metadata.jsonl").write_text(text)
    assert avatars.read_attributes(tmp_path) == ATTRIBUTES
    rows = avatars.read_rows(tmp_path, ATTRIBUTES, size=16)
    assert rows.answers["shade"].tolist() == [1, 0] and rows.answers["side"].tolist() == [0, 1]
    assert rows.captions == ["grey, left", "dark, right"] and rows.pairs == ["", "shade and side"]
    assert rows.images[:, 0, 0, 0].tolist() == [0, 40]
    last = avatars.part(rows, slice(1, None))
    assert last.captions == ["dark, right"] and last.answers["shade"].tolist() == [0]
    assert last.images.shape == (1, 16, 16, 3) and last.pairs == ["shade and side"]


def test_prompts_of_a_file(tmp_path):
    path = tmp_path / "prompts.txt"
    with pytest.raises(UserError, match=r"cannot read --prompts=.* .No such file"):
        avatars.read_prompts(path)
    path.write_text("\n")
    with pytest.raises(UserError, match=r"is empty; expected a prompt a line"):
        avatars.read_prompts(path)
    path.write_text("a smile, no hat\n\na frown, no hat\n")
    assert avatars.changes(avatars.read_prompts(path)) == ["", "a frown"]
