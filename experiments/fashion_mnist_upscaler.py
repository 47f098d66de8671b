"""Fashion-MNIST from 7x7 to 28x28 pixels: super-resolution that is trained (SR3, cascades).

    python -m diffjax.main --config=experiments/fashion_mnist_upscaler.py          one GPU
    python -m diffjax.main --config=experiments/fashion_mnist_upscaler.py:tiny     two CPU cores
    python -m diffjax.main --config=experiments/fashion_mnist_upscaler.py:tiny --mode=edit \\
        --config.edit.task=upscale --config.edit.images=small.png

tiny: 10 minutes on 2 cores of an AMD EPYC with AVX-512 (2026-11-29), see RESULTS.md. For a table of
it next to interpolation and to methods without training: `python -m benchmarks.super_resolution`.
The default has not been trained yet.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config(variant: str = "") -> ConfigDict:
    """The default model, or `tiny`: a small one, mostly on 14x14 and 7x7 maps."""
    if variant not in ("", "tiny"):
        raise ValueError(f"fashion_mnist_upscaler.py has the variant 'tiny', not {variant!r}")
    config = defaults.diffusion()
    config.data.name = "fashion_mnist"
    # "area" is the operator of the edit task super_resolution, which it is compared with.
    config.condition.map = "super_resolution(factor=4, resize='bicubic', downsample='area')"
    # Without attention at heights of 28-pixel images, it takes files of other sizes.
    config.model.update(class_conditional=False, attention_resolutions=())
    config.diffusion.condition_dropout = 0.0  # the low-resolution image is always there
    if variant == "tiny":
        config.model.update(channels=32, multipliers=(1, 4), blocks=1, dropout=0.0, patch=2)
        config.diffusion.update(parametrisation="x0", weighting="min_snr(gamma=5)")
        config.train.update(
            steps=7200, batch_size=32, learning_rate=1.5e-3, warmup_steps=100, ema_decay=0.998,
            log_every=50, eval_every=1200, checkpoint_every=1200, sample_every=3600,
        )  # fmt: skip
        config.sample.update(sampler="ddim(eta=1.0)", steps=50)
        config.evaluate.num_samples = 2000
    return config
