"""A consistency model of garments by class, tuned from a diffusion model (MIT licence).

    python -m diffjax.main --config=experiments/fashion_mnist_conditional.py:quick
    python -m diffjax.main --config=experiments/fashion_mnist_consistency.py:quick    two CPU cores

and both without `:quick` for one GPU. The teacher is the same model with guidance, which the
student has learned then. quick: CFD 2.17 in one step, 0.549 in four. The default is not trained.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config(variant: str = "") -> ConfigDict:
    """The tuning of the default model, or of `quick`."""
    if variant not in ("", "quick"):
        raise ValueError(f"fashion_mnist_consistency.py has the variant 'quick', not {variant!r}")
    config = defaults.diffusion()
    config.data.name = "fashion_mnist"
    run = f"runs/fashion_mnist_conditional{variant and '-quick'}"
    config.diffusion.update(
        objective="consistency(distance='pseudo_huber(c=0.015)')", teacher=run,
        teacher_guidance="classifier_free(scale=1.5)", condition_dropout=0.15,
        time_sampling="log_normal(mean=-1.1, std=2.0)",
    )  # fmt: skip
    config.train.update(init_from=run, steps=10_000, learning_rate=2e-4)
    config.sample.update(sampler="consistency", steps=2)
    if variant == "quick":
        config.model.update(channels=32, multipliers=(1, 4), blocks=1, attention_resolutions=())
        config.model.update(dropout=0.0, patch=2)
        # A network of x_0 has no skip connection that makes it the identity without noise.
        options = "distance='pseudo_huber(c=0.015)', stages=4, anchor=0.05"
        config.diffusion.update(parametrisation="x0", objective=f"consistency({options})")
        config.train.update(
            steps=3200, batch_size=32, learning_rate=5e-4, warmup_steps=100, ema_decay=0.999,
            log_every=50, eval_every=800, checkpoint_every=800, sample_every=800,
        )  # fmt: skip
        config.evaluate.num_samples = 2000
    return config
