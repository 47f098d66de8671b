"""Configs are checked key by key, and the shipped ones are right."""

import ast
import copy
import json
import runpy
from pathlib import Path

import pytest

from diffjax.checkpoints import workdir
from diffjax.checkpoints.run_config import flatten
from diffjax.conditioning.conditions import Conditions
from diffjax.data.info import DataInfo
from diffjax.errors import UserError
from diffjax.experiment import (
    backbone_keys,
    kinds,
    network,
    optimisation,
    process,
    sampling,
    schema,
)
from diffjax.experiment.autoencoder_networks import stage as make_stage

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = [
    *sorted((ROOT / "experiments").glob("*.py")),
    *(
        ROOT / f"examples/emoji/{name}.py"
        for name in ("autoencoder", "prior", "text_to_image", "unclip")
    ),
]
QUICK = ("fashion_mnist", "fashion_mnist_conditional")
JIT = ("quick", "jit", "jit-quick")
TWO_STAGES = [
    path
    for path in EXPERIMENTS
    if path.stem.endswith(("autoencoder", "latent", "image", "pixelcnn", "prior", "unclip"))
]
VARIANTS = [
    *((path, "") for path in EXPERIMENTS),
    *((path, "quick") for path in EXPERIMENTS if path.stem in QUICK),
    *((path, name) for path in EXPERIMENTS for name in JIT if path.stem == "fashion_mnist_dit"),
    *((path, "tiny") for path in TWO_STAGES),
    *(
        (ROOT / "experiments/stable_diffusion.py", name)
        for name in ("lora", "dreambooth", "textual_inversion")
    ),
]
SHAPES = {"digits": (8, 8, 1), "cifar10": (32, 32, 3), "emoji": (64, 64, 3)}


@pytest.mark.parametrize(("path", "variant"), VARIANTS, ids=lambda x: getattr(x, "stem", x))
def test_shipped_configs_are_whole_and_resolve(path, variant):
    get_config = runpy.run_path(str(path))["get_config"]
    made = schema.complete(get_config(variant) if variant else get_config())
    schema.check(made)
    optimisation.optimizer(made)
    if path.stem == "stable_diffusion":  # all else is in a folder: tests/stable_diffusion
        return
    name = path.stem if path.parent.name == "experiments" else path.parent.name
    shape = SHAPES.get(name.split("_")[0], (28, 28, 1))
    if schema.is_autoencoder(made):
        make_stage(made, image_shape=shape)
        return
    if not schema.is_diffusion(made):
        names = tuple(map(str, range(10)))
        kinds.resolve_model(made, DataInfo("", shape, class_names=names)).parameter_shapes()
        return
    diffusion = process.diffusion(made)
    sampling.sampling(made, diffusion.schedule)
    if made.first_stage.workdir:
        first = Path(made.first_stage.workdir).name.split("-")[0]
        theirs = runpy.run_path(str(path.with_stem(first)))
        stage = make_stage(schema.complete(theirs["get_config"](variant)), image_shape=shape)
        shape = stage.latent_shape
    if made.data.embedding != "none":
        shape = (made.embedding.dimensions,)
    optimisation.average_decay(made)
    conditions = Conditions(num_classes=10 * made.model.class_conditional)
    found = network.network(made, diffusion=diffusion, shape=shape, conditions=conditions)
    network.check(found, config=made, diffusion=diffusion, shape=shape, cond=conditions.example())


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_configs_import_the_defaults_alone(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Import)
        if isinstance(node, ast.ImportFrom):
            assert node.module in ("ml_collections", "diffjax.experiment")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_configs_are_short(path):
    assert len(path.read_text().splitlines()) <= 40


BEFORE = json.loads((ROOT / "tests/golden/configs.json").read_text())


@pytest.mark.parametrize("name", sorted(BEFORE))
def test_experiments_are_what_they_were_when_each_wrote_down_every_key(name):
    """golden/configs.json: `to_dict()` of each file and variant at the commit before defaults."""
    stem, _, variant = name.partition(":")
    before, path = BEFORE[name], ROOT / "experiments" / f"{stem}.py"
    if stem.startswith("emoji_"):  # an example now, in which the set is reached by the data door
        path = ROOT / "examples" / "emoji" / f"{stem.removeprefix('emoji_')}.py"
        before = copy.deepcopy(before)
        assert before["data"]["name"] == "folder:data/emoji"
        before["data"]["name"] = "emoji_set:pictures"
        if "first_stage" in before:  # whose workdir is called as its config file
            stage = before["first_stage"]["workdir"]
            assert stage == f"runs/emoji_autoencoder{variant and '-tiny'}"
            before["first_stage"]["workdir"] = stage.replace("emoji_", "")
        # A category of the table is a class by now, and "auto" would be a classifier's.
        before["evaluate"]["features"] = "efficientnet_lite0"
    get_config = runpy.run_path(str(path))["get_config"]
    made = schema.complete(get_config(variant) if variant else get_config())
    now = json.loads(json.dumps(made.to_dict()))
    assert now.pop("user") == {}
    now, before = flatten(now), flatten(before)
    for key in now.keys() - before.keys():  # those that are new have their defaults
        default = schema.keys_of(made)[key].default
        assert now.pop(key) == json.loads(json.dumps(default))
    assert now == before


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
        schema.check(tiny_config)
    assert "\n" not in str(caught.value)


def test_unknown_keys_are_named_with_the_nearest_one(tiny_config):
    with tiny_config.unlocked():
        tiny_config.train.step = 1
    with pytest.raises(
        UserError, match=r"config\.train\.step is not .*: expected config\.train\.st"
    ):
        schema.check(tiny_config)


def test_a_missing_key_takes_its_default_and_user_is_free(tiny_config):
    with tiny_config.unlocked():
        del tiny_config.train.on_not_finite
        del tiny_config.parallel
        tiny_config.user.alpha = {"anything": (1, "two")}
    made = schema.complete(tiny_config)
    schema.check(made)
    assert made.train.on_not_finite == "stop" and made.parallel.strategy == "pmap"
    assert made.train.steps == tiny_config.train.steps
    with tiny_config.unlocked():
        del tiny_config.train.steps
    with pytest.raises(UserError, match=r"config\.train\.steps is missing"):
        schema.check(tiny_config)  # what was not completed


def test_renamed_keys_and_values_of_old_versions(tiny_config):
    with tiny_config.unlocked(), tiny_config.ignore_type():
        tiny_config.diffusion.label_dropout = 0.25
        tiny_config.model.remat = True
        del tiny_config.diffusion.condition_dropout
    made = schema.complete(tiny_config)
    schema.check(made)
    assert made.diffusion.condition_dropout == 0.25 and made.model.remat == "full"
    with tiny_config.unlocked():
        tiny_config.diffusion.condition_dropout = 0.1
    with pytest.raises(
        UserError, match=r"label_dropout is now config\.diffusion\.condition_dropout"
    ):
        schema.complete(tiny_config)


def test_a_value_in_the_place_of_a_section_is_one_line(tiny_config):
    with tiny_config.unlocked(), tiny_config.ignore_type():
        tiny_config.train = 3
    with pytest.raises(UserError, match=r"config\.train = 3: expected a section"):
        schema.complete(tiny_config)


def test_every_key_has_a_default_that_it_may_have_and_a_meaning():
    kinds_of = (kind.keys for kind in schema.KINDS.values())
    for table in (*kinds_of, *backbone_keys.NETWORK_FIELDS.values()):
        for name, (rule, default, meaning) in table.items():
            assert len(meaning) > 5, name
            to_set = name in ("data.name", "cascade.stages")
            assert to_set or (isinstance(default, rule.kind) and rule.holds(default))


def test_a_workdir_belongs_to_one_config(tmp_path, tiny_config):
    assert not workdir.check(tmp_path, tiny_config)
    workdir.prepare(tmp_path, tiny_config.to_dict())
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
