"""Every key that takes a path: what it may name, and one line for what it may not."""

import importlib
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.data import ArraySource
from diffjax.errors import UserError
from diffjax.experiment import conditioning, dataset, objective, optimisation, process, sampling
from diffjax.experiment.diffusion import resolve
from diffjax.experiment.spec import from_spec, function_from_spec, is_path, parse_spec
from diffjax.main import main
from diffjax.models.network import as_network
from diffjax.models.nnx import from_nnx

PARTS = """
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx
    import diffjax as dj
    from diffjax.data import ArraySource

    def schedule(*, power=2.0):
        return dj.schedules.ContinuousSchedule(
            lambda t: -20 * (t - 0.5), lambda log_snr: 0.5 - log_snr / 20,
            dj.schedules.variance_preserving)

    SCHEDULE = schedule()
    X0 = dj.parametrisations.x0._replace(name="mine")

    def half(schedule, t, target):
        return jnp.full(jnp.shape(t), 0.5)

    def late(key, schedule, *, indices, batch_size, share=0.5):
        u = jax.random.uniform(key, (len(indices),))
        return jnp.asarray(1 + (share + (1 - share) * u) * (schedule.T - 1), jnp.int32)

    def halves(images, *, gain=1.0):
        return gain * images / 2

    class Linear(nn.Module):
        out_channels: int = 1
        width: int = 4

        @nn.compact
        def __call__(self, x, t, cond):
            return nn.Dense(self.out_channels)(nn.tanh(nn.Dense(self.width)(x)))

    class Gated(nn.Module):
        kernels: tuple = (3, 3)
        num_pixel_levels: int = 4

        @nn.compact
        def __call__(self, x, t, cond, train):
            gate = self.param("gate", nn.initializers.ones, ())
            assert self.num_pixel_levels == 4
            return gate * nn.Conv(x.shape[-1], self.kernels)(x)

    def stax():
        def init(key, x, t, cond):
            return [{"w": jnp.ones(())}, (), {"w": jnp.zeros(())}]
        def apply(params, x, t, cond, *, train=False, key=None):
            return params[0]["w"] * x + params[2]["w"]
        return init, apply

    class Attentive:
        def init(self, key, x, t, cond): return {"w": jnp.ones(())}
        def apply(self, params, x, t, cond, *, train=False, key=None): return params["w"] * x
        def attention_blocks(self, shape): return ("only",)
        def perturbed(self, blocks): return self

    def x_0_alone(denoise, x_T, *, grid, key, cond, keep_trajectory):
        return x_T

    def no_path(denoise, x_T, *, grid, key, cond, keep_trajectory):
        return dj.Samples(x_T, None)

    def of_its_network(network, prediction):
        def loss(params, x_0, cond, key):
            return jnp.square(params["Dense_0"]["kernel"]).mean()
        return loss

    class WithState:
        def __init__(self, network): pass
        def init(self, key): return jnp.zeros(())
        def loss(self, params, x_0, cond, key, state): return jnp.zeros(len(x_0)), state + 1

    def times(network, sample_times):
        return lambda params, x_0, cond, key: jnp.zeros(len(x_0))

    def failing(images):
        raise ValueError()

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, t, cond, *, train=False):
            return nn.BatchNorm(use_running_average=not train)(x)

    class NormedNNX(nnx.Module):
        def __init__(self, *, rngs):
            self.norm = nnx.BatchNorm(1, rngs=rngs)

        def __call__(self, x, t, cond):
            return self.norm(x)

    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x, t, cond):
            return nn.Dense(7)(x)

    def no_network():
        return 3

    def points(kind="good"):
        x = np.random.default_rng(0).normal(size=(40, 2))
        if kind == "array":
            return x
        if kind == "ints":
            return np.zeros((4, 2), int)
        if kind == "empty":
            return []
        if kind == "nan":
            return np.full((4, 2), np.nan)
        if kind == "labels":
            return [{"x_0": p, "label": 3} for p in x] if False else Labelled()
        return ArraySource(x, held_out=ArraySource(x[:8]))

    class Labelled:
        class_names = ("a", "b")
        def __len__(self): return 4
        def __getitem__(self, i): return {"x_0": np.zeros(2), "label": 3}

    def zeros(value=0):
        images = np.full((32, 8, 8, 1), value, np.uint8)
        return ArraySource(images, np.arange(32) % 10, class_names=tuple("0123456789"),
                           held_out=ArraySource(images + 9, np.arange(32) % 10,
                                                class_names=tuple("0123456789")))

    def sized(dir="at home", image_size=8, channels=1, value=3):
        images = np.full((32, image_size, image_size, channels), value, np.uint8)
        return ArraySource(images, np.arange(32) % 10, name=dir, class_names=tuple("0123456789"))

    def plain(network, prediction):
        def loss(params, x_0, cond, key):
            return jnp.square(network.apply(params, x_0, jnp.zeros(len(x_0)), cond) - x_0).mean()
        return loss

    def broken(network):
        raise RuntimeError("on purpose")
"""


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A module `own_parts` that can be imported, and one that can't."""
    (tmp_path / "own_parts.py").write_text(textwrap.dedent(PARTS))
    (tmp_path / "own_broken.py").write_text("x = 1\nraise RuntimeError('no GPU\\nhere')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("own_parts", "own_broken"):
        sys.modules.pop(name, None)


def test_paths_and_names_are_told_apart():
    for text in ("a:B", "a.b:C(x=1)", "a.b:C.d", " a:b(x=(1, 2)) "):
        assert is_path(text)
    for text in ("cosine", "cosine(T=3)", "a:", ":b", "a:b:c", "folder:/data/x", "a:b + c"):
        assert not is_path(text)
    spec = parse_spec("a.b:C.d(x=(1, 'y'), z=None)", key="some.key")
    assert spec == ("C.d", {"x": (1, "y"), "z": None}, "a.b", True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nowhere_at_all:x", "there is no module 'nowhere_at_all' next to the config file"),
        ("own_parts:nothing", "own_parts.py) has no 'nothing'"),
        ("own_broken:x", "own_broken.py:2: RuntimeError: no GPU here"),
        ("own_parts:schedule(size=3)", "got an unexpected keyword argument 'size'"),
        ("own_parts:schedule(power='a')", "power must be a number such as 2.0, not 'a'"),
        ("own_parts:SCHEDULE(power=2)", "is an object, not a maker"),
        ("own_parts:schedule(3)", "expected 'name', 'name(argument=number)' or 'module:Name"),
        ("own_parts:schedule(power=__import__('os'))", "expected 'name', "),
        ("own_parts:half", "half() missing"),
        ("own_parts:no_network", "is a int: expected a diffjax.schedules"),
    ],
)
def test_a_path_that_can_not_be_is_one_line(parts, tiny_config, text, expected):
    tiny_config.diffusion.schedule = text
    with pytest.raises(UserError) as caught:
        process.diffusion(tiny_config)
    line = str(caught.value)
    assert expected.removeprefix("half() ") in line and "\n" not in line
    assert line.startswith(f"config.diffusion.schedule = {text!r}")


def test_schedules_parametrisations_and_finished_objects(parts, tiny_config):
    tiny_config.diffusion.update(
        schedule="own_parts:SCHEDULE", parametrisation="own_parts:X0", loss_target="own_parts:X0"
    )
    found = process.diffusion(tiny_config)
    assert found.parametrisation.name == "mine" and not found.schedule.discrete
    assert objective.loss_target(tiny_config, found).name == "mine"
    tiny_config.diffusion.schedule = "own_parts:schedule(power=3.0)"
    assert float(process.diffusion(tiny_config).schedule.log_snr(0.25)) == pytest.approx(5.0)


def test_functions_are_bound_to_their_keywords(parts, tiny_config):
    tiny_config.diffusion.update(
        weighting="own_parts:half", time_sampling="own_parts:late(share=0.9)"
    )
    found = process.diffusion(tiny_config)
    weight = objective.weighting(tiny_config)
    assert weight(found.schedule, jnp.arange(3), None).tolist() == [0.5] * 3
    t = objective.squared_error(tiny_config, found, None).sample_times(
        jax.random.key(0), found.schedule, indices=jnp.arange(50), batch_size=50
    )
    assert int(t.min()) >= 900
    make = function_from_spec("own_parts:halves(gain=4.0)", {}, key="condition.map")
    assert make(jnp.ones((1, 2, 2, 1))).max() == 2.0
    with pytest.raises(UserError, match="halves takes gain, images, not factor"):
        function_from_spec("own_parts:halves(factor=4)", {}, key="condition.map")
    assert conditioning.MAPS.keys() >= {"none", "edges"}


def test_an_optax_optimizer_by_its_path(tiny_config):
    tiny_config.train.optimizer = "optax:lion(b1=0.5)"
    params = {"w": jnp.ones(3)}
    optimizer = optimisation.optimizer(tiny_config)
    updates, _ = optimizer.update({"w": jnp.array([1.0, -1, 2])}, optimizer.init(params), params)
    assert updates["w"].shape == (3,)
    tiny_config.train.optimizer = "optax:cosine_similarity"
    with pytest.raises(UserError, match=r"config\.train\.optimizer"):
        optimisation.optimizer(tiny_config)


def test_samplers_and_grids_are_the_core_s_by_their_paths(tiny_config):
    schedule = process.diffusion(tiny_config).schedule
    named = sampling.sampling(tiny_config, schedule)
    tiny_config.sample.update(
        sampler="diffjax.sampling.samplers:ddim(eta=0.5)", grid="diffjax.grids:trailing",
        threshold="diffjax.sampling.thresholding:clip_x0(high=0.5)",
        guidance="diffjax.sampling.guidance:classifier_free(scale=2.0)",
    )  # fmt: skip
    found = sampling.sampling(tiny_config, schedule)
    np.testing.assert_array_equal(found.grid.t, named.grid.t)
    assert found.sampler.func is dj.samplers.ddim and found.sampler.keywords == {"eta": 0.5}
    assert found.uses_null and found.uses_labels
    tiny_config.sample.grid = "builtins:print"
    with pytest.raises(UserError, match="returned a NoneType: expected a function"):
        sampling.sampling(tiny_config, schedule)


def test_own_networks_are_resolved_and_checked(parts, tiny_config):
    with tiny_config.unlocked():
        tiny_config.model = {"name": "own_parts:Linear", "class_conditional": True, "width": 6}
    setup = resolve(tiny_config)
    shapes = setup.state_shapes().params
    assert shapes["Dense_1"]["kernel"].shape == (1, 6)
    for name, expected in (
        ("own_parts:Linear(depth=3)", "unexpected keyword argument 'depth'"),
        ("own_parts:Linear(width=3)", "width is also set in the section"),
    ):
        tiny_config.model.name = name
        with pytest.raises(UserError, match=expected):
            resolve(tiny_config)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("own_parts:Normed", "Normed has the variables batch_stats, which training would not"),
        ("own_parts:NormedNNX", "NormedNNX has variables of the types BatchStat"),
        (
            "own_parts:Wide",
            r"returns \(1, 8, 8, 7\) for x of \(1, 8, 8, 1\): expected \(1, 8, 8, 1",
        ),
        ("own_parts:no_network", "a int is not a network: expected a Linen module"),
        ("unet(channels=3)", "whose arguments are the fields of config.model"),
        ("resnet", "expected one of unet"),
    ],
)
def test_networks_that_can_not_be_are_one_line(parts, tiny_config, name, expected):
    from diffjax.experiment import schema

    with tiny_config.unlocked():
        tiny_config.model = {"name": name, "class_conditional": True}
    with pytest.raises(UserError, match=expected) as caught:
        resolve(schema.complete(tiny_config))
    assert "\n" not in str(caught.value)


def test_abilities_are_asked_for_by_who_uses_them(parts, tiny_config):
    with tiny_config.unlocked():
        tiny_config.model = {"name": "own_parts:Linear", "class_conditional": True}
    resolve(tiny_config)
    tiny_config.sample.guidance = "perturbed_attention(scale=2.0)"
    with pytest.raises(UserError, match="needs a network with attention_blocks"):
        resolve(tiny_config)


def test_an_nnx_module_is_that_module_and_draws_by_the_call_s_key():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, *, rngs):
            self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(11)])
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x, t, cond):
            for layer in self.layers:
                x = x + self.dropout(layer(x))
            return x

    network = from_nnx(Net)
    x, t = jnp.ones((3, 2)), jnp.zeros(3)
    params = jax.jit(network.init)(jax.random.key(0), x, t, None)
    module = Net(rngs=nnx.Rngs(jax.random.key(0)))
    module.eval()
    np.testing.assert_allclose(network.apply(params, x, t, None), module(x, t, None), rtol=1e-6)

    def apply(number):
        key = jax.random.key(number)
        return np.asarray(network.apply(params, x, t, None, train=True, key=key))

    np.testing.assert_array_equal(apply(1), apply(1))
    assert (apply(1) != apply(2)).any()
    grads = jax.grad(lambda p: network.apply(p, x, t, None).sum())(params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    with pytest.raises(TypeError, match="is an NNX module: pass its class"):
        as_network(module)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ints", "int64"), ("empty", "the set is empty"), ("nan", "not finite"),
        ("labels", "has the label 3; expected 0..1"),
    ],
)  # fmt: skip
def test_data_that_can_not_be_is_one_line(parts, tiny_config, kind, expected):
    tiny_config.data.name = f"own_parts:points(kind='{kind}')"
    with pytest.raises(UserError, match=expected) as caught:
        source = dataset.load_train(tiny_config)
        source[0]
    assert "\n" not in str(caught.value)


def test_what_is_held_out_is_the_set_s_own(parts, tiny_config):
    """Not that of the set which the config would name otherwise."""
    tiny_config.data.name = "own_parts:zeros(value=20)"
    setup = resolve(tiny_config)
    assert setup.source[0]["image"].max() == 20
    (batch,) = setup.held_out()
    assert set(np.unique(batch["image"])) == {29}
    assert set(np.unique(setup.model.examples().images)) == {29}
    tiny_config.data.image_size = 4
    expected = r"config\.data\.image_size = 4 has no effect .* no parameter 'image_size'"
    with pytest.raises(UserError, match=expected):
        resolve(tiny_config)


def test_data_is_handed_what_the_section_sets(parts, tiny_config):
    tiny_config.data.name = "own_parts:sized(value=5)"
    source = dataset.load_train(tiny_config)
    assert (source.image_shape, source.name) == ((8, 8, 1), "at home")
    tiny_config.data.update(dir="elsewhere", image_size=4, channels=3)
    source = dataset.load_train(tiny_config)
    assert (source.image_shape, source.name) == ((4, 4, 3), "elsewhere")
    assert source[0]["image"].max() == 5
    tiny_config.data.name = "own_parts:sized(image_size=6)"
    with pytest.raises(UserError, match="image_size is also set in the section: set it in one"):
        dataset.load_train(tiny_config)


def test_data_beyond_what_thresholding_keeps_is_refused(parts, tiny_config):
    with tiny_config.unlocked():
        tiny_config.model = {"name": "own_parts:Linear(out_channels=2)", "class_conditional": False}
    tiny_config.data.name = "own_parts:points"
    with pytest.raises(UserError, match=r"threshold = 'clip' keeps .* and the data is in \["):
        resolve(tiny_config)
    tiny_config.sample.threshold = "none"
    assert resolve(tiny_config).space.shape == (2,)
    tiny_config.data.flip = True
    with pytest.raises(UserError, match="holds arrays, not images"):
        resolve(tiny_config)


def test_arrays_need_a_network_of_their_own(parts, tiny_config):
    tiny_config.data.name = "own_parts:points(kind='array')"
    tiny_config.model.class_conditional = False
    with pytest.raises(UserError, match=r"'unet' needs data \(H, W, C\), not \(2,\)"):
        resolve(tiny_config)


def test_an_own_loss_refuses_what_it_would_not_look_at(parts, tiny_config):
    tiny_config.diffusion.objective = "own_parts:plain"
    resolve(tiny_config)
    tiny_config.diffusion.weighting = "snr"
    with pytest.raises(UserError, match=r"ignores config\.diffusion\.weighting = 'snr'"):
        resolve(tiny_config)
    tiny_config.diffusion.weighting = "uniform"
    tiny_config.diffusion.objective = "own_parts:broken"
    with pytest.raises(UserError, match=r"own_parts.py:\d+: RuntimeError: on purpose"):
        resolve(tiny_config)


def test_own_objects_of_text_and_perception_are_checked(parts, tiny_config):
    source = ArraySource(
        np.zeros((2, 8, 8, 1), np.uint8), captions=("a",), caption_numbers=np.zeros(2, int)
    )
    tiny_config.condition.text = "own_parts:no_network"
    tiny_config.model.class_conditional = False
    with pytest.raises(UserError, match=r"has no 'name': expected a diffjax\.conditioning"):
        conditioning.conditions(tiny_config, dj.data.describe(source))


def test_from_spec_hands_in_what_a_maker_has_a_parameter_for():
    given = {"numerator": 3, "nothing": 1}
    assert from_spec("fractions:Fraction", {}, key="k", given=given) == 3
    assert from_spec("fractions:Fraction(numerator=4)", {}, key="k", given=given) == 4


def test_another_network_on_the_command_line_leaves_the_file_s_fields(parts, tiny_flags, capsys):
    flags = [flag for flag in tiny_flags if "config.model" not in flag]
    flags += ["--config.model.name=own_parts:Linear(width=3)", "--mode=config"]
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert "* config.model.name = 'own_parts:Linear(width=3)'" in out
    assert "config.model.channels" not in out
    assert main([*flags, "--config.model.width=3"]) == 2
    assert "own_parts:Linear(width=...)" in capsys.readouterr().err


RUN = ("--config.train.batch_size=8", "--config.model.class_conditional=False")


@pytest.mark.parametrize(
    "name", ["own_parts:Gated(kernels=(1, 1))", "own_parts:stax", "own_parts:Attentive"]
)
def test_scalars_lists_and_the_user_s_own_field_names_come_back(
    parts, tiny_flags, tmp_path, capsys, name
):
    flags = [flag for flag in tiny_flags if "config.model" not in flag]
    flags += [f"--config.model.name={name}", *RUN, f"--workdir={tmp_path / 'run'}"]
    assert main(flags) == 0
    assert main([*flags, "--mode=export", f"--out={tmp_path / 'out'}"]) == 0
    capsys.readouterr()
    here, there = dj.load(tmp_path / "run"), dj.load(tmp_path / "out")
    np.testing.assert_array_equal(here.sample(count=2), there.sample(count=2))
    if "Gated" in name:
        assert main([*flags, "--config.model.name=own_parts:Gated(kernels=(3, 3))"]) == 2
        assert "holds a run with config.model.name" in capsys.readouterr().err


def test_code_that_has_changed_is_told_when_a_run_is_loaded(parts, tiny_flags, tmp_path, capsys):
    flags = [flag for flag in tiny_flags if "config.model" not in flag]
    flags += ["--config.model.name=own_parts:Linear", *RUN, f"--workdir={tmp_path / 'run'}"]
    assert main(flags) == 0
    text = (parts / "own_parts.py").read_text()
    (parts / "own_parts.py").write_text(text.replace("width: int = 4", "width: int = 50"))
    del sys.modules["own_parts"]
    importlib.invalidate_caches()
    with pytest.raises(UserError, match=r"has Dense_\d\.\w+ of .*, this config's network"):
        dj.load(tmp_path / "run")


def test_arguments_in_parentheses_leave_the_file_s_fields(parts, tmp_path, capsys):
    (tmp_path / "own.py").write_text(
        "from diffjax.experiment import defaults\n\n\ndef get_config():\n"
        "    config = defaults.diffusion()\n    config.data.name = 'digits'\n"
        "    config.model.update(name='own_parts:Linear', width=7)\n    return config\n"
    )
    for flag in (["--config.model.name=own_parts:Linear(out_channels=1)"],
                 ["--config.model.name", "own_parts:Linear(out_channels=1)"]):  # fmt: skip
        assert main([f"--config={tmp_path / 'own.py'}", "--mode=config", *flag]) == 0
        assert "* config.model.width = 7" in capsys.readouterr().out
    flags = ["--config.model.name", "own_parts:Gated", "--mode=config"]
    assert main([f"--config={tmp_path / 'own.py'}", *flags]) == 0
    assert "width" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("sample.sampler", "own_parts:x_0_alone", "expected samplers.Samples of"),
        ("sample.sampler", "own_parts:no_path", "the sampler returned no trajectory"),
        ("train.schedule", "optax:exponential_decay", "it is called with .peak, steps after"),
        ("train.ema", "own_parts:half", "expected one of warmed_up, constant"),
        ("parallel.strategy", "own_parts:half", "expected one of pmap, fsdp"),
        ("diffusion.loss_target", "own_parts:SCHEDULE", "expected a diffjax.parametrisations"),
        ("condition.map", "own_parts:failing", "condition.map = 'own_parts:failing': ValueError"),
    ],
)
def test_what_a_part_returns_is_looked_at_before_training(parts, tiny_config, key, value, expected):
    tiny_config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=expected) as caught:
        resolve(tiny_config)
        from diffjax.experiment import strategies

        strategies.strategy(tiny_config)
    assert "\n" not in str(caught.value)


def test_losses_know_their_network_and_say_what_they_can_not_do(parts, tiny_config):
    with tiny_config.unlocked():
        tiny_config.model = {"name": "own_parts:Linear", "class_conditional": True}
    tiny_config.diffusion.objective = "own_parts:of_its_network"
    resolve(tiny_config)
    tiny_config.diffusion.update(objective="own_parts:times", time_sampling="loss_second_moment")
    with pytest.raises(UserError, match="needs one of diffjax's own objectives"):
        resolve(tiny_config)
    tiny_config.diffusion.update(objective="own_parts:WithState", time_sampling="low_discrepancy")
    resolve(tiny_config)
    tiny_config.train.accumulate = 2
    with pytest.raises(UserError, match="can't be used with an objective that keeps"):
        resolve(tiny_config)


def test_a_network_of_one_s_own_with_the_ability_is_perturbed(parts, tiny_config):
    with tiny_config.unlocked():
        tiny_config.model = {"name": "own_parts:Attentive", "class_conditional": False}
    tiny_config.sample.guidance = "perturbed_attention(scale=2.0, blocks=('only',))"
    resolve(tiny_config)
