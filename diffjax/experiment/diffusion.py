"""A diffusion model with its training: data, objective, optimizer, step."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffjax import data
from diffjax.accelerator import Kernels
from diffjax.checkpoints import parameters, workdir
from diffjax.conditioning.conditions import Conditions, add_text
from diffjax.data.info import DataInfo
from diffjax.denoisers import Denoiser
from diffjax.experiment import (
    augmentation,
    folder_sampling,
    image_embedding,
    inversion,
    model_folder,
    optimisation,
    pairs,
    pictures,
    process,
    run,
    sampling,
    schema,
    strategies,
    traced,
)
from diffjax.experiment import network as networks
from diffjax.experiment import objective as objectives
from diffjax.experiment.conditioning import conditions as conditions_of
from diffjax.experiment.dataset import held_out_batches, load_held_out, load_train
from diffjax.experiment.init_from import Start
from diffjax.experiment.inversion import Inverted
from diffjax.experiment.lora import Adapted
from diffjax.experiment.model import (
    Model,
    as_user_error,
    captioned,
    held_out_examples,
    kept,
    resolve_model,
    with_scale,
)
from diffjax.experiment.other_model import teacher, teacher_guide, with_weak
from diffjax.experiment.task import ConfiguredTask
from diffjax.inference.generator import Generator
from diffjax.inference.sample_conditions import Examples
from diffjax.inference.sampling import OtherModel
from diffjax.latent import sizes
from diffjax.latent.pairs import PairSpace
from diffjax.latent.space import DiffusionSpace, LatentSpace
from diffjax.models.network import Network
from diffjax.prediction import Prediction
from diffjax.stable_diffusion.folder import Folder
from diffjax.training.adapted_objective import AdaptedObjective
from diffjax.training.aligned_objective import AlignedObjective
from diffjax.training.distribution_matching_objective import DistributionMatchingObjective
from diffjax.training.few_step_objective import Teacher
from diffjax.training.gc_pause import gc_disabled
from diffjax.training.objective import Objective
from diffjax.training.stored_state import StoredDiffusion, restore_diffusion, store_diffusion
from diffjax.training.train_step import (
    StepParts,
    TrainState,
    make_eval_loss,
)
from diffjax.types import Array


class _Fields(NamedTuple):
    config: Any
    source: data.ImageSource
    about: DataInfo
    kernels: Kernels
    space: DiffusionSpace
    conditions: Conditions
    network: Network
    diffusion: Prediction
    objective: Objective
    weak: OtherModel | None
    teacher: OtherModel | None
    generator: Generator
    folder: Folder | None = None
    adapted: Adapted | Inverted | None = None


class Experiment(_Fields, ConfiguredTask):
    """A diffusion model with its data and its objective; see `training_task.TrainingTask`."""

    @property
    def model(self) -> Model:
        """The model without its training."""
        return Model(
            self.config, self.about, self.kernels, self.space, self.conditions, self.network,
            self.diffusion, self.weak, partial(_examples, self.config, self.source), self.folder,
            self.adapted,
        )  # fmt: skip

    def at_guidance_scale(self, scale: float) -> "Experiment":
        """A copy with another scale of config.sample.guidance.

        Raises:
          UserError: the guidance has no scale.
        """
        setup = self._replace(config=with_scale(self.config, scale))
        return setup._replace(generator=setup.model.generator())

    @property
    def identity(self) -> workdir.Identity:
        """What the model depends on besides its config and data."""
        return self.model.identity

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a state that inference needs."""
        return (*run.FIELDS, "learned")

    def from_fields(self, fields: dict[str, Any], *, what: str) -> Any:
        """The averaged parameters, adapters merged."""
        stored = parameters.like(fields["ema_params"], self.parameter_shapes(), what=what)
        return self.model.of_stored(stored)

    def with_network(self, network: Network) -> "Experiment":
        """A copy with another network, trained and sampled by the same config."""
        objective = _objective(self.model, network, self.teacher, self.adapted)
        setup = self._replace(network=network, objective=objective)
        return setup._replace(generator=setup.model.generator())

    @property
    def about_data(self) -> dict[str, Any]:
        """The data description that checkpoints store."""
        return kept(self.about, self.identity)

    @property
    def parts(self) -> StepParts:
        """The components of the train step."""
        c = self.config
        return StepParts(
            self._init_params,
            self._training_space,
            self.conditions,
            self.objective,
            optimisation.optimizer(c, every=self._steps_between_updates),
            self._objective_optimizer,
            optimisation.average_decay(c),
            c.seed,
            tuple(c.train.ema_snapshots),
            augmentations=augmentation.augmentations(c),
            non_leaking=augmentation.non_leaking(c),
            condition_dropout=c.diffusion.condition_dropout,
            embedding_dropout=c.diffusion.embedding_dropout,
            accumulate=c.train.accumulate,
            project=getattr(self.network, "project", None),
        )

    @property
    def _training_space(self) -> DiffusionSpace:
        return pairs.space(self.config, self.model, self.teacher)

    @property
    def _steps_between_updates(self) -> int:
        if isinstance(self.objective, DistributionMatchingObjective):
            return self.objective.fake_updates
        return 1

    @property
    def _objective_optimizer(self) -> optax.GradientTransformation:
        # A network as large as the model, or one that is trained with it.
        if isinstance(self.objective, DistributionMatchingObjective | AlignedObjective):
            return optimisation.optimizer(self.config)
        return optimisation.learned_optimizer(self.config)

    def _init_params(self, key: Array) -> Any:
        if self.adapted is not None:
            return self.adapted.init(key)
        if self.folder is not None:  # it has them all: see `read_start`
            shapes = self.model.parameter_shapes()
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        x = jnp.zeros((1, *self.diffusion.input_shape(self.space.shape)))
        cond = self.model.example_condition()
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), cond)
        return self.network.init(key, x, jnp.zeros(self.diffusion.time_shape(1)), zeros)

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """A batch with jax.ShapeDtypeStruct for arrays."""
        one = _one_example(self)
        return {
            k: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype) for k, x in one.items()
        }

    def batches(self) -> data.BatchIterator:
        """Endless training batches."""
        source = self._prepared(self.source)
        drawn = self.own_rows(source)
        return self.conditions.with_text(drawn, source.captions)

    def _prepared(self, images: data.ImageSource) -> data.ImageSource:
        """The source of batches for a set of images."""
        source = self._training_space.source(images)
        if self.conditions.unchanged:
            source = sizes.with_sizes(source, images)
        return image_embedding.with_vectors(source, images, self.conditions.embedding)

    def held_out(self) -> list[dict[str, np.ndarray]]:
        """Batches of test images."""
        source = self.load_held_out()
        of_pairs = isinstance(self._training_space, PairSpace)
        if source is None or of_pairs or not hasattr(self.objective, "held_out"):
            return []
        source = image_embedding.held_out(self.config, captioned(self.config, source), self.about)
        source = self._prepared(source)
        batches = held_out_batches(source)
        texts = self.conditions.texts
        if texts is None:
            return batches
        table = texts.encode(source.captions)
        return [add_text(batch, table) for batch in batches]

    def eval_loss(self) -> Callable[[Any, Any], Any]:
        """See `train_step.make_eval_loss`; of no use without held-out batches."""
        objective: Any = self.objective
        return make_eval_loss(self.space, self.conditions, objective, seed=self.config.seed)

    def averaged(self, state: TrainState) -> Any:
        """The averaged parameters, adapters merged."""
        if self.adapted is None:
            return state.ema_params
        return self.adapted.merged(state.objective_state.frozen, state.ema_params)

    def before_save(self, state: TrainState) -> TrainState:
        """The unchanged state."""
        return state

    def to_stored(self, state: TrainState) -> StoredDiffusion:
        """A state as checkpoints store it."""
        return store_diffusion(state)

    def from_stored(self, stored: StoredDiffusion) -> TrainState:
        """The inverse of `to_stored`, with the parameters that are frozen."""
        return restore_diffusion(stored, frozen=self._frozen)

    @gc_disabled()
    def init_state(self, *, shardings: Any = None) -> TrainState:
        """The state of step 0, with the parameters that are frozen."""
        without = self._replace(teacher=None)
        if shardings is not None:
            learned = shardings.objective_state._replace(frozen=None)
            shardings = shardings._replace(objective_state=learned)
        state = ConfiguredTask.init_state(without, shardings=shardings)
        return state._replace(objective_state=state.objective_state._replace(frozen=self._frozen))

    def state_shapes(self) -> TrainState:
        """The state with jax.ShapeDtypeStruct for arrays."""
        state = super().state_shapes()
        frozen = self.adapted.shapes if self.adapted else jax.eval_shape(lambda: self._frozen)
        return state._replace(objective_state=state.objective_state._replace(frozen=frozen))

    def read_start(self) -> Start | None:
        """See `ConfiguredTask.read_start`; a folder's weights, if that names nothing else."""
        return super().read_start() or self._folder_start()

    def _folder_start(self) -> Start | None:
        if self.folder is None or self.adapted is not None:
            return None
        params = self.folder.unet_params(jnp.float32)
        return Start(
            self.config.model.folder, dict.fromkeys(("params", "ema_params", "profiles"), params)
        )

    def started(self, state: TrainState, begin: Start, *, log: Callable[[str], None]) -> TrainState:
        """See `ConfiguredTask.started`; what an objective copies of the model starts from it.

        What a run does not have of a folder's network is the folder's.
        """
        if self.config.train.init_from and (of_folder := self._folder_start()):
            state = super().started(state, of_folder, log=log)
        state = super().started(state, begin, log=log)
        learned = state.objective_state
        if isinstance(self.objective, DistributionMatchingObjective):
            fake = jax.tree.map(jnp.copy, state.params)
            learned = learned._replace(params=learned.params | {"fake": fake})
        return state._replace(objective_state=learned)

    @property
    def _frozen(self) -> Any:
        if self.adapted is not None:
            return self.adapted.base()
        return None if self.teacher is None else self.teacher.params

    def power_emas(self, stored: StoredDiffusion) -> dict[float, Any]:
        """sigma_rel -> average, for config.train.ema_snapshots."""
        return dict(zip(self.config.train.ema_snapshots, stored.profiles, strict=True))

    def write_samples(self, params: Any, path: Path) -> np.ndarray:
        """Writes a grid of samples."""
        return pictures.samples(self, params, path)

    def write_final_pictures(
        self, params: Any, folder: Path, *, log: Callable[[str], None]
    ) -> None:
        """Writes the pictures of a finished run."""
        pictures.final(self, params, folder, log=log)


@gc_disabled()
def resolve(config: Any, *, trains: bool = True) -> Experiment:
    """Resolves a config, loads its data, and traces it; nothing is computed.

    The network, which takes seconds to trace, is traced once; the train step and the sampler are
    traced around a stand-in for it, to check their own arguments.

    Args:
      config: the config.
      trains: whether the teacher is read, which nothing but training needs.

    Raises:
      UserError: any invalid or inconsistent value.
    """
    config = schema.complete(config)
    schema.check(config)
    config = model_folder.settled(config)
    # The strings first: a misspelt name should fail before a download.
    diffusion = process.diffusion(config)
    objectives.check(config, diffusion)
    pairs.check(config)
    sampling.sampling(config, diffusion.schedule)
    optimisation.optimizer(config)
    optimisation.average_decay(config)
    strategies.is_sharded(config)
    augmentation.check(config)
    image_embedding.key_of(config)
    source, about = image_embedding.fitted(config, load_train(config))
    inversion.check_captions(config, source.captions)
    conditions = None
    if not model_folder.is_named(config):
        conditions = conditions_of(config, about)
        about, conditions = image_embedding.with_text(config, source, about, conditions)
    examples = partial(_examples, config, source)
    texts = None if trains else partial(folder_sampling.texts, config, examples)
    model = with_weak(
        resolve_model(config, about, examples=examples, conditions=conditions, texts=texts)
    )
    return of_model(model, source, trains=trains)


def of_model(model: Model, source: Any, *, trains: bool = True) -> Experiment:
    """The experiment of a model, whose network, train step and sampler are traced.

    Args:
      model: of a checked config.
      source: the training set; None where nothing but shapes is used of it.
      trains: see `resolve`.

    Raises:
      UserError: any invalid or inconsistent value.
    """
    config, about, diffusion = model.config, model.about, model.diffusion
    if trains:
        folder_sampling.refuse(config, "training")
    if model.conditions.texts is not None:
        about = about._replace(vocabulary=model.conditions.texts.vocabulary)
    latent = isinstance(model.space, LatentSpace)
    pixels = "images" if about.images else f"arrays of {about.shape}"
    augmentation.check(config, x_0="cached latents" if latent else pixels)
    cond = model.example_condition()
    shape = model.space.shape
    networks.check(model.network, config=config, diffusion=diffusion, shape=shape, cond=cond)
    with as_user_error(config):
        trained = augmentation.trained_shape(config, shape)
    if trained != shape:
        cond = model.example_condition(trained)
        networks.check(model.network, config=config, diffusion=diffusion, shape=trained, cond=cond)
    taught_by = teacher(model) if trains else None
    objective = _objective(model, model.network, taught_by, model.adapted)
    setup = Experiment(
        config, source, about, model.kernels, model.space, model.conditions, model.network,
        diffusion, objective, model.weak, taught_by, model.generator(), model.folder,
        model.adapted,
    )  # fmt: skip
    traced.check_threshold(setup)
    traced.trace(setup, trains=trains)
    return setup


def _objective(
    model: Model,
    network: Network,
    taught_by: OtherModel | None,
    adapted: Adapted | Inverted | None,
) -> Objective:
    """The objective of a network, which is trained as a whole or through adapters."""
    guide = teacher_guide(model)

    def of_network(network: Network) -> Any:
        return objectives.objective(
            model.config, model.diffusion, network, _teacher(taught_by, guide), guide,
            model.space.shape,
        )  # fmt: skip

    if adapted is None:
        return of_network(network)
    return AdaptedObjective(of_network, network, adapted.apply)


def _teacher(
    model: OtherModel | None, guide: Callable[[Denoiser], Denoiser] | None
) -> Teacher | None:
    return None if model is None else Teacher(model.network, model.diffusion, guide)


def _examples(config: Any, source: data.ImageSource) -> Examples:
    return held_out_examples(config, load_held_out(config, source) or source)


def _one_example(setup: Experiment) -> dict[str, Any]:
    """A batch of one with jax.ShapeDtypeStruct for arrays."""
    texts = setup.conditions.texts
    batch = pairs.space(setup.config, setup.model, setup.teacher).example()
    if setup.conditions.unchanged:
        batch["sizes"] = jax.ShapeDtypeStruct((1, len(setup.conditions.unchanged)), jnp.float32)
    if setup.conditions.embedding is not None:
        width = setup.conditions.embedding_width
        batch["embedding"] = jax.ShapeDtypeStruct((1, width), jnp.float32)
    if texts is not None:
        text = texts.example()
        batch |= {"text_tokens": text.tokens, "text_mask": text.mask}
        if text.pooled is not None:
            batch["text_pooled"] = text.pooled
    return batch
