"""The table of super-resolution, on methods whose quality is known."""

import numpy as np
from PIL import Image

from benchmarks import super_resolution

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 12, 12, 1)).astype(np.uint8)


def test_methods_of_known_quality():
    def box(low):
        return np.repeat(np.repeat(low, 2, axis=1), 2, axis=2)

    noise = np.random.default_rng(1).integers(-10, 11, IMAGES.shape)
    noisy = np.clip(IMAGES.astype(int) + noise, 0, 255).astype(np.uint8)
    methods = {"true": lambda low: IMAGES, "box": box, "noisy": lambda low: noisy}
    true, boxes, near = super_resolution.compare(
        methods, IMAGES, factor=2, distance=lambda images: float(images.mean())
    )
    assert true["psnr"] == 100.0 and true["ssim"] > 0.9999
    assert true["misfit"] <= 0.5 / 127.5  # the rounding of the low-resolution file
    assert boxes["misfit"] == 0.0
    errors = np.square((noisy.astype(float) - IMAGES) / 255).mean((1, 2, 3))
    np.testing.assert_allclose(near["psnr"], (-10 * np.log10(errors)).mean(), atol=1e-3)
    assert boxes["psnr"] < near["psnr"] < true["psnr"]
    text = super_resolution.table([true, boxes, near], about="Six images")
    assert text.count("|\n") == 5 and "| box | " in text


def test_interpolation_is_pillow_s():
    low = IMAGES[:1, :6, :6]
    wanted = Image.fromarray(low[0, ..., 0].astype(np.float32)).resize((24, 24), Image.BICUBIC)
    made = super_resolution.interpolation(4)(low)[0, ..., 0]
    np.testing.assert_allclose(made, np.clip(np.asarray(wanted), 0, 255), atol=0.51)
