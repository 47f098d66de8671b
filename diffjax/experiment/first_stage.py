"""The trained first stage of `config.first_stage.workdir`."""

from typing import Any

import jax
import jax.numpy as jnp

from diffjax.accelerator import Kernels
from diffjax.checkpoints import parameters
from diffjax.checkpoints.run_config import flatten
from diffjax.errors import UserError
from diffjax.experiment.autoencoder_networks import stage as make_stage
from diffjax.experiment.run import STAGE_FIELDS, read_config, read_model
from diffjax.experiment.schema import is_autoencoder, kind
from diffjax.files import expanded
from diffjax.latent.first_stage import FirstStage, Scaling, StageParams

# Keys that must be equal in the configs of both stages.
SHARED_WITH_STAGE = ("data.image_size", "data.channels")


def read(
    config: Any, *, image_shape: tuple[int, ...], kernels: Kernels
) -> tuple[FirstStage, StageParams, str]:
    """The trained first stage of `config.first_stage`, its parameters and a description for logs.

    Raises:
      UserError: no such run, one that is not an autoencoder, or one of other images.
    """
    c = config.first_stage
    folder = expanded(c.workdir)
    what = f"config.first_stage.workdir = {c.workdir!r}"
    theirs = read_config(folder)
    if theirs is None:
        raise UserError(f"{what} holds no run: train the autoencoder first, and give its workdir")
    if not is_autoencoder(theirs):
        raise UserError(f"{what} is a run of {kind(theirs)}: give an autoencoder's workdir")
    ours, their_keys = flatten(config), flatten(theirs)
    for key in SHARED_WITH_STAGE:
        if ours[key] != their_keys[key]:
            raise UserError(
                f"{what} has config.{key} = {their_keys[key]!r}, not {ours[key]!r}: both stages "
                "need the same images"
            )
    height, width, channels = image_shape
    stage = make_stage(theirs, image_shape=(height, width, channels), ops=kernels.ops, tile=c.tile)
    found = read_model(folder, wanted=c.checkpoint, fields=STAGE_FIELDS)
    if found is None:
        raise UserError(f"{what} has no checkpoint: train that autoencoder first")
    params = jax.device_put(params_from_fields(found.fields, stage, what=what))
    return stage, params, f"step {found.step} of {folder.resolve()}"


def params_from_fields(fields: dict[str, Any], stage: FirstStage, *, what: str) -> StageParams:
    """A stored first stage in the structure that the functions of `stage` take.

    Raises:
      UserError: its arrays do not match the networks.
    """

    def init(key: Any) -> StageParams:
        keys = jax.random.split(key, 3)
        images = jnp.zeros((1, *stage.image_shape))
        latents = jnp.zeros((1, *stage.latent_shape))
        channels = stage.latent_shape[-1]
        params = {
            "encoder": stage.encoder.init(keys[0], images)["params"],
            "decoder": stage.decoder.init(keys[1], latents, stage.image_shape[:2])["params"],
        }
        return StageParams(
            params,
            stage.regulariser.init(keys[2], channels),
            Scaling(jnp.zeros(channels), jnp.ones(channels)),
        )

    shapes = jax.eval_shape(init, jax.random.key(0))
    tree = {
        "params": fields["ema_params"],
        "codebook": fields["codebook"],
        "scaling": fields["scaling"],
    }
    return parameters.like(tree, shapes, what=what)
