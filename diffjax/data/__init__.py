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
from pathlib import Path

from diffjax.data.batches import BatchIterator, batches, epoch_permutation
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
    from diffjax.data import fashion_mnist, folder, tfds_sets

    root = tfds_sets.default_dir() if data_dir is None else expanded(data_dir)
    if data_dir is not None and not root.is_dir():
        raise UserError(
            f"--config.data.dir={data_dir} is not a folder; expected a TFDS data directory or a "
            "folder of images with one sub-folder per class"
        )
    prepared = tfds_sets.find_prepared(name, root)
    if prepared is not None:
        return prepared, True
    if data_dir is not None and folder.holds_images(root):
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
    data_dir: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    memory_limit_mb: int = 1024,
) -> ImageSource:
    """Loads one split of a data set.

    Args:
      name: one of
        fashion_mnist: 28x28x1, 10 classes; as prepared by TFDS, or from the four IDX files;
        digits: scikit-learn's 8x8x1 digits, 10 classes;
        tfds:<name>: any image classification set prepared by TFDS; if `data_dir` has no such set
          but is a folder of images, that folder;
        folder:<path>: PNG, JPEG and WebP files, with one sub-folder per class, a labels.csv, or a
          metadata.jsonl with captions (layouts in `diffjax.data.folder`).
      split: "train", "test" or another split of the set.
      data_dir: the directory of the data; None is TFDS's default ($TFDS_DATA_DIR, else
        ~/tensorflow_datasets). There is no fallback for an explicit directory.
      image_size: side of the square images in pixels: the shorter side is resized (bicubic,
        antialiased) and the centre cropped. None keeps the images as they are; they must then
        have one size.
      channels: 1 (grey) or 3 (RGB); None keeps the set's own.
      memory_limit_mb: sets of more MiB than this, decoded, are streamed from disk.

    Returns:
      A source: `len`, indexing, `image_shape`, `class_names`, `captions`.

    Raises:
      UserError: an unknown name or split; missing, unreadable or corrupt data; images of
        different sizes without `image_size`; an argument out of range.
    """
    if image_size is not None and (
        isinstance(image_size, bool)
        or not isinstance(image_size, int)
        or not 1 <= image_size <= LARGEST_SIDE
    ):
        raise UserError(
            f"image_size is {image_size!r}; expected an integer from 1 to {LARGEST_SIDE} (pixels)"
        )
    if channels not in (None, 1, 3):
        raise UserError(f"channels is {channels!r}; expected 1 (grey) or 3 (RGB)")
    kind, _, rest = name.partition(":")
    data_dir = data_dir or None
    if data_dir is not None and (name == "digits" or kind == "folder"):
        raise UserError(
            f"--config.data.dir={data_dir} does not apply to {name}, whose location is fixed; "
            "leave it unset"
        )
    # Imported per branch: reading a folder should not wait for TFDS's import.
    if name == "digits":
        from diffjax.data import digits

        return digits.load_digits(split=split, image_size=image_size, channels=channels)
    if name == "fashion_mnist":
        from diffjax.data import fashion_mnist, tfds_sets

        return tfds_sets.read_prepared(
            fashion_mnist.locate(data_dir),
            name=name,
            split=split,
            image_size=image_size,
            channels=channels,
            memory_limit_mb=memory_limit_mb,
        )
    if kind == "tfds" and rest:
        directory, prepared = _locate_tfds(rest, data_dir)
        if prepared:
            from diffjax.data import tfds_sets

            return tfds_sets.read_prepared(
                directory,
                name=name,
                split=split,
                image_size=image_size,
                channels=channels,
                memory_limit_mb=memory_limit_mb,
            )
    elif kind == "folder" and rest:
        directory = expanded(rest)
    else:
        raise _unknown(name)
    from diffjax.data import folder

    return folder.load_folder(
        directory,
        name=name,
        split=split,
        image_size=image_size,
        channels=channels,
        memory_limit_mb=memory_limit_mb,
    )


def has_split(name: str, *, split: str, data_dir: str | None = None) -> bool:
    """Returns whether `load` would find this split; reads no images.

    Args:
      name: as for `load`.
      split: e.g. "test", which is optional in a folder of images.
      data_dir: as for `load`.

    Raises:
      UserError: an unknown name, or the data set is missing.
    """
    kind, _, rest = name.partition(":")
    data_dir = data_dir or None
    if name in ("digits", "fashion_mnist"):
        return split in ("train", "test")
    if kind == "tfds" and rest:
        directory, prepared = _locate_tfds(rest, data_dir)
        if prepared:
            from diffjax.data import tfds_sets

            return split in tfds_sets.splits(directory)
    elif kind == "folder" and rest:
        directory = expanded(rest)
    else:
        raise _unknown(name)
    from diffjax.data import folder

    return split in folder.splits(directory)
