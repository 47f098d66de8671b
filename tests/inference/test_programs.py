"""Exported programs give the model's own numbers, for batches of any size."""

import logging
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import data, main
from diffjax.errors import UserError
from diffjax.experiment import export_programs, schema
from diffjax.experiment.dataset import load_train
from diffjax.experiment.model import resolve_model
from diffjax.inference.programs import onnx, stablehlo
from diffjax.inference.programs.program import MEANINGS, Program, decoder, denoiser
from diffjax.latent.first_stage import FirstStage, Scaling, StageParams
from diffjax.latent.regularisers import Kl
from diffjax.models.autoencoder import Decoder, Encoder
from tests.weights import normal_like

# A batch of any size has a symbol for a number, which the checked types of the core refuse.
pytestmark = pytest.mark.usefixtures("unchecked")

UNCONDITIONAL = {"model.class_conditional": False, "sample.guidance": "none"}
FLOW = {
    "diffusion.schedule": "rectified_flow", "diffusion.parametrisation": "average_velocity",
    "diffusion.objective": "mean_flow", "diffusion.time_sampling": "logit_normal",
    "sample.sampler": "flow_map", "sample.threshold": "none", "sample.guidance": "none",
}  # fmt: skip
MODELS = {
    "classes": {},
    "unconditional": UNCONDITIONAL,
    "learned variance": {"diffusion.objective": "hybrid"},
    "map": UNCONDITIONAL | {"condition.map": "super_resolution(factor=2)"},
    "flow map": FLOW,
    "odd sizes": {"data.image_size": 7, "model.patch": 2},
}
INPUTS = {
    "classes": ["x_t", "t", "label"],
    "unconditional": ["x_t", "t"],
    "learned variance": ["x_t", "t", "label"],
    "map": ["x_t", "t", "map_values", "map_present", "map_log_snr"],
    "flow map": ["x_t", "t", "s", "label"],
    "odd sizes": ["x_t", "t", "label"],
}


@pytest.fixture(scope="module")
def models(request):
    """name -> (model with random parameters, its parameters)."""
    path = request.config.rootpath / "experiments/digits.py"
    made = {}

    def of(name):
        if name not in made:
            config = schema.complete(runpy.run_path(str(path))["get_config"]())
            with config.unlocked(), config.ignore_type():
                config.model.update(channels=8, head_channels=8, kernels="xla", blocks=1)
                config.update_from_flattened_dict(MODELS[name])
            schema.check(config)
            model = resolve_model(config, data.describe(load_train(config)))
            made[name] = model, normal_like(model.parameter_shapes(), scale=0.1)
        return made[name]

    return of


def program_of(model, params):
    return denoiser(
        model.network, model.diffusion, params, shape=model.space.shape,
        conditions=model.conditions, example=model.example_condition(),
        grid=model.generator().sampling.grid,
    )  # fmt: skip


@pytest.mark.parametrize(
    "name", ["classes", *(pytest.param(n, marks=pytest.mark.slow) for n in list(MODELS)[1:])]
)
def test_a_program_is_the_models_denoiser(models, name):
    model, params = models(name)
    program = program_of(model, params)
    assert list(program.inputs) == INPUTS[name]
    assert set(program.outputs) <= set(MEANINGS)
    given = program.example(3)
    found = stablehlo.exported(program).call(program.params, given)
    assert set(found) == set(program.outputs)
    generator = model.generator()
    spatial = None
    cond = model.example_condition()
    if cond is not None:
        if cond.map is not None:
            spatial = cond.map._replace(
                values=given["map_values"], present=given["map_present"],
                log_snr=given.get("map_log_snr"),
            )  # fmt: skip
        cond = cond._replace(label=given.get("label"), map=spatial)
    if name == "flow map":
        expected = {"x_s": generator.flow_map(params)(given["x_t"], given["t"], given["s"], cond)}
    else:
        # Without thresholding and guidance, whatever the config's are.
        plain = model.diffusion.denoiser(
            lambda x, t, c: model.network.apply(params, x, t, c)
        )(given["x_t"], given["t"], cond)  # fmt: skip
        expected = {k: v for k, v in plain._asdict().items() if v is not None}
    assert set(found) == set(expected)
    for key, array in expected.items():
        assert np.abs(array).max() > 1e-3
        np.testing.assert_allclose(found[key], array, atol=2e-5, rtol=2e-5)


@pytest.fixture(scope="module")
def first_stage():
    encoder = Encoder(4, channels=8, multipliers=(1, 2), blocks=1)
    stage = FirstStage(
        encoder, Decoder(3, channels=8, multipliers=(1, 2), blocks=1), Kl(), (8, 8, 3), (4, 4, 2),
        tile=2,
    )  # fmt: skip
    key = jax.random.key(0)
    params = {
        "encoder": encoder.init(key, jnp.zeros((1, 8, 8, 3)))["params"],
        "decoder": stage.decoder.init(key, jnp.zeros((1, 4, 4, 2)))["params"],
    }
    scaling = Scaling(jnp.array([0.5, -1.0]), jnp.array([2.0, 0.25]))
    return stage, StageParams(normal_like(params, scale=0.1), (), scaling)


def test_a_decoder_has_its_own_parameters_and_no_tiles(first_stage):
    stage, params = first_stage
    program = decoder(stage, params)
    assert not any("encoder" in name for name in program.params)
    given = program.example(2)
    found = stablehlo.exported(program).call(program.params, given)
    expected = stage._replace(tile=0).decode(params, given["latents"])
    np.testing.assert_allclose(found["images"], expected, atol=1e-5)


@pytest.mark.slow
def test_stablehlo_is_read_back(models, tmp_path):
    pytest.importorskip("flatbuffers")
    from jax import export
    from safetensors.numpy import load_file

    program = program_of(*models("classes"))
    about = stablehlo.write(program, tmp_path)
    assert about["batch"] == "any" and about["platforms"] == ["cpu", "cuda", "tpu"]
    loaded = export.deserialize(bytearray((tmp_path / about["file"]).read_bytes()))
    assert loaded.platforms == ("cpu", "cuda", "tpu")
    params = load_file(tmp_path / about["parameters"])
    for batch in (1, 5):
        given = program.example(batch)
        found, expected = loaded.call(params, given), program.function(program.params, given)
        for name in program.outputs:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def stuck(reason):
    """A program that fails for a batch of any size, or always."""

    def function(params, arrays):
        x = arrays["x_t"]
        if reason == "always" or (reason == "symbolic" and not isinstance(x.shape[0], int)):
            raise RuntimeError("no such operation\nand more")
        return {"x_0": params["scale"] * x}

    inputs = {"x_t": jax.ShapeDtypeStruct((1, 2), jnp.float32)}
    return Program("denoiser", function, {"scale": jnp.float32(2.0)}, inputs)


def test_a_network_that_needs_a_fixed_batch(tmp_path, caplog):
    pytest.importorskip("flatbuffers")
    from jax import export

    with caplog.at_level(logging.INFO, "diffjax"):
        about = stablehlo.write(stuck("symbolic"), tmp_path)
    assert about["batch"] == 1 and "for batches of 1" in caplog.text
    loaded = export.deserialize(bytearray((tmp_path / about["file"]).read_bytes()))
    found = loaded.call({"scale": np.float32(3.0)}, {"x_t": np.ones((1, 2), np.float32)})
    np.testing.assert_array_equal(found["x_0"], [[3.0, 3.0]])


def test_stablehlo_of_any_batch_is_read_back_with_other_parameters(tmp_path):
    pytest.importorskip("flatbuffers")
    from jax import export

    about = stablehlo.write(stuck("never"), tmp_path)
    loaded = export.deserialize(bytearray((tmp_path / about["file"]).read_bytes()))
    for batch in (1, 4):
        x = np.ones((batch, 2), np.float32)
        found = loaded.call({"scale": np.float32(3.0)}, {"x_t": x})
        np.testing.assert_array_equal(found["x_0"], 3 * x)


def test_a_network_that_can_not_be_traced(tmp_path):
    with pytest.raises(
        UserError, match=r"jax\.export can't write the denoiser: RuntimeError: no such"
    ):
        stablehlo.write(stuck("always"), tmp_path)
    assert not list(tmp_path.iterdir())


def needs_onnx():
    for name in onnx.NEEDED:
        pytest.importorskip(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_onnx_runs_to_the_same_numbers(models, tmp_path, name):
    needs_onnx()
    import onnxruntime

    program = program_of(*models(name))
    about = onnx.write(program, tmp_path)
    assert about["batch"] == "any" and about["largest_difference_from_jax"] < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / about["file"]))
    assert [found.name for found in session.get_inputs()] == list(program.inputs)
    given = program.example(3, seed=1)
    found = session.run(list(program.outputs), given)
    expected = program.function(program.params, given)
    for key, array in zip(program.outputs, found, strict=True):
        np.testing.assert_allclose(array, expected[key], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_onnx_decodes_latents(first_stage, tmp_path):
    needs_onnx()
    assert onnx.write(decoder(*first_stage), tmp_path)["largest_difference_from_jax"] < 1e-4


def test_onnx_of_what_can_not_be_converted(tmp_path):
    needs_onnx()

    def function(params, arrays):
        return {"x_0": jnp.linalg.qr(arrays["x_t"])[0]}

    inputs = {"x_t": jax.ShapeDtypeStruct((1, 3, 2), jnp.float32)}
    with pytest.raises(UserError, match="jax2onnx can't convert the denoiser") as error:
        onnx.write(Program("denoiser", function, {}, inputs), tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_onnx_with_other_numbers_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "_convert", lambda program, path, batch: path.write_bytes(b"x"))
    monkeypatch.setattr(onnx, "_difference", lambda *args: 0.01)
    with pytest.raises(UserError, match=r"its numbers differ from JAX's by 0\.01"):
        onnx.write(stuck("never"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("form", "module", "message"),
    (
        ("onnx", onnx, 'needs jax2onnx and onnxruntime: pip install "diffjax[onnx]"'),
        ("stablehlo", stablehlo, 'needs flatbuffers: pip install "diffjax[stablehlo]"'),
    ),
)
def test_what_must_be_installed(tiny_flags, tmp_path, monkeypatch, capsys, form, module, message):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    flags = [*tiny_flags, f"--workdir={tmp_path / 'run'}", "--mode=export", f"--format={form}"]
    assert main.main([*flags, f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_json_is_short():
    text = export_programs._in_lines({"a": [1, 2], "b": {"c": ["x"], "d": [{"e": []}]}})
    assert '"a": [ 1, 2 ],' in text and '"c": [ "x" ]' in text
