"""`--mode=train`."""

import sys

from diffjax.commands import Request
from diffjax.commands.setup import resolve
from diffjax.errors import UserError
from diffjax.experiment.paths import check_apart
from diffjax.experiment.schema import is_cascade
from diffjax.progress import note_if_long
from diffjax.training import loop


def run(request: Request) -> int:
    """Trains to the end; returns 128 + signal if a signal stopped it, after saving."""
    if is_cascade(request.config):
        from diffjax.experiment.cascade import how_to_train

        raise UserError(how_to_train(request.config))
    check_apart(request.config, request.workdir)
    print(f"workdir: {request.workdir.absolute()}")
    with note_if_long("reading the data set and building the model"):
        task = resolve(request.config)
    try:
        loop.train(task, request.workdir, profile=request.profile)
    except loop.Stopped as stopped:
        print(f"{stopped}: run the same command again to resume", file=sys.stderr)
        return 128 + stopped.signal
    return 0
