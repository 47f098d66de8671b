"""`--mode=export`."""

from diffjax.commands import Request
from diffjax.errors import UserError
from diffjax.experiment.export import export


def run(request: Request) -> int:
    """Writes the averaged parameters and the config to --out, or --format; loads no data set."""
    if request.out is None:
        raise UserError("--mode=export needs --out=FOLDER, a new or empty folder")
    for path in export(request.config, request.workdir, request.out, request.format or "diffjax"):
        print(f"wrote {path}")
    return 0
