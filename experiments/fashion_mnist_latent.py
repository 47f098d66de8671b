"""Latent diffusion of Fashion-MNIST by class, on 7x7x4 (Xiao et al. 2017; MIT licence).

    python -m diffjax.main --config=experiments/fashion_mnist_autoencoder.py:tiny
    python -m diffjax.main --config=experiments/fashion_mnist_latent.py:tiny

or both without `:tiny` for one GPU. The first stage is read from the first command's workdir.

tiny: 288,000 images, about 7 minutes alone on 2 cores of an AMD EPYC with AVX-512 (2026-11-25); CFD
0.375 for 1,000 samples in 25 steps of DDIM with eta = 1. See RESULTS.md. The default has not been
trained yet.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config(variant: str = "") -> ConfigDict:
    """The default model, or `tiny` for two CPU cores."""
    if variant not in ("", "tiny"):
        raise ValueError(f"fashion_mnist_latent.py has the variant 'tiny', not {variant!r}")
    config = defaults.diffusion()
    config.data.name = "fashion_mnist"
    config.first_stage.workdir = f"runs/fashion_mnist_autoencoder{variant and '-tiny'}"
    config.model.update(channels=192, multipliers=(1, 2), blocks=3, attention_resolutions=(7, 4))
    config.diffusion.condition_dropout = 0.15
    config.sample.guidance = "classifier_free(scale=1.5, interval=(0.1, 2.0))"
    config.sample.threshold = "none"  # latents have no bounds to clip to
    if variant == "tiny":
        config.model.update(channels=64, blocks=1, attention_resolutions=(), dropout=0.0)
        config.train.update(
            steps=4500, batch_size=64, learning_rate=1.5e-3, warmup_steps=100, ema_decay=0.998,
            log_every=50, sample_every=2000,
        )  # fmt: skip
        config.evaluate.num_samples = 2000
    return config
