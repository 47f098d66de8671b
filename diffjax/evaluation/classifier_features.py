"""Features for the Fréchet distance: a small classifier trained on the data set itself.

The usual Inception features were learned on 299x299 colour photographs and must be downloaded; for
small or grey images the features of a classifier of the same data set are more informative.
Distances are comparable only between features of the same weights, so the weights for Fashion-MNIST
are part of the package.

To train the classifier again:

    python -m diffjax.evaluation.classifier_features --data=fashion_mnist --out=classifier.npz
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from diffjax import rng
from diffjax.errors import UserError
from diffjax.evaluation.feature_function import accuracy, to_unit_range
from diffjax.evaluation.labelled_images import (
    LabelledImages,
    check_labelled,
    check_labels,
    fingerprint,
    read_examples,
)
from diffjax.models.classifier import Classifier
from diffjax.perceptual.classifier_weights import (
    SHIPPED_WEIGHTS,
    TrainedClassifier,
    load_classifier,
    round_weights,
    save_classifier,
)
from diffjax.progress import Bar

# Increment it with any change to the recipe or the network, to invalidate cached classifiers.
RECIPE_VERSION = 1
LOSS_EVERY = 25  # steps


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the classifier is trained.

    AdamW (Loshchilov & Hutter 2019) with a linear warm-up over the first eighth of the steps and
    a cosine to 0; images shifted at random by up to 1/28 of their side, which preserves classes
    (mirroring would not, for digits).

    Attributes:
      steps: optimiser steps; 3750 are 8 passes over Fashion-MNIST, where they take 3 minutes on
        two processor cores and reach 92.55 % (2026-11-21).
      batch_size: images per step.
      peak_learning_rate: at the end of the warm-up.
      weight_decay: of the kernels; biases and normalisation have none.
      label_smoothing: share of the target spread over all classes.
      seed: of the initial weights, the order and the shifts.
    """

    steps: int = 3750
    batch_size: int = 128
    peak_learning_rate: float = 4e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    seed: int = 0


def train_classifier(
    train: LabelledImages,
    test: LabelledImages | None,
    *,
    recipe: Recipe | None = None,
    log: Callable[[str], object] = print,
) -> TrainedClassifier:
    """Trains the classifier; the same source, recipe and machine give the same weights.

    Args:
      train: labelled images of one shape, two classes or more.
      test: images to measure the accuracy on; None measures it on `train`, and logs this.
      recipe: None for `Recipe()`.
      log: called with lines of progress.

    Returns:
      The classifier, its weights rounded to float16 and its accuracy measured with them.

    Raises:
      UserError: an unlabelled set, fewer than two classes, images under 8x8, an invalid recipe, or
        final weights that are not finite.
    """
    recipe = recipe or Recipe()
    if recipe.steps < 1 or recipe.batch_size < 1 or recipe.seed < 0:
        raise UserError(
            f"got a recipe of steps={recipe.steps}, batch_size={recipe.batch_size}, "
            f"seed={recipe.seed}; expected steps >= 1, batch_size >= 1 and seed >= 0"
        )
    check_labelled(train)
    num_classes = len(train.class_names)
    passes = recipe.steps * recipe.batch_size / len(train)
    log(
        f"classifier: training on {train.name} ({len(train)} images, {num_classes} "
        f"classes) for {recipe.steps} steps of {recipe.batch_size} ({passes:.1f} passes)"
    )
    with Bar("classifier", recipe.steps, unit="step", log=log) as bar:
        state = first_state(num_classes, recipe, train.image_shape)
        for step, indices in enumerate(example_order(len(train), recipe), start=1):
            images, labels = read_examples(train, indices)
            check_labels(labels, train)
            state, loss = _train_step(num_classes, recipe, state, step - 1, images, labels)
            if step % LOSS_EVERY == 0:  # reading it waits for the step
                bar(step, f"loss {float(loss):.3f}")
    log(f"classifier: trained in {bar.seconds:.0f} s, loss {float(loss):.3f}")
    classifier = TrainedClassifier(
        weights=round_weights(state[0]),
        data=train.name,
        data_fingerprint=fingerprint(train),
        class_names=tuple(train.class_names),
        image_shape=train.image_shape,
        accuracy=float("nan"),
        accuracy_split="train" if test is None else "test",
        seed=recipe.seed,
        steps=recipe.steps,
        recipe_version=RECIPE_VERSION,
    )
    measured = train if test is None else test
    classifier = dataclasses.replace(classifier, accuracy=accuracy(classifier, measured))
    log(
        f"classifier: {classifier.accuracy:.2%} of {len(measured)} {classifier.accuracy_split} "
        "images correct" + (" (no test split: training images)" if test is None else "")
    )
    return classifier


def classifier_for(
    train: LabelledImages,
    *,
    load_test: Callable[[], LabelledImages | None],
    cache_dir: str | Path,
    log: Callable[[str], object] = print,
) -> TrainedClassifier:
    """The classifier of a data set: shipped with the package, cached, or trained and then cached.

    A classifier belongs to a set if its training images and labels have the same `fingerprint`,
    whatever the set's name, and it was trained by the current version of the recipe.

    Args:
      train: the labelled training images.
      load_test: called only if the classifier must be trained; returns the test images, or None.
      cache_dir: folder of trained classifiers; created if needed.
      log: called with a line on which of the three it was.

    Raises:
      UserError: see `train_classifier` and `load_classifier`.
    """
    check_labelled(train)
    of_train = fingerprint(train)
    shipped = load_classifier(SHIPPED_WEIGHTS)
    if shipped.data_fingerprint == of_train:
        log(f"classifier: the package's own for {shipped.data} ({shipped.weights_digest[:12]})")
        return shipped
    path = Path(cache_dir) / f"classifier-{of_train[:16]}-v{RECIPE_VERSION}.npz"
    if path.exists():
        cached = load_classifier(path)
        if cached.data_fingerprint == of_train and cached.recipe_version == RECIPE_VERSION:
            log(f"classifier: from {path} ({cached.weights_digest[:12]})")
            return cached
        log(f"classifier: {path} is of other data or another recipe; training it again")
    classifier = train_classifier(train, load_test(), log=log)
    save_classifier(path, classifier)
    log(f"classifier: cached in {path}")
    return classifier


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    return optax.adamw(
        optax.warmup_cosine_decay_schedule(
            0.0, recipe.peak_learning_rate, max(1, recipe.steps // 8), recipe.steps + 1
        ),
        b2=0.99,
        weight_decay=recipe.weight_decay,
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def first_state(num_classes: int, recipe: Recipe, image_shape: tuple[int, ...]) -> Any:
    """(variables, optimizer state) of the classifier at step 0."""
    blank = jnp.zeros((1, *image_shape), jnp.float32)
    variables = Classifier(num_classes).init(rng.stream(recipe.seed, "init"), blank, train=False)
    return variables, _optimizer(recipe).init(variables["params"])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _train_step(
    num_classes: int,
    recipe: Recipe,
    state: Any,
    step: jax.Array,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[Any, jax.Array]:
    variables, optimizer_state = state
    params = variables["params"]
    shifted = _shift(rng.stream(recipe.seed, "shift", step), to_unit_range(images))
    targets = optax.smooth_labels(jax.nn.one_hot(labels, num_classes), recipe.label_smoothing)

    def loss_function(params: Any) -> tuple[jax.Array, Any]:
        (logits, _), updated = Classifier(num_classes).apply(
            {**variables, "params": params}, shifted, train=True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy(logits, targets).mean(), updated

    (loss, updated), gradients = jax.value_and_grad(loss_function, has_aux=True)(params)
    updates, optimizer_state = _optimizer(recipe).update(gradients, optimizer_state, params)
    return ({**updated, "params": optax.apply_updates(params, updates)}, optimizer_state), loss


def _shift(key: jax.Array, images: jax.Array) -> jax.Array:
    """Shifts each image at random by up to 1/28 of its side, with edge padding."""
    reach = round(min(images.shape[1:3]) / 28)
    if reach == 0:
        return images
    padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * reach + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, corners)


def example_order(count: int, recipe: Recipe) -> Iterator[npt.NDArray[np.int64]]:
    """Indices of each step's batch: consecutive slices of one permutation per pass."""
    left = np.empty(0, np.int64)
    epoch = 0
    for _ in range(recipe.steps):
        while len(left) < recipe.batch_size:
            generator = np.random.Generator(np.random.Philox(key=[recipe.seed, epoch]))
            left = np.concatenate([left, generator.permutation(count)])
            epoch += 1
        yield left[: recipe.batch_size]
        left = left[recipe.batch_size :]


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains the classifier of a data set from the command line; returns the exit code."""
    from diffjax import data

    parser = argparse.ArgumentParser(
        prog="python -m diffjax.evaluation.classifier_features",
        description="Train the classifier whose features the Fréchet distance compares.",
    )
    parser.add_argument("--data", required=True, help="data set, such as fashion_mnist")
    parser.add_argument("--data_dir", help="folder of the data set, if not the default one")
    parser.add_argument("--image_size", type=int, help="side to resize a folder's images to")
    parser.add_argument("--channels", type=int, help="1 (grey) or 3 (colour)")
    parser.add_argument("--out", required=True, help="the .npz file to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    def load(split: str) -> LabelledImages:
        return data.load(
            options.data,
            split=split,
            data_dir=options.data_dir,
            image_size=options.image_size,
            channels=options.channels,
        )

    try:
        has_test = data.has_split(options.data, split="test", data_dir=options.data_dir)
        train, test = load("train"), load("test") if has_test else None
        classifier = train_classifier(train, test, recipe=Recipe(seed=options.seed))
        save_classifier(options.out, classifier)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again", file=sys.stderr)
        return 130
    print(f"wrote {options.out}, weights {classifier.weights_digest[:12]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
