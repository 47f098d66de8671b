"""What the makers of pictures say of wrong arguments: one line that names the argument."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import figures
from tests.messages import refuses

PIXELS = np.zeros((4, 8, 8, 1), np.uint8)
FLOATS = np.linspace(-1, 1, 256).reshape(4, 8, 8, 1)
POINTS = np.linspace(-1, 1, 8).reshape(4, 2)
PATH = np.linspace(-1, 1, 24).reshape(3, 4, 2)
STEPS = np.stack([FLOATS] * 3)
NOT_WHOLE = ("2", 1.5, 2.0, True, [2], np.nan, -1)
NOT_ARRAYS = (None, 3, "text", [[1], [2, 3]], POINTS.astype(object), 1j * POINTS, np.array(["a"]))
NOT_PICTURES = (*NOT_ARRAYS, PIXELS, FLOATS[0], PIXELS[0, :0], 1.0 * PIXELS[0], PIXELS[0, 0, 0])
NOT_TEXTS = ("abcd", 3, [1, 2, 3, 4], [None] * 4, ["a"], b"abcd")
NOT_PATHS = (None, 3, b"a.png", ["a.png"])


def each(name, values):
    return [({name: value}, name) for value in values]


IMAGES = each("images", (*NOT_ARRAYS, PIXELS[0], PIXELS[:0], FLOATS, PIXELS.repeat(2, -1)))
SAMPLES = (*NOT_ARRAYS, POINTS[:0], np.nan * POINTS)
TRAJECTORY = dict(trajectory=STEPS)
FUNCTIONS = {
    figures.to_uint8: (
        dict(images=FLOATS),
        each("images", (*NOT_ARRAYS[:1], *NOT_ARRAYS[2:], PIXELS, np.nan * FLOATS)),
    ),
    figures.image_grid: (
        dict(images=PIXELS),
        [
            *IMAGES,
            *each("columns", (0, *NOT_WHOLE)), *each("padding", (None, *NOT_WHOLE)),
            *each("scale", (0, None, *NOT_WHOLE)),
            *each("row_labels", ("ab", 3, [1, 2], [None] * 2, ["a"], b"ab")),
            *each("column_labels", ("ab", 3, [1, 2], [None] * 2, ["a"], b"ab")),
        ],
    ),
    figures.captioned: (
        dict(images=PIXELS, captions=["a", "b", "c", "d"]),
        [*IMAGES, *each("captions", (None, *NOT_TEXTS)), *each("scale", (0, None, *NOT_WHOLE))],
    ),
    figures.save_png: (
        dict(path="a.png", array=PIXELS[0]),
        [
            *each("path", NOT_PATHS), *each("array", NOT_PICTURES),
            *each("text", (3, "a", [1], {1: "a"}, {"a": 1}, {"": "a"})),
        ],
    ),
    figures.png_text: (dict(path="a.png"), each("path", NOT_PATHS)),
    figures.save_gif: (
        dict(path="a.gif", frames=PIXELS, milliseconds=50, hold_last=50),
        [
            *each("path", NOT_PATHS),
            *each("frames", (None, 3, "text", [], [None], [PIXELS], FLOATS, {"a": 1},
                             PIXELS[0, 0])),
            *each("milliseconds", (None, 0, "50", np.nan, np.inf, True, [50])),
            *each("hold_last", (None, 0, "50", np.nan, np.inf, True, [50])),
        ],
    ),
    figures.array_sheet: (
        dict(samples=POINTS),
        [
            *each("samples", SAMPLES),
            *each("labels", (3, "abcd", [1], [0.5] * 4, ["a"] * 4, [None] * 4, [[1]] * 4)),
            *each("names", ("abcd", 3, [1, 2], None, b"a")),
        ],
    ),
    figures.array_strip: (
        dict(trajectory=PATH), each("trajectory", (*SAMPLES, POINTS)),
    ),
    figures.array_frames: (
        dict(trajectory=PATH),
        [*each("trajectory", (*SAMPLES, POINTS)), *each("pictures", (0, None, *NOT_WHOLE))],
    ),
    figures.save_array_pictures: (
        dict(sheet="a.png", animation="a.gif", trajectory=PATH),
        [*each("sheet", NOT_PATHS), *each("animation", NOT_PATHS),
            *each("trajectory", (*SAMPLES, POINTS))],
    ),
    figures.denoising_strip: (
        TRAJECTORY,
        [
            *each("trajectory", (*NOT_ARRAYS, FLOATS, STEPS[:0], np.zeros((3, 4, 8, 8, 2)))),
            *each("pictures", (0, 1, None, *NOT_WHOLE)), *each("padding", (None, *NOT_WHOLE)),
            *each("scale", (0, None, *NOT_WHOLE)),
        ],
    ),
    figures.denoising_frames: (
        TRAJECTORY,
        [
            *each("trajectory", (*NOT_ARRAYS, FLOATS, STEPS[:0])),
            *each("pictures", (0, 1, None, *NOT_WHOLE)), *each("columns", (0, *NOT_WHOLE)),
        ],
    ),
    figures.plot_loss: (
        dict(path="a.png", history=[dict(step=1, loss=0.5)]),
        [
            *each("path", NOT_PATHS),
            *each("history", (None, 3, "text", [1], [dict(loss=1.0)], [dict(step=1, loss="a")],
                              [dict(step="a", loss=1.0)], {"step": 1})),
            *each("title", (3, ["a"])),
        ],
    ),
    figures.plot_scales: (
        dict(path="a.png", reports=[]),
        [*each("path", NOT_PATHS), *each("reports", (None, 3, [], [1], [{}], "text"))],
    ),
    figures.plot_bound: (
        dict(path="a.png", each=dict(steps=np.ones((2, 3))), title="bound"),
        [
            *each("path", NOT_PATHS),
            *each("each", (None, 3, {}, [1], dict(steps=[1.0]), dict(log_snr=np.ones((2, 3))))),
            *each("title", (None, 3)),
        ],
    ),
}  # fmt: skip
CALLS = [
    pytest.param(function, right, *case, id=f"{function.__name__}-{case[1]}-{i}")
    for function, (right, cases) in FUNCTIONS.items()
    for i, case in enumerate(cases)
]


@pytest.mark.parametrize(("function", "right", "changes", "word"), CALLS)
def test_a_wrong_argument_is_named(function, right, changes, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = {**right, **changes}
    positional = [call.pop(name) for name in list(right)[:2] if name in call]
    if function in (figures.to_uint8, figures.image_grid, figures.array_frames):
        call[next(iter(right))] = positional.pop(0)
    if function is figures.save_array_pictures:
        positional.append(call.pop("trajectory"))
    refuses(lambda: function(*positional, **call), word)
    assert not list(tmp_path.iterdir())


def test_numpy_scalars_and_jax_arrays_and_lists_are_as_good(tmp_path):
    sheet = figures.image_grid(PIXELS, columns=2, padding=1, scale=2)
    for images in (jnp.asarray(PIXELS), list(PIXELS)):
        other = figures.image_grid(
            images, columns=np.int64(2), padding=np.int32(1), scale=np.int8(2)
        )
        np.testing.assert_array_equal(sheet, other)
    assert len(figures.captioned(list(PIXELS), np.array(["a", "b", "c", "d"]))) == 4
    figures.save_gif(
        tmp_path / "a.gif", list(PIXELS), milliseconds=np.int64(50), hold_last=np.float32(60.5)
    )
    figures.save_png(str(tmp_path / "a.png"), jnp.asarray(PIXELS[0]), text={"a": "b"})
    assert figures.png_text(tmp_path / "a.png") == {"a": "b"}
    figures.array_sheet(POINTS.tolist(), [0, 1, 0, -1], ("a", "b"))
