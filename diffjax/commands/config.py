"""`--mode=config`."""

from diffjax.commands import Request
from diffjax.experiment import explain


def run(request: Request) -> int:
    """Prints the complete config; nothing is loaded or written."""
    print(explain.listing(request.config))
    return 0
