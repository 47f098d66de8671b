"""`python -m diffjax.data NAME` makes a data set ready to train on.

python -m diffjax.data fashion_mnist [--dir=FOLDER]
python -m diffjax.data emoji --out=FOLDER [--styles=twitter,google] [--size=64]
                             [--archives=FOLDER with .tgz files]
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from diffjax import data
from diffjax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Loads a data set, which prepares it if need be, and says what it is.

    Args:
      arguments: the command line; None takes the process's own.

    Returns:
      The exit code: 0, or 2 with one line on standard error when the set cannot be had.
    """
    parser = argparse.ArgumentParser(
        prog="python -m diffjax.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="fashion_mnist, digits, tfds:<name>, folder:<path> or emoji")
    parser.add_argument("--dir", help="where the data lies, as --config.data.dir in training")
    group = parser.add_argument_group("emoji: captioned pictures, made as a folder")
    group.add_argument("--out", help="the folder to make")
    group.add_argument("--styles", help="some of twitter,google,fluent; default twitter,google")
    group.add_argument("--size", type=int, help="side of the images in pixels; default 64")
    group.add_argument("--archives", help="a folder with the packages' .tgz; else npm fetches them")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("diffjax").setLevel(logging.INFO)
    try:
        print(_make_emoji(options) if options.name == "emoji" else _make_ready(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _make_ready(options: argparse.Namespace) -> str:
    for flag in ("out", "styles", "size", "archives"):
        if getattr(options, flag) is not None:
            raise UserError(f"--{flag} has no meaning for {options.name}; it is for emoji")
    source = data.load(options.name, data_dir=options.dir)
    height, width, channels = source.image_shape
    return f"{options.name}: {len(source)} images of {height}x{width}x{channels}, ready"


def _make_emoji(options: argparse.Namespace) -> str:
    from diffjax.data import emoji

    if options.dir is not None:
        raise UserError("--dir has no meaning for emoji; say with --out which folder to make")
    if not options.out:
        raise UserError("emoji is made as a folder; say which with --out=FOLDER")
    if options.archives is not None and not Path(options.archives).expanduser().is_dir():
        raise UserError(
            f"--archives={options.archives} is no folder; expected one with the .tgz files of "
            "npm pack"
        )
    summary = emoji.build(
        Path(options.out),
        styles=("twitter,google" if options.styles is None else options.styles).split(","),
        size=64 if options.size is None else options.size,
        archives=Path(options.archives).expanduser() if options.archives else None,
    )
    folder = Path(options.out).expanduser().resolve()
    return f"emoji: {summary}\ntrain on it with --config.data.name=folder:{folder}"


if __name__ == "__main__":
    sys.exit(main())
