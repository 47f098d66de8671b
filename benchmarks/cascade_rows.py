"""Held-out pictures through a cascade: reduced and upsampled again, and drawn from their captions.

    python -m benchmarks.cascade_rows --stages runs/cascade-base-tiny runs/cascade-upsampler-tiny

for two stages of examples/emoji/cascade.py. Writes <last stage>/cascade_rows.png, with a column for
each of `--count` held-out pictures, and the rows: the picture, reduced by the upsampler's factor;
that, upsampled; the picture; what the base draws from its caption; and that, upsampled. Prints the
captions in order.
"""

import argparse
import sys
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

import diffjax
from benchmarks.obedience import chosen_rows, folder_of, read_rows
from benchmarks.program import exit_code
from diffjax.conditioning.super_resolution import super_resolution
from diffjax.errors import UserError
from diffjax.experiment.run import read_config
from diffjax.figures import image_grid, save_png, to_uint8
from diffjax.files import expanded
from diffjax.images import to_model_range

FACTOR = 4
ROWS = ("reduced", "upsampled", "true", "drawn", "and upsampled")


def enlarged(images: np.ndarray) -> np.ndarray:
    """uint8 (N, h, w, C) with every pixel repeated, (N, FACTOR h, FACTOR w, C)."""
    return images.repeat(FACTOR, axis=1).repeat(FACTOR, axis=2)


def main(arguments: Sequence[str]) -> None:
    """Draws and writes the sheet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stages", nargs=2, required=True, help="workdirs, the base's first")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    config = read_config(expanded(given.stages[1]))
    if config is None:
        raise UserError(f"{given.stages[1]} holds no run: train it, see examples/emoji/cascade.py")
    test = read_rows(folder_of(config.data) / "test", config.data.image_size)
    images, _, captions, _ = chosen_rows(test, given.count)
    reduce = super_resolution(factor=FACTOR, resize="bicubic", downsample="bicubic")
    low = to_uint8(np.asarray(reduce.low_resolution(to_model_range(jnp.asarray(images)))))
    upsampled = diffjax.load(given.stages[1]).upscale(low, prompts=captions, seed=given.seed)
    drawn, final = diffjax.cascade(given.stages).sample_stages(captions, seed=given.seed)
    sheet = np.concatenate([enlarged(low), upsampled, images, enlarged(drawn), final])
    path = expanded(given.stages[1]) / "cascade_rows.png"
    save_png(path, image_grid(sheet, columns=len(images), row_labels=list(ROWS)))
    print("\n".join(captions))
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
