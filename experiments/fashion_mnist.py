"""Fashion-MNIST, 28x28 grey, ten classes of garments (Xiao et al. 2017; MIT licence).

    python -m diffjax.main --config=experiments/fashion_mnist.py          one GPU
    python -m diffjax.main --config=experiments/fashion_mnist.py:quick    two CPU cores

quick: 5 minutes on 2 cores of an AMD EPYC with AVX-512 and without a GPU (2026-11-29), 614 images/s
with the accelerator; CFD 0.401 for 2,000 samples (2,000 test images: 0.21). See RESULTS.md.
The default has not been trained yet.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config(variant: str = "") -> ConfigDict:
    """The default model, or `quick`: a small one, mostly on 14x14 and 7x7 maps."""
    if variant not in ("", "quick"):
        raise ValueError(f"fashion_mnist.py has the variant 'quick', not {variant!r}")
    config = defaults.diffusion()
    config.data.name = "fashion_mnist"
    if variant == "quick":
        config.model.update(channels=32, multipliers=(1, 4), blocks=1, attention_resolutions=())
        config.model.update(dropout=0.0, patch=2)
        # With few channels per patch, clean pixels are easier to predict than v or noise.
        config.diffusion.update(parametrisation="x0", weighting="min_snr(gamma=5)")
        config.train.update(
            steps=5000, batch_size=32, learning_rate=1.5e-3, warmup_steps=100, ema_decay=0.998,
            log_every=50, eval_every=1000, checkpoint_every=1000, sample_every=1000,
        )  # fmt: skip
        # Stochastic sampling corrects errors of a small network; DPM-Solver++ leaves more of them.
        config.sample.update(sampler="ddim(eta=1.0)", steps=50)
        # Guidance reduces variety at high noise and gains nothing at low noise.
        config.sample.guidance = "classifier_free(scale=1.5, interval=(0.1, 2.0))"
        config.evaluate.num_samples = 2000  # minutes instead of a quarter of an hour
    return config
