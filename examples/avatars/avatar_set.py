"""The avatars as a data set of one's own: `config.data.name = "avatar_set:pictures"`."""

from pathlib import Path

from diffjax import data
from diffjax.errors import UserError


def pictures(dir="data/avatars", image_size=None, channels=3):
    """The captioned pictures of train/; those of test/ are what is held out.

    Args:
      dir: the folder that make.py made.
      image_size: side that the pictures are resized to; None keeps them as they are stored.
      channels: 1 (grey) or 3 (RGB).

    Returns:
      A source of uint8 (image_size, image_size, channels) with captions and without labels.

    Raises:
      UserError: there is no such folder, or its pictures or captions cannot be read.
    """
    if not (Path(dir).expanduser() / "build.json").is_file():
        raise UserError(
            f"{dir} holds no avatars; make them with: python examples/avatars/make.py --out={dir}"
        )
    train, test = (
        data.load(f"folder:{dir}", split=split, image_size=image_size, channels=channels)
        for split in ("train", "test")
    )
    train.held_out = test  # the data door's optional attribute
    return train
