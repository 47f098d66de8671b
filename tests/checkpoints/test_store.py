"""Checkpoints: what is kept, and what faults leave."""

import os
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.checkpoints.store import KEEP_LAST, Checkpoints
from diffjax.errors import UserError


def state(value, size=3):
    return {"a": np.full(size, value, np.float32), "n": np.int32(value)}


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path)
    yield opened
    opened.close()


def test_nothing_to_restore(checkpoints):
    assert checkpoints.restore(state(0)) is None
    assert checkpoints.steps() == []
    assert checkpoints.best_step() is None


def test_the_last_three_and_the_best_are_kept_also_after_reopening(tmp_path, checkpoints):
    for step, loss in enumerate([5.0, 1.0, 4.0, 3.0, 2.0, 6.0], start=1):
        checkpoints.save(step, state(step), {"position": step}, loss=loss)
    checkpoints.wait()
    assert checkpoints.steps() == [2, *range(7 - KEEP_LAST, 7)]

    again = Checkpoints(tmp_path)
    assert again.best_step() == 2
    again.save(7, state(7), {"position": 7}, loss=9.0)
    again.wait()
    assert again.steps() == [2, 5, 6, 7]
    found = again.restore(state(0))
    assert found.step == 7 and found.data == {"position": 7}
    np.testing.assert_array_equal(found.state["a"], state(7)["a"])
    assert again.restore(state(0), step=2).step == 2
    with pytest.raises(UserError, match=r"no checkpoint of step 3 .*\[2, 5, 6, 7\]"):
        again.restore(state(0), step=3)
    again.close()


def test_a_saved_array_is_a_copy(checkpoints):
    donate = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(100_000)
    checkpoints.save(1, {"x": x}, {}, loss=0.0)
    for _ in range(20):
        x = donate(x)
    checkpoints.wait()
    assert not checkpoints.restore({"x": np.zeros(100_000, np.float32)}).state["x"].any()


def test_another_structure_is_refused_in_one_line(checkpoints):
    checkpoints.save(1, state(1), {}, loss=0.0)
    checkpoints.wait()
    with pytest.raises(UserError, match="can't be read for this config") as caught:
        checkpoints.restore({"b": np.zeros(3)})
    assert "\n" not in str(caught.value)


def test_a_file_that_can_not_grow_keeps_the_checkpoint_before(tmp_path):
    """A disk that fills up, as far as a process can stage it: writes past 20 kB fail."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1), {}, loss=0.0)
    checkpoints.wait()
    noise = np.random.default_rng(0).normal(size=200_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match="can't write a checkpoint") as caught:
            checkpoints.save(2, {"a": noise, "n": np.int32(2)}, {}, loss=0.0)
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)

    again = Checkpoints(tmp_path)
    assert again.steps() == [1]
    np.testing.assert_array_equal(again.restore(state(0)).state["a"], state(1)["a"])
    again.close()


def test_a_path_that_no_checkpoint_can_be_written_to_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="the path is not UTF-8"):
        Checkpoints(tmp_path / os.fsdecode(b"w\xf6rk"))
