"""A first stage cut down to seconds, on the digits."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TINY = {
    "data.name": "digits", "autoencoder.channels": 8, "autoencoder.multipliers": (1, 2),
    "autoencoder.patch": 1, "autoencoder.blocks": 1, "autoencoder.dtype": "float32",
    "autoencoder.latent_channels": 2, "loss.perceptual": "none",
    "loss.adversarial": "patch(channels=8, layers=1)", "loss.adversarial_start": 3,
    "train.steps": 6, "train.batch_size": 16, "train.warmup_steps": 2, "train.log_every": 2,
    "train.eval_every": 3, "train.checkpoint_every": 3, "train.sample_every": 4,
    "sample.count": 4, "sample.batch_size": 16, "evaluate.num_samples": 20,
}  # fmt: skip


def autoencoder_config(**changes):
    path = ROOT / "experiments/fashion_mnist_autoencoder.py"
    config = runpy.run_path(str(path))["get_config"]()
    config.update_from_flattened_dict(TINY | changes)
    return config.lock()


@pytest.fixture
def make_config():
    """autoencoder_config, which takes changes by dotted key."""
    return autoencoder_config


@pytest.fixture(scope="session")
def stage_run(tmp_path_factory, own_caches):
    """The workdir of a finished first stage; a process makes it once."""
    from diffjax import main

    folder = tmp_path_factory.mktemp("stage") / "run"
    assert main.run(autoencoder_config(), folder) == 0
    return folder


@pytest.fixture
def latent_config(tiny_config, stage_run):
    """The tiny diffusion config, on that first stage's latents."""
    with tiny_config.unlocked():
        tiny_config.first_stage.workdir = str(stage_run)
        tiny_config.sample.threshold = "none"
        tiny_config.model.update(multipliers=(1,), blocks=1, attention_resolutions=())
    return tiny_config
