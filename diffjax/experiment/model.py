"""A diffusion model without its training: what a config comes to once the data is described.

Nothing here loads a data set or knows of an optimizer: what a model keeps of its data is a
`data.DataInfo`, which every checkpoint holds.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.accelerator import Kernels
from diffjax.checkpoints import parameters, workdir
from diffjax.checkpoints.run_config import flatten
from diffjax.conditioning.conditions import Conditions
from diffjax.data.info import DataInfo
from diffjax.errors import UserError
from diffjax.experiment import first_stage, process, sampling, strategies
from diffjax.experiment import network as networks
from diffjax.experiment.conditioning import conditions as conditions_of
from diffjax.experiment.run import FIELDS, read_config, read_model
from diffjax.experiment.schema import MODEL_CHECKPOINT
from diffjax.experiment.spec import is_path, parse_spec
from diffjax.files import expanded
from diffjax.inference.generator import Examples, Generator
from diffjax.inference.sampling import Weak
from diffjax.latent.space import ArraySpace, DiffusionSpace, LatentSpace, PixelSpace
from diffjax.models.network import Network, Pair
from diffjax.prediction import Prediction
from diffjax.types import Array

# What a model and the weaker one that guides it must have in common.
SHARED_WITH_WEAK = (
    "data.name",
    "data.image_size",
    "data.channels",
    "condition.text",
    "condition.map",
    "model.class_conditional",
    "diffusion.schedule",
    "diffusion.zero_terminal_snr",
    "diffusion.log_snr_shift",
)


class Model(NamedTuple):
    """What sampling, editing and evaluation share.

    Attributes:
      config: complete.
      about: what is known of the data.
      kernels: what computes convolutions.
      space: what x_0 is.
      conditions: what the network is conditioned on.
      network, diffusion: the network and what it predicts.
      weak: the weaker model of autoguidance, or None.
      examples: called where a config leaves prompts or maps open.
    """

    config: Any
    about: DataInfo
    kernels: Kernels
    space: DiffusionSpace
    conditions: Conditions
    network: Network
    diffusion: Prediction
    weak: Weak | None
    examples: Callable[[], Examples] | None

    @property
    def fields(self) -> tuple[str, ...]:
        """What of a stored state the model is."""
        return FIELDS

    @property
    def identity(self) -> workdir.Identity:
        """What the model is trained on beside the config and the data."""
        return identity(self.space, self.conditions)

    def generator(self, config: Any = None) -> Generator:
        """The generator of the config, or of another one with this model's network."""
        return sampling.generator(
            config or self.config,
            self.network,
            self.diffusion,
            space=self.space,
            conditions=self.conditions,
            examples=self.examples,
            weak=self.weak,
        )

    def parameter_shapes(self) -> Any:
        """The parameters in shapes; the network is traced for it."""
        return networks.parameter_shapes(
            self.network,
            diffusion=self.diffusion,
            shape=self.space.shape,
            cond=self.example_condition(),
        )

    def example_condition(self) -> Any:
        """One example's condition, in shapes."""
        channels = self.space.map_channels
        return self.conditions.example((*self.space.shape[:2], channels) if channels else None)


def resolve_model(
    config: Any,
    about: DataInfo,
    *,
    examples: Callable[[], Examples] | None = None,
    space: DiffusionSpace | None = None,
    conditions: Conditions | None = None,
) -> Model:
    """Resolves what a model is; nothing is traced or computed.

    Args:
      config: complete and checked.
      about: the data that it is or was trained on.
      examples: where prompts and maps come from that the config leaves open.
      space, conditions: another model's, in place of the config's.

    Raises:
      UserError: an unknown name, or parts that do not go together.
    """
    diffusion = process.diffusion(config)
    kernels = networks.kernels_of(config)
    wanted = conditions or conditions_of(config, about)
    space = space or _space(config, about, wanted, kernels)
    network = networks.network(
        config,
        diffusion=diffusion,
        shape=space.shape,
        conditions=wanted,
        map_channels=space.map_channels,
        ops=kernels.ops,
    )
    return Model(config, about, kernels, space, wanted, network, diffusion, None, examples)


def identity(space: DiffusionSpace, wanted: Conditions) -> workdir.Identity:
    """What a model is trained on beside the config and the data."""
    texts = wanted.texts
    return workdir.Identity(space.identity, space.description, texts.identity if texts else "")


def kept(about: DataInfo, of: workdir.Identity) -> dict[str, Any]:
    """What a checkpoint or an exported model keeps beside its arrays, as JSON can hold it."""
    return {**about.to_json(), "trained_on": of._asdict()}


def with_scale(config: Any, scale: float) -> Any:
    """The config with another scale of config.sample.guidance.

    Raises:
      UserError: the guidance has no scale.
    """
    text = sampling.with_scale(config.sample.guidance, scale, key="sample.guidance")
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.sample.guidance = text
    return changed


def _space(config: Any, about: DataInfo, wanted: Conditions, kernels: Kernels) -> DiffusionSpace:
    if not config.first_stage.workdir:
        if about.images:
            return PixelSpace(about.shape, wanted.make_map)
        return ArraySpace(about.shape)
    if not about.images:
        raise UserError(
            f"config.first_stage.workdir = {config.first_stage.workdir!r} encodes images, and "
            f"{config.data.name!r} holds arrays of {about.shape}: leave it empty"
        )
    if config.data.flip:
        raise UserError(
            "config.data.flip = True: latents of mirrored images are not kept: set it to False"
        )
    stage, params, description = first_stage.read(config, image_shape=about.shape, kernels=kernels)
    return LatentSpace(
        stage, params, wanted.make_map, map_name=config.condition.map, description=description
    )


def with_weak(model: Model) -> Model:
    """The model with the weaker one that autoguidance names by its workdir, where it does.

    Raises:
      UserError: no such run, or one of another schedule, condition or image shape.
    """
    config = model.config
    key = "sample.guidance"
    spec = parse_spec(config.sample.guidance, key=key)
    if spec.path != "autoguidance" or not isinstance(spec.arguments.get("workdir"), str):
        return model  # what is wrong with its arguments is said where guidance is made
    checkpoint = spec.arguments.get("checkpoint", "latest")
    if not isinstance(checkpoint, str) or not MODEL_CHECKPOINT.holds(checkpoint):
        raise UserError(
            f"config.{key}: checkpoint = {checkpoint!r}: expected {MODEL_CHECKPOINT.expected}"
        )
    folder = expanded(spec.arguments["workdir"])
    theirs = read_config(folder)
    if theirs is None:
        raise UserError(
            f"config.{key} = {config.sample.guidance!r}: {folder} holds no run: name the workdir "
            "of a training"
        )
    flat, their_flat = flatten(config), flatten(theirs)
    for part in SHARED_WITH_WEAK:
        if their_flat.get(part) != flat[part]:
            raise UserError(
                f"config.{key}: the run in {folder} has config.{part} = "
                f"{their_flat.get(part)!r}, not {flat[part]!r}: a weaker model must share its "
                "data, condition and noise schedule"
            )
    if workdir.identity_of(folder) != model.identity:
        raise UserError(
            f"config.{key}: {folder} was trained on another first stage's latents, or other texts"
        )
    weak = resolve_model(theirs, model.about, space=model.space, conditions=model.conditions)
    found = read_model(folder, wanted=checkpoint, shapes=weak.parameter_shapes)
    if found is None:
        raise UserError(f"config.{key}: {folder} has no checkpoint: train that model first")
    params = parameters.like(
        found.fields["ema_params"],
        weak.parameter_shapes(),
        what=f"config.{key}: the model in {folder}",
    )
    placed = strategies.to_compute(params, config)
    return model._replace(weak=Weak(weak.network, weak.diffusion, placed))


def captioned(config: Any, source: Any) -> Any:
    """The source, if it has captions or none are needed.

    Raises:
      UserError: a model of texts, and a source without.
    """
    if config.condition.text != "none" and not source.captions:
        raise UserError(
            f"config.condition.text = {config.condition.text!r} but the test images of "
            f"{config.data.name!r} have no captions: add their metadata.jsonl"
        )
    return source


def held_out_examples(config: Any, source: Any) -> Examples:
    """What is drawn where a config names no prompt and no map: held-out images' own.

    As many as are sampled or evaluated, in an order that is always the same.

    Raises:
      UserError: as `captioned`.
    """
    source = captioned(config, source)
    count = max(config.sample.count, config.evaluate.num_samples)
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(source))
    found = [source[int(row)] for row in order[:count]]
    captions = source.captions and tuple(source.captions[e["caption"]] for e in found)
    return Examples(
        captions,
        np.stack([e["image"] for e in found]),
        np.array([e["label"] for e in found], np.int32),
    )


def stand_in(network: Network, prediction: Prediction, channels: int) -> Network:
    """The least network that a step can train and a sampler can call: one weight times x_t.

    It has the abilities of the network that it stands for.
    """

    def init(key: Array, x: Array, t: Array, cond: Any) -> Any:
        return {"weight": jnp.ones(())}

    def apply(
        params: Any, x: Array, t: Array, cond: Any, *, train: bool = False, key: Any = None
    ) -> Array:
        return params["weight"] * jnp.tile(x[..., :channels], prediction.outputs)

    made = Pair(init, apply)
    real: Any = network
    if not (hasattr(real, "attention_blocks") and hasattr(real, "perturbed")):
        return made

    class Attending(Pair):
        def attention_blocks(self, shape: tuple[int, ...]) -> tuple[str, ...]:
            return real.attention_blocks(shape)

        def perturbed(self, blocks: tuple[str, ...]) -> Network:
            return self

    return Attending(*made)


def check_sampling(model: Any, generator: Generator) -> None:
    """Traces a sampler around a stand-in for the network, which is what takes seconds to trace.

    Args:
      model: a `Model`, or what has its attributes.
      generator: what samples.

    Raises:
      UserError: what is wrong with the sampler's, guidance's or threshold's arguments.
    """
    found = stand_in(model.network, model.diffusion, model.space.shape[-1])
    params = {"weight": jax.ShapeDtypeStruct((), jnp.float32)}
    cond = model.example_condition()
    if cond is not None:
        cond = cond._replace(label=generator.labels(0, 1))
        cond = None if cond == (None, None, None) else cond
    own = is_path(model.config.sample.sampler)
    function = generator.around(found).function(keep_trajectory=own)
    with as_user_error(model.config):
        jax.eval_shape(function, params, np.arange(1), cond, generator.weak_params)


@contextlib.contextmanager
def as_user_error(config: Any) -> Iterator[None]:
    """Around a trace: what is wrong with a config's functions as one line.

    Raises:
      UserError: a function was called with what it does not take, or one of the user's own failed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        if isinstance(error, ValueError | TypeError | ArithmeticError):
            raise UserError(f"the config can't be run: {lines[0]}") from error
        if not any(is_path(value) for value in flatten(config).values() if isinstance(value, str)):
            raise
        raise UserError(
            f"the config can't be run: {type(error).__name__}: {lines[0]} (--debug shows where)"
        ) from error
