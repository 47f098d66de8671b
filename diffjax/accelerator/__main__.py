"""python -m diffjax.accelerator: builds the CPU accelerator for this machine."""

import logging
import sys

from diffjax.accelerator.library import build, load
from diffjax.errors import UserError
from diffjax.progress import note_if_long


def main() -> int:
    """Builds and loads the library; returns 0, or 2 after one line with the error."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("diffjax").setLevel(logging.INFO)
    try:
        with note_if_long("compiling the accelerator for this machine: this may take a minute"):
            path = build()
        print(f"{path}: {load()}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
