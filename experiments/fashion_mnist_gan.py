"""A GAN on Fashion-MNIST, to compare diffusion with: 28x28 (Xiao et al. 2017; MIT).

    python -m diffjax.main --config=experiments/fashion_mnist_gan.py              one GPU
    python -m diffjax.main --config=experiments/fashion_mnist_gan.py:tiny         two CPU cores
    python -m diffjax.main --config=experiments/fashion_mnist_gan.py:hinge        the hinge loss
    python -m diffjax.main --config=experiments/fashion_mnist_gan.py:tiny-hinge

By default both networks are trained on R3GAN's loss (Huang et al. 2024). tiny: CFD 3.8 after 7,173
steps (benchmarks.comparison, one seed). The defaults have not been trained yet.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults

VARIANTS = ("", "tiny", "hinge", "tiny-hinge")


def get_config(variant: str = "") -> ConfigDict:
    """The default model, or `tiny`: fewer channels; or each of them with the hinge loss."""
    if variant not in VARIANTS:
        raise ValueError(f"fashion_mnist_gan.py has the variants {VARIANTS[1:]}, not {variant!r}")
    config = defaults.gan()
    config.data.name = "fashion_mnist"
    config.train.update(steps=60_000, batch_size=128)
    if "tiny" in variant:
        config.gan.update(channels=(16, 32, 64), loss="r3gan(gamma=1.0)")
        config.train.update(
            steps=2500, batch_size=32, learning_rate=5e-4, warmup_steps=100, ema_decay=0.995,
            log_every=50, sample_every=500,
        )  # fmt: skip
        config.sample.update(count=40, batch_size=40)
        config.evaluate.num_samples = 1000
    if "hinge" in variant:
        # Miyato et al. 2018: the spectral norm bounds the discriminator; two rates (Heusel et al.
        # 2017) instead of several of its steps for one of the generator.
        config.gan.update(loss="hinge", spectral_norm=True, discriminator_rate=2.0)
        config.train.optimizer = "adam(b1=0.5, b2=0.9)"
    return config
