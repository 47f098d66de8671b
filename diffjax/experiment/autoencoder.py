"""A resolved autoencoder config: data, networks, objective, optimizer, step."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from diffjax import data, ema
from diffjax.accelerator import Kernels
from diffjax.checkpoints import workdir
from diffjax.conditioning.conditions import UNCONDITIONAL
from diffjax.errors import UserError
from diffjax.experiment import (
    augmentation,
    autoencoder_objective,
    optimisation,
    run,
    schema,
    strategies,
)
from diffjax.experiment import reconstructions as pictures
from diffjax.experiment.autoencoder_networks import stage as make_stage
from diffjax.experiment.dataset import held_out_batches, load_train
from diffjax.experiment.first_stage import params_from_fields
from diffjax.experiment.model import kept
from diffjax.experiment.network import kernels as choose_kernels
from diffjax.experiment.task import ConfiguredTask
from diffjax.images import to_model_range
from diffjax.latent.first_stage import FirstStage, StageParams
from diffjax.latent.space import PixelSpace
from diffjax.training import autoencoder_objective as first_stages
from diffjax.training.autoencoder_objective import AutoencoderObjective
from diffjax.training.gc_pause import gc_disabled
from diffjax.training.stored_state import (
    StoredAutoencoder,
    restore_autoencoder,
    store_autoencoder,
)
from diffjax.training.train_step import (
    StepParts,
    TrainState,
)

# Training images whose latents the scaling is measured on.
SCALING_IMAGES = 1024
SCALING_BATCH = 32


class _Fields(NamedTuple):
    config: Any
    source: data.ImageSource
    kernels: Kernels
    stage: FirstStage
    objective: AutoencoderObjective


class Autoencoding(_Fields, ConfiguredTask):
    """An autoencoder with its data and its objective; see `training_task.TrainingTask`."""

    @property
    def about_data(self) -> dict[str, Any]:
        """The data description that checkpoints store."""
        return kept(data.describe(self.source), self.identity)

    @property
    def identity(self) -> workdir.Identity:
        """Empty: an autoencoder depends on its config and data only."""
        return workdir.Identity()

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a state that inference needs."""
        return run.STAGE_FIELDS

    def from_fields(self, fields: dict[str, Any], *, what: str) -> StageParams:
        """The averaged networks, the codebook and the scaling."""
        return params_from_fields(fields, self.stage, what=what)

    @property
    def parts(self) -> StepParts:
        """The components of the train step."""
        c, optimizer = self.config, optimisation.optimizer(self.config)
        adversarial = self.objective.discriminator is not None
        return StepParts(
            self.objective.init_params,
            PixelSpace(self.stage.image_shape),
            UNCONDITIONAL,
            self.objective,
            optimizer,
            optimizer if adversarial else optax.identity(),
            lambda step: ema.warmed_up_decay(step, decay=c.train.ema_decay),
            c.seed,
            augmentations=augmentation.augmentations(c),
        )

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """A batch with jax.ShapeDtypeStruct for arrays."""
        shape = (batch_size, *self.source.image_shape)
        return {"image": jax.ShapeDtypeStruct(shape, np.uint8)}

    def batches(self) -> data.BatchIterator:
        """Endless training batches."""
        return self.own_rows(self.source)

    def held_out(self) -> list[dict[str, np.ndarray]]:
        """Batches of test images."""
        source = self.load_held_out()
        return [] if source is None else held_out_batches(source)

    def eval_loss(self) -> Callable[[StageParams, Any], Any]:
        """See `autoencoder_objective.make_eval_loss`."""
        return first_stages.make_eval_loss(self.stage, self.objective.reconstruction_loss)

    def averaged(self, state: TrainState) -> StageParams:
        """The averaged networks, the codebook and the scaling."""
        return first_stages.stage_params(state)

    def before_save(self, state: TrainState) -> TrainState:
        """The state with the measured scaling of its latents."""
        params = self.averaged(state)
        sampled = first_stages.sampled_latents(self.stage, seed=self.config.seed)
        z = np.concatenate([
            np.asarray(sampled(params, images, start))
            for start, images in self._some_images(self.source)
        ])  # fmt: skip
        return first_stages.with_scaling(state, first_stages.measured_scaling(z))

    def to_stored(self, state: TrainState) -> StoredAutoencoder:
        """A state as checkpoints store it."""
        return store_autoencoder(state)

    def from_stored(self, stored: StoredAutoencoder) -> TrainState:
        """The inverse of `to_stored`."""
        return restore_autoencoder(stored)

    def power_emas(self, stored: StoredAutoencoder) -> dict[float, Any]:
        """Empty: an autoencoder keeps no snapshots."""
        return {}

    def _some_images(self, source: data.ImageSource) -> Iterator[tuple[int, np.ndarray]]:
        """Up to SCALING_IMAGES images in a fixed order, in batches of one size."""
        size = min(SCALING_BATCH, len(source))
        batches = data.batches(source, batch_size=size, seed=0)
        for start in range(0, min(SCALING_IMAGES, len(source) - len(source) % size), size):
            yield start, next(batches)["image"]

    def codes(self, params: StageParams, source: data.ImageSource) -> np.ndarray | None:
        """The codes of up to SCALING_IMAGES images: (N, h, w) int32; None without a codebook."""
        if not jax.tree.leaves(params.codebook):
            return None
        encode = jax.jit(lambda params, x: self.stage.encode(params, to_model_range(x)))
        found = [
            np.asarray(self.stage.regulariser.codes(params.codebook, encode(params, images)))
            for _, images in self._some_images(source)
        ]
        return np.concatenate(found)

    def write_samples(self, params: StageParams, path: Path) -> np.ndarray:
        """Writes images next to their reconstructions."""
        return pictures.reconstructions(self, params, path)

    def write_final_pictures(
        self, params: StageParams, folder: Path, *, log: Callable[[str], None]
    ) -> None:
        """Writes reconstructions.png and loss.png."""
        pictures.final(self, params, folder, log=log)


@gc_disabled()
def resolve(config: Any) -> Autoencoding:
    """Resolves a config, loads its data, and traces a step; nothing is computed.

    Raises:
      UserError: any invalid or inconsistent value.
    """
    config = schema.complete(config)
    schema.check(config)
    optimisation.optimizer(config)
    strategies.is_sharded(config)
    augmentation.check(config)
    kernels = choose_kernels(
        config.autoencoder.kernels,
        key="autoencoder.kernels",
    )
    source = load_train(config)
    if source.dtype != np.uint8 or len(source.image_shape) != 3:
        raise UserError(
            f"config.data.name = {config.data.name!r} holds {source.dtype} {source.image_shape}: "
            "an autoencoder needs uint8 images (H, W, C)"
        )
    height, width, channels = source.image_shape
    shape = (height, width, channels)
    stage = make_stage(config, image_shape=shape, ops=kernels.ops)
    objective = autoencoder_objective.objective(config, stage=stage, ops=kernels.ops)
    setup = Autoencoding(config, source, kernels, stage, objective)
    try:
        jax.eval_shape(setup.train_step(), setup.state_shapes(), setup.batch_shapes(1))
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"invalid config: {str(error).splitlines()[0]}") from error
    return setup
