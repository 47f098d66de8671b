"""Makes the set of avatars: fetches the style with npm, draws and captions every picture.

python examples/avatars/make.py [--out=data/avatars] [--count=20000] [--size=32] [--seed=0]
                                [--archives=FOLDER with the .tgz file]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # modules that examples share

import avatar_folder
from diffjax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the folder, or finds it made, and says in a line what it holds.

    Args:
      arguments: the command line; None takes the process's own.

    Returns:
      The exit code: 0, or 2 with one line on standard error when the set cannot be had.
    """
    parser = argparse.ArgumentParser(
        prog="python examples/avatars/make.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", default="data/avatars", help="the folder to make")
    parser.add_argument("--count", type=int, default=20_000, help="pictures, a tenth held out")
    parser.add_argument("--size", type=int, default=32, help="side in pixels, a multiple of 16")
    parser.add_argument("--seed", type=int, default=0, help="of attributes and captions")
    parser.add_argument("--archives", help="a folder with the .tgz of npm pack; else npm fetches")
    options = parser.parse_args(arguments)
    try:
        print(f"{options.out}: {_make(options)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _make(options: argparse.Namespace) -> str:
    if not options.out:
        raise UserError("--out= is empty: name a folder, or leave it out for data/avatars")
    archives = None if options.archives is None else Path(options.archives).expanduser()
    if archives is not None and not archives.is_dir():
        raise UserError(
            f"--archives={options.archives} is no folder; expected one with the .tgz file of "
            "npm pack"
        )
    return avatar_folder.build(
        Path(options.out),
        count=options.count,
        size=options.size,
        seed=options.seed,
        archives=archives,
    )


if __name__ == "__main__":
    sys.exit(main())
