"""A config with everything in it resolved: data, network, diffusion, sampler."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import data
from diffjax.errors import UserError
from diffjax.models import UNet
from diffjax.training import build, workdir
from diffjax.training.checkpoints import Checkpoints
from diffjax.training.sampling import Generator
from diffjax.training.state import TrainState, TrainStep, init_state, make_train_step


class Experiment(NamedTuple):
    """What training, sampling and evaluation share."""

    config: Any
    source: data.ImageSource
    network: UNet
    diffusion: build.Diffusion
    generator: Generator

    def init_state(self) -> TrainState:
        """The state of step 0."""
        return init_state(
            self.network,
            build.optimizer(self.config),
            seed=self.config.seed,
            image_shape=self.source.image_shape,
        )

    def train_step(self, *, axis_name: str | None) -> TrainStep:
        """The config's train step; see `make_train_step`."""
        return make_train_step(
            self.network,
            self.diffusion,
            build.optimizer(self.config),
            seed=self.config.seed,
            ema_decay=self.config.train.ema_decay,
            label_dropout=self.config.diffusion.label_dropout,
            flip=self.config.data.flip,
            axis_name=axis_name,
        )


def resolve(config: Any) -> Experiment:
    """Resolves a config, loads its data, and traces a step and a sample; nothing is computed.

    Raises:
      UserError: whatever in the config can't be.
    """
    # The strings first: a misspelt name should not wait for a download.
    diffusion = build.diffusion(config)
    build.sampling(config, diffusion.schedule)
    build.optimizer(config)
    source = load_split(config, "train")
    network = build.model(
        config, image_shape=source.image_shape, num_classes=len(source.class_names)
    )
    generator = Generator(config, network, diffusion, image_shape=source.image_shape)
    setup = Experiment(config, source, network, diffusion, generator)
    try:
        state = jax.eval_shape(setup.init_state)
        batch = {
            "image": jax.ShapeDtypeStruct((1, *source.image_shape), jnp.uint8),
            "label": jax.ShapeDtypeStruct((1,), jnp.int32),
        }
        jax.eval_shape(setup.train_step(axis_name=None), state, batch)
        jax.eval_shape(generator.function(), state.ema_params, np.arange(1), generator.labels(0, 1))
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"the config can't be run: {str(error).splitlines()[0]}") from error
    return setup


def load_split(config: Any, split: str) -> data.ImageSource:
    """One split of the config's data set."""
    c = config.data
    return data.load(
        c.name,
        split=split,
        data_dir=c.dir or None,
        image_size=c.image_size or None,
        channels=c.channels or None,
        memory_limit_mb=c.memory_limit_mb,
    )


def restore_params(setup: Experiment, folder: Path) -> tuple[int, Any]:
    """(step, EMA parameters) of the checkpoint that config.sample.checkpoint names.

    Raises:
      UserError: the workdir belongs to another config or has no such checkpoint.
    """
    wanted = setup.config.sample.checkpoint
    found = None
    if workdir.check(folder, setup.config):
        checkpoints = Checkpoints(folder, read_only=True)
        step = {"latest": None, "best": checkpoints.best_step()}.get(wanted)
        if wanted.isdecimal():
            step = int(wanted)
        found = checkpoints.restore(jax.eval_shape(setup.init_state), step=step)
        checkpoints.close()
    if found is None:
        raise UserError(
            f"--workdir={folder} has no checkpoint: train first, with the same command and "
            "--mode=train"
        )
    return found.step, jax.device_put(found.state.ema_params)
