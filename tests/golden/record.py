"""What a short run of the digits gives, number for number: `python tests/golden/record.py FOLDER`.

The command line alone is used, so the same program can be run on any version of diffjax; its output
at one commit is golden.json, which test_golden.py compares with.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TRAIN = (
    f"--config={ROOT / 'experiments/digits.py'}",
    "--config.model.channels=8",
    "--config.model.head_channels=8",
    "--config.model.attention_resolutions=(4,)",
    "--config.model.dropout=0.1",
    "--config.model.kernels=xla",
    "--config.data.flip=True",
    "--config.train.steps=8",
    "--config.train.batch_size=16",
    "--config.train.warmup_steps=2",
    "--config.train.log_every=1",
    "--config.train.eval_every=4",
    "--config.train.checkpoint_every=8",
    "--config.train.sample_every=8",
    "--config.sample.steps=5",
    "--config.sample.count=6",
    "--config.sample.batch_size=6",
)
SAMPLERS = (
    "ancestral",
    "ddim",
    "ddim(eta=0.5)",
    "euler_ancestral",
    "euler",
    "heun",
    "dpm_solver_pp_2m",
    "dpm_solver_pp_3m",
    "sde_dpm_solver_pp",
    "deis",
    "lms",
    "ipndm",
    "plms",
    "pndm",
    "unipc",
    "dpm_solver_2",
    "dpm_solver_3",
    "dpm_solver_pp_2s",
    "dpm2",
    "midpoint",
    "edm_stochastic",
    "predictor_corrector",
    "restart",
    "adaptive",
)  # fmt: skip; rk4 is for flows
GUIDANCE = ("classifier_free(scale=2.0)", "compose(labels=(1,2), weights=(1.0,0.5))")
LIKELIHOODS = ("vlb(steps=3)", "ode(rtol=0.01, atol=0.01)")


def record(folder: Path, main, *, samplers=SAMPLERS) -> dict:
    """The numbers of a training, each sampler, two kinds of guidance and the likelihoods."""
    run = (*TRAIN, f"--workdir={folder}")
    assert main([*run]) == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {
        "loss": [row["loss"] for row in rows if "loss" in row],
        "grad_norm": [row["grad_norm"] for row in rows if "grad_norm" in row],
        "eval_loss": [row["eval_loss"] for row in rows if "eval_loss" in row],
        "samples": {},
        "likelihood": {},
    }
    for name in (*samplers, *GUIDANCE):
        how = f"--config.sample.{'guidance' if name in GUIDANCE else 'sampler'}={name}"
        before = set((folder / "generated").glob("*.npz"))
        grid = ["--config.sample.grid=uniform_log_snr"] if name in ("dpm2", "midpoint") else []
        assert main([*run, "--mode=sample", how, *grid, "--config.sample.threshold=none"]) == 0
        (new,) = set((folder / "generated").glob("*.npz")) - before
        images = np.load(new)["images"]
        found["samples"][name] = {
            "sha256": hashlib.sha256(images.tobytes()).hexdigest(),
            "mean": float(images.mean()),
            "rows": images.mean((1, 2, 3)).tolist(),
        }
    for name in LIKELIHOODS:
        how = (f"--config.evaluate.likelihood={name}", "--config.evaluate.images=4")
        assert main([*run, "--mode=evaluate", *how]) == 0
        kind = name.split("(")[0]
        with np.load(folder / f"likelihood_{kind}.npz") as arrays:
            found["likelihood"][name] = arrays["total"].astype(float).tolist()
    return found


if __name__ == "__main__":
    from diffjax.main import main as run_main

    print(json.dumps(record(Path(sys.argv[1]), run_main), indent=1), file=sys.stderr)
