"""Draws strip.png, README's picture: noise becomes garments, texts become pictures.

    python -m diffjax.main --config=experiments/fashion_mnist_conditional.py:quick
    python -m diffjax.main --config=examples/emoji/cascade.py:base-tiny
    python -m diffjax.main --config=examples/emoji/cascade.py:upsampler-tiny
    PYTHONPATH=examples/emoji python docs/make_strip.py

The captions are of the held-out part of the emoji: no picture of them was trained on. Which of the
samples are shown was chosen by eye.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import diffjax
from diffjax.figures.image_files import save_png
from diffjax.figures.image_grids import to_uint8
from diffjax.inference.cascade import stage_seed
from diffjax.inference.sample_conditions import Choice

GARMENTS_SEED, EMOJI_SEED = 6, 1
TILE, GAP, HEADER, TEXT = 112, 4, 30, 250
CLASSES = (9, 3, 8)  # ankle boot, dress, bag
CAPTIONS = (
    "lying face, google style",
    "woman pouting, medium-light skin tone, google style",
    "woman kneeling facing right, light skin tone, twitter style",
)


def garments(workdir: str, *, columns: int, seed: int) -> list[list[np.ndarray]]:
    """Of each class a row of x_t, from x_T to x_0."""
    model = diffjax.load(workdir)
    generator = model.generator().of(Choice(labels=CLASSES), seed=seed)
    drawn = generator(model.params, start=0, count=len(CLASSES), keep_trajectory=True)
    return _states(drawn.trajectory, [k / (columns - 1) for k in range(columns)])


def emoji(stages: tuple[str, str], *, level: float, seed: int) -> list[list[np.ndarray]]:
    """Of each caption a row of x_t: three of the base's path, two of the upsampler's."""
    cascade = diffjax.cascade(stages, settings=[{}, {"augmentation_level": level}])
    base, upsampler = cascade.generator.generators
    first = base.of(Choice(prompts=CAPTIONS), seed=seed)(
        cascade.params[0], start=0, count=len(CAPTIONS), keep_trajectory=True
    )
    second = upsampler.of(
        Choice(prompts=CAPTIONS, low_resolution=first.images), seed=stage_seed(seed, 1)
    )(cascade.params[1], start=0, count=len(CAPTIONS), keep_trajectory=True)
    low, high = _states(first.trajectory, [0, 0.7, 1]), _states(second.trajectory, [0.5, 1])
    return [a + b for a, b in zip(low, high, strict=True)]


def _states(trajectory: np.ndarray, shares: list[float]) -> list[list[np.ndarray]]:
    """x_t of each sample after these shares of the steps."""
    steps = [round(share * (len(trajectory) - 1)) for share in shares]
    return [[to_uint8(trajectory[step, i]) for step in steps] for i in range(trajectory.shape[1])]


def _tile(image: np.ndarray) -> Image.Image:
    whole = TILE % len(image) == 0
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    return picture.resize(
        (TILE, TILE), Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS
    )


def strip(left: list[list[np.ndarray]], right: list[list[np.ndarray]]) -> Image.Image:
    """Both on one sheet: garments, captions, emoji."""
    columns = len(left[0]), len(right[0])
    width = sum(columns) * (TILE + GAP) - GAP + TEXT
    sheet = Image.new("RGB", (width, HEADER + len(left) * (TILE + GAP) - GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    start = columns[0] * (TILE + GAP) + TEXT

    def heading(text: str, x: int) -> None:
        draw.text((x + TILE / 2, HEADER / 2), text, font=font, fill="black", anchor="mm")

    heading("noise", 0)
    heading("garment", (columns[0] - 1) * (TILE + GAP))
    for text, column in (("noise", 0), ("16x16", 2), ("64x64", columns[1] - 1)):
        heading(text, start + column * (TILE + GAP))
    for row, (garment, pictures, caption) in enumerate(zip(left, right, CAPTIONS, strict=True)):
        y = HEADER + row * (TILE + GAP)
        for column, image in enumerate(garment):
            sheet.paste(_tile(image), (column * (TILE + GAP), y))
        for column, image in enumerate(pictures):
            sheet.paste(_tile(image), (start + column * (TILE + GAP), y))
        lines = caption.replace(", ", ",\n")
        draw.multiline_text(
            (start - 10, y + TILE / 2), lines, font=font, fill="black", anchor="rm", align="right"
        )
    return sheet


def main() -> None:
    """Reads the models, draws the samples and writes the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--garments", default="runs/fashion_mnist_conditional-quick")
    parser.add_argument("--base", default="runs/cascade-base-tiny")
    parser.add_argument("--upsampler", default="runs/cascade-upsampler-tiny")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "strip.png")
    given = parser.parse_args()
    left = garments(given.garments, columns=6, seed=GARMENTS_SEED)
    right = emoji((given.base, given.upsampler), level=0.1, seed=EMOJI_SEED)
    save_png(given.out, np.asarray(strip(left, right)))


if __name__ == "__main__":
    main()
