"""Folders that are written, read back by diffjax and run by diffusers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from diffjax import parametrisations, schedules
from diffjax.errors import UserError
from diffjax.stable_diffusion.folder import load_folder
from diffjax.stable_diffusion.save import save

FAMILIES = (
    "sd15", "sdxl", *(pytest.param(f, marks=pytest.mark.slow) for f in ("sd21", "sd15_inpaint")),
)  # fmt: skip
PROMPT = "a red cat"


@pytest.fixture(scope="module")
def read(folders):
    made = {}

    def of(family):
        if family not in made:
            made[family] = load_folder(folders(family)[0])
        return made[family]

    return of


def weights(folder):
    """Every tensor of every file, by file and name."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            assert file.metadata()["format"] == "pt"
            for name in file.keys():  # noqa: SIM118  no mapping
                found[f"{path.parent.name}/{name}"] = file.get_tensor(name)
    return found


def same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_has_the_same_tensors_and_diffjax_reads_it_back(folders, read, tmp_path, family):
    folder, out = folders(family)[0], tmp_path / "out"
    written = save(read(family), out)
    assert sorted(written) == sorted(path for path in out.rglob("*") if path.is_file())
    stored = {name.replace("/text_model.", "/"): tensor for name, tensor in weights(out).items()}
    expected = {
        name.replace("/text_model.", "/"): tensor for name, tensor in weights(folder).items()
    }
    assert stored.keys() == expected.keys()
    for name, tensor in expected.items():
        assert stored[name].dtype == tensor.dtype and stored[name].shape == tensor.shape, name
        assert (stored[name] == tensor).all(), name
    again, first = load_folder(out), read(family)
    same(again.params, first.params)
    same(again.stage_params.params, first.stage_params.params)
    same([part.params for part in again.texts], [part.params for part in first.texts])
    assert again.unet == first.unet and again.scheduler.sampler == first.scheduler.sampler


def image(pipeline, latents, family):
    import torch

    options = {}
    if family.endswith("inpaint"):
        options = {"image": torch.zeros(1, 3, 16, 16), "mask_image": torch.ones(1, 1, 16, 16)}
    with torch.no_grad():
        return pipeline(
            PROMPT, latents=latents, num_inference_steps=3, output_type="np",
            generator=torch.Generator().manual_seed(0), height=16, width=16, **options,
        ).images  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_draws_the_same_image(folders, read, tmp_path, family):
    import diffusers
    import torch

    pipeline = folders(family)[1]
    save(read(family), tmp_path / "out", shard_bytes=1_000_000)
    assert list((tmp_path / "out/unet").glob("*.index.json"))
    loaded = type(pipeline).from_pretrained(tmp_path / "out")
    assert isinstance(loaded, diffusers.DiffusionPipeline)
    loaded.set_progress_bar_config(disable=True)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    found, expected = image(loaded, latents, family), image(pipeline, latents, family)
    assert np.ptp(expected) > 0.3
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_other_parameters_are_written(read, tmp_path):
    folder = read("sd15")
    params = jax.tree.map(lambda x: 2 * x, folder.params)
    save(folder, tmp_path / "out", params=params)
    again = load_folder(tmp_path / "out")
    same(again.params, params)
    same(again.stage_params.params, folder.stage_params.params)


@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_half_precision(read, tmp_path, dtype):
    import diffusers
    import torch

    folder = read("sd21")
    save(folder, tmp_path / "out", dtype=dtype)
    stored = weights(tmp_path / "out")
    assert {tensor.dtype for tensor in stored.values()} == {getattr(torch, dtype)}
    config = json.loads((tmp_path / "out/text_encoder/config.json").read_text())
    assert config["dtype"] == dtype
    kernel = folder.params["stem"]["kernel"].transpose(3, 2, 0, 1)
    expected = np.asarray(kernel.astype(dtype).astype(jnp.float32))
    np.testing.assert_array_equal(stored["unet/conv_in.weight"].float().numpy(), expected)
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    assert loaded.text_encoder.dtype == getattr(torch, dtype)


def test_shards_have_an_index_of_all_tensors(read, tmp_path):
    save(read("sd15"), tmp_path / "out", shard_bytes=300_000)
    unet = tmp_path / "out/unet"
    index = json.loads((unet / "diffusion_pytorch_model.safetensors.index.json").read_text())
    shards = sorted(unet.glob("*.safetensors"))
    assert len(shards) > 5 and {path.name for path in shards} == set(index["weight_map"].values())
    for path in shards:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
        assert {index["weight_map"][name] for name in names} == {path.name}
        assert path.stat().st_size < 320_000 or len(names) == 1
    total = sum(4 * leaf.size for leaf in jax.tree.leaves(read("sd15").params))
    assert index["metadata"]["total_size"] == total


def test_another_noise_process_is_in_the_schedulers_config(read, tmp_path):
    folder = read("sd15")
    prediction = folder.scheduler.prediction._replace(
        schedule=schedules.cosine(500), parametrisation=parametrisations.v
    )
    changed = folder._replace(scheduler=folder.scheduler._replace(prediction=prediction))
    save(changed, tmp_path / "out")
    config = json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())
    assert config["prediction_type"] == "v_prediction" and config["num_train_timesteps"] == 500
    again = load_folder(tmp_path / "out").scheduler.prediction
    assert again.parametrisation.name == "v"
    np.testing.assert_allclose(
        again.schedule.signal_scale, schedules.cosine(500).signal_scale, atol=1e-7
    )
    import diffusers

    theirs = diffusers.DDIMScheduler.from_pretrained(tmp_path / "out/scheduler")
    np.testing.assert_allclose(
        theirs.alphas_cumprod, schedules.cosine(500).alpha_bar[1:], atol=1e-6
    )


def test_a_filter_of_the_folder_is_copied_and_left_out_where_it_is_a_pickle(
    folders, tmp_path, caplog
):
    import shutil

    source = tmp_path / "source"
    shutil.copytree(folders("sd15")[0], source)
    index = json.loads((source / "model_index.json").read_text())
    kind = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (source / "model_index.json").write_text(json.dumps(index | {"safety_checker": kind}))
    (source / "safety_checker").mkdir()
    for name in ("config.json", "pytorch_model.bin", "model.safetensors"):
        (source / "safety_checker" / name).write_bytes(name.encode())
    save(load_folder(source), tmp_path / "one")
    copied = sorted(path.name for path in (tmp_path / "one/safety_checker").iterdir())
    assert copied == ["config.json", "model.safetensors"]
    stored = json.loads((tmp_path / "one/model_index.json").read_text())
    assert stored["safety_checker"] == kind
    (source / "safety_checker/model.safetensors").unlink()
    save(load_folder(source), tmp_path / "two")
    stored = json.loads((tmp_path / "two/model_index.json").read_text())
    assert stored["safety_checker"] == [None, None] and "left out" in caplog.text


def without_files(folder, tmp_path):
    return folder._replace(path=tmp_path / "gone")


def without_a_parameter(folder, tmp_path):
    return folder._replace(params={k: v for k, v in folder.params.items() if k != "stem"})


def with_another_word(folder, tmp_path):
    part = folder.texts[0]
    table = part.params["word"]["embedding"]
    longer = np.concatenate([table, table[:1]])
    params = {**part.params, "word": {"embedding": longer}}
    return folder._replace(texts=(part._replace(params=params),))


def continuous(folder, tmp_path):
    prediction = folder.scheduler.prediction._replace(schedule=schedules.rectified_flow())
    return folder._replace(scheduler=folder.scheduler._replace(prediction=prediction))


@pytest.mark.parametrize(
    ("change", "how", "message"),
    (
        (without_files, {}, r"found no model_index\.json in .*gone"),
        (without_a_parameter, {}, r"another network than that of .*unet/config\.json"),
        (with_another_word, {}, r"another network than that of .*text_encoder/config\.json"),
        (continuous, {}, "expected a discrete schedule"),
        (None, {"dtype": "int8"}, "dtype is 'int8': expected float32 or"),
        (None, {"shard_bytes": 0}, "shard_bytes is 0"),
    ),
)
def test_what_can_not_be_written(read, tmp_path, change, how, message):
    folder = read("sd15") if change is None else change(read("sd15"), tmp_path)
    with pytest.raises(UserError, match=message) as error:
        save(folder, tmp_path / "out", **how)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_or_not_to_be_had(read, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="full is not empty: give a new folder"):
        save(read("sd15"), tmp_path / "full")
    with pytest.raises(UserError, match=r"cannot write .*file/out"):
        save(read("sd15"), tmp_path / "full/file/out")
    save(read("sd15"), tmp_path / "empty")
    assert (tmp_path / "empty/model_index.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


def test_an_error_half_way_leaves_nothing(read, tmp_path, monkeypatch):
    from diffjax.stable_diffusion import save as module

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_copy", fail)
    with pytest.raises(OSError, match="No space"):
        save(read("sd15"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_loaded_pipeline_saves_itself(folders, read, tmp_path):
    import diffjax

    model = diffjax.load(folders("sd15")[0], dtype="bfloat16")
    written = model.save(tmp_path / "one", dtype="float32", shard_bytes=500_000)
    assert all(path.is_file() for path in written)
    expected = jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), read("sd15").params)
    same(load_folder(tmp_path / "one").params, expected)
    # Another size is the same model.
    model.at_size(24, 32).save(tmp_path / "two")
    same(load_folder(tmp_path / "two", dtype="bfloat16").params, model.params)


def command(*arguments):
    from pathlib import Path

    from diffjax.main import main

    experiment = Path(__file__).resolve().parents[2] / "experiments/stable_diffusion.py"
    return main([f"--config={experiment}", "--mode=export", *arguments])


def test_the_command_writes_an_untrained_folder_with_other_settings(
    folders, read, tmp_path, capsys
):
    code = command(
        f"--config.model.folder={folders('sd15')[0]}", f"--workdir={tmp_path / 'run'}",
        f"--out={tmp_path / 'out'}", "--format=diffusers", "--config.diffusion.parametrisation=v",
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    again = load_folder(tmp_path / "out")
    same(again.params, read("sd15").params)
    # In float32, as all that diffusers reads must be of one type, though config.model.dtype is not.
    same([text.params for text in again.texts], [text.params for text in read("sd15").texts])
    assert again.scheduler.prediction.parametrisation.name == "v"
    assert f"wrote {tmp_path / 'out/unet'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (["--format=pickle"], "format"),
        (["--format=lora"], "--format=lora is for runs with config.model.lora"),
        (["--format=diffusers", "--mode=sample"], "--format is only for --mode=export"),
        (["--format=diffusers", "--config.diffusion.time_input=scaled"], "time_input = 'step'"),
        (["--format=diffusers", "--out="], "--out= is empty"),
    ),
)
def test_wrong_flags(folders, tmp_path, capsys, arguments, message):
    folder = f"--config.model.folder={folders('sd15')[0]}"
    out = f"--out={tmp_path / 'out'}"
    assert command(folder, f"--workdir={tmp_path / 'run'}", out, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_of_adapters_is_a_folder_with_them_merged_or_a_file_of_them(
    folders, tmp_path, monkeypatch, capsys
):
    from PIL import Image

    import diffjax
    from diffjax.models.lora import Adapter, merge

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "pictures").mkdir()
    rows = []
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"pictures/{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": "a red cat"}))
    (tmp_path / "pictures/metadata.jsonl").write_text("\n".join(rows))
    flags = [
        f"--config.model.folder={folders('sd15')[0]}", f"--workdir={tmp_path / 'run'}",
        f"--config.data.name=folder:{tmp_path / 'pictures'}", "--config.train.steps=2",
        "--config.train.warmup_steps=0", "--config.train.batch_size=2",
        "--config.train.learning_rate=0.1", "--config.train.ema_decay=0.5",
        "--config.train.sample_every=10", "--config.model.lora=lora(rank=2, alpha=4.0)",
        "--config.sample.steps=2", "--config.sample.count=1", "--config.sample.batch_size=1",
        "--config.model.dtype=float32",
    ]  # fmt: skip
    out = f"--out={tmp_path / 'early'}"
    assert command(*flags, out, "--format=lora") == 2
    assert "train first" in capsys.readouterr().err
    assert command(*flags, "--mode=train") == 0
    for form in ("diffusers", "lora"):
        code = command(*flags, f"--out={tmp_path / form}", f"--format={form}")
        assert code == 0, capsys.readouterr().err
    trained = diffjax.load(tmp_path / "run").params
    same(load_folder(tmp_path / "diffusers").params, trained)
    # Whatever the network computes in.
    low = ["--config.model.dtype=bfloat16", f"--out={tmp_path / 'low'}", "--format=diffusers"]
    assert command(*flags, *low) == 0
    same(load_folder(tmp_path / "low").params, trained)
    place = ("down0_0_transformer", "self0_v", "kernel")
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v.lora_{}.weight"
    with safe_open(tmp_path / "lora/pytorch_lora_weights.safetensors", framework="np") as file:
        down, up = (file.get_tensor(name.format(key)).T for key in "AB")
    plain = load_folder(folders("sd15")[0]).params
    found = merge(plain, {place: Adapter(down, up, 2.0)})
    kernel = found["down0_0_transformer"]["self0_v"]["kernel"]
    np.testing.assert_allclose(
        kernel, trained["down0_0_transformer"]["self0_v"]["kernel"], atol=1e-6
    )
    assert np.abs(kernel - plain["down0_0_transformer"]["self0_v"]["kernel"]).max() > 1e-3
