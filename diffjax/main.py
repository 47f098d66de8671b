"""The command line: python -m diffjax.main --config=experiments/fashion_mnist.py

--config.key.name=value overrides a value, --workdir is the run directory, --mode the command.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from diffjax import flags
from diffjax.commands import Request, check_kind, check_mode, command
from diffjax.commands.process_setup import (
    check_platforms,
    configure_logging,
    print_error_line,
    quiet_unless_primary,
    use_compilation_cache,
)
from diffjax.commands.streams import check_written, tolerant_streams
from diffjax.commands.welcome import version, welcome
from diffjax.distributed import processes
from diffjax.errors import UserError
from diffjax.files import expanded


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    0: done; 2: bad input, reported in one line, or none; 128 + signal: stopped by one, saved.
    In a multi-process run an error exits immediately, and JAX's runtime ends the other processes.
    """
    with tolerant_streams():
        try:
            code = _main(sys.argv[1:] if arguments is None else arguments)
        except Exception:
            if not processes.is_multiprocess():
                raise
            traceback.print_exc()
            code = 1
    if code in (1, 2, 130) and processes.is_multiprocess():
        # A clean exit would wait for the other processes, which wait for this one in a step.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _main(arguments: Sequence[str]) -> int:
    configure_logging()  # before other packages configure the root logger
    try:
        if not arguments:  # most likely a first look; a script whose flags are lost must fail
            print(welcome(), file=sys.stderr)
            return 2
        if "--version" in arguments:
            print(version())
            return 0
        if (key := flags.help_wanted(arguments)) is not None:
            print(flags.help_text(__doc__ or "") if not key else flags.explain(key))
            return 0
        # Before the config is read: its imports may initialise JAX, after which no process joins.
        processes.initialize(flags.place(arguments))
        config, workdir, mode, profile, out, export_format = flags.parse(arguments)
        check_platforms()
        with quiet_unless_primary():
            code = run(config, workdir, mode, profile, out, export_format)
        if mode != "train":  # a run is saved, whether its lines were read or not
            check_written()
        processes.barrier()  # a process still running at shutdown counts as lost
        return code
    except UserError as error:
        if "--debug" in arguments:
            raise
        print_error_line(f"error: {error}")
        return 2
    except OSError as error:
        if "--debug" in arguments:
            raise
        print_error_line(
            f"error: {error.filename or 'a file'}: {error.strerror or error}: free space or choose "
            "another folder, then run the same command again; earlier checkpoints are kept"
        )
        return 2
    except jax.errors.JaxRuntimeError as error:
        if "--debug" in arguments or not processes.is_multiprocess():
            raise
        print_error_line(
            f"error: {str(error).splitlines()[0][:300]}: most likely another process of this run "
            "is gone: see its output, and restart all processes to resume"
        )
        return 1
    except MemoryError as error:
        if "--debug" in arguments:
            raise
        print_error_line(
            f"error: out of memory{f' ({error})' if str(error) else ''}: use smaller images, a "
            "smaller batch or a smaller model"
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again to resume", file=sys.stderr)
        return 130


def run(
    config: Any,
    workdir: str | Path,
    mode: str = "train",
    profile: bool = False,
    out: str | Path | None = None,
    export_format: str | None = None,
) -> int:
    """Runs a command on a config; raises UserError for bad input.

    Args:
      config: an ml_collections ConfigDict, as experiments/*.py return it.
      workdir: the run directory.
      mode: one of `commands.MODES`.
      profile: whether training writes a trace of a few steps.
      out: the folder that mode "export" writes, or that of the results of "sample", "edit",
        "evaluate" and "report", which are in the workdir otherwise.
      export_format: what mode "export" writes, one of `commands.FORMATS`; None for the first.

    Returns:
      The exit code: 0, or 128 + signal if a signal stopped training; the state is saved then.
    """
    from diffjax.experiment.model_folder import settled
    from diffjax.experiment.paths import located
    from diffjax.experiment.schema import check, complete, kind

    check_mode(mode, profile=profile, out=out, export_format=export_format)
    config = complete(config)
    check(config)
    check_kind(mode, kind(config))
    if mode not in ("report", "plan", "config"):
        use_compilation_cache()
    workdir = expanded(workdir, name="workdir")
    config = located(config, workdir, of_run=False)
    if mode not in ("report", "config"):
        config = settled(config)
    out = expanded(out, name="out") if out else None
    return command(mode)(Request(config, workdir, profile, out, export_format))


if __name__ == "__main__":
    sys.exit(main())
