"""Fashion-MNIST's likelihood in bits per dimension: 28x28, 8 bits (Xiao et al. 2017; MIT licence).

    python -m diffjax.main --config=experiments/fashion_mnist_likelihood.py
    python -m diffjax.main --config=experiments/fashion_mnist_likelihood.py --mode=evaluate

2.935 +- 0.009 bits/dim on all 10,000 test images by the continuous-time bound, after an hour on 2
cores of an AMD EPYC with AVX2 and without a GPU, shared with other jobs (2026-11-25); see
RESULTS.md.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config() -> ConfigDict:
    """The continuous-time bound, with a categorical output over a pixel's 256 levels."""
    config = defaults.diffusion()
    config.data.name = "fashion_mnist"
    config.model.update(
        channels=64, multipliers=(1, 1), attention_resolutions=(), dropout=0.0, patch=2,
        class_conditional=False, dtype="float32",
    )  # fmt: skip
    config.diffusion.update(
        objective="vdm(gamma='network')", parametrisation="categorical", condition_dropout=0.0,
        schedule="linear_log_snr(log_snr_min=-6.0, log_snr_max=13.3)",
    )  # fmt: skip
    config.train.update(
        steps=7500, batch_size=32, optimizer="adam(b2=0.99)", learning_rate=1e-3, warmup_steps=100,
        ema_decay=0.999, ema_snapshots=(0.05, 0.1), eval_every=500, checkpoint_every=500,
        sample_every=2000,
    )  # fmt: skip
    config.sample.update(
        sampler="ancestral", grid="linspace", steps=100, threshold="none", count=50, batch_size=50
    )
    config.evaluate.update(num_samples=2000, likelihood="vdm")
    return config
