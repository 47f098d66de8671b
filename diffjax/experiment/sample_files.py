"""The files of `--mode=sample`, by `config.sample.format`.

    grid   one PNG with all samples
    npz    one archive with all samples and what they are conditioned on
    png    one PNG a sample, in a folder

A PNG of one sample has its provenance as a text chunk, "diffjax": a JSON object with the sample's
seed, index, label and prompt, the settings, and a digest of the parameters. So an interrupted run
goes on where it stopped, and samples of another model are never mixed with it.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffjax import figures
from diffjax.distributed import processes
from diffjax.errors import UserError
from diffjax.experiment import folder_sampling
from diffjax.experiment.pictures import (
    Drawing,
    class_part,
    draw_grid,
    draw_stages,
    file_stem,
    stage_parts,
    stage_settings,
)
from diffjax.experiment.rules import SAMPLE_FORMATS
from diffjax.files import atomic_write
from diffjax.inference.generator import Generated
from diffjax.progress import Bar, note_if_long

CHUNK = "diffjax"


def generated(
    setup: Drawing,
    params: Any,
    folder: Path,
    *,
    step: int | str,
    log: Callable[[str], object] = print,
) -> None:
    """Writes config.sample.count samples in each format of config.sample.format.

    Files are in `folder`/generated, named by `file_stem`. An .npz holds images, uint8 (N, H, W, C),
    or x_0, float32 (N, ...), for other data; labels, int32 (N,), for classes; prompts, (N,), for
    texts; and map_images, uint8 (N, H, W, C), for maps. PNGs of single samples are named by seed,
    index and class, so that they sort by index; where all of a batch are there, it is not drawn.
    Of a cascade, the grid has a second one with each stage's images, and the .npz has those of the
    earlier stages as stage_1, ..., uint8 (N, h, w, C).

    Args:
      setup: the model.
      params: its parameters.
      folder: the workdir.
      step: of the checkpoint, for the names; of a cascade those of all stages, as "200-100".
      log: called with a line for each file or folder written.

    Raises:
      UserError: single images of data that are none, or PNGs of another model in their folder.
    """
    config = setup.config.sample
    formats = formats_of(config.format)
    count, batch_size = config.count, min(config.batch_size, config.count)
    if "png" in formats and not setup.about.images:
        raise UserError(
            f"config.sample.format = {config.format!r}: {setup.config.data.name!r} holds arrays of "
            f"{setup.about.shape}, not images: use 'npz'"
        )
    texts: tuple[str, ...] = ()
    if "prompt" in config:  # of a diffusion model
        negative = config.negative_prompt and f"not {config.negative_prompt}"
        prior = config.get("prior", "") and f"{config.candidates} of {config.prior}"
        added = folder_sampling.given(setup.config).values()
        texts = (config.prompt, negative, config.get("maps", ""), prior, *added)
    how = (*stage_parts(setup.config), class_part(config.labels), *texts, f"step{step}")
    folder = folder / "generated"
    stem = file_stem(config, f"n{count}", *how, exact=any(texts))
    if "png" in formats:
        each = _Each(setup, params, folder / file_stem(config, *how, exact=any(texts)), step=step)
        draws, stages = each.write(keep="grid" in formats or "npz" in formats)
        log(f"wrote {each.folder}: {each.written} PNG files" + each.kept)
    else:
        with note_if_long(f"drawing {count} samples; the sampler is compiled first"):
            drawn = setup.generator(params, start=0, count=count, batch_size=batch_size)
        draws, stages = drawn.images, drawn.stages
    if not processes.is_primary():
        return
    if "grid" in formats:
        figures.save_png(folder / f"{stem}.png", draw_grid(setup, Generated(draws, None), start=0))
        log(f"wrote {folder / f'{stem}.png'}")
        if stages:
            figures.save_png(folder / f"{stem}_stages.png", draw_stages(setup, stages))
            log(f"wrote {folder / f'{stem}_stages.png'}")
    if "npz" in formats:
        arrays = _arrays(setup, draws)
        arrays |= {f"stage_{k}": images for k, images in enumerate(stages[:-1], start=1)}
        archive = folder / f"{stem}.npz"
        atomic_write(archive, lambda file: np.savez_compressed(file, **arrays))
        log(f"wrote {archive}")


def formats_of(text: str) -> tuple[str, ...]:
    """The formats of config.sample.format.

    >>> formats_of("grid, npz")
    ('grid', 'npz')
    """
    return tuple(name for name in SAMPLE_FORMATS if name in {n.strip() for n in text.split(",")})


def _arrays(setup: Drawing, images: np.ndarray) -> dict[str, Any]:
    """What an .npz holds."""
    conditions = setup.generator.conditions
    arrays: dict[str, Any] = {"images" if setup.about.images else "x_0": images}
    for name, array in (
        ("labels", conditions.labels(0, len(images))),
        ("prompts", conditions.captions(0, len(images))),
        ("map_images", conditions.map_images(0, len(images))),
    ):
        if array is not None:
            arrays[name] = np.asarray(array)
    return arrays


class _Each:
    """One PNG for each sample of a config."""

    def __init__(self, setup: Drawing, params: Any, folder: Path, *, step: int | str) -> None:
        self.folder = folder
        self.written = self._kept = 0
        self._setup, self._params = setup, params
        sample = setup.config.sample
        # All processes draw each batch together, and only the first one sees the files.
        self._resumes = not processes.is_multiprocess()
        self._common = {
            "step": step,
            "parameters": _digest((params, setup.generator.weak_params)) if self._resumes else "",
        }
        if "sampler" in sample:  # of a diffusion model
            self._common |= {
                "sampler": sample.sampler,
                "grid": f"{sample.grid}, {sample.steps} steps",
                "guidance": sample.guidance,
                "threshold": sample.threshold,
            }
            if sample.prior:
                self._common |= {"prior": sample.prior, "candidates": sample.candidates}
        self._common |= stage_settings(setup.config) | folder_sampling.provenance(setup.config)
        self._common["seed"] = sample.seed
        if sample.get("augmentation_level", 0):
            self._common["augmentation_level"] = sample.augmentation_level

    @property
    def kept(self) -> str:
        """The number of files that were there, for the log."""
        return f" ({self._kept} more were there)" if self._kept else ""

    def write(self, *, keep: bool) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Writes the PNGs batch by batch.

        Returns:
          All samples, and those of a cascade's stages, if `keep`; else none of them.
        """
        sample = self._setup.config.sample
        size = min(sample.batch_size, sample.count)
        draws, stages = [], []
        with Bar("samples", sample.count, unit="sample", at_once=size) as bar:
            for start in range(0, sample.count, size):
                bar(start)
                number = min(size, sample.count - start)
                files = self._files(start, number)
                missing = [
                    i for i, (path, text) in enumerate(files) if not self._is_there(path, text)
                ]
                if not missing and not keep:
                    self._kept += number
                    continue
                drawn = self._setup.generator(
                    self._params, start=start, count=number, batch_size=size
                )
                images = drawn.images
                if processes.is_primary():
                    for i in missing:
                        path, text = files[i]
                        figures.save_png(path, images[i], text={CHUNK: text})
                self.written += len(missing)
                self._kept += number - len(missing)
                if keep:
                    draws.append(images)
                    stages.append(drawn.stages)
        if not keep:
            return np.empty(0, np.uint8), ()
        return np.concatenate(draws), tuple(map(np.concatenate, zip(*stages, strict=True)))

    def _files(self, start: int, count: int) -> list[tuple[Path, str]]:
        """The path and the provenance of each sample."""
        conditions = self._setup.generator.conditions
        seed = self._setup.config.sample.seed
        labels = conditions.labels(start, count)
        captions = conditions.captions(start, count)
        maps = conditions.map_images(start, count)
        control = conditions.control(start, count) if self._common.get("control") else None
        prompted = None
        if self._common.get("image_adapter"):
            prompted = conditions.image_prompts(start, count)
        files = []
        for i in range(count):
            about: dict[str, Any] = {**self._common, "index": start + i}
            name = f"seed{seed}_{start + i:08d}"
            if labels is not None:
                about["label"] = int(labels[i])
                name += f"_class{labels[i]}" if labels[i] >= 0 else ""
            if captions is not None:
                about["prompt"] = captions[i]
                about["negative_prompt"] = self._setup.config.sample.negative_prompt
            if maps is not None:
                about["map_image_crc32"] = _crc32(maps[i])
            if prompted is not None:
                about["image_prompt_crc32"] = _crc32(prompted[i])
            if control is not None:
                about["control_crc32"] = [_crc32(images[i]) for images in control.images]
            files.append((self.folder / f"{name}.png", json.dumps(about)))
        return files

    def _is_there(self, path: Path, text: str) -> bool:
        """Whether a PNG of this sample exists.

        Raises:
          UserError: the file is of another sample.
        """
        if not self._resumes or not path.exists():
            return False
        if figures.png_text(path).get(CHUNK) != text:
            raise UserError(
                f"{path} exists and is not this model's sample of these settings: move "
                f"{self.folder} away, or delete it"
            )
        return True


def _crc32(array: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def _digest(params: Any) -> str:
    """The first 16 hex digits of the SHA-256 of a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype.str}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
