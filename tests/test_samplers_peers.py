"""Our solvers against those of diffusers and k-diffusion: same mixture, noise levels and noise,
float64, to 1e-9.

k-diffusion needs `pip install --no-deps k-diffusion`: its sampling.py alone is loaded.
"""

import jax
import numpy as np
import pytest

from benchmarks import samplers as benchmark
from diffjax import grids

PAIRS = {
    "diffusers": {
        "Euler": "ddim, euler",
        "LMS": "lms 4",
        "DPM-Solver++ 2M": "dpm_solver_pp_2m",
        "DPM-Solver++ 3M": "dpm_solver_pp_3m, published",
        "UniPC 2, bh1": "unipc 2, bh1",
        "UniPC 2, bh2": "unipc 2, bh2",
        "UniPC 3, bh2": "unipc 3",
        "DEIS 3": "deis 3, log_rho",
    },
    "k-diffusion": {
        "sample_euler": "ddim, euler",
        "sample_heun": "heun",
        "sample_dpm_2": "dpm2",
        "sample_lms": "lms 4",
        "sample_dpmpp_2s": "dpm_solver_pp_2s",
        "sample_dpmpp_2m": "dpm_solver_pp_2m",
        "sample_dpmpp_3m": "dpm_solver_pp_3m, published",
    },
}
# Theirs takes lower orders in the last two steps to clean data, or is NaN there.
ANOTHER_END = ("DPM-Solver++ 3M", "UniPC 2, bh1", "UniPC 3, bh2", "DEIS 3")
# LMS integrates its polynomials by an adaptive rule; k-diffusion's 3M takes an exact second step
# where diffusers', and ours after it, takes 2M's.
TOLERANCE = {"sample_lms": 1e-6, "sample_dpmpp_3m": 1e-4}
# diffusers rounds x_t to float32 in every step.
FLOAT32 = 3e-6


@pytest.fixture(scope="module")
def theirs():
    torch = pytest.importorskip("torch", reason="diffusers and k-diffusion need torch")
    before = torch.get_default_dtype()
    found = {"diffusers": benchmark.diffusers_solvers(), "k-diffusion": None}
    found["k-diffusion"] = benchmark.k_diffusion_solvers()
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield {package: {s.name: s for s in solvers} for package, solvers in found.items()}
    torch.set_default_dtype(before)


@pytest.mark.parametrize("clean", [True, False], ids=["to clean data", "to noise"])
@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package, pairs in PAIRS.items() for name in pairs]
)
def test_same_numbers(package, name, clean, theirs):
    if not theirs[package]:
        pytest.skip(f"{package} is not installed")
    if clean and name in ANOTHER_END:
        pytest.skip("theirs ends at clean data in another way")
    ours = next(s for s in benchmark.OURS if s.name == PAIRS[package][name])
    outer = grids.karras(benchmark.SCHEDULE, 10)
    grid = outer
    if ours.stages:
        grid = grids.with_stages(benchmark.SCHEDULE, outer, fractions=ours.stages)
    if not clean:
        outer, grid = grids.stop_before_clean(outer), grids.stop_before_clean(grid)
    x_T = benchmark.starts()[:8]
    np.testing.assert_allclose(
        ours.run(x_T, grid), theirs[package][name].run(x_T, outer),
        rtol=0, atol=TOLERANCE.get(name, FLOAT32 if package == "diffusers" else 1e-9),
    )  # fmt: skip
