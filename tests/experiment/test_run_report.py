"""`--mode=report`: the page about a run, read back by an HTML parser."""

import base64
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from diffjax import UserError, figures
from diffjax.experiment import defaults
from diffjax.experiment.run_report import html
from diffjax.main import main

VOID = {"meta", "img", "br", "line", "polyline", "circle"}


class Page(HTMLParser):
    """A page's text, headings, tables and addresses; every element must be closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.addresses, self.tags = [], [], [], set()
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "action")]
        assert not any(k.startswith("on") for k, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def pictures(self):
        return [base64.b64decode(a.split(",", 1)[1]) for a in self.addresses]


def write_run(folder, *, config=None, rows=40, evaluated=True):
    folder.mkdir(parents=True, exist_ok=True)
    config = config or defaults.diffusion()
    config.data.name = "digits"
    config.train.update(steps=400, learning_rate=0.0123, batch_size=10)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    lines = [
        {"step": 10 * i, "loss": 1 / i, "grad_norm": 2 / i, "learning_rate": 1e-3,
         "images_per_second": 50.0, "step_ms_p50": 20.0, "step_ms_p95": 25.0}
        for i in range(1, rows + 1)
    ]  # fmt: skip
    lines.append({"step": 10 * rows, "eval_loss": 0.0625})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    for step in range(0, 10 * rows + 1, 20):
        figures.save_png(
            folder / "samples" / f"step_{step:07}.png", np.full((8, 8, 1), step % 256, np.uint8)
        )
    if evaluated:
        (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    return folder


EVALUATION = {
    "step": 400, "num_samples": 500, "num_train_images": 1437, "features": "classifier",
    "frechet_distance": 1.2345, "floor_equal_count": 0.5432,
    "floor_equal_count_range": [0.4321, 0.6543], "floor_equal_count_images": 360,
    "precision": 0.912, "recall": 0.823, "test_precision": 0.934, "test_recall": 0.945,
    "notes": ["a note <b>of</b> the evaluation"], "class_counts": {"zero": 30, "one": 60},
    "classifier_accuracy": 0.987,
}  # fmt: skip


def test_a_page_has_what_the_run_has(tmp_path):
    found = Page(html(write_run(tmp_path / "my run")))
    assert "my run" in found.text and "Training of a diffusion model on digits" in found.text
    assert "400 of 400" in found.text and "4,000 in batches of 10" in found.text
    assert "1:20" in found.text  # 40 rows of 10 steps of 10 images, 50 images a second
    assert "lowest: 0.0625 at step 400" in found.text
    assert "train.learning_rate 0.0123" in found.text and "keys have their defaults" in found.text
    assert "1.234" in found.text and "0.5432 (0.4321 to 0.6543 in 10 draws)" in found.text
    assert "precision 0.912 0.934" in found.text and "a note <b>of</b> the evaluation" in found.text
    assert "Alpaydin" in found.text


def test_a_page_needs_nothing_from_elsewhere(tmp_path):
    found = Page(html(write_run(tmp_path)))
    assert not found.tags & {"script", "link", "iframe", "object"}
    assert all(address.startswith("data:image/") for address in found.addresses)


def test_grids_over_time_are_the_files(tmp_path):
    found = Page(html(write_run(tmp_path)))
    files = {path.read_bytes() for path in (tmp_path / "samples").glob("*.png")}
    pictures = found.pictures()
    assert len(pictures) == 8 and set(pictures) <= files
    assert "step 0 " in found.text and "step 400" in found.text


def test_texts_of_a_run_are_no_markup(tmp_path):
    config = defaults.diffusion()
    config.sample.prompt = "<script>alert(1)</script>"
    found = Page(html(write_run(tmp_path, config=config)))
    assert "script" not in found.tags and "<script>alert(1)</script>" in found.text


def test_where_a_run_was_resumed(tmp_path):
    write_run(tmp_path)
    starts = [
        {"step": step, "time": f"2026-01-0{day}T00:00:00+00:00", "devices": 2,
         "device_kind": "NVIDIA H200", "processor": "EPYC", "cores": 4, "system": "Linux x86_64",
         "versions": {"jax": "9.8.7", "diffjax": "0.1"}, "commit": "abc123", "parameters": 1234567}
        for day, step in ((1, 0), (2, 200))
    ]  # fmt: skip
    (tmp_path / "starts.jsonl").write_text("".join(json.dumps(s) + "\n" for s in starts))
    text = html(tmp_path)
    found = Page(text)
    assert "resumed after step 200" in found.text and "abc123" in found.text
    assert "2 x NVIDIA H200" in found.text and "jax 9.8.7" in found.text
    assert "1,234,567" in found.text and 'class="mark"' in text


@pytest.mark.parametrize("kind", ["autoencoder", "pixelcnn", "gan"])
def test_other_kinds_of_runs(tmp_path, kind):
    config = getattr(defaults, kind)()
    write_run(tmp_path, config=config, evaluated=False)
    rows = [{"step": 10, "loss": 1.0, "discriminator_loss": 0.5}]
    (tmp_path / "metrics.jsonl").write_text(json.dumps(rows[0]) + "\n")
    report = {"step": 10, "images": 360, "split": "test", "psnr": 21.5, "ssim": None, "l1": 0.1}
    (tmp_path / "evaluation.json").write_text(json.dumps(report))
    found = Page(html(tmp_path))
    assert "discriminator loss" in found.text and "PSNR in dB 21.5" in found.text


def test_a_likelihood_has_its_standard_error(tmp_path):
    write_run(tmp_path, evaluated=False)
    report = {"step": 4, "likelihood": "vlb", "given": "the class", "bits_per_dim": 2.3456,
              "standard_error": 0.0123, "of": "9 of the 9 test images", "what": "upper bound",
              "parts": {"prior": 0.001}}  # fmt: skip
    (tmp_path / "likelihood_vlb.json").write_text(json.dumps(report))
    assert "2.3456 ± 0.012" in Page(html(tmp_path)).text


def test_a_sweep_is_a_table(tmp_path):
    write_run(tmp_path, evaluated=False)
    reports = [
        {"scale": scale, **EVALUATION, "frechet_distance": scale / 2} for scale in (1.0, 3.0)
    ]
    (tmp_path / "evaluation_scales.json").write_text(json.dumps(reports))
    text = Page(html(tmp_path)).text
    assert "guidance scale" in text and "3 1.5 0.912 0.823" in text


@pytest.mark.parametrize(
    "harm",
    [
        lambda run: (run / "config.json").write_text('{"train": {"steps": 4'),
        lambda run: (run / "config.json").write_text('{"of_version": "2031"}'),
        lambda run: (run / "config.json").unlink(),
        lambda run: (run / "metrics.jsonl").unlink(),
        lambda run: (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo'),
        lambda run: (run / "metrics.jsonl").write_text('[1]\n{"loss": 1}\n{"step": "x"}\n'),
        lambda run: (run / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n'),
        lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\xfe"),
        lambda run: (run / "evaluation.json").write_text("{"),
        lambda run: (run / "evaluation.json").write_text('{"frechet_distance": null}'),
        lambda run: (run / "starts.jsonl").write_text('{"step": 0}\n{"step": 7}\n'),
        lambda run: (run / "samples" / "step_0000400.png").write_bytes(b"\x89PNG\r\n"),
        lambda run: shutil.rmtree(run / "samples"),
        lambda run: (run / "checkpoints" / "400").mkdir(parents=True),
    ],
)  # fmt: skip
def test_a_half_written_run_has_a_page(tmp_path, harm):
    harm(write_run(tmp_path))
    assert "Summary" in Page(html(tmp_path)).text


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        html(tmp_path)


def test_the_command_replaces_the_page(tmp_path, capsys, tiny_flags):
    run = write_run(tmp_path / "run")
    (run / "report.html").write_text("old")
    assert main([*tiny_flags, f"--workdir={run}", "--mode=report"]) == 0
    assert str(run / "report.html") in capsys.readouterr().out
    assert "Summary" in Page((run / "report.html").read_text()).text
    assert main([*tiny_flags, f"--workdir={tmp_path / 'none'}", "--mode=report"]) == 2
    assert not (tmp_path / "none").exists()


def test_a_folders_credits_are_found_where_the_folder_is_now(tmp_path):
    (tmp_path / "before" / "data" / "mine").mkdir(parents=True)
    (tmp_path / "before" / "data" / "mine" / "CREDITS.txt").write_text("Painted by A. Painter")
    run = write_run(tmp_path / "before" / "runs" / "mine")
    config = json.loads((run / "config.json").read_text())
    config["data"]["name"] = "folder:data/mine"
    (run / "config.json").write_text(json.dumps(config))
    at = {"workdir": str(run), "working_folder": str(tmp_path / "before")}
    (run / "origin.json").write_text(json.dumps(at))
    (tmp_path / "before").rename(tmp_path / "now")
    assert "A. Painter" in Page(html(tmp_path / "now" / "runs" / "mine")).text


def test_pictures_are_whole(tmp_path):
    run = write_run(tmp_path)
    path = run / "samples" / "step_0000400.png"
    with Image.open(path) as image:
        image.save(run / "samples.png")
    assert (run / "samples.png").read_bytes() in Page(html(run)).pictures()
