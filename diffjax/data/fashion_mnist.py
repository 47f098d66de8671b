"""Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv:1708.07747), through TensorFlow Datasets.

A set already prepared by TFDS is read as it is. Otherwise it is prepared here in TFDS's format
and directory, so that other users of TFDS find it too. TFDS's own builder needs TensorFlow to
read the four IDX files and to encode PNGs; this one does both without it.

The four files are taken from the first of: the folder given by the user, Debian's package
dataset-fashion-mnist, TFDS's download manager. Their gzip headers differ, so the SHA-256 of the
decompressed bytes is checked.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import logging
import math
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffjax.data import tfds_sets
from diffjax.errors import UserError
from diffjax.files import expanded, sync_descriptor
from diffjax.progress import note_if_long

NAME = "fashion_mnist"
DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")

# SHA-256 of the decompressed files.
CHECKSUMS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

_IDX_UINT8 = 0x08
_MOST_BYTES = 64 * 2**20  # the largest of the four files has 47 million
_WAYS = (
    "--config.data.dir=<folder with the four IDX files>, or `apt-get install "
    "dataset-fashion-mnist`, or a network connection for TFDS's download"
)

_logger = logging.getLogger("diffjax")


def read_idx(path: Path, *, sha256: str) -> np.ndarray:
    """Reads an IDX file (Y. LeCun's format for MNIST), gzipped or plain.

    The file is a magic number 0, 0, type, number of dimensions; each dimension's size as a
    big-endian uint32; then the values, the last dimension fastest.

    Args:
      path: the file; gzip is recognised by its first two bytes, not by the name.
      sha256: the expected hash of the decompressed file, in hexadecimal.

    Returns:
      A read-only uint8 array.

    Raises:
      UserError: the file is missing or truncated, or its hash differs.
    """
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            # Limits what a gzip bomb can allocate.
            data = (gzip.GzipFile(fileobj=file) if zipped else file).read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise UserError(
                f"{path} has over {_MOST_BYTES} bytes, more than any of the originals; download "
                "the file again"
            )
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"cannot read {path} ({type(error).__name__}: {error}); download the file again"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise UserError(
            f"{path} is not the original: its content has SHA-256 {digest[:16]}..., expected "
            f"{sha256[:16]}...; download the file again"
        )
    dimensions = data[3] if len(data) > 3 and data[:3] == bytes([0, 0, _IDX_UINT8]) else 0
    start = 4 + 4 * dimensions
    # NumPy has at most 64 dimensions; math.prod does not overflow as NumPy's product would.
    whole = 0 < dimensions <= 64 and len(data) >= start
    shape = struct.unpack(f">{dimensions}I", data[4:start]) if whole else ()
    if not shape or len(data) != start + math.prod(shape):
        raise UserError(f"{path} is not an IDX file of uint8 values; download the file again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def find_idx(directory: Path) -> dict[str, Path]:
    """Returns the IDX files in a folder, .gz or plain, by their plain names."""
    paths = {}
    for name in CHECKSUMS:
        for path in (directory / name, directory / f"{name}.gz"):
            if path.is_file():
                paths[name] = path
                break
    return paths


def read_all(paths: dict[str, Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns {"train": (images (N, 28, 28), labels (N,)), "test": ...}, checked."""
    arrays = {name: read_idx(paths[name], sha256=sha256) for name, sha256 in CHECKSUMS.items()}
    return {
        split: (arrays[f"{prefix}-images-idx3-ubyte"], arrays[f"{prefix}-labels-idx1-ubyte"])
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }


def encode_png(pixels: np.ndarray) -> bytes:
    """The PNG file of (28, 28) uint8 levels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@functools.cache
def _builder_class() -> Any:
    """Returns TFDS's builder with the steps that need TensorFlow replaced."""
    from tensorflow_datasets.image_classification import mnist

    # The class's name determines the set's name on disk. It is not registered, so that the name
    # still refers to TFDS's own builder within this process.
    class FashionMNIST(mnist.FashionMNIST, skip_registration=True):  # type: ignore[call-arg]
        url_infos = mnist.FashionMNIST.url_infos
        idx_files: dict[str, Path] | None = None

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
            paths = self.idx_files
            if paths is None:
                urls = {name: f"{self.URL}{name}.gz" for name in CHECKSUMS}
                tfds_sets.check_reachable(list(urls.values()))
                paths = {name: Path(p) for name, p in dl_manager.download(urls).items()}
            return {
                split: self._generate_examples(*arrays) for split, arrays in read_all(paths).items()
            }

        def _generate_examples(
            self, images: np.ndarray, labels: np.ndarray
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield index, {"image": encode_png(image), "label": int(label)}

    return FashionMNIST


def _sync(paths: Iterable[Path]) -> None:
    """Calls fsync on files and directories."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            sync_descriptor(descriptor)
        finally:
            os.close(descriptor)


def prepare(root: Path, idx_files: dict[str, Path] | None) -> Path:
    """Prepares the set under a TFDS data directory; returns the version's directory.

    It is written to a temporary directory, synced and then renamed, so that an interruption
    leaves no incomplete set under the final name.
    """
    import tensorflow_datasets as tfds

    aside: Path | None = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f"incomplete.{NAME}.", dir=root))
        origin = "downloading it and " if idx_files is None else ""
        what = f"{NAME}: {origin}preparing it in {root}"
        with note_if_long(what), tfds_sets.quiet(bars=True):
            builder = _builder_class()(data_dir=str(aside), file_format="array_record")
            builder.idx_files = idx_files
            builder.download_and_prepare(
                download_dir=str(aside / "downloads"),
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
        written = Path(builder.data_dir)
        final = root / written.relative_to(aside)
        _sync([*written.rglob("*"), written])
        final.parent.mkdir(exist_ok=True)
        # If another process finished first, its set is used.
        with contextlib.suppress(OSError):
            os.rename(written, final)
        if tfds_sets.find_prepared(NAME, final.parent.parent) is None:
            raise UserError(
                f"{final} exists and is not a complete TFDS set; delete it and run again"
            )
        _sync([final.parent])
        return final
    except PermissionError as error:
        raise UserError(
            f"cannot write {root} ({error.strerror}); set TFDS_DATA_DIR to a writable folder"
        ) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def _given(directory: Path) -> tuple[Path | None, dict[str, Path]]:
    """Returns the prepared set and the IDX files in a folder given by the user."""
    if not directory.is_dir():
        raise UserError(
            f"--config.data.dir={directory} is not a folder; expected one with the four IDX "
            "files, or a TFDS data directory"
        )
    prepared = tfds_sets.find_prepared(NAME, directory)
    idx_files = find_idx(directory)
    if prepared is None and len(idx_files) < len(CHECKSUMS):
        missing = [name for name in CHECKSUMS if name not in idx_files]
        raise UserError(
            f"--config.data.dir={directory} has neither {NAME}/<version> nor the four IDX "
            f"files (missing: {', '.join(missing)}, plain or .gz); leave it unset to use TFDS's "
            "default directory"
        )
    return prepared, idx_files


@functools.cache
def _log_source(prepared: Path) -> None:
    """Logs the directory once per process, not once per split."""
    _logger.info("%s: read from %s", NAME, prepared)


def locate(data_dir: str | None = None) -> Path:
    """Returns the directory of the prepared set, preparing it if necessary.

    Args:
      data_dir: a TFDS data directory or a folder with the four IDX files; None tries TFDS's
        default directory, then Debian's package, then the network.

    Returns:
      `<TFDS data directory>/fashion_mnist/<version>`.

    Raises:
      UserError: none of these has the set, `data_dir` has neither, or a file is corrupt.
    """
    idx_files: dict[str, Path] | None = None
    if data_dir is not None:
        directory = expanded(data_dir)
        prepared, idx_files = _given(directory)
        if prepared is not None:
            _log_source(prepared)
            return prepared
        # Checked even if a prepared set exists: corrupt files given by the user are reported.
        read_all(idx_files)
    root = tfds_sets.default_dir()
    prepared = tfds_sets.find_prepared(NAME, root)
    if prepared is not None:
        _log_source(prepared)
        return prepared
    if idx_files is None and DEBIAN_DIR.is_dir():
        debian = find_idx(DEBIAN_DIR)
        idx_files = debian if len(debian) == len(CHECKSUMS) else None
    try:
        directory = prepare(root, idx_files)
    except UserError:
        raise
    except Exception as error:
        if idx_files is not None:
            raise UserError(
                f"{NAME} cannot be prepared in {root} ({type(error).__name__}: {error}); free "
                "space there or set TFDS_DATA_DIR to another folder"
            ) from error
        raise UserError(
            f"{NAME} is not on this machine and cannot be downloaded "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
            f"it needs {_WAYS}"
        ) from error
    origin = "the network" if idx_files is None else next(iter(idx_files.values())).parent
    _logger.info("%s: prepared in %s from %s", NAME, directory, origin)
    return directory
