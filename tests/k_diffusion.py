"""k-diffusion's sampling.py, which is loaded without the packages that it does not need here."""

from importlib import metadata
from pathlib import Path

import pytest

from benchmarks.samplers import k_diffusion_side


def sampling():
    """The module; skips a test where k-diffusion or torch is not installed."""
    pytest.importorskip("torch", reason="k-diffusion needs torch")
    try:
        place = metadata.distribution("k-diffusion").locate_file("k_diffusion/sampling.py")
    except metadata.PackageNotFoundError:
        pytest.skip("k-diffusion is not installed")
    return k_diffusion_side._load(Path(str(place)))
