"""`--mode=sample`."""

from diffjax.commands import Request
from diffjax.commands.setup import model_of, parameters_of, pixelcnn_of, results_folder
from diffjax.experiment import pictures, sample_files
from diffjax.experiment.model import check_sampling
from diffjax.experiment.restore import restore_params
from diffjax.experiment.schema import is_cascade, is_pixelcnn


def run(request: Request) -> int:
    """Writes samples in the formats of config.sample.format; loads no data set."""
    if is_pixelcnn(request.config):
        pixelcnn = pixelcnn_of(request.config, request.workdir)
        step, params = restore_params(pixelcnn, request.workdir)
        sample_files.generated(pixelcnn, params, results_folder(request), step=step)
        return 0
    if is_cascade(request.config):
        from diffjax.experiment import cascade

        stages = cascade.resolve(request.config)
        sample_files.generated(stages, stages.params, results_folder(request), step=stages.step)
        return 0
    model = model_of(request.config, request.workdir)
    drawing = pictures.of_model(model)
    check_sampling(model, drawing.generator)  # before parameters are restored
    step, params = parameters_of(model, request.workdir)
    folder = results_folder(request)
    sample_files.generated(drawing, params, folder, step=step)
    return 0
