"""The same seeds give the numbers that they gave before: see `record` and its golden.json.

On the machine and the versions that recorded them the bits are the same; on another one's
instructions and compilers, up to rounding.
"""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
SAMPLERS = ("ancestral", "ddim(eta=0.5)", "dpm_solver_pp_2m", "unipc", "edm_stochastic")


@pytest.fixture(scope="module")
def golden():
    return json.loads((HERE / "golden.json").read_text())


def test_a_training_samplers_and_likelihoods_give_the_numbers_that_they_gave(golden, tmp_path):
    from diffjax.main import main

    recorder = runpy.run_path(str(HERE / "record.py"))
    found = recorder["record"](tmp_path / "run", main, samplers=SAMPLERS)
    for name in ("loss", "grad_norm", "eval_loss"):
        np.testing.assert_allclose(found[name], golden[name], rtol=2e-5)
    for name in (*SAMPLERS, *recorder["GUIDANCE"]):
        ours, theirs = found["samples"][name], golden["samples"][name]
        # A level at most, where rounding falls the other way.
        np.testing.assert_allclose(ours["rows"], theirs["rows"], atol=0.5, err_msg=name)
    for name, values in golden["likelihood"].items():
        np.testing.assert_allclose(found["likelihood"][name], values, rtol=1e-3)
    assert len(golden["samples"]) == len(recorder["SAMPLERS"]) + len(recorder["GUIDANCE"])
