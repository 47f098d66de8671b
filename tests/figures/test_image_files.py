"""What ends up on the disk, and what does not when writing fails."""

import os
import stat
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import diffjax.figures
from diffjax.errors import UserError
from diffjax.figures import plot_loss, save_gif, save_png
from diffjax.files import atomic_write


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half of the n")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        atomic_write(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["picture.png"]


def test_the_old_file_stays_whole_until_the_new_one_is(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    seen = []

    def write(file):
        file.write(b"new")
        file.flush()
        seen.append(path.read_bytes())

    atomic_write(path, write)
    assert seen == [b"old"]
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_bytes_are_synced_before_the_rename(tmp_path, monkeypatch):
    calls = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), real_fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), real_replace(a, b)))
    atomic_write(tmp_path / "file", lambda file: file.write(b"x"))
    assert calls[:2] == ["fsync", "replace"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_file_has_the_permissions_that_open_would_give(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    atomic_write(tmp_path / "atomic", lambda file: file.write(b""))
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")]
    assert modes[0] == modes[1]


def test_folders_are_made_and_impossible_paths_are_the_users_error(tmp_path):
    atomic_write(tmp_path / "a" / "b" / "file", lambda file: file.write(b"x"))
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"x"
    with pytest.raises(UserError, match="cannot write"):
        atomic_write(tmp_path / "a", lambda file: file.write(b"x"))
    with pytest.raises(UserError, match="cannot write"):
        atomic_write(tmp_path / "a" / "b" / "file" / "below", lambda file: file.write(b"x"))


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3)])
def test_png_keeps_every_pixel(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    save_png(tmp_path / "p.png", pixels)
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.format == "PNG"
        np.testing.assert_array_equal(np.asarray(picture).reshape(shape), pixels)


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8)])
def test_png_refuses_other_arrays_and_writes_nothing(tmp_path, bad):
    with pytest.raises(UserError, match="expected uint8"):
        save_png(tmp_path / "p.png", bad)
    assert os.listdir(tmp_path) == []


def test_gif_has_all_grey_frames_exactly_and_holds_the_last(tmp_path):
    frames = list(np.random.default_rng(0).integers(0, 256, (5, 8, 9, 1)).astype(np.uint8))
    save_gif(tmp_path / "a.gif", frames, milliseconds=40, hold_last=1200)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 5
        assert animation.info["loop"] == 0
        durations = []
        for i, frame in enumerate(frames):
            animation.seek(i)
            durations.append(animation.info["duration"])
            np.testing.assert_array_equal(np.asarray(animation.convert("L")), frame[..., 0])
    assert durations == [40, 40, 40, 40, 1200]


def test_gif_in_colour_and_of_one_frame(tmp_path):
    colours = np.zeros((8, 8, 3), np.uint8)
    colours[:4] = (200, 30, 90)
    save_gif(tmp_path / "a.gif", [colours], milliseconds=20, hold_last=20)
    with Image.open(tmp_path / "a.gif") as animation:
        np.testing.assert_array_equal(np.asarray(animation.convert("RGB")), colours)


def test_gif_refuses_what_it_cannot_show(tmp_path):
    frame = np.zeros((4, 4, 1), np.uint8)
    for frames, milliseconds in (([], 40), ([frame, frame[:2]], 40), ([frame], 5)):
        with pytest.raises(UserError, match="expected"):
            save_gif(tmp_path / "a.gif", frames, milliseconds=milliseconds, hold_last=100)


def rows(count, loss):
    return [{"step": 10 * i, "loss": loss(i)} for i in range(count)]


def drawn_pixels(path, colour, tolerance=40):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return np.argwhere((abs(pixels - wanted) < tolerance).all(axis=-1))


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"step": 0, "loss": 0.5}],
        [{"step": 3, "loss": float("nan")}],
        [{"step": 0, "loss": None, "eval_loss": 0.2}],
        [{"step": 0, "learning_rate": 1e-3}],
        rows(30, lambda i: float("nan") if i % 3 else 1.0),
        rows(30, lambda i: 3.0 - i),
        rows(5, lambda i: 0.25),
    ],
)
def test_any_history_can_be_drawn(tmp_path, history):
    plot_loss(tmp_path / "loss.png", history)
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.width > 600 and picture.height > 300
        assert np.asarray(picture).std() > 1


def test_a_falling_loss_falls_in_the_picture(tmp_path):
    from diffjax.figures.loss_curve import LOSS_COLOUR

    # A straight line on a logarithmic axis: the middle of the curve is at half of its height.
    history = rows(400, lambda i: 10.0 ** (-2 * i / 399))
    plot_loss(tmp_path / "loss.png", history)
    curve = drawn_pixels(tmp_path / "loss.png", LOSS_COLOUR)
    curve = curve[curve[:, 0] > 150]  # without the legend
    x_low, x_high = curve[:, 1].min(), curve[:, 1].max()
    heights = [
        curve[abs(curve[:, 1] - (x_low + part * (x_high - x_low))) <= 1][:, 0].mean()
        for part in (0.3, 0.6, 0.9)
    ]
    assert heights[0] < heights[1] < heights[2]
    assert abs((heights[1] - heights[0]) - (heights[2] - heights[1])) < 4


def test_a_resumed_runs_later_rows_count(tmp_path):
    once = rows(50, lambda i: 1.0 / (i + 1))
    again = [{"step": row["step"], "loss": 99.0} for row in once[20:30]]
    plot_loss(tmp_path / "once.png", once)
    plot_loss(tmp_path / "again.png", once[:20] + again + once[20:])
    assert (tmp_path / "once.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_lost_steps_are_marked(tmp_path):
    from diffjax.figures.loss_curve import LOST_COLOUR

    plot_loss(tmp_path / "fine.png", rows(40, lambda i: 1.0))
    plot_loss(tmp_path / "lost.png", rows(40, lambda i: float("inf") if i == 9 else 1.0))
    assert len(drawn_pixels(tmp_path / "fine.png", LOST_COLOUR)) == 0
    assert len(drawn_pixels(tmp_path / "lost.png", LOST_COLOUR)) > 0


def test_the_room_needs_neither_jax_nor_pyplot(tmp_path):
    # diffjax itself brings jax, so an empty package with its path stands in for it.
    code = (
        "import sys, types\n"
        "package = types.ModuleType('diffjax')\n"
        "package.__path__ = [sys.argv[1]]\n"
        "sys.modules['diffjax'] = package\n"
        "import diffjax.figures as figures\n"
        "assert 'matplotlib' not in sys.modules, 'imported before it is needed'\n"
        "figures.plot_loss(sys.argv[2], [{'step': 1, 'loss': 1.0}])\n"
        "assert not {'jax', 'flax', 'matplotlib.pyplot'} & set(sys.modules)\n"
    )
    root = os.path.dirname(os.path.dirname(diffjax.figures.__file__))
    subprocess.run([sys.executable, "-c", code, root, str(tmp_path / "loss.png")], check=True)
