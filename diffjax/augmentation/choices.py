"""Random changes of one training image, each a function (key, image) -> image.

Images are (H, W, C) in [-1, 1], of any H and W unless said otherwise, and keep their shape; that of
a `window` is its own. What is drawn follows from the key alone; `augment` gives each example a key.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from diffjax import rng
from diffjax.checks import checked
from diffjax.types import Array, Images, Indices, PRNGKey

Image = Float[Array, "height width channels"]
# (key, image (H, W, C) in [-1, 1]) -> an image of the same shape.
Augmentation = Callable[[PRNGKey, Array], Array]

# How pixels outside an image are filled in -> the mode of jnp.pad.
BORDERS = {"reflect": "reflect", "edge": "edge", "black": "constant"}


@checked
def augment(
    augmentations: Sequence[tuple[str, Augmentation]],
    key: Callable[[str], PRNGKey],
    indices: Indices,
    x: Images,
) -> Float[Array, "batch rows columns channels"]:
    """Images (B, H, W, C) with each augmentation applied in turn.

    Args:
      augmentations: (name of the random stream, augmentation) pairs.
      key: a stream's name -> its key at this step.
      indices: (B,) places of the examples in the global batch: an image's changes depend on its
        place, not on the device that holds it.
      x: images in [-1, 1].

    Raises:
      ValueError: an augmentation does not take these images, or changes their shape.
    """
    for name, change in augmentations:
        keys = rng.per_example(key(name), indices, lambda k: k)
        changed = jax.vmap(change)(keys, x)
        if changed.shape != x.shape and name != stream_of("window"):
            raise ValueError(
                f"the augmentation {name!r} made {changed.shape} of {x.shape}: expected the same "
                "shape"
            )
        x = changed
    return x


@checked
def flip(key: PRNGKey, image: Image) -> Image:
    """The image, mirrored left to right with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


@checked
def rotate90(key: PRNGKey, image: Image) -> Image:
    """The image, turned by 0, 90, 180 or 270 degrees with probability 1/4 each.

    Raises:
      ValueError: an image that is not square.
    """
    height, width, _ = image.shape
    if height != width:
        raise ValueError(f"rotate90 needs square images, not {height}x{width}: leave it out")
    turns = [jnp.rot90(image, k) for k in range(4)]
    return jnp.stack(turns)[jax.random.randint(key, (), 0, 4)]


@checked
def crop(key: PRNGKey, image: Image, *, padding: int = 4, border: str = "reflect") -> Image:
    """A random crop of the image's own size, of the image padded on all sides.

    It shifts the image by up to `padding` whole pixels up or down and left or right, uniformly.

    Args:
      key: what is drawn.
      image: in [-1, 1].
      padding: pixels on each side, >= 1 and below both sides of the image.
      border: what is outside the image: "reflect", "edge" (the outermost pixel) or "black".

    Raises:
      ValueError: a padding out of range, or an unknown border.
    """
    return _shifted(key, image, (padding, padding), border, what=f"crop(padding={padding!r})")


@checked
def window(key: PRNGKey, image: Image, *, size: int = 64) -> Float[Array, "rows columns channels"]:
    """A random window of size x size pixels of the image, which is trained on in its place.

    For networks that take images of any size, such as those of super-resolution: Imagen's
    256x256 -> 1024x1024 model (Saharia et al. 2022) is trained on windows of 256x256. Held-out
    losses and samples are of whole images.

    Args:
      key: what is drawn.
      image: in [-1, 1].
      size: at most the height and the width.

    Raises:
      ValueError: a size out of range.
    """
    height, width, channels = image.shape
    if not 1 <= size <= min(height, width):
        raise ValueError(
            f"window(size={size!r}) of images of {height}x{width}: expected a size in "
            f"[1, {min(height, width)}]"
        )
    most = jnp.array([height - size + 1, width - size + 1])
    down, right = jax.random.randint(key, (2,), 0, most)
    return jax.lax.dynamic_slice(image, (down, right, 0), (size, size, channels))


@checked
def translate(
    key: PRNGKey, image: Image, *, fraction: float = 0.125, border: str = "reflect"
) -> Image:
    """The image, shifted by up to a share of its height and of its width, in whole pixels.

    Args:
      key: what is drawn.
      image: in [-1, 1].
      fraction: the largest shift over the side, in (0, 1), rounded to whole pixels.
      border: as for `crop`.

    Raises:
      ValueError: a fraction that is no pixel or the whole image, or an unknown border.
    """
    height, width, _ = image.shape
    reach = (round(fraction * height), round(fraction * width))
    return _shifted(key, image, reach, border, what=f"translate(fraction={fraction!r})")


@checked
def colour(
    key: PRNGKey,
    image: Image,
    *,
    brightness: float = 0.1,
    contrast: float = 0.1,
    saturation: float = 0.1,
) -> Image:
    """The image with other brightness, contrast and saturation, clipped to [-1, 1].

    Args:
      key: what is drawn.
      image: in [-1, 1]; saturation changes nothing of a grey one.
      brightness: b >= 0; U(-b, b) is added to all pixels.
      contrast: c in [0, 1); distances from the image's mean are scaled by U(1 - c, 1 + c).
      saturation: s in [0, 1]; distances from a pixel's mean over channels by U(1 - s, 1 + s).

    Raises:
      ValueError: a value out of range.
    """
    if brightness < 0 or not 0 <= contrast < 1 or not 0 <= saturation <= 1:
        raise ValueError(
            f"colour(brightness={brightness!r}, contrast={contrast!r}, saturation={saturation!r}): "
            "expected brightness >= 0, contrast in [0, 1) and saturation in [0, 1]"
        )
    added, spread, tint = jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
    mean = image.mean()
    image = mean + (1 + contrast * spread) * (image - mean)
    grey = image.mean(axis=-1, keepdims=True)
    image = grey + (1 + saturation * tint) * (image - grey)
    return jnp.clip(image + brightness * added, -1.0, 1.0)


def _shifted(
    key: PRNGKey, image: Image, reach: tuple[int, int], border: str, *, what: str
) -> Image:
    height, width, _ = image.shape
    if not (1 <= reach[0] < height and 1 <= reach[1] < width):
        raise ValueError(
            f"{what} shifts images of {height}x{width} by up to {reach[0]} and {reach[1]} pixels: "
            "expected at least 1 and less than the side"
        )
    if border not in BORDERS:
        raise ValueError(f"border must be one of {', '.join(BORDERS)}, not {border!r}")
    options: dict[str, Any] = {"constant_values": -1.0} if border == "black" else {}
    pads = ((reach[0], reach[0]), (reach[1], reach[1]), (0, 0))
    padded = jnp.pad(image, pads, mode=BORDERS[border], **options)
    most = jnp.array([2 * reach[0] + 1, 2 * reach[1] + 1])
    down, right = jax.random.randint(key, (2,), 0, most)
    return jax.lax.dynamic_slice(padded, (down, right, 0), image.shape)


# By name; `augment` takes any function (key, image) -> image.
AUGMENTATIONS: dict[str, Callable[..., Array]] = {
    "flip": flip,
    "rotate90": rotate90,
    "crop": crop,
    "window": window,
    "translate": translate,
    "colour": colour,
}


def stream_of(name: str) -> str:
    """The name of an augmentation's random stream.

    >>> stream_of("flip"), stream_of("crop")
    ('flip', 'augment_crop')
    """
    return name if name == "flip" else f"augment_{name}"  # flip is older than the others
