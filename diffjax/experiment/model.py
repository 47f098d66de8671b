"""A diffusion model without its training, resolved from a config and a data description.

Nothing here loads a data set or builds an optimizer: the description is a `data.DataInfo`, which
every checkpoint stores.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.accelerator import Kernels
from diffjax.checkpoints import workdir
from diffjax.checkpoints.run_config import flatten
from diffjax.conditioning.conditions import Conditions
from diffjax.data.info import DataInfo
from diffjax.errors import UserError
from diffjax.experiment import (
    first_stage,
    folder_sampling,
    image_embedding,
    inversion,
    model_folder,
    process,
    sampling,
)
from diffjax.experiment import lora as adapters
from diffjax.experiment import network as networks
from diffjax.experiment.conditioning import conditions as conditions_of
from diffjax.experiment.inversion import Inverted
from diffjax.experiment.lora import Adapted
from diffjax.experiment.run import FIELDS
from diffjax.experiment.spec import is_path
from diffjax.experiment.unclip import embed_of
from diffjax.inference.generator import Generator
from diffjax.inference.sample_conditions import Examples
from diffjax.inference.sampling import OtherModel
from diffjax.latent.space import ArraySpace, DiffusionSpace, LatentSpace, PixelSpace
from diffjax.models.network import Network, Pair
from diffjax.prediction import Prediction
from diffjax.stable_diffusion.folder import Folder
from diffjax.types import Array


class Model(NamedTuple):
    """A model for sampling, editing and evaluation.

    Attributes:
      config: complete.
      about: the data description.
      kernels: the kernel backend.
      space: the space of x_0: pixels, arrays or latents.
      conditions: the network's conditions.
      network, diffusion: the network and what it predicts.
      weak: the weaker model of autoguidance, or None.
      examples: called if a config leaves prompts or maps open.
      folder: of Stable Diffusion, whose network it is; None for other models.
      adapted: the adapters, or the token, that are stored in the place of its parameters; None for
        none.
    """

    config: Any
    about: DataInfo
    kernels: Kernels
    space: DiffusionSpace
    conditions: Conditions
    network: Network
    diffusion: Prediction
    weak: OtherModel | None
    examples: Callable[[], Examples] | None
    folder: Folder | None = None
    adapted: Adapted | Inverted | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a stored state that inference needs."""
        return FIELDS

    @property
    def identity(self) -> workdir.Identity:
        """What the model depends on besides its config and data."""
        return identity(self.space, self.conditions, self.about, self.adapted)

    def generator(self, config: Any = None) -> Generator:
        """The generator of the model's config, or of another config for the same network."""
        config = config or self.config
        return sampling.generator(
            config,
            self.network,
            self.diffusion,
            space=self.space,
            conditions=self.conditions,
            examples=self.examples,
            weak=self.weak,
            embed=embed_of(config, self.conditions),
        )

    def parameter_shapes(self) -> Any:
        """The stored parameters with jax.ShapeDtypeStruct for arrays, by tracing the network."""
        if self.adapted is not None:
            return jax.eval_shape(self.adapted.init, jax.random.key(0))
        if self.folder is not None and self.folder.is_extended:
            return self.folder.unet.shapes()
        return networks.parameter_shapes(
            self.network,
            diffusion=self.diffusion,
            shape=self.space.shape,
            cond=self.example_condition(),
        )

    @property
    def is_inverted(self) -> bool:
        """Whether a token is trained; see `inversion`."""
        return isinstance(self.adapted, Inverted)

    def of_stored(self, params: Any) -> Any:
        """The network's parameters from stored ones, with which adapters are merged."""
        if self.adapted is None:
            return params
        return self.adapted.merged(self.adapted.base(), params)

    def for_sampling(self, params: Any) -> Any:
        """The parameters that sampling takes from the network's: see `folder_sampling`."""
        if self.folder is None or self.is_inverted:
            return params
        return folder_sampling.with_weights(self.config, self.folder, params)

    def example_condition(self, shape: tuple[int, ...] | None = None) -> Any:
        """One example's condition with jax.ShapeDtypeStruct for arrays; its shape is the space's,
        or that of the windows it is trained on."""
        channels, sides = self.space.map_channels, (shape or self.space.shape)[:2]
        return self.conditions.example((*sides, channels) if channels else None)


def resolve_model(
    config: Any,
    about: DataInfo,
    *,
    examples: Callable[[], Examples] | None = None,
    space: DiffusionSpace | None = None,
    conditions: Conditions | None = None,
    texts: Callable[[], Sequence[str]] | None = None,
) -> Model:
    """Resolves a model from its config; nothing is traced or computed.

    Args:
      config: complete and checked.
      about: the data that it is or was trained on.
      examples: the source of prompts and maps that the config leaves open.
      space, conditions: another model's, instead of the config's.
      texts: () -> all texts that it is given where it is sampled, for what is added to a folder
        for that; None for nothing. See `folder_sampling`.

    Raises:
      UserError: an unknown name, or incompatible values.
    """
    if model_folder.is_named(config):
        folder = model_folder.read(config)
        if texts is not None:
            folder = folder_sampling.extended(config, folder, texts)
        return of_folder(config, about, folder, examples=examples)
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


def of_folder(
    config: Any,
    about: DataInfo,
    folder: Folder,
    *,
    examples: Callable[[], Examples] | None = None,
) -> Model:
    """The model of Stable Diffusion's folder for images of a size.

    Args:
      config: settled, see `model_folder`.
      about: the description of the images.
      folder: of the config.
      examples: the source of prompts that the config leaves open.

    Raises:
      UserError: sides that are no multiples of the first stage's factor, other data than images
        with captions, or a prediction that is not the network's.
    """
    channels = folder.stage.image_shape[-1]
    if not about.images or len(about.shape) != 3 or about.shape[-1] != channels:
        raise UserError(
            f"config.data.name = {config.data.name!r} holds arrays of {about.shape}: "
            f"config.model.folder needs images (H, W, {channels})"
        )
    if not about.has_captions:
        raise UserError(
            f"config.data.name = {config.data.name!r} has no captions: config.model.folder needs "
            "them: use a folder with a metadata.jsonl"
        )
    _refuse_flip(config)
    height, width, _ = about.shape
    has_half = folder.unet.module.dtype == jnp.float16  # which the accelerator does not compute in
    name = "xla" if has_half else config.model.get("kernels", "auto")
    kernels = networks.kernels(name, key="model.kernels")
    folder = folder.with_ops(kernels.ops)
    space = folder.space((height, width))
    diffusion = process.diffusion(config)
    if diffusion.outputs != 1 or diffusion.parametrisation.spans:
        raise UserError(
            f"config.diffusion.parametrisation = {config.diffusion.parametrisation!r}: "
            "config.model.folder has a network with one output for each channel: use eps, v or x0"
        )
    conditions, network = folder.conditions((height, width)), folder.network
    adapted: Adapted | Inverted | None = None
    if model_folder.is_named(config):
        adapted = inversion.of_folder(config, folder) or _adapted(config, folder)
    if isinstance(adapted, Inverted):
        conditions, network = conditions._replace(texts=adapted.texts), adapted.network
    return Model(
        config, about, kernels, space, conditions, network, diffusion, None,
        examples or partial(_no_prompts, space), folder, adapted,
    )  # fmt: skip


def _adapted(config: Any, folder: Folder) -> Adapted | None:
    kind = folder.unet.module.dtype
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, kind), folder.unet.shapes())
    digest = (lambda: folder.unet_digest) if folder.params is None else (lambda: "")
    return adapters.of_config(config, shapes=shapes, base=folder.unet_params, digest=digest)


def _no_prompts(space: LatentSpace) -> Examples:
    """For inpainting networks, images of which nothing is known."""
    if not space.inpaints:
        raise UserError("nothing to condition on: give prompts, as by config.sample.prompt")
    blank = np.zeros((1, *space.image_shape), np.uint8)
    return Examples((), blank, np.array([-1], np.int32))


def identity(
    space: DiffusionSpace,
    wanted: Conditions,
    about: DataInfo,
    adapted: Adapted | Inverted | None = None,
) -> workdir.Identity:
    """What a model depends on besides its config and data: first stage, text encoder, embedding,
    and the parameters that adapters are of."""
    texts = wanted.texts
    return workdir.Identity(
        space.identity, space.description, texts.identity if texts else "",
        image_embedding.identity(about), adapted.digest if adapted else "",
    )  # fmt: skip


def kept(about: DataInfo, of: workdir.Identity) -> dict[str, Any]:
    """The JSON that a checkpoint or an exported model stores with its arrays."""
    return {**about.to_json(), "trained_on": of._asdict()}


def with_scale(config: Any, scale: float) -> Any:
    """A copy of the config with another scale of config.sample.guidance.

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
    if getattr(wanted.make_map, "is_augmented", False):
        raise UserError(
            f"config.condition.map = {config.condition.map!r}: maps of cached latents are "
            "without augmentation: set noise=False and blur=0.0, or train on pixels"
        )
    _refuse_flip(config)
    stage, params, description = first_stage.read(config, image_shape=about.shape, kernels=kernels)
    return LatentSpace(
        stage, params, wanted.make_map, map_name=config.condition.map, description=description
    )


def _refuse_flip(config: Any) -> None:
    if config.data.flip:
        raise UserError(
            "config.data.flip = True: latents of mirrored images are not stored: set it to False"
        )


def captioned(config: Any, source: Any) -> Any:
    """Returns the source.

    Raises:
      UserError: the model needs captions and the source has none.
    """
    if config.condition.text != "none" and not source.captions:
        raise UserError(
            f"config.condition.text = {config.condition.text!r} but the test images of "
            f"{config.data.name!r} have no captions: add their metadata.jsonl"
        )
    return source


def held_out_examples(config: Any, source: Any) -> Examples:
    """The captions, images and labels that condition samples by default, from held-out data.

    As many as are sampled or evaluated, in a fixed order.

    Raises:
      UserError: as `captioned`.
    """
    source = captioned(config, source)
    count = max(config.sample.count, config.evaluate.num_samples)
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(source))
    examples = [source[int(row)] for row in order[:count]]
    captions = source.captions and tuple(source.captions[e["caption"]] for e in examples)
    return Examples(
        captions,
        np.stack([e["image"] for e in examples]),
        np.array([e["label"] for e in examples], np.int32),
    )


def stand_in(network: Network, prediction: Prediction, channels: int) -> Network:
    """A minimal network for fast tracing: one weight times x_t.

    It has the optional methods of the network that it replaces.
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
    """Traces a sampler around a stand-in for the network, which would take seconds to trace.

    Args:
      model: a `Model`, or an object with its attributes.
      generator: the generator to check.

    Raises:
      UserError: invalid arguments of the sampler, guidance or threshold.
    """
    network = stand_in(model.network, model.diffusion, model.space.shape[-1])
    params = {"weight": jax.ShapeDtypeStruct((), jnp.float32)}
    cond = model.example_condition()
    if cond is not None:
        cond = cond._replace(label=cond.label if generator.conditions.has_labels else None)
        cond = None if all(part is None for part in cond) else cond
    own = is_path(model.config.sample.sampler)
    function = generator.around(network).function(keep_trajectory=own)
    with as_user_error(model.config):
        jax.eval_shape(function, params, np.arange(1), cond, generator.weak_params)


@contextlib.contextmanager
def as_user_error(config: Any) -> Iterator[None]:
    """Turns an error while tracing a config's functions into one line.

    Raises:
      UserError: a function got invalid arguments, or a user-defined one failed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        if isinstance(error, ValueError | TypeError | ArithmeticError):
            raise UserError(f"invalid config: {lines[0]}") from error
        if not any(is_path(value) for value in flatten(config).values() if isinstance(value, str)):
            raise
        raise UserError(
            f"invalid config: {type(error).__name__}: {lines[0]} (--debug shows where)"
        ) from error
