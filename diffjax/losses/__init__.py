"""Training losses and what they are made of: weightings, times, what is learned with a network."""

from diffjax.losses.denoising import diffusion_loss

__all__ = ["diffusion_loss"]
