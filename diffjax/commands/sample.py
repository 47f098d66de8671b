"""`--mode=sample`."""

from diffjax.commands import Request
from diffjax.commands.setup import image_model_of, model_of, parameters_of, results_folder
from diffjax.experiment import pictures, sample_files
from diffjax.experiment.model import check_sampling
from diffjax.experiment.restore import restore_params
from diffjax.experiment.schema import is_cascade, is_diffusion
from diffjax.progress import note_if_long


def run(request: Request) -> int:
    """Writes samples in the formats of config.sample.format; loads no data set."""
    if is_cascade(request.config):
        from diffjax.experiment import cascade

        stages = cascade.resolve(request.config)
        sample_files.generated(stages, stages.params, results_folder(request), step=stages.step)
        return 0
    if not is_diffusion(request.config):
        drawn = image_model_of(request.config, request.workdir)
        step, params = restore_params(drawn, request.workdir)
        sample_files.generated(drawn, params, results_folder(request), step=step)
        return 0
    with note_if_long("building the model"):
        model = model_of(request.config, request.workdir, prompt="sample.prompt")
    drawing = pictures.of_model(model)
    check_sampling(model, drawing.generator)  # before parameters are restored
    step, params = parameters_of(model, request.workdir)
    folder = results_folder(request)
    sample_files.generated(drawing, params, folder, step=step)
    return 0
