"""`config.gan`: a generator and a discriminator with their data and training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import optax

from diffjax.data.info import DataInfo
from diffjax.experiment import optimisation, schema
from diffjax.experiment.backbones import DTYPES
from diffjax.experiment.image_model import (
    ImageModel,
    ImageModelTask,
    generator,
    shape_and_conditions,
)
from diffjax.experiment.network import kernels as choose_kernels
from diffjax.experiment.spec import from_table
from diffjax.inference.gan import sample_images
from diffjax.losses import adversarial
from diffjax.models.gan import Discriminator, Generator
from diffjax.models.ops import Ops
from diffjax.training.adversarial_objective import AdversarialLoss, AdversarialObjective
from diffjax.training.gc_pause import gc_disabled


def _r3gan(gamma: float = 0.1) -> AdversarialLoss:
    if not 0 < gamma < float("inf"):
        raise ValueError(f"gamma must be above 0 and finite, not {gamma}")
    return AdversarialLoss(
        adversarial.relativistic_discriminator_loss,
        adversarial.relativistic_generator_loss,
        gamma,
    )


def _hinge() -> AdversarialLoss:
    return AdversarialLoss(
        adversarial.hinge_discriminator_loss,
        lambda real, fake: adversarial.hinge_generator_loss(fake).mean(),
    )


LOSSES: Mapping[str, Callable[..., AdversarialLoss]] = {"r3gan": _r3gan, "hinge": _hinge}


def resolve_model(config: Any, about: DataInfo) -> ImageModel:
    """Resolves a generator from its config and the data that it is or was trained on.

    Raises:
      UserError: data that are no images, of another size or without classes, or invalid values.
    """
    shape, conditions = shape_and_conditions(config, about)
    kernels = choose_kernels(config.gan.kernels, key="gan.kernels")
    objective = _objective(config, shape, conditions.num_classes, kernels.ops)
    draw = partial(sample_images, objective.generator, latent_size=config.gan.latent_size)
    draws = generator(config, draw, shape, conditions, stream="sample_latents")
    return ImageModel(
        config, about, kernels, conditions, objective.generator, objective.init_params, draws
    )


def _objective(
    config: Any, shape: tuple[int, int, int], num_classes: int, ops: Ops
) -> AdversarialObjective:
    c = config.gan
    common: dict[str, Any] = {
        "num_classes": num_classes,
        "channels": tuple(c.channels),
        "blocks": c.blocks,
        "dtype": from_table(c.dtype, DTYPES, key="gan.dtype"),
        "ops": ops,
    }
    return AdversarialObjective(
        Generator(shape, **common),
        Discriminator(zero=not c.spectral_norm, **common),
        c.latent_size,
        from_table(c.loss, LOSSES, key="gan.loss"),
        c.spectral_norm,
    )


class AdversarialTraining(ImageModelTask):
    """A generator and a discriminator with their data and objective."""

    @property
    def objective(self) -> AdversarialObjective:
        """The losses of both networks."""
        height, width, channels = self.about.shape
        shape, classes = (height, width, channels), self.conditions.num_classes
        return _objective(self.config, shape, classes, self.kernels.ops)

    @property
    def objective_optimizer(self) -> optax.GradientTransformation:
        """The generator's, at the discriminator's learning rate."""
        scale = optax.scale(self.config.gan.discriminator_rate)
        return optax.chain(optimisation.optimizer(self.config), scale)

    def held_out(self) -> list[dict[str, np.ndarray]]:
        """Empty: neither loss measures the generator."""
        return []

    def eval_loss(self) -> Callable[[Any, Any], Any]:
        """Of no use: there are no held-out batches."""

        def eval_loss(params: Any, batch: Any) -> Any:
            raise NotImplementedError("a GAN has no held-out loss")

        return eval_loss


@gc_disabled()
def resolve(config: Any) -> AdversarialTraining:
    """Resolves a config, loads its data, and traces a step; nothing is computed.

    Raises:
      UserError: any invalid or inconsistent value.
    """
    config = schema.complete(config)
    schema.check(config)
    return AdversarialTraining.resolved(config, resolve_model)
