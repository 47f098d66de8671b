"""A new run from the weights of another: what fits is taken, what does not is listed."""

import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.checkpoints import transfer
from diffjax.checkpoints.parameters import read_parameters
from diffjax.errors import UserError
from diffjax.experiment import init_from
from diffjax.experiment.diffusion import resolve
from diffjax.main import main
from diffjax.training import loop


def flat(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_what_fits_is_taken_and_the_rest_is_listed():
    tree = {"a": [jnp.zeros(2), jnp.zeros((2, 3))], "b": jnp.zeros((), jnp.int32)}
    stored = {"a": {"0": np.array([1.0, 2.0]), "1": np.ones((2, 4))}, "c": np.ones(5)}
    made, compared = transfer.fit(tree, stored)
    assert made["a"][0].tolist() == [1.0, 2.0] and made["a"][0].dtype == np.float32
    assert not made["a"][1].any() and made["b"] == 0
    assert compared == transfer.Fit(("a.0",), (("a.1", (2, 4), (2, 3)),), ("b",), ("c",))
    assert not compared.whole and transfer.fit(tree["a"], stored["a"])[1].reshaped
    assert str(compared) == (
        "1 of 3 arrays fit; of another shape: a.1 (2, 4), not (2, 3); new: b; not used: c"
    )


def test_a_schedules_count_is_not_taken_and_adams_is():
    adam = {"count": np.int32(7), "mu": {"w": np.ones(2)}, "nu": {"w": np.ones(2)}}
    stored = {"0": {}, "1": adam, "2": {"count": np.int32(7)}}
    assert transfer.without_counts(stored) == {"0": {}, "1": adam, "2": {}}


def started(config, folder, **keys):
    """(the state of step 0 that starts from a folder, what was logged)."""
    with config.unlocked():
        config.train.update(init_from=str(folder), **keys)
    lines = []
    task = resolve(config)
    begin = task.read_start()
    return task.started(task.init_state(), begin, log=lines.append), lines


@pytest.mark.parametrize("parameters", ["averaged", "raw"])
def test_parameters_of_another_run(tiny_config, tiny_run, parameters):
    fields = ("params", "ema_params", "opt_state")
    stored = read_parameters(tiny_run, wanted="3", fields=fields).fields
    tiny_config.train.learning_rate = 1e-5
    tiny_config.train.batch_size = 8
    state, lines = started(tiny_config, f"{tiny_run}@3", init_parameters=parameters)
    source = "ema_params" if parameters == "averaged" else "params"
    expected, fresh = flat(stored[source]), flat(resolve(tiny_config).init_state().params)
    for name, array in flat(state.params).items():
        np.testing.assert_array_equal(array, expected[name])
    for name, array in flat(state.ema_params).items():
        np.testing.assert_array_equal(array, flat(stored["ema_params"])[name])
    assert any((fresh[name] != expected[name]).any() for name in fresh)
    assert int(state.step) == 0
    assert not any(x.any() for x in flat(state.opt_state).values())
    assert len(lines) == 1 and f"starting from step 3 of {tiny_run}" in lines[0]
    assert f"{len(fresh)} of {len(fresh)} arrays fit" in lines[0]


def test_moments_are_taken_by_choice(tiny_config, tiny_run):
    stored = flat(read_parameters(tiny_run, wanted="6", fields=("opt_state",)).fields["opt_state"])
    state, _ = started(tiny_config, tiny_run, init_optimizer=True)
    moments = {name: x for name, x in flat(state.opt_state).items() if "mu" in name.split(".")}
    assert moments
    for name, array in moments.items():
        np.testing.assert_array_equal(array, stored[name])
    counts = {name: int(x) for name, x in flat(state.opt_state).items() if name.endswith("count")}
    assert sorted(counts.values()) == [0, 6]  # the schedule's begins again


def test_other_classes_size_and_shape(tiny_config, tiny_run):
    """A wider network takes what has its shape, and no class table."""
    with tiny_config.unlocked():
        tiny_config.data.image_size = 12
        tiny_config.model.update(class_conditional=False, multipliers=(1, 3))
    state, (line,) = started(tiny_config, tiny_run)
    assert "of another shape: " in line and "not used: " in line
    stored = flat(
        read_parameters(tiny_run, wanted="6", fields=("ema_params",)).fields["ema_params"]
    )
    taken = [n for n, x in flat(state.params).items() if n in stored and x.shape == stored[n].shape]
    assert f"{len(taken)} of {len(flat(state.params))} arrays fit" in line
    for name in taken:
        np.testing.assert_array_equal(flat(state.params)[name], stored[name])
    tiny_config.train.init_strict = True
    with pytest.raises(UserError, match=r"init_strict = True: .* arrays fit; of another shape"):
        resolve(tiny_config).read_start()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nowhere", "nowhere holds no run"), ("{run}@4", "no checkpoint of step 4"),
        ("{run}@ema", "no rebuilt average|ema"),
    ],
)  # fmt: skip
def test_what_is_no_run_is_named_before_anything_is_written(
    tiny_flags, tiny_run, tmp_path, capsys, value, said
):
    flag = f"--config.train.init_from={value.format(run=tiny_run)}"
    assert main([*tiny_flags, f"--workdir={tmp_path / 'new'}", flag]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "new").exists()


def test_the_checkpoint_follows_an_at_sign(tmp_path):
    (tmp_path / "run@5").mkdir()
    assert init_from.split(f"{tmp_path}/run@5") == (tmp_path / "run@5", "latest")
    assert init_from.split(f"{tmp_path}/run@6") == (tmp_path / "run", "6")
    assert init_from.split("a@b/run") == (init_from.Path("a@b/run"), "latest")


def test_the_advice_after_a_nan_is_a_command_that_works(
    tiny_flags, tiny_run, tmp_path, capsys, monkeypatch
):
    """The run goes on from its last checkpoint with a lower rate, as its error message says."""
    fails = [*tiny_flags, f"--workdir={tiny_run}", "--config.train.steps=9"]
    real = loop.is_finite
    monkeypatch.setattr(loop, "is_finite", lambda metrics: False)
    assert main(fails) == 2
    monkeypatch.setattr(loop, "is_finite", real)
    error = capsys.readouterr().err
    advice = shlex.split(re.search(r"run the same command with (.*)", error)[1])
    assert advice[1].endswith("@6") and "lower" in advice[0]
    kept = [flag for flag in fails if not flag.startswith("--workdir")]
    assert main([*kept, "--config.train.steps=1", *advice]) == 0
    assert "starting from step 6 of" in capsys.readouterr().out


def test_a_refusal_names_the_way_to_start_from_the_weights(tiny_flags, tiny_run, tmp_path, capsys):
    changed = [*tiny_flags, "--config.model.channels=16"]
    assert main([*changed, f"--workdir={tiny_run}"]) == 2
    flag = re.search(r"(--config\.train\.init_from=\S+)", capsys.readouterr().err)[1]
    code = main([*changed, f"--workdir={tmp_path / 'new'}", flag, "--config.train.steps=1"])
    assert code == 0
    assert "of another shape" in capsys.readouterr().out


def test_raw_parameters_of_an_exported_model_are_refused_in_words(
    tiny_flags, tiny_run, tmp_path, capsys
):
    out = tmp_path / "exported"
    assert main([*tiny_flags, f"--workdir={tiny_run}", "--mode=export", f"--out={out}"]) == 0
    flags = [f"--workdir={tmp_path / 'new'}", f"--config.train.init_from={out}"]
    assert main([*tiny_flags, *flags, "--config.train.init_parameters=raw"]) == 2
    assert "has no raw parameters, as an exported model" in capsys.readouterr().err
