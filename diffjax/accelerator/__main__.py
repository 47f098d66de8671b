"""python -m diffjax.accelerator: builds the CPU accelerator for this machine."""

import sys

from diffjax.accelerator.library import build, load
from diffjax.errors import UserError


def main() -> int:
    """Builds and loads the library; returns 0, or 2 after one line with the error."""
    try:
        path = build()
        print(f"{path}: {load()}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
