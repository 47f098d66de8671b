"""`--mode=edit`."""

from diffjax.commands import Request
from diffjax.commands.setup import model_of, parameters_of, results_folder
from diffjax.experiment.edit import edit_of
from diffjax.progress import note_if_long


def run(request: Request) -> int:
    """Edits the images of config.edit; loads no data set."""
    with note_if_long("building the model"):
        model = model_of(request.config, request.workdir, prompt="edit.prompt")
    edit = edit_of(model)  # check the files before parameters are restored
    step, params = parameters_of(model, request.workdir)
    folder = results_folder(request)
    with note_if_long("editing; the sampler is compiled first"):
        written = edit.write(params, folder, step=step)
    for path in written:
        print(f"wrote {path}")
    return 0
