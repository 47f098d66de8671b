"""`--mode=edit`."""

from diffjax.commands import Request
from diffjax.commands.setup import model_of, parameters_of
from diffjax.experiment.edit import Edit


def run(request: Request) -> int:
    """Edits the images that config.edit names; no data set is loaded."""
    model = model_of(request.config, request.workdir)
    edit = Edit(model)  # first the files: what is wrong with them needs no parameters
    step, params = parameters_of(model, request.workdir)
    for path in edit.write(params, request.workdir, step=step):
        print(f"wrote {path}")
    return 0
