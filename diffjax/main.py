"""The command line: python -m diffjax.main --config=experiments/fashion_mnist.py

One config file says what is trained, --config.key.name=value changes a value, --workdir says where
the run lives, and --mode what to do: train (going on where the last run stopped), sample, edit
(images from files), evaluate, ema (rebuild an average of another length from stored ones), plan
(what a training would take of config.parallel.devices devices; nothing is trained or written).
"""

import contextlib
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from diffjax import flags
from diffjax.errors import UserError
from diffjax.files import cache_folder
from diffjax.training import hosts

# Of an error; a value of any length may be in it, and what was expected stands at its end.
LONGEST_LINE = 2000
ONE_PROCESS = ("edit", "ema", "plan")  # modes


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the command line asks and returns the exit code.

    0: done; 2: bad input, told in one line; 128 + signal: stopped by Ctrl-C or SIGTERM, saved.

    One of several processes that ends by an error ends at once, and JAX's runtime ends the others.
    """
    try:
        code = _main(sys.argv[1:] if arguments is None else arguments)
    except Exception:
        if not hosts.several():
            raise
        traceback.print_exc()
        code = 1
    if code in (1, 2, 130) and hosts.several():
        # A tidy end would first wait for the others, which wait for this one in a step.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _main(arguments: Sequence[str]) -> int:
    _speak_plainly()  # before other packages take hold of the root logger
    if {"--help", "-h", "-help"} & set(arguments):
        print(f"{__doc__}\n{flags.help_text()}")
        return 0
    try:
        config, workdir, mode, profile, place = flags.parse(arguments)
        hosts.start(place)
        with _speaker():
            code = run(config, workdir, mode, profile)
        hosts.wait()  # while JAX's runtime shuts down, a process that still works counts as gone
        return code
    except UserError as error:
        if "--debug" in arguments:
            raise
        _tell(f"error: {error}")
        return 2
    except OSError as error:
        if "--debug" in arguments:
            raise
        where = error.filename or "a file"
        _tell(
            f"error: {where}: {error.strerror or error}: free space or choose another folder, and "
            "run the same command again; checkpoints written before are kept"
        )
        return 2
    except jax.errors.JaxRuntimeError as error:
        if "--debug" in arguments or not hosts.several():
            raise
        _tell(
            f"error: {str(error).splitlines()[0][:300]}: most likely another process of this run "
            "is gone: see what it said, and start all of them again to go on"
        )
        return 1
    except MemoryError as error:
        if "--debug" in arguments:
            raise
        _tell(
            f"error: out of memory{f' ({error})' if str(error) else ''}: take smaller images, a "
            "smaller batch or a smaller model"
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _speaker() -> Iterator[None]:
    """Of several processes the first one speaks; the others tell of errors alone."""
    if hosts.first():
        yield
        return
    logging.getLogger("diffjax").setLevel(logging.WARNING)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _tell(line: str) -> None:
    """Prints one line: what would break it, or steer a terminal, is shown as Python writes it."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    if len(shown) > LONGEST_LINE:
        half = LONGEST_LINE // 2
        shown = f"{shown[:half]} ... {shown[-half:]}"
    print(shown, file=sys.stderr)


def run(config: Any, workdir: Path, mode: str = "train", profile: bool = False) -> int:
    """Does what `mode` says with a config, for the command line and for notebooks.

    Args:
      config: an ml_collections ConfigDict, as experiments/*.py make them.
      workdir: where the run lives.
      mode: "train", "sample", "edit", "evaluate", "ema" or "plan".
      profile: whether a training writes a trace of a few steps.

    Returns:
      The exit code: 0, or 128 + signal when a signal stopped a training, which is saved then.

    Raises:
      UserError: bad input.
    """
    from diffjax.training.config import check, is_autoencoder

    if mode in ONE_PROCESS and hosts.several():
        raise UserError(f"--mode={mode} is the work of one process: start it without the others")
    train = partial(_train, profile=profile)
    modes: dict[str, Callable[[Any, Path], int]] = {
        "train": train,
        "sample": _sample,
        "edit": _edit,
        "evaluate": _evaluate,
        "ema": _rebuild_average,
    }
    if mode not in (*modes, "plan"):
        raise UserError(f"mode {mode!r}: expected one of {', '.join((*modes, 'plan'))}")
    if profile and mode != "train":
        raise UserError(f"--profile traces training steps: it can't go with --mode={mode}")
    check(config)
    if mode == "plan":
        from diffjax.training import plan

        print(plan.told(plan.plan(config)))
        return 0
    use_compilation_cache()
    if is_autoencoder(config):
        from diffjax.training.first_stage.experiment import resolve

        modes = {"train": train, "evaluate": _evaluate_autoencoder}
        if mode == "ema":
            raise UserError(
                "--mode=ema: an autoencoder keeps no averages to rebuild one from: expected train "
                "or evaluate"
            )
        if mode not in modes:
            raise UserError(
                f"--mode={mode}: an autoencoder draws nothing by itself: expected train or "
                "evaluate; name its workdir in the config of a diffusion model to sample"
            )
        setup: Any = resolve(config)
    else:
        from diffjax.training.experiment import resolve as resolve_diffusion

        setup = resolve_diffusion(config)
    if mode != "train":  # whose own first line it is
        logging.getLogger("diffjax").info(setup.kernels.line)
    return modes[mode](setup, Path(workdir))


def _speak_plainly() -> None:
    """Shows diffjax's own log lines, and lets one error stand for the many of a failed save.

    When a disk is full, orbax logs every array that it could not write, and tensorstore's threads
    report to an event loop that is gone; the error that is raised says it once.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("diffjax").setLevel(logging.INFO)
    for noisy in ("absl", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    # Pillow warns of an image that is refused here all the same.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    report = sys.unraisablehook

    def without_closed_loops(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = without_closed_loops


def use_compilation_cache() -> None:
    """Keeps what XLA compiled in the user's cache folder, unless JAX was told of another place.

    A program's key there holds its code, the compiler's version and flags and the kind of device,
    and XLA compares a CPU program's instruction sets with the machine's when it loads one. What
    can't be kept is compiled every time.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = cache_folder() / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.getLogger("diffjax").info(
            "%s: %s: compiled programs are not kept for the next run", folder, error.strerror
        )
        return
    # JAX would say for each program that it could not be kept, on a full disk for one.
    warnings.filterwarnings("ignore", message="Error writing persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # A run has dozens of small programs, which take longer to compile than to read.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _train(setup: Any, workdir: Path, *, profile: bool) -> int:
    from diffjax.training import loop

    try:
        loop.train(setup, workdir, profile=profile)
    except loop.Stopped as stopped:
        print(f"{stopped}: run the same command again to go on", file=sys.stderr)
        return 128 + stopped.signal
    return 0


def _sample(setup: Any, workdir: Path) -> int:
    from diffjax.training import pictures
    from diffjax.training.restoring import restore_frozen

    step, params = restore_frozen(setup, workdir)
    for path in pictures.generated(setup, params, workdir, step=step):
        print(f"wrote {path}")
    return 0


def _edit(setup: Any, workdir: Path) -> int:
    from diffjax.training.edit import Edit
    from diffjax.training.restoring import restore_frozen

    edit = Edit(setup)  # first the files: what is wrong with them needs no model
    step, params = restore_frozen(setup, workdir)
    for path in edit.write(params, workdir, step=step):
        print(f"wrote {path}")
    return 0


def _rebuild_average(setup: Any, workdir: Path) -> int:
    from diffjax.training import ema_snapshots
    from diffjax.training.restoring import rebuild_average

    rebuilt = rebuild_average(setup, workdir)
    path = ema_snapshots.save_rebuilt(workdir / ema_snapshots.FOLDER, rebuilt)
    print(
        f"wrote {path}: sigma_rel {rebuilt.sigma_rel:g} at step {rebuilt.step} from "
        f"{len(rebuilt.used)} snapshots, residual {rebuilt.residual:.2g}"
    )
    if rebuilt.residual > ema_snapshots.DOUBTFUL:
        print(
            f"warning: a residual above {ema_snapshots.DOUBTFUL} is another average than the "
            "wanted one: take a step with a snapshot, or a sigma_rel nearer to those stored"
        )
    return 0


def _evaluate(setup: Any, workdir: Path) -> int:
    from diffjax import figures
    from diffjax.training.restoring import restore_frozen

    if setup.config.evaluate.likelihood != "none":
        return _evaluate_likelihood(setup, workdir)
    scales = setup.config.evaluate.scales
    at_scales = [(scale, setup.at_guidance_scale(scale)) for scale in scales]
    step, params = restore_frozen(setup, workdir)
    if not scales:
        report = _report(setup, params, step)
        _write_json(workdir / "evaluation.json", report)
        print(json.dumps(report, indent=2))
        return 0
    reports = []
    for scale, one in at_scales:
        print(f"scale {scale:g}:")
        reports.append({"scale": scale, **_report(one, params, step)})
        _write_json(workdir / "evaluation_scales.json", reports)  # what is measured is not lost
    if not hosts.first():
        return 0
    figures.plot_scales(workdir / "evaluation_scales.png", reports)
    for report in reports:
        print(f"scale {report['scale']:g}: CFD {report['classifier_frechet_distance']:.4f}")
    print(f"wrote {workdir / 'evaluation_scales.json'}\nwrote {workdir / 'evaluation_scales.png'}")
    return 0


def _evaluate_likelihood(setup: Any, workdir: Path) -> int:
    from diffjax import figures
    from diffjax.evaluation.likelihood import evaluate_likelihood
    from diffjax.training.likelihood import drawn_schedules, likelihood, restore_learned
    from diffjax.training.splits import load_held_out

    config = setup.config
    step, params, learned = restore_learned(setup, workdir)
    measured = likelihood(setup, learned)
    test = load_held_out(config)
    report, each = evaluate_likelihood(
        lambda batch, numbers: measured.batch(params, batch, numbers),
        test or setup.source,
        what=measured.what,
        split="test" if test else "training",
        num_images=config.evaluate.images,
        batch_size=config.sample.batch_size,
        quiet=not hosts.first(),
    )
    report = {
        "step": step,
        "likelihood": config.evaluate.likelihood,
        "given": "the class" if setup.conditions.num_classes else "nothing",
        **report,
    }
    name = f"likelihood_{measured.name}"
    _write_json(workdir / f"{name}.json", report)
    _write_arrays(workdir / f"{name}.npz", each)
    print(json.dumps(report, indent=2))
    written = [f"{name}.json", f"{name}.npz"]
    if measured.name != "ode" and hosts.first():
        figures.plot_bound(
            workdir / f"{name}.png",
            each,
            title=f"{report['bits_per_dim']:.3f} bits/dim",
            schedules=drawn_schedules(setup, learned),
        )
        written.append(f"{name}.png")
    print("wrote " + ", ".join(str(workdir / file) for file in written))
    return 0


def _evaluate_autoencoder(setup: Any, workdir: Path) -> int:
    from diffjax.evaluation.reconstruction import codebook_use, evaluate_reconstruction
    from diffjax.training.first_stage.pictures import reconstructed
    from diffjax.training.restoring import restore_frozen
    from diffjax.training.splits import load_held_out

    step, frozen = restore_frozen(setup, workdir)
    config = setup.config

    def reconstruct(images: Any) -> Any:
        return reconstructed(setup, frozen, images, batch_size=config.sample.batch_size)

    test = load_held_out(config)
    report = {"step": step} | evaluate_reconstruction(
        reconstruct,
        train=setup.source,
        test=test,
        num_images=config.evaluate.num_samples,
        cache_dir=cache_folder() / "evaluation",
        features=setup.objective.features,
    )
    codes = setup.codes(frozen, test or setup.source)
    if codes is not None:
        report |= codebook_use(codes, len(frozen.codebook.codes))
    _write_json(workdir / "evaluation.json", report)
    print(json.dumps(report, indent=2))
    return 0


def _report(setup: Any, params: Any, step: int) -> dict[str, Any]:
    """How close a model's samples are to its data, as JSON can hold it."""
    from diffjax.evaluation.report import evaluate

    config = setup.config
    batch_size = min(config.sample.batch_size, config.evaluate.num_samples)

    def generate(start: int, count: int) -> Any:
        # The last batch may ask for fewer: the same size all the same, or it is compiled anew.
        draw = setup.generator(params, start=start, count=count, batch_size=batch_size)
        return draw.images

    draw = _drawn_together(generate, config.evaluate.num_samples, batch_size)
    if not hosts.first():
        return {}
    report = evaluate(
        draw,
        data=config.data.name,
        data_dir=config.data.dir or None,
        image_size=config.data.image_size or None,
        channels=config.data.channels or None,
        cache_dir=cache_folder() / "evaluation",
        num_samples=config.evaluate.num_samples,
        batch_size=batch_size,
    )
    return {"step": step, "sample": config.sample.to_dict(), **report}


def _drawn_together(
    generate: Callable[[int, int], Any], count: int, batch_size: int
) -> Callable[[int, int], Any]:
    """For several processes, of which one looks at the samples: all have drawn them beforehand."""
    if not hosts.several():
        return generate
    drawn = [
        generate(start, min(batch_size, count - start)) for start in range(0, count, batch_size)
    ]
    return lambda start, _: drawn[start // batch_size]


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    import numpy as np

    from diffjax.files import atomic_write

    if hosts.first():
        atomic_write(path, lambda file: np.savez_compressed(file, **arrays))


def _write_json(path: Path, content: Any) -> None:
    from diffjax.files import atomic_write

    text = json.dumps(content, indent=2) + "\n"
    if hosts.first():
        atomic_write(path, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    sys.exit(main())
