"""Garments by class in 8, 4, 2 and 1 steps, by progressive distillation (MIT licence).

    python -m diffjax.main --config=experiments/fashion_mnist_conditional.py:quick
    python -m diffjax.main --config=experiments/fashion_mnist_progressive.py:quick    two CPU cores
    python -m diffjax.main --config=experiments/fashion_mnist_progressive.py:quick --mode=evaluate \
        --config.sample.checkpoint=4800 --config.sample.steps=4

and without `:quick` for one GPU. Of four stages, each halves the steps; the model of each is kept.
Not trained yet; quick is sized for half an hour on 2 CPU cores: 9,600 steps of 32 images, each
about 1.8 times as long as of the diffusion model.
"""

import fashion_mnist_conditional
from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """The distillation of the default model, or of `quick`."""
    if variant not in ("", "quick"):
        raise ValueError(f"fashion_mnist_progressive.py has the variant 'quick', not {variant!r}")
    config = fashion_mnist_conditional.get_config(variant)
    config.diffusion.update(
        objective="progressive(steps=16, stages=4)", weighting="truncated_snr",
        teacher_guidance="classifier_free(scale=1.5)",
    )  # fmt: skip
    steps = 9600 if variant == "quick" else 16_000
    config.train.update(
        init_from=f"runs/fashion_mnist_conditional{variant and '-quick'}", steps=steps,
        learning_rate=5e-4 if variant == "quick" else 2e-4, schedule="cosine_cycles(cycles=4)",
        warmup_steps=0, checkpoint_every=steps // 8, keep_every=steps // 4,
        eval_every=steps // 8, sample_every=steps // 4,
    )  # fmt: skip
    config.sample.update(sampler="ddim", steps=1, guidance="none")
    return config
