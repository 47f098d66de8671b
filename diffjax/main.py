"""The command line: python -m diffjax.main --config=experiments/fashion_mnist.py

One config file says what is trained, --config.key.name=value changes a value, --workdir says where
the run lives, and --mode what to do.
"""

import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from diffjax import flags
from diffjax.commands import MODES, OF_AUTOENCODERS, ONE_PROCESS, Request, command
from diffjax.distributed import processes
from diffjax.errors import UserError
from diffjax.files import cache_folder

# Of an error; a value of any length may be in it, and what was expected stands at its end.
LONGEST_LINE = 2000


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the command line asks and returns the exit code.

    0: done; 2: bad input, told in one line; 128 + signal: stopped by Ctrl-C or SIGTERM, saved.

    One of several processes that ends by an error ends at once, and JAX's runtime ends the others.
    """
    try:
        code = _main(sys.argv[1:] if arguments is None else arguments)
    except Exception:
        if not processes.is_multiprocess():
            raise
        traceback.print_exc()
        code = 1
    if code in (1, 2, 130) and processes.is_multiprocess():
        # A tidy end would first wait for the others, which wait for this one in a step.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _main(arguments: Sequence[str]) -> int:
    _speak_plainly()  # before other packages take hold of the root logger
    try:
        if (wanted := flags.help_wanted(arguments)) is not None:
            print(flags.help_text(__doc__ or "") if not wanted else flags.explain(wanted))
            return 0
        # Before a config is read: code beside it may use JAX, after which no process can join.
        processes.initialize(flags.place(arguments))
        config, workdir, mode, profile, out = flags.parse(arguments)
        with _speaker():
            code = run(config, workdir, mode, profile, out)
        processes.barrier()  # a process at work while the runtime shuts down counts as lost
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
        if "--debug" in arguments or not processes.is_multiprocess():
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
    if processes.is_primary():
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


def run(
    config: Any,
    workdir: Path,
    mode: str = "train",
    profile: bool = False,
    out: Path | None = None,
) -> int:
    """Does what `mode` says with a config, for the command line and for notebooks.

    Args:
      config: an ml_collections ConfigDict, as experiments/*.py make them.
      workdir: where the run lives.
      mode: one of `commands.MODES`.
      profile: whether a training writes a trace of a few steps.
      out: where mode "export" writes.

    Returns:
      The exit code: 0, or 128 + signal when a signal stopped a training, which is saved then.

    Raises:
      UserError: bad input.
    """
    from diffjax.experiment.schema import check, complete, is_autoencoder

    if mode not in MODES:
        raise UserError(f"mode {mode!r}: expected one of {', '.join(MODES)}")
    if mode in ONE_PROCESS and processes.is_multiprocess():
        raise UserError(f"--mode={mode} is the work of one process: start it without the others")
    if profile and mode != "train":
        raise UserError(f"--profile traces training steps: it can't go with --mode={mode}")
    if out is not None and mode != "export":
        raise UserError(f"--out is where --mode=export writes: it can't go with --mode={mode}")
    config = complete(config)
    check(config)
    if is_autoencoder(config) and mode not in OF_AUTOENCODERS:
        raise UserError(
            f"--mode={mode} is for diffusion models, and this config trains an autoencoder: "
            f"expected one of {', '.join(OF_AUTOENCODERS)}; name its workdir in the config of a "
            "diffusion model to sample"
        )
    if mode not in ("plan", "config"):
        use_compilation_cache()
    return command(mode)(Request(config, Path(workdir), profile, out and Path(out)))


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


if __name__ == "__main__":
    sys.exit(main())
