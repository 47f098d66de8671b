"""--mode=edit as a user meets it, on a model of six steps."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import diffjax as dj
from diffjax import flags as command_line
from diffjax.experiment.diffusion import resolve
from diffjax.experiment.restore import restore_params
from diffjax.inference.sampling import apply_network
from diffjax.main import main

TASKS = {
    "inpaint": ("inpaint", ["image", "known", "1", "2"]),
    "repaint": ("repaint(jump=1, resamples=2)", ["image", "known", "1", "2"]),
    "vary": ("vary(strength=0.7)", ["image", "1", "2"]),
    "invert": ("invert(iterations=3)", ["image", "noise", "back"]),
    "multistep invert": ("invert(order=2)", ["image", "noise", "back"]),
    "super_resolution": ("super_resolution(factor=2)", ["image", "measured", "1", "2"]),
    "deblur": (
        "deblur(std=0.7,method='posterior_sampling')",
        ["image", "measured", "1", "2"],
    ),
    "interpolate": ("interpolate", ["image", "0.33", "0.67", "image"]),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_run, tiny_flags):
    """A folder with files to edit beside a run, the run's flags, and the images' pixels."""
    folder = tmp_path_factory.mktemp("edit")
    shutil.copytree(tiny_run, folder / "run")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), np.uint8)
    (folder / "images").mkdir()
    for name, image in zip("abc", pixels, strict=True):
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:3] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(folder / "white.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "black.png")
    Image.fromarray(mask[:, :5]).save(folder / "narrow.png")
    (folder / "text.png").write_text("not an image")
    (folder / "empty").mkdir()
    Image.new("RGB", (40, 24), (0, 90, 200)).save(folder / "large.png")
    Image.fromarray(
        np.asarray(Image.new("L", (40, 24), 0)) + np.arange(40, dtype=np.uint8) * 6
    ).save(folder / "large_mask.png")
    return folder, tiny_flags, pixels


def edit(trained, task, *more, images="images"):
    folder, flags, _ = trained
    return [
        *flags, f"--workdir={folder / 'run'}", "--mode=edit", "--config.edit.count=2",
        f"--config.edit.images={folder / images}", f"--config.edit.task={task}",
        *(flag.replace("FOLDER", str(folder)) for flag in more),
    ]  # fmt: skip


def results(trained, capsys):
    """The .npz of what was just written, and the picture."""
    lines = [line.removeprefix("wrote ") for line in capsys.readouterr().out.splitlines()]
    picture, archive = (next(p for p in lines if p.endswith(kind)) for kind in (".png", ".npz"))
    with np.load(archive, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}, Image.open(picture)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_writes_a_row_an_image(trained, capsys, name):
    task, columns = TASKS[name]
    masked = name in ("inpaint", "repaint")
    more = ["--config.edit.mask=FOLDER/mask.png"] if masked else []
    assert main(edit(trained, task, *more, "--config.edit.labels=(3,)")) == 0
    found, picture = results(trained, capsys)
    pixels = trained[2][..., None]
    rows = 2 if name == "interpolate" else 3
    assert found["columns"].tolist() == columns
    assert found["images"].shape == (rows, len(columns), 8, 8, 1)
    assert found["rows"].tolist() == (["a - b", "b - c"] if rows == 2 else ["a", "b", "c"])
    np.testing.assert_array_equal(found["images"][:, 0], pixels[:rows])
    assert picture.width > len(columns) * 8 and picture.height > rows * 8
    if masked:  # what is kept is kept to the bit, and what is drawn differs
        np.testing.assert_array_equal(
            found["images"][:, 2:, :3], np.repeat(pixels[:, None, :3], 2, axis=1)
        )
        assert (found["images"][:, 2, 3:] != found["images"][:, 3, 3:]).any()
    if name == "super_resolution":  # the blocks' means, each over its block
        blocks = pixels.reshape(3, 4, 2, 4, 2).mean((2, 4))
        np.testing.assert_allclose(found["images"][:, 1, ::2, ::2, 0], blocks, atol=1)
        np.testing.assert_array_equal(found["images"][:, 1, ::2], found["images"][:, 1, 1::2])
    if name == "interpolate":
        np.testing.assert_array_equal(found["images"][:, -1], pixels[1:])


def test_the_same_command_draws_the_same_and_another_seed_does_not(trained, capsys):
    drawn = []
    for seed in (0, 0, 1):
        assert (
            main(edit(trained, "vary", f"--config.sample.seed={seed}", images="images/a.png")) == 0
        )
        drawn.append(results(trained, capsys)[0]["images"])
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0][:, 1:] != drawn[2][:, 1:]).any()


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_what_the_core_does(trained, capsys, name):
    """The command against the functions that it is made of, called by hand."""
    task, masked = TASKS[name][0], name in ("inpaint", "repaint")
    images = "images" if name == "interpolate" else "images/a.png"
    more = ["--config.edit.mask=FOLDER/mask.png"] if masked else []
    arguments = edit(trained, task, *more, images=images)
    assert main(arguments) == 0
    found = results(trained, capsys)[0]["images"][0]
    config, workdir, *_ = command_line.parse(arguments)
    setup = resolve(config)
    _, params = restore_params(setup, workdir)
    schedule = setup.diffusion.schedule
    plain = dj.denoiser(
        apply_network(setup.network, params), schedule,
        parametrisation=setup.diffusion.parametrisation,
    )  # fmt: skip
    denoise = dj.clip_x0(plain, schedule)
    x_0 = jnp.asarray(trained[2][:2, ..., None]) / 127.5 - 1
    grid, mask = dj.grids.trailing(schedule, 3), jnp.arange(8)[:, None, None] < 3
    eps, keys = setup.generator.noise(np.arange(2))

    twice, none = jnp.repeat(x_0[:1], 2, axis=0), jnp.full(2, -1)
    common = {"grid": grid, "key": keys, "cond": none}

    def there_and_back(x_0, iterations, between=lambda x_T: x_T):
        x_T = dj.samplers.ddim_inversion(
            denoise, x_0, grid=grid, cond=none[: len(x_0)], iterations=iterations
        ).x_0
        x_T = between(x_T)
        return dj.samplers.ddim(denoise, x_T, grid=grid, cond=none[: len(x_T)])

    def restored(wrap, operator, **options):
        y = operator.apply(twice)
        guided = wrap(plain, schedule, operator=operator.apply, y=y, **options)
        guided = dj.clip_x0(guided, schedule)
        return dj.samplers.dpm_solver_pp_2m(guided, eps, **common)

    def by_hand():
        if name == "inpaint":
            known = dj.editing.known_region(denoise, schedule, known=twice, mask=mask)
            return dj.samplers.dpm_solver_pp_2m(known, eps, **common)
        if name == "repaint":
            return dj.editing.repaint(
                denoise, eps, known=twice, mask=mask, jump=1, resamples=2, **common
            )
        if name == "vary":
            return dj.editing.image_to_image(
                dj.samplers.dpm_solver_pp_2m, denoise, twice, strength=0.7, eps=eps, **common
            )
        if name == "invert":
            return there_and_back(x_0[:1], 3)
        if name == "multistep invert":
            here = {"grid": grid, "cond": none[:1], "order": 2}
            x_T = dj.samplers.multistep_inversion(denoise, x_0[:1], **here).x_0
            return dj.samplers.deis(denoise, x_T, variable="log_rho", **here)
        if name == "interpolate":
            return there_and_back(
                x_0, 2, lambda x_T: dj.editing.slerp(*x_T[:, None], jnp.array([1 / 3, 2 / 3]))
            )
        if name == "super_resolution":
            pool = dj.inverse_problems.average_pool(2)
            return restored(dj.inverse_problems.pseudo_inverse, pool, inverse=pool.pseudo_inverse)
        kernel = dj.inverse_problems.gaussian_kernel(0.7)
        return restored(
            dj.inverse_problems.posterior_sampling, dj.inverse_problems.blur(kernel), scale=160.0
        )

    ours = np.asarray(jax.jit(lambda: by_hand().x_0)()) * 127.5 + 127.5
    drawn = found[1:-1] if name == "interpolate" else found[-len(ours) :]
    np.testing.assert_allclose(drawn, np.clip(ours, 0, 255), atol=1)


def test_a_large_colour_image_and_its_mask_are_brought_to_the_model(trained, capsys, caplog):
    more = ["--config.edit.mask=FOLDER/large_mask.png"]
    with caplog.at_level("INFO", logger="diffjax"):
        assert main(edit(trained, "inpaint", *more, images="large.png")) == 0
    assert "centre crop of 40x24, resized to the model's 8x8" in caplog.text
    found, _ = results(trained, capsys)
    # The luma of the colour (ITU-R BT.601), and the right half kept.
    np.testing.assert_allclose(found["images"][0, 0], 0.587 * 90 + 0.114 * 200, atol=1.5)
    np.testing.assert_array_equal(found["images"][0, 2, :, 5:], found["images"][0, 0, :, 5:])


@pytest.mark.parametrize(
    ("task", "images", "more", "expected"),
    [
        ("fly", "images", [], "expected one of inpaint, repaint, vary, invert, interpolate"),
        ("vary(strength=2.0)", "images", [], "strength must be in (0, 1], not 2.0"),
        ("vary(power=1)", "images", [], "unexpected keyword argument 'power'"),
        ("repaint(jump=0)", "images", [], "jump must be a whole number of at least 1, not 0"),
        ("super_resolution(factor=3)", "images", [], "does not divide images of 8x8"),
        ("deblur(std=0)", "images", [], "std must be in [0.1, 100]"),
        ("deblur(method='magic')", "images", [], "method must be one of pseudo_inverse"),
        ("colourise", "images", [], "3 weights for 1 channels"),
        ("invert(iterations=-1)", "images", [], "iterations must be a whole number of at least 0"),
        ("invert(order=4)", "images", [], "order must be 1, 2 or 3, not 4"),
        ("invert(order=2,iterations=1)", "images", [], "iterations are of order 1, DDIM"),
        ("repaint(jump=3)", "images", ["--config.edit.mask=FOLDER/mask.png"], "has no jump of 3"),
        ("repaint(resamples=1.5)", "images", [], "resamples must be a whole number"),
        ("super_resolution(factor=2.0)", "images", [], "factor must be a whole number"),
        ("deblur(scale='a')", "images", [], "scale must be a number, not 'a'"),
        ("deblur(std=1e999)", "images", [], "std must be a number"),
        ("vary", "images", ["--config.edit.images=~nobody-here/a.png"], "there is no such file"),
        (
            "vary",
            "images",
            ["--config.sample.guidance=compose(labels=(1,),weights=(1.0,))",
             "--config.edit.labels=(1,)"],
            "has its own labels",
        ),
        ("interpolate", "images/a.png", [], "needs 2 images, and"),
        ("interpolate", "images", ["--config.edit.labels=(1,2,3)"], "one label for all images"),
        ("vary", "nowhere", [], "there is no such file or folder"),
        ("vary", "empty", [], "holds no image"),
        ("vary", "text.png", [], "text.png is not a readable image"),
        ("vary", "images", ["--config.edit.images="], "config.edit.images is empty"),
        ("vary", "images", ["--config.edit.labels=(1,2)"], "2 labels for 3 images"),
        ("vary", "images", ["--config.edit.labels=(10,)"], "expected classes 0..9"),
        ("vary", "images", ["--config.edit.count=0"], "expected a whole number >= 1"),
        ("vary", "images", ["--config.edit.mask=FOLDER/mask.png"], "has no effect on"),
        ("inpaint", "images", [], "config.edit.mask is empty"),
        ("inpaint", "images", ["--config.edit.mask=FOLDER/narrow.png"], "is 5x8, but"),
        ("inpaint", "images", ["--config.edit.mask=FOLDER/white.png"], "nothing is redrawn"),
        ("inpaint", "images", ["--config.edit.mask=FOLDER/black.png"], "nothing is kept"),
        ("inpaint", "images", ["--config.edit.mask=FOLDER/none.png"], "can't be read"),
        (
            "vary", "images",
            ["--config.model.class_conditional=False", "--config.edit.labels=(1,)"],
            "not class-conditional",
        ),
        ("inpaint", "images", ["--config.edit.mask=FOLDER/mask.png", "--workdir=FOLDER/no"],
         "has no checkpoint: train first"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(trained, capsys, task, images, more, expected):
    folder = trained[0]
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    assert main(edit(trained, task, *more, images=images)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and expected in lines[0]
    assert sorted(folder.rglob("*")) == before
