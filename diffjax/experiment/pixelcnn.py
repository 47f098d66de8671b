"""`config.pixelcnn`: PixelCNN++ with its data and training, and its exact likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffjax import rng
from diffjax.data.info import DataInfo
from diffjax.experiment import schema
from diffjax.experiment.backbones import DTYPES
from diffjax.experiment.dataset import held_out_batches
from diffjax.experiment.image_model import (
    ImageModel,
    ImageModelTask,
    generator,
    shape_and_conditions,
)
from diffjax.experiment.likelihood import Likelihood, Numbers, on_all_devices
from diffjax.experiment.network import kernels as choose_kernels
from diffjax.experiment.spec import from_table
from diffjax.inference.pixelcnn import sample_images
from diffjax.latent.space import PixelSpace
from diffjax.likelihood.logistic_mixture import number_of_outputs
from diffjax.models.pixelcnn import PixelCNN
from diffjax.training.gc_pause import gc_disabled
from diffjax.training.likelihood_objective import LikelihoodObjective
from diffjax.training.objective import LossInputs
from diffjax.training.train_step import make_eval_loss
from diffjax.types import Array

# config.evaluate.likelihood: whether --mode=evaluate computes bits/dim, or distances of samples.
LIKELIHOODS: Mapping[str, Callable[[], bool]] = {"exact": lambda: True, "none": lambda: False}


def resolve_model(config: Any, about: DataInfo) -> ImageModel:
    """Resolves a model from its config and the data that it is or was trained on.

    Raises:
      UserError: data that are no images or have no classes, or invalid values.
    """
    c = config.pixelcnn
    shape, conditions = shape_and_conditions(config, about)
    kernels = choose_kernels(c.kernels, key="pixelcnn.kernels")
    network = PixelCNN(
        outputs=number_of_outputs(channels=shape[-1], components=c.components),
        num_classes=conditions.num_classes,
        channels=c.channels,
        blocks=c.blocks,
        levels=c.levels,
        dropout=c.dropout,
        dtype=from_table(c.dtype, DTYPES, key="pixelcnn.dtype"),
        ops=kernels.ops,
    )

    def init(key: Array) -> Any:
        label = jnp.zeros(1, jnp.int32) if conditions.num_classes else None
        return network.init(key, jnp.zeros((1, *shape)), label)["params"]

    draw = partial(sample_images, network, shape=shape)
    draws = generator(config, draw, shape, conditions, stream="sample_pixels")
    return ImageModel(config, about, kernels, conditions, network, init, draws)


class Autoregression(ImageModelTask):
    """A PixelCNN++ with its data and its objective."""

    @property
    def objective(self) -> LikelihoodObjective:
        """Bits per dimension."""
        return LikelihoodObjective(self.model.network)

    def held_out(self) -> list[dict[str, np.ndarray]]:
        """Batches of test images."""
        source = self.load_held_out()
        return [] if source is None else held_out_batches(source)

    def eval_loss(self) -> Callable[[Any, Any], Any]:
        """See `train_step.make_eval_loss`."""
        space = PixelSpace(self.about.shape)
        return make_eval_loss(space, self.conditions, self.objective, seed=self.config.seed)


@gc_disabled()
def resolve(config: Any) -> Autoregression:
    """Resolves a config, loads its data, and traces a step; nothing is computed.

    Raises:
      UserError: any invalid or inconsistent value.
    """
    config = schema.complete(config)
    schema.check(config)
    wants_likelihood(config)
    return Autoregression.resolved(config, resolve_model)


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
