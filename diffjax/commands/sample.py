"""`--mode=sample`."""

from diffjax.commands import Request
from diffjax.commands.setup import model_of, parameters_of, results_folder
from diffjax.experiment import pictures, sample_files
from diffjax.experiment.model import check_sampling


def run(request: Request) -> int:
    """Writes samples in the formats of config.sample.format; loads no data set."""
    model = model_of(request.config, request.workdir)
    drawing = pictures.of_model(model)
    check_sampling(model, drawing.generator)  # before parameters are restored
    step, params = parameters_of(model, request.workdir)
    folder = results_folder(request)
    sample_files.generated(drawing, params, folder, step=step)
    return 0
