"""10,000 steps of the digits in a process of its own: minutes, so not in the suite.

    python -m pytest tests/soak/test_long_run.py -s  # -s shows the figures

What must stay flat is read from metrics.jsonl. DIFFJAX_LONG_STEPS takes another number of steps.
"""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from diffjax.training.logs import read_rows

STEPS = int(os.environ.get("DIFFJAX_LONG_STEPS", "10000"))
CHECKPOINTS, EVALUATIONS, SAMPLES, ROWS = 500, 500, 1000, 50  # steps between two of them
# From this row on each part of the loop has had its first turn.
SETTLED = 1050
MEMORY = 0.03
TOLD = (
    "host_memory_mb", "host_memory_peak_mb", "host_memory_anonymous_mb", "open_files",
    "compilations", "step_ms_p50",
)  # fmt: skip

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="metrics.jsonl tells the resident size on Linux"
)


def test_memory_handles_and_programs_stay_flat(tmp_path, tiny_flags):
    flags = [
        *tiny_flags, f"--config.train.steps={STEPS}", f"--config.train.log_every={ROWS}",
        f"--config.train.checkpoint_every={CHECKPOINTS}",
        f"--config.train.eval_every={EVALUATIONS}", f"--config.train.sample_every={SAMPLES}",
        "--config.train.ema_snapshots=(0.1,)", f"--workdir={tmp_path}",
    ]  # fmt: skip
    began = time.monotonic()
    # Compiled as a user's run is: here steps take the time, not compiling as in the suite.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "diffjax.main", *flags]
    subprocess.run(command, check=True, timeout=3600, env=environment)
    seconds = time.monotonic() - began
    rows = {row["step"]: row for row in read_rows(tmp_path / "metrics.jsonl") if "loss" in row}
    assert len(list((tmp_path / "samples").iterdir())) == STEPS // SAMPLES - 1  # each had its turn
    steps = [step for step in rows if step >= SETTLED]
    assert steps == list(range(SETTLED, STEPS + 1, ROWS))
    for step in (1, 50, 1000, SETTLED, 2500, 5000, 7500, STEPS):
        if step in rows:
            print(step, {name: round(rows[step].get(name, 0), 1) for name in TOLD})
    # The system drops pages of files when it likes, and what compiling took is given back at the
    # next save: a smaller resident size is no news, a larger one is.
    memory, own = (
        np.array([rows[step][name] for step in steps])
        for name in ("host_memory_mb", "host_memory_anonymous_mb")
    )
    most = memory.max() / memory[0] - 1
    second, last = (
        np.mean([rows[step]["host_memory_mb"] for step in rows if a < step / STEPS <= a + 0.25])
        for a in (0.25, 0.75)
    )
    print(
        f"{STEPS} steps in {seconds:.0f} s; resident, against step {SETTLED}: at most {most:+.2%}; "
        f"last quarter against the second: {last / second - 1:+.2%}; anonymous, from its least on: "
        f"{own[-1] - own.min():+.0f} MiB"
    )
    assert {rows[step]["compilations"] for step in steps} == {rows[SETTLED]["compilations"]}
    # As the next save begins: the thread that writes a checkpoint has files of its own meanwhile.
    saves = [step for step in steps if step % CHECKPOINTS == 0]
    assert len({rows[step]["open_files"] for step in saves}) == 1
    assert last / second - 1 < MEMORY
    assert most < MEMORY
