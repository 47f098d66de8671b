"""Stable Diffusion 1.5 at its full size with random weights, next to diffusers.

    python -m benchmarks.stable_diffusion --folder=runs/sd15-random --rounds 3

The folder, 4.3 GB in float32, is written by diffusers where there is none. Measured are, each side
in a process of its own, an evaluation of the U-Net for latents of 64x64, two at once (all sides in
turn, so that noise hits all alike), seconds and peak memory of loading, and seconds to the first
image with an empty and a filled cache of compiled programs.
"""
