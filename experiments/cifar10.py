"""CIFAR-10, 32x32 colour, ten classes (Krizhevsky 2009), with DDPM's U-Net of 35.7 M parameters.

    python -m diffjax.main --config=experiments/cifar10.py

reads the copy that tensorflow_datasets has prepared; without one,

    python -m diffjax.main --config=experiments/cifar10.py --config.data.dir=<folder>

reads a folder of images with one sub-folder per class, under train/ and test/ if these exist.
Ho et al. 2020 train 800,000 steps of 128 images; this config has not been trained yet.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config() -> ConfigDict:
    """Appendix B of Ho et al. 2020, with v-prediction on a cosine schedule."""
    config = defaults.diffusion()
    config.data.update(name="tfds:cifar10", flip=True)
    config.model.update(
        channels=128, multipliers=(1, 2, 2, 2), attention_resolutions=(16,), head_channels=256,
        scale_shift=False, class_conditional=False,
    )  # fmt: skip
    config.diffusion.condition_dropout = 0.0
    config.train.update(
        steps=800_000, batch_size=128, optimizer="adam", learning_rate=2e-4, schedule="constant",
        warmup_steps=5000, ema_decay=0.9999, eval_every=5000, checkpoint_every=5000,
        sample_every=20_000,
    )  # fmt: skip
    config.sample.steps = 50
    return config
