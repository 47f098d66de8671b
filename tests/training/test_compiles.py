"""What a run compiles: each program once, however many steps and batches it serves."""

import logging
import re
from collections import Counter

import jax
import pytest

from diffjax import main
from diffjax.experiment import diffusion as experiment
from diffjax.training import loop


class Compiled(logging.Handler):
    """JAX's own account of what it compiled: names, and names with the shapes of arguments."""

    def __init__(self):
        super().__init__()
        self.names, self.programs = Counter(), Counter()

    def emit(self, record):
        found = re.match(r"Compiling (jit\((\w+)\) with .*)Argument mapping", record.getMessage())
        if found:
            self.programs[found[1]] += 1
            self.names[found[2]] += 1


@pytest.fixture
def compiled():
    jax.clear_caches()  # else what an earlier test compiled is not compiled here
    handler = Compiled()
    logger = logging.getLogger("jax._src.interpreters.pxla")
    logger.addHandler(handler)
    jax.config.update("jax_log_compiles", True)  # jax.log_compiles() holds for its own thread only
    yield handler
    jax.config.update("jax_log_compiles", False)
    logger.removeHandler(handler)


def train(config, folder):
    loop.train(experiment.resolve(config), folder, log=lambda line: None)


def test_a_run_compiles_nothing_twice(tiny_config, tmp_path, compiled):
    tiny_config.train.sample_every = 2
    train(tiny_config, tmp_path)
    names = compiled.names
    assert names["step"] == 1  # the train step, as the strategy compiles it
    assert names["init"] == 1
    assert names["eval_loss"] == 1  # 360 held-out digits: three batches of 120, not 128, 128, 104
    assert names["generate"] == 2  # the grid, and fewer samples with all that led to them
    assert [program for program, times in compiled.programs.items() if times > 1] == []


def test_a_last_batch_of_fewer_samples_is_not_compiled_anew(
    tiny_config, tmp_path, compiled, monkeypatch
):
    from diffjax.evaluation import classifier_features

    short = classifier_features.Recipe(steps=2)
    monkeypatch.setattr(classifier_features, "Recipe", lambda: short)
    train(tiny_config, tmp_path)
    compiled.names.clear()
    tiny_config.evaluate.num_samples = 50  # batches of 20, 20 and 10
    assert main.run(tiny_config, tmp_path, "evaluate") == 0
    assert compiled.names["generate"] == 1
    assert compiled.names["_apply"] == 1  # features of samples and of real images alike
