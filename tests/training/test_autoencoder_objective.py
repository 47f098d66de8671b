"""The autoencoder's step: what it trains, when, and the same on one device and on two."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.experiment.autoencoder import resolve

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"


def batch(seed=0, count=8):
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1))
    return {"image": images.astype(np.uint8)}


def moved(tree, was):
    """Whether any leaf is another than it was."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(was), strict=True)
    return any(not np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("regulariser", ["kl(weight=1e-3)", "vq(size=8)"])
def test_one_batch_is_learned(make_config, regulariser):
    setup = resolve(
        make_config(**{
            "autoencoder.regulariser": regulariser, "loss.adversarial": "none",
            "train.learning_rate": 1e-2, "train.steps": 1000,
        })
    )  # fmt: skip
    step, state = jax.jit(setup.train_step()), setup.init_state()
    losses = []
    for _ in range(60):
        state, metrics = step(state, batch(count=2))
        losses.append(float(metrics["reconstruction"]))
    assert losses[-1] < 0.6 * losses[0]


def test_the_discriminator_waits_for_its_step(make_config):
    setup = resolve(make_config())
    step = jax.jit(setup.train_step())
    state, seen = setup.init_state(), []
    for _ in range(5):
        before = state.objective_state.params, state.objective_opt_state
        state, metrics = step(state, batch())
        after = state.objective_state.params, state.objective_opt_state
        seen.append((moved(after, before), float(metrics["adversarial_weight"])))
    assert [trained for trained, _ in seen] == [False, False, False, True, True]
    assert [weight > 0 for _, weight in seen] == [False, False, False, True, True]


def test_before_that_the_autoencoder_is_as_without_one(make_config):
    with_one, without = (
        resolve(make_config(**{"loss.adversarial": name}))
        for name in ("patch(channels=8, layers=1)", "none")
    )
    params = []
    for setup in (with_one, without):
        state = setup.init_state()
        for i in range(2):
            state, _ = jax.jit(setup.train_step())(state, batch(i))
        params.append(state.params)
    for a, b in zip(*map(jax.tree.leaves, params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_slope_at_the_last_kernel_is_that_of_the_whole_decoder(make_config):
    """The short way, from the last convolution's input, against JAX's way through everything."""
    setup = resolve(make_config(**{"autoencoder.patch": 2, "autoencoder.multipliers": (1,)}))
    stage, params = setup.stage, setup.init_state().params
    z = jax.random.normal(jax.random.key(0), (3, *stage.latent_shape))
    weights = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))

    def loss(kernel):
        head = params["decoder"]["head"] | {"kernel": kernel}
        decoder = params["decoder"] | {"head": head}
        return (weights * jnp.tanh(stage.decoder.apply({"params": decoder}, z, (8, 8)))).sum()

    y, kept = stage.decoder.apply(
        {"params": params["decoder"]}, z, (8, 8), mutable=["intermediates"]
    )
    slope = weights * (1 - jnp.tanh(y) ** 2)
    last = kept["intermediates"]["last"][0]
    short = setup.objective.gradient_at_last_kernel(params, last, slope)
    np.testing.assert_allclose(
        short, jax.grad(loss)(params["decoder"]["head"]["kernel"]), rtol=1e-3, atol=1e-4
    )


def test_the_checkpoint_s_scaling_gives_latents_unit_variance(make_config):
    setup = resolve(make_config())
    state = setup.init_state()
    assert np.array_equal(state.objective_state.history.scaling.factor, [1, 1])
    stage, params = setup.stage, setup.averaged(setup.before_save(state))
    images = np.stack([setup.source[i]["image"] for i in range(1000)])
    latents_map = stage.encode(params, jnp.asarray(images) / 127.5 - 1)
    eps = jax.random.normal(jax.random.key(7), (1000, *stage.latent_shape))
    z = np.asarray(stage.sample(params, latents_map, eps=eps))
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=0.05)
    np.testing.assert_allclose(z.std((0, 1, 2)), 1, atol=0.05)


def test_images_come_back_whatever_the_scaling(make_config):
    setup = resolve(make_config())
    params = setup.averaged(setup.init_state())
    other = params._replace(
        scaling=params.scaling._replace(shift=jnp.array([0.3, -2]), factor=jnp.array([4.0, 0.5]))
    )
    x = jnp.asarray(batch()["image"]) / 127.5 - 1
    np.testing.assert_allclose(
        setup.stage.reconstruct(params, x), setup.stage.reconstruct(other, x), atol=1e-4
    )


DEVICES = textwrap.dedent(
    """
    import json, runpy, sys
    import jax, numpy as np
    from diffjax.distributed import processes
    from diffjax.experiment.autoencoder import resolve
    from diffjax.distributed.strategy import DataParallel
    make = runpy.run_path(sys.argv[1])["autoencoder_config"]
    changes = {"loss.adversarial_start": 1, "train.batch_size": 8, "data.flip": True}
    setup = resolve(make(**changes, **{"autoencoder.regulariser": sys.argv[2]}))
    one, reports = setup.init_state(), []
    for devices in (jax.devices()[:1], jax.devices()):
        processes.devices = lambda: devices
        strategy = DataParallel()
        step = strategy.compile(setup.train_step())
        state = strategy.shard_state(one)
        rng, rows = np.random.default_rng(0), []
        for _ in range(4):
            batch = {"image": rng.integers(0, 256, (8, 8, 8, 1)).astype(np.uint8)}
            state, metrics = step(state, strategy.shard_batch(batch))
            rows.append([float(metrics[k]) for k in ("loss", "adversarial_weight", "grad_norm")])
        reports.append({"devices": len(strategy.devices), "rows": rows})
    print(json.dumps(reports))
    """
)


def test_one_and_two_devices_give_the_same_numbers(tmp_path):
    regulariser = "vq(size=8)"  # whose codebook is of all devices' vectors
    ran = subprocess.run(
        [sys.executable, "-c", DEVICES, str(CONFTEST), regulariser],
        capture_output=True, text=True, check=False,
        env={
            "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
        },
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    reports = json.loads(ran.stdout.splitlines()[-1])
    assert [report["devices"] for report in reports] == [1, 2]
    np.testing.assert_allclose(reports[0]["rows"], reports[1]["rows"], rtol=2e-3)
