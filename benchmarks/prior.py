"""What a diffusion prior adds to a linear map, and what its decoder makes of it.

    python -m benchmarks.prior --config=examples/emoji/prior.py:tiny --decoder=runs/unclip-tiny

For each held-out caption an embedding is drawn, by the prior with one sample and with two (of which
the one nearer to the text's projection is kept), and by the projection alone, the ridge regression
that was fitted to the training pairs. Its rank is that of the true picture among all held-out
pictures by cosine, 1 for the nearest; of `count` pictures, chance is (count + 1) / 2.

With `--decoder`, the judge of `benchmarks.obedience` reads the name, the skin tone and the style of
what is decoded from these embeddings and from those of the true pictures, with the caption and
without it.

Prints tables and writes prior.json in the prior's workdir.
"""

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import diffjax
from benchmarks.obedience import (
    NAMES,
    chosen_rows,
    folder_of,
    judge_of,
    read_rows,
    score,
    write_text,
)
from benchmarks.program import exit_code
from diffjax import flags
from diffjax.conditioning.image_embedding import cosine
from diffjax.experiment import image_embedding
from diffjax.experiment.dataset import load_held_out, load_train
from diffjax.files import atomic_write
from diffjax.inference.pipeline import Pipeline
from diffjax.inference.unclip import Prior

NO_TEXT = " "


def ranks(drawn: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(N,) ranks by cosine of row i of `true` (N, D) for row i of `drawn` (N, D), from 1."""
    similarities = cosine(drawn, true)
    own = np.diag(similarities)[:, None]
    rank: np.ndarray = 1 + (similarities > own).sum(1)
    return rank


def summary(drawn: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Means over the rows, with the standard error of the mean rank."""
    rank = ranks(drawn, true)
    return {
        "mean rank": float(rank.mean()),
        "standard error": float(rank.std(ddof=1) / len(rank) ** 0.5),
        "median rank": float(np.median(rank)),
        "first": float((rank == 1).mean()),
        "among five": float((rank <= 5).mean()),
        "cosine": float(np.diag(cosine(drawn, true)).mean()),
    }


def embeddings(prior: Prior, captions: Sequence[str], scales: Sequence[float]) -> dict[str, Any]:
    """By method: what it draws for the captions, (N, D)."""
    found: dict[str, Any] = {"linear": prior.of_text(captions)}
    for scale in scales:
        guidance = f"classifier_free(scale={scale:g})"
        for candidates in (1, 2):
            what = f"w = {scale:g}, {candidates} sample{'s' if candidates > 1 else ''}"
            found[what] = prior(captions, candidates=candidates, guidance=guidance)
    return found


def held_out_pairs(config: Any, prior: Pipeline, count: int) -> tuple[list[str], np.ndarray]:
    """Held-out captions and the embeddings of their pictures, (count, D)."""
    source: Any = load_held_out(config) or load_train(config)
    vectors: Any = image_embedding.held_out(config, source, prior.about)
    chosen = np.linspace(0, len(vectors) - 1, min(count, len(vectors))).astype(int)
    return [source.captions[i] for i in vectors.caption_numbers[chosen]], vectors.images[chosen]


def obedience(
    decoder: Pipeline, prior: Prior, rows: Any, judge: Any, scales: Sequence[float]
) -> dict[str, Any]:
    """Scores of what the decoder draws, by the embedding's method and with or without captions."""
    methods = {"true picture": decoder.embed(rows.images)}
    methods |= embeddings(prior, rows.captions, scales)
    found = {"real": score(judge(rows.images), rows)}
    for method, z in methods.items():
        for what, prompts in (("", rows.captions), (" without caption", [NO_TEXT])):
            images = decoder.sample(prompts, embeddings=z, count=len(z))
            found[method + what] = score(judge(images), rows)
            print(method + what, found[method + what], flush=True)
    return found


def table(title: str, scores: dict[str, Any], names: Sequence[str]) -> str:
    """A Markdown table, one row a method."""
    lines = [f"| {title} | " + " | ".join(names) + " |", "|" + " --- |" * (len(names) + 1)]
    for method, values in scores.items():
        lines.append(f"| {method} | " + " | ".join(f"{values[n]:.3g}" for n in names) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Ranks, then the chain's obedience if there is a decoder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prior")
    parser.add_argument("--decoder", default="", help="workdir of a decoder of the prior")
    parser.add_argument("--count", type=int, default=600, help="held-out pictures that are ranked")
    parser.add_argument("--drawn", type=int, default=300, help="pictures that are judged")
    parser.add_argument("--scales", type=float, nargs="+", default=(1.0, 1.5, 2.0, 3.0))
    parser.add_argument("--decoded-scales", type=float, nargs="+", default=(1.5,))
    options, rest = parser.parse_known_args(arguments)
    config, workdir, *_ = flags.parse(rest)
    pipeline = diffjax.load(workdir)
    prior = Prior(pipeline, what=str(workdir))
    captions, true = held_out_pairs(config, pipeline, options.count)
    report: dict[str, Any] = {"count": len(captions), "step": pipeline.step}
    drawn = embeddings(prior, captions, options.scales)
    report["ranks"] = {method: summary(z, true) for method, z in drawn.items()}
    chance = (len(captions) + 1) / 2
    print(table(f"of {len(captions)}, chance {chance:g}", report["ranks"], RANKS), flush=True)
    _write(workdir, report)
    if not options.decoder:
        return
    decoder = diffjax.load(options.decoder)
    embedding = decoder.generator().conditions.model.embedding
    if embedding is None:
        raise diffjax.UserError(f"--decoder={options.decoder} is given no image embedding")
    prior.check(embedding.fitted)
    folder, size = folder_of(config.data), config.data.image_size
    train, test = (read_rows(folder / split, size) for split in ("train", "test"))
    rows = chosen_rows(test, options.drawn)
    judge = judge_of(train, test)
    report["drawn"] = len(rows.images)
    report["obedience"] = obedience(decoder, prior, rows, judge, options.decoded_scales)
    _write(workdir, report)
    print(table(f"of {len(rows.images)}", report["obedience"], NAMES))


RANKS = ("mean rank", "standard error", "median rank", "first", "among five", "cosine")


def _write(workdir: Path, report: dict[str, Any]) -> None:
    text = json.dumps(report, indent=2) + "\n"
    atomic_write(workdir / "prior.json", functools.partial(write_text, text))


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
