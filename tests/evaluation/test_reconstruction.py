"""PSNR, SSIM and codebook use against values known in closed form."""

import numpy as np
import pytest

from diffjax.data import ArraySource
from diffjax.evaluation.reconstruction import codebook_use, evaluate_reconstruction, similarity
from diffjax.perceptual import EmbeddingNetwork

IMAGES = np.random.default_rng(0).integers(20, 200, (6, 16, 16, 3)).astype(np.uint8)


def test_equal_images():
    found = similarity(IMAGES, IMAGES)
    assert found["psnr"] == 100 and found["ssim"] == pytest.approx(1, abs=1e-5) and found["l1"] == 0


def test_a_constant_error():
    found = similarity(IMAGES, IMAGES + np.uint8(10))
    assert found["psnr"] == pytest.approx(20 * np.log10(25.5), abs=1e-3)
    assert found["l1"] == pytest.approx(20 / 255, abs=1e-5)


def test_ssim_of_flat_images_is_that_of_their_means():
    a, b = np.full((2, 12, 12, 1), 51, np.uint8), np.full((2, 12, 12, 1), 204, np.uint8)
    c1 = 0.01**2  # Wang et al. 2004, equation 6, for a range of 1
    wanted = (2 * 0.2 * 0.8 + c1) / (0.2**2 + 0.8**2 + c1)
    assert similarity(a, b)["ssim"] == pytest.approx(wanted, abs=1e-4)


def test_images_smaller_than_the_window_have_no_ssim():
    assert similarity(IMAGES[:, :8, :8], IMAGES[:, :8, :8])["ssim"] is None


def test_codes():
    assert codebook_use(np.array([[3, 3], [3, 3]]), 8) == {
        "codes_used": 1 / 8, "codebook_perplexity": 1.0,
    }  # fmt: skip
    assert codebook_use(np.arange(8), 8)["codebook_perplexity"] == pytest.approx(8)


def test_a_set_without_classes_has_no_frechet_distance(tmp_path):
    source = ArraySource(IMAGES)
    said = []
    report = evaluate_reconstruction(
        lambda x: 255 - x, train=source, test=None, num_images=4, cache_dir=tmp_path,
        log=said.append,
    )  # fmt: skip
    with_features = evaluate_reconstruction(
        lambda x: x, train=source, test=None, num_images=6, cache_dir=tmp_path,
        features=lambda x: [x], log=said.append,
    )  # fmt: skip
    network = EmbeddingNetwork("means", (), lambda params, x: x.mean((1, 2)), 3, "means")
    embedded = evaluate_reconstruction(
        lambda x: x // 2, train=source, test=None, num_images=6, cache_dir=tmp_path,
        network=network, log=said.append,
    )  # fmt: skip
    assert embedded["features"] == "means" and embedded["floor"] == pytest.approx(0, abs=1e-6)
    assert embedded["embedding_frechet_distance"] > 0.01
    assert with_features["perceptual_frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert report["images"] == 4 and report["split"] == "train"
    assert "classifier_frechet_distance" not in report and any("train" in line for line in said)
