"""examples/emoji: both stages trained by the set's path, sampled, evaluated, loaded, resumed."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import diffjax
from diffjax import flags
from diffjax.experiment.diffusion import resolve
from diffjax.main import main

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "emoji"
SHORT = (
    "--config.data.image_size=8", "--config.train.steps=4", "--config.train.batch_size=16",
    "--config.train.warmup_steps=2", "--config.train.log_every=2", "--config.train.eval_every=4",
    "--config.train.checkpoint_every=4", "--config.train.sample_every=100",
    "--config.sample.count=6", "--config.sample.batch_size=6", "--config.evaluate.num_samples=20",
)  # fmt: skip
STAGE = (
    "--config.autoencoder.channels=8", "--config.autoencoder.patch=1",
    "--config.autoencoder.dtype=float32", "--config.autoencoder.latent_channels=2",
    "--config.loss.perceptual=none", "--config.loss.adversarial=none",
)  # fmt: skip
MODEL = (
    "--config.condition.text=transformer(width=8, heads=2, layers=1, length=8)",
    "--config.model.channels=8", "--config.model.head_channels=8", "--config.model.patch=1",
    "--config.model.multipliers=(1,)", "--config.model.attention_resolutions=()",
    "--config.sample.steps=3",
)  # fmt: skip
EMBEDDED = ("--config.condition.text=tests.embeddings:letters", "--config.embedding.dimensions=2")
PRIOR = (
    *EMBEDDED, "--config.data.embedding=tests.embeddings:quarters", "--config.model.width=16",
    "--config.model.layers=1", "--config.model.head_channels=8", "--config.sample.steps=3",
)  # fmt: skip
DECODER = (*EMBEDDED, "--config.condition.embedding=tests.embeddings:quarters")


@pytest.fixture(scope="module")
def runs(pictures, own_caches, compile_quickly):
    """(workdir, arguments) of each config, trained for four steps."""
    root = pictures.parent
    stage = f"--config.first_stage.workdir={root / 'autoencoder'}"
    made = {}
    for name, more in (
        ("autoencoder", STAGE),
        ("text_to_image", (*MODEL, stage)),
        ("prior", PRIOR),
        ("unclip", (*MODEL, *DECODER, stage)),
    ):
        arguments = [
            f"--config={EXAMPLE / f'{name}.py'}:tiny", f"--workdir={root / name}",
            f"--config.data.dir={pictures}", *SHORT, *more,
        ]  # fmt: skip
        assert main(arguments) == 0
        made[name] = root / name, arguments
    return made


def prompts_of(workdir: Path) -> list[str]:
    (archive,) = (workdir / "generated").glob("*.npz")
    with np.load(archive) as found:
        prompts, images = found["prompts"].tolist(), found["images"]
    archive.unlink()
    assert images.shape == (len(prompts), 8, 8, 3)
    return prompts


def test_both_stages_are_trained_by_the_path(runs):
    for workdir, _ in runs.values():
        stored = json.loads((workdir / "config.json").read_text())
        assert stored["data"]["name"] == "emoji_set:pictures"
        metrics = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        losses = [row["eval_loss"] for row in metrics if "eval_loss" in row]
        assert len(losses) == 1 and np.isfinite(losses).all()


def test_without_a_prompt_held_out_captions_are_drawn(runs, capsys):
    workdir, arguments = runs["text_to_image"]
    assert main([*arguments, "--mode=sample"]) == 0
    prompts = prompts_of(workdir)
    assert len(set(prompts)) == 6 and all("dark skin tone" in prompt for prompt in prompts)
    prompt = "waving hand, light skin tone, twitter style"
    assert main([*arguments, "--mode=sample", f"--config.sample.prompt={prompt}"]) == 0
    assert prompts_of(workdir) == [prompt] * 6


def test_a_decoder_of_latents_draws_what_the_prior_embeds(runs, capsys):
    prior, _ = runs["prior"]
    workdir, arguments = runs["unclip"]
    prompts = "waving hand, light skin tone, twitter style | folded hands, google style"
    sample = [*arguments, "--mode=sample", f"--config.sample.prompt={prompts}"]
    assert main([*sample, f"--config.sample.prior={prior}"]) == 0
    assert prompts_of(workdir) == [text.strip() for text in prompts.split("|")] * 3
    # A batch has the embeddings of the pictures that its latents are of.
    config, *_ = flags.parse(arguments)
    setup = resolve(config)
    batch, pixels = next(setup.batches()), next(setup.own_rows(setup.source))
    assert batch["image"].shape == (16, 4, 4, 4)
    wanted = setup.conditions.embedding.of_images(pixels["image"])
    np.testing.assert_allclose(batch["embedding"], wanted, atol=1e-3)


def test_held_out_pictures_are_evaluated(runs, capsys):
    workdir, arguments = runs["autoencoder"]
    assert main([*arguments, "--mode=evaluate"]) == 0
    report = json.loads((workdir / "evaluation.json").read_text())
    assert (report["split"], report["images"]) == ("test", 8) and np.isfinite(report["psnr"])


def test_a_model_is_loaded_without_the_example_and_its_pictures(
    runs, pictures, tmp_path, monkeypatch
):
    workdir, _ = runs["text_to_image"]
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p) != EXAMPLE])
    monkeypatch.delitem(sys.modules, "emoji_set")
    shutil.copytree(workdir, tmp_path / "run")
    rewrite(tmp_path / "run", {"dir": str(tmp_path / "nowhere")})
    model = diffjax.load(tmp_path / "run")
    assert model.step == 4 and model.about.has_captions
    assert model.sample(["folded hands, google style"], seed=1).shape == (1, 8, 8, 3)


def test_a_run_on_the_folder_itself_goes_on(runs, pictures, tmp_path, capsys):
    """As those from before the set had a module."""
    workdir, arguments = runs["text_to_image"]
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    rewrite(run, {"name": f"folder:{pictures}", "dir": ""})
    assert diffjax.load(run).step == 4
    arguments = [*arguments, f"--workdir={run}", "--config.train.steps=6"]
    assert main([*arguments, "--mode=sample"]) == 2
    assert "holds a run with config.data.name = 'folder:" in capsys.readouterr().err
    arguments += [f"--config.data.name=folder:{pictures}", "--config.data.dir="]
    assert main(arguments) == 0
    assert "resuming from step 4" in capsys.readouterr().out
    assert diffjax.load(run).step == 6


def rewrite(run: Path, data: dict[str, str]) -> None:
    stored = json.loads((run / "config.json").read_text())
    stored["data"] |= data
    (run / "config.json").write_text(json.dumps(stored))
