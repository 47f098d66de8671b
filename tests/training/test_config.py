"""Configs are checked key by key, and the shipped ones are right."""

import ast
import runpy
from pathlib import Path

import pytest

from diffjax.errors import UserError
from diffjax.training import build, build_sampling, config, workdir
from diffjax.training.conditions import Conditions
from diffjax.training.first_stage import build as first_stage

EXPERIMENTS = sorted((Path(__file__).resolve().parents[2] / "experiments").glob("*.py"))
QUICK = ("fashion_mnist", "fashion_mnist_conditional")
TWO_STAGES = [
    path for path in EXPERIMENTS if path.stem.endswith(("autoencoder", "latent", "image"))
]
VARIANTS = [
    *((path, "") for path in EXPERIMENTS),
    *((path, "quick") for path in EXPERIMENTS if path.stem in QUICK),
    *((path, "tiny") for path in TWO_STAGES),
]
SHAPES = {"digits": (8, 8, 1), "cifar10": (32, 32, 3), "emoji": (64, 64, 3)}


@pytest.mark.parametrize(("path", "variant"), VARIANTS, ids=lambda x: getattr(x, "stem", x))
def test_shipped_configs_are_whole_and_resolve(path, variant):
    get_config = runpy.run_path(str(path))["get_config"]
    made = get_config(variant) if variant else get_config()
    config.check(made)
    build.optimizer(made)
    shape = SHAPES.get(path.stem.split("_")[0], (28, 28, 1))
    if config.is_autoencoder(made):
        first_stage.stage(made, image_shape=shape)
        return
    diffusion = build.diffusion(made)
    build_sampling.sampling(made, diffusion.schedule)
    if made.first_stage.workdir:
        first = Path(made.first_stage.workdir).name.split("-")[0]
        theirs = runpy.run_path(str(path.with_stem(first)))
        stage = first_stage.stage(theirs["get_config"](variant), image_shape=shape)
        shape = stage.latent_shape
    build.average_decay(made)
    build.model(
        made, diffusion=diffusion, shape=shape,
        conditions=Conditions(num_classes=10 * made.model.class_conditional),
    )  # fmt: skip


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_configs_import_ml_collections_alone(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert [name.name for name in node.names] == ["ml_collections"]
        if isinstance(node, ast.ImportFrom):
            assert node.module == "ml_collections"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.steps", 0), ("train.steps", True), ("train.learning_rate", float("nan")),
        ("train.learning_rate", 0.0), ("train.ema_decay", 1.0), ("model.multipliers", ()),
        ("model.multipliers", (1, 0)), ("data.channels", 2), ("data.name", 3), ("seed", -1),
        ("diffusion.condition_dropout", 1.5), ("sample.labels", (0.5,)),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(tiny_config, key, value):
    section = tiny_config
    with tiny_config.unlocked(), tiny_config.ignore_type():
        *path, last = key.split(".")
        for part in path:
            section = section[part]
        section[last] = value
    with pytest.raises(UserError, match=rf"config\.{key} = .*: expected ") as caught:
        config.check(tiny_config)
    assert "\n" not in str(caught.value)


def test_missing_and_unknown_keys_are_named(tiny_config):
    with tiny_config.unlocked():
        tiny_config.train.extra = 1
    with pytest.raises(UserError, match=r"config\.train\.extra is not a key"):
        config.check(tiny_config)
    with tiny_config.unlocked():
        del tiny_config.train.extra
        del tiny_config.train.steps
    with pytest.raises(UserError, match=r"config\.train\.steps is missing"):
        config.check(tiny_config)


def test_a_workdir_belongs_to_one_config(tmp_path, tiny_config):
    assert not workdir.check(tmp_path, tiny_config)
    workdir.prepare(tmp_path, tiny_config)
    assert not workdir.check(tmp_path, tiny_config)  # nothing to go on with yet
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    assert workdir.check(tmp_path, tiny_config)
    tiny_config.train.steps = 99
    tiny_config.sample.sampler = "ddim"
    assert workdir.check(tmp_path, tiny_config)
    tiny_config.model.channels = 16
    with pytest.raises(UserError, match=r"config\.model\.channels = 8, not 16"):
        workdir.check(tmp_path, tiny_config)


def test_a_config_json_that_is_no_json(tmp_path, tiny_config):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        workdir.check(tmp_path, tiny_config)
