"""Makes the emoji set: fetches its archives with npm, draws and captions every picture.

python examples/emoji/fetch.py [--out=data/emoji] [--styles=twitter,google] [--size=64]
                               [--archives=FOLDER with .tgz files]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # modules that examples share

import emoji_folder
from diffjax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the folder, or finds it made, and says in a line what it holds.

    Args:
      arguments: the command line; None takes the process's own.

    Returns:
      The exit code: 0, or 2 with one line on standard error when the set cannot be had.
    """
    parser = argparse.ArgumentParser(
        prog="python examples/emoji/fetch.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", default="data/emoji", help="the folder to make")
    parser.add_argument(
        "--styles", default="twitter,google", help="some of twitter, google and fluent"
    )
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels")
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
        raise UserError("--out= is empty: name a folder, or leave it out for data/emoji")
    archives = None if options.archives is None else Path(options.archives).expanduser()
    if archives is not None and not archives.is_dir():
        raise UserError(
            f"--archives={options.archives} is no folder; expected one with the .tgz files of "
            "npm pack"
        )
    return emoji_folder.build(
        Path(options.out),
        styles=options.styles.split(","),
        size=options.size,
        archives=archives,
    )


if __name__ == "__main__":
    sys.exit(main())
