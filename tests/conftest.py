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
    "training/test_hosts",
    "training/test_loop",
    "test_notebook",
    "test_main",
    "training/test_sharding",
    "training/test_faults",
    "training/test_guided_sampling",
    "training/test_text_and_maps",
    "training/first_stage/test_two_stages",
    "samplers/test_every_sampler",
    "training/test_edit",
    "training/test_objectives",
    "models/test_remat",
    "training/test_state",
    "training/test_plan",
    "training/first_stage/test_first_stage_state",
    "perceptual/test_networks",
    "models/test_unet",
    "training/test_likelihood",
    "training/test_damaged_checkpoints",
    "training/test_watch",
    "training/test_compiles",
    "training/test_ema_mode",
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
