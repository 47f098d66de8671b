"""Pictures of samples and of training: grids, strips, animations and loss curves.

Needs only NumPy, Pillow and matplotlib, not JAX.
"""

from diffjax.figures.arrays import array_frames, array_sheet, array_strip, save_array_pictures
from diffjax.figures.bound_terms import plot_bound
from diffjax.figures.captions import captioned
from diffjax.figures.image_files import png_text, save_gif, save_png
from diffjax.figures.image_grids import image_grid, to_uint8
from diffjax.figures.loss_curve import plot_loss
from diffjax.figures.scale_curve import plot_scales
from diffjax.figures.trajectories import denoising_frames, denoising_strip

__all__ = [
    "array_frames",
    "array_sheet",
    "array_strip",
    "captioned",
    "denoising_frames",
    "denoising_strip",
    "image_grid",
    "plot_bound",
    "plot_loss",
    "plot_scales",
    "png_text",
    "save_array_pictures",
    "save_gif",
    "save_png",
    "to_uint8",
]
