"""`--mode=config`."""

from diffjax.commands import Request
from diffjax.experiment import explain


def run(request: Request) -> int:
    """Prints the complete config; loads and writes nothing."""
    print(explain.listing(request.config))
    return 0
