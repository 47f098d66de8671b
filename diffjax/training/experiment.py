"""A config with everything in it resolved: data, network, diffusion, sampler."""

import os
from collections.abc import Callable
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
from diffjax.models.condition import Condition, SpatialMap
from diffjax.schedules import Array
from diffjax.training import build, build_sampling, choices, pictures, strategies, workdir
from diffjax.training.checkpoints import read_json
from diffjax.training.collector import without_collector
from diffjax.training.conditions import Conditions, add_text, conditions
from diffjax.training.config import MODEL_CHECKPOINT, flatten
from diffjax.training.first_stage import trained
from diffjax.training.restoring import restore
from diffjax.training.sampling import Examples, Generator, Weak
from diffjax.training.space import Latents, Pixels, Space
from diffjax.training.splits import held_out_batches, load_held_out, load_split
from diffjax.training.state import (
    Batch,
    Read,
    TrainState,
    TrainStep,
    init_state,
    make_eval_loss,
    make_train_step,
    state_shapes,
)

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


class Experiment(NamedTuple):
    """What training, sampling and evaluation share; see `trainable.Trainable`."""

    config: Any
    source: data.ImageSource
    kernels: Kernels
    space: Space
    conditions: Conditions
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
        setup = self._replace(config=config)
        return setup._replace(generator=setup.make_generator(weak=self.generator.weak))

    def make_generator(self, *, weak: Weak | None = None) -> Generator:
        """The config's generator."""
        return Generator(
            self.config,
            self.network,
            self.diffusion,
            space=self.space,
            conditions=self.conditions,
            examples=self.examples,
            weak=weak,
        )

    def examples(self) -> Examples:
        """What is drawn where the config names no prompt and no map: held-out images' own.

        As many as are sampled or evaluated, in an order that is always the same.
        """
        held_out = self._captioned(load_held_out(self.config) or self.source)
        order = np.random.Generator(np.random.Philox(key=0)).permutation(len(held_out))
        most = max(self.config.sample.count, self.config.evaluate.num_samples)
        found = [held_out[int(row)] for row in order[:most]]
        captions = held_out.captions and tuple(held_out.captions[e["caption"]] for e in found)
        return Examples(
            captions,
            np.stack([e["image"] for e in found]),
            np.array([e["label"] for e in found], np.int32),
        )

    def _captioned(self, source: data.ImageSource) -> data.ImageSource:
        """The source, if it has captions or none are needed."""
        if self.conditions.texts is not None and not source.captions:
            raise UserError(
                f"config.condition.text = {self.config.condition.text!r} but the test images of "
                f"{self.config.data.name!r} have no captions: add their metadata.jsonl"
            )
        return source

    @property
    def identity(self) -> workdir.Identity:
        """What the model is trained on beside the config and the data."""
        return _identity(self.space, self.conditions)

    @without_collector()
    def init_state(self, *, shardings: Any = None) -> TrainState:
        """The state of step 0, where a tree of shardings says."""
        return init_state(
            self.network,
            build.optimizer(self.config),
            seed=self.config.seed,
            shardings=shardings,
            **_state_parts(self.config, self.diffusion, self.space),
        )

    def state_shapes(self) -> TrainState:
        """The state with jax.ShapeDtypeStruct for arrays; nothing is computed."""
        return state_shapes(
            self.network,
            build.optimizer(self.config),
            **_state_parts(self.config, self.diffusion, self.space),
        )

    def train_step(self, *, axis_name: str | None) -> TrainStep:
        """The config's train step; see `make_train_step`."""
        return make_train_step(
            self.network,
            self.diffusion,
            build.optimizer(self.config),
            seed=self.config.seed,
            decay=build.average_decay(self.config),
            read=self.reader(flip=self.config.data.flip),
            condition_dropout=self.config.diffusion.condition_dropout,
            offset=self.config.diffusion.offset_noise,
            learned_optimizer=build.learned_optimizer(self.config),
            widths=tuple(self.config.train.ema_snapshots),
            accumulate=self.config.train.accumulate,
            axis_name=axis_name,
        )

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """A batch of so many examples, in shapes."""
        one = _one_example(self)
        return {
            k: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype) for k, x in one.items()
        }

    def reader(self, *, flip: bool) -> Read:
        def read(
            batch: Batch, key: Callable[[str], Array], indices: Array
        ) -> tuple[Array, Condition | None]:
            x_0, map_values = self.space.read(batch, key=key, indices=indices, flip=flip)
            return x_0, self.conditions.of_batch(batch, map_values)

        return read

    def batches(self) -> data.BatchIterator:
        """Endless training batches."""
        c = self.config
        source = self.space.source(self.source)
        drawn = data.batches(
            source,
            batch_size=c.train.batch_size,
            seed=c.seed,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )
        return self.conditions.with_text(drawn, source.captions)

    def held_out(self) -> list[dict[str, np.ndarray]]:
        """Batches of test images."""
        source = load_held_out(self.config)
        if source is None:
            return []
        source = self.space.source(self._captioned(source))
        batches = held_out_batches(source)
        texts = self.conditions.texts
        if texts is None:
            return batches
        table = texts.encode(source.captions)
        return [add_text(batch, table) for batch in batches]

    def eval_loss(self) -> Callable[[Any, Any], Any]:
        """See `state.make_eval_loss`."""
        return make_eval_loss(
            self.network,
            self.diffusion,
            seed=self.config.seed,
            read=self.reader(flip=False),
        )

    def frozen(self, state: TrainState) -> Any:
        """The averaged parameters."""
        return state.ema_params

    def at_save(self, state: TrainState) -> TrainState:
        """The state as it is."""
        return state

    def averages(self, state: TrainState) -> dict[float, Any]:
        """Those of config.train.ema_snapshots."""
        return dict(zip(self.config.train.ema_snapshots, state.profiles, strict=True))

    def draw(self, params: Any, path: Path) -> np.ndarray:
        """Writes a grid of samples."""
        return pictures.samples(self, params, path)

    def finish(self, params: Any, folder: Path, *, say: Callable[[str], None]) -> None:
        """Writes the final pictures."""
        pictures.final(self, params, folder, say=say)


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
    build.average_decay(config)
    kernels = build.kernels(
        config.model.kernels, key="model.kernels", sharded=strategies.is_sharded(config)
    )
    source = load_split(config, "train")
    wanted = conditions(config, source)
    space = _space(config, source, wanted, kernels)
    network = build.model(
        config,
        diffusion=diffusion,
        shape=space.shape,
        conditions=wanted,
        map_channels=space.map_channels,
        ops=kernels.ops,
    )
    weak = _weak_model(config, space, wanted, kernels)
    # Its generator asks for examples, which are the experiment's to give.
    setup = Experiment(config, source, kernels, space, wanted, network, diffusion, None)  # type: ignore[arg-type]
    setup = setup._replace(generator=setup.make_generator(weak=weak))
    outputs = diffusion.parametrisation.outputs * (2 if diffusion.objective.learned_variance else 1)
    stand_in = _StandIn(
        network.attention_blocks(space.shape[0]), channels=space.shape[-1], outputs=outputs
    )
    _trace(setup._replace(network=stand_in), weak)
    return setup


def _state_parts(config: Any, diffusion: build.Diffusion, space: Space) -> dict[str, Any]:
    return {
        "diffusion": diffusion,
        "shape": space.shape,
        "learned_optimizer": build.learned_optimizer(config),
        "widths": tuple(config.train.ema_snapshots),
    }


def _identity(space: Space, wanted: Conditions) -> workdir.Identity:
    texts = wanted.texts
    return workdir.Identity(space.identity, space.told, texts.identity if texts else "")


def _space(
    config: Any, source: data.ImageSource, wanted: Conditions, kernels: Kernels
) -> Pixels | Latents:
    found = trained.read(config, image_shape=source.image_shape, kernels=kernels)
    if found is None:
        return Pixels(source.image_shape, wanted.make_map)
    if config.data.flip:
        raise UserError(
            "config.data.flip = True: latents of mirrored images are not kept: set it to False"
        )
    stage, frozen, told = found
    return Latents(stage, frozen, wanted.make_map, map_name=config.condition.map, told=told)


class _StandIn(nn.Module):
    """The least network that a step can train and a sampler can call: one weight times x_t.

    Attributes:
      blocks: names of those with attention.
      channels: of x_t.
      outputs: channels that are returned for each of them.
      perturbed: as the U-Net's.
    """

    blocks: tuple[str, ...]
    channels: int
    outputs: int
    perturbed: tuple[str, ...] = ()

    def attention_blocks(self, height: int) -> tuple[str, ...]:
        return self.blocks

    @nn.compact
    def __call__(self, x: Array, t: Array, cond: Any = None, *, train: bool = False) -> Array:
        x_t = x[..., : self.channels]
        return self.param("weight", nn.initializers.ones, ()) * jnp.tile(x_t, self.outputs)


def _trace(setup: Experiment, weak: Weak | None) -> None:
    """Traces the first state, a train step and a sampler, and tells what can't be as UserError."""
    generator = setup.make_generator(weak=weak)
    try:
        state = setup.state_shapes()
        batch = setup.batch_shapes(setup.config.train.accumulate)
        jax.eval_shape(setup.train_step(axis_name=None), state, batch)
        jax.eval_shape(
            generator.function(), state.ema_params, np.arange(1), _one_condition(setup),
            generator.weak_params,
        )  # fmt: skip
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"the config can't be run: {str(error).splitlines()[0]}") from error


def _one_example(setup: Experiment) -> dict[str, Any]:
    """A batch of one, in shapes."""
    texts = setup.conditions.texts
    batch = setup.space.example()
    if texts is not None:
        text = texts.example()
        batch |= {"text_tokens": text.tokens, "text_mask": text.mask}
        if text.pooled is not None:
            batch["text_pooled"] = text.pooled
    return batch


def _one_condition(setup: Experiment) -> Condition | None:
    """A sample's condition, in shapes."""
    labels = setup.generator.labels(0, 1)
    texts = setup.conditions.texts
    text = texts and texts.example()
    spatial = None
    if channels := setup.space.map_channels:
        spatial = SpatialMap(
            jax.ShapeDtypeStruct((1, *setup.space.shape[:2], channels), jnp.float32),
            jax.ShapeDtypeStruct((1,), bool),
        )
    if labels is None and text is None and spatial is None:
        return None
    return Condition(labels, text, spatial)


def _weak_model(config: Any, space: Space, wanted: Conditions, kernels: Kernels) -> Weak | None:
    """The weaker model that autoguidance names by its workdir; None for other guidance.

    Raises:
      UserError: no such run, or one of another schedule, condition or image shape.
    """
    key = "sample.guidance"
    name, arguments = choices.read_choice(config.sample.guidance, key=key)
    if name != "autoguidance":
        return None
    checkpoint = arguments.get("checkpoint", "latest")
    if not isinstance(checkpoint, str) or not MODEL_CHECKPOINT.holds(checkpoint):
        raise UserError(
            f"config.{key}: checkpoint = {checkpoint!r}: expected {MODEL_CHECKPOINT.expected}"
        )
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
    if workdir.identity_of(folder) != _identity(space, wanted):
        raise UserError(
            f"config.{key}: {folder} was trained on another first stage's latents, or other texts"
        )
    # It goes forwards only; and the name was True or False once.
    stored["model"]["remat"] = "none"
    their_config = ConfigDict(stored)
    diffusion = build.diffusion(their_config)
    network = build.model(
        their_config,
        diffusion=diffusion,
        shape=space.shape,
        conditions=wanted,
        map_channels=space.map_channels,
        ops=kernels.ops,
    )
    like = state_shapes(
        network,
        build.optimizer(their_config),
        **_state_parts(their_config, diffusion, space),
    )
    found = restore(folder, like, wanted=checkpoint)
    if found is None:
        raise UserError(f"config.{key}: {folder} has no checkpoint: train that model first")
    return Weak(network, diffusion, strategies.to_compute(found.state.ema_params, config))
