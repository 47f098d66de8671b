"""Stable Diffusion's folders, as diffusers writes them: networks, weights, text and schedule."""
