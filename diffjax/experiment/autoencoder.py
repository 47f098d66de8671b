"""A first stage's config with everything in it resolved."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffjax import data, rng
from diffjax.accelerator import Kernels
from diffjax.checkpoints import workdir
from diffjax.distributed.parallel import Strategy
from diffjax.errors import UserError
from diffjax.experiment import autoencoder_objective, optimisation, run, schema
from diffjax.experiment import parallel as strategies
from diffjax.experiment import reconstructions as pictures
from diffjax.experiment.autoencoder_networks import stage as make_stage
from diffjax.experiment.dataset import held_out_batches, load_held_out, load_train
from diffjax.experiment.first_stage import frozen_of
from diffjax.experiment.model import kept
from diffjax.experiment.network import kernels as choose_kernels
from diffjax.images import to_model_range
from diffjax.latent.first_stage import FirstStage, Frozen
from diffjax.training import autoencoder_step as states
from diffjax.training.autoencoder_step import AutoencoderState, Objective
from diffjax.training.collector import without_collector

# Latents that their scaling is measured on; training images, as the second stage sees.
SCALING_IMAGES = 1024
SCALING_BATCH = 32


class Autoencoding(NamedTuple):
    """What training and evaluating a first stage share; see `trainable.Trainable`."""

    config: Any
    source: data.ImageSource
    kernels: Kernels
    stage: FirstStage
    objective: Objective

    @property
    def kept(self) -> dict[str, Any]:
        """What every checkpoint keeps beside the state."""
        return kept(data.describe(self.source), self.identity)

    def parameter_shapes(self) -> Any:
        """The averaged networks in shapes."""
        return self.state_shapes().ema_params

    @property
    def identity(self) -> workdir.Identity:
        """Nothing beside the config and the data."""
        return workdir.Identity()

    def owns(self, folder: Path) -> bool:
        """Whether the workdir holds a run of this config to go on with."""
        return run.owns(self, folder)

    def strategy(self) -> Strategy:
        """What `config.parallel.strategy` names."""
        return strategies.strategy(self.config)

    def learning_rate(self) -> Callable[[Any], Any]:
        """step -> learning rate."""
        return optimisation.learning_rate(self.config)

    def to_compute(self, tree: Any) -> Any:
        """The averaged parameters where samples and evaluations are computed."""
        return strategies.to_compute(tree, self.config)

    @property
    def fields(self) -> tuple[str, ...]:
        """What is kept of a state."""
        return run.STAGE_FIELDS

    def from_fields(self, fields: dict[str, Any], *, what: str) -> Frozen:
        """The averaged networks, the codebook and the scaling."""
        return frozen_of(fields, self.stage, what=what)

    def _initialiser(self) -> Callable[[Any], AutoencoderState]:
        return states.initialiser(
            self.stage, self.objective.discriminator, optimisation.optimizer(self.config)
        )

    @without_collector()
    def init_state(self, *, shardings: Any = None) -> AutoencoderState:
        """The state of step 0, where a tree of shardings says."""
        init = self._initialiser()
        return jax.jit(init, out_shardings=shardings)(rng.stream(self.config.seed, "init"))

    def state_shapes(self) -> AutoencoderState:
        """The state with jax.ShapeDtypeStruct for arrays; nothing is computed."""
        init = self._initialiser()
        return jax.eval_shape(init, rng.stream(0, "init"))

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """A batch of so many examples, in shapes."""
        shape = (batch_size, *self.source.image_shape)
        return {"image": jax.ShapeDtypeStruct(shape, np.uint8)}

    def batches(self) -> data.BatchIterator:
        """Endless training batches."""
        c = self.config
        return data.batches(
            self.source,
            batch_size=c.train.batch_size,
            seed=c.seed,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )

    def load_held_out(self) -> data.ImageSource | None:
        """The images that are not trained on; None where there are none."""
        return load_held_out(self.config, self.source)

    def held_out(self) -> list[dict[str, np.ndarray]]:
        """Batches of test images."""
        source = self.load_held_out()
        return [] if source is None else held_out_batches(source)

    def train_step(self, *, axis_name: str | None) -> Any:
        """See `state.make_train_step`."""
        return states.make_train_step(
            self.stage,
            self.objective,
            optimisation.optimizer(self.config),
            seed=self.config.seed,
            ema_decay=self.config.train.ema_decay,
            flip=self.config.data.flip,
            axis_name=axis_name,
        )

    def eval_loss(self) -> Callable[[Frozen, Any], Any]:
        """See `state.make_eval_loss`."""
        return states.make_eval_loss(self.stage, self.objective)

    def frozen(self, state: AutoencoderState) -> Frozen:
        """The averaged networks, the codebook and the scaling."""
        return states.frozen(state)

    def at_save(self, state: AutoencoderState) -> AutoencoderState:
        """The state with the scaling of its latents, measured."""
        frozen = states.frozen(state)
        drawn = states.drawn_latents(self.stage, seed=self.config.seed)
        z = np.concatenate([
            np.asarray(drawn(frozen, images, start))
            for start, images in self._some_images(self.source)
        ])  # fmt: skip
        return state._replace(scaling=states.measured_scaling(z))

    def averages(self, state: AutoencoderState) -> dict[float, Any]:
        """None: an autoencoder keeps no snapshots."""
        return {}

    def _some_images(self, source: data.ImageSource) -> Iterator[tuple[int, np.ndarray]]:
        """Up to SCALING_IMAGES images, always the same, in batches of one size."""
        size = min(SCALING_BATCH, len(source))
        batches = data.batches(source, batch_size=size, seed=0)
        for start in range(0, min(SCALING_IMAGES, len(source) - len(source) % size), size):
            yield start, next(batches)["image"]

    def codes(self, frozen: Frozen, source: data.ImageSource) -> np.ndarray | None:
        """The codes of up to SCALING_IMAGES images: (N, h, w) int32; None without a codebook."""
        if not jax.tree.leaves(frozen.codebook):
            return None
        encode = jax.jit(lambda frozen, x: self.stage.encode(frozen, to_model_range(x)))
        found = [
            np.asarray(self.stage.regulariser.codes(frozen.codebook, encode(frozen, images)))
            for _, images in self._some_images(source)
        ]
        return np.concatenate(found)

    def draw(self, frozen: Frozen, path: Path) -> np.ndarray:
        """Writes images beside their reconstructions."""
        return pictures.reconstructions(self, frozen, path)

    def finish(self, frozen: Frozen, folder: Path, *, say: Callable[[str], None]) -> None:
        """Writes reconstructions.png and loss.png."""
        pictures.final(self, frozen, folder, say=say)


@without_collector()
def resolve(config: Any) -> Autoencoding:
    """Resolves a config, loads its data, and traces a step; nothing is computed.

    Raises:
      UserError: whatever in the config can't be.
    """
    config = schema.complete(config)
    schema.check(config)
    optimisation.optimizer(config)
    kernels = choose_kernels(
        config.autoencoder.kernels,
        key="autoencoder.kernels",
        sharded=strategies.is_sharded(config),
    )
    source = load_train(config)
    if source.dtype != np.uint8 or len(source.image_shape) != 3:
        raise UserError(
            f"config.data.name = {config.data.name!r} holds {source.dtype} {source.image_shape}: "
            "an autoencoder is trained on uint8 images (H, W, C)"
        )
    height, width, channels = source.image_shape
    shape = (height, width, channels)
    stage = make_stage(config, image_shape=shape, ops=kernels.ops)
    objective = autoencoder_objective.objective(config, image_shape=shape, ops=kernels.ops)
    setup = Autoencoding(config, source, kernels, stage, objective)
    try:
        jax.eval_shape(
            setup.train_step(axis_name=None), setup.state_shapes(), setup.batch_shapes(1)
        )
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"the config can't be run: {str(error).splitlines()[0]}") from error
    return setup
