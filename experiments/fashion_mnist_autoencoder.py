"""Fashion-MNIST's first stage, 28x28x1 -> 7x7x4 (Xiao et al. 2017; MIT licence).

    python -m diffjax.main --config=experiments/fashion_mnist_autoencoder.py          one GPU
    python -m diffjax.main --config=experiments/fashion_mnist_autoencoder.py:tiny     two CPU cores

tiny: 192,000 images, about 11 minutes alone on 2 cores of an AMD EPYC with AVX-512 (2026-11-25);
PSNR of 10,000 test images 28.2 dB. See RESULTS.md. The default has not been trained yet.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """The default model, or `tiny`: small, and at work on 14x14 and 7x7 maps."""
    if variant not in ("", "tiny"):
        raise ValueError(f"fashion_mnist_autoencoder.py has the variant 'tiny', not {variant!r}")
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.name = "fashion_mnist"
    config.data.dir = ""
    config.data.image_size = 0
    config.data.channels = 0
    config.data.flip = False
    config.data.memory_limit_mb = 1024

    config.autoencoder = ConfigDict()
    config.autoencoder.latent_channels = 4
    config.autoencoder.channels = 64
    config.autoencoder.multipliers = (1, 2, 4)
    config.autoencoder.blocks = 2
    config.autoencoder.patch = 1
    # More than LDM's 1e-6: smoother latents are easier to model, and cost little sharpness here.
    config.autoencoder.regulariser = "kl(weight=1e-3)"
    config.autoencoder.dtype = "bfloat16"
    config.autoencoder.kernels = "auto"

    config.loss = ConfigDict()
    config.loss.reconstruction = "l1"
    config.loss.perceptual = "classifier"
    config.loss.perceptual_weight = 0.1
    config.loss.adversarial = "patch(channels=64, layers=2)"
    config.loss.adversarial_weight = 0.2
    config.loss.adversarial_start = 4000

    config.train = ConfigDict()
    config.train.steps = 20_000
    config.train.batch_size = 256
    config.train.optimizer = "adam(b1=0.5, b2=0.9)"
    config.train.learning_rate = 3e-4
    config.train.schedule = "cosine"
    config.train.warmup_steps = 500
    config.train.grad_clip = 1.0
    config.train.on_not_finite = "stop"
    config.train.ema_decay = 0.999
    config.train.log_every = 100
    config.train.eval_every = 1000
    config.train.checkpoint_every = 1000
    config.train.sample_every = 2000

    config.parallel = ConfigDict()
    config.parallel.strategy = "pmap"
    config.parallel.fsdp = 0
    config.parallel.min_size = 65536
    config.parallel.overrides = ()
    config.parallel.devices = 0
    config.parallel.compile = True

    config.sample = ConfigDict()
    config.sample.count = 40
    config.sample.batch_size = 250
    config.sample.checkpoint = "latest"

    config.evaluate = ConfigDict()
    config.evaluate.num_samples = 10_000

    if variant == "tiny":
        config.autoencoder.channels = 48
        config.autoencoder.multipliers = (1, 2)
        config.autoencoder.blocks = 1
        config.autoencoder.patch = 2
        config.loss.adversarial = "patch(channels=32, layers=2)"
        config.loss.adversarial_start = 2000
        config.train.steps = 6000
        config.train.batch_size = 32
        config.train.learning_rate = 1e-3
        config.train.warmup_steps = 100
        config.train.ema_decay = 0.998
        config.train.log_every = 50
        config.train.eval_every = 1000
        config.train.checkpoint_every = 1000
        config.train.sample_every = 2000
    return config
