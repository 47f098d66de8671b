"""`python -m diffjax.data NAME` prepares a data set for training.

python -m diffjax.data fashion_mnist [--dir=FOLDER]
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from diffjax import data
from diffjax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Loads a data set, preparing it if necessary, and prints its size and image shape.

    Args:
      arguments: the command line; None takes sys.argv's.

    Returns:
      The exit code: 0, 2 with one line on standard error if the set cannot be loaded, 130 if it was
      interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="python -m diffjax.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="fashion_mnist, digits, tfds:<name> or folder:<path>")
    parser.add_argument("--dir", help="the data's directory, as --config.data.dir in training")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("diffjax").setLevel(logging.INFO)
    try:
        source = data.load(options.name, data_dir=options.dir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again", file=sys.stderr)
        return 130
    height, width, channels = source.image_shape
    print(f"{options.name}: {len(source)} images of {height}x{width}x{channels}, ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
