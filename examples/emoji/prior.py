"""Text to an emoji's embedding: a diffusion prior (Twemoji, CC BY 4.0; Noto Emoji, Apache-2.0).

    python examples/emoji/fetch.py
    python -m diffjax.main --config=examples/emoji/prior.py:tiny

and without `:tiny` for one GPU. `make pretrained` brings MiniLM-L6 and EfficientNet-Lite0, whose
1280 features are whitened to 128. Its decoder is unclip.py. RESULTS.md has the ranks and times of
tiny; the default has not been trained yet.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config(variant: str = "") -> ConfigDict:
    """The default model, or `tiny` for two CPU cores."""
    if variant not in ("", "tiny"):
        raise ValueError(f"prior.py has the variant 'tiny', not {variant!r}")
    config = defaults.diffusion()
    config.data.update(name="emoji_set:pictures", image_size=64, channels=3)
    config.data.embedding = "efficientnet_lite0"
    config.condition.text = "minilm(length=24)"
    config.model.update(name="prior", width=512, layers=8, class_conditional=False)
    config.diffusion.parametrisation = "x0"
    config.train.update(steps=20_000, batch_size=128, learning_rate=3e-4, ema_decay=0.999)
    config.sample.update(guidance="classifier_free(scale=1.5)", count=24, batch_size=64, steps=20)
    config.sample.threshold = "none"  # embeddings have no bounds to clip to
    if variant == "tiny":
        config.model.update(width=192, layers=4, dtype="float32")
        config.train.update(steps=3000, batch_size=64, learning_rate=1e-3, warmup_steps=100)
        config.train.update(ema_decay=0.998, log_every=50, sample_every=2000)
    return config
