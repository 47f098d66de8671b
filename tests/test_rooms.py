"""The rooms of the house: only `experiment/` and what is above it read a config."""

import ast
from pathlib import Path

import pytest

from diffjax.experiment import defaults

PACKAGE = Path(__file__).resolve().parents[1] / "diffjax"
MAY_READ = ("main.py", "flags.py", "commands", "experiment")
BELOW = sorted(
    path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in MAY_READ
)
SECTIONS = {
    *defaults.diffusion().keys(),
    *defaults.autoencoder().keys(),
    *defaults.pixelcnn().keys(),
    *defaults.gan().keys(),
    *defaults.cascade().keys(),
}


def reads(source):
    """Lines that take a section of something called config."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute) or node.attr not in SECTIONS:
            continue
        of = node.value
        name = of.id if isinstance(of, ast.Name) else getattr(of, "attr", "")
        if name == "config":
            yield node.lineno


@pytest.mark.parametrize("path", BELOW, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_room_below_the_experiment_reads_a_config(path):
    source = path.read_text(encoding="utf-8")
    assert not list(reads(source))
    assert "ml_collections" not in source


def test_the_check_sees_a_config_that_is_read():
    assert list(reads("def f(config):\n    return config.train.steps")) == [2]
    assert list(reads("x = self.config.seed")) == [1]
    assert not list(reads("jax.config.update('a', 1)"))
