"""GAN, PixelCNN++ and diffusion on Fashion-MNIST at an equal cost of training: a table and a page.

    python -m benchmarks.comparison --workdir=runs/comparison --out=docs

trains each model of `models.MODELS` for each seed through `python -m diffjax.main`, measures its
samples and writes `comparison.md`, `comparison.png` and `neighbours.png`. The cost of a training is
its FLOPs, counted by XLA for one step (`--mode=plan`) times the number of steps, so it depends
neither on the machine nor on what else runs there; a latent model pays for its first stage too.

What is finished is read from the workdir: the same command goes on where it was stopped.
"""
