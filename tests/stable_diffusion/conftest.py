"""One folder of each family, written once in a session."""

import importlib.util
import sys
from pathlib import Path

import pytest

HAS_DIFFUSERS = all(importlib.util.find_spec(m) for m in ("torch", "diffusers", "transformers"))


@pytest.fixture(scope="session")
def tiny():
    """The module `tiny`, which needs diffusers."""
    if not HAS_DIFFUSERS:
        pytest.skip("a second implementation of Stable Diffusion")
    path = Path(__file__).with_name("tiny.py")
    spec = importlib.util.spec_from_file_location("tests_stable_diffusion_tiny", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def folders(tiny, tmp_path_factory):
    """family -> (folder, diffusers' pipeline of the same parts)."""
    made = {}

    def of(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family] = folder, tiny.write(folder, family)
        return made[family]

    return of
