"""The first stage that a diffusion model's config names by its workdir."""

import os
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffjax.accelerator import Kernels
from diffjax.errors import UserError
from diffjax.training import build as shared
from diffjax.training.checkpoints import read_json
from diffjax.training.config import flatten, is_autoencoder
from diffjax.training.first_stage import build
from diffjax.training.first_stage import state as states
from diffjax.training.first_stage.stage import FirstStage, Frozen
from diffjax.training.restoring import restore

# What the images of both stages must have in common.
SHARED_WITH_STAGE = ("data.image_size", "data.channels")


def read(
    config: Any, *, image_shape: tuple[int, int, int], kernels: Kernels
) -> tuple[FirstStage, Frozen, str] | None:
    """The trained first stage of `config.first_stage`, and where it comes from, in words.

    None where the config names none.

    Raises:
      UserError: no such run, one that is no autoencoder, or one of other images.
    """
    c = config.first_stage
    if not c.workdir:
        return None
    folder = Path(os.path.expanduser(c.workdir))
    what = f"config.first_stage.workdir = {c.workdir!r}"
    stored = read_json(folder / "config.json")
    if stored is None:
        raise UserError(f"{what} holds no run: train the autoencoder first, and name its workdir")
    if not is_autoencoder(stored):
        raise UserError(f"{what} is the run of a diffusion model: name an autoencoder's workdir")
    ours, theirs = flatten(config), flatten(stored)
    for key in SHARED_WITH_STAGE:
        if ours[key] != theirs.get(key):
            raise UserError(
                f"{what} has config.{key} = {theirs.get(key)!r}, not {ours[key]!r}: both stages "
                "need the same images"
            )
    their_config = ConfigDict(stored)
    stage = build.stage(
        their_config, image_shape=image_shape, ops=kernels.ops, tile=config.first_stage.tile
    )
    discriminator = build.adversary(their_config, ops=kernels.ops)
    init = states.initialiser(stage, discriminator, shared.optimizer(their_config))
    found = restore(folder, jax.eval_shape(init, jax.random.key(0)), wanted=c.checkpoint)
    if found is None:
        raise UserError(f"{what} has no checkpoint: train that autoencoder first")
    frozen = jax.device_put(states.frozen(found.state))
    return stage, frozen, f"step {found.step} of {folder.resolve()}"
