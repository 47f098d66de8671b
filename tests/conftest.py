"""What every test shares: checked types, caches in a folder of the session's own, tiny configs."""

import configparser
import fcntl
import gc
import importlib.metadata
import importlib.util
import os
import runpy
import shutil
import sys
import types
from pathlib import Path

import jaxtyping
import pytest

# Before jax is imported; the runs that tests start in processes of their own inherit it.
if os.environ.get("TEST_DEVICE", "cpu") == "gpu":
    # Tolerances are those of float32, and a GPU multiplies in TF32 by default.
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
else:
    # Most of a test's time is XLA compiling: optimise little, and compile nothing twice
    # (own_caches).
    quickly = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        # The older emitters of fused loops, which later versions do not have, take half the time
        # of those through MLIR.
        quickly.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *quickly]).strip()

ROOT = Path(__file__).resolve().parent.parent

HAS_BEARTYPE = importlib.util.find_spec("beartype") is not None


def _check_with_beartype(function):
    """What jaxtyping's hook puts around every function of the core: calls match signatures."""
    from beartype import BeartypeConf, BeartypeHintOverrides, beartype

    # beartype can't take a NamedTuple apart that is generic: for Scales any tuple will do.
    scales = getattr(sys.modules.get("diffjax.schedules.kinds"), "Scales", None)
    overrides = BeartypeHintOverrides({} if scales is None else {scales: tuple})
    conf = BeartypeConf(is_pep484_tower=True, hint_overrides=overrides)  # an int is a float
    return beartype(conf=conf)(function)


def _core():
    """The modules of the functional core, as setup.cfg lists them for the import linter."""
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    return setup["importlinter:contract:core"]["source_modules"].split()


# Before diffjax is imported. The hook looks its function up by a name that can be imported.
if HAS_BEARTYPE:
    sys.modules["diffjax_checker"] = types.SimpleNamespace(check=_check_with_beartype)
    jaxtyping.install_import_hook(_core(), "diffjax_checker.check")


def pytest_report_header():
    if HAS_BEARTYPE:
        return "types and shapes: the core's calls are checked by beartype"
    return "types and shapes: NOT checked, since beartype is not installed"


# Linux gives a process 65,530 mappings, and XLA takes some for each program that it compiles;
# where there are no more, it crashes.
MOST_MAPPINGS = 30_000


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
    """Programs of the tests before are dropped before they use up the process's mappings."""
    yield
    jax = sys.modules.get("jax")
    mappings = Path("/proc/self/maps")
    if jax is None or not mappings.exists():
        return
    with mappings.open() as file:
        count = sum(1 for _ in file)
    if count > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def unchecked():
    """Calls as a user makes them: a wrong shape meets diffjax's own error, not beartype's."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# Files in tests/ that `make test` leaves to `make test-slow`: several processes and devices, kills,
# whole trainings, the notebook. The longest come first: a worker of xdist takes whole files, and
# the others would wait for one that takes a long one last.
SLOW = (
    "distributed/test_processes",
    "training/test_loop",
    "experiment/test_two_stages",
    "experiment/test_text_and_maps",
    "test_notebook",
    "distributed/test_sharding",
    "doors/test_examples",
    "doors/test_own_parts",
    "examples/test_emoji_training",
    "examples/test_emoji_cascade",
    "inference/test_guided_sampling",
    "inference/test_pixelcnn",
    "experiment/test_edit",
    "experiment/test_moved",
    "experiment/test_init_from",
    "experiment/test_likelihood",
    "experiment/test_pixelcnn",
    "experiment/test_gan",
    "experiment/test_unclip",
    "training/test_autoencoder_objective",
    "models/test_remat",
    "experiment/test_plan",
    "experiment/test_ema_mode",
    "perceptual/test_networks",
    "golden/test_golden",
    "golden/test_old_run",
    "training/test_compiles",
    "evaluation/test_classifier_features",
    "evaluation/test_report",
    "examples/test_emoji",
    "accelerator/test_native_ops",
    "accelerator/test_library",
    "experiment/test_augmentation",
    "augmentation/test_non_leaking",
    "benchmarks/test_torch_unet",
    "experiment/test_few_step",
    "losses/test_few_step_training",
    "experiment/test_super_resolution",
    "experiment/test_cascade",
    "models/test_pixelcnn",
    "training/test_objectives",
    "conditioning/test_transformer",
    "figures/test_arrays",
    "models/test_conditions",
    "models/test_autoencoder",
    "conditioning/test_clip",
    "conditioning/test_clip_image",
    "conditioning/test_bert",
    "conditioning/test_t5",
    "perceptual/test_lpips",
    "sampling/samplers/test_convergence",
    "sampling/samplers/test_two_stage",
)
# Of the others, those that take longest.
LONGEST = (
    "sampling/samplers/test_every_sampler",
    "models/test_unet",
    "experiment/test_schema",
    "test_bad_input",
    "test_main",
    "inference/test_wrong_arguments",
    "sampling/samplers/test_stop_early",
    "training/test_faults",
    "training/test_train_step",
    "models/test_gan",
    "checkpoints/test_damaged_checkpoints",
    "training/test_telemetry",
    "likelihood/test_ode",
)


# What `-m gpu` runs on a GPU: the maths and the train step, in files whose tests need no CPU.
GPU = (
    "test_process",
    "test_schedules",
    "test_parametrisations",
    "test_denoisers",
    "test_grids",
    "test_ema",
    "test_rng",
    "losses/test_weightings",
    "losses/test_denoising",
    "sampling/samplers/test_convergence",
    "sampling/samplers/test_every_sampler",
    "sampling/test_guidance",
    "likelihood/test_ode",
    "likelihood/test_vlb",
    "models/test_unet",
    "training/test_train_step",
)


def pytest_collection_modifyitems(items):
    """Marks the files of SLOW and GPU; the longest come first, and xdist hands them out so."""
    slow, gpu = ({f"tests/{name}.py" for name in names} for names in (SLOW, GPU))
    place = {f"tests/{name}.py": number for number, name in enumerate((*SLOW, *LONGEST))}
    for item in items:
        if item.nodeid.split("::")[0] in slow:
            item.add_marker("slow")
        if item.nodeid.split("::")[0] in gpu:
            item.add_marker("gpu")
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
def trained_once(tmp_path_factory):
    """trained_once(name, train) -> a workdir, which `train` filled once for all of xdist's workers.

    The first worker that asks trains; each has a copy of its own, which its tests may add to.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def run_of(name, train):
        made, done = shared / f"trained-{name}", shared / f"trained-{name}.done"
        with (shared / f"trained-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # held until the file is closed, however that happens
            if not done.exists():
                shutil.rmtree(made, ignore_errors=True)  # of a worker that failed half-way
                assert train(made) == 0
                done.touch()
        copy = tmp_path_factory.mktemp(name) / "run"
        shutil.copytree(made, copy)
        return copy

    return run_of


@pytest.fixture(scope="session")
def tiny_run(trained_once, own_caches, tiny_flags):
    """The workdir of a finished run of `tiny_flags`."""
    from diffjax.main import main

    return trained_once("tiny", lambda folder: main([*tiny_flags, f"--workdir={folder}"]))


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
def stage_run(trained_once, own_caches):
    """The workdir of a finished first stage."""
    from diffjax import main

    return trained_once("stage", lambda folder: main.run(autoencoder_config(), folder))


@pytest.fixture
def latent_config(tiny_config, stage_run):
    """The tiny diffusion config, on that first stage's latents."""
    with tiny_config.unlocked():
        tiny_config.first_stage.workdir = str(stage_run)
        tiny_config.sample.threshold = "none"
        tiny_config.model.update(multipliers=(1,), blocks=1, attention_resolutions=())
    return tiny_config
