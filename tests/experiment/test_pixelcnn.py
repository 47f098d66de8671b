"""PixelCNN++ by config: trained, resumed, sampled and measured through the command line."""

import json
import runpy

import jax
import numpy as np
import pytest

import diffjax
from diffjax import main
from diffjax.checkpoints import parameters
from diffjax.errors import UserError
from diffjax.experiment import schema
from diffjax.experiment.pixelcnn import resolve

TINY = {
    "data.name": "digits", "pixelcnn.channels": 4, "pixelcnn.blocks": 1, "pixelcnn.levels": 2,
    "pixelcnn.components": 2, "pixelcnn.dropout": 0.3, "train.steps": 4, "train.batch_size": 8,
    "train.warmup_steps": 2, "train.log_every": 1, "train.eval_every": 2,
    "train.checkpoint_every": 2, "train.sample_every": 4, "sample.count": 10,
    "sample.batch_size": 10, "evaluate.images": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def make(request):
    path = request.config.rootpath / "experiments/fashion_mnist_pixelcnn.py"
    get_config = runpy.run_path(str(path))["get_config"]

    def of(**changes):
        config = schema.complete(get_config("tiny"))
        config.update_from_flattened_dict(TINY | changes)
        return config.lock()

    return of


@pytest.fixture(scope="module")
def folder(make, trained_once, own_caches):
    return trained_once("pixelcnn", lambda folder: main.run(make(), folder))


def final(folder):
    found = parameters.read_parameters(folder, wanted="latest", fields=("params", "ema_params"))
    assert found.step == 4
    return jax.tree.leaves(found.fields)


def test_four_steps_are_two_a_stop_and_two_bit_for_bit(make, folder, tmp_path):
    for steps in (2, 4):
        assert main.run(make(**{"train.steps": steps, "train.schedule": "constant"}), tmp_path) == 0
    whole = tmp_path / "whole"
    assert main.run(make(**{"train.schedule": "constant"}), whole) == 0
    for ours, theirs in zip(final(tmp_path), final(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("loss" in row for row in losses)


def test_a_run_leaves_pictures_and_samples_of_every_class(make, folder):
    assert {"samples.png", "loss.png"} <= {path.name for path in folder.iterdir()}
    assert main.run(make(**{"sample.format": "npz"}), folder, mode="sample") == 0
    (archive,) = (folder / "generated").glob("*.npz")
    with np.load(archive) as arrays:
        assert arrays["images"].shape == (10, 8, 8, 1)
        assert arrays["images"].dtype == np.uint8
        assert arrays["labels"].tolist() == list(range(10))
        images = arrays["images"]
    # Sample i is a function of the seed and i, however samples are batched.
    fewer = make(**{"sample.format": "npz", "sample.count": 4, "sample.batch_size": 3})
    assert main.run(fewer, folder, mode="sample") == 0
    (archive,) = (folder / "generated").glob("*n4*.npz")
    with np.load(archive) as arrays:
        np.testing.assert_array_equal(arrays["images"], images[:4])


def test_evaluation_is_the_exact_likelihood(make, folder):
    assert main.run(make(), folder, mode="evaluate") == 0
    report = json.loads((folder / "likelihood_exact.json").read_text())
    assert report["images"] == 20
    assert report["given"] == "the class"
    assert 0 < report["standard_error"] < 1
    with np.load(folder / "likelihood_exact.npz") as each:
        values, index = each["total"], each["index"]
    assert values.mean() == pytest.approx(report["bits_per_dim"], rel=1e-6)
    # A model that is nearly untrained is near 8 bits, and by no means far below.
    assert 2 < report["bits_per_dim"] < 9
    assert len(np.unique(index)) == 20


@pytest.mark.parametrize("mode", ["edit", "ema", "export"])
def test_modes_that_a_pixelcnn_does_not_have(make, folder, mode):
    with pytest.raises(UserError, match=f"--mode={mode} is for diffusion models.*a PixelCNN"):
        main.run(make(), folder, mode=mode)


def test_a_pixelcnn_is_no_diffusion_model_to_load(folder):
    with pytest.raises(UserError, match="is a run of a PixelCNN: give a diffusion model's"):
        diffjax.load(folder)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("evaluate.likelihood", "vdm", "expected one of exact, none"),
        ("sample.labels", (0, -1), "expected no -1"),
        ("sample.labels", (10,), "10"),
        ("pixelcnn.dtype", "float8", "expected one of float32, bfloat16"),
        ("pixelcnn.channels", 0, "expected a whole number"),
    ],
)
def test_values_that_can_not_be(make, key, value, expected):
    config = make()
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=expected) as found:
        resolve(config)
    assert key.split(".")[-1] in str(found.value)
