"""Fashion-MNIST by class with EDM2's U-Net and training (Karras et al. 2024; data: MIT licence).

    python -m diffjax.main --config=experiments/fashion_mnist_edm2.py          one GPU
    python -m diffjax.main --config=experiments/fashion_mnist_edm2.py:quick    two CPU cores

Weights of a fixed norm, a learned weighting, power-function averages for --mode=ema. Not trained
yet; quick is sized for about 25 minutes on 2 cores, at an estimated 0.12 s a step.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config(variant: str = "") -> ConfigDict:
    """The default model, or `quick`: a small one, mostly on 14x14 and 7x7 maps."""
    if variant not in ("", "quick"):
        raise ValueError(f"fashion_mnist_edm2.py has the variant 'quick', not {variant!r}")
    config = defaults.diffusion()
    config.data.name, config.model.name = "fashion_mnist", "edm2"
    # About the pixels' root mean square, 0.83, so that the network's input has unit variance.
    config.diffusion.update(
        schedule="karras", parametrisation="edm(sigma_data=0.8)", weighting="edm(sigma_data=0.8)",
        time_sampling="log_normal(mean=-0.4, std=1.0)", learned_weighting=True,
    )  # fmt: skip
    config.train.update(
        optimizer="adam(b2=0.99)", learning_rate=1e-2, schedule="inverse_sqrt(reference=4000)",
        warmup_steps=1000, grad_clip=0.0, ema="power(sigma_rel=0.1)", ema_snapshots=(0.05, 0.1),
    )  # fmt: skip
    config.sample.update(sampler="heun", grid="karras", steps=20)
    config.sample.guidance = "classifier_free(scale=1.5, interval=(0.1, 2.0))"
    if variant == "quick":
        config.model.update(channels=32, multipliers=(1, 3), blocks=1, attention_resolutions=())
        config.model.update(head_channels=32, patch=2)
        config.train.update(
            steps=10_000, batch_size=32, schedule="inverse_sqrt(reference=1500)", warmup_steps=300,
            log_every=50, eval_every=1000, checkpoint_every=1000, sample_every=5000,
        )  # fmt: skip
        config.evaluate.num_samples = 2000
    return config
