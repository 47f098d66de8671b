"""A first stage's config with everything in it resolved."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffjax import data, rng
from diffjax.accelerator import Kernels
from diffjax.errors import UserError
from diffjax.training import build as shared
from diffjax.training import strategies, workdir
from diffjax.training.collector import without_collector
from diffjax.training.first_stage import build, pictures
from diffjax.training.first_stage import state as states
from diffjax.training.first_stage.stage import FirstStage, Frozen
from diffjax.training.first_stage.state import AutoencoderState, Objective
from diffjax.training.splits import held_out_batches, load_held_out, load_split
from diffjax.training.state import to_model_range

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
    def identity(self) -> workdir.Identity:
        """Nothing beside the config and the data."""
        return workdir.Identity()

    def _initialiser(self) -> Callable[[Any], AutoencoderState]:
        return states.initialiser(
            self.stage, self.objective.discriminator, shared.optimizer(self.config)
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

    def held_out(self) -> list[dict[str, np.ndarray]]:
        """Batches of test images."""
        source = load_held_out(self.config)
        return [] if source is None else held_out_batches(source)

    def train_step(self, *, axis_name: str | None) -> Any:
        """See `state.make_train_step`."""
        return states.make_train_step(
            self.stage,
            self.objective,
            shared.optimizer(self.config),
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
    shared.optimizer(config)
    kernels = shared.kernels(
        config.autoencoder.kernels,
        key="autoencoder.kernels",
        sharded=strategies.is_sharded(config),
    )
    source = load_split(config, "train")
    stage = build.stage(config, image_shape=source.image_shape, ops=kernels.ops)
    objective = build.objective(config, image_shape=source.image_shape, ops=kernels.ops)
    setup = Autoencoding(config, source, kernels, stage, objective)
    try:
        jax.eval_shape(
            setup.train_step(axis_name=None), setup.state_shapes(), setup.batch_shapes(1)
        )
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"the config can't be run: {str(error).splitlines()[0]}") from error
    return setup
