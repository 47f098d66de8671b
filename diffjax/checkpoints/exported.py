"""A trained model as two files, model.safetensors and config.json, readable without orbax.

Arrays are named by their path, `ema_params.down0_0.conv1.kernel`. The header's metadata holds, as
JSON under "diffjax": the step, a description of the data, and each path as a list of keys, since a
key may contain a dot.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffjax._version import __version__
from diffjax.checkpoints.parameters import Parameters, Place, assemble
from diffjax.errors import UserError
from diffjax.files import atomic_write

FILE = "model.safetensors"
FORMAT = 1
FIRST_STAGE = "first_stage"  # subfolder with a latent model's autoencoder


def is_exported(folder: Path) -> bool:
    """Whether a folder holds an exported model."""
    return (folder / FILE).is_file()


def write(folder: Path, found: Parameters, config: dict[str, Any]) -> list[Path]:
    """Writes the two files, the parameters last, and returns their paths.

    Raises:
      UserError: the folder can't be written to.
    """
    from safetensors.numpy import save

    arrays, places = {}, {}
    for place, array in _leaves(found.fields, ()):
        name = ".".join(place)
        while name in arrays:  # keys with dots may collide
            name += "_"
        arrays[name], places[name] = np.array(array, order="C"), place
    about = {
        "format": FORMAT,
        "version": __version__,
        "step": found.step,
        "about": found.about,
        "places": places,
    }
    text = json.dumps(config, indent=2) + "\n"
    content = save(arrays, metadata={"diffjax": json.dumps(about)})
    atomic_write(folder / "config.json", lambda file: file.write(text.encode()))
    atomic_write(folder / FILE, lambda file: file.write(content))
    return [folder / "config.json", folder / FILE]


def read(folder: Path, fields: Sequence[str]) -> Parameters:
    """The given fields of the exported state.

    Raises:
      UserError: the file is not an exported model, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["diffjax"])
            if about["format"] > FORMAT:
                raise UserError(
                    f"{path} was written by diffjax {about['version']}: install that version"
                )
            wanted = {
                name: tuple(map(str, place))
                for name, place in about["places"].items()
                if place[0] in fields
            }
            found = [(place, file.get_tensor(name)) for name, place in wanted.items()]
            return Parameters(int(about["step"]), assemble(found, fields), about["about"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} is not a model exported by diffjax, or is damaged ({first[:100]}): export it "
            "again"
        ) from error


def _leaves(tree: Any, place: Place) -> list[tuple[Place, Any]]:
    if isinstance(tree, dict):
        return [leaf for key, value in tree.items() for leaf in _leaves(value, (*place, key))]
    return [(place, tree)]
