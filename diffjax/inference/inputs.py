"""Arguments of a `Pipeline`'s methods: data, times, conditions and masks in the form they are
computed with, or a UserError that says what was expected."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import arguments
from diffjax.checks import check_times
from diffjax.errors import UserError
from diffjax.images import to_model_range
from diffjax.inference.sample_conditions import Choice, SampleConditions
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


def each_of(
    choice: Choice, conditions: SampleConditions, *, count: int, texts_optional: bool = False
) -> tuple[np.ndarray | None, list[str] | None]:
    """A label, int32 (count,), and a text for each of `count` images.

    Labels are -1, no class, if none is chosen; either is None for a model without such a condition,
    and texts also where they are optional and none was chosen.
    """
    conditions = conditions.of(choice._replace(prompts=()))  # checks the labels' range
    labels = None
    if conditions.has_labels:
        labels = np.asarray(_repeated("labels", choice.labels or (-1,), count), np.int32)
    if conditions.has_texts and texts_optional and not choice.prompts:
        return labels, None
    if conditions.has_texts:
        return labels, list(_repeated("prompts", choice.prompts, count))
    if choice.prompts:
        raise UserError("prompts were passed, but the model takes none")
    return labels, None


def _repeated(name: str, values: Sequence[Any], count: int) -> Sequence[Any]:
    if len(values) not in (1, count):
        raise UserError(f"{len(values)} {name} for {count} images: expected 1 or {count}")
    return values if len(values) == count else tuple(values) * count


def condition_of(choice: Choice, conditions: SampleConditions, *, count: int) -> Any:
    """The condition of `count` examples; without labels, that of no class, and without a prior that
    of no image embedding."""
    for name in ("prompts", "labels", "map_images"):
        values = getattr(choice, name)
        if values is not None and len(values) not in (0, 1, count):
            raise UserError(f"{len(values)} {name} for {count} examples: expected 1 or {count}")
    if conditions.has_labels and not choice.labels:
        choice = choice._replace(labels=(-1,))
    if conditions.has_embeddings and choice.embeddings is None and not conditions.has_prior:
        choice = choice._replace(embeddings=np.zeros((1, conditions.model.embedding_width)))
    return conditions.of(choice).batch(0, count)


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
    if not space.images:
        raise UserError(f"this model's data are arrays of {space.image_shape}: edits are of images")
    return _uint8(name, images, space.image_shape)


def low_resolution_of(name: str, images: Any, *, channels: int) -> np.ndarray:
    """uint8 images (n, h, w, C) of any height and width, n > 0."""
    return _uint8(name, images, ("h", "w", channels))


def data_of(name: str, x: Any, space: DiffusionSpace) -> Array:
    """Images in [-1, 1], or other data unchanged."""
    if space.images:
        return to_model_range(jnp.asarray(images_of(name, x, space)))
    return floats_of(name, x, space)


def _uint8(name: str, images: Any, shape: tuple[int | str, ...]) -> np.ndarray:
    """uint8 images (n, *shape), n > 0; a size that is a name may be any."""
    expected = f"uint8 images {_batch_of(shape)}"
    found = arguments.array(name, images, expected=expected)
    fits = found.ndim == 1 + len(shape) and all(
        isinstance(wanted, str) or size == wanted
        for size, wanted in zip(found.shape[1:], shape, strict=True)
    )
    if found.dtype != np.uint8 or not fits or not found.size:
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


def _batch_of(shape: tuple[int | str, ...]) -> str:
    return f"(n, {', '.join(map(str, shape))})"
