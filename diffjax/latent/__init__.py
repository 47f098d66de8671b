"""The space that x_0 lives in: pixels, or the latents of a first stage."""
