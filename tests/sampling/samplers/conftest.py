"""What all samplers' tests run under."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def quickly(compile_quickly):
    """For every file of this folder."""
