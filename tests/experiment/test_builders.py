"""A config's strings become functions, or one line that lists what is valid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.conditioning.conditions import Conditions
from diffjax.data import ArraySource, describe
from diffjax.errors import UserError
from diffjax.experiment import backbones, network, objective, optimisation, process, sampling
from diffjax.experiment.conditioning import conditions
from diffjax.experiment.spec import from_spec
from diffjax.inference.sampling import GuidanceModel
from diffjax.models import remat


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("cosine", dj.schedules.cosine()),
        ("cosine(T=50)", dj.schedules.cosine(50)),
        (" linear_beta(T=10, beta_end=0.5) ", dj.schedules.linear_beta(10, beta_end=0.5)),
    ],
)
def test_from_spec_reads_a_name_with_arguments(text, same_as):
    chosen = from_spec(text, process.SCHEDULES, key="diffusion.schedule")
    np.testing.assert_array_equal(chosen.signal_scale, same_as.signal_scale)


@pytest.mark.parametrize(
    "text",
    ["", "nope", "cosine(", "cosine(10)", "cosine(T=__import__('os'))", "cosine(**{'T': 3})",
     "cosine(U=3)", "cosine(T=0)", "cosine + cosine", "os.getcwd()"],
)  # fmt: skip
def test_from_spec_refuses_in_one_line(text):
    with pytest.raises(UserError, match=r"config\.diffusion\.schedule = ") as caught:
        from_spec(text, process.SCHEDULES, key="diffusion.schedule")
    assert "\n" not in str(caught.value)


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(UserError, match="uniform, snr, truncated_snr, min_snr"):
        from_spec("nope", objective.WEIGHTINGS, key="diffusion.weighting")


@pytest.mark.parametrize(
    "table",
    [process.SCHEDULES, process.PARAMETRISATIONS, objective.WEIGHTINGS, objective.TIME_SAMPLERS,
     sampling.SAMPLERS, sampling.GRIDS, sampling.THRESHOLDS, sampling.EDITS, backbones.BLOCKS,
     backbones.ATTENTIONS, backbones.RESAMPLES, backbones.TIME_FEATURES, optimisation.OPTIMIZERS,
     optimisation.LEARNING_RATES,
     optimisation.AVERAGES, objective.OBJECTIVES, objective.SCHEDULE_FORMS],
)  # fmt: skip
def test_every_choice_can_be_made_by_its_name_alone(table):
    for name in sorted({*table} - {"text_difference"}):  # which has no captions by default
        assert from_spec(name, table, key="some.key") is not None


def test_what_is_recomputed_has_a_name(tiny_config):
    found = {}
    for name in backbones.REMATS:
        tiny_config.model.remat = name
        diffusion = process.diffusion(tiny_config)
        made = network.network(tiny_config, diffusion=diffusion, shape=(8, 8, 1))
        found[name] = made.module.remat
    assert found == {
        "none": None, "dots": remat.dots, "layers": remat.layers, "full": remat.full,
    }  # fmt: skip


@pytest.mark.parametrize("schedule", sorted(process.SCHEDULES))
@pytest.mark.parametrize("parametrisation", sorted(process.PARAMETRISATIONS))
def test_every_schedule_and_parametrisation_gives_a_finite_loss(
    tiny_config, schedule, parametrisation
):
    tiny_config.diffusion.schedule = schedule
    tiny_config.diffusion.parametrisation = parametrisation
    if parametrisation == "categorical":
        tiny_config.diffusion.loss_target = "x0"  # logits are no target
    if schedule == "rectified_flow" and parametrisation in ("eps", "score"):
        with pytest.raises(UserError, match="can't be inverted"):
            process.diffusion(tiny_config)
        return
    if schedule != "rectified_flow" and parametrisation.startswith("average_"):
        with pytest.raises(UserError, match="is of straight paths"):
            process.diffusion(tiny_config)
        return
    diffusion = process.diffusion(tiny_config)
    loss = objective.squared_error(tiny_config, diffusion, None).loss
    x_0 = jnp.linspace(-1, 1, 6).reshape(2, 3)
    t = jnp.asarray([diffusion.schedule.t_min, diffusion.schedule.T])
    outputs = diffusion.parametrisation.outputs
    network = lambda x, t, cond: jnp.tile(x, outputs)  # noqa: E731
    assert np.isfinite(loss(network, x_0, prediction=diffusion, t=t, eps=x_0[::-1])).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"diffusion.schedule": "rectified_flow", "diffusion.zero_terminal_snr": True},
         "needs a discrete schedule"),
        ({"diffusion.log_snr_shift": 1.0}, "needs a continuous schedule"),
        ({"diffusion.parametrisation": "eps", "diffusion.zero_terminal_snr": True},
         "can't be inverted"),
        ({"diffusion.schedule": "vp_sde", "diffusion.objective": "vdm"}, "finite at both ends"),
        ({"diffusion.loss_target": "nope"}, "config.diffusion.loss_target"),
    ],
)  # fmt: skip
def test_combinations_without_meaning_are_refused(tiny_config, change, message):
    for key, value in change.items():
        tiny_config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        objective.check(tiny_config, process.diffusion(tiny_config))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.attention_resolutions", (5,), r"\[5\] are not among .* \[8, 4\]"),
        ("model.head_channels", 7, "head_channels must divide"),
        ("model.block", "nope", "expected one of resnet, convnext"),
        ("model.resample", "fir", "expected one of conv, average, adm"),
        ("model.time_features", "fourier(scale=0)", "scale must be above 0"),
        ("model.dtype", "float16", "expected one of float32, bfloat16"),
    ],
)
def test_models_that_do_not_fit_are_refused(tiny_config, key, value, message):
    tiny_config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message) as caught:
        diffusion, ten = process.diffusion(tiny_config), Conditions(num_classes=10)
        shape = (8, 8, 1)
        found = network.network(tiny_config, diffusion=diffusion, shape=shape, conditions=ten)
        network.check(
            found, config=tiny_config, diffusion=diffusion, shape=shape, cond=ten.example()
        )
    assert "\n" not in str(caught.value)


def test_a_conditional_model_needs_labels(tiny_config):
    source = ArraySource(np.zeros((1, 8, 8, 1), np.uint8))
    with pytest.raises(UserError, match="has no labels"):
        conditions(tiny_config, describe(source))


def test_learning_rate_warms_up_and_ends(tiny_config):
    tiny_config.train.update(steps=100, warmup_steps=10, learning_rate=0.5)
    rate = optimisation.learning_rate(tiny_config)
    assert [float(rate(step)) for step in (0, 5, 10)] == [0, 0.25, 0.5]
    assert float(rate(55)) == pytest.approx(0.25)
    assert float(rate(100)) == pytest.approx(0, abs=1e-9)
    tiny_config.train.schedule = "constant"
    assert float(optimisation.learning_rate(tiny_config)(99)) == 0.5


@pytest.mark.parametrize(
    ("text", "steps", "times"),
    [
        ("sections(counts=(2,1))", 3, [501, 500, 1, 0]),
        ("sections(counts='2,1')", 3, [501, 500, 1, 0]),
        ("sections(counts='ddim4')", 4, [751, 501, 251, 1, 0]),
        ("sections", 2, [1000, 1, 0]),
    ],
)
def test_sections_of_a_config(tiny_config, text, steps, times):
    tiny_config.sample.update(grid=text, steps=steps)
    grid = sampling.sampling(tiny_config, dj.schedules.linear_beta(1000)).grid
    assert grid.t.tolist() == times


@pytest.mark.parametrize(
    ("text", "make", "options"),
    [
        ("adaptive_projected(scale=3, momentum=-0.5)", dj.guidance.adaptive_projected,
         {"scale": 3.0, "momentum": -0.5}),
        ("cfg_zero_star(scale=3, zero_steps=2)", dj.guidance.cfg_zero_star,
         {"scale": 3.0, "zero_steps": 2}),
        ("cfg_zero_star(papers_scale=2)", dj.guidance.cfg_zero_star, {"scale": 3.0}),
    ],
)  # fmt: skip
def test_guidance_with_memory_by_a_config(tiny_config, text, make, options):
    flow = dj.schedules.rectified_flow()

    def denoise(x_t, t, cond=None):
        x_0 = jnp.where(cond[:, None] < 0, 0.5 * x_t, cond[:, None] + 0.1 * x_t)
        scales = dj.process.scales_like(flow, t, x_t)
        return dj.Estimates(x_0, dj.parametrisations.eps_from_x0(x_t, x_0, scales))

    tiny_config.sample.update(guidance=text, sampler="ddim", steps=5)
    resolved = sampling.sampling(tiny_config, flow)
    model = GuidanceModel(
        denoise, flow, conditional=True, num_classes=2, null=dj.guidance.no_label, network=None,
        shape=(1,), denoiser_of=None, weak=None,
    )  # fmt: skip
    x_T, labels = jnp.array([[0.3, -0.2], [-1.2, 0.5]]), jnp.array([0, 1])
    found = resolved.sampler(resolved.guide(model), x_T, grid=resolved.grid, cond=labels).x_0
    guided = make(denoise, flow, **options)
    expected = dj.memory.carried(dj.samplers.ddim)(guided, x_T, grid=resolved.grid, cond=labels)
    np.testing.assert_array_equal(found, expected.x_0)


@pytest.mark.parametrize("steps", [0, 1001])
def test_sampling_steps_out_of_range(tiny_config, steps):
    tiny_config.sample.steps = steps
    with pytest.raises(UserError, match=r"config\.sample\.steps = "):
        sampling.sampling(tiny_config, process.diffusion(tiny_config).schedule)


def test_attention_is_the_named_implementation():
    def attention(text):
        return from_spec(text, backbones.ATTENTIONS, key="model.attention")

    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 15, 4, 8)).astype(np.float32)
    scores = np.einsum("blhd,bmhd->bhlm", q, k).astype(np.float64) / np.sqrt(8)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("bhlm,bmhd->blhd", weights, v)
    for text in ("softmax", "softmax(implementation='xla')"):
        np.testing.assert_allclose(
            attention(text)(*map(jnp.asarray, (q, k, v))), expected, atol=1e-5
        )
    with pytest.raises(UserError, match="must be 'auto', 'xla' or 'cudnn', not 'flash'"):
        attention("softmax(implementation='flash')")
    if jax.default_backend() != "gpu":
        with pytest.raises(UserError, match="'cudnn' needs an NVIDIA GPU, and this is a cpu"):
            attention("softmax(implementation='cudnn')")
