"""`--view=... --save=FILE`: a view's picture without a page."""

import io
import urllib.parse
from typing import Any

import numpy as np
from PIL import Image

from diffjax.errors import UserError
from diffjax.files import atomic_write, expanded
from diffjax.playground.panels import PANELS, SAVED
from diffjax.playground.pictures import unpacked
from diffjax.playground.runs import Runs
from diffjax.playground.values import Values
from diffjax.playground.worker import Event


def save(view: str, runs: Runs, path: str) -> None:
    """Writes a view's pictures, side by side, as a PNG file.

    Args:
      view: what follows # in the page's address, such as "draw?label=3&seed=1".
      runs: the runs; the first is meant where the view names none.
      path: a file's name that ends in .png.

    Raises:
      UserError: a view without pictures, wrong settings, or a file that can't be written.
    """
    if not path.endswith(".png"):
        raise UserError(f"--save={path}: expected the name of a .png file")
    panel, _, query = view.lstrip("#").partition("?")
    if panel not in SAVED:
        raise UserError(
            f"--view={view}: expected a view of {', '.join(SAVED)}, as in 'draw?seed=1'"
        )
    given = dict(urllib.parse.parse_qsl(query))
    given.setdefault("run", runs.listed()[0]["name"])
    pictures: list[dict[str, Any]] = []

    def report(event: Event) -> None:
        if "image" in event:
            pictures.append(event["image"])

    PANELS[panel](Values(given), runs, report)
    images = [unpacked("the picture", p, p["shape"][-1]) for p in pictures]
    height = max(image.shape[0] for image in images)
    padded = [np.pad(i, ((0, height - len(i)), (0, 0), (0, 0))) for i in images]
    image = np.concatenate(padded, axis=1)
    made = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(made, "PNG")
    atomic_write(expanded(path), lambda file: file.write(made.getvalue()))
