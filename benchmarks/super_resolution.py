"""Trained super-resolution next to interpolation and to methods without training, in one table.

    python -m benchmarks.super_resolution --upscaler=runs/fashion_mnist_upscaler-tiny \
        --prior=runs/fashion_mnist_conditional-quick --levels 0 0.1 0.2

Test images are reduced to means of factor x factor pixels and enlarged by each method: bicubic
interpolation; the upscaler at each augmentation level; and DPS and pseudo-inverse guidance with the
prior, a model of the same images that has not seen a low-resolution one. The table,
<upscaler>/super_resolution.md, has PSNR and SSIM against the true images, the Fréchet distance to
the training images in the features of the set's classifier, and the root mean square, in a range of
2, of what was measured less the means of the result.

PSNR rewards the mean of all images that fit, so interpolation and few steps look better by it than
samples do, which the Fréchet distance is for.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax
from benchmarks.program import exit_code
from diffjax import grids, inverse_problems, samplers
from diffjax.conditioning.super_resolution import super_resolution
from diffjax.evaluation.classifier_features import classifier_for
from diffjax.evaluation.feature_function import make_feature_function
from diffjax.evaluation.frechet import FeatureStatistics, frechet_distance
from diffjax.evaluation.labelled_images import read_in_order
from diffjax.evaluation.reconstruction import similarity
from diffjax.experiment.dataset import load_held_out, load_train
from diffjax.experiment.run import read_config
from diffjax.figures import to_uint8
from diffjax.files import atomic_write, cache_folder, expanded
from diffjax.images import to_model_range

STEPS, BATCH = 100, 250
DPS_SCALE = 160.0  # the best of those in benchmarks.restoration
# Low-resolution images uint8 (n, h, w, C) -> images of high resolution, uint8.
Method = Callable[[np.ndarray], np.ndarray]
Distance = Callable[[np.ndarray], float]
HEADER = "| method | PSNR | SSIM | Fréchet distance | misfit |"


def interpolation(factor: int) -> Method:
    """Bicubic interpolation."""
    make = super_resolution(factor=factor)
    return lambda low: to_uint8(np.asarray(make.enlarged(to_model_range(jnp.asarray(low)))))


def by_prior(model: Any, factor: int, method: str) -> Method:
    """DPS or pseudo-inverse guidance by a model that was not trained for it."""
    operator = inverse_problems.average_pool(factor)
    generator, schedule = model.generator(guidance="none"), model.diffusion.schedule
    label = generator.conditions.has_labels

    @jax.jit
    def restore(params: Any, y: Any, x_T: Any, key: Any) -> Any:
        guided = generator.guided(params)
        if method == "dps":
            wrapped = inverse_problems.posterior_sampling(
                guided, schedule, operator=operator.apply, y=y, scale=DPS_SCALE
            )
        else:
            wrapped = inverse_problems.pseudo_inverse(
                guided, schedule, operator=operator.apply, inverse=operator.pseudo_inverse, y=y
            )
        cond = jnp.full(len(y), -1) if label else None
        return samplers.ddim(
            generator.threshold(wrapped), x_T, grid=grids.trailing(schedule, STEPS), key=key,
            cond=cond, eta=1.0,
        ).x_0  # fmt: skip

    def run(low: np.ndarray) -> np.ndarray:
        y, key = to_model_range(jnp.asarray(low)), jax.random.key(0)
        for_noise, for_steps = jax.random.split(key)
        x_T = jax.random.normal(for_noise, (len(low), *model.space.shape))
        return to_uint8(np.asarray(restore(model.params, y, x_T, for_steps)))

    return run


def compare(
    methods: Mapping[str, Method], images: np.ndarray, *, factor: int, distance: Distance | None
) -> list[dict[str, Any]]:
    """A row for each method: its name and what was measured.

    Args:
      methods: by name.
      images: uint8 (n, H, W, C), the true ones.
      factor: ratio of the sides.
      distance: the Fréchet distance of images to the training images; None for none.
    """

    def means(x: np.ndarray) -> np.ndarray:
        n, height, width, channels = x.shape
        cells = x.reshape(n, height // factor, factor, width // factor, factor, channels)
        return np.asarray(cells.mean((2, 4)))

    low = np.rint(means(images)).astype(np.uint8)
    rows = []
    for name, method in methods.items():
        made = np.concatenate([method(low[i : i + BATCH]) for i in range(0, len(low), BATCH)])
        misfit = (means(made) - low) / 127.5
        rows.append(
            {
                "method": name,
                **similarity(images, made),
                "distance": None if distance is None else distance(made),
                "misfit": float(np.sqrt(np.square(misfit).mean())),
            }
        )
        print(line(rows[-1]), flush=True)
    return rows


def line(row: Mapping[str, Any]) -> str:
    """A row of the table."""
    ssim, distance = (
        "-" if row[name] is None else f"{row[name]:.3f}" for name in ("ssim", "distance")
    )
    return f"| {row['method']} | {row['psnr']:.2f} | {ssim} | {distance} | {row['misfit']:.4f} |"


def table(rows: Sequence[Mapping[str, Any]], *, about: str) -> str:
    """The table as Markdown."""
    return "\n".join([about, "", HEADER, "| --- | --- | --- | --- | --- |", *map(line, rows), ""])


def distance_to(train: Any, test: Any) -> Distance:
    """The Fréchet distance to all training images, in the features of the set's classifier."""
    classifier = classifier_for(
        train, load_test=lambda: test, cache_dir=cache_folder() / "evaluation", log=print
    )
    features_of = make_feature_function(classifier)

    def statistics(batches: Any) -> FeatureStatistics:
        total: FeatureStatistics | None = None
        for some in batches:
            features = features_of(some)[0]
            total = (total or FeatureStatistics.empty(features.shape[1])).update(features)
        assert total is not None
        return total

    real = statistics(images for images, _ in read_in_order(train, BATCH))

    def distance(images: np.ndarray) -> float:
        parts = (images[i : i + BATCH] for i in range(0, len(images), BATCH))
        return frechet_distance(statistics(parts), real)

    return distance


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upscaler", required=True, help="workdir of the trained upscaler")
    parser.add_argument("--prior", help="workdir of a model of the same images, without maps")
    parser.add_argument("--images", type=int, default=2000, help="test images")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.0])
    given = parser.parse_args(arguments)
    folder = expanded(given.upscaler)
    upscaler, config = diffjax.load(folder), read_config(folder)
    train = load_train(config)
    test = load_held_out(config, train) or train
    make_map: Any = upscaler.generator().conditions.model.make_map
    factor = make_map.factor

    def trained(level: float) -> Method:
        return lambda low: upscaler.upscale(low, augmentation_level=level)

    methods: dict[str, Method] = {"bicubic": interpolation(factor)}
    methods |= {f"trained, level {level:g}": trained(level) for level in given.levels}
    if given.prior:
        prior = diffjax.load(given.prior)
        methods["pseudo-inverse guidance"] = by_prior(prior, factor, "pseudo_inverse")
        methods[f"DPS, scale {DPS_SCALE:g}"] = by_prior(prior, factor, "dps")
    images = np.stack([test[i]["image"] for i in range(min(given.images, len(test)))])
    distance = distance_to(train, test) if len(train.class_names) > 1 else None
    rows = [{"method": "the true images", **similarity(images, images), "misfit": 0.0,
             "distance": distance and distance(images)}]  # fmt: skip
    rows += compare(methods, images, factor=factor, distance=distance)
    about = (
        f"{len(images)} images of {train.name}, enlarged {factor} times; step {upscaler.step} of "
        "the upscaler"
    )
    text = table(rows, about=about)
    atomic_write(folder / "super_resolution.md", lambda file: file.write(text.encode()))
    print(f"\n{text}\nwrote {folder / 'super_resolution.md'}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
