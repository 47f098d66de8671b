"""Guidance, and what evaluation varies, by config: the same numbers as from the functions."""

import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import flags as command_line
from diffjax.data.info import DataInfo
from diffjax.errors import UserError
from diffjax.experiment import pictures
from diffjax.experiment.diffusion import resolve
from diffjax.experiment.restore import restore_params
from diffjax.experiment.sampling import with_scale
from diffjax.experiment.spec import parse_spec
from diffjax.inference.generator import Generated
from diffjax.inference.sampling import apply_network
from diffjax.main import main


def setup_of(flags, *more):
    config, workdir, *_ = command_line.parse([*flags, *more])
    setup = resolve(config)
    return setup, restore_params(setup, workdir)[1]


def denoiser(setup, params, network=None):
    return dj.denoiser(
        apply_network(network or setup.network, params), setup.diffusion.schedule,
        parametrisation=setup.diffusion.parametrisation,
    )  # fmt: skip


@pytest.fixture(scope="module")
def weak_run(tiny_run, tmp_path_factory, tiny_flags):
    """A run of a smaller network."""
    workdir = tmp_path_factory.mktemp("weak") / "run"
    flags = [*tiny_flags, "--config.model.multipliers=(1,1)", "--config.train.steps=3"]
    assert main([*flags, f"--workdir={workdir}"]) == 0
    return workdir, flags


X_T = jax.random.normal(jax.random.key(7), (4, 8, 8, 1))
LABELS = jnp.array([0, 3, 3, 9])


@pytest.mark.parametrize("kind", ["perturbed_attention", "compose", "autoguidance"])
def test_a_guidance_named_in_a_config_is_that_of_the_core(kind, tiny_run, weak_run, tiny_flags):
    folder, weak_flags = weak_run
    text = {
        "perturbed_attention": "perturbed_attention(scale=2.5)",
        "compose": "compose(labels=(3,5),weights=(2.0,-1.0))",
        "autoguidance": f"autoguidance(workdir='{folder}',scale=2.0)",
    }[kind]
    setup, params = setup_of(
        tiny_flags, f"--workdir={tiny_run}", f"--config.sample.guidance={text}",
        "--config.sample.threshold=none",
    )  # fmt: skip
    plain = denoiser(setup, params)
    if kind == "perturbed_attention":
        perturbed = denoiser(setup, params, setup.network.perturbed(("middle_0",)))
        expected = dj.guidance.perturbed_attention(plain, perturbed, scale=2.5)
    elif kind == "compose":
        conditions = [(2.0, jnp.full(4, 3)), (-1.0, jnp.full(4, 5))]
        expected = dj.guidance.compose(plain, conditions=conditions)
    else:
        weak = denoiser(*setup_of(weak_flags, f"--workdir={folder}"))
        expected = dj.guidance.autoguidance(plain, weak, scale=2.0)

    @jax.jit
    def by_config(params, weak_params, x, labels):
        return setup.generator.denoiser(params, weak_params)(x, 500, labels)

    found = by_config(params, setup.generator.weak_params, X_T, LABELS)
    wanted = jax.jit(expected)(X_T, 500, LABELS)
    for a, b in zip(found[:2], wanted[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert not np.allclose(found.x_0, jax.jit(plain)(X_T, 500, LABELS).x_0, atol=1e-4)


def test_the_weaker_models_parameters_are_no_constants_of_the_program(
    tiny_run, weak_run, tiny_flags
):
    text = f"autoguidance(workdir='{weak_run[0]}',scale=2.0)"
    setup, params = setup_of(
        tiny_flags, f"--workdir={tiny_run}", f"--config.sample.guidance={text}"
    )
    generator = setup.generator
    program = jax.make_jaxpr(generator.function())(
        params, np.arange(2), generator.conditions.batch(0, 2), generator.weak_params
    )
    assert sum(np.size(constant) for constant in program.consts) < 5000  # the schedule's tables


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [
        ("autoguidance(scale=2.0)", "missing"),
        ("autoguidance(workdir='NOWHERE',scale=2.0)", "holds no run"),
        ("autoguidance(workdir='WEAK',scale=2.0,checkpoint='77')", "no checkpoint of step 77"),
        ("autoguidance(workdir='OTHER',scale=2.0)", "must share its data, condition and noise"),
        ("autoguidance(workdir='WEAK',scale=2.0,checkpoint='lates')", "'best', 'ema' or a step"),
        ("autoguidance(workdir=3,scale=2.0)", "workdir must be a string"),
        ("classifier_free(scale='a')", "scale must be a number, not 'a'"),
        (
            "perturbed_attention(scale=2.0,blocks='middle_0')",
            "blocks must be values in parentheses",
        ),
        ("compose(labels=(1.5,),weights=(1.0,))", "labels must be whole numbers"),
        ("compose(labels=(1,),weights=('a',))", "must be a number, not 'a'"),
        ("classifier_free(scale={[]:1})", "expected 'name', "),
        ("perturbed_attention(scale=2.0,blocks=('up9_9',))", "needs blocks with attention"),
        ("perturbed_attention", "one of scale"),
        ("compose(labels=(3,),weights=(1.0,2.0))", "must have the same length"),
        ("compose(labels=(30,),weights=(1.0,))", "expected 0..9"),
        ("classifier_free(null=3,scale=2.0)", "takes scale"),
    ],
)
def test_guidance_that_can_not_be_is_one_line(
    capsys, tiny_run, weak_run, tmp_path, tiny_flags, guidance, expected
):
    folder = weak_run[0]
    if "OTHER" in guidance:
        shutil.copytree(folder, tmp_path / "other")
        stored = json.loads((folder / "config.json").read_text())
        stored["diffusion"]["schedule"] = "linear_beta"
        (tmp_path / "other" / "config.json").write_text(json.dumps(stored))
    for name, path in (("WEAK", folder), ("OTHER", tmp_path / "other"), ("NOWHERE", tmp_path)):
        guidance = guidance.replace(name, str(path))
    arguments = [*tiny_flags, f"--workdir={tiny_run}", "--mode=sample"]
    assert main([*arguments, f"--config.sample.guidance={guidance}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and expected in line


@pytest.mark.parametrize(
    "guidance", ["classifier_free(scale=2.0)", "compose(labels=(1,),weights=(1.0,))"]
)
def test_classes_can_not_guide_a_model_without_them(capsys, tmp_path, tiny_flags, guidance):
    arguments = [*tiny_flags, f"--workdir={tmp_path / 'run'}"]
    arguments += ["--config.model.class_conditional=False", f"--config.sample.guidance={guidance}"]
    assert main(arguments) == 2
    assert "not class-conditional" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_with_scale_refuses_what_has_none():
    for text in ("none", "compose(labels=(1,),weights=(1.0,))"):
        with pytest.raises(UserError, match="has no scale to vary"):
            with_scale(text, 2.0, key="sample.guidance")


def test_evaluation_at_several_scales(capsys, tiny_run, tmp_path, tiny_flags, monkeypatch):
    from diffjax.evaluation import report

    def evaluate(generate, *, num_samples, **options):
        """Stands for the distance by what tells samples apart at no cost: their mean."""
        images = generate(0, num_samples)
        return {
            "frechet_distance": float(images.mean()), "features": "classifier",
            "num_samples": num_samples, "floor_equal_count": None,
        }  # fmt: skip

    monkeypatch.setattr(report, "evaluate", evaluate)
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    arguments = [*tiny_flags, f"--workdir={workdir}", "--mode=evaluate"]
    assert main([*arguments, "--config.evaluate.scales=(1.0,2.0)"]) == 2
    assert "has no scale to vary" in capsys.readouterr().err

    arguments.append("--config.sample.guidance=classifier_free(scale=2.0)")
    assert main([*arguments, "--config.evaluate.scales=(4.0,2.0)"]) == 0
    reports = json.loads((workdir / "evaluation_scales.json").read_text())
    assert [report["scale"] for report in reports] == [4.0, 2.0]
    assert [report["sample"]["guidance"] for report in reports] == [
        "classifier_free(scale=4.0)", "classifier_free(scale=2.0)"
    ]  # fmt: skip
    assert (workdir / "evaluation_scales.png").exists()
    distances = [report["frechet_distance"] for report in reports]
    assert distances[0] != distances[1]
    assert main(arguments) == 0  # the config's own scale, 2
    one = json.loads((workdir / "evaluation.json").read_text())
    assert one["frechet_distance"] == distances[1]


def test_a_scale_in_an_interval_without_end_stays_readable():
    text = "classifier_free(scale=2, interval=(0.1, 1e999))"
    again = with_scale(text, 1.5, key="sample.guidance")
    spec = parse_spec(again, key="sample.guidance")
    assert spec.name == "classifier_free"
    assert spec.arguments == {"interval": (0.1, float("inf")), "scale": 1.5}


def test_composed_samples_claim_no_label(capsys, tiny_run, tmp_path, tiny_flags):
    workdir = tmp_path / ("a-long-name-" * 12) / "run"
    shutil.copytree(tiny_run, workdir)
    arguments = [*tiny_flags, f"--workdir={workdir}", "--mode=sample"]
    arguments.append("--config.sample.guidance=compose(labels=(3,5),weights=(2.0,-1.0))")
    assert main([*arguments, "--config.sample.labels=(3,)"]) == 2
    assert "has its own labels" in capsys.readouterr().err
    assert main(arguments) == 0
    (archive,) = (workdir / "generated").glob("*.npz")
    with np.load(archive, allow_pickle=False) as found:
        assert found.files == ["images"]


def test_a_file_s_name_stays_short_enough_for_any_file_system(tiny_config):
    with tiny_config.unlocked():
        tiny_config.sample.guidance = f"autoguidance(workdir='{'w' * 300}', scale=2.0)"
    names = {pictures.file_stem(tiny_config.sample, f"n{n}") for n in (1, 2)}
    assert len(names) == 2 and max(map(len, names)) <= 180


@pytest.mark.parametrize(("each", "columns", "rows"), [(3, 3, 2), (40, 20, 4), (50, 10, 10)])
def test_many_samples_of_a_class_take_several_rows(each, columns, rows):
    images = np.zeros((2 * each, 8, 8, 1), np.uint8)
    labels = np.arange(2 * each) % 2
    setup = types.SimpleNamespace(
        generator=types.SimpleNamespace(
            conditions=types.SimpleNamespace(
                labels=lambda start, count: labels,
                captions=lambda start, count: None,
                map_images=lambda start, count: None,
            )
        ),
        conditions=types.SimpleNamespace(make_map=None),
        about=DataInfo("two", (8, 8, 1), class_names=("a", "b")),
    )
    sheet = pictures.draw_grid(setup, Generated(images, None), start=0)
    tile = 8 * pictures.pixel_scale((8, 8, 1)) + 2
    assert sheet.shape[0] == 2 + rows * tile
    assert (sheet[2 + tile // 2] == 0).sum() == columns * (tile - 2)
