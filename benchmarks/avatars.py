"""How exactly text is obeyed: attributes of avatars, read off samples by a judge.

    python -m benchmarks.avatars --config=examples/avatars/text_to_image.py:tiny

For each scale of guidance the model draws `count` held-out captions of examples/avatars, which name
all eleven attributes and have a combination of two that training never saw; and a judge says of
each sample every attribute. The judge is a small convolutional network with a head for each
attribute, trained apart on real pictures: those of train/ and the second half of test/, without
which it would learn that the new combinations do not occur. They are shifted, blurred and with
noise, so that samples need not be exact to the last pixel. Captions are those of test/'s first
half; what the judge says of its real pictures is the most that samples can be expected to reach,
and scale 0, which ignores the text, is chance.

Prints a table, and writes avatars.json, avatars.md and avatars.png next to the run's other files.
The picture has a row for each of the prompts of --prompts, which differ in one attribute from the
first, and a column for each noise.
"""

import argparse
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffjax
from benchmarks.obedience import write_text
from benchmarks.program import exit_code
from diffjax import flags, rng
from diffjax.data.images import decode
from diffjax.errors import UserError
from diffjax.figures import image_grid, save_png
from diffjax.files import atomic_write
from diffjax.images import to_model_range

SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
PROMPTS = "examples/avatars/prompts.txt"
NOISES = 8  # columns of the picture
STEPS, BATCH = 1200, 128
MADE_BY = "make the set by python examples/avatars/make.py"


class Rows(NamedTuple):
    """Real pictures, uint8 (N, H, W, C), and what they show.

    Attributes:
      images: the pictures.
      answers: {attribute: (N,) numbers of its values}.
      captions: N texts.
      pairs: N names of the two attributes whose combination is new, "" in train/.
    """

    images: np.ndarray
    answers: Mapping[str, np.ndarray]
    captions: list[str]
    pairs: list[str]


def read_attributes(folder: Path) -> dict[str, list[str]]:
    """The values of each attribute, from build.json.

    Raises:
      UserError: a folder that `python examples/avatars/make.py` did not make.
    """
    try:
        return dict(json.loads((folder / "build.json").read_text())["attributes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} holds no avatars: {MADE_BY}") from error


def read_rows(folder: Path, attributes: Mapping[str, Sequence[str]], *, size: int) -> Rows:
    """All rows of a split's metadata.jsonl, with their images.

    Raises:
      UserError: a folder that has none.
    """
    path = folder / "metadata.jsonl"
    if not path.is_file():
        raise UserError(f"{path} is missing: {MADE_BY}")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    images = [
        decode((folder / row["file_name"]).read_bytes(), image_size=size, channels=3)
        for row in rows
    ]
    answers = {
        name: np.array([values.index(row[name]) for row in rows])
        for name, values in attributes.items()
    }
    captions = [row["text"] for row in rows]
    return Rows(np.stack(images), answers, captions, [row.get("held_out", "") for row in rows])


def part(rows: Rows, chosen: slice) -> Rows:
    """Some of the rows."""
    answers = {name: found[chosen] for name, found in rows.answers.items()}
    return Rows(rows.images[chosen], answers, rows.captions[chosen], rows.pairs[chosen])


class JudgeNetwork(nn.Module):
    """Images in [-1, 1], (B, H, W, C) -> {attribute: logits (B, its values)}."""

    heads: tuple[tuple[str, int], ...]  # each attribute and the number of its values

    @nn.compact
    def __call__(self, x: Any) -> dict[str, Any]:
        """Two convolutions, and a hidden layer that knows where in the picture it looks."""
        x = nn.relu(nn.Conv(32, (4, 4), strides=2)(x))
        x = nn.relu(nn.Conv(48, (3, 3), strides=2)(x))
        x = nn.relu(nn.Dense(256)(x.reshape(len(x), -1)))
        return {name: nn.Dense(count, name=name)(x) for name, count in self.heads}


class Judge(NamedTuple):
    """A trained network."""

    network: JudgeNetwork
    params: Any

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (N, H, W, C) -> {attribute: (N,) numbers of the values that it sees}."""
        parts = [
            _said(self.network, self.params, images[start : start + BATCH])
            for start in range(0, len(images), BATCH)
        ]
        return {
            name: np.concatenate([np.asarray(part[name]) for part in parts])
            for name, _ in self.network.heads
        }


@functools.partial(jax.jit, static_argnums=0)
def _said(network: JudgeNetwork, params: Any, images: Any) -> dict[str, Any]:
    logits = network.apply(params, to_model_range(images))
    return {name: row.argmax(-1) for name, row in logits.items()}


def disturbed(x: Any, key: Any) -> Any:
    """Images (B, H, W, C) each shifted by up to a pixel, blurred and with noise, at random."""
    shift, blur, strength, noise = jax.random.split(key, 4)
    batch, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")

    def window(image: Any, corner: Any) -> Any:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), x.shape[1:])

    x = jax.vmap(window)(padded, jax.random.randint(shift, (batch, 2), 0, 3))
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    mean = sum(padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)) / 9
    x = x + jax.random.uniform(blur, (batch, 1, 1, 1), maxval=0.6) * (mean - x)
    std = jax.random.uniform(strength, (batch, 1, 1, 1), maxval=0.15)
    return x + std * jax.random.normal(noise, x.shape)


def train_judge(
    train: Rows, new: Rows, attributes: Mapping[str, Sequence[str]], *, steps: int
) -> Judge:
    """Softmax regression of all attributes at once, on disturbed pictures.

    Args:
      train, new: pictures; a quarter of each batch is from `new`.
      attributes: the values of each attribute.
      steps: number of batches.
    """
    network = JudgeNetwork(tuple((name, len(values)) for name, values in attributes.items()))
    example = to_model_range(jnp.asarray(train.images[:1]))
    params = network.init(rng.stream(0, "judge"), example)
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, steps), weight_decay=1e-4)

    @jax.jit
    def step(params: Any, state: Any, images: Any, answers: Any, key: Any) -> Any:
        x = disturbed(to_model_range(images), key)

        def loss(params: Any) -> Any:
            logits = network.apply(params, x)
            of = optax.softmax_cross_entropy_with_integer_labels
            return sum(of(logits[name], answers[name]).mean() for name in answers)

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    generator = np.random.Generator(np.random.Philox(key=0))
    for i in range(steps):
        of_train = generator.integers(0, len(train.images), BATCH - BATCH // 4)
        of_new = generator.integers(0, len(new.images), BATCH // 4)
        images = np.concatenate([train.images[of_train], new.images[of_new]])
        answers = {
            name: np.concatenate([train.answers[name][of_train], new.answers[name][of_new]])
            for name in attributes
        }
        params, state = step(params, state, images, answers, rng.stream(0, "disturbance", i))
    return Judge(network, params)


def score(said: Mapping[str, np.ndarray], rows: Rows) -> dict[str, float]:
    """Shares of right answers: of each attribute, of all of them, and of what is new.

    Returns:
      {attribute: share}, "mean" of these, "all" for pictures without a mistake, and "new pair" for
      those in which both attributes of the held-out combination are right.
    """
    right = {name: said[name] == answers for name, answers in rows.answers.items()}
    found = {name: float(ok.mean()) for name, ok in right.items()}
    found["mean"] = float(np.mean(list(found.values())))
    found["all"] = float(np.logical_and.reduce(list(right.values())).mean())
    new = [
        all(right[name][i] for name in pair.split(" and "))
        for i, pair in enumerate(rows.pairs)
        if pair
    ]
    return {**found, "new pair": float(np.mean(new)) if new else float("nan")}


def table(report: Mapping[str, Mapping[str, float]], *, about: str) -> str:
    """A row for each attribute and a column for real pictures and each scale, as Markdown."""
    lines = [about, "", "| | " + " | ".join(report) + " |", "| --- " * (len(report) + 1) + "|"]
    for name in next(iter(report.values())):
        shares = " | ".join(f"{scores[name]:.3f}" for scores in report.values())
        lines.append(f"| {name.replace('_', ' ')} | {shares} |")
    return "\n".join([*lines, ""])


def read_prompts(path: Path) -> list[str]:
    """The lines of a file, without empty ones.

    Raises:
      UserError: there is no such file, or nothing in it.
    """
    try:
        prompts = list(filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines())))
    except OSError as error:
        raise UserError(f"cannot read --prompts={path} ({error.strerror})") from error
    if not prompts:
        raise UserError(f"--prompts={path} is empty; expected a prompt a line")
    return prompts


def changes(prompts: Sequence[str]) -> list[str]:
    """What each prompt has that the first has not, by their phrases between commas.

    >>> changes(["blue hair, a smile", "red hair, a smile"])
    ['', 'red hair']
    """
    first = prompts[0].split(", ")
    return [", ".join(p for p in prompt.split(", ") if p not in first) for prompt in prompts]


def picture(model: Any, prompts: Sequence[str], *, guidance: str) -> np.ndarray:
    """A sheet with a row for each prompt and a column for each noise: uint8 (H, W, 3)."""
    every = [
        model.sample([prompt] * NOISES, guidance=guidance, seed=0, batch_size=NOISES)
        for prompt in prompts
    ]
    labels = changes(prompts)
    return image_grid(np.concatenate(every), columns=NOISES, scale=2, row_labels=labels)


def main(arguments: list[str]) -> None:
    """Trains the judge, draws, and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.avatars")
    parser.add_argument("--count", type=int, default=500, help="captions drawn at every scale")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--judge-steps", type=int, default=STEPS, help="batches of its training")
    parser.add_argument("--prompts", default=PROMPTS, help="a prompt a line, for the picture")
    options, rest = parser.parse_known_args(arguments)
    config, workdir, *_ = flags.parse(rest)
    prompts = read_prompts(Path(options.prompts))
    model = diffjax.load(workdir)
    size = config.data.image_size
    folder = Path(config.data.dir or "data/avatars").expanduser()
    attributes = read_attributes(folder)
    train, test = (read_rows(folder / s, attributes, size=size) for s in ("train", "test"))
    half = len(test.images) // 2
    test, new = part(test, slice(half)), part(test, slice(half, None))
    judge = train_judge(train, new, attributes, steps=options.judge_steps)
    report = {"real": score(judge(test.images), test)}
    print("real pictures", report["real"], flush=True)
    rows = part(test, slice(options.count))
    about = (
        f"Share of attributes that a judge reads off as the caption says, {len(rows.images)} "
        f"held-out captions at every scale w; real: {half} pictures that the judge never saw"
    )
    for scale in options.scales:
        images = model.sample(rows.captions, guidance=f"classifier_free(scale={scale})")
        report[f"w = {scale:g}"] = score(judge(images), rows)
        print(f"w = {scale:g}", report[f"w = {scale:g}"], flush=True)
        for name, text in (
            ("avatars.json", json.dumps(report, indent=2) + "\n"),
            ("avatars.md", table(report, about=about)),
        ):
            atomic_write(workdir / name, functools.partial(write_text, text))
    best = max(options.scales, key=lambda scale: report[f"w = {scale:g}"]["mean"])
    sheet = picture(model, prompts, guidance=f"classifier_free(scale={best})")
    save_png(workdir / "avatars.png", sheet)
    print(f"\n{table(report, about=about)}\nbest: w = {best:g}, with which avatars.png is drawn")


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
