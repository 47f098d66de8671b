"""Fashion-MNIST's first stage, 28x28x1 -> 7x7x4 (Xiao et al. 2017; MIT licence).

    python -m diffjax.main --config=experiments/fashion_mnist_autoencoder.py          one GPU
    python -m diffjax.main --config=experiments/fashion_mnist_autoencoder.py:tiny     two CPU cores

tiny: 192,000 images, about 11 minutes alone on 2 cores of an AMD EPYC with AVX-512 (2026-11-25);
PSNR of 10,000 test images 28.2 dB. See RESULTS.md. The default has not been trained yet.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config(variant: str = "") -> ConfigDict:
    """The default model, or `tiny`: a small one on 14x14 and 7x7 maps."""
    if variant not in ("", "tiny"):
        raise ValueError(f"fashion_mnist_autoencoder.py has the variant 'tiny', not {variant!r}")
    # The default KL weight is above LDM's 1e-6: smoother latents are easier to model and cost
    # little sharpness here.
    config = defaults.autoencoder()
    config.data.name = "fashion_mnist"
    if variant == "tiny":
        config.autoencoder.update(channels=48, multipliers=(1, 2), blocks=1, patch=2)
        config.loss.update(adversarial="patch(channels=32, layers=2)", adversarial_start=2000)
        config.train.update(
            steps=6000, batch_size=32, learning_rate=1e-3, warmup_steps=100, ema_decay=0.998,
            log_every=50,
        )  # fmt: skip
    return config
