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


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory):
    """Nothing is read from or written to the user's caches."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        import jax

        jax.config.update("jax_compilation_cache_dir", str(cache / "diffjax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        yield


def _tiny():
    config = runpy.run_path(str(ROOT / "experiments/digits.py"))["get_config"]()
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
