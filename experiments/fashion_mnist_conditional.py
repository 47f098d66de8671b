"""Fashion-MNIST by class, for classifier-free guidance (Xiao et al. 2017; MIT licence).

    python -m diffjax.main --config=experiments/fashion_mnist_conditional.py          one GPU
    python -m diffjax.main --config=experiments/fashion_mnist_conditional.py:quick    two CPU cores

quick: 24 minutes on 2 cores of an AMD EPYC with AVX-512 and without a GPU, shared with other jobs
(2026-11-24); CFD 0.270 for 2,000 samples (2,000 test images: 0.21), 0.781 without guidance. See
RESULTS.md. The default has not been trained yet.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config(variant: str = "") -> ConfigDict:
    """The default model, or `quick`: a small one, mostly on 14x14 and 7x7 maps."""
    if variant not in ("", "quick"):
        raise ValueError(f"fashion_mnist_conditional.py has the variant 'quick', not {variant!r}")
    config = defaults.diffusion()
    config.data.name = "fashion_mnist"
    config.diffusion.condition_dropout = 0.15
    # Guidance reduces variety at high noise and gains nothing at low noise.
    config.sample.guidance = "classifier_free(scale=1.5, interval=(0.1, 2.0))"
    if variant == "quick":
        config.model.update(channels=32, multipliers=(1, 4), blocks=1, attention_resolutions=())
        config.model.update(dropout=0.0, patch=2)
        config.diffusion.update(parametrisation="x0", weighting="min_snr(gamma=5)")
        config.train.update(
            steps=12_000, batch_size=32, learning_rate=1.5e-3, warmup_steps=100, ema_decay=0.999,
            log_every=50, eval_every=1200, checkpoint_every=1200, sample_every=6000,
        )  # fmt: skip
        config.sample.update(sampler="ddim(eta=1.0)", steps=50)
        config.evaluate.num_samples = 2000
    return config
