"""`--mode=edit`."""

from diffjax.commands import Request
from diffjax.commands.setup import model_of, parameters_of
from diffjax.experiment.edit import edit_of


def run(request: Request) -> int:
    """Edits the images of config.edit; loads no data set."""
    model = model_of(request.config, request.workdir)
    edit = edit_of(model)  # check the files before parameters are restored
    step, params = parameters_of(model, request.workdir)
    for path in edit.write(params, request.workdir, step=step):
        print(f"wrote {path}")
    return 0
