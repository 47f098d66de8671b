"""`--mode=edit`."""

from diffjax.commands import Request
from diffjax.commands.setup import model_of, parameters_of, results_folder
from diffjax.experiment.edit import edit_of


def run(request: Request) -> int:
    """Edits the images of config.edit; loads no data set."""
    model = model_of(request.config, request.workdir, prompt="edit.prompt")
    edit = edit_of(model)  # check the files before parameters are restored
    step, params = parameters_of(model, request.workdir)
    folder = results_folder(request)
    for path in edit.write(params, folder, step=step):
        print(f"wrote {path}")
    return 0
