"""Files of samples: one PNG each, named, described, resumed and never mixed with others."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffjax import figures
from diffjax.errors import UserError
from diffjax.experiment.rules import FORMATS
from diffjax.experiment.sample_files import formats_of, generated

SHAPE = (5, 4, 3)


class Drawn:
    """A generator whose sample number i is a function of (params, seed, i), as the real one's."""

    weak_params = None

    def __init__(self, seed=0, labels=None, captions=None):
        self.conditions = SimpleNamespace(
            labels=lambda start, count: labels and labels[start : start + count],
            captions=lambda start, count: captions and captions[start : start + count],
            map_images=lambda start, count: None,
        )
        self.seed, self.asked = seed, []

    def image(self, params, i):
        key = [int(params["w"][0]), self.seed, i]
        return np.random.default_rng(key).integers(0, 256, SHAPE).astype(np.uint8)

    def __call__(self, params, *, start, count, batch_size=None):
        self.asked.append((start, count))
        images = [self.image(params, i) for i in range(start, start + count)]
        return SimpleNamespace(images=np.stack(images), stages=())


def setup_of(tiny_config, generator, **sample):
    with tiny_config.unlocked():
        tiny_config.sample.update({"count": 10, "batch_size": 4, "seed": generator.seed, **sample})
    about = SimpleNamespace(images=True, shape=SHAPE, class_names=("a", "b"))
    conditions = SimpleNamespace(make_map=None)
    return SimpleNamespace(
        config=tiny_config, about=about, conditions=conditions, generator=generator
    )


PARAMS = {"w": np.arange(3.0)}


def run(tiny_config, tmp_path, generator=None, params=PARAMS, step=6, **sample):
    generator = generator or Drawn()
    lines = []
    setup = setup_of(tiny_config, generator, **sample)
    generated(setup, params, tmp_path, step=step, log=lines.append)
    return sorted((tmp_path / "generated").rglob("*.png")), generator, lines


def test_each_sample_is_a_file_that_says_what_it_is(tiny_config, tmp_path):
    generator = Drawn(seed=3, labels=[0, 1, -1] * 4, captions=[f"a {i} caf\xe9" for i in range(12)])
    files, _, (line,) = run(tiny_config, tmp_path, generator, format="png")
    names = [f"seed3_{i:08d}" + ("_class0", "_class1", "")[i % 3] for i in range(10)]
    assert [path.stem for path in files] == names
    for i, path in enumerate(files):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), generator.image(PARAMS, i))
        about = json.loads(figures.png_text(path)["diffjax"])
        assert (about["seed"], about["index"], about["step"]) == (3, i, 6)
        assert about["label"] == (0, 1, -1)[i % 3] and about["prompt"] == f"a {i} caf\xe9"
    assert "10 PNG files" in line and len({path.parent for path in files}) == 1


def test_an_interrupted_run_goes_on(tiny_config, tmp_path):
    files, _, _ = run(tiny_config, tmp_path, format="png")
    before = {path: path.read_bytes() for path in files}
    times = {path: path.stat().st_mtime_ns for path in files}
    for path in (files[5], files[9]):
        path.unlink()
    again, generator, (line,) = run(tiny_config, tmp_path, format="png")
    assert {path: path.read_bytes() for path in again} == before
    assert generator.asked == [(4, 4), (8, 2)]  # the batches with something missing
    kept = [path for path in again if path not in (files[5], files[9])]
    assert all(path.stat().st_mtime_ns == times[path] for path in kept)
    assert "2 PNG files (8 more were there)" in line

    # More samples of the same are added to the same folder.
    more, generator, _ = run(tiny_config, tmp_path, format="png", count=14)
    assert more[:10] == files and len(more) == 14 and generator.asked == [(8, 4), (12, 2)]


def test_samples_of_another_model_are_not_mixed_in(tiny_config, tmp_path):
    files, _, _ = run(tiny_config, tmp_path, format="png")
    before = {path: path.read_bytes() for path in files}
    with pytest.raises(UserError, match=r"not this model's sample.*move .* away, or delete it"):
        run(tiny_config, tmp_path, params={"w": np.arange(1.0, 4.0)}, format="png")
    files[0].write_bytes(b"not a PNG")
    with pytest.raises(UserError, match="not this model's sample"):
        run(tiny_config, tmp_path, format="png")
    files[0].write_bytes(before[files[0]])
    # Another step, seed or sampler has a folder of its own.
    for change in ({"step": 7}, {"generator": Drawn(seed=1)}, {"sampler": "ddim"}):
        run(tiny_config, tmp_path, format="png", **change)
    assert {path: path.read_bytes() for path in files} == before
    assert len(list((tmp_path / "generated").iterdir())) == 4


def test_all_formats_hold_the_same_samples(tiny_config, tmp_path):
    files, generator, lines = run(tiny_config, tmp_path, format="npz, png,grid")
    assert len(files) == 11 and len(lines) == 3
    (archive,) = (tmp_path / "generated").glob("*.npz")
    with np.load(archive, allow_pickle=False) as found:
        for i in range(10):
            np.testing.assert_array_equal(found["images"][i], generator.image(PARAMS, i))
    assert archive.with_suffix(".png") in files
    # The archive is made again from PNGs' own samples, and those stay as they are.
    archive.unlink()
    again, _, _ = run(tiny_config, tmp_path, format="png,npz")
    assert archive.exists() and again == files


def test_one_format_writes_nothing_else(tiny_config, tmp_path):
    for name, suffixes in (("grid", [".png"]), ("npz", [".npz"])):
        run(tiny_config, tmp_path / name, format=name)
        assert [p.suffix for p in (tmp_path / name / "generated").iterdir()] == suffixes


def test_arrays_have_no_png(tiny_config, tmp_path):
    setup = setup_of(tiny_config, Drawn(), format="png")
    setup.about.images = False
    with pytest.raises(UserError, match="not images: use 'npz'"):
        generated(setup, PARAMS, tmp_path, step=1)


def test_names_of_formats():
    assert formats_of("npz,png") == ("png", "npz")
    for text, right in (("png", True), ("png, grid", True), ("", False), ("png,png", False),
                        ("png,jpeg", False)):  # fmt: skip
        assert FORMATS.holds(text) == right


def test_a_file_that_is_no_png_has_no_texts(tmp_path):
    figures.save_png(tmp_path / "a.png", np.zeros((2, 2), np.uint8), text={"key": "\u2603"})
    assert figures.png_text(tmp_path / "a.png") == {"key": "\u2603"}
    whole = (tmp_path / "a.png").read_bytes()
    for size in range(0, len(whole), 7):
        (tmp_path / "b.png").write_bytes(whole[:size])
        assert figures.png_text(tmp_path / "b.png") in ({}, {"key": "\u2603"})
    with pytest.raises(UserError, match="cannot open"):
        figures.png_text(tmp_path / "none.png")
