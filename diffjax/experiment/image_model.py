"""What a PixelCNN++ and a GAN have in common: images by class, from one network, without times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import optax

from diffjax import data, ema
from diffjax.accelerator import Kernels
from diffjax.checkpoints import parameters, workdir
from diffjax.conditioning.conditions import Conditions
from diffjax.data.info import DataInfo
from diffjax.distributed import processes
from diffjax.errors import UserError
from diffjax.experiment import augmentation, optimisation, pictures, run, schema, strategies
from diffjax.experiment.dataset import load_train
from diffjax.experiment.model import kept
from diffjax.experiment.task import ConfiguredTask
from diffjax.inference.image_generator import Draw, ImageGenerator
from diffjax.inference.sample_conditions import Choice, SampleConditions
from diffjax.latent.space import PixelSpace
from diffjax.training import loss_picture
from diffjax.training.stored_state import StoredDiffusion, restore_diffusion, store_diffusion
from diffjax.training.train_step import StepParts, TrainState
from diffjax.types import Array


class ImageModel(NamedTuple):
    """A model for sampling and evaluation; the attributes are those of `model.Model`.

    Attributes:
      config: complete.
      about: the data description.
      kernels: the kernel backend.
      conditions: the classes, if any.
      network: what draws the images.
      init: key -> the parameters of step 0.
      generator: draws samples.
    """

    config: Any
    about: DataInfo
    kernels: Kernels
    conditions: Conditions
    network: Any
    init: Callable[[Array], Any]
    generator: ImageGenerator

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a stored state that inference needs."""
        return run.FIELDS

    @property
    def identity(self) -> workdir.Identity:
        """Empty: the model depends on its config and data only."""
        return workdir.Identity()

    def parameter_shapes(self) -> Any:
        """The parameters with jax.ShapeDtypeStruct for arrays."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def from_fields(self, fields: dict[str, Any], *, what: str) -> Any:
        """The averaged parameters."""
        return parameters.like(fields["ema_params"], self.parameter_shapes(), what=what)


def shape_and_conditions(config: Any, about: DataInfo) -> tuple[tuple[int, int, int], Conditions]:
    """(H, W, C) of the images, and their classes if the config's model takes them.

    Raises:
      UserError: data that are no images or have no classes, or labels of none.
    """
    kind, section = schema.kind(config), schema.section(config)
    if not about.images or len(about.shape) != 3:
        raise UserError(
            f"config.data.name = {config.data.name!r} holds arrays of {about.shape}: {kind} needs "
            "uint8 images (H, W, C)"
        )
    wanted = config[section].class_conditional
    if wanted and not about.class_names:
        raise UserError(
            f"config.{section}.class_conditional = True, and {config.data.name!r} has no classes: "
            "set it to False"
        )
    labels = tuple(config.sample.labels)
    if -1 in labels:
        raise UserError(
            f"config.sample.labels = {labels}: {kind} is trained with every image's class: "
            "expected no -1"
        )
    height, width, channels = about.shape
    return (height, width, channels), Conditions(len(about.class_names) if wanted else 0)


def generator(
    config: Any, draw: Draw, shape: tuple[int, int, int], conditions: Conditions, *, stream: str
) -> ImageGenerator:
    """Draws the samples of `config.sample`.

    Raises:
      UserError: labels that the data do not have.
    """
    sample = config.sample
    of_samples = SampleConditions(PixelSpace(shape), conditions, Choice(tuple(sample.labels)))
    return ImageGenerator(draw, stream, of_samples, sample.seed, sample.batch_size)


class _Fields(NamedTuple):
    config: Any
    source: data.ImageSource
    model: ImageModel


class ImageModelTask(_Fields, ConfiguredTask):
    """A model with its data and its objective; see `training_task.TrainingTask`."""

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
    def generator(self) -> ImageGenerator:
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
    def objective(self) -> Any:
        """The training objective."""
        raise NotImplementedError

    @property
    def objective_optimizer(self) -> optax.GradientTransformation:
        """Of the objective's own parameters."""
        return optax.identity()

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
            self.objective_optimizer,
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

    @classmethod
    def resolved(cls, config: Any, resolve_model: Callable[[Any, DataInfo], ImageModel]) -> Self:
        """The task of a config, whose data is loaded and whose step is traced, not computed.

        Raises:
          UserError: any invalid or inconsistent value.
        """
        optimisation.optimizer(config)
        strategies.is_sharded(config)
        augmentation.check(config)
        source = load_train(config)
        setup = cls(config, source, resolve_model(config, data.describe(source)))
        try:
            batch = setup.batch_shapes(config.train.accumulate)
            jax.eval_shape(setup.train_step(), setup.state_shapes(), batch)
        except (ValueError, TypeError, ZeroDivisionError) as error:
            raise UserError(f"invalid config: {str(error).splitlines()[0]}") from error
        return setup
