"""`config.data.augment` and `config.diffusion.augment`: random changes of training images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.augmentation import Augmentation, NonLeaking
from diffjax.augmentation.choices import AUGMENTATIONS, stream_of
from diffjax.augmentation.non_leaking import PARAMETERS
from diffjax.errors import UserError
from diffjax.experiment.spec import (
    from_table,
    function_from_spec,
    is_path,
    parameters_of,
    parse_spec,
    with_options,
)

CHOICES = {name: with_options(function) for name, function in AUGMENTATIONS.items()}
_KEY = "data.augment"


def augmentations(config: Any) -> tuple[tuple[str, Augmentation], ...]:
    """(random stream, augmentation) of each in `config.data.augment`, with `config.data.flip`.

    Raises:
      UserError: an unknown name or path, unknown options, or an augmentation named twice.
    """
    texts = (("flip",) if config.data.flip else ()) + tuple(config.data.augment)
    found: dict[str, Augmentation] = {}
    for text in texts:
        name = parse_spec(text, key=_KEY).path
        if name in found:
            also = ", and config.data.flip is True" if name == "flip" and config.data.flip else ""
            raise UserError(
                f"config.{_KEY} = {tuple(config.data.augment)!r} has {name} twice{also}: leave one "
                "out"
            )
        found[name] = function_from_spec(text, CHOICES, key=_KEY)
    return tuple((stream_of(name), function) for name, function in found.items())


def trained_shape(config: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what a model of images of `shape` is trained on: a window's, or `shape`."""
    for stream, change in augmentations(config):
        if stream == stream_of("window"):
            made = jax.eval_shape(
                lambda x, change=change: change(jax.random.key(0), x),
                jax.ShapeDtypeStruct(shape, jnp.float32),
            )
            shape = made.shape
    return shape


def _edm(probability: float = 0.12) -> NonLeaking:
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must be in [0, 1], not {probability!r}")
    return NonLeaking(float(probability))


NON_LEAKING: Mapping[str, Callable[..., NonLeaking | None]] = {"none": lambda: None, "edm": _edm}


def non_leaking(config: Any) -> NonLeaking | None:
    """`config.diffusion.augment`, or None.

    Raises:
      UserError: an unknown name or option, or a network of the user's that can't be given the
        augmentation's parameters.
    """
    text = config.diffusion.augment
    made: NonLeaking | None = from_table(text, NON_LEAKING, key="diffusion.augment")
    name = config.model.name
    if not made or not is_path(name):
        return made
    if "augmentation_width" not in parameters_of(name, key="model.name"):
        raise UserError(
            f"config.diffusion.augment = {text!r} needs a network that is given the "
            f"augmentation's parameters, and {name!r} has no parameter augmentation_width: add it "
            "and use cond.augmentation, or samples will be transformed, too"
        )
    return made


def width(config: Any) -> int:
    """The number of augmentation parameters at the network's input; 0 for none.

    Raises:
      UserError: as `non_leaking`.
    """
    return PARAMETERS if non_leaking(config) else 0


def check(config: Any, *, x_0: str = "images") -> None:
    """Checks the augmentations' names, and that there are images to change.

    Args:
      config: the config of a diffusion model or an autoencoder.
      x_0: what the model is trained on, for the message; "images" if they can be changed.

    Raises:
      UserError: an invalid value, or an augmentation of something else than images.
    """
    augmentations(config)
    diffusion = "diffusion" in config and non_leaking(config) is not None
    if x_0 == "images":
        return
    for wanted, key, none in (
        (len(config.data.augment) > 0, _KEY, "()"),
        (diffusion, "diffusion.augment", "'none'"),
    ):
        if wanted:
            raise UserError(
                f"config.{key} changes images, and the model is trained on {x_0}: set it to {none}"
            )
