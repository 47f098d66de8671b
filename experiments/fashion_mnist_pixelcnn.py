"""PixelCNN++ on Fashion-MNIST, to compare diffusion with: 28x28, 8 bits (Xiao et al. 2017; MIT).

    python -m diffjax.main --config=experiments/fashion_mnist_pixelcnn.py          one GPU
    python -m diffjax.main --config=experiments/fashion_mnist_pixelcnn.py:tiny     two CPU cores

With --mode=evaluate it prints the exact bits/dim of the test images, given their classes. Neither
variant has been trained yet.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config(variant: str = "") -> ConfigDict:
    """The default model, or `tiny`: fewer channels and blocks, on 14x14 and 28x28 maps."""
    if variant not in ("", "tiny"):
        raise ValueError(f"fashion_mnist_pixelcnn.py has the variant 'tiny', not {variant!r}")
    config = defaults.pixelcnn()
    config.data.name = "fashion_mnist"
    config.pixelcnn.update(channels=80)
    config.train.update(steps=60_000, batch_size=128)
    if variant == "tiny":
        config.pixelcnn.update(
            channels=24, blocks=1, levels=2, components=5, dropout=0.0, dtype="float32"
        )
        config.train.update(
            steps=3000, batch_size=16, learning_rate=2e-3, warmup_steps=100, ema_decay=0.998,
            log_every=50, sample_every=1500,
        )  # fmt: skip
        config.sample.update(count=40, batch_size=40)
        config.evaluate.num_samples = 1000
    return config
