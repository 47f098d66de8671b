"""CIFAR-10, 32x32 colour, ten classes (Krizhevsky 2009), with DDPM's U-Net of 35.7 M parameters.

    python -m diffjax.main --config=experiments/cifar10.py

reads tensorflow_datasets' copy, or with --config.data.dir=<folder> a folder of images with one
sub-folder per class, under train/ and test/ if these exist. The default is planned for half an hour
of an H100 at a quarter of its peak; `:paper` is as long as Ho et al. 2020. Both are untrained.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config(variant: str = "") -> ConfigDict:
    """Appendix B of Ho et al. 2020, with v-prediction on a cosine schedule."""
    if variant not in ("", "paper"):
        raise ValueError(f"cifar10.py has the variant 'paper', not {variant!r}")
    config = defaults.diffusion()
    config.data.update(name="tfds:cifar10", flip=True)
    config.model.update(
        channels=128, multipliers=(1, 2, 2, 2), attention_resolutions=(16,), head_channels=256,
        scale_shift=False, class_conditional=False,
    )  # fmt: skip
    config.diffusion.condition_dropout = 0.0
    config.sample.steps = 50
    config.train.update(
        steps=20_000, batch_size=512, optimizer="adam", learning_rate=4e-4, warmup_steps=1000,
        ema_decay=0.999, eval_every=2000, checkpoint_every=2000, sample_every=5000,
    )  # fmt: skip
    if variant == "paper":
        config.train.update(
            steps=800_000, batch_size=128, learning_rate=2e-4, schedule="constant",
            warmup_steps=5000, ema_decay=0.9999, eval_every=5000, checkpoint_every=5000,
            sample_every=20_000,
        )  # fmt: skip
    return config
