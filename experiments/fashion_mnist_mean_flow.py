"""Fashion-MNIST by class in one evaluation, trained from nothing (MeanFlow; MIT licence).

    python -m diffjax.main --config=experiments/fashion_mnist_mean_flow.py          one GPU
    python -m diffjax.main --config=experiments/fashion_mnist_mean_flow.py:quick    two CPU cores

Guidance of scale 1.5 is trained in. quick: 8 minutes on 2 cores of an AMD EPYC with AVX-512
(2026-11-29), CFD 6.58 in one step and 0.706 in four, see RESULTS.md. The default has not been
trained yet.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config(variant: str = "") -> ConfigDict:
    """The default model, or `quick`: a small one, mostly on 14x14 and 7x7 maps."""
    if variant not in ("", "quick"):
        raise ValueError(f"fashion_mnist_mean_flow.py has the variant 'quick', not {variant!r}")
    config = defaults.diffusion()
    config.data.name = "fashion_mnist"
    config.diffusion.update(
        objective="mean_flow(scale=1.5)", schedule="rectified_flow",
        parametrisation="average_velocity", time_sampling="logit_normal(mean=-0.4, std=1.0)",
        condition_dropout=0.15,
    )  # fmt: skip
    config.sample.update(sampler="flow_map", steps=1, threshold="none")
    config.train.update(steps=20_000)
    if variant == "quick":
        config.model.update(channels=32, multipliers=(1, 4), blocks=1, attention_resolutions=())
        config.model.update(dropout=0.0, patch=2)
        # With few channels per patch, clean pixels are easier to predict than velocities.
        config.diffusion.parametrisation = "average_x0"
        config.train.update(
            steps=5000, batch_size=32, learning_rate=1.5e-3, warmup_steps=100, ema_decay=0.999,
            log_every=50, eval_every=1000, checkpoint_every=1000, sample_every=1000,
        )  # fmt: skip
        config.evaluate.num_samples = 2000
    return config
