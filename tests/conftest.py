"""What every test shares: caches in a folder of the session's own, and a tiny config."""

import os
import runpy
from pathlib import Path

import pytest

# Most of a test's time is XLA compiling: optimise little, and compile nothing twice (own_caches).
# XLA's older emitters of fused loops take half the time of those through MLIR.
# Before jax is imported; the runs that tests start in processes of their own inherit it.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + " --xla_cpu_use_fusion_emitters=false"
).strip()

ROOT = Path(__file__).resolve().parent.parent

# Files in tests/ that take most of the time. A worker of xdist takes whole files: were one of these
# the last, the other workers would wait for it.
LONGEST = (
    "distributed/test_processes",
    "training/test_loop",
    "test_notebook",
    "test_main",
    "distributed/test_sharding",
    "training/test_faults",
    "inference/test_guided_sampling",
    "experiment/test_text_and_maps",
    "experiment/test_two_stages",
    "examples/test_emoji_training",
    "sampling/samplers/test_every_sampler",
    "experiment/test_edit",
    "training/test_objectives",
    "models/test_remat",
    "training/test_train_step",
    "experiment/test_plan",
    "training/test_autoencoder_objective",
    "perceptual/test_networks",
    "models/test_unet",
    "experiment/test_likelihood",
    "checkpoints/test_damaged_checkpoints",
    "training/test_telemetry",
    "training/test_compiles",
    "experiment/test_ema_mode",
    "likelihood/test_ode",
)


def pytest_collection_modifyitems(items):
    """The longest files come first; --no-loadscope-reorder makes xdist hand them out so."""
    place = {f"tests/{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.split("::")[0], len(place)))


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory):
    """Nothing is read from or written to the user's caches.

    What XLA compiled is shared by xdist's workers: a program that another one is just writing is
    compiled again. All else is a worker's own, the accelerator for one: found half-way through a
    test it would change the test's numbers.
    """
    own = tmp_path_factory.getbasetemp()  # a worker's lies in that of all
    programs = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "programs"
    programs.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        (cache / "diffjax").mkdir()
        (cache / "diffjax" / "xla").symlink_to(programs)  # where processes of their own look
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        import jax

        jax.config.update("jax_compilation_cache_dir", str(programs))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
        yield


@pytest.fixture(scope="module")
def compile_quickly():
    """Programs that run once on small inputs: compiling them is what takes the time."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def _tiny():
    from diffjax.experiment import schema

    config = runpy.run_path(str(ROOT / "experiments/digits.py"))["get_config"]()
    config = schema.complete(config)
    config.model.channels = 8
    config.model.head_channels = 8
    config.train.update(
        steps=6, batch_size=16, warmup_steps=2, log_every=2, eval_every=3, checkpoint_every=3,
        sample_every=4,
    )  # fmt: skip
    config.sample.update(steps=3, count=20, batch_size=20)
    config.evaluate.num_samples = 40
    return config.lock()


@pytest.fixture
def tiny_config():
    """experiments/digits.py cut down to seconds."""
    return _tiny()


TINY_FLAGS = (
    f"--config={ROOT / 'experiments/digits.py'}",
    "--config.model.channels=8",
    "--config.model.head_channels=8",
    "--config.train.steps=6",
    "--config.train.batch_size=16",
    "--config.train.warmup_steps=2",
    "--config.train.log_every=2",
    "--config.train.eval_every=3",
    "--config.train.checkpoint_every=3",
    "--config.train.sample_every=4",
    "--config.sample.steps=3",
    "--config.sample.count=20",
    "--config.sample.batch_size=20",
    "--config.evaluate.num_samples=40",
)


@pytest.fixture(scope="session")
def tiny_flags():
    """The same as `tiny_config`, as a command line."""
    return TINY_FLAGS


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, own_caches, tiny_flags):
    """The workdir of a finished run of `tiny_flags`; a process makes it once."""
    from diffjax.main import main

    workdir = tmp_path_factory.mktemp("tiny") / "run"
    assert main([*tiny_flags, f"--workdir={workdir}"]) == 0
    return workdir


TINY_STAGE = {
    "data.name": "digits", "autoencoder.channels": 8, "autoencoder.multipliers": (1, 2),
    "autoencoder.patch": 1, "autoencoder.blocks": 1, "autoencoder.dtype": "float32",
    "autoencoder.latent_channels": 2, "loss.perceptual": "none",
    "loss.adversarial": "patch(channels=8, layers=1)", "loss.adversarial_start": 3,
    "train.steps": 6, "train.batch_size": 16, "train.warmup_steps": 2, "train.log_every": 2,
    "train.eval_every": 3, "train.checkpoint_every": 3, "train.sample_every": 4,
    "sample.count": 4, "sample.batch_size": 16, "evaluate.num_samples": 20,
}  # fmt: skip


def autoencoder_config(**changes):
    """A first stage cut down to seconds, on the digits."""
    from diffjax.experiment import schema

    path = ROOT / "experiments/fashion_mnist_autoencoder.py"
    config = schema.complete(runpy.run_path(str(path))["get_config"]())
    config.update_from_flattened_dict(TINY_STAGE | changes)
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
