"""--mode=export in other formats: files that are run without diffjax, and what is refused."""

import json

import numpy as np
import pytest

import diffjax
from diffjax.errors import UserError
from diffjax.inference.sample_conditions import Choice
from diffjax.main import main, run


def stablehlo(folder, program, inputs):
    """A program's outputs by jax.export alone."""
    from jax import export
    from safetensors.numpy import load_file

    about = described(folder)["programs"][program]
    content = bytearray((folder / about["file"]).read_bytes())
    return export.deserialize(content).call(load_file(folder / about["parameters"]), inputs)


def onnx(folder, program, inputs):
    """A program's outputs by onnxruntime alone."""
    import onnxruntime

    about = described(folder)["programs"][program]
    session = onnxruntime.InferenceSession(str(folder / about["file"]))
    names = list(about["outputs"])
    return dict(zip(names, session.run(names, inputs), strict=True))


CALLS = {
    "stablehlo": pytest.param("stablehlo", stablehlo, "flatbuffers", id="stablehlo"),
    "onnx": pytest.param("onnx", onnx, "jax2onnx", id="onnx"),
}


def described(folder):
    return json.loads((folder / "model.json").read_text())


def typed(about, inputs):
    """Inputs of the types that model.json names."""
    kinds = about["programs"]["denoiser"]["inputs"]
    assert list(kinds) == list(inputs)
    for name, array in inputs.items():
        assert list(array.shape[1:]) == kinds[name]["shape"][1:]
    return {name: array.astype(kinds[name]["dtype"]) for name, array in inputs.items()}


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("form", "call", "needed"), CALLS.values())
def test_the_loop_of_the_description_draws_the_models_samples(
    tiny_run, tiny_flags, tmp_path, capsys, form, call, needed
):
    pytest.importorskip(needed)
    flags = [*tiny_flags, f"--workdir={tiny_run}", "--mode=export", f"--format={form}"]
    assert main([*flags, f"--out={tmp_path / 'out'}"]) == 0, capsys.readouterr().err
    about = described(tmp_path / "out")
    printed = {line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines()}
    assert printed == {path.name for path in (tmp_path / "out").iterdir()}
    assert about["step"] == 6 and len(about["class_names"]) == 10
    if form == "stablehlo":
        assert "6 months newer" in about["expires"] and "3 weeks older" in about["expires"]
    model = diffjax.load(tiny_run)
    how = {"sampler": "ddim", "guidance": "none", "threshold": "none"}
    generator = model.generator(**how).of(seed=4)
    labels = np.arange(3)
    eps, _ = generator.noise(np.arange(3))
    plan = about["schedule"]
    t, signal, noise = (plan[key] for key in ("t", "signal_scale", "noise_scale"))
    x = np.asarray(eps) * np.float32(noise[0])
    for i in range(len(t) - 1):
        inputs = typed(about, {"x_t": x, "t": np.full(3, t[i]), "label": labels})
        found = call(tmp_path / "out", "denoiser", inputs)
        x = np.float32(signal[i + 1]) * found["x_0"] + np.float32(noise[i + 1]) * found["eps"]
    cond = generator.conditions.of(Choice(labels=(0, 1, 2))).batch(0, 3)
    expected = generator.function()(model.params, np.arange(3), cond, None, np.uint32(4)).x_0
    np.testing.assert_allclose(np.asarray(x), expected, atol=2e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("form", "call", "needed"), CALLS.values())
def test_a_latent_model_has_its_decoder(latent_config, tmp_path, form, call, needed):
    pytest.importorskip(needed)
    assert run(latent_config, tmp_path / "run") == 0
    assert run(latent_config, tmp_path / "run", "export", False, tmp_path / "out", form) == 0
    about = described(tmp_path / "out")
    assert list(about["programs"]) == ["denoiser", "decoder"]
    model = diffjax.load(tmp_path / "run")
    latents = np.random.default_rng(0).normal(size=(2, *model.space.shape)).astype(np.float32)
    found = call(tmp_path / "out", "decoder", {"latents": latents})["images"]
    np.testing.assert_allclose(found, model.space.to_images(latents), atol=1e-4)


def test_a_model_of_diffjaxs_own_network_is_no_folder_of_diffusers(tiny_config, tmp_path):
    with pytest.raises(
        UserError, match=r"--format=diffusers is for models of config\.model\.folder"
    ):
        run(tiny_config, tmp_path / "run", "export", False, tmp_path / "out", "diffusers")
    with tiny_config.unlocked():
        tiny_config.condition.text = "words"
        tiny_config.model.class_conditional = False
    with pytest.raises(UserError, match="attends to a learned token before the text"):
        run(tiny_config, tmp_path / "run", "export", False, tmp_path / "out", "diffusers")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ("diffusers", "lora", "stablehlo", "onnx"))
def test_a_first_stage_has_one_format(make_config, tmp_path, form):
    expected = f"--format={form} is for diffusion models"
    if form == "diffusers":
        expected = r"train with config\.autoencoder\.layout=diffusers"
    with pytest.raises(UserError, match=expected):
        run(make_config(), tmp_path / "run", "export", False, tmp_path / "out", form)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (["--format=tensorflow"], "format"),
        (["--format=stablehlo", "--mode=train"], "--format is only for --mode=export"),
        (["--format=stablehlo"], "needs --out=FOLDER"),
        (["--format=stablehlo", "--out=OUT"], "train first"),
        (["--format=onnx", "--out=OUT"], "train first"),
        (["--format=stablehlo", "--out=FULL"], "is not empty: give a new folder"),
    ),
)
def test_wrong_flags(tiny_flags, tmp_path, monkeypatch, capsys, arguments, message):
    from diffjax.inference.programs import onnx, stablehlo

    for module in (onnx, stablehlo):
        monkeypatch.setattr(module, "check_installed", lambda: None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("x")
    places = {"OUT": str(tmp_path / "out"), "FULL": str(tmp_path / "full")}
    given = [
        "=".join(places.get(part, part) for part in argument.split("=")) for argument in arguments
    ]
    flags = [*tiny_flags, f"--workdir={tmp_path / 'run'}", "--mode=export", *given]
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_run_names_a_wrong_format(tiny_config, tmp_path):
    with pytest.raises(UserError, match="format 'tf': expected one of diffjax, diffusers"):
        run(tiny_config, tmp_path / "run", "export", False, tmp_path / "out", "tf")
    assert not list(tmp_path.iterdir())
