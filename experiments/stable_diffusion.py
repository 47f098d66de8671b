"""Stable Diffusion 1, 2 or XL, from a folder that diffusers wrote; CreativeML OpenRAIL-M weights.

    python -m diffjax.main --config=experiments/stable_diffusion.py --config.model.folder=PATH \
        --mode=sample --config.sample.prompt="a red apple"

draws pictures without a data set. With --config.data.name=folder:PATH, images with captions, it is
fine-tuned by --mode=train. Schedule, sampler and guidance are those of the folder. Untrained.
"""

from ml_collections import ConfigDict

from diffjax.experiment import defaults


def get_config() -> ConfigDict:
    """Everything of the folder, and the settings of diffusers' fine-tuning script."""
    config = defaults.diffusion()
    config.data.name = "none"
    config.condition.text = "folder"
    config.model.update(name="stable_diffusion", folder="", class_conditional=False)
    config.diffusion.update(schedule="folder", parametrisation="folder", time_input="step")
    config.train.update(
        steps=15_000, batch_size=4, optimizer="adamw",
        learning_rate=1e-5, schedule="constant", ema_decay=0.9999, checkpoint_every=500,
    )  # fmt: skip
    config.sample.update(
        sampler="folder", grid="folder", guidance="folder", threshold="folder", steps=50, count=4,
        batch_size=4,
    )  # fmt: skip
    return config
