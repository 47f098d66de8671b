"""python -m diffjax.playground --workdir=runs/digits: a page to look at trained models with."""

import argparse
import contextlib
import os
import sys
import threading
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from diffjax.commands.process_setup import (
    check_platforms,
    configure_logging,
    print_error_line,
    use_compilation_cache,
)
from diffjax.errors import UserError

if TYPE_CHECKING:
    from diffjax.playground.runs import Runs

PORT = 8710


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves the page until Ctrl-C, or writes one view's picture; returns the exit code.

    0: written; 2: bad input, reported in one line; 130: ended by Ctrl-C.
    """
    configure_logging()
    try:
        return _main(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print_error_line(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def _main(arguments: Sequence[str]) -> int:
    parser = _Parser(prog="python -m diffjax.playground", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--workdir", action="append", default=[], metavar="FOLDER",
        help="a run's folder, an exported model or Stable Diffusion; may be given several times",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=PORT, help="0 for any that is free")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    parser.add_argument(
        "--view", default="", metavar="VIEW",
        help="where the page opens, what follows # in its address: 'draw?label=3&seed=1'",
    )  # fmt: skip
    parser.add_argument(
        "--save", default="", metavar="FILE", help="write the picture of --view, and serve no page"
    )
    options = parser.parse_args(list(arguments))
    # After --help, which needs no JAX.
    from diffjax.playground.runs import Runs

    check_platforms()
    use_compilation_cache()
    runs = Runs(options.workdir)
    if options.save:
        from diffjax.playground.save import save

        save(options.view, runs, options.save)
        print(options.save)
        return 0
    return serve(runs, options.port, view=options.view, browser=not options.no_browser)


def serve(runs: "Runs", port: int, *, view: str = "", browser: bool = False) -> int:
    """Serves the page until KeyboardInterrupt; returns 130."""
    from diffjax.playground.server import Server

    server = Server(runs, port)
    address = server.address + (f"#{view}" if view else "")
    print(f"playground at {address}\nCtrl-C ends it", flush=True)
    if browser:
        threading.Thread(target=_open, args=(address,), daemon=True).start()
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    print("\nstopped", file=sys.stderr, flush=True)
    if server.worker.is_busy:
        # The worker's thread may be in the middle of a program of XLA's, which nothing ends.
        sys.stdout.flush()
        os._exit(130)
    return 130


def _open(address: str) -> None:
    with contextlib.suppress(webbrowser.Error, OSError):
        webbrowser.open(address)


if __name__ == "__main__":
    sys.exit(main())
