"""Sampling trajectories, as one sheet and as the frames of an animation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.figures.image_grids import image_grid, to_uint8


def denoising_strip(
    trajectory: npt.ArrayLike, *, pictures: int = 10, padding: int = 2, scale: int = 1
) -> npt.NDArray[np.uint8]:
    """One row for each sample, from pure noise at the left to the sample at the right.

    Args:
      trajectory: floats (K+1, B, H, W, C), [0] = x_T and [K] = x_0, images in [-1, 1] (noise
        beyond that is clipped).
      pictures: columns, 2 or more, evenly spread over the K+1 states with both ends shown;
        no more than there are states.
      padding: white pixels around and between the pictures.
      scale: nearest-neighbour enlargement.

    Returns:
      uint8 (H', W', C), laid out as by `image_grid`.

    Raises:
      UserError: a trajectory of another shape, fewer than 2 pictures, or NaN in a drawn state.
    """
    states = _evenly_spread(trajectory, pictures)
    times, samples = states.shape[:2]
    by_sample = states.swapaxes(0, 1).reshape(samples * times, *states.shape[2:])
    return image_grid(to_uint8(by_sample), columns=times, padding=padding, scale=scale)


def denoising_frames(
    trajectory: npt.ArrayLike,
    *,
    pictures: int = 40,
    columns: int | None = None,
    padding: int = 2,
    scale: int = 1,
) -> list[npt.NDArray[np.uint8]]:
    """The batch at each of several times, noise first: frames for `save_gif`.

    Args:
      trajectory: floats (K+1, B, H, W, C), [0] = x_T and [K] = x_0, as for `denoising_strip`.
      pictures: frames, 2 or more, evenly spread over the K+1 states with both ends shown;
        no more than there are states.
      columns: images in a row of each frame; None makes the frame about square.
      padding: white pixels around and between the images.
      scale: nearest-neighbour enlargement.

    Returns:
      Frames of one shape, uint8 (H', W', C), laid out as by `image_grid`.

    Raises:
      UserError: a trajectory of another shape, fewer than 2 pictures, or NaN in a drawn state.
    """
    return [
        image_grid(to_uint8(state), columns=columns, padding=padding, scale=scale)
        for state in _evenly_spread(trajectory, pictures)
    ]


def _evenly_spread(trajectory: npt.ArrayLike, pictures: int) -> npt.NDArray[np.generic]:
    states = arguments.array("trajectory", trajectory, expected="floats (K+1, B, H, W, C)")
    if states.ndim != 5 or states.size == 0:
        raise UserError(
            f"got a trajectory of shape {states.shape}; expected (K+1, B, H, W, C), none of them "
            "0; ask the sampler to keep its trajectory"
        )
    if states.shape[-1] not in (1, 3):
        raise UserError(
            f"got a trajectory of shape {states.shape}; expected images of 1 or 3 channels; "
            "array_strip and array_frames draw others"
        )
    pictures = arguments.whole("pictures", pictures)
    if pictures < 2:
        raise UserError(f"got pictures={pictures}; expected 2 or more, to show both ends; raise it")
    last = len(states) - 1
    return states[np.rint(np.linspace(0, last, min(pictures, last + 1))).astype(int)]
