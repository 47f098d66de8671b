"""Fashion-MNIST by class with a transformer (Xiao et al. 2017; MIT licence).

    python -m diffjax.main --config=experiments/fashion_mnist_dit.py              one GPU
    python -m diffjax.main --config=experiments/fashion_mnist_dit.py:quick        two CPU cores
    python -m diffjax.main --config=experiments/fashion_mnist_dit.py:jit          JiT, one GPU
    python -m diffjax.main --config=experiments/fashion_mnist_dit.py:jit-quick    two CPU cores

LightningDiT (Yao et al. 2025) on flow matching; JiT (Li & He 2025) predicts x_0 under the loss of
the velocity, with tokens of the class among those of the image. None has been trained yet.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config(variant: str = "") -> ConfigDict:
    """The default model or JiT, for a GPU or (`quick`, `jit-quick`) a small one on 7x7 tokens."""
    if variant not in ("", "quick", "jit", "jit-quick"):
        raise ValueError(f"the variants are 'quick', 'jit' and 'jit-quick', not {variant!r}")
    config = defaults.diffusion()
    config.data.name, config.model.name = "fashion_mnist", "dit"
    config.diffusion.update(schedule="rectified_flow", condition_dropout=0.15)
    config.diffusion.update(parametrisation="velocity", time_sampling="logit_normal")
    config.sample.update(sampler="heun", steps=25)
    # Guidance reduces variety at high noise and gains nothing at low noise.
    config.sample.guidance = "classifier_free(scale=1.5, interval=(0.1, 2.0))"
    if variant.startswith("jit"):
        config.model.update(class_tokens=8, class_tokens_from=3)
        config.diffusion.update(parametrisation="x0", weighting="flow_velocity(floor=0.05)")
    if variant.endswith("quick"):
        config.model.update(width=192, depth=8, patch=4, unroll=True)
        config.train.update(
            steps=4000, batch_size=32, learning_rate=1e-3, warmup_steps=100, ema_decay=0.998,
            log_every=50, eval_every=1000, checkpoint_every=1000, sample_every=1000,
        )  # fmt: skip
        config.evaluate.num_samples = 2000
    return config
