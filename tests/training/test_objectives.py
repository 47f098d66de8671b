"""What a config trains on: losses, what is learned beside the network, averages, and errors."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import rng
from diffjax.errors import UserError
from diffjax.experiment import diffusion as experiment
from diffjax.experiment import few_step, optimisation, process
from diffjax.experiment import objective as objectives
from diffjax.likelihood import vdm
from diffjax.models.linen import from_linen
from diffjax.training.objective import LossInputs, ObjectiveState

ROOT = Path(__file__).resolve().parents[2]
VDM = {
    "diffusion.schedule": "linear_log_snr(log_snr_min=-6.0, log_snr_max=8.0)",
    "diffusion.parametrisation": "eps",
}
CATEGORICAL = {"diffusion.parametrisation": "categorical", "diffusion.loss_target": "x0"}
LEARNED_STEPS = {"sample.sampler": "ancestral(variance='learned')"}


class Tiny(nn.Module):
    """A network that sees the image and the time and compiles at once."""

    outputs: int = 1

    @nn.compact
    def __call__(self, x, t, cond=None, *, train=False):
        time = jnp.broadcast_to(t[:, None, None, None] / 1000, (*x.shape[:3], 1))
        h = jnp.tanh(nn.Dense(4, name="in")(jnp.concatenate([x, time], -1)))
        return nn.Dense(self.outputs, name="out")(h)


@pytest.fixture
def small_config(tiny_config):
    """The digits without their classes, few steps of noise, and the least U-Net."""
    tiny_config.model.update(class_conditional=False, multipliers=(1,))
    tiny_config.diffusion.schedule = "cosine(T=20)"
    tiny_config.train.update(batch_size=8, warmup_steps=0, learning_rate=1e-2)
    tiny_config.sample.update(steps=2, count=2, batch_size=2)
    return tiny_config


def resolved(config, **more):
    """The experiment of a config with changes, around a tiny network; and the U-Net it had."""
    config.update_from_flattened_dict(more.pop("changes", {}) | more)
    setup = experiment.resolve(config)
    unet = setup.network.module
    shape = jax.ShapeDtypeStruct((1, *setup.diffusion.input_shape(setup.space.shape)), float)
    time = jax.ShapeDtypeStruct((1,), float)
    out, _ = jax.eval_shape(unet.init_with_output, jax.random.key(0), shape, time)
    return setup.with_network(from_linen(Tiny(out.shape[-1]))), unet, out.shape


def images(count=8, seed=0):
    draw = np.random.default_rng(seed)
    return {"image": draw.integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)}


def trained(setup, steps=2):
    """States 0..steps and the steps' metrics."""
    step, states, metrics = jax.jit(setup.train_step()), [setup.init_state()], []
    for i in range(steps):
        state, found = step(states[-1], images(seed=i))
        states.append(state)
        metrics.append({name: float(value) for name, value in found.items()})
    assert all(np.isfinite(list(found.values())).all() for found in metrics)
    return states, metrics


def changed(before, after):
    """The leaves' paths whose values differ."""
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), before, after)
    return {
        "/".join(entry.key for entry in path)
        for path, equal in jax.tree_util.tree_leaves_with_path(same)
        if not equal
    }


def batch_inputs(x_0, *, seed=0):
    """A batch as the train step hands it to an objective, and its noise."""
    indices = jnp.arange(len(x_0))
    key = lambda name: rng.stream(seed, name, 0)  # noqa: E731
    eps = rng.per_example(key("noise"), indices, lambda k: jax.random.normal(k, x_0.shape[1:]))
    return LossInputs(x_0, None, key, indices, len(x_0), jnp.int32(0)), eps


def applied(setup, params):
    return lambda x, t, cond: setup.network.apply(params, x, t, cond)


def on_a_batch(setup, state):
    """The objective's loss and gradients of a batch, the batch, and its noise."""
    inputs, eps = batch_inputs(jnp.asarray(images()["image"], jnp.float32) / 127.5 - 1)
    loss_and_grads = jax.jit(
        lambda params, learned: setup.objective.loss_and_grads(params, learned, inputs)
    )
    return loss_and_grads(state.params, state.objective_state), inputs, eps


def test_the_plain_objective_is_the_core_s_loss_and_nothing_is_learned(small_config):
    setup, unet, shape = resolved(small_config)
    states, metrics = trained(setup, 1)
    assert shape == (1, 8, 8, 1) and unet.num_pixel_levels == 0
    assert states[0].objective_state == ObjectiveState({}, None)
    assert states[0].power_emas == ()
    found, given, eps = on_a_batch(setup, states[0])
    assert metrics[0]["loss"] == pytest.approx(float(found.loss), rel=1e-5)
    d, objective = setup.diffusion, setup.objective
    t = objective.sample_times(given.key("time"), d.schedule, indices=given.indices, batch_size=8)

    def loss(params):
        return dj.diffusion_loss(
            applied(setup, params), given.x_0, prediction=d, t=t, eps=eps,
            weighting=objectives.weighting(setup.config),
        ).mean()  # fmt: skip

    value, grads = jax.jit(jax.value_and_grad(loss))(states[0].params)
    assert found.loss == pytest.approx(float(value), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found.grads, grads)


@pytest.mark.parametrize("objective", ["hybrid(vlb_weight=0.01)", "vlb"])
def test_learned_variances_train_and_sample(small_config, objective):
    changes = LEARNED_STEPS | {"diffusion.objective": objective}
    setup, unet, shape = resolved(small_config, changes=changes)
    assert shape == (1, 8, 8, 2) and unet.out_channels == 2
    states, _ = trained(setup)
    # The variance's half of the last layer is trained as well as the value's.
    (before, after) = (
        np.asarray(state.params["out"]["kernel"]) for state in (states[0], states[2])
    )
    assert np.all((before != after).any(axis=0))
    drawn = setup.generator(states[2].params, start=0, count=2)
    assert drawn.images.shape == (2, 8, 8, 1)
    denoise = setup.diffusion.denoiser(applied(setup, states[2].params))
    assert denoise(jnp.ones((2, 8, 8, 1)), jnp.array(7)).variance_mix.shape == (2, 8, 8, 1)


def test_a_learned_variance_that_was_not_trained_is_not_sampled_with(small_config):
    with pytest.raises(UserError, match="variance_mix") as caught:
        resolved(small_config, changes=LEARNED_STEPS)
    assert "\n" not in str(caught.value)


def test_importance_sampling_remembers_each_loss_and_weighs_it(small_config):
    changes = {"diffusion.time_sampling": "loss_second_moment", "diffusion.objective": "vlb"}
    setup, _, _ = resolved(small_config, changes=changes | {"diffusion.schedule": "cosine(T=4)"})
    states, _ = trained(setup)
    counts = [np.asarray(state.objective_state.history.count) for state in states]
    # Evenly at first: eight examples over four times.
    assert [count.tolist() for count in counts] == [[0] * 4, [2] * 4, [4] * 4]
    # A history that knows one large loss draws it often, with as much less weight: on average over
    # a batch the weights are 1.
    history = states[2].objective_state.history
    values = np.full(history.values.shape, 1.0, np.float32)
    values[2] = 9.0
    full = history._replace(values=jnp.asarray(values), count=jnp.full(4, 10))
    state = states[2]._replace(objective_state=ObjectiveState({}, full))
    found, given, _ = on_a_batch(setup, state)
    seen = np.asarray(found.history.count) - 10
    assert seen.tolist()[2] >= 5 and seen.sum() == len(given.x_0)


def test_a_learned_weighting_is_trained_and_its_frequencies_stay(small_config):
    setup, _, _ = resolved(small_config, **{"diffusion.learned_weighting": True})
    states, metrics = trained(setup)
    before, after = (state.objective_state.params for state in (states[0], states[2]))
    assert changed(before, after) == {"weights"}
    # It is 0 at first, so that the first gradients are the plain loss's; and what is logged is
    # always the plain loss.
    small_config.diffusion.learned_weighting = False
    plain = trained(resolved(small_config)[0], 1)
    assert metrics[0] == pytest.approx(plain[1][0], rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        states[1].params, plain[0][1].params,
    )  # fmt: skip


def test_self_conditioned_networks_have_a_place_for_their_estimate(small_config):
    setup, unet, shape = resolved(small_config, **{"diffusion.self_conditioning": 0.5})
    assert shape == (1, 8, 8, 1)
    x, time = jnp.zeros((1, 8, 8, 2)), jnp.zeros(1)
    made = jax.eval_shape(unet.init, jax.random.key(0), x, time)["params"]
    assert made["stem"]["kernel"].shape[2] == 2
    states, _ = trained(setup)
    assert states[0].params["in"]["kernel"].shape == (3, 4)  # x_t, estimate and time
    assert np.all(changed(states[0].params, states[2].params))
    assert setup.generator(states[2].params, start=0, count=2).images.shape == (2, 8, 8, 1)
    # The share is of examples that see the estimate: none is another loss than all.
    losses = []
    for share in (1e-6, 0.999999):
        other = setup._replace(objective=setup.objective._replace(self_conditioning=share))
        losses.append(float(on_a_batch(other, states[2])[0].loss))
    half = float(on_a_batch(setup, states[2])[0].loss)
    assert min(losses) < half < max(losses)


def test_offset_noise_moves_whole_channels(small_config):
    noise = []

    def spy(network, x_0, *, eps, **kwargs):
        noise.append(np.asarray(eps, np.float64))
        return jnp.zeros(len(x_0))

    for strength in (0.0, 0.3):
        setup, _, _ = resolved(small_config, **{"diffusion.offset_noise": strength})
        setup = setup._replace(objective=setup.objective._replace(loss=spy))
        state = setup.init_state()
        inputs, _ = batch_inputs(jnp.zeros((8, 8, 8, 1)))
        setup.objective.loss_and_grads(state.params, state.objective_state, inputs)
    offset = noise[1] - noise[0]
    assert offset.std() > 0.05
    spread = np.ptp(offset, axis=(1, 2))
    np.testing.assert_allclose(spread, 0, atol=1e-6)
    assert len(np.unique(offset[:, 0, 0, 0].round(5))) == 8  # one offset an example


@pytest.mark.parametrize(
    ("objective", "learns"),
    [
        ("vdm", set()),
        ("vdm(gamma='scalar')", set()),
        ("vdm(gamma='network')", {"shape/line", "shape/steepness", "shape/place", "shape/size"}),
        ("vdm(gamma='scalar', learn_ends=True)", {"ends/start", "ends/log_fall"}),
    ],
)
def test_the_bound_learns_of_the_schedule_what_it_is_told_to(small_config, objective, learns):
    setup, _, _ = resolved(small_config, changes=VDM | {"diffusion.objective": objective})
    states, _ = trained(setup)
    assert changed(states[0].objective_state.params, states[2].objective_state.params) == learns
    assert changed(states[0].params, states[2].params) != set()
    assert np.isfinite(float(setup.eval_loss()(states[2].params, images())))


def test_the_bound_s_objective_is_the_bound(small_config):
    changes = VDM | {"diffusion.objective": "vdm(gamma='scalar', learn_ends=True)"}
    setup, _, _ = resolved(small_config, changes=changes)
    state = setup.init_state()
    found, given, eps = on_a_batch(setup, state)
    d, times = setup.diffusion, setup.objective.sample_times
    t = times(given.key("time"), d.schedule, indices=given.indices, batch_size=8)
    eps_0 = rng.per_example(
        given.key("reconstruction"), given.indices, lambda k: jax.random.normal(k, (8, 8, 1))
    )
    denoise = d.denoiser(applied(setup, state.params))
    bound = vdm.vdm_bound(
        denoise, given.x_0, schedule=d.schedule, t=t, eps=eps, eps_0=eps_0
    )  # fmt: skip
    assert found.loss == pytest.approx(float(bound.total.mean()), rel=1e-3)
    fixed = setup._replace(objective=setup.objective._replace(learn_ends=False))
    diffusion = float(on_a_batch(fixed, state)[0].loss)
    assert diffusion == pytest.approx(float(bound.diffusion.mean()), rel=1e-3)
    # The ends' gradient, by differences: they enter times, noise, both ends and the network.
    for name in ("start", "log_fall"):
        near = []
        for sign in (-1, 1):
            ends = dict(state.objective_state.params["ends"])
            ends[name] = ends[name] + sign * 0.02
            moved = state._replace(
                objective_state=ObjectiveState({"ends": ends, "shape": {}}, None)
            )
            near.append(float(on_a_batch(setup, moved)[0].loss))
        slope = (near[1] - near[0]) / 0.04
        assert found.objective_grads["ends"][name] == pytest.approx(slope, rel=0.03)


@pytest.mark.parametrize(
    "changes",
    [{}, VDM | {"diffusion.objective": "vdm(gamma='network')", "sample.sampler": "ancestral"}],
    ids=["squared error", "bound"],
)
def test_networks_of_logits_train_and_sample(small_config, changes):
    target = {"diffusion.loss_target": "same" if changes else "x0"}
    setup, unet, shape = resolved(small_config, changes=changes | CATEGORICAL | target)
    assert shape == (1, 8, 8, 256) and unet.num_pixel_levels == 256
    states, _ = trained(setup)
    assert {"in/kernel", "out/kernel", "out/bias"} <= changed(states[0].params, states[2].params)
    assert setup.generator(states[2].params, start=0, count=2).images.shape == (2, 8, 8, 1)


@pytest.mark.slow
def test_the_whole_network_trains_and_samples_with_everything_at_once(small_config):
    changes = VDM | CATEGORICAL | {
        "diffusion.loss_target": "same",
        "diffusion.objective": "vdm(gamma='network', learn_ends=True)", "model.fourier": (6, 7),
        "train.ema_snapshots": (0.1,), "train.ema": "power(sigma_rel=0.05)",
        "sample.sampler": "ancestral", "train.batch_size": 2, "model.patch": 2,
    }  # fmt: skip
    small_config.update_from_flattened_dict(changes)
    setup = experiment.resolve(small_config)
    state = setup.init_state()
    shapes = setup.state_shapes()
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or 1 / 0, shapes, state)
    state, metrics = jax.jit(setup.train_step())(state, images(2))
    assert np.isfinite(list(metrics.values())).all()
    assert setup.generator(state.ema_params, start=0, count=1).images.shape == (1, 8, 8, 1)


@pytest.mark.parametrize(
    ("average", "decays"),
    [
        ("warmed_up", {0: 1 / 10, 8: 9 / 18, 10**6: 0.95}),  # TensorFlow's (1 + n) / (10 + n)
        ("constant", {0: 0.95, 10**6: 0.95}),
        ("inverse(power=0.75)", {0: 0.0, 15: 1 - 16**-0.75, 10**6: 0.95}),
        ("power(sigma_rel=0.25)", {0: 0.0, 9: 0.9**1.72}),  # Karras et al. 2024: gamma = 0.72
    ],
)
def test_averages_are_the_config_s(tiny_config, average, decays):
    tiny_config.train.update(ema=average, ema_decay=0.95)
    decay = optimisation.average_decay(tiny_config)
    for step, wanted in decays.items():
        assert float(decay(jnp.int32(step))) == pytest.approx(wanted, abs=2e-3)


def test_every_average_follows_the_parameters_by_its_own_length(small_config):
    changes = {"train.ema": "constant", "train.ema_decay": 0.75, "train.ema_snapshots": (0.1, 0.25)}
    setup, _, _ = resolved(small_config, changes=changes)
    states, _ = trained(setup)
    kernels = [np.asarray(state.params["in"]["kernel"], np.float64) for state in states]
    p0, p1, p2 = kernels
    average = [np.asarray(state.ema_params["in"]["kernel"]) for state in states]
    np.testing.assert_allclose(average[1], 0.75 * p0 + 0.25 * p1, atol=1e-6)
    np.testing.assert_allclose(average[2], 0.75 * average[1] + 0.25 * p2, atol=1e-6)
    assert all(len(state.power_emas) == 2 for state in states)
    # A power of the time: of two updates the first weighs 2^-(gamma + 1); Karras et al. 2024,
    # section 3.1, for what gamma is.
    for profile, gamma in zip(states[2].power_emas, (6.94, 0.72), strict=True):
        first = 0.5 ** (gamma + 1)
        np.testing.assert_allclose(
            profile["in"]["kernel"],
            first * p1 + (1 - first) * p2,
            atol=1e-4 * np.ptp(p2 - p1) + 1e-6,
        )


DEVICES = textwrap.dedent(
    """
    import json, runpy, sys
    import jax, numpy as np
    from diffjax.experiment import diffusion as experiment
    from diffjax.distributed.strategy import DataParallel
    from diffjax.models.linen import from_linen
    from tests.training.test_objectives import Tiny, VDM

    worst = {}
    for name, changes in {
        "remembering": {"diffusion.time_sampling": "loss_second_moment",
                        "diffusion.learned_weighting": True, "diffusion.self_conditioning": 0.5,
                        "diffusion.offset_noise": 0.1, "diffusion.schedule": "cosine(T=4)"},
        "vdm": VDM | {"diffusion.objective": "vdm(gamma='network', learn_ends=True)"},
    }.items():
        config = runpy.run_path(sys.argv[1])["get_config"]()
        config.update_from_flattened_dict({
            "model.channels": 8, "model.head_channels": 8, "model.class_conditional": False,
            "model.multipliers": (1,), "train.warmup_steps": 0, "train.ema_snapshots": (0.1,),
            "train.batch_size": 8, "sample.steps": 2} | changes)
        setup = experiment.resolve(config)
        setup = setup.with_network(from_linen(Tiny()))
        strategy = DataParallel()
        state = setup.init_state()
        alone = jax.jit(setup.train_step())
        on_all, many = strategy.compile(setup.train_step()), strategy.shard_state(state)
        draw = np.random.default_rng(0)
        for _ in range(3):
            batch = {"image": draw.integers(0, 256, (8, 8, 8, 1)).astype(np.uint8)}
            state, one = alone(state, batch)
            many, two = on_all(many, strategy.shard_batch(batch))
        for leaf in jax.tree.leaves(many):
            copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
            assert (copies[0] == copies[1]).all(), "copies differ"
        pairs = zip(jax.tree.leaves((state, one)), jax.tree.leaves((many, two)))
        worst[name] = max(
            float(np.max(np.abs(np.subtract(a, b)) / (1e-3 + np.abs(a)))) for a, b in pairs)
        if name == "remembering":
            assert np.asarray(state.objective_state.history.count).tolist() == [6, 6, 6, 6]
    print(json.dumps({"devices": jax.local_device_count(), "worst": worst}))
    """
)


@pytest.mark.slow
def test_one_and_two_devices_learn_and_remember_the_same(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DEVICES, str(ROOT / "experiments/digits.py")],
        env={"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
             "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["devices"] == 2
    assert max(report["worst"].values()) < 2e-3, report


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "nope"}, "config.diffusion.objective = 'nope': expected one of squared_err"),
        ({"objective": "hybrid(weight=3)"}, "config.diffusion.objective = 'hybrid.* 'weight'"),
        ({"objective": "vdm(gamma='cubic')"} | VDM,
         "config.diffusion.objective .*gamma must be one of fixed, scalar, network, not 'cubic'"),
        ({"objective": "vdm"}, "objective = 'vdm' needs a continuous.*'cosine': use linear_log_"),
        ({"objective": "vdm", "schedule": "karras"}, "variance preserving schedule, not 'karras'"),
        ({"objective": "vdm", "schedule": "rectified_flow"}, "schedule, not 'rectified_flow'"),
        ({"objective": "vdm", "learned_weighting": True} | VDM, "with learned_weighting"),
        ({"objective": "vdm", "self_conditioning": 0.5} | VDM, "self_conditioning and offset_n"),
        ({"objective": "vdm", "offset_noise": 0.1} | VDM, "offset_noise: set them to False and 0"),
        ({"objective": "vdm", "time_sampling": "loss_second_moment"} | VDM,
         "config.diffusion.time_sampling = 'loss_second_moment' needs a discrete schedule"),
        ({"time_sampling": "loss_second_moment", "schedule": "karras"},
         "config.diffusion.time_sampling = 'loss_second_moment' needs a discrete schedule"),
        ({"time_sampling": "nope"}, "config.diffusion.time_sampling .*loss_second_moment"),
        ({"objective": "hybrid", "schedule": "karras"}, "config.diffusion.schedule = 'karras'"),
        ({"objective": "vlb", "self_conditioning": 0.5}, "diffusion.self_conditioning = 0.5"),
        ({"objective": "vdm", "weighting": "snr"} | VDM, "weighting = 'snr': expected 'uniform'"),
        ({"objective": "vdm", "loss_target": "x0"} | VDM, "loss_target = 'x0': expected 'same'"),
        ({"objective": "vlb", "time_sampling": "logit_normal"}, "time_sampling = 'logit_normal'"),
        ({"objective": "vlb"} | CATEGORICAL | {"diffusion.loss_target": "same"},
         "config.diffusion.parametrisation = 'categorical'"),
        (CATEGORICAL | {"diffusion.loss_target": "same"}, "diffusion.loss_target = 'same': logits"),
        (CATEGORICAL | {"diffusion.loss_target": "categorical"},
         "config.diffusion.loss_target = 'categorical': logits"),
        ({"loss_target": "categorical"}, "config.diffusion.loss_target = 'categorical': logits"),
        (CATEGORICAL | {"self_conditioning": 0.5}, "config.diffusion.self_conditioning = 0.5"),
        ({"parametrisation": "categorical(levels=1)"}, "at least 2, not 1"),
        ({"train.ema": "nope"}, "config.train.ema = 'nope': expected one of warmed_up, constant"),
        ({"train.ema": "power(sigma_rel=3.0)"}, "config.train.ema = .*sigma_rel must be in"),
        ({"train.ema_snapshots": (0.1, 0.9)}, r"ema_snapshots = \(0.1, 0.9\): sigma_rel must be"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told_in_one_line(tiny_config, changes, message):
    tiny_config.update_from_flattened_dict(
        {key if "." in key else f"diffusion.{key}": value for key, value in changes.items()}
    )
    with pytest.raises(UserError, match=message) as caught:
        objectives.check(tiny_config, process.diffusion(tiny_config))
        optimisation.average_decay(tiny_config)
    assert "\n" not in str(caught.value)


def test_every_objective_resolves_by_its_name_with_a_schedule_that_it_can_have(tiny_config):
    for name in set(objectives.OBJECTIVES) - set(few_step.OBJECTIVES):
        tiny_config.diffusion.objective = name
        tiny_config.diffusion.schedule = "linear_log_snr" if name == "vdm" else "cosine"
        found = process.diffusion(tiny_config)
        objectives.check(tiny_config, found)
        assert found.learned_variance == (name in ("hybrid", "vlb"))
