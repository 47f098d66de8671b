"""`config.pixelcnn`: PixelCNN++ with its data and training, and its exact likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffjax import data, ema, rng
from diffjax.accelerator import Kernels
from diffjax.checkpoints import parameters, workdir
from diffjax.conditioning.conditions import Conditions
from diffjax.data.info import DataInfo
from diffjax.distributed import processes
from diffjax.errors import UserError
from diffjax.experiment import augmentation, optimisation, pictures, run, schema, strategies
from diffjax.experiment.dataset import held_out_batches, load_train
from diffjax.experiment.likelihood import Likelihood, Numbers, on_all_devices
from diffjax.experiment.model import kept
from diffjax.experiment.network import DTYPES
from diffjax.experiment.network import kernels as choose_kernels
from diffjax.experiment.spec import from_table
from diffjax.experiment.task import ConfiguredTask
from diffjax.inference.pixelcnn import PixelGenerator
from diffjax.inference.sample_conditions import Choice, SampleConditions
from diffjax.latent.space import PixelSpace
from diffjax.likelihood.logistic_mixture import number_of_outputs
from diffjax.models.pixelcnn import PixelCNN
from diffjax.training import loss_picture
from diffjax.training.gc_pause import gc_disabled
from diffjax.training.likelihood_objective import LikelihoodObjective
from diffjax.training.objective import LossInputs
from diffjax.training.stored_state import StoredDiffusion, restore_diffusion, store_diffusion
from diffjax.training.train_step import StepParts, TrainState, make_eval_loss
from diffjax.types import Array

# config.evaluate.likelihood: whether --mode=evaluate computes bits/dim, or distances of samples.
LIKELIHOODS: Mapping[str, Callable[[], bool]] = {"exact": lambda: True, "none": lambda: False}


class Model(NamedTuple):
    """A PixelCNN++ for sampling and evaluation; the attributes are those of `model.Model`."""

    config: Any
    about: DataInfo
    kernels: Kernels
    conditions: Conditions
    network: PixelCNN
    generator: PixelGenerator

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a stored state that inference needs."""
        return run.FIELDS

    @property
    def identity(self) -> workdir.Identity:
        """Empty: the model depends on its config and data only."""
        return workdir.Identity()

    def init(self, key: Array) -> Any:
        """The parameters of step 0."""
        label = jnp.zeros(1, jnp.int32) if self.conditions.num_classes else None
        return self.network.init(key, jnp.zeros((1, *self.about.shape)), label)["params"]

    def parameter_shapes(self) -> Any:
        """The parameters with jax.ShapeDtypeStruct for arrays."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def from_fields(self, fields: dict[str, Any], *, what: str) -> Any:
        """The averaged parameters."""
        return parameters.like(fields["ema_params"], self.parameter_shapes(), what=what)


def resolve_model(config: Any, about: DataInfo) -> Model:
    """Resolves a model from its config and the data that it is or was trained on.

    Raises:
      UserError: data that are no images or have no classes, or invalid values.
    """
    c, sample = config.pixelcnn, config.sample
    if not about.images or len(about.shape) != 3:
        raise UserError(
            f"config.data.name = {config.data.name!r} holds arrays of {about.shape}: a PixelCNN "
            "needs uint8 images (H, W, C)"
        )
    num_classes = len(about.class_names) if c.class_conditional else 0
    if c.class_conditional and not num_classes:
        raise UserError(
            f"config.pixelcnn.class_conditional = True, and {config.data.name!r} has no classes: "
            "set it to False"
        )
    if -1 in tuple(sample.labels):
        raise UserError(
            f"config.sample.labels = {tuple(sample.labels)}: a PixelCNN is trained with every "
            "image's class: expected no -1"
        )
    height, width, channels = about.shape
    shape = (height, width, channels)
    kernels = choose_kernels(c.kernels, key="pixelcnn.kernels")
    network = PixelCNN(
        outputs=number_of_outputs(channels=channels, components=c.components),
        num_classes=num_classes,
        channels=c.channels,
        blocks=c.blocks,
        levels=c.levels,
        dropout=c.dropout,
        dtype=from_table(c.dtype, DTYPES, key="pixelcnn.dtype"),
        ops=kernels.ops,
    )
    conditions = Conditions(num_classes=num_classes)
    of_samples = SampleConditions(PixelSpace(shape), conditions, Choice(tuple(sample.labels)))
    generator = PixelGenerator(network, shape, of_samples, sample.seed, sample.batch_size)
    return Model(config, about, kernels, conditions, network, generator)


class _Fields(NamedTuple):
    config: Any
    source: data.ImageSource
    model: Model


class Autoregression(_Fields, ConfiguredTask):
    """A PixelCNN++ with its data and its objective; see `training_task.TrainingTask`."""

    @property
    def about(self) -> DataInfo:
        """The data description."""
        return self.model.about

    @property
    def about_data(self) -> dict[str, Any]:
        """The data description that checkpoints store."""
        return kept(self.about, self.identity)

    @property
    def kernels(self) -> Kernels:
        """The kernel backend."""
        return self.model.kernels

    @property
    def conditions(self) -> Conditions:
        """The classes, if any."""
        return self.model.conditions

    @property
    def generator(self) -> PixelGenerator:
        """Draws samples."""
        return self.model.generator

    @property
    def identity(self) -> workdir.Identity:
        """Empty: the model depends on its config and data only."""
        return self.model.identity

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a state that inference needs."""
        return self.model.fields

    def from_fields(self, fields: dict[str, Any], *, what: str) -> Any:
        """The averaged parameters."""
        return self.model.from_fields(fields, what=what)

    @property
    def objective(self) -> LikelihoodObjective:
        """Bits per dimension."""
        return LikelihoodObjective(self.model.network)

    @property
    def parts(self) -> StepParts:
        """The components of the train step."""
        c = self.config
        return StepParts(
            self.model.init,
            PixelSpace(self.about.shape),
            self.conditions,
            self.objective,
            optimisation.optimizer(c),
            optax.identity(),
            lambda step: ema.warmed_up_decay(step, decay=c.train.ema_decay),
            c.seed,
            augmentations=augmentation.augmentations(c),
            accumulate=c.train.accumulate,
        )

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """A batch with jax.ShapeDtypeStruct for arrays."""
        return {
            "image": jax.ShapeDtypeStruct((batch_size, *self.about.shape), np.uint8),
            "label": jax.ShapeDtypeStruct((batch_size,), np.int32),
        }

    def batches(self) -> data.BatchIterator:
        """Endless training batches."""
        return self.own_rows(self.source)

    def held_out(self) -> list[dict[str, np.ndarray]]:
        """Batches of test images."""
        source = self.load_held_out()
        return [] if source is None else held_out_batches(source)

    def eval_loss(self) -> Callable[[Any, Any], Any]:
        """See `train_step.make_eval_loss`."""
        space = PixelSpace(self.about.shape)
        return make_eval_loss(space, self.conditions, self.objective, seed=self.config.seed)

    def averaged(self, state: TrainState) -> Any:
        """The averaged parameters."""
        return state.ema_params

    def before_save(self, state: TrainState) -> TrainState:
        """The unchanged state."""
        return state

    def to_stored(self, state: TrainState) -> StoredDiffusion:
        """A state as checkpoints store it, which is as for diffusion models."""
        return store_diffusion(state)

    def from_stored(self, stored: StoredDiffusion) -> TrainState:
        """The inverse of `to_stored`."""
        return restore_diffusion(stored)

    def power_emas(self, stored: StoredDiffusion) -> dict[float, Any]:
        """Empty: no snapshots are kept."""
        return {}

    def write_samples(self, params: Any, path: Path) -> np.ndarray:
        """Writes a grid of samples."""
        return pictures.samples(self, params, path)

    def write_final_pictures(
        self, params: Any, folder: Path, *, log: Callable[[str], None]
    ) -> None:
        """Writes samples.png and loss.png."""
        log("drawing samples")
        pictures.samples(self, params, folder / "samples.png")
        if processes.is_primary():
            loss_picture.write(folder)
        log(f"wrote {folder / 'samples.png'}, {folder / 'loss.png'}")


@gc_disabled()
def resolve(config: Any) -> Autoregression:
    """Resolves a config, loads its data, and traces a step; nothing is computed.

    Raises:
      UserError: any invalid or inconsistent value.
    """
    config = schema.complete(config)
    schema.check(config)
    wants_likelihood(config)
    optimisation.optimizer(config)
    strategies.is_sharded(config)
    augmentation.check(config)
    source = load_train(config)
    setup = Autoregression(config, source, resolve_model(config, data.describe(source)))
    try:
        batch = setup.batch_shapes(config.train.accumulate)
        jax.eval_shape(setup.train_step(), setup.state_shapes(), batch)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"invalid config: {str(error).splitlines()[0]}") from error
    return setup


def wants_likelihood(config: Any) -> bool:
    """Whether `config.evaluate.likelihood` asks for bits/dim.

    Raises:
      UserError: another kind, such as a bound of diffusion models.
    """
    found: bool = from_table(config.evaluate.likelihood, LIKELIHOODS, key="evaluate.likelihood")
    return found


def likelihood(setup: Autoregression) -> Likelihood:
    """The exact likelihood, computed on all devices."""

    def numbers_of(params: Any, batch: Mapping[str, Array], numbers: Array) -> Numbers:
        key = partial(rng.stream, setup.config.seed)
        x, _ = PixelSpace(setup.about.shape).read(batch, key=key, indices=numbers)
        cond = setup.conditions.of_batch(batch, None)
        inputs = LossInputs(x, cond, key, numbers, len(x), jnp.int32(0))
        return {"total": setup.objective.held_out(params, inputs)}

    what = "exact: the product of each pixel's probability given the pixels before it"
    return Likelihood("exact", what, on_all_devices(numbers_of))
