"""The examples' modules are found as from a script in their folder; a small set of emoji."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path += [str(EXAMPLES), str(EXAMPLES / "emoji"), str(EXAMPLES / "avatars")]

NAMES = ("waving hand", "thumbs up", "raised fist", "folded hands")
STYLES = ("twitter", "google")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A small folder, laid out as fetch.py makes it."""
    folder = tmp_path_factory.mktemp("emoji") / "set"
    for split, tones in (("train", ("light", "medium")), ("test", ("dark",))):
        lines = []
        for number, (name, tone, style) in enumerate(itertools.product(NAMES, tones, STYLES)):
            path = folder / split / style / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 8, 3), 255, np.uint8)
            pixels[2:6, 2 : 3 + number % 5] = 8 * number
            Image.fromarray(pixels).save(path)
            text = f"{name}, {tone} skin tone, {style} style"
            lines.append(json.dumps({"file_name": f"{style}/{number}.png", "text": text}) + "\n")
        (folder / split / "metadata.jsonl").write_text("".join(lines))
    (folder / "build.json").write_text("{}")
    return folder
