"""Sets prepared by TensorFlow Datasets, read without TensorFlow.

TFDS stores a prepared set in `<data dir>/<name>[/<config>]/<version>/`. Records are read as bytes,
several at a time, and decoded here, which is four times as fast as TFDS's own decoding without
TensorFlow of one record at a time.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from diffjax import progress
from diffjax.data import decoded, encoded
from diffjax.data.images import Size
from diffjax.data.sources import UNLABELLED, ArraySource, ImageSource
from diffjax.data.tfrecords import TFRecordFiles
from diffjax.errors import UserError
from diffjax.files import cache_folder, expanded

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.\-]+))?(:(?P<version>\d+\.\d+\.\d+))?")


def default_dir() -> Path:
    """Returns TFDS's data directory: $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Without a home folder, a folder of the cache.
    """
    if given := os.environ.get("TFDS_DATA_DIR"):
        return expanded(given)
    home = expanded("~")
    return (cache_folder() if home == Path("~") else home) / "tensorflow_datasets"


def parse_name(name: str) -> tuple[str, str | None, str | None]:
    """Splits TFDS's `name[/config][:version]` into its three parts.

    >>> parse_name("mnist:3.0.1")
    ('mnist', None, '3.0.1')

    Raises:
      UserError: the name has another form.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"tfds:{name} is not a TFDS name; expected name[/config][:version], e.g. tfds:cifar10"
        )
    return match["name"], match["config"], match["version"]


def _is_prepared(directory: Path) -> bool:
    return all((directory / f).is_file() for f in ("dataset_info.json", "features.json"))


def _versions(parent: Path) -> dict[tuple[int, ...], Path]:
    """Returns the prepared versions directly under a directory. Incomplete ones have other names
    (TFDS writes to a temporary directory and renames it) and are not found."""
    if not parent.is_dir():
        return {}
    versions = {}
    for child in parent.iterdir():
        match = _VERSION.fullmatch(child.name)
        if match and _is_prepared(child):
            versions[tuple(int(part) for part in match.groups())] = child
    return versions


def find_prepared(name: str, root: Path) -> Path | None:
    """Finds a prepared set under a TFDS data directory.

    Args:
      name: `name[/config][:version]`; the default is the newest version.
      root: a TFDS data directory, or the directory of one version of the set itself.

    Returns:
      The version's directory, or None if there is none.

    Raises:
      UserError: the set has several configs and `name` does not specify one.
    """
    base, config, version = parse_name(name)
    parent = root / base / config if config else root / base
    versions = _versions(parent)
    if not config and not versions and parent.is_dir():
        configs = {c.name: v for c in sorted(parent.iterdir()) if (v := _versions(c))}
        if len(configs) > 1:
            raise UserError(
                f"tfds:{name} has {len(configs)} configs in {parent}; choose one: "
                + ", ".join(f"tfds:{base}/{c}" for c in configs)
            )
        for config_versions in configs.values():
            versions = config_versions
    if version:
        return versions.get(tuple(int(part) for part in version.split(".")))
    if versions:
        return versions[max(versions)]
    if _VERSION.fullmatch(root.name) and base in root.parts[-3:-1] and _is_prepared(root):
        return root
    return None


@contextlib.contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """Silences TFDS's prints, and its progress bars but on a terminal if `bars`.

    TFDS prints to standard output regardless of the logging level, e.g. a banner about missing
    TensorFlow, and logs each step through absl.
    """
    import tensorflow_datasets as tfds

    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    if not (bars and progress.shown() and progress.on_terminal()):
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        log.setLevel(level)


def _builder(directory: Path) -> Any:
    import tensorflow_datasets as tfds

    try:
        with quiet():
            return tfds.builder_from_directory(str(directory))
    except Exception as error:
        raise UserError(
            f"{directory} is not a readable TFDS set ({_one_line(error)}); delete it and prepare "
            "it again"
        ) from error


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(": ")


def splits(directory: Path) -> tuple[str, ...]:
    """Returns the splits of a prepared set, sorted."""
    return tuple(sorted(_builder(directory).info.splits))


class _Records:
    """The encoded images of one split."""

    def __init__(self, records: Any, *, labelled: bool, directory: Path) -> None:
        from tensorflow_datasets.proto import tf_example_pb2

        self._records = records
        self._parse = tf_example_pb2.Example.FromString
        self._labelled = labelled
        self._directory = directory

    def __len__(self) -> int:
        return len(self._records)

    def read(self, rows: Sequence[int]) -> list[tuple[bytes, int]]:
        try:
            # For a single record __getitem__ is four times as fast as __getitems__.
            records = self._records
            data = [records[rows[0]]] if len(rows) == 1 else records.__getitems__(rows)
            examples = [self._parse(record).features.feature for record in data]
            return [
                (
                    example["image"].bytes_list.value[0],
                    example["label"].int64_list.value[0] if self._labelled else UNLABELLED,
                )
                for example in examples
            ]
        except Exception as error:
            raise UserError(
                f"{self._directory} is corrupt ({_one_line(error)}); delete it and prepare it again"
            ) from error

    def open(self, row: int) -> BinaryIO:
        [(data, _)] = self.read([row])
        return io.BytesIO(data)

    def where(self, row: int) -> str:
        return f"record {row} of {self._directory}"


def _open_records(builder: Any, split: str, directory: Path) -> Any:
    """Returns the split's records as raw bytes, by index."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.data_sources.base import file_instructions

    formats = {f.value for f in builder.info.available_file_formats()}
    try:
        if formats & {"array_record", "parquet"}:
            return builder.as_data_source(
                split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )
        if "tfrecord" in formats:
            return TFRecordFiles(file_instructions(builder.info, split))
    except Exception as error:
        known = ", ".join(sorted(builder.info.splits))
        raise UserError(
            f"cannot read split {split!r} of {directory} ({_one_line(error)}); it has {known}"
        ) from error
    raise UserError(
        f"{directory} is stored as {', '.join(sorted(formats)) or 'an unknown format'}; expected "
        "array_record or tfrecord; prepare it again with file_format='array_record'"
    )


def read_prepared(
    directory: Path,
    *,
    name: str,
    split: str,
    image_size: Size | None,
    channels: int | None,
    memory_limit_mb: int,
    on_broken: str = "stop",
) -> ImageSource:
    """Reads one split of a prepared set of images.

    Args:
      directory: the version's directory, from `find_prepared`.
      name: the set's name, for messages.
      split: a split, or a part of one in TFDS's notation, e.g. "train[:80%]".
      image_size: side of the square images, or (height, width); None keeps their own size.
      channels: 1 or 3; None keeps the set's own (transparency is composited on white).
      memory_limit_mb: decoded sets of more MiB than this are streamed.
      on_broken: "stop" at images that can't be read, or "skip" them.

    Returns:
      The images of the feature "image" with the labels of the feature "label", if it has one. Sets
      decoded into memory are cached (`decoded`); reading them again does not import TFDS.

    Raises:
      UserError: no such split, no 8-bit feature "image", a label that is not a ClassLabel, or
        corrupt records.
    """
    key = decoded.key(directory, split=split, image_size=image_size, channels=channels)
    kept = decoded.find(key, name=name, memory_limit_mb=memory_limit_mb)
    if kept is not None:
        return kept

    import numpy as np
    import tensorflow_datasets as tfds

    builder = _builder(directory)
    if split.split("[")[0] not in builder.info.splits:
        known = ", ".join(sorted(builder.info.splits))
        raise UserError(f"{name} has no split {split!r} in {directory}; expected one of {known}")
    features = dict(builder.info.features.items())
    image = features.get("image")
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise UserError(
            f'{name} has no 8-bit feature "image" (it has {", ".join(features)}); '
            "choose an image classification set"
        )
    label = features.get("label")
    if label is not None and not isinstance(label, tfds.features.ClassLabel):
        raise UserError(
            f'{name} has a feature "label" that is not a ClassLabel; choose an image '
            "classification set"
        )
    records = _Records(
        _open_records(builder, split, directory),
        labelled=label is not None,
        directory=directory,
    )
    if len(records) == 0:
        raise UserError(f"{name}: split {split!r} is empty; expected at least one image")
    source = encoded.build_source(
        records,
        name=name,
        class_names=tuple(label.names) if label is not None else (),
        image_size=image_size,
        channels=channels or (1 if image.shape[-1] == 1 else 3),
        memory_limit_mb=memory_limit_mb,
        scan_limit=1024,
        on_broken=on_broken,
    )
    if isinstance(source, ArraySource) and on_broken == "stop":  # whole
        decoded.keep(key, source)
    return source


def check_reachable(urls: Sequence[str]) -> None:
    """Raises OSError if a host name cannot be resolved.

    TFDS's downloader retries for minutes before it reports a missing network. Behind a proxy
    names are resolved by the proxy, so nothing is checked.
    """
    if urllib.request.getproxies():
        return
    for host in {urllib.parse.urlsplit(url).hostname for url in urls} - {None}:
        socket.getaddrinfo(host, None)


def download(name: str, root: Path) -> Path:
    """Downloads and prepares a set with TFDS's own builder.

    Args:
      name: `name[/config][:version]`.
      root: the TFDS data directory to prepare it in.

    Returns:
      The directory of the prepared version.

    Raises:
      UserError: TFDS does not know the set, cannot download it, or needs TensorFlow for it.
    """
    import tensorflow_datasets as tfds

    try:
        what = f"tfds:{name}: downloading and preparing it in {root}"
        with progress.note_if_long(what), quiet(bars=True):
            builder = tfds.builder(name, data_dir=str(root), file_format="array_record")
            check_reachable(list(builder.url_infos or ())[:1])
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
    except Exception as error:
        raise UserError(
            f"tfds:{name} is not prepared in {root} and TFDS cannot prepare it here "
            f"({_one_line(error)}); set --config.data.dir to a TFDS directory that has it or to "
            "a folder of images with one sub-folder per class, or prepare it with TFDS (most sets "
            "then need TensorFlow and a network) on another machine"
        ) from error
    return Path(builder.data_dir)
