"""Stable Diffusion 1, 2 or XL, from a folder that diffusers wrote; CreativeML OpenRAIL-M weights.

    python -m diffjax.main --config=experiments/stable_diffusion.py --config.model.folder=PATH \
        --mode=sample --config.sample.prompt="a red apple"

draws pictures without data; with --config.data.name=folder:PATH, images and captions, it trains.
`:lora` trains adapters, `:dreambooth` a subject (--config.data.prompt="a sks dog") next to images
of its class (--config.data.prior=PATH, prior_prompt="a dog"), `:textual_inversion` a new token, of
images without captions. The rest is the folder's. Trained on emoji: docs/stable_diffusion.md.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config(variant: str = "") -> ConfigDict:
    """Everything of the folder, and the settings of diffusers' fine-tuning scripts."""
    if variant not in ("", "lora", "dreambooth", "textual_inversion"):
        raise ValueError(f"no variant {variant!r}: lora, dreambooth or textual_inversion")
    config = defaults.diffusion()
    config.data.name = "none"
    config.condition.text = "folder"
    config.model.update(name="stable_diffusion", folder="", class_conditional=False)
    config.diffusion.update(schedule="folder", parametrisation="folder", time_input="step")
    config.train.update(
        steps=15_000, batch_size=4, optimizer="adamw", learning_rate=1e-5, schedule="constant",
        ema_decay=0.9999, checkpoint_every=500,
    )  # fmt: skip
    config.sample.update(dict.fromkeys(("sampler", "grid", "guidance", "threshold"), "folder"))
    config.sample.update(steps=50, count=4, batch_size=4)
    if variant == "lora":
        config.model.lora, config.train.learning_rate = "lora(rank=4)", 1e-4
    if variant in ("dreambooth", "textual_inversion"):
        config.diffusion.condition_dropout = 0.0
        config.train.update(steps=800, batch_size=2, learning_rate=5e-6, warmup_steps=0)
    if variant == "textual_inversion":
        config.model.inversion = "inversion(token='<new>', word='object')"
        config.train.update(steps=3000, batch_size=4, learning_rate=2e-3, ema_decay=0.99)
    return config
