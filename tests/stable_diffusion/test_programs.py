"""Stable Diffusion as programs of arrays: their inputs, and the numbers of the pipeline."""

import jax
import numpy as np
import pytest

import diffjax
from diffjax.experiment import network
from diffjax.experiment.stable_diffusion import model_of
from diffjax.inference.programs import onnx, stablehlo
from diffjax.inference.programs.program import decoder, denoiser
from diffjax.models.condition import Condition, SpatialMap, Text
from diffjax.stable_diffusion.folder import load_folder

INPUTS = {
    "sd21": ["x_t", "t", "text_tokens"],
    "sd15_inpaint": ["x_t", "t", "text_tokens", "map_values"],
    "sdxl": ["x_t", "t", "text_tokens", "text_pooled", "augmentation"],
}


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch):
    """Its calls can't be exported; `--mode=export` sets config.model.kernels for that."""
    monkeypatch.setitem(network.KERNELS, "auto", network.KERNELS["xla"])


def programs_of(folder):
    model = model_of(folder, folder.size)
    return [
        denoiser(
            model.network, model.diffusion, folder.params, shape=model.space.shape,
            conditions=model.conditions, example=model.example_condition(),
            grid=model.generator().sampling.grid,
        ),
        decoder(model.space.stage, model.space.params),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("family", INPUTS)
def test_the_numbers_are_the_pipelines(folders, family):
    path = folders(family)[0]
    program, of_latents = programs_of(load_folder(path))
    assert list(program.inputs) == INPUTS[family]
    given = program.example(2)
    pooled, spatial = given.get("text_pooled"), given.get("map_values")
    cond = Condition(
        text=Text(given["text_tokens"], np.ones((2, 77), bool), pooled),
        map=None if spatial is None else SpatialMap(spatial, np.ones(2, bool)),
        augmentation=given.get("augmentation"),
    )
    model = diffjax.load(path)
    expected = jax.jit(model.denoiser(guidance="none"))(given["x_t"], given["t"], cond)
    found = stablehlo.exported(program).call(program.params, given)
    for key in ("x_0", "eps"):
        np.testing.assert_allclose(found[key], getattr(expected, key), atol=5e-5, rtol=1e-4)
    latents = of_latents.example(2)
    found = stablehlo.exported(of_latents).call(of_latents.params, latents)
    expected = model.space.to_images(latents["latents"])
    np.testing.assert_allclose(found["images"], expected, atol=2e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("family", ("sd15_inpaint", "sdxl"))
def test_onnxruntime_runs_them(folders, tmp_path, family):
    for name in onnx.NEEDED:
        pytest.importorskip(name)
    for program in programs_of(load_folder(folders(family)[0])):
        about = onnx.write(program, tmp_path)
        assert about["batch"] == "any" and about["largest_difference_from_jax"] < 1e-4
