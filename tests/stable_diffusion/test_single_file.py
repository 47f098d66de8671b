"""Files of the original layout: names by diffusers' converters, parameters by those of folders."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import diffjax
from diffjax.errors import UserError
from diffjax.experiment import model_folder, plan_sampling
from diffjax.main import run
from diffjax.stable_diffusion import families, sources, text, unet, vae, weights
from diffjax.stable_diffusion.families import Encoder, Family
from diffjax.stable_diffusion.folder import load_folder
from tests.stable_diffusion.test_config import config_of

BEGINNINGS = {"sd15": "cond_stage_model.transformer.", "sd21": "cond_stage_model.model."}
XL = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")


@pytest.fixture(scope="session")
def original(tiny):
    """The module `original`, which needs torch."""
    path = Path(__file__).with_name("original.py")
    spec = importlib.util.spec_from_file_location("tests_stable_diffusion_original", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config(folder, name):
    path = folder / name / f"{'scheduler_' * (name == 'scheduler')}config.json"
    return json.loads(path.read_text())


def family_of(folder, name):
    """A family of the folder's configs."""
    if name.startswith("sdxl"):
        texts = (Encoder(config(folder, "text_encoder"), XL[0], False, "<|endoftext|>"),
                 Encoder(config(folder, "text_encoder_2"), XL[1], True, "!"))  # fmt: skip
    else:
        is_second = name == "sd21"
        texts = (Encoder(config(folder, "text_encoder"), BEGINNINGS[name[:4]], is_second,
                         "!" if is_second else "<|endoftext|>"),)  # fmt: skip
    scheduler = config(folder, "scheduler")
    return Family(
        name, config(folder, "unet"), config(folder, "vae"),
        {key: value for key, value in scheduler.items() if key != "prediction_type"}, texts,
        predicts=None if name == "sd21" else "epsilon",
    )  # fmt: skip


def state_of(original, pipeline, name):
    state = original.unet(pipeline.unet.state_dict(), 2, 2)
    state |= original.vae(pipeline.vae.state_dict(), 2, 1)
    first = pipeline.text_encoder.state_dict()
    if name == "sd21":
        state |= original.open_clip(first, BEGINNINGS[name], 3)
    else:
        state |= original.clip(first, XL[0] if name.startswith("sdxl") else BEGINNINGS["sd15"])
    if name.startswith("sdxl"):
        state |= original.open_clip(pipeline.text_encoder_2.state_dict(), XL[1], 3)
    return state


def write(path, state):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def check_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def check_same_model(found, expected):
    check_equal(found.params, expected.params)
    check_equal(found.stage_params, expected.stage_params)
    assert found.unet == expected.unet and found.stage == expected.stage
    for ours, theirs in zip(found.texts, expected.texts, strict=True):
        check_equal(ours.params, theirs.params)
        texts = ["a red cat", "", "dog " * 90]
        np.testing.assert_array_equal(ours.ids(texts), theirs.ids(texts))
    ours, theirs = found.scheduler, expected.scheduler
    np.testing.assert_array_equal(
        ours.prediction.schedule.signal_scale, theirs.prediction.schedule.signal_scale
    )
    assert ours.prediction.parametrisation == theirs.prediction.parametrisation
    assert ours[1:] == theirs[1:]
    assert found.zeros_for_none == expected.zeros_for_none


@pytest.fixture
def file_of(original, folders, monkeypatch, tmp_path):
    """family -> (file, state dict, folder)."""

    def made(name, **changes):
        folder, pipeline = folders(name)
        width = 64 if name.startswith("sdxl") else 32
        monkeypatch.setitem(families.FAMILIES, (32, width), family_of(folder, name))
        state = state_of(original, pipeline, name) | changes
        return write(tmp_path / f"{name}.safetensors", state), state, folder

    return made


@pytest.mark.parametrize("name", ("sd15", "sd21", "sdxl", "sd15_inpaint"))
def test_a_file_is_the_folder_it_was_made_of(tiny, file_of, name):
    path, _, folder = file_of(name)
    prediction = "v_prediction" if name == "sd21" else None
    found = load_folder(path, tokenizer=folder / "tokenizer", prediction=prediction)
    check_same_model(found, load_folder(folder))


@pytest.mark.parametrize("name", ("sd15", "sd21", "sdxl"))
def test_diffusers_reads_the_same_names(original, folders, name):
    """diffusers' converters, applied to the file's tensors, give its own state dicts again."""
    utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    _, pipeline = folders(name)
    state = state_of(original, pipeline, name)

    def check(found, expected):
        expected = {n: t for n, t in expected.items() if not n.endswith("position_ids")}
        assert set(found) == set(expected)
        for key, tensor in expected.items():
            np.testing.assert_array_equal(found[key].reshape(tensor.shape), tensor)

    check(
        utils.convert_ldm_unet_checkpoint(state, dict(pipeline.unet.config)),
        pipeline.unet.state_dict(),
    )  # fmt: skip
    check(
        utils.convert_ldm_vae_checkpoint(state, dict(pipeline.vae.config)),
        pipeline.vae.state_dict(),
    )  # fmt: skip

    def texts(state):
        return {n.removeprefix("text_model."): t for n, t in state.items()}

    if name in ("sd21", "sdxl"):
        encoder = pipeline.text_encoder if name == "sd21" else pipeline.text_encoder_2
        prefix = BEGINNINGS["sd21"] if name == "sd21" else XL[1]
        check(
            texts(utils.convert_open_clip_checkpoint(encoder, state, prefix)),
            texts(encoder.state_dict()),
        )  # fmt: skip
    if name in ("sd15", "sdxl"):
        prefix = XL[0] if name == "sdxl" else BEGINNINGS["sd15"]
        check(
            texts(utils.convert_ldm_clip_checkpoint(state, prefix)),
            texts(pipeline.text_encoder.state_dict()),
        )  # fmt: skip


def test_a_training_checkpoint(file_of, tmp_path):
    torch = pytest.importorskip("torch")
    _, state, folder = file_of("sd15")
    averages = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in state.items()}
    others = {"betas": torch.ones(9), "model_ema.decay": torch.ones(()), **averages}
    whole = {"epoch": 1, "global_step": 7, "state_dict": state | others, "callbacks": {}}
    path = tmp_path / "model.ckpt"
    torch.save(whole, path)
    found = load_folder(path, tokenizer=folder / "tokenizer")
    check_same_model(found, load_folder(folder))


def test_a_folder_of_torch_files(folders, tmp_path):
    torch = pytest.importorskip("torch")
    folder, pipeline = folders("sd15")
    made = tmp_path / "model"
    shutil.copytree(folder, made)
    for path in made.rglob("*.safetensors"):
        path.unlink()
    parts = {"text_encoder": "pytorch_model", "unet": "diffusion_pytorch_model",
             "vae": "diffusion_pytorch_model"}  # fmt: skip
    for part, stem in parts.items():
        state = getattr(pipeline, part).state_dict()
        if part != "unet":
            torch.save(state, made / part / f"{stem}.bin")
            continue
        index = {}
        for i in (0, 1):
            shard = dict(list(state.items())[i::2])
            torch.save(shard, made / part / f"{stem}-{i}.bin")
            index |= dict.fromkeys(shard, f"{stem}-{i}.bin")
        (made / part / f"{stem}.bin.index.json").write_text(json.dumps({"weight_map": index}))
    check_same_model(load_folder(made), load_folder(folder))


def test_marks_of_fine_tunings(original, file_of):
    torch = pytest.importorskip("torch")
    path, _, folder = file_of("sdxl", v_pred=torch.ones(1), ztsnr=torch.ones(1))
    found = load_folder(path, tokenizer=folder / "tokenizer").scheduler
    assert found.prediction.parametrisation.name == "v"
    assert found.prediction.schedule.signal_scale[-1] == 0 and found.grid.startswith("trailing")
    path, _, _ = file_of("sdxl", edm_mean=torch.ones(4))
    with pytest.raises(UserError, match="edm_mean"):
        load_folder(path, tokenizer=folder / "tokenizer")


def test_diffjax_loads_a_file(file_of):
    path, _, folder = file_of("sd15")
    model = diffjax.load(path, tokenizer=folder / "tokenizer")
    check_equal(model.params, diffjax.load(folder).params)
    assert model.about.name == "sd15.safetensors"


def test_a_file_by_config(file_of, tmp_path):
    path, _, folder = file_of("sd21")
    given = {"sample__prompt": "a cat", "sample__count": 1, "sample__steps": 2,
             "sample__format": "npz", "parallel__compile": False}  # fmt: skip
    of_file = {"model__tokenizer": str(folder / "tokenizer"), "model__prediction": "v_prediction"}
    config = config_of(path, **given, **of_file)
    assert run(config, tmp_path / "file", mode="sample") == 0
    assert run(config_of(folder, **given), tmp_path / "folder", mode="sample") == 0
    images = []
    for name in ("file", "folder"):
        (archive,) = (tmp_path / name / "generated").glob("*.npz")
        with np.load(archive) as found:
            images.append(found["images"])
    np.testing.assert_array_equal(*images)
    settled = model_folder.settled(config)
    assert settled.data.image_size == 16 and settled.diffusion.parametrisation == "v"
    plans = [plan_sampling.plan_here(model_folder.settled(one))
             for one in (config, config_of(folder, **given))]  # fmt: skip
    assert plans[0]._replace(name="") == plans[1]._replace(name="")
    for changes, message in (
        ({}, r"no vocabulary .* give config\.model\.tokenizer=FOLDER"),
        ({"model__tokenizer": str(folder / "tokenizer")}, r'config\.model\.prediction="epsilon"'),
        ({"model__folder": str(folder), **of_file}, r"leave out config\.model\.tokenizer"),
        ({"model__folder": str(folder / "model_index.json")}, r"it is no \.safetensors or \.ckpt"),
    ):
        with pytest.raises(UserError, match=message) as error:
            run(config_of(path, **{**given, **changes}), tmp_path / "none", mode="sample")
        assert "\n" not in str(error.value)


def refused(pattern, path, **how):
    with pytest.raises(UserError, match=pattern) as error:
        load_folder(path, **how)
    assert "\n" not in str(error.value)


def test_what_a_file_does_not_tell(file_of, tmp_path):
    path, _, folder = file_of("sd21")
    refused("no vocabulary.*tokenizer=FOLDER", path)
    refused('prediction="epsilon" .*"v_prediction"', path, tokenizer=folder / "tokenizer")
    refused("prediction is 'v'", path, tokenizer=folder / "tokenizer", prediction="v")
    refused("found no folder", path, tokenizer=tmp_path / "none", prediction="epsilon")
    refused("leave out tokenizer", folder, tokenizer=folder / "tokenizer")
    with pytest.raises(UserError, match="tokenizer is a setting of Stable Diffusion"):
        diffjax.load(tmp_path, tokenizer=folder)
    assert load_folder(path, tokenizer=folder / "tokenizer", prediction="epsilon")


def test_files_of_other_models(file_of, tmp_path, caplog):
    torch = pytest.importorskip("torch")
    _, state, folder = file_of("sd15")
    how = {"tokenizer": folder / "tokenizer"}
    stem = "model.diffusion_model.input_blocks.0.0.weight"
    other = tmp_path / "other.safetensors"
    refused(
        "of the original layout", write(other, {"double_blocks.0.weight": torch.ones(1)}), **how
    )
    refused("lora=FILE", write(other, {"lora_unet_a.lora_up.weight": torch.ones(1)}), **how)
    refused("8 channels inside", write(other, state | {stem: torch.ones(32, 8, 3, 3)}), **how)
    refused("64 after its first", write(other, state | {stem: torch.ones(64, 4, 3, 3)}), **how)
    name = "model.diffusion_model.out.2.bias"
    refused(rf"found {name} of shape \(5,\)", write(other, state | {name: torch.ones(5)}), **how)
    some = {key: tensor for key, tensor in state.items() if key != name}
    refused(r"found no tensor conv_out\.bias", write(other, some), **how)
    name = "first_stage_model.decoder.more.weight"
    refused("such as decoder.more", write(other, state | {name: torch.ones(1)}), **how)
    load_folder(write(other, state | {"control_model.a": torch.ones(1)}), **how)
    assert "1 tensors are not of sd15" in caplog.text


def test_damaged_files(file_of, tmp_path):
    torch = pytest.importorskip("torch")
    path, state, folder = file_of("sd15")
    how = {"tokenizer": folder / "tokenizer"}
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-100])
    refused("cannot read", cut, **how)
    whole, cut = tmp_path / "whole.ckpt", tmp_path / "cut.ckpt"
    torch.save({"state_dict": state}, whole)
    cut.write_bytes(whole.read_bytes()[:-100])
    refused("cannot read PyTorch weights", cut, **how)
    marker = tmp_path / "it-ran"
    torch.save({"state_dict": state, "callbacks": Malicious(marker)}, whole)
    refused(r"mkdir.*never executed", whole, **how)
    assert not marker.exists()
    torch.load(whole, weights_only=False)
    assert marker.exists()  # the attack is a real one


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


FULL = {"SD1": families.SD1, "SD2": families.SD2, "XL": families.XL}


@pytest.mark.parametrize(
    "name", ("SD2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SD1", "XL")))
)
def test_names_and_shapes_of_the_full_models(original, name, monkeypatch):
    """The published models' tensors, without numbers, from diffusers' configs to our parameters."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    family = FULL[name]
    keep = {key: value for key, value in family.unet.items() if not key.startswith("_")}
    with torch.device("meta"):
        network = diffusers.UNet2DConditionModel(
            **keep, use_linear_projection=name != "SD1"
        ).state_dict()
        autoencoder = diffusers.AutoencoderKL(
            **{key: value for key, value in family.vae.items() if not key.startswith("_")}
        ).state_dict()
    levels = 3 if name == "XL" else 4
    state = original.unet(network, levels, 2) | original.vae(autoencoder, 4, 2)
    for encoder in family.texts:
        values = dict(encoder.config)
        layers = values["num_hidden_layers"]
        kinds = values.pop("architectures", ["CLIPTextModel"])
        with torch.device("meta"):
            text_state = getattr(transformers, kinds[0])(
                transformers.CLIPTextConfig(**values)
            ).state_dict()
        if encoder.is_open_clip:
            state |= original.open_clip(text_state, encoder.prefix, layers)
        else:
            state |= original.clip(text_state, encoder.prefix)
    back = utils.convert_ldm_unet_checkpoint(state, {"layers_per_block": 2, **keep})
    assert {n: t.shape for n, t in back.items()} == {n: t.shape for n, t in network.items()}
    back = utils.convert_ldm_vae_checkpoint(state, {**family.vae})
    assert set(back) == set(autoencoder)

    tensors = Shapes({key: tuple(tensor.shape) for key, tensor in state.items()})
    assert families.recognise(tensors, Path("x")) == (family, 4)
    file = sources.File(Path("x"), tensors, family, 4)
    monkeypatch.setattr(sources, "file_of", lambda path: file)
    monkeypatch.setattr(
        weights, "_place", lambda view, shape, *_: view((slice(0, 1),) * len(shape))
    )
    found = unet.read(Path("x/unet"))
    unet.load(found, Path("x/unet"))
    stage, scaling = vae.read(Path("x/vae"), size=found.size)
    vae.load(stage, scaling, Path("x/vae"))
    for i in range(len(family.texts)):
        part = Path("x", "text_encoder" + "_2" * i)
        text.load(text.read(part, penultimate=name == "XL"), part)


class Shapes:
    """Tensors without numbers."""

    def __init__(self, shapes):
        self.shapes, self.files = shapes, dict.fromkeys(shapes, Path("x"))

    def shape(self, name):
        return self.shapes[name]

    def read(self, name, *, shape, index=()):
        assert self.shapes[name] == tuple(shape), name
        return np.broadcast_to(np.float32(0), shape)[index]
