"""examples/avatars: trained by the set's path, sampled by its captions, and judged."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import avatar_folder as avatars
from avatar_names import PARTS
from avatar_pictures import rgb
from benchmarks import avatars as judge
from diffjax.main import main

pytestmark = pytest.mark.slow
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "avatars"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small set, laid out as make.py makes it, of pictures of two colours."""
    out = tmp_path_factory.mktemp("avatars") / "set"
    for split, count in (("train", 48), ("test", 8)):
        (out / split).mkdir(parents=True)
        lines = []
        for row in avatars.rows(split, count=count, seed=0):
            pixels = np.empty((8, 8, 3), np.uint8)
            pixels[:4] = rgb(PARTS["background"][row["background"]])
            pixels[4:] = rgb(PARTS["clothes_colour"][row["clothes_colour"]])
            Image.fromarray(pixels).save(out / split / row["file_name"])
            lines.append(json.dumps(row) + "\n")
        (out / split / "metadata.jsonl").write_text("".join(lines))
    attributes = {name: list(values) for name, values in PARTS.items()}
    (out / "build.json").write_text(json.dumps({"attributes": attributes}))
    return out


@pytest.fixture(scope="module")
def run(folder, own_caches, compile_quickly) -> tuple[Path, list[str]]:
    """(workdir, arguments), trained for four steps."""
    workdir = folder.parent / "run"
    arguments = [
        f"--config={EXAMPLE / 'text_to_image.py'}:tiny", f"--workdir={workdir}",
        f"--config.data.dir={folder}", "--config.data.image_size=8", "--config.train.steps=4",
        "--config.train.batch_size=16", "--config.train.warmup_steps=2",
        "--config.train.log_every=2", "--config.train.eval_every=4",
        "--config.train.checkpoint_every=4", "--config.train.sample_every=100",
        "--config.sample.count=4", "--config.sample.batch_size=4", "--config.sample.steps=2",
        "--config.condition.text=transformer(width=8, heads=2, layers=1, length=56)",
        "--config.model.channels=8", "--config.model.head_channels=8",
        "--config.model.multipliers=(1,)", "--config.model.attention_resolutions=()",
    ]  # fmt: skip
    assert main(arguments) == 0
    return workdir, arguments


def test_held_out_captions_are_drawn(run, capsys):
    workdir, arguments = run
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["data"]["name"] == "avatar_set:pictures"
    assert main([*arguments, "--mode=sample"]) == 0
    (archive,) = (workdir / "generated").glob("*.npz")
    with np.load(archive) as found:
        prompts, images = found["prompts"].tolist(), found["images"]
    wanted = [row["text"] for row in avatars.rows("test", count=8, seed=0)]
    assert set(prompts) <= set(wanted) and len(images) == 4


def test_no_caption_is_cut():
    config = (EXAMPLE / "text_to_image.py").read_text()
    from diffjax.conditioning.vocabulary import split_words

    lengths = [
        len(split_words(row["text"]))
        for split in ("train", "test")
        for row in avatars.rows(split, count=2000, seed=1)
    ]
    assert 40 < max(lengths) <= 56 and config.count("length=56") == 2


def test_samples_are_judged(run, capsys):
    workdir, arguments = run
    few = ["--count=4", "--scales", "0", "2", "--judge-steps=8"]
    judge.main([*few, *arguments])
    report = json.loads((workdir / "avatars.json").read_text())
    assert list(report) == ["real", "w = 0", "w = 2"]
    for scores in report.values():
        assert list(scores) == [*PARTS, "mean", "all", "new pair"]
        assert all(0 <= share <= 1 for share in scores.values())
    table = (workdir / "avatars.md").read_text()
    assert "| hair colour | " in table and "4 held-out captions" in table
    prompts = (EXAMPLE / "prompts.txt").read_text().splitlines()
    with Image.open(workdir / "avatars.png") as image:
        assert image.height >= len(prompts) * 16 and image.width >= judge.NOISES * 16
    printed = capsys.readouterr().out
    assert "best: w = " in printed and table in printed
