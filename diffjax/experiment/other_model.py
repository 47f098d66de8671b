"""The model of another run that a config names: autoguidance's weaker one, or a teacher."""

from collections.abc import Callable
from functools import partial
from typing import Any

from diffjax.checkpoints import parameters, workdir
from diffjax.checkpoints.run_config import flatten
from diffjax.denoisers import Denoiser
from diffjax.errors import UserError
from diffjax.experiment import sampling, strategies
from diffjax.experiment.init_from import split
from diffjax.experiment.model import Model, resolve_model
from diffjax.experiment.paths import without_places
from diffjax.experiment.rules import MODEL_CHECKPOINT
from diffjax.experiment.run import read_config, read_model
from diffjax.experiment.spec import parse_spec
from diffjax.inference.sampling import GuidanceModel, OtherModel
from diffjax.models import condition

# Keys that must be equal in the configs of both.
SHARED = (
    "data.name",
    "data.image_size",
    "data.channels",
    "condition.text",
    "condition.map",
    "condition.embedding",
    "data.embedding",
    "embedding.dimensions",
    "model.class_conditional",
    "diffusion.schedule",
    "diffusion.zero_terminal_snr",
    "diffusion.log_snr_shift",
    "diffusion.augment",
)


def with_weak(model: Model) -> Model:
    """The model with the weaker model of autoguidance, if config.sample.guidance has one.

    Raises:
      UserError: no such run, or one of another schedule, condition or image shape.
    """
    key = "sample.guidance"
    text = model.config.sample.guidance
    spec = parse_spec(text, key=key)
    if spec.path != "autoguidance" or not isinstance(spec.arguments.get("workdir"), str):
        return model  # invalid arguments are reported where the guidance is made
    checkpoint = spec.arguments.get("checkpoint", "latest")
    if not isinstance(checkpoint, str) or not MODEL_CHECKPOINT.holds(checkpoint):
        raise UserError(
            f"config.{key}: checkpoint = {checkpoint!r}: expected {MODEL_CHECKPOINT.expected}"
        )
    folder = spec.arguments["workdir"]
    weak = read(model, f"{folder}@{checkpoint}", text=text, key=key, what="a weaker model")
    return model._replace(weak=weak)


def teacher(model: Model) -> OtherModel | None:
    """The model of config.diffusion.teacher; None if it is empty.

    Raises:
      UserError: as `with_weak`.
    """
    text, key = model.config.diffusion.teacher, "diffusion.teacher"
    return read(model, text, text=text, key=key, what="a teacher") if text else None


def teacher_guide(model: Model) -> Callable[[Denoiser], Denoiser] | None:
    """The guidance of config.diffusion.teacher_guidance; None for none.

    It is one of those that compare a prediction with the unconditional one.

    Raises:
      UserError: an unknown name, another guidance, invalid options, or a model without a condition.
    """
    text, key = model.config.diffusion.teacher_guidance, "diffusion.teacher_guidance"
    guide, uses_null = sampling.guide_of(text, key=key)
    if text == "none":
        return None
    if not uses_null:
        raise UserError(
            f"config.{key} = {text!r}: expected guidance by the unconditional prediction, such as "
            "classifier_free(scale=2.0)"
        )
    conditions = model.conditions

    def guided(denoise: Denoiser) -> Denoiser:
        try:
            return guide(GuidanceModel(
                denoise=denoise,
                schedule=model.diffusion.schedule,
                conditional=conditions.any_dropped,
                num_classes=conditions.num_classes,
                null=partial(condition.null, keep_map=conditions.keep_map),
                network=model.network,
                shape=model.space.shape,
                denoiser_of=lambda network: denoise,
                weak=None,
            ))  # fmt: skip
        except (ValueError, TypeError) as error:
            raise UserError(f"config.{key} = {text!r}: {error}") from error

    guided(lambda x_t, t, cond=None: None)  # type: ignore[arg-type]
    return guided


def read(model: Model, named: str, *, text: str, key: str, what: str) -> OtherModel:
    """The model `named` as "<workdir>@<checkpoint>", on the devices that sample and evaluate.

    Args:
      model: the config's own, whose data and conditions it must have.
      named: the run or exported folder.
      text, key: of the config's value that names it, for messages.
      what: what it is to the model, likewise.

    Raises:
      UserError: no such run, or one of another schedule, condition or image shape.
    """
    folder, checkpoint = split(named)
    theirs: Any = read_config(folder)
    if theirs is None:
        raise UserError(
            f"config.{key} = {text!r}: {folder} holds no run: give the workdir of a training run"
        )
    flat, their_flat = flatten(model.config), flatten(theirs)
    ours_placeless, theirs_placeless = without_places(flat), without_places(their_flat)
    for part in SHARED:
        if theirs_placeless.get(part) != ours_placeless[part]:
            raise UserError(
                f"config.{key}: the run in {folder} has config.{part} = "
                f"{their_flat.get(part)!r}, not {flat[part]!r}: {what} must share its data, "
                "condition and noise schedule"
            )
    if workdir.identity_of(folder) != model.identity:
        raise UserError(
            f"config.{key}: {folder} was trained with another first stage, text encoder or image "
            "embedding"
        )
    found = resolve_model(theirs, model.about, space=model.space, conditions=model.conditions)
    stored = read_model(folder, wanted=checkpoint, shapes=found.parameter_shapes)
    if stored is None:
        raise UserError(f"config.{key}: {folder} has no checkpoint: train that model first")
    params = parameters.like(
        stored.fields["ema_params"],
        found.parameter_shapes(),
        what=f"config.{key}: the model in {folder}",
    )
    placed = strategies.to_compute(found.of_stored(params), model.config)
    return OtherModel(found.network, found.diffusion, placed)
