"""`--mode=export`."""

from diffjax.commands import Request
from diffjax.errors import UserError
from diffjax.experiment.export import export
from diffjax.progress import note_if_long


def run(request: Request) -> int:
    """Writes the averaged parameters and the config to --out, or --format; loads no data set."""
    if request.out is None:
        raise UserError("--mode=export needs --out=FOLDER, a new or empty folder")
    form = request.format or "diffjax"
    with note_if_long(f"exporting to {request.out}"):
        written = export(request.config, request.workdir, request.out, form)
    for path in written:
        print(f"wrote {path}")
    return 0
