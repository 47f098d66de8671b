"""`config.model.folder`: the settings of a folder, and its pictures by the command line."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diffjax
from diffjax.errors import UserError
from diffjax.experiment import model_folder, process, schema
from diffjax.main import main, run
from diffjax.stable_diffusion import scheduler

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = ROOT / "experiments" / "stable_diffusion.py"


def config_of(folder, **changes):
    config = schema.complete(runpy.run_path(str(EXPERIMENT))["get_config"]())
    config.model.folder = str(folder)
    config.model.dtype = "float32"
    for key, value in changes.items():
        section, name = key.split("__")
        with config.ignore_type():
            config[section][name] = value
    schema.check(config)
    return config


def draw(arguments, folder, workdir, steps=3):
    return main([
        f"--config={EXPERIMENT}", f"--config.model.folder={folder}", f"--workdir={workdir}",
        "--config.model.dtype=float32", f"--config.sample.steps={steps}", *arguments,
    ])  # fmt: skip


@pytest.mark.parametrize("family", ("sd15", pytest.param("sdxl", marks=pytest.mark.slow)))
def test_samples_are_those_of_load(folders, tmp_path, family):
    folder, _ = folders(family)
    code = draw(
        ["--mode=sample", "--config.sample.prompt=a red cat|dog", "--config.sample.count=3",
         "--config.sample.batch_size=3", "--config.sample.seed=5"], folder, tmp_path,
    )  # fmt: skip
    assert code == 0
    (archive,) = (tmp_path / "generated").glob("*.npz")
    with np.load(archive) as found:
        assert found["prompts"].tolist() == ["a red cat", "dog", "a red cat"]
        images = found["images"]
    expected = diffjax.load(folder).sample(
        ["a red cat", "dog"], count=3, batch_size=3, seed=5, steps=3
    )
    np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize(
    ("family", "task"),
    (
        ("sd15", "vary(strength=0.7)"),
        pytest.param("sd15_inpaint", "inpaint", marks=pytest.mark.slow),
        pytest.param("sd15", "inpaint", marks=pytest.mark.slow),
    ),
)
def test_edits_are_those_of_load(folders, tmp_path, family, task):
    folder, _ = folders(family)
    image = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    known = np.arange(24)[:, None] < np.full(16, 12)
    Image.fromarray(np.where(known, 255, 0).astype(np.uint8)).save(tmp_path / "mask.png")
    masked = task == "inpaint"
    arguments = ["--config.edit.mask=" + str(tmp_path / "mask.png")] if masked else []
    code = draw(
        ["--mode=edit", f"--config.edit.task={task}", "--config.edit.prompt=a cat",
         f"--config.edit.images={tmp_path / 'image.png'}", "--config.edit.count=1",
         "--config.data.image_size=(24, 16)", *arguments], folder, tmp_path,
    )  # fmt: skip
    assert code == 0
    (archive,) = (tmp_path / "edited").glob("*.npz")
    expected = diffjax.load(folder).edit(
        image[None], task, prompts=["a cat"], count=1, steps=3, mask=known if masked else None
    )
    with np.load(archive) as found:
        np.testing.assert_array_equal(found["images"], expected)


def test_an_inpainting_network_draws_by_prompts_alone(folders, tmp_path):
    folder, _ = folders("sd15_inpaint")
    code = draw(
        ["--mode=sample", "--config.sample.prompt=a cat", "--config.sample.count=1"], folder,
        tmp_path, steps=2,
    )  # fmt: skip
    assert code == 0 and len(list((tmp_path / "generated").iterdir())) == 2


CHANGES = (
    {},
    {"beta_schedule": "linear", "num_train_timesteps": 500},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
)


@pytest.fixture
def copied(folders, tmp_path):
    """A folder whose small files may be changed; nothing but these is read of it."""
    folder = tmp_path / "copy"
    shutil.copytree(folders("sd15")[0], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("changes", CHANGES)
def test_the_noise_process_is_the_folders(copied, changes):
    change(copied / "scheduler/scheduler_config.json", **changes)
    expected = scheduler.read(copied / "scheduler")
    config = model_folder.settled(config_of(copied))
    found = process.diffusion(config)
    np.testing.assert_array_equal(
        found.schedule.signal_scale, expected.prediction.schedule.signal_scale
    )
    assert found[1:] == expected.prediction[1:]
    sample = config.sample
    assert (sample.sampler, sample.grid, sample.threshold) == expected[1:4]
    assert sample.guidance == "classifier_free(scale=7.5)"
    assert config.data.image_size == 16 and config.data.channels == 3
    # It is settled.
    assert model_folder.settled(config).to_dict() == config.to_dict()


def test_what_is_set_stays(copied):
    config = model_folder.settled(config_of(
        copied, sample__sampler="euler", sample__guidance="none", data__image_size=(32, 16),
        diffusion__schedule="linear_beta(T=100)", diffusion__parametrisation="v",
        diffusion__zero_terminal_snr=True,
    ))  # fmt: skip
    assert config.sample.sampler == "euler" and config.sample.guidance == "none"
    assert config.data.image_size == (32, 16) and config.diffusion.zero_terminal_snr
    assert process.diffusion(config).schedule.T == 100


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"model__folder": ""}, "config.model.folder is empty: give a folder"),
        ({"model__folder": "/no/such"}, "config.model.folder = '/no/such': there is no such"),
        ({"model__folder": str(ROOT)}, r"it has no model_index\.json"),
        ({"first_stage__workdir": "runs/x"}, "config.first_stage.workdir = 'runs/x': config.model"),
        ({"condition__text": "minilm"}, "config.condition.text = 'minilm': .* set it to 'folder'"),
        ({"condition__map": "edges"}, "config.condition.map = 'edges': .* set it to 'none'"),
        ({"model__class_conditional": True}, "config.model.class_conditional = True"),
        ({"data__channels": 1}, "config.data.channels = 1: the images of .* have 3"),
        ({"data__image_size": 15}, "height is 15: expected a multiple of 2, such as 14"),
        ({"diffusion__objective": "hybrid"}, "objective = 'hybrid': config.model.folder has"),
        ({"diffusion__parametrisation": "categorical"}, "'categorical': config.model.folder has"),
        ({"model__dtype": "float8"}, "config.model.dtype = 'float8': expected one of float32"),
        ({"model__attention": "linear"}, "config.model.attention = 'linear': expected one of soft"),
        ({"sample__prompt": ""}, "nothing to condition on: give prompts"),
        ({"sample__sampler": "magic"}, "config.sample.sampler = 'magic'"),
    ),
)
def test_wrong_configs(folders, tmp_path, changes, message):
    given = {"sample__prompt": "a", "sample__count": 1} | changes
    with pytest.raises(UserError, match=message) as error:
        run(config_of(folders("sd15")[0], **given), tmp_path / "run", mode="sample")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "generated").exists()


def test_listed_betas_need_a_schedule(copied):
    path = copied / "scheduler/scheduler_config.json"
    change(path, trained_betas=[0.1, 0.2], num_train_timesteps=2)
    with pytest.raises(UserError, match=r"lists its betas .* set config\.diffusion\.schedule"):
        model_folder.settled(config_of(copied))


def test_another_network_knows_no_folder(tmp_path):
    config = runpy.run_path(str(ROOT / "experiments/digits.py"))["get_config"]()
    config.diffusion.schedule = "folder"
    with pytest.raises(UserError, match=r"config\.diffusion\.schedule = 'folder'"):
        run(config, tmp_path, mode="sample")


def test_the_config_is_printed_without_a_folder(capsys):
    assert main([f"--config={EXPERIMENT}", "--mode=config"]) == 0
    assert "config.model.folder = ''" in capsys.readouterr().out
