"""A config with everything in it resolved: data, network, diffusion, sampler."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffjax import data
from diffjax.accelerator import Kernels
from diffjax.errors import UserError
from diffjax.models import UNet
from diffjax.schedules import Array
from diffjax.training import build, build_sampling, choices, workdir
from diffjax.training.checkpoints import Checkpoints, Restored, read_json
from diffjax.training.collector import without_collector
from diffjax.training.config import RULES, flatten
from diffjax.training.sampling import Generator, Weak
from diffjax.training.state import (
    TrainState,
    TrainStep,
    init_state,
    make_train_step,
    state_shapes,
)

# What a model and the weaker one that guides it must have in common.
SHARED_WITH_WEAK = (
    "data.name",
    "data.image_size",
    "data.channels",
    "model.class_conditional",
    "diffusion.schedule",
    "diffusion.zero_terminal_snr",
    "diffusion.log_snr_shift",
)


class Experiment(NamedTuple):
    """What training, sampling and evaluation share."""

    config: Any
    source: data.ImageSource
    kernels: Kernels
    network: UNet
    diffusion: build.Diffusion
    generator: Generator

    def at_guidance_scale(self, scale: float) -> "Experiment":
        """The same with another scale of config.sample.guidance.

        Raises:
          UserError: the guidance has no scale.
        """
        config = self.config.copy_and_resolve_references()
        text = build_sampling.with_scale(config.sample.guidance, scale, key="sample.guidance")
        with config.unlocked():
            config.sample.guidance = text
        generator = Generator(
            config,
            self.network,
            self.diffusion,
            image_shape=self.source.image_shape,
            weak=self.generator.weak,
        )
        return self._replace(config=config, generator=generator)

    @without_collector()
    def init_state(self) -> TrainState:
        """The state of step 0."""
        return init_state(
            self.network,
            build.optimizer(self.config),
            seed=self.config.seed,
            image_shape=self.source.image_shape,
        )

    def state_shapes(self) -> TrainState:
        """The state with jax.ShapeDtypeStruct for arrays; nothing is computed."""
        return state_shapes(
            self.network, build.optimizer(self.config), image_shape=self.source.image_shape
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


@without_collector()
def resolve(config: Any) -> Experiment:
    """Resolves a config, loads its data, and traces it; nothing is computed.

    The network is traced by itself, and a train step and a sampler around a stand-in for it: their
    own arguments are what can still be wrong, and the network is what takes seconds to trace.

    Raises:
      UserError: whatever in the config can't be.
    """
    # The strings first: a misspelt name should not wait for a download.
    diffusion = build.diffusion(config)
    build_sampling.sampling(config, diffusion.schedule)
    build.optimizer(config)
    kernels = build.kernels(config)
    source = load_split(config, "train")
    network = build.model(
        config,
        image_shape=source.image_shape,
        num_classes=len(source.class_names),
        ops=kernels.ops,
    )
    weak = _weak_model(config, source, kernels)
    generator = Generator(config, network, diffusion, image_shape=source.image_shape, weak=weak)
    setup = Experiment(config, source, kernels, network, diffusion, generator)
    blocks = network.attention_blocks(source.image_shape[0])
    _trace(setup._replace(network=_StandIn(network.num_classes, blocks)), weak)
    return setup


class _StandIn(nn.Module):
    """The least network that a step can train and a sampler can call: one weight times x_t."""

    num_classes: int
    blocks: tuple[str, ...]
    perturbed: tuple[str, ...] = ()

    def attention_blocks(self, height: int) -> tuple[str, ...]:
        return self.blocks

    @nn.compact
    def __call__(self, x: Array, t: Array, cond: Any = None, *, train: bool = False) -> Array:
        return self.param("weight", nn.initializers.ones, ()) * x


def _trace(setup: Experiment, weak: Weak | None) -> None:
    """Traces the first state, a train step and a sampler, and tells what can't be as UserError."""
    config, image_shape = setup.config, setup.source.image_shape
    generator = Generator(
        config, setup.network, setup.diffusion, image_shape=image_shape, weak=weak
    )
    batch = {
        "image": jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((1,), jnp.int32),
    }
    try:
        state = setup.state_shapes()
        jax.eval_shape(setup.train_step(axis_name=None), state, batch)
        jax.eval_shape(
            generator.function(), state.ema_params, np.arange(1), generator.labels(0, 1),
            generator.weak_params,
        )  # fmt: skip
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"the config can't be run: {str(error).splitlines()[0]}") from error


def load_split(config: Any, split: str, *, memory_limit_mb: int | None = None) -> data.ImageSource:
    """One split of the config's data set.

    Args:
      config: the config.
      split: "train" or "test".
      memory_limit_mb: config.data.memory_limit_mb by default; less for a reader of few images, who
        should not wait for a large set to be decoded.
    """
    c = config.data
    return data.load(
        c.name,
        split=split,
        data_dir=c.dir or None,
        image_size=c.image_size or None,
        channels=c.channels or None,
        memory_limit_mb=c.memory_limit_mb if memory_limit_mb is None else memory_limit_mb,
    )


def _weak_model(config: Any, source: data.ImageSource, kernels: Kernels) -> Weak | None:
    """The weaker model that autoguidance names by its workdir; None for other guidance.

    Raises:
      UserError: no such run, or one of another schedule, condition or image shape.
    """
    key = "sample.guidance"
    name, arguments = choices.read_choice(config.sample.guidance, key=key)
    if name != "autoguidance":
        return None
    wanted = arguments.get("checkpoint", "latest")
    rule = RULES["sample.checkpoint"]
    if not isinstance(wanted, str) or not rule.holds(wanted):
        raise UserError(f"config.{key}: checkpoint = {wanted!r}: expected {rule.expected}")
    folder = Path(os.path.expanduser(arguments["workdir"]))
    stored = read_json(folder / "config.json")
    if stored is None:
        raise UserError(
            f"config.{key} = {config.sample.guidance!r}: {folder} holds no run: name the workdir "
            "of a training"
        )
    ours, theirs = flatten(config), flatten(stored)
    for part in SHARED_WITH_WEAK:
        if theirs.get(part) != ours[part]:
            raise UserError(
                f"config.{key}: the run in {folder} has config.{part} = {theirs.get(part)!r}, not "
                f"{ours[part]!r}: a weaker model must share its data, condition and noise schedule"
            )
    their_config = ConfigDict(stored)
    network = build.model(
        their_config,
        image_shape=source.image_shape,
        num_classes=len(source.class_names),
        ops=kernels.ops,
    )
    like = state_shapes(network, build.optimizer(their_config), image_shape=source.image_shape)
    found = _restore(folder, like, wanted=wanted)
    if found is None:
        raise UserError(f"config.{key}: {folder} has no checkpoint: train that model first")
    return Weak(network, build.diffusion(their_config), jax.device_put(found.state.ema_params))


def restore_params(setup: Experiment, folder: Path) -> tuple[int, Any]:
    """(step, EMA parameters) of the checkpoint that config.sample.checkpoint names.

    Raises:
      UserError: the workdir belongs to another config or has no such checkpoint.
    """
    found = None
    if workdir.check(folder, setup.config):
        found = _restore(folder, setup.state_shapes(), wanted=setup.config.sample.checkpoint)
    if found is None:
        raise UserError(
            f"--workdir={folder} has no checkpoint: train first, with the same command and "
            "--mode=train"
        )
    return found.step, jax.device_put(found.state.ema_params)


def _restore(folder: Path, like: TrainState, *, wanted: str) -> Restored | None:
    """The checkpoint "latest", "best" or of a step; None where there is none at all."""
    checkpoints = Checkpoints(folder, read_only=True)
    step = {"latest": None, "best": checkpoints.best_step()}.get(wanted)
    if wanted.isdecimal():
        step = int(wanted)
    found = checkpoints.restore(like, step=step)
    checkpoints.close()
    return found
