"""`diffjax.load`: a `Pipeline` from a stored run; `diffjax.cascade`: a `Cascade` of several."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffjax import arguments
from diffjax.checkpoints import exported, parameters, workdir
from diffjax.checkpoints.parameters import Parameters
from diffjax.data.info import DataInfo
from diffjax.errors import UserError
from diffjax.experiment import augmentation, keys, rules, schema, strategies
from diffjax.experiment.inversion import Inverted
from diffjax.experiment.model import Model, check_sampling, of_folder, resolve_model
from diffjax.experiment.other_model import with_weak
from diffjax.experiment.run import read_about, read_config, read_model
from diffjax.experiment.spec import from_table, is_path, parse_spec
from diffjax.files import expanded
from diffjax.inference.cascade import Cascade
from diffjax.inference.edit_tasks import Task
from diffjax.inference.generator import Generator
from diffjax.inference.pipeline import Pipeline
from diffjax.inference.sample_conditions import Examples
from diffjax.stable_diffusion.folder import is_folder
from diffjax.stable_diffusion.sources import is_file

# Settings of config.sample that a call may change.
SETTINGS = (
    "sampler", "grid", "steps", "guidance", "threshold", "negative_prompt", "batch_size",
    "augmentation_level", "prior", "candidates",
)  # fmt: skip


def load(
    path: str | Path,
    *,
    checkpoint: str | int = "latest",
    first_stage: str | Path | None = None,
    dtype: str | None = None,
    **how: Any,
) -> Pipeline:
    """Reads a diffusion model's averaged parameters, and its first stage if it has one.

    Reads no data set, optimizer or training state. User-defined networks, losses and samplers are
    imported from sys.path.

    Args:
      path: a workdir, a folder written by `--mode=export`, or Stable Diffusion in a folder as
        diffusers writes it or in one file of the original layout.
      checkpoint: "latest", "best", "ema" (the average rebuilt by --mode=ema) or a step.
      first_stage: the first stage's workdir, if it was moved.
      dtype: of Stable Diffusion's weights and computation, "float32" by default.
      **how: other settings of Stable Diffusion, see `experiment.stable_diffusion.load`.

    Raises:
      UserError: no such run, or one that can't be read.
    """
    folder = expanded(arguments.path("workdir", path))
    if is_folder(folder) or is_file(folder):
        from diffjax.experiment import stable_diffusion

        if checkpoint != "latest" or first_stage is not None:
            raise UserError(
                f"{folder} is Stable Diffusion, which has no checkpoints and its own first stage: "
                "leave out checkpoint and first_stage"
            )
        if unknown := sorted(set(how) - set(stable_diffusion.SETTINGS)):
            raise UserError(
                f"{unknown[0]} is not a setting of Stable Diffusion: expected dtype, "
                f"{', '.join(stable_diffusion.SETTINGS)}"
            )
        return stable_diffusion.load(folder, dtype=dtype or "float32", **how)
    if dtype is not None:
        raise UserError(
            f"dtype is {dtype!r}: it is of Stable Diffusion's folders; a run has that of its config"
        )
    if how:
        raise UserError(
            f"{min(how)} is a setting of Stable Diffusion, and {folder} is none: leave it out"
        )
    if first_stage is not None:
        first_stage = arguments.path("first_stage", first_stage)
    if not isinstance(checkpoint, str) and not arguments.is_whole(checkpoint):
        raise UserError(
            f"checkpoint is {arguments.shown(checkpoint)}: expected "
            f"{keys.MODEL_CHECKPOINT.expected}"
        )
    config = read_config(folder)
    if config is None:
        raise UserError(f"{folder} holds no run: give the workdir of a training run")
    if not schema.is_diffusion(config):
        raise UserError(
            f"{folder} is a run of {schema.kind(config)}: give a diffusion model's workdir"
        )
    checkpoint = str(checkpoint)
    if not rules.MODEL_CHECKPOINT.holds(checkpoint):
        raise UserError(f"checkpoint is {checkpoint!r}: expected {rules.MODEL_CHECKPOINT.expected}")
    config.sample.checkpoint = checkpoint
    if first_stage is not None:
        config.first_stage.workdir = str(first_stage)
    elif exported.is_exported(folder / exported.FIRST_STAGE):
        config.first_stage.workdir = str(folder / exported.FIRST_STAGE)
    model = resolve_model(config, about_of(folder, config))
    stored = read_model(folder, wanted=checkpoint, shapes=model.parameter_shapes)
    if stored is None:
        raise UserError(f"{folder} has no checkpoint: train that model first")
    workdir.check_identity(_trained_on(folder, stored), model.identity, what=str(folder))
    if (of := model.folder) is not None and isinstance(model.adapted, Inverted):
        # From here on a token as any other.
        of = model.adapted.extended(of, stored.fields["ema_params"])
        params = strategies.to_compute(of.unet_params(), config)
        config.model.inversion = "none"
    else:
        params = strategies.to_compute(fitted(model, stored), config)
    if of is not None:
        from diffjax.experiment import stable_diffusion

        height, width, channels = model.about.shape
        return stable_diffusion.pipeline(
            lambda of, size: of_folder(config, model.about._replace(shape=(*size, channels)), of),
            of._replace(params=params), step=stored.step, size=(height, width),
        )  # fmt: skip
    return Pipeline(
        params=params,
        step=stored.step,
        about=model.about,
        space=model.space,
        diffusion=model.diffusion,
        make_generator=lambda how: generator_of(model, how),
        make_task=task_of,
        has_fixed_ends=not _learns_ends(config),
        trained_shape=augmentation.trained_shape(config, model.space.shape),
    )


def load_cascade(
    stages: Sequence[str | Path | Pipeline],
    *,
    settings: Sequence[Mapping[str, Any]] = (),
    negative_prompt: str = "",
) -> Cascade:
    """A cascade of trained models; see `inference.cascade.Cascade`.

    Args:
      stages: of the base model, then of each upsampler: a workdir, a folder written by
        `--mode=export`, or what `load` returned.
      settings: of each stage, which override its run's (see `Pipeline.sample`), and for a folder
        its "checkpoint"; () for none.
      negative_prompt: for the stages that take a text and whose guidance uses it.

    Raises:
      UserError: a folder without a run, or stages that do not fit.
    """
    if isinstance(stages, str | Path) or not isinstance(stages, Sequence):
        raise UserError(
            f"stages is {arguments.shown(stages)}: expected workdirs in a list, the base model's "
            "first"
        )
    if len(settings) not in (0, len(stages)):
        raise UserError(f"{len(settings)} settings for {len(stages)} stages: expected as many")
    pipelines, names, others = [], [], []
    for number, stage in enumerate(stages, start=1):
        how = dict(settings[number - 1]) if settings else {}
        checkpoint = how.pop("checkpoint", "latest")
        name = f"stage {number}"
        if not isinstance(stage, Pipeline):
            name = f"stage {number} ({stage})"
            try:
                stage = load(stage, checkpoint=checkpoint)
            except UserError as error:
                raise UserError(f"stage {number}: {error}") from error
        pipelines.append(stage)
        names.append(name)
        others.append(how)
    return Cascade(pipelines, settings=others, names=names, negative_prompt=negative_prompt)


def _trained_on(folder: Path, found: Parameters) -> workdir.Identity:
    """The identity stored in a run's checkpoint, or in a file by older versions."""
    if found.about is not None and "trained_on" in found.about:
        return workdir.identity_from(found.about["trained_on"])
    return workdir.identity_of(folder)


def _learns_ends(config: Any) -> bool:
    """Whether training changed the ends of the config's schedule."""
    spec = parse_spec(config.diffusion.objective, key="diffusion.objective")
    return spec.path == "vdm" and bool(spec.arguments.get("learn_ends", False))


def about_of(folder: Path, config: Any, stored: dict[str, Any] | None = None) -> DataInfo:
    """The description of a run's data from its checkpoints, or else from the data itself.

    Raises:
      UserError: a run of an older version, which has no description, and its data can't be loaded.
    """
    stored = stored or read_about(folder)
    if stored is not None:
        return DataInfo.from_json(stored)
    from diffjax import data
    from diffjax.experiment.dataset import load_train

    try:
        return data.describe(load_train(config))
    except UserError as error:
        raise UserError(
            f"{folder} is a run of an older version, which stored no description of its data, and "
            f"the data can't be loaded ({error}): resume the run for one step where the data is, "
            "then load it"
        ) from error


def fitted(model: Model, found: Parameters) -> Any:
    """The stored parameters in the structure that the network takes, adapters merged.

    The U-Net's are nested dictionaries already. A user-defined network, whose code may have
    changed, is traced and its parameters are compared.

    Raises:
      UserError: they belong to another network.
    """
    stored = found.fields["ema_params"]
    if not is_path(model.config.model.name):
        return model.of_stored(stored)
    what = f"the checkpoint of step {found.step}"
    return parameters.like(stored, model.parameter_shapes(), what=what)


def generator_of(
    model: Model, how: dict[str, Any], examples: Callable[[], Examples] | None = None
) -> Generator:
    """The generator of a model, with settings that override its config's `sample` section.

    Args:
      model: the model.
      how: see `SETTINGS`.
      examples: called where prompts or maps are left open.

    Raises:
      UserError: an unknown setting, or an invalid one.
    """
    config = model.config.copy_and_resolve_references()
    for name, value in how.items():
        if name not in SETTINGS:
            raise UserError(f"{name} is not a setting of sampling: expected {', '.join(SETTINGS)}")
        with config.ignore_type():
            config.sample[name] = value
    # The config's prompts, maps and labels are for the command line; a call passes its own.
    for name in ("prompt", "maps"):
        config.sample[name] = ""
    config.sample.labels = ()
    schema.check(config)
    model = with_weak(model._replace(config=config, examples=examples or _no_examples))
    generator = model.generator()
    check_sampling(model, generator)
    return generator


def _no_examples() -> Examples:
    raise UserError(
        "nothing to condition on: give prompts for a model of texts, map_images for one of maps, "
        "embeddings for one of image embeddings"
    )


def task_of(text: str) -> Task:
    """The editing task of a config string.

    Raises:
      UserError: an unknown name, or invalid options.
    """
    from diffjax.experiment.sampling import EDITS

    return from_table(text, EDITS, key="edit.task")
