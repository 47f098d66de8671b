"""The command; see the package."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import benchmarks.comparison as about
from benchmarks.comparison import page
from benchmarks.comparison.models import MODELS
from benchmarks.comparison.runs import Settings, finished
from diffjax.commands.process_setup import configure_logging
from diffjax.errors import UserError
from diffjax.files import expanded


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, measures and writes; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.comparison", description=(about.__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--workdir", required=True, help="of the trainings")
    parser.add_argument("--out", help="folder of the page; by default the workdir")
    parser.add_argument("--flops", type=float, default=8e13, help="budget of each model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--flag", action="append", default=[], help="a further flag of trainings")
    given = parser.parse_args(arguments)
    configure_logging()
    workdir = expanded(given.workdir)
    settings = Settings(given.flops, given.samples, more=tuple(given.flag))
    results: dict[str, list] = {}
    pictures: dict[str, dict[str, np.ndarray]] = {}
    try:
        for seed in given.seeds:
            for key in given.only:
                model, folder = MODELS[key], workdir / f"seed{seed}"
                print(f"{model.name}, seed {seed}", flush=True)
                measured = finished(model, folder, settings, seed=seed)
                results.setdefault(model.name, []).append(measured)
                if model.name not in pictures:
                    with np.load(folder / f"{model.parts[-1].name}.npz") as arrays:
                        pictures[model.name] = dict(arrays)
                print("\n".join(page.table(results, page.COLUMNS)), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    in_order = {MODELS[key].name: results[MODELS[key].name] for key in given.only}
    for path in page.write(in_order, pictures, Path(given.out) if given.out else workdir):
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
