"""What a process sets up before a command runs: log lines, error lines, compiled programs."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from diffjax.distributed import processes
from diffjax.errors import UserError
from diffjax.files import cache_folder

# Characters of an error line. A longer one is cut in the middle: the expected value is at its end.
LONGEST_LINE = 2000


def configure_logging() -> None:
    """Shows diffjax's own log lines and hides the repeated errors of a failed save.

    When a disk is full, orbax logs every array that it could not write, and tensorstore's threads
    report to a closed event loop; the raised error already reports the cause.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("diffjax").setLevel(logging.INFO)
    for noisy in ("absl", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    # Matplotlib warns where it can't keep its list of fonts, of which none is needed.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # Pillow warns about images that diffjax rejects.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    report = sys.unraisablehook

    def without_closed_loops(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = without_closed_loops


def use_compilation_cache() -> None:
    """Stores compiled programs in the user's cache folder, unless JAX has another one configured.

    A program's key covers its code, the compiler's version and flags and the kind of device, and
    XLA compares a CPU program's instruction sets with the machine's when it loads one. Programs
    that can't be stored are compiled every time.
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
    # JAX would warn for each program that it can't store, for example on a full disk.
    warnings.filterwarnings("ignore", message="Error writing persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # A run has dozens of small programs, which take longer to compile than to read.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def check_platforms() -> None:
    """Checks that JAX has the devices that JAX_PLATFORMS asks for.

    Raises:
      UserError: it has none of one of the platforms.
    """
    wanted = jax.config.values["jax_platforms"]
    if not wanted:
        return
    try:
        jax.devices()
        for platform in wanted.split(","):  # JAX passes over a missing one of several
            jax.devices(platform)
    except Exception as error:  # JAX fails by an assertion where a plugin is half installed
        reason = " ".join(str(error).split())[:300] or "it has no such devices"
        raise UserError(
            f"JAX_PLATFORMS={wanted}: this JAX can't use it ({reason}): unset it to run on the "
            "devices that there are, or install JAX for the platform, as with pip install -U "
            f'"jax[{_extra(wanted)}]"'
        ) from error


def _extra(platforms: str) -> str:
    """The extra of JAX's package for the first platform that is not the CPU."""
    others = [name for name in platforms.split(",") if name != "cpu"]
    known = {"cuda": "cuda13", "gpu": "cuda13", "rocm": "rocm", "tpu": "tpu"}
    return known.get(others[0], "cuda13") if others else "cpu"


@contextlib.contextmanager
def quiet_unless_primary() -> Iterator[None]:
    """Process 0 prints everything; the other processes log warnings and errors only."""
    if processes.is_primary():
        yield
        return
    logging.getLogger("diffjax").setLevel(logging.WARNING)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def print_error_line(line: str) -> None:
    """Prints one line to stderr, with unprintable characters escaped as in repr."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    if len(shown) > LONGEST_LINE:
        half = LONGEST_LINE // 2
        shown = f"{shown[:half]} ... {shown[-half:]}"
    print(shown, file=sys.stderr)
