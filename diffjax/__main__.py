"""The command line as `python -m diffjax`, and as the console command `diffjax`."""

import os
import sys

from diffjax.experiment.spec import add_to_path
from diffjax.main import main


def console() -> int:
    """Runs the command line; modules of the working folder can be imported, as by python -m."""
    add_to_path(os.getcwd())
    return main()


if __name__ == "__main__":
    sys.exit(main())
