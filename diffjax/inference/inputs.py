"""Arguments of a `Pipeline`'s methods: data, times, conditions and masks in the form they are
computed with, or a UserError that says what was expected."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import arguments
from diffjax.checks import check_times
from diffjax.errors import UserError
from diffjax.inference.sample_conditions import Choice
from diffjax.latent.space import DiffusionSpace
from diffjax.schedules import Schedule
from diffjax.types import Array

MAX_SEED = 2**32


def seed_of(seed: Any) -> int:
    """A seed in [0, 2**32)."""
    return arguments.whole("seed", seed, least=0, most=MAX_SEED - 1)


def choice_of(prompts: Any, labels: Any, map_images: Any) -> Choice:
    """What was passed as conditions; whether the model takes it is not known here."""
    if map_images is not None and not isinstance(map_images, np.ndarray | jax.Array):
        raise UserError(
            f"map_images is {arguments.shown(map_images)}: expected an array of images, uint8 "
            "(n, H, W, C)"
        )
    return Choice(
        labels=arguments.wholes("labels", labels),
        prompts=arguments.texts("prompts", prompts),
        map_images=None if map_images is None else np.asarray(map_images),
    )


def settings_of(how: dict[str, Any]) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Settings with NumPy's scalars as Python's, and a key that tells them apart.

    1, 1.0 and True are equal in Python, but only one of them is a number of steps.
    """
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in how.items()}
    for name, value in plain.items():
        try:
            hash(value)
        except TypeError as error:
            raise UserError(
                f"{name} is {arguments.shown(value)}: expected a number or a string, as in "
                "config.sample"
            ) from error
    return plain, tuple((name, type(plain[name]).__name__, plain[name]) for name in sorted(plain))


def images_of(name: str, images: Any, space: DiffusionSpace) -> np.ndarray:
    """uint8 images (n, H, W, C) of the model's size, n > 0."""
    expected = f"uint8 images {_batch_of(space.image_shape)}"
    found = arguments.array(name, images, expected=expected)
    if found.dtype != np.uint8 or found.shape[1:] != space.image_shape or not found.size:
        hint = ""
        if arguments.is_floating(found.dtype):
            hint = "; figures.to_uint8 converts floats in [-1, 1]"
        raise UserError(f"{name} is {found.dtype} {found.shape}: expected {expected}{hint}")
    return found


def floats_of(name: str, x: Any, space: DiffusionSpace) -> Array:
    """A finite float32 batch (n, ...) of the model's space, n > 0; traced values are not known."""
    expected = f"floating-point values {_batch_of(space.shape)}"
    found = x if isinstance(x, jax.Array) else arguments.array(name, x, expected=expected)
    if not jnp.issubdtype(found.dtype, jnp.floating):
        hint = "; images are pixels / 127.5 - 1" if space.images else ""
        raise UserError(f"{name} is {found.dtype} {found.shape}: expected {expected}{hint}")
    if found.ndim == 0 or found.shape[1:] != space.shape or not found.size:
        raise UserError(f"{name} has the shape {found.shape}: expected {expected}")
    if isinstance(found, jax.core.Tracer):
        return found.astype(jnp.float32)
    if not jnp.isfinite(found).all():
        raise UserError(f"{name} has values that are not finite: expected {expected}")
    # No noisy or clean image in [-1, 1] has whole numbers alone, but for one of -1, 0 and 1.
    if space.images and found.max() > 1 and found.min() >= 0 and (found % 1 == 0).all():
        raise UserError(
            f"{name} has only whole numbers, up to {float(found.max()):g}, as pixels in [0, 255] "
            f"have: expected {expected}, of images in [-1, 1]: pixels / 127.5 - 1"
        )
    return jnp.asarray(found, jnp.float32)


def times_of(t: Any, count: int, schedule: Schedule) -> Array:
    """Times of a schedule, () or (count,): int32 of a discrete one, else float32."""
    kind = jnp.int32 if schedule.discrete else jnp.float32
    if not isinstance(t, jax.core.Tracer):
        try:
            check_times(t, schedule)
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from error
        t = arguments.array("t", t, expected="a time, or one for each example")
        if schedule.discrete and (t % 1 != 0).any():
            wrong = t[t % 1 != 0].flat[0]
            raise UserError(f"t has {wrong:g}: expected whole numbers, the schedule's steps")
    if jnp.shape(t) not in ((), (count,)):
        raise UserError(
            f"t has the shape {jnp.shape(t)}: expected one time, or one for each example, "
            f"({count},)"
        )
    return jnp.asarray(t, kind)


def mask_of(mask: Any, size: tuple[int, ...]) -> np.ndarray:
    """float32 (H, W, 1), 1 where the mask is above 0."""
    expected = f"the images' height and width, {size}, above 0 where they are kept"
    found = arguments.array("mask", mask, expected=expected, finite=True)
    if found.shape not in (size, (*size, 1)):
        raise UserError(f"mask is {found.shape}: expected {expected}")
    return (found > 0).reshape(*size, 1).astype(np.float32)


def _batch_of(shape: tuple[int, ...]) -> str:
    return f"(n, {', '.join(map(str, shape))})"
