"""What SDXL is given of an image's size and crop, for each image of a set.

Podell et al. 2023, "SDXL", section 2.2: height and width of the original, top and left of the crop,
height and width of the target.
"""

import numpy as np

from diffjax import data
from diffjax.latent.embedded import with_arrays


def of_crop(sizes: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    """Sizes and crops of images of which the largest centred part of the target's proportions is
    resized to it.

    The crop is measured in pixels of the resized image: resizing first and cropping then are the
    same.

    Args:
      sizes: (N, 2), height and width of the originals.
      target: height and width.

    Returns:
      float32 (N, 6).

    >>> of_crop(np.array([[512, 1024]]), (256, 256)).tolist()
    [[512.0, 1024.0, 0.0, 128.0, 256.0, 256.0]]
    """
    originals, wanted = np.asarray(sizes, np.float64), np.asarray(target, np.float64)
    scale = (wanted / originals).max(axis=1, keepdims=True)
    corner = np.floor((originals * scale - wanted) / 2 + 1e-6)
    targets = np.broadcast_to(wanted, originals.shape)
    return np.concatenate([originals, corner, targets], axis=1).astype(np.float32)


def with_sizes(source: data.ImageSource, images: data.ImageSource) -> data.ImageSource:
    """A set whose examples also have "sizes", float32 (6,).

    Args:
      source: the set, such as the latents of `images`.
      images: the images, of files or, if they have no `file_sizes`, of their own size.
    """
    height, width = images.image_shape[:2]
    of_files = getattr(images, "file_sizes", None)
    sizes = np.tile([[height, width]], (len(images), 1)) if of_files is None else of_files()
    return with_arrays(source, "sizes", of_crop(sizes, (height, width)))
