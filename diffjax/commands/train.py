"""`--mode=train`."""

import sys

from diffjax.commands import Request
from diffjax.commands.setup import resolve
from diffjax.training import loop


def run(request: Request) -> int:
    """Trains to the end; 128 + signal when a signal stopped it, saved."""
    try:
        loop.train(resolve(request.config), request.workdir, profile=request.profile)
    except loop.Stopped as stopped:
        print(f"{stopped}: run the same command again to go on", file=sys.stderr)
        return 128 + stopped.signal
    return 0
