"""Decoding: what each kind of file means in 8 bits, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from diffjax.data import images
from diffjax.data.images import UnreadableImage, decode

RNG = np.random.default_rng(0)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_pixels_come_back(shape, kind):
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    decoded = decode(encode(Image.fromarray(pixels), kind, lossless=True))
    expected = pixels.reshape(5, 7, -1)
    if kind == "WEBP" and len(shape) == 2:  # WebP knows no grey
        expected = np.repeat(expected, 3, axis=2)
    assert decoded.dtype == np.uint8 and decoded.shape == expected.shape
    assert (decoded == expected).all()


def test_jpeg_is_close():
    pixels = np.full((16, 16, 3), (200, 30, 60), np.uint8)
    decoded = decode(encode(Image.fromarray(pixels), "JPEG", quality=95))
    assert np.abs(decoded.astype(int) - pixels).max() <= 3


def test_sixteen_bit_grey_is_scaled_not_cut():
    values = np.array([[0, 128, 129, 257], [32768, 65278, 65406, 65535]], np.uint16)
    decoded = decode(encode(Image.fromarray(values)))
    assert decoded.shape == (2, 4, 1)
    assert decoded[..., 0].tolist() == [[0, 0, 1, 1], [128, 254, 254, 255]]


def test_one_bit_is_black_and_white():
    decoded = decode(encode(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")))
    assert decoded[..., 0].tolist() == [[0, 255]]


def test_transparency_is_laid_on_white():
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
    decoded = decode(encode(Image.fromarray(rgba)))
    assert decoded[0, 0].tolist() == [255, 0, 0]
    assert decoded[0, 1].tolist() == [255, 255, 255]
    assert np.abs(decoded[0, 2].astype(int) - 127).max() <= 1


def test_grey_with_transparency_stays_grey():
    grey_alpha = np.array([[[7, 255], [7, 0]]], np.uint8)
    decoded = decode(encode(Image.fromarray(grey_alpha, "LA")))
    assert decoded.shape == (1, 2, 1)
    assert decoded[0, :, 0].tolist() == [7, 255]


def test_palette_means_its_colours():
    rgb = np.array([[[10, 20, 30], [200, 100, 50]]], np.uint8)
    palette = Image.fromarray(rgb).quantize(4)
    assert palette.mode == "P"
    assert (decode(encode(palette)) == rgb).all()


def test_transparent_palette_entry_is_white():
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    decoded = decode(encode(palette, transparency=1))
    assert decoded[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_cmyk_becomes_rgb():
    decoded = decode(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = decoded[4, 4]
    assert red > 200 and green < 40 and blue < 40


def test_orientation_tag_is_obeyed():
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:, :16] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: white on top
    data = encode(Image.fromarray(pixels), "JPEG", exif=exif)
    decoded = decode(data)
    assert decoded.shape == (32, 16, 1)
    assert decoded[:12].min() > 200 and decoded[20:].max() < 50
    with images.open_still(io.BytesIO(data)) as image:
        assert images.upright_size(image) == (32, 16)


def test_channels_are_converted():
    rgb = np.array([[[255, 0, 0], [9, 9, 9]]], np.uint8)
    grey = decode(encode(Image.fromarray(rgb)), channels=1)
    assert grey[0, :, 0].tolist() == [76, 9]  # 0.299 * 255 by ITU-R 601
    back = decode(encode(Image.fromarray(grey[..., 0])), channels=3)
    assert back[0].tolist() == [[76] * 3, [9] * 3]


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (41, 40), (8, 8), (7, 301)])
def test_resize_gives_a_square_of_the_middle(shape):
    height, width = shape
    side = min(shape)
    top, left = (height - side) // 2, (width - side) // 2
    pixels = np.zeros(shape, np.uint8)
    pixels[top : top + side, left : left + side] = 200  # what is cut off is black
    decoded = decode(encode(Image.fromarray(pixels)), image_size=16)
    assert decoded.shape == (16, 16, 1)
    assert np.abs(decoded.astype(int).mean() - 200) < 5


def test_downsizing_is_antialiased():
    # One-pixel stripes are mid-grey from afar; picking single pixels would give 0 or 255.
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    decoded = decode(encode(Image.fromarray(stripes)), image_size=8)
    assert np.abs(decoded[:, 1:-1].astype(int) - 127).max() < 12


def test_an_image_of_the_right_size_is_not_resampled():
    pixels = RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    assert (decode(encode(Image.fromarray(pixels)), image_size=9) == pixels).all()


def test_arrays_convert_as_files_do():
    pixels = RNG.integers(0, 256, (3, 12, 10, 3), dtype=np.uint8)
    converted = images.convert_array(pixels, image_size=6, channels=1)
    files = [decode(encode(Image.fromarray(p)), image_size=6, channels=1) for p in pixels]
    assert (converted == np.stack(files)).all()
    assert images.convert_array(pixels, image_size=None, channels=3) is pixels


PNG = encode(Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)))
JPEG = encode(Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)), "JPEG")
FRAMES = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, I am a text file", "not a PNG"),
        (PNG[: len(PNG) // 2], "."),
        (PNG[:20], "."),
        (PNG[:60] + b"\0" * 40 + PNG[100:], "."),
        (JPEG[: len(JPEG) // 2], "(?i)truncated"),
        (encode(FRAMES[0], "GIF"), "not a PNG"),
        (encode(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), "animated"),
        (encode(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]), "animated"),
    ],
)
def test_damaged_and_strange_files_are_refused(data, reason):
    with pytest.raises(UnreadableImage, match=reason):
        decode(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [1000, 400])  # Pillow warns above, and refuses above twice it
def test_a_decompression_bomb_is_refused(monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UnreadableImage, match="pixels"):
        decode(PNG)
