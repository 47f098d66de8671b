"""A GAN by config: trained, resumed, sampled and measured through the command line."""

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
from diffjax.experiment.gan import resolve

TINY = {
    "data.name": "digits", "gan.channels": (4, 6), "gan.latent_size": 5, "train.steps": 4,
    "train.batch_size": 8, "train.warmup_steps": 2, "train.log_every": 1, "train.eval_every": 2,
    "train.checkpoint_every": 2, "train.sample_every": 4, "sample.count": 10,
    "sample.batch_size": 10, "evaluate.num_samples": 20,
}  # fmt: skip
# Of the digits' quarters, instead of a classifier that would be trained.
FEATURES = """
from diffjax.perceptual import EmbeddingNetwork

def quarters(params, x):
    return x.reshape(len(x), 2, 4, 2, 4).mean((2, 4)).reshape(len(x), 4)

QUARTERS = EmbeddingNetwork("quarters", (), quarters, 4, "quarters")
"""


@pytest.fixture(scope="module")
def make(request):
    path = request.config.rootpath / "experiments/fashion_mnist_gan.py"
    get_config = runpy.run_path(str(path))["get_config"]

    def of(variant="tiny", **changes):
        config = schema.complete(get_config(variant))
        config.update_from_flattened_dict(TINY | changes)
        return config.lock()

    return of


@pytest.fixture(scope="module")
def folder(make, trained_once, own_caches):
    return trained_once("gan", lambda folder: main.run(make(), folder))


def final(folder):
    fields = ("params", "ema_params", "opt_state", "learned", "learned_opt_state")
    found = parameters.read_parameters(folder, wanted="latest", fields=fields)
    assert found.step == 4
    return jax.tree.leaves(found.fields)


@pytest.mark.parametrize("variant", ["tiny", "tiny-hinge"])
def test_four_steps_are_two_a_stop_and_two_bit_for_bit(make, own_caches, tmp_path, variant):
    for steps in (2, 4):
        config = make(variant, **{"train.steps": steps, "train.schedule": "constant"})
        assert main.run(config, tmp_path) == 0
    whole = tmp_path / "whole"
    assert main.run(make(variant, **{"train.schedule": "constant"}), whole) == 0
    for ours, theirs in zip(final(tmp_path), final(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_both_networks_are_trained_and_the_average_is_the_generators(make, folder):
    setup = resolve(make())
    start, step = setup.init_state(), jax.jit(setup.train_step())
    batch = next(setup.batches())
    state, metrics = step(start, batch)  # at the first step of the warm-up the rate is 0
    state, metrics = step(state, batch)
    for before, after in (
        (start.params, state.params),
        (start.objective_state.params, state.objective_state.params),
    ):
        moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
        assert any(jax.tree.leaves(moved))
    assert jax.tree.structure(state.ema_params) == jax.tree.structure(state.params)
    assert {"discriminator_loss", "penalty_real", "penalty_fake"} <= set(metrics)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {1, 2, 3, 4}
    assert not any("eval_loss" in row for row in rows)


def test_the_discriminators_rate_is_its_share_of_the_generators(make):
    fast = resolve(make(**{"gan.discriminator_rate": 4.0})).objective_optimizer
    slow = resolve(make()).objective_optimizer
    params = {"w": np.float32([1.0, 2.0])}
    grads = {"w": np.float32([0.3, -0.5])}
    updates = []
    for optimizer in (fast, slow):
        state = optimizer.init(params)
        _, state = optimizer.update(grads, state, params)
        updates.append(optimizer.update(grads, state, params)[0]["w"])
    np.testing.assert_allclose(updates[0], 4 * updates[1], rtol=1e-6)


def test_samples_of_every_class_and_their_distances(make, folder, tmp_path, monkeypatch):
    assert {"samples.png", "loss.png"} <= {path.name for path in folder.iterdir()}
    assert main.run(make(**{"sample.format": "npz"}), folder, mode="sample") == 0
    (archive,) = (folder / "generated").glob("*.npz")
    with np.load(archive) as arrays:
        assert arrays["images"].shape == (10, 8, 8, 1)
        assert arrays["labels"].tolist() == list(range(10))
    (tmp_path / "gan_features.py").write_text(FEATURES)
    monkeypatch.syspath_prepend(tmp_path)
    measured = make(**{"evaluate.features": "gan_features:QUARTERS"})
    assert main.run(measured, folder, mode="evaluate") == 0
    report = json.loads((folder / "evaluation.json").read_text())
    assert report["frechet_distance"] > 0 and 0 <= report["recall"] <= 1


def test_a_network_without_classes(make, own_caches, tmp_path):
    config = make(**{"gan.class_conditional": False, "train.steps": 1})
    assert main.run(config, tmp_path) == 0
    assert resolve(config).generator.conditions.labels(0, 2) is None


def test_two_devices_are_planned_by_both_strategies(make, capsys, tmp_path):
    changes = {"parallel.devices": 2, "parallel.compile": False, "parallel.min_size": 16}
    for strategy in ("pmap", "fsdp"):
        config = make(**changes, **{"parallel.strategy": strategy})
        assert main.run(config, tmp_path, mode="plan") == 0
        assert f"{strategy} on 2 devices" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["edit", "ema", "export"])
def test_modes_that_a_gan_does_not_have(make, folder, mode):
    with pytest.raises(UserError, match=f"--mode={mode} is for diffusion models.*a GAN"):
        main.run(make(), folder, mode=mode)


def test_a_gan_is_no_diffusion_model_to_load(folder):
    with pytest.raises(UserError, match="is a run of a GAN: give a diffusion model's"):
        diffjax.load(folder)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("gan.loss", "wasserstein", "expected one of r3gan, hinge"),
        ("gan.loss", "r3gan(gamma=0)", "gamma must be above 0"),
        ("gan.channels", (4, 4, 4, 4, 4), r"8x8 can't be halved 4 times.*\(16, 16\)"),
        ("gan.discriminator_rate", 0.0, "expected a number > 0"),
        ("sample.checkpoint", "best", "expected 'latest' or a step"),
        ("sample.labels", (0, -1), "a GAN is trained with every image's class"),
    ],
)
def test_values_that_can_not_be(make, key, value, expected):
    config = make()
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=expected) as found:
        resolve(config)
    assert key.split(".")[-1] in str(found.value)
