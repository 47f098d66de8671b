"""An emoji from its embedding, a prior's decoder on 16x16x4 latents (CC BY 4.0; Apache-2.0).

    python -m diffjax.main --config=examples/emoji/unclip.py:tiny
    python -m diffjax.main --config=examples/emoji/unclip.py:tiny --mode=sample \
        --config.sample.prior=runs/prior-tiny --config.sample.prompt="red apple, twitter style"

after autoencoder.py and prior.py, and without `:tiny` for one GPU. RESULTS.md has what tiny
reaches and its time; the default has not been trained yet.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config(variant: str = "") -> ConfigDict:
    """The default model, or `tiny` for two CPU cores."""
    if variant not in ("", "tiny"):
        raise ValueError(f"unclip.py has the variant 'tiny', not {variant!r}")
    config = defaults.diffusion()
    config.data.update(name="emoji_set:pictures", image_size=64, channels=3)
    config.first_stage.workdir = f"runs/autoencoder{variant and '-tiny'}"
    config.condition.update(embedding="efficientnet_lite0", text="minilm(length=24)")
    config.model.update(channels=160, multipliers=(1, 2, 3), attention_resolutions=(16, 8, 4))
    config.model.class_conditional = False
    # The caption is dropped for half of the examples, the embedding for a tenth, independently.
    config.diffusion.update(condition_dropout=0.5, embedding_dropout=0.1)
    config.train.batch_size = 128
    config.sample.update(guidance="classifier_free(scale=2.0)", count=24, batch_size=64)
    config.sample.threshold = "none"  # latents have no bounds to clip to
    config.evaluate.update(num_samples=500, features="efficientnet_lite0")
    if variant == "tiny":
        config.model.update(channels=64, multipliers=(1, 2), blocks=1, attention_resolutions=(4,))
        config.model.update(dropout=0.0, patch=2)
        config.train.update(steps=4800, batch_size=64, learning_rate=1.5e-3, warmup_steps=100)
        config.train.update(ema_decay=0.998, log_every=50, sample_every=1600)
    return config
