"""Fashion-MNIST by class with EDM2's U-Net and training (Karras et al. 2024; data: MIT licence).

    python -m diffjax.main --config=experiments/fashion_mnist_edm2.py          one GPU
    python -m diffjax.main --config=experiments/fashion_mnist_edm2.py:quick    two CPU cores

Weights of a fixed norm, a learned weighting, the inverse square root of the step as the learning
rate, and averages whose length is chosen afterwards, by --mode=ema. Not trained yet; quick is sized
for about 25 minutes on 2 cores with the accelerator, at 0.12 s a step.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults

# The root mean square of the pixels in [-1, 1], which are not centred: with it the network's input
# and target are of unit variance.
SIGMA_DATA = 0.8


def get_config(variant: str = "") -> ConfigDict:
    """The default model, or `quick`: a small one, mostly on 14x14 and 7x7 maps."""
    if variant not in ("", "quick"):
        raise ValueError(f"fashion_mnist_edm2.py has the variant 'quick', not {variant!r}")
    config = defaults.diffusion()
    config.model.name = "edm2"
    config.data.name = "fashion_mnist"
    config.diffusion.update(
        schedule="karras", parametrisation=f"edm(sigma_data={SIGMA_DATA})",
        weighting=f"edm(sigma_data={SIGMA_DATA})", learned_weighting=True,
        time_sampling="log_normal(mean=-0.4, std=1.0)", condition_dropout=0.15,
    )  # fmt: skip
    config.train.update(
        optimizer="adam(b2=0.99)", learning_rate=1e-2, schedule="inverse_sqrt(reference=4000)",
        warmup_steps=1000, grad_clip=0.0, ema="power(sigma_rel=0.1)", ema_snapshots=(0.05, 0.1),
    )  # fmt: skip
    config.sample.update(
        sampler="heun", grid="karras", steps=20,
        guidance="classifier_free(scale=1.5, interval=(0.1, 2.0))",
    )  # fmt: skip
    if variant == "quick":
        config.model.update(
            channels=32, multipliers=(1, 3), blocks=1, attention_resolutions=(), head_channels=32,
            patch=2,
        )  # fmt: skip
        config.train.update(
            steps=10_000, batch_size=32, schedule="inverse_sqrt(reference=1500)", warmup_steps=300,
            log_every=50, eval_every=1000, checkpoint_every=1000, sample_every=5000,
        )  # fmt: skip
        config.evaluate.num_samples = 2000
    return config
