"""Garments by class in 8, 4, 2 and 1 steps, by progressive distillation (MIT licence).

    python -m diffjax.main --config=experiments/fashion_mnist_progressive.py:quick    two CPU cores
    python -m diffjax.main --config=experiments/fashion_mnist_progressive.py:quick --mode=evaluate \
        --config.sample.checkpoint=2400 --config.sample.steps=4

after fashion_mnist_conditional.py:quick; both without `:quick` for one GPU. quick: 8 minutes on 2
cores of an AMD EPYC with AVX-512 (2026-11-29), CFD 1.13 in one step and 0.534 in four, see
RESULTS.md. The default has not been trained yet.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config(variant: str = "") -> ConfigDict:
    """The distillation of the default model, or of `quick`."""
    if variant not in ("", "quick"):
        raise ValueError(f"fashion_mnist_progressive.py has the variant 'quick', not {variant!r}")
    config = defaults.diffusion()
    config.data.name = "fashion_mnist"
    config.diffusion.update(
        objective="progressive(steps=16, stages=4)", weighting="truncated_snr",
        teacher_guidance="classifier_free(scale=1.5)", condition_dropout=0.15,
    )  # fmt: skip
    config.train.update(
        init_from=f"runs/fashion_mnist_conditional{variant and '-quick'}", steps=16_000,
        learning_rate=2e-4, schedule="cosine_cycles(cycles=4)", warmup_steps=0,
        checkpoint_every=2000, keep_every=4000, sample_every=4000,
    )  # fmt: skip
    config.sample.update(sampler="ddim", steps=1)
    if variant == "quick":
        config.model.update(channels=32, multipliers=(1, 4), blocks=1, attention_resolutions=())
        config.model.update(dropout=0.0, patch=2)
        config.diffusion.parametrisation = "x0"
        config.train.update(steps=4800, batch_size=32, learning_rate=5e-4, ema_decay=0.999)
        config.train.update(log_every=50, checkpoint_every=600, keep_every=1200, sample_every=1200)
        config.evaluate.num_samples = 2000
    return config
