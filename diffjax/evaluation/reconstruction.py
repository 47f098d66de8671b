"""Reconstruction quality of an autoencoder: PSNR, SSIM, and a Fréchet distance.

The Fréchet distance is between features of reconstructed test images and of all training images; it
is reported with that of the original test images, a lower bound to expect. The features are an
embedding network's, as for samples. Without one they are, for labelled images, those of the set's
own classifier (CFD), and for others means over the last maps of the perceptual network that the
autoencoder was trained with, which biases the distance in its favour: use it only to compare runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.evaluation.classifier_features import classifier_for
from diffjax.evaluation.feature_function import embedding_features, make_feature_function
from diffjax.evaluation.frechet import FeatureStatistics, frechet_distance
from diffjax.evaluation.labelled_images import LabelledImages, read_examples, read_in_order
from diffjax.figures.image_grids import check_images
from diffjax.perceptual import EmbeddingNetwork
from diffjax.progress import Bar

Images = npt.NDArray[np.uint8]
Log = Callable[[str], object]

BATCH = 250
SMALLEST_FOR_SSIM = 11


def similarity(images: Images, reconstructed: Images) -> dict[str, float | None]:
    """Means over images of PSNR, SSIM and L1 distance.

    Args:
      images, reconstructed: (N, H, W, C).

    Returns:
      "psnr": dB, per image, at most 100;
      "ssim": Wang et al. 2004, an 11x11 Gaussian window of std 1.5, pixels in [0, 1]; None for
        images smaller than the window;
      "l1": of pixels in [-1, 1].

    Raises:
      UserError: images that are not uint8, or of two shapes.
    """
    images = check_images(images)
    reconstructed = check_images(reconstructed, name="reconstructed")
    if images.shape != reconstructed.shape:
        raise UserError(
            f"got images of shape {images.shape} and reconstructed ones of "
            f"{reconstructed.shape}; expected one shape"
        )
    psnr, ssim, l1 = [], [], []
    has_window = min(images.shape[1:3]) >= SMALLEST_FOR_SSIM
    with Bar("PSNR and SSIM", len(images)) as bar:
        for start in range(0, len(images), BATCH):
            a, b = (part[start : start + BATCH] for part in (images, reconstructed))
            x, y = (jnp.asarray(part, jnp.float32) / 255 for part in (a, b))
            psnr.append(np.minimum(np.asarray(dm_pix.psnr(x, y)), 100.0))
            if has_window:
                ssim.append(np.asarray(dm_pix.ssim(x, y)))
            l1.append(np.asarray(2 * jnp.abs(x - y).mean((1, 2, 3))))
            bar(start + BATCH)
    return {
        "psnr": float(np.concatenate(psnr).mean()),
        "ssim": float(np.concatenate(ssim).mean()) if has_window else None,
        "l1": float(np.concatenate(l1).mean()),
    }


def evaluate_reconstruction(
    reconstruct: Callable[[Images], Images],
    *,
    train: LabelledImages,
    test: LabelledImages | None,
    num_images: int,
    cache_dir: str | Path,
    network: EmbeddingNetwork | None = None,
    features: Callable[[Any], Sequence[Any]] | None = None,
    log: Log = print,
) -> dict[str, Any]:
    """Reconstructs test images and measures their quality.

    Args:
      reconstruct: uint8 (N, H, W, C) -> the same shape.
      train: the training images.
      test: held-out images; None uses training images, as "split" reports.
      num_images: maximal number, drawn without replacement by a fixed seed.
      cache_dir: see `report.evaluate`.
      network: whose features a distance is measured in; None for the choice by classes.
      features: images in [-1, 1] -> maps, for sets without classes; None for no distance there.
      log: called with lines of progress.

    Returns:
      A dictionary serialisable as JSON: "images" and "split", the values of `similarity`, and the
      distance of the reconstructions to all training images with "floor", that of the original
      images. It is "embedding_frechet_distance" with a network, next to its "features";
      "classifier_frechet_distance" for labelled sets, next to "classifier_weights"; and
      "perceptual_frechet_distance" for others, with `features`.
    """
    source = train if test is None else test
    count = min(num_images, len(source))
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(source))[:count]
    images, _ = read_examples(source, np.sort(order))
    reconstructed = reconstruct(images)
    report: dict[str, Any] = {
        "images": count,
        "split": "train" if test is None else "test",
        **similarity(images, reconstructed),
    }
    log(f"PSNR {report['psnr']:.2f} dB of {count} {report['split']} images")
    if network is not None:
        found = embedding_features(network, images.shape[1:])
        what, of_images = "embedding", found.of_images
        report["features"] = found.name
    elif len(train.class_names) >= 2:
        classifier = classifier_for(train, load_test=lambda: test, cache_dir=cache_dir, log=log)
        what, of_images = "classifier", make_feature_function(classifier)
        report["classifier_weights"] = classifier.weights_digest
    elif features is not None:
        what, of_images = "perceptual", _of_maps(features)
    else:
        return report
    all_training = FeatureStatistics.empty(of_images(images[:1])[0].shape[1])
    with Bar("real images, train", len(train), log=log) as bar:
        for some, _ in read_in_order(train, BATCH):
            all_training = all_training.update(of_images(some)[0])
            bar(all_training.count)

    def distance(some: Images) -> float:
        statistics = FeatureStatistics.empty(all_training.mean.shape[0])
        for start in range(0, len(some), BATCH):
            statistics = statistics.update(of_images(some[start : start + BATCH])[0])
        return frechet_distance(statistics, all_training)

    return report | {
        f"{what}_frechet_distance": distance(reconstructed), "floor": distance(images)
    }  # fmt: skip


def _of_maps(features: Callable[[Any], Sequence[Any]]) -> Callable[[Images], tuple[Any, None]]:
    """uint8 images -> the means over a network's last maps, as a feature function."""

    @jax.jit
    def means(some: Any) -> Any:
        return features(some.astype(jnp.float32) / 127.5 - 1)[-1].mean((1, 2))

    def of_images(some: Images) -> tuple[Any, None]:
        filled = np.concatenate([some, np.repeat(some[:1], BATCH - len(some), axis=0)])
        return np.asarray(means(filled))[: len(some)], None

    return of_images


def codebook_use(indices: npt.NDArray[np.integer[Any]], size: int) -> dict[str, float]:
    """Codebook usage: the share of codes used, and the perplexity of their distribution.

    Raises:
      UserError: no indices, or some that are not in 0..size-1.

    >>> codebook_use(np.array([0, 1, 0, 1]), 4)
    {'codes_used': 0.5, 'codebook_perplexity': 2.0}
    """
    size = arguments.whole("size", size, least=1)
    indices = arguments.array("indices", indices, expected="indices of codes")
    if indices.dtype.kind not in "iu" or not indices.size:
        raise UserError(f"indices are {arguments.shown(indices)}; expected integers, one or more")
    if indices.min() < 0 or indices.max() >= size:
        raise UserError(
            f"indices are in [{indices.min()}, {indices.max()}]; expected 0..{size - 1}, of the "
            f"codebook's size={size}"
        )
    share = np.bincount(indices.reshape(-1), minlength=size) / indices.size
    some = share[share > 0]
    return {
        "codes_used": float((share > 0).mean()),
        "codebook_perplexity": float(np.exp(-(some * np.log(some)).sum())),
    }
