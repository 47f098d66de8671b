"""Every case is one that can be run, and samples as PyTorch's side does."""

import pytest

from benchmarks import cases, jax_side
from benchmarks.cases import Side

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.mark.parametrize("name", (*cases.CASES, *cases.OTHERS))
def test_a_case_resolves_to_one_evaluation_a_step(name):
    case = cases.load(name, "cpu")
    setup = jax_side.setup_of(case, Side("diffjax", "xla", "float32"))
    assert setup.config.sample.guidance == "none"
    assert setup.model.space.shape == case.image_shape
