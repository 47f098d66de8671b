"""Pictures on their way between the page and arrays: raw bytes in base64, which a canvas draws.

The page's policy allows pictures from this server alone, and so no `data:` address.
"""

import base64
import binascii
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.figures import to_uint8
from diffjax.inference.pipeline import Pipeline
from diffjax.inference.step_by_step import Step

PREVIEW = 128  # pixels of a longer side of the pictures of a step
LARGEST = 4096  # pixels of a side that is read
NOISE = 3.0  # standard deviations of eps that are black and white
MOST_DECODERS = 3

_decoders: dict[int, Any] = {}


def packed(image: np.ndarray) -> dict[str, Any]:
    """A uint8 image (H, W, C) for the page."""
    shown = image if image.shape[-1] in (1, 3) else image[..., :1]
    data = base64.b64encode(np.ascontiguousarray(shown).tobytes()).decode()
    return {"shape": list(shown.shape), "data": data}


def unpacked(name: str, given: Any, channels: int) -> np.ndarray:
    """A picture from the page: uint8 (H, W, C).

    Raises:
      UserError: another form, or a size that its bytes have not.
    """
    expected = f"expected {{'shape': [H, W, {channels}], 'data': base64 of as many bytes}}"
    shape = given.get("shape") if isinstance(given, dict) else None
    data = given.get("data") if isinstance(given, dict) else None
    whole = isinstance(shape, list) and all(arguments.is_whole(n) for n in shape)
    if not (whole and isinstance(shape, list) and len(shape) == 3 and isinstance(data, str)):
        raise UserError(f"{name} is no picture: {expected}")
    height, width, found = shape
    if found != channels or not (0 < height <= LARGEST and 0 < width <= LARGEST):
        raise UserError(f"{name} is {height}x{width} with {found} channels: {expected}")
    try:
        values = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{name} is no base64: {expected}") from None
    if len(values) != height * width * channels:
        raise UserError(f"{name} has {len(values)} bytes for {height}x{width}: {expected}")
    return np.frombuffer(values, np.uint8).reshape(height, width, channels)


def of_step(step: Step, model: Pipeline, *, example: int = 0) -> dict[str, Any]:
    """The pictures of one example of a step: x_t and x_0 as images, eps on a scale of its own."""
    at = slice(example, example + 1)
    shown = {
        "t": step.t,
        "x_t": _small(_decoded(model, step.x_t[at])),
        "x_0": _small(_decoded(model, step.x_0[at])),
    }
    if step.eps is not None:
        eps = step.eps[at] / NOISE
        shown["eps"] = _small(eps[..., :3] if eps.shape[-1] >= 3 else eps[..., :1])
    return shown


def _small(images: np.ndarray) -> dict[str, Any]:
    """The first image of a batch in about [-1, 1], thinned out if it is large."""
    image = to_uint8(images)[0]
    every = -(-max(image.shape[:2]) // PREVIEW)
    return packed(image[::every, ::every])


def _decoded(model: Pipeline, x: np.ndarray) -> np.ndarray:
    """x as images; a first stage's decoder is compiled once a model."""
    space = model.space
    if space.shape == space.image_shape:
        return x
    if id(space) not in _decoders and len(_decoders) >= MOST_DECODERS:
        _decoders.clear()  # a decoder keeps its first stage's parameters
    with jax.disable_jit(False):
        decode = _decoders.setdefault(id(space), jax.jit(space.to_images))
        return np.asarray(decode(jnp.asarray(x)))
