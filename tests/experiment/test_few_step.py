"""Few-step objectives by config: trained, resumed, sampled and refused through the command line."""

import json
import runpy
import shutil

import jax
import numpy as np
import pytest

import diffjax
from diffjax import grids, main
from diffjax.checkpoints import parameters
from diffjax.errors import UserError
from diffjax.experiment import optimisation, pairs, schema
from diffjax.experiment.diffusion import resolve
from diffjax.latent.pairs import PairSource
from diffjax.training.objective import LossInputs

FLOW = {"diffusion.schedule": "rectified_flow", "diffusion.parametrisation": "velocity"}
MEAN_FLOW = FLOW | {
    "diffusion.parametrisation": "average_velocity",
    "diffusion.time_sampling": "logit_normal",
    "sample.sampler": "flow_map",
    "sample.threshold": "none",
    "sample.steps": 1,
}
TUNED = FLOW | {"train.init_from": "TEACHER", "sample.sampler": "consistency", "sample.steps": 2}
TAUGHT = TUNED | {"diffusion.teacher": "TEACHER"}
METHODS = {
    "mean_flow": MEAN_FLOW | {"diffusion.objective": "mean_flow(scale=1.5, mix=0.2)"},
    "improved mean_flow": MEAN_FLOW | {"diffusion.objective": "mean_flow(tangent='predicted')"},
    "shortcut": MEAN_FLOW | {"diffusion.objective": "shortcut(levels=3)"},
    "consistency": TUNED | {"diffusion.objective": "consistency(stages=2)"},
    "consistency, distilled": TAUGHT | {
        "diffusion.objective": "consistency(distance='pseudo_huber(c=0.01)', stages=2)"
    },
    "sct": TUNED | {
        "diffusion.objective": "continuous_consistency(warm_up=3)",
        "diffusion.time_sampling": "log_normal(mean=-1.0, std=1.4)",
        "diffusion.learned_weighting": True,
    },
    "scd": TAUGHT | {
        "diffusion.objective": "continuous_consistency(warm_up=3)",
        "diffusion.time_sampling": "log_normal(mean=-1.0, std=1.4)",
    },
    "progressive": TUNED | {
        "diffusion.objective": "progressive(steps=4, stages=2)", "train.keep_every": 1,
        "sample.sampler": "ddim", "diffusion.teacher_guidance": "classifier_free(scale=1.5)",
    },
    "distribution_matching": TAUGHT | {
        "diffusion.objective": "distribution_matching(steps=2, fake_updates=2)"
    },
    "distribution_matching, adversarial": TAUGHT | {
        "diffusion.objective": "distribution_matching(fake_updates=1, adversarial=0.5, "
        "discriminator='patch(channels=4, layers=1)')"
    },
    "reflow": FLOW | {
        "diffusion.teacher": "TEACHER", "diffusion.pairs": "ode(count=40, steps=3)",
        "diffusion.teacher_guidance": "classifier_free(scale=1.5)",
    },
}  # fmt: skip
WITHOUT_HELD_OUT = (
    "progressive", "distribution_matching", "distribution_matching, adversarial", "reflow"
)  # fmt: skip


TINY = {
    "model.channels": 8, "model.head_channels": 8, "model.kernels": "xla", "train.steps": 3,
    "model.multipliers": (1,), "model.blocks": 1, "model.attention_resolutions": (),
    "train.batch_size": 16, "train.warmup_steps": 1, "train.log_every": 1, "train.eval_every": 2,
    "train.checkpoint_every": 3, "train.sample_every": 4, "sample.steps": 2, "sample.count": 10,
    "sample.batch_size": 10, "sample.guidance": "none", "evaluate.num_samples": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def make_config(request):
    path = request.config.rootpath / "experiments/digits.py"
    get_config = runpy.run_path(str(path))["get_config"]

    def of(keys):
        config = schema.complete(get_config())
        config.update_from_flattened_dict(TINY | keys)
        return config.lock()

    return of


@pytest.fixture(scope="module")
def teacher(make_config, trained_once, own_caches):
    """A flow of three steps."""
    return trained_once("flow", lambda folder: main.run(make_config(FLOW), folder))


@pytest.fixture(scope="module")
def make(make_config, teacher):
    def of(name, **changes):
        keys = {k: str(teacher) if v == "TEACHER" else v for k, v in METHODS[name].items()}
        return make_config(keys | changes)

    return of


def final(folder, step):
    fields = ("params", "ema_params", "opt_state", "learned", "learned_opt_state")
    found = parameters.read_parameters(folder, wanted="latest", fields=fields)
    assert found.step == step
    return jax.tree.leaves(found.fields)


RESUMED = ("mean_flow", "consistency, distilled", "sct", "progressive", "distribution_matching")


@pytest.mark.parametrize("name", RESUMED)
def test_four_steps_are_two_a_stop_and_two_bit_for_bit(make, tmp_path, name):
    constant = {"train.schedule": "constant", "train.checkpoint_every": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # Stages are shares of a run's steps: the first half of a run is stopped, not a shorter run.
    assert main.run(make(name, **constant, **{"train.steps": 4}), whole) == 0
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "4")
    assert main.run(make(name, **constant, **{"train.steps": 4}), parts) == 0
    for ours, theirs in zip(final(parts, 4), final(whole, 4), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
    assert any("eval_loss" in row for row in rows) == (name not in WITHOUT_HELD_OUT)
    assert diffjax.load(whole).sample(count=3).shape == (3, 8, 8, 1)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_moves_the_network(make, name):
    setup = resolve(make(name))
    state, step = setup.init_state(), jax.jit(setup.train_step())
    begin = setup.read_start()
    if begin is not None:
        state = setup.started(state, begin, log=lambda line: None)
    batches, before = setup.batches(), state
    assert bool(setup.held_out()) == (name not in WITHOUT_HELD_OUT)
    for _ in range(4):
        state, metrics = step(state, next(batches))
        assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before.params, state.params)
    assert any(jax.tree.leaves(moved))
    frozen = before.objective_state.frozen, state.objective_state.frozen
    jax.tree.map(np.testing.assert_array_equal, *frozen)


def test_a_progressive_stages_teacher_is_the_average_at_its_start(make):
    setup = resolve(make("progressive", **{"train.steps": 4}))
    step, batches = jax.jit(setup.train_step()), setup.batches()
    state = setup.started(setup.init_state(), setup.read_start(), log=lambda line: None)
    states = [state]
    for _ in range(4):
        state, metrics = step(state, next(batches))
        states.append(state)
    # Of 4 steps and 2 stages: a new teacher before the steps 0 and 2.
    for begun, then in ((0, 1), (0, 2), (2, 3), (2, 4)):
        jax.tree.map(
            np.testing.assert_array_equal,
            states[then].objective_state.history, states[begun].ema_params,
        )  # fmt: skip
    assert float(metrics["student_steps"]) == 1.0


@pytest.mark.parametrize("schedule", ["rectified_flow", "cosine"])
def test_a_progressive_stages_times_are_those_of_its_ddim(make, schedule):
    """All that are drawn are steps of `grids.trailing`, the student's and the teacher's."""
    changes = {
        "diffusion.schedule": schedule, "diffusion.objective": "progressive(steps=16)",
        "train.init_from": "not-read-here",
    }  # fmt: skip
    setup = resolve(make("progressive", **FLOW | changes))
    objective = setup.objective
    inputs = LossInputs(None, None, lambda name: jax.random.key(0), np.arange(400), 400, 0)
    for stage, count in enumerate((8, 4, 2)):
        t, middle, s = (np.asarray(v) for v in objective._times(inputs, stage))
        student, teacher = (
            grids.trailing(setup.diffusion.schedule, n).t for n in (count, 2 * count)
        )
        place = np.argmin(np.abs(student[:, None] - t), axis=0)
        assert set(place) == set(range(count))
        np.testing.assert_allclose(t, student[place], rtol=1e-6)
        np.testing.assert_allclose(s, student[place + 1], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(middle, teacher[2 * place + 1], rtol=1e-6)


def test_the_fake_denoiser_is_trained_more_often_than_the_generator(make):
    setup = resolve(make("distribution_matching", **{"train.steps": 20}))
    step, batches = jax.jit(setup.train_step()), setup.batches()
    state = setup.started(setup.init_state(), setup.read_start(), log=lambda line: None)
    fake = state.objective_state.params["fake"]
    jax.tree.map(np.testing.assert_array_equal, state.params, fake)
    moved = []
    for _ in range(4):
        before, (state, _) = state, step(state, next(batches))
        moved.append(tuple(
            any(jax.tree.leaves(jax.tree.map(lambda a, b: not np.array_equal(a, b), a, b)))
            for a, b in (
                (before.params, state.params),
                (before.objective_state.params, state.objective_state.params),
            )
        ))  # fmt: skip
    # The generator's turn is every second step. The rate is 0 in the first update of each.
    assert moved == [(False, False), (False, True), (False, True), (True, True)]


def test_the_turns_are_kept_over_micro_batches(make):
    changes = {"train.steps": 20, "train.accumulate": 2}
    setup = resolve(make("distribution_matching", **changes))
    step, batch = jax.jit(setup.train_step()), next(setup.batches())
    states = [setup.init_state()]
    for _ in range(4):
        states.append(step(states[-1], batch)[0])
    for first, second, same in ((2, 3, True), (3, 4, False)):
        equal = jax.tree.map(np.array_equal, states[first].params, states[second].params)
        assert all(jax.tree.leaves(equal)) == same


def test_pairs_are_the_teachers_samples_of_their_noise(make, teacher, caplog):
    setup = resolve(make("reflow"))
    space = pairs.space(setup.config, setup.model, setup.teacher)
    found = space.source(setup.source)
    assert isinstance(found, PairSource) and len(found) == 40
    assert found[7].keys() == {"image", "label", "noise"} and int(found[7]["label"]) == 7
    caplog.set_level("INFO", logger="diffjax")
    again = space.source(setup.source)
    np.testing.assert_array_equal(again.images, found.images)
    assert "read from" in caplog.text
    batch = next(setup.batches())
    assert batch["noise"].shape == batch["image"].shape
    rows = [int(np.argmin(np.abs(found.noise - n).sum((1, 2, 3)))) for n in batch["noise"]]
    np.testing.assert_array_equal(batch["image"], found.images[rows])


def test_a_flow_map_is_edited_by_another_sampler(make, tmp_path):
    assert main.run(make("mean_flow"), tmp_path) == 0
    model = diffjax.load(tmp_path)
    image = model.sample(count=1)
    with pytest.raises(UserError, match="to another one"):
        model.edit(image, "vary(strength=0.5)", labels=[3])
    made = model.edit(image, "vary(strength=0.5)", labels=[3], sampler="ddim", steps=3)
    assert made.shape[-3:] == (8, 8, 1)
    assert np.isfinite(model.log_likelihood(image, labels=[3], rtol=0.1, atol=0.1)).all()


def test_a_trained_student_needs_no_teacher(make, teacher, tmp_path, monkeypatch):
    copied = tmp_path / "teacher"
    shutil.copytree(teacher, copied)
    changes = {"diffusion.teacher": str(copied), "train.init_from": "", "train.steps": 2}
    config = make("consistency, distilled", **changes)
    assert main.run(config, tmp_path / "run") == 0
    shutil.rmtree(copied)
    assert main.run(config, tmp_path / "run", mode="sample") == 0
    with pytest.raises(UserError, match="holds no run"):
        resolve(config)
    assert resolve(config, trains=False).teacher is None


WRONG = [
    ("mean_flow", {"diffusion.parametrisation": "velocity", "sample.sampler": "ddim"},
     "trains average velocities"),
    ("mean_flow", {"diffusion.schedule": "cosine"}, "is of straight paths"),
    ("mean_flow", {"diffusion.time_sampling": "low_discrepancy"}, "draws two times"),
    ("mean_flow", {"diffusion.condition_dropout": 0.0}, "above 0"),
    ("mean_flow", {"diffusion.teacher": "runs/x"}, "has no teacher"),
    ("mean_flow", {"diffusion.offset_noise": 0.1}, "ignores config.diffusion.offset_noise"),
    ("mean_flow", {"sample.threshold": "clip"}, "set config.sample.threshold to 'none'"),
    ("mean_flow", {"diffusion.objective": "mean_flow(tangent='x')"}, "tangent must be one of"),
    ("mean_flow", {"diffusion.objective": "mean_flow(share=2.0)"}, r"share must be in \[0, 1\]"),
    ("mean_flow", {"diffusion.objective": "mean_flow(mix=1.0)"}, "mix in"),
    ("consistency", {"sample.sampler": "flow_map", "sample.threshold": "none"},
     "needs a model that was trained as a flow map"),
    ("consistency", {"diffusion.parametrisation": "average_velocity"}, "trains a denoiser"),
    ("consistency", {"diffusion.objective": "consistency(q=1.0)"}, "q must be above 1"),
    ("consistency", {"diffusion.objective": "consistency(distance='l3')"}, "squared_error"),
    ("consistency", {"diffusion.time_sampling": "loss_second_moment"}, "is incompatible with"),
    ("sct", {"diffusion.schedule": "cosine", "train.init_from": ""}, "is discrete"),
    ("sct", {"diffusion.parametrisation": "x0", "train.init_from": ""}, "use a model of another"),
    ("consistency", {"diffusion.parametrisation": "x0", "train.init_from": ""},
     "set anchor=0.05 or"),
    ("progressive", {"train.init_from": ""}, "name its workdir in config.train.init_from"),
    ("progressive", {"diffusion.objective": "progressive(steps=6, stages=2)"}, "a multiple of"),
    ("distribution_matching", {"diffusion.teacher": ""}, "needs a teacher"),
    ("distribution_matching, adversarial", {"diffusion.objective":
     "distribution_matching(adversarial=1.0, discriminator='patch(layers=9)')"}, "needs images of"),
    ("distribution_matching", {"train.init_from": ""}, "its workdir in config.train.init_from"),
    ("progressive", {"diffusion.parametrisation": "v"}, "config.diffusion.parametrisation = 'velo"),
    ("consistency", {"diffusion.schedule": "cosine", "diffusion.parametrisation": "v"},
     "config.diffusion.schedule = 'rectified_flow', not 'cosine'"),
    ("distribution_matching", {"diffusion.pairs": "ode(count=40)"}, "draws noise of its own"),
    ("reflow", {"diffusion.offset_noise": 0.1}, "would change the noise of the pairs"),
    ("distribution_matching", {"diffusion.teacher": "nowhere"}, "nowhere holds no run"),
    ("scd", {"diffusion.schedule": "continuous_cosine"}, "config.diffusion.schedule = 'rectified"),
    ("scd", {"model.class_conditional": False}, "a teacher must share"),
    ("scd", {"diffusion.teacher_guidance": "autoguidance(workdir='x', scale=2.0)"},
     "expected guidance by the unconditional prediction"),
    ("scd", {"diffusion.teacher_guidance": "classifier_free"}, "scale"),
    ("sct", {"diffusion.teacher_guidance": "classifier_free(scale=2.0)"}, "no teacher to guide"),
    ("reflow", {"diffusion.teacher": ""}, "name it in config.diffusion.teacher"),
    ("reflow", {"condition.map": "edges"}, "set it to 'none'"),
    ("reflow", {"diffusion.pairs": "ode(count=0)"}, "count and steps must be at least 1"),
    ("reflow", {"diffusion.pairs": "ode(sampler='x')"}, "pairs: sampler"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "message"), WRONG)
def test_what_does_not_fit_is_one_line(make, name, changes, message):
    with pytest.raises(UserError, match=message) as found:
        resolve(make(name, **changes))
    assert "\n" not in str(found.value)


def test_the_generators_rate_follows_the_step_and_not_its_updates(make):
    config = make("distribution_matching", **{"train.steps": 20, "train.warmup_steps": 4})
    optimizer = optimisation.optimizer(config, every=2)
    params, gradient = np.zeros(1, np.float32), np.full(1, 0.01, np.float32)
    state, sizes = optimizer.init(params), []
    for _ in range(10):
        updates, state = optimizer.update(gradient, state, params)
        sizes.append(-float(updates[0]))
    # Adam's steps along a constant gradient are as long as the rate.
    rate = optimisation.learning_rate(config)
    expected = [float(rate(step)) for step in range(0, 20, 2)]
    np.testing.assert_allclose(sizes, expected, rtol=1e-4, atol=1e-9)
