"""Data sets as uint8 images, and endless batches of them.

`load` turns a name into a source, `batches` turns a source into batches that are a function of
(seed, step):

    source = load("fashion_mnist")
    iterator = batches(source, batch_size=128, seed=0)
    batch = next(iterator)      # {"image": uint8 (128, 28, 28, 1), "label": int32 (128,)}

If the set has captions, a batch also has "caption": indices into `source.captions`.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from diffjax import arguments
from diffjax.data.batches import BatchIterator, batches, epoch_permutation
from diffjax.data.images import Size
from diffjax.data.info import DataInfo, describe
from diffjax.data.own import as_source
from diffjax.data.sources import ArraySource, ImageSource, StreamedSource
from diffjax.errors import UserError
from diffjax.files import expanded

__all__ = [
    "ArraySource",
    "BatchIterator",
    "DataInfo",
    "ImageSource",
    "StreamedSource",
    "as_source",
    "batches",
    "describe",
    "epoch_permutation",
    "has_split",
    "load",
]

_logger = logging.getLogger("diffjax")

# Its square is somewhat below Pillow's pixel limit.
LARGEST_SIDE = 8192

_NAMES = (
    "fashion_mnist, digits, tfds:<name> (e.g. tfds:cifar10), folder:<path>, or module:Name for "
    "your own"
)


# Names that were sets of diffjax once, and what they are now.
_MOVED = {
    "emoji": "it is in examples/emoji now; make it with python examples/emoji/fetch.py, and train "
    "with --config=examples/emoji/text_to_image.py, where it is emoji_set:pictures"
}


def _unknown(name: str) -> UserError:
    if name in _MOVED:
        return UserError(f"{name!r} is no longer a data set of diffjax: {_MOVED[name]}")
    return UserError(f"unknown data set {name!r}; expected one of {_NAMES}")


def _locate_tfds(name: str, data_dir: str | None) -> tuple[Path, bool]:
    """Returns (directory, whether it is a TFDS set; else it is a folder of images)."""
    from diffjax.data import fashion_mnist, listing, tfds_sets

    root = tfds_sets.default_dir() if data_dir is None else expanded(data_dir)
    if data_dir is not None and not root.is_dir():
        raise UserError(
            f"--config.data.dir={data_dir} is not a folder; expected a TFDS data directory or a "
            "folder of images with one sub-folder per class"
        )
    prepared = tfds_sets.find_prepared(name, root)
    if prepared is not None:
        return prepared, True
    if data_dir is not None and listing.holds_images(root):
        _logger.info(
            "tfds:%s: %s has no such TFDS set; reading it as a folder of images", name, root
        )
        return root, False
    # TFDS's builder for it needs TensorFlow.
    if name == fashion_mnist.NAME:
        return fashion_mnist.locate(data_dir), True
    return tfds_sets.download(name, root), True


def load(
    name: str,
    *,
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    image_size: Size | None = None,
    channels: int | None = None,
    memory_limit_mb: int = 1024,
    on_broken: str = "stop",
    caption: str | None = None,
) -> ImageSource:
    """Loads one split of a data set.

    Args:
      name: one of
        fashion_mnist: 28x28x1, 10 classes; as prepared by TFDS, or from the four IDX files;
        digits: scikit-learn's 8x8x1 digits, 10 classes;
        tfds:<name>: any image classification set prepared by TFDS; if `data_dir` has no such set
          but is a folder of images, that folder;
        folder:<path>: PNG, JPEG and WebP files, with one sub-folder per class, a labels.csv, or
          captions in a metadata.jsonl or in text files (layouts in `diffjax.data.folder`).
      split: "train", "test" or another split of the set.
      data_dir: the directory of the data; None is TFDS's default ($TFDS_DATA_DIR, else
        ~/tensorflow_datasets). There is no fallback for an explicit directory.
      image_size: side of the square images in pixels, or (height, width): the largest centred part
        of these proportions is resized (bicubic, antialiased). None keeps the images as they are;
        they must then have one size.
      channels: 1 (grey) or 3 (RGB); None keeps the set's own.
      memory_limit_mb: sets of more MiB than this, decoded, are streamed from disk.
      on_broken: "stop" at images that can't be read, or "skip" them; both name them.
      caption: the column of a folder's captions; None for the usual names.

    Returns:
      A source: `len`, indexing, `image_shape`, `class_names`, `captions`.

    Raises:
      UserError: an unknown name or split; missing, unreadable or corrupt data; images of
        different sizes without `image_size`; an argument of another type or out of range.
    """
    arguments.text("name", name)
    arguments.text("split", split)
    image_size = _checked_size(image_size)
    if channels is not None:
        channels = arguments.whole("channels", channels, least=1, most=3)
        if channels == 2:
            raise UserError("channels is 2; expected 1 (grey) or 3 (RGB)")
    if arguments.number("memory_limit_mb", memory_limit_mb) < 0:
        raise UserError(f"memory_limit_mb is {memory_limit_mb!r}; expected a number of MiB")
    if not isinstance(on_broken, str) or on_broken not in ("stop", "skip"):
        raise UserError(f"on_broken is {arguments.shown(on_broken)}; expected 'stop' or 'skip'")
    if caption is not None:
        arguments.text("caption", caption)
    kind, _, rest = name.partition(":")
    data_dir = _folder(data_dir)
    if data_dir is not None and (name == "digits" or kind == "folder"):
        raise UserError(
            f"--config.data.dir={data_dir} does not apply to {name}, whose location is fixed; "
            "leave it unset"
        )
    if caption is not None and kind not in ("folder", "tfds"):
        raise UserError(f"caption is {caption!r}; expected None for {name}, which has none")
    # Imported per branch: reading a folder should not wait for TFDS's import.
    if name == "digits":
        from diffjax.data import digits

        return digits.load_digits(split=split, image_size=image_size, channels=channels)
    directory, prepared = _locate(name, kind, rest, data_dir)
    how: dict[str, Any] = {
        "name": name, "split": split, "image_size": image_size, "channels": channels,
        "memory_limit_mb": memory_limit_mb, "on_broken": on_broken,
    }  # fmt: skip
    if prepared:
        from diffjax.data import tfds_sets

        if caption is not None:
            raise UserError(f"caption is {caption!r}; expected None for {name}, which has none")
        return tfds_sets.read_prepared(directory, **how)
    from diffjax.data import folder

    return folder.load_folder(directory, caption=caption, **how)


def _folder(data_dir: Any) -> str | None:
    """None for the default, which "" is, too."""
    if data_dir is None or (isinstance(data_dir, str) and not data_dir):
        return None
    return os.fspath(arguments.path("data_dir", data_dir))


def _checked_size(size: Any) -> Size | None:
    """A size in its one form: an integer for squares.

    Raises:
      UserError: neither an integer nor two, or out of range.
    """
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or not all(
        arguments.is_whole(side) and 1 <= side <= LARGEST_SIDE for side in sides
    ):
        raise UserError(
            f"image_size is {arguments.shown(size)}; expected an integer "
            f"from 1 to {LARGEST_SIDE} (pixels), or "
            "two: (height, width)"
        )
    height, width = map(int, sides)
    return height if height == width else (height, width)


def _locate(name: str, kind: str, rest: str, data_dir: str | None) -> tuple[Path, bool]:
    """Returns (directory, whether it is a TFDS set; else it is a folder of images).

    Raises:
      UserError: an unknown name, or the set is missing.
    """
    if name == "fashion_mnist":
        from diffjax.data import fashion_mnist

        return fashion_mnist.locate(data_dir), True
    if kind == "tfds" and rest:
        return _locate_tfds(rest, data_dir)
    if kind == "folder" and rest:
        return expanded(rest), False
    raise _unknown(name)


def has_split(name: str, *, split: str, data_dir: str | os.PathLike[str] | None = None) -> bool:
    """Returns whether `load` would find this split; reads no images.

    Args:
      name: as for `load`.
      split: e.g. "test", which is optional in a folder of images.
      data_dir: as for `load`.

    Raises:
      UserError: an unknown name, or the data set is missing.
    """
    arguments.text("name", name)
    arguments.text("split", split)
    data_dir = _folder(data_dir)
    if name in ("digits", "fashion_mnist"):
        return split in ("train", "test")
    kind, _, rest = name.partition(":")
    directory, prepared = _locate(name, kind, rest, data_dir)
    if prepared:
        from diffjax.data import tfds_sets

        return split in tfds_sets.splits(directory)
    from diffjax.data import folder, listing

    return listing.SPLIT_NAMES.get(split.lower(), split) in folder.splits(directory)
