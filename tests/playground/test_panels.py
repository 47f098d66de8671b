"""What the panels compute, and that the code they give is the code of what is seen."""

import base64
import json
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffjax import schedules
from diffjax.playground import toy
from diffjax.playground.__main__ import main
from diffjax.playground.edit import kept
from diffjax.playground.values import Values, how_of


def image_of(packed):
    return np.frombuffer(base64.b64decode(packed["data"]), np.uint8).reshape(packed["shape"])


def images_of(events):
    return [image_of(event["image"]) for event in events if "image" in event]


@pytest.fixture(scope="module")
def run(server):
    return server.runs.listed()[0]["name"]


def test_a_drawing_has_every_step(client, run):
    events = client.events("draw", run=run, label="3", seed="1", sampler="ddim", steps="5")
    steps = [event["step"] for event in events if "step" in event]
    times = [step["t"] for step in steps]
    assert len(steps) == 5 and times == sorted(times, reverse=True)
    for name in ("x_t", "x_0", "eps"):
        assert image_of(steps[0][name]).shape == (8, 8, 1)
    # The last step of DDIM lands on the last estimate of x_0.
    np.testing.assert_array_equal(image_of(steps[-1]["x_0"]), image_of(events[-1]["image"]))


VIEWS = [
    ("draw", {"label": "3", "seed": "1", "sampler": "ancestral", "steps": "4"}),
    ("compare", {"by": "steps", "items": "2, 3", "seed": "1"}),
    ("mix", {"between": "conditions", "label": "1", "label_to": "2", "count": "3", "steps": "2"}),
    ("edit", {"seed": "1", "steps": "3", "count": "1"}),
]
MORE_VIEWS = [
    ("draw", {"seed": "2", "guidance": "classifier_free", "scale": "3", "steps": "3"}),
    ("compare", {"by": "scale", "items": "1, 2.5", "seed": "1", "steps": "2"}),
    ("mix", {"seed": "1", "seed_to": "2", "count": "3", "steps": "2"}),
    ("mix", {"between": "walk", "seeds": "1,2", "count": "2", "steps": "2"}),
    ("edit", {"seed": "1", "steps": "3", "count": "2", "task": "vary", "strength": "0.7"}),
]


@pytest.mark.parametrize(
    ("panel", "values"),
    [*VIEWS, *(pytest.param(*view, marks=pytest.mark.slow) for view in MORE_VIEWS)],
)
def test_the_python_gives_the_same_bytes(client, run, panel, values):
    shown = images_of(client.events(panel, run=run, **values))
    code = client.events("code", panel=panel, values={"run": run, **values})[-1]["python"]
    found = {}
    exec(code, found)
    for mine, other in zip(shown, found["images"], strict=True):
        np.testing.assert_array_equal(mine, other)


def test_no_item_adds_a_line_to_the_code(client, run):
    values = {"run": run, "items": "ddim(\neta=0.5)", "steps": "2"}
    code = client.events("code", panel="compare", values=values)[-1]["python"]
    line = next(line for line in code.splitlines() if "#" in line)
    assert line.endswith("# ddim( eta=0.5)")


def test_the_command_gives_the_same_bytes(client, run, tmp_path, monkeypatch):
    values = {"run": run, "label": "3", "seed": "1", "steps": "3", "guidance": "none"}
    shown = images_of(client.events("draw", **values))[0]
    command = client.events("code", panel="draw", values=values)[-1]["command"]
    python, flag, module, *arguments = shlex.split(command)
    assert (python, flag, module) == ("python", "-m", "diffjax.playground")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0
    np.testing.assert_array_equal(np.asarray(Image.open("draw.png")), shown[..., 0])


def test_a_comparison_counts_evaluations(client, run):
    events = client.events(
        "compare", run=run, by="sampler", items="ddim, heun", steps="4", guidance="none"
    )
    found = {e["item"]: e["evaluations"] for e in events if "evaluations" in e}
    assert found == {0: 4, 1: 7}  # Heun's last step, to clean data, is Euler's
    assert all(e["seconds"] >= 0 for e in events if "seconds" in e)


def test_a_comparison_goes_on_after_a_picture_that_fails(client, run):
    events = client.events("compare", run=run, items="flow_map, ddim", steps="2")
    failed = [e for e in events if "failed" in e]
    assert [e["item"] for e in failed] == [0] and len(images_of(events)) == 1


def test_what_is_not_painted_is_kept(client, run):
    events = client.events("edit", run=run, seed="1", steps="2", count="2", task="inpaint")
    image, _, *results = images_of(events)
    for result in results:
        np.testing.assert_array_equal(result[:, :4], image[:, :4])
        assert (result[:, 4:] != image[:, 4:]).any()


def test_a_picture_of_ones_own_is_edited(client, run):
    picture = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    packed = {"shape": [8, 8, 1], "data": base64.b64encode(picture.tobytes()).decode()}
    events = client.events("edit", run=run, picture=packed, steps="2", count="1", task="vary")
    np.testing.assert_array_equal(images_of(events)[0], picture)


def test_masks_are_bits_row_by_row():
    painted = np.zeros((8, 8), bool)
    painted[2, 5] = painted[7, 0] = True
    text = base64.urlsafe_b64encode(np.packbits(painted).tobytes()).decode().rstrip("=")
    np.testing.assert_array_equal(kept(text, (8, 8)), ~painted)
    # Larger pictures have cells of several pixels.
    large = np.zeros((64, 64), bool)
    large[0, 1] = True
    text = base64.urlsafe_b64encode(np.packbits(large).tobytes()).decode().rstrip("=")
    found = ~kept(text, (256, 256))
    assert found.sum() == 16 and found[:4, 4:8].all()


def test_training_is_read_as_it_is_written(client, server, run, tiny_run):
    whole = (tiny_run / "metrics.jsonl").read_bytes()
    path = tiny_run / "metrics.jsonl"
    lines = [json.loads(line) for line in whole.splitlines()]
    try:
        path.write_bytes(whole[:-5])  # the last line is only half written
        (first,) = client.events("training", run=run)
        assert [r["step"] for r in first["records"]] == [line["step"] for line in lines[:-1]]
        path.write_bytes(whole)
        (second,) = client.events("training", run=run, start=first["next"])
        assert [r["step"] for r in second["records"]] == [lines[-1]["step"]]
        path.write_bytes(whole[: whole.index(b"\n") + 1])
        (third,) = client.events("training", run=run, start=second["next"])
        assert third["restarted"] and len(third["records"]) == 1
        assert third["grids"] == sorted(f.name for f in (tiny_run / "samples").iterdir())
    finally:
        path.write_bytes(whole)


def test_the_toys_denoiser_has_the_mixtures_score():
    points, spread = jnp.array([[0.5, -1.0], [-1.0, 0.3], [1.2, 1.2]]), 0.3
    schedule = schedules.cosine(100)
    x = jax.random.normal(jax.random.key(0), (20, 2)) * 1.5
    for t in (1, 30, 99):
        signal, noise = (float(v) for v in schedule(np.asarray(t)))
        variance = signal**2 * spread**2 + noise**2

        def log_density(x, signal=signal, variance=variance):
            squared = jnp.square(x - signal * points).sum(-1)
            return jax.nn.logsumexp(-squared / (2 * variance))

        score = jax.vmap(jax.grad(log_density))(x)
        pair = toy.mixture_denoiser(points, schedule, spread=spread)(x, jnp.asarray(t))
        np.testing.assert_allclose(-pair.eps / noise, score, rtol=2e-3, atol=2e-3)


def test_the_toys_particles_reach_the_points(client):
    def letters(value):
        number = round((value / toy.LIMIT + 1) / 2 * 4095)
        return toy.LETTERS[number // 64] + toy.LETTERS[number % 64]

    points = [(-1.0, -1.0), (1.0, 0.5)]
    text = "".join(letters(x) + letters(y) for x, y in points)
    np.testing.assert_allclose(toy.points_of(text), points, atol=1e-3)
    events = client.events("toy", points=text, steps="20", particles="50", spread="0.05")
    frames = [event["frame"] for event in events if "frame" in event]
    assert len(frames) == 21 and len(frames[0]["field"]) == 2 * toy.FIELD**2
    last = np.reshape(frames[-1]["x"], (-1, 2))
    nearest = np.linalg.norm(last[:, None] - np.array(points), axis=-1)
    assert nearest.min(1).max() < 5 * 0.05
    assert set(nearest.argmin(1)) == {0, 1}


def test_settings_are_texts_or_numbers():
    given = {"steps": "7", "guidance": "classifier_free", "scale": 3, "threshold": ""}
    assert how_of(Values(given)) == {"steps": 7, "guidance": "classifier_free(scale=3.0)"}
