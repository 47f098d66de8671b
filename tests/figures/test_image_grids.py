"""Where each pixel of a grid and a strip comes from."""

import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.figures import denoising_frames, denoising_strip, image_grid, to_uint8


def numbered(count, height, width, channels):
    """Images whose every pixel differs from the same pixel of the other images."""
    size = height * width * channels
    values = np.arange(count)[:, None] * 7 + np.arange(size)[None] * 3
    return (values % 200).astype(np.uint8).reshape(count, height, width, channels)


def test_to_uint8_undoes_the_scaling_of_every_pixel_value():
    pixels = np.arange(256, dtype=np.uint8)
    floats = pixels.astype(np.float32) / 127.5 - 1.0
    np.testing.assert_array_equal(to_uint8(floats), pixels)


def test_to_uint8_rounds_halves_up_and_clips():
    half_way = np.array([10.5, 11.5]) / 127.5 - 1.0
    np.testing.assert_array_equal(to_uint8(half_way), [11, 12])
    np.testing.assert_array_equal(to_uint8([-np.inf, -3.0, 3.0, np.inf]), [0, 0, 255, 255])


def test_to_uint8_takes_half_precision_types():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in (np.float16, ml_dtypes.bfloat16):
        np.testing.assert_array_equal(to_uint8(np.array([-1, 0, 1], dtype)), [0, 128, 255])


@pytest.mark.parametrize("bad", [np.zeros(3, np.uint8), np.array([0.0, np.nan])])
def test_to_uint8_refuses_pixels_and_nan(bad):
    with pytest.raises(UserError, match="expected"):
        to_uint8(bad)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [1, 3])
def test_each_tile_is_where_the_docstring_says(channels, scale):
    images = numbered(7, 4, 5, channels)
    sheet = image_grid(images, columns=3, padding=2, scale=scale)
    height, width = 4 * scale, 5 * scale
    assert sheet.shape == (2 + 3 * (height + 2), 2 + 3 * (width + 2), channels)
    covered = np.zeros(sheet.shape[:2], bool)
    for i, image in enumerate(images):
        y, x = 2 + i // 3 * (height + 2), 2 + i % 3 * (width + 2)
        np.testing.assert_array_equal(
            sheet[y : y + height, x : x + width], np.kron(image, np.ones((scale, scale, 1)))
        )
        covered[y : y + height, x : x + width] = True
    assert (sheet[~covered] == 255).all()


def test_default_is_as_square_as_it_goes_and_few_images_make_a_narrow_sheet():
    assert image_grid(numbered(10, 4, 4, 1), padding=0).shape == (12, 16, 1)
    assert image_grid(numbered(2, 4, 4, 1), columns=8, padding=0).shape == (4, 8, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_labels_stand_left_of_their_row_and_leave_the_tiles_alone(channels):
    images = np.full((4, 20, 20, channels), 255, np.uint8)
    plain = image_grid(images, columns=2)
    labelled = image_grid(images, columns=2, row_labels=["", "Ankle boot"])
    column = labelled[:, : labelled.shape[1] - plain.shape[1]]
    np.testing.assert_array_equal(labelled[:, column.shape[1] :], plain)
    inked_rows = np.flatnonzero((column < 128).any(axis=(1, 2)))
    # The second row's tile covers y = 24 to 43.
    assert len(inked_rows) > 0 and inked_rows.min() >= 24 and inked_rows.max() < 44


def test_longer_labels_are_not_cut_off():
    images = np.full((1, 28, 28, 1), 255, np.uint8)
    column = image_grid(images, row_labels=["a rather long class name, gyp"])[:, :-32]
    assert (column[:, :2] == 255).all() and (column[:, -2:] == 255).all()
    assert (column[:, 3:12] < 128).any()


@pytest.mark.parametrize(
    ("images", "options"),
    [
        (np.zeros((2, 4, 4, 1), np.float32), {}),
        (np.zeros((2, 4, 4, 2), np.uint8), {}),
        (np.zeros((4, 4, 1), np.uint8), {}),
        (np.zeros((0, 4, 4, 1), np.uint8), {}),
        (np.zeros((2, 4, 4, 1), np.uint8), {"columns": 0}),
        (np.zeros((2, 4, 4, 1), np.uint8), {"scale": 0}),
        (np.zeros((2, 4, 4, 1), np.uint8), {"padding": -1}),
        (np.zeros((2, 4, 4, 1), np.uint8), {"columns": 1, "row_labels": ["one"]}),
    ],
)
def test_what_cannot_be_laid_out_is_refused(images, options):
    with pytest.raises(UserError, match="expected") as caught:
        image_grid(images, **options)
    assert "\n" not in str(caught.value)


def trajectory(states, samples):
    """Constant 2x2 pictures, of brightness 10 k + b at state k of sample b."""
    values = 10 * np.arange(states)[:, None] + np.arange(samples)[None]
    pixels = np.broadcast_to(values[:, :, None, None, None], (states, samples, 2, 2, 1))
    return pixels / 127.5 - 1.0


def test_strip_has_a_row_a_sample_from_noise_to_sample():
    strip = denoising_strip(trajectory(21, 3), pictures=5, padding=0)[::2, ::2, 0]
    np.testing.assert_array_equal(strip, [[50 * i + b for i in range(5)] for b in range(3)])


def test_strip_of_few_states_shows_each_once():
    strip = denoising_strip(trajectory(3, 1), pictures=10, padding=0)[::2, ::2, 0]
    np.testing.assert_array_equal(strip, [[0, 10, 20]])


def test_frames_show_the_whole_batch_at_each_time():
    frames = denoising_frames(trajectory(21, 4), pictures=3, padding=0)
    for state, frame in zip((0, 10, 20), frames, strict=True):
        expected = [[10 * state, 10 * state + 1], [10 * state + 2, 10 * state + 3]]
        np.testing.assert_array_equal(frame[::2, ::2, 0], expected)


@pytest.mark.parametrize("function", [denoising_strip, denoising_frames])
def test_trajectories_of_another_kind_are_refused(function):
    with pytest.raises(UserError, match=r"\(K\+1, B, H, W, C\)"):
        function(np.zeros((3, 4, 4, 1)))
    with pytest.raises(UserError, match="pictures=1"):
        function(trajectory(3, 1), pictures=1)


def test_column_labels_stand_over_their_columns_and_leave_the_tiles_in_place():
    images = numbered(6, 30, 40, 1)
    plain = image_grid(images, columns=3)
    both = image_grid(images, columns=3, row_labels=["a", "b"], column_labels=["x", "", "z"])
    rows_only = image_grid(images, columns=3, row_labels=["a", "b"])
    top = both.shape[0] - plain.shape[0]
    np.testing.assert_array_equal(both[top:], rows_only)
    left = both.shape[1] - plain.shape[1]
    ink = [(both[:top, left + 2 + c * 42 : left + 42 + c * 42] < 255).any() for c in range(3)]
    assert ink == [True, False, True]
    assert (both[:top, :left] == 255).all()


def test_long_column_labels_are_drawn_smaller():
    images = numbered(2, 40, 40, 1)
    top = [
        image_grid(images, columns=2, column_labels=[text, "b"]).shape[0]
        for text in ("a", "a" * 12)
    ]
    assert top[1] < top[0]


def test_column_labels_must_be_as_many_as_columns():
    with pytest.raises(UserError, match="2 column labels for a grid of 3 columns"):
        image_grid(numbered(6, 4, 4, 1), columns=3, column_labels=["a", "b"])
