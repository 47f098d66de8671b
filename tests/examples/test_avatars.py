"""The set of examples/avatars: pictures against another rasteriser, captions, what is held out."""

import ast
import base64
import dataclasses
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import avatar_captions as captions
import avatar_folder as avatars
import avatar_pictures as pictures
import avatar_set
import npm_archives as npm
from avatar_names import CLOTHES, HAIR, HAS, PAIRS, PARTS, WEARS
from diffjax.data import ArraySource, load
from diffjax.errors import UserError
from make import main as make

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "avatars"
REAL = npm.cache_folder() / avatars.PACKAGE.file_name  # where the archive is outside of tests
COUNT = 400


def component(part: str, number: int) -> str:
    """A part as the style writes them; each is another rectangle."""
    fill = f"${{escape.xml(`${{colors.{part}}}`)}}"
    path = f'<path d="M{number} 3h2v{4 + number % 3}h-2z" fill="{fill}"/>'
    if part == "beard":
        hair = fill.replace("beard", "hair")
        return (
            f'<mask id="b-{number}" style="mask-type:luminance" x="3" y="6" width="10" height="6">'
            f'<path opacity=".9" d="M{number} 9h4v3h-4z" fill="{hair}"/></mask><g mask="url(#b)">'
            f'<path fill="{hair}" d="M0 0h16v16H0z"/></g>'
        )
    return path


def style_files() -> dict[str, bytes]:
    files = {}
    for part in pictures.LAYERS:
        variants = filter(None, PARTS[{"clothing": "clothes"}.get(part, part)].values())
        lines = [
            f"    {variant}: (components, colors) => `{component(part, number)}`,"
            for number, variant in enumerate(variants)
        ]
        text = "\n".join([f"export const {part} = {{", *lines, "};", ""])
        files[f"package/lib/components/{part}.js"] = text.encode()
    head = '<path d="M4 2h8v9H4z" fill="${escape.xml(`${colors.skin}`)}"/>'
    files["package/lib/index.js"] = f"body: `{head}${{(_b = (_a = components)}}`".encode()
    files["package/../../evil.txt"] = b"never unpacked"
    return files


def write_archive(path: Path, files: dict[str, bytes]) -> npm.Package:
    """Writes a .tgz; returns the package with its digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    return dataclasses.replace(avatars.PACKAGE, integrity=f"sha512-{digest}")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    return folder, write_archive(folder / avatars.PACKAGE.file_name, style_files())


@pytest.fixture
def archives(original, monkeypatch) -> Path:
    folder, package = original
    monkeypatch.setattr(avatars, "PACKAGE", package)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # no npm


@pytest.fixture(scope="module")
def out(original, tmp_path_factory) -> Path:
    folder, package = original
    path = tmp_path_factory.mktemp("avatars") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(avatars, "PACKAGE", package)
        avatars.build(path, count=COUNT, archives=folder)
    return path


def rows(out: Path, split: str) -> list[dict]:
    lines = (out / split / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def everything(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


# Pictures

# Paths of every kind that the style has.
PATHS = (
    '<path d="M4 2h8v1h1v3h1v2h-1v3h-1v1H9v1h4v1h1v2H2v-2h1v-1h4v-1H4v-1H3V8H2V6h1V3h1V2Z" '
    'fill="#c0c0c0"/><path fill-rule="evenodd" clip-rule="evenodd" d="M14 5H2v1h1v2h4V7h2v1h4V6h1V5'
    'Zm-2 1H9v1h3V6ZM7 7H4V6h3v1Z" fill="#404040"/><g fill="#808080"><path d="M5 0h1v1H5V0Z"/>'
    '<path d="M2 0h10v4H2z M4 1v2h4V1z"/></g>'
    '<path fill="#fff" fill-opacity=".3" d="M10 2h3v5h-3zM1 9h2v9H1z"/>'
)
# Its red channel as @resvg/resvg-js 2.6.2 draws it on black at 16x16, two hex digits a cell.
DRAWN = """
    00008080808080808080808000000000
    00008080000000008080808000000000
    00008080c0c0c0c08080a6a64d000000
    00008080808080808080a6a6d3000000
    000000c0c0c0c0c0c0c0d3d3d3000000
    000040404040404040407a7a7a400000
    0000c040c0c0c04040c0d3d37ac00000
    0000c040404040c0c040404040c00000
    000000c0c0c0c0c0c0c0c0c0c0000000
    004d4dc0c0c0c0c0c0c0c0c0c0000000
    004d4dc0c0c0c0c0c0c0c0c0c0000000
    004d4d00c0c0c0c0c0c0c0c000000000
    004d4d00000000c0c000000000000000
    004d4dc0c0c0c0c0c0c0c0c0c0000000
    004dd3c0c0c0c0c0c0c0c0c0c0c00000
    004dd3c0c0c0c0c0c0c0c0c0c0c00000
"""
# Together they have every value of every attribute. avatars.png has what @resvg/resvg-js draws of
# @dicebear/core's SVG of each, with a beard's mask replaced by the path in it (CC0 1.0).
EIGHT = (
    "short, brown, looking right, straight, v-neck, black, narrow, cap, goatee, dark, pink",
    "receding, blond, big, smile, tank top, red, sunglasses, top hat, none, light, purple",
    "side fringe, red, looking ahead, frown, t-shirt, blue, none, striped beanie, full, tan, white",
    "wild curls, grey, looking left, open, striped shirt, green, round, none, none, brown, blue",
    "bob, blue, big, toothy grin, checked shirt, yellow, sunglasses, top hat, full, light, green",
    "very long, black, looking ahead, smile, open jacket, purple, none, striped beanie, goatee, "
    "tan, yellow",
    "pigtails, blond, looking left, frown, tank top, red, round, none, full, brown, purple",
    "side ponytail, red, looking right, open, t-shirt, blue, narrow, cap, goatee, dark, white",
)


def real_style():
    if not REAL.is_file():
        pytest.skip(f"{REAL} is missing; examples/avatars/make.py gets it")
    return avatars._style(npm.archive(avatars.PACKAGE, folder=REAL.parent))


def test_paths_are_drawn_as_resvg_does():
    drawn = pictures.paint(list(pictures.shapes(PATHS)), size=16)
    expected = np.array([list(bytes.fromhex(line)) for line in DRAWN.split()])
    assert (drawn == drawn[..., :1]).all()
    # resvg rounds after each layer.
    assert np.abs(drawn[..., 0].astype(int) - expected).max() <= 1


def test_avatars_are_drawn_as_resvg_draws_those_of_dicebear():
    style = real_style()
    with Image.open(Path(__file__).with_name("avatars.png")) as image:
        expected = np.split(np.asarray(image).astype(int), len(EIGHT), axis=1)
    for values, picture in zip(EIGHT, expected, strict=True):
        avatar = dict(zip(PARTS, values.split(", "), strict=True))
        drawn = pictures.paint(pictures.shapes_of(style, avatar), size=32)
        assert np.abs(drawn - picture).max() <= 2


def test_every_value_can_be_told_from_every_other_in_any_company():
    style, chance = real_style(), random.Random(0)
    for _ in range(60):
        avatar = {name: chance.choice(list(values)) for name, values in PARTS.items()}
        drawn = pictures.paint(pictures.shapes_of(style, avatar), size=16).astype(int)
        for name, values in PARTS.items():
            for value in set(values) - {avatar[name]}:
                other = pictures.shapes_of(style, {**avatar, name: value})
                change = np.abs(pictures.paint(other, size=16) - drawn).sum(-1)
                assert (change > 30).sum() >= 2 and change.sum() > 150, (avatar, name, value)


@pytest.mark.parametrize(
    ("path", "cells"),
    [
        ("M2 3h2v1H2z", [(3, 2), (3, 3)]),
        ("M4 4H2V3h2z", [(3, 2), (3, 3)]),
        ("M2 3h1v1h-1zm2 2h1v1h-1z", [(3, 2), (5, 4)]),
        ("M2 3h1v1h-1M5 5h1v1h-1z", [(3, 2), (5, 5)]),  # an open path is filled, too
        ("M15 15h4v4h-4z", [(15, 15)]),
        ("M0 15h1v1H0V15Z", [(15, 0)]),
    ],
)
def test_cells_of_a_path(path, cells):
    expected = np.zeros((16, 16), bool)
    expected[tuple(np.transpose(cells))] = True
    np.testing.assert_array_equal(pictures.winding_numbers(path) != 0, expected)


def test_fill_rules_and_order_of_a_hole():
    outer, same, other = "M1 1h6v6H1z", "M3 3h2v2H3z", "M3 3v2h2V3z"
    for inner, winding in ((same, 2), (other, 0)):
        found = abs(pictures.winding_numbers(outer + inner))
        assert found[1, 1] == 1 and found[3, 3] == winding
    (shape,) = pictures.shapes(f'<path fill-rule="evenodd" d="{outer + same}" fill="#fff"/>')
    assert shape.cells.sum() == 36 - 4
    (shape,) = pictures.shapes(f'<path d="{outer + same}" fill="#fff"/>')
    assert shape.cells.sum() == 36


@pytest.mark.parametrize(
    "text",
    ["<path d='M1 1L2 2' fill='#fff'/>", "<path d='M1.5 1h2v2z' fill='#fff'/>", "<circle/>",
     "<path d='M1 1 2 2h1z' fill='#fff'/>", "<path", "<path d='' fill='#fff' stroke='#fff'/>"],
)  # fmt: skip
def test_svg_that_is_not_on_the_grid_is_refused(text):
    with pytest.raises(ValueError):
        pictures.shapes(text)


def test_layers_are_blended():
    text = '<path d="M0 0h16v16H0z" fill="#c80000"/><path d="M0 0h1v1H0z" fill="#fff" '
    found = pictures.paint(list(pictures.shapes(text + 'fill-opacity=".5"/>')), size=48)
    assert found.shape == (48, 48, 3)
    assert found[0, 0].tolist() == found[2, 2].tolist() == [228, 128, 128]
    assert found[3, 2].tolist() == [200, 0, 0]


# Captions


# The words of a caption that say nothing of the avatar.
AROUND = {
    "a",
    "person",
    "someone",
    "pixel",
    "art",
    "of",
    "portrait",
    "with",
    "wearing",
    "and",
    "on",
}
AROUND |= {"on", "against", "in", "front"}


def heard(caption: str) -> dict[str, set[str]]:
    """The attributes and values that a caption's words name, longest wordings first."""
    wordings = []
    for name, words in (*HAS.items(), *WEARS.items()):
        wordings += [(text, {name: value}) for value, texts in words.items() for text in texts]
    for thing, words, colour_alone in (
        ("hair", HAIR, "{} hair"),
        ("clothes", CLOTHES, "{} clothes"),
    ):
        colour = f"{thing}_colour"
        for shade in PARTS[colour]:
            wordings.append((colour_alone.format(shade), {colour: shade}))
        for value, texts in words.items():
            for text in texts:
                wordings.append((" ".join(text.format("").split()), {thing: value}))
                for shade in PARTS[colour]:
                    wordings.append((text.format(shade), {thing: value, colour: shade}))
    for value in PARTS["background"]:
        wordings.append((f"a {value} background", {"background": value}))
    found: dict[str, set[str]] = {}
    for text, named in sorted(wordings, key=lambda wording: -len(wording[0])):
        pattern = rf"(?<![\w-]){re.escape(text)}(?![\w-])"
        if re.search(pattern, caption):
            caption = re.sub(pattern, "#", caption, count=1)
            for name, value in named.items():
                found.setdefault(name, set()).add(value)
    assert set(re.findall(r"[\w-]+", caption)) <= AROUND, caption
    return found


def test_captions_name_what_the_picture_has_and_nothing_else(out):
    for split in ("train", "test"):
        for row in rows(out, split):
            assert heard(row["text"]) == {name: {row[name]} for name in row["named"]}
            assert row["text"].isascii() and row["text"] == row["text"].lower().strip()
            assert ",," not in row["text"] and "  " not in row["text"]


def test_wordings_orders_and_what_is_left_out_vary(out):
    found = rows(out, "train")
    whole = [row for row in found if len(row["named"]) == len(PARTS)]
    assert 0.4 < len(whole) / len(found) < 0.6
    assert len({len(row["named"]) for row in found}) == len(PARTS)
    left_out = Counter(name for name in PARTS for row in found if name not in row["named"])
    assert min(left_out.values()) > 0.15 * len(found) and len(left_out) == len(PARTS)
    first = Counter(row["text"].split()[0] for row in whole)
    assert len(first) > 4 and max(first.values()) < 0.7 * len(whole)
    avatar = dict(zip(PARTS, EIGHT[0].split(", "), strict=True))
    several = {captions.caption(avatar, tuple(PARTS), random.Random(i)) for i in range(50)}
    assert len(several) == 50


def test_one_attribute_alone_is_a_caption():
    avatar = dict(zip(PARTS, EIGHT[1].split(", "), strict=True))
    for name in PARTS:
        for seed in range(8):
            found = captions.caption(avatar, (name,), random.Random(seed))
            assert heard(found) == {name: {avatar[name]}}


def test_the_prompts_change_one_attribute_each():
    lines = (EXAMPLE / "prompts.txt").read_text().splitlines()
    first, *others = [heard(line) for line in lines]
    assert first.keys() == PARTS.keys()
    changed = [[name for name in PARTS if other[name] != first[name]] for other in others]
    assert sorted(name for names in changed for name in names) == sorted(PARTS)


# What is held out


def test_what_is_held_out_is_new_but_its_values_are_not(out):
    train, test = rows(out, "train"), rows(out, "test")
    assert (len(train), len(test)) == (COUNT - COUNT // 10, COUNT // 10)
    for name, values in PARTS.items():
        assert {row[name] for row in train} == set(values)
    counts = Counter(row["held_out"] for row in test)
    assert counts == {" and ".join(pair): len(test) // len(PAIRS) for pair in PAIRS}
    for row in test:
        new = [
            f"{a} and {b}" for a, b in PAIRS
            if (row[a], row[b]) not in {(other[a], other[b]) for other in train}
            and (row[a], row[b]) in avatars.combinations_held_out(a, b)
        ]  # fmt: skip
        assert new == [row["held_out"]]
        assert row["named"] == list(PARTS) and "held_out" not in train[0]
    for a, b in PAIRS:
        held = avatars.combinations_held_out(a, b)
        assert len(held) == len(PARTS[a]) * len(PARTS[b]) // 8
        assert not held & {(row[a], row[b]) for row in train}
        assert len({x for x, _ in held}) == len({y for _, y in held}) == len(held)


# The folder


def test_the_folder_is_a_source_with_captions(out):
    source = avatar_set.pictures(str(out))
    assert isinstance(source, ArraySource) and isinstance(source.held_out, ArraySource)
    assert source.image_shape == source.held_out.image_shape == (32, 32, 3)
    for found, split in ((source, "train"), (source.held_out, "test")):
        expected = rows(out, split)
        assert len(found) == len(expected) and found.class_names == ()
        assert [found.captions[found[i]["caption"]] for i in range(len(found))] == [
            row["text"] for row in expected
        ]
        np.testing.assert_array_equal(found.images, load(f"folder:{out}", split=split).images)
    build = json.loads((out / "build.json").read_text())
    assert build["attributes"] == {name: list(values) for name, values in PARTS.items()}
    assert "CC0 1.0" in (out / "CREDITS.txt").read_text()
    assert make(["--out", str(out)]) == 2  # 20,000 of them are another set


def test_pictures_are_those_of_their_rows(out, archives):
    style = avatars._style(npm.archive(avatars.PACKAGE, folder=archives))
    for row in rows(out, "train")[:20]:
        with Image.open(out / "train" / row["file_name"]) as image:
            assert image.mode == "RGB"
            expected = pictures.paint(pictures.shapes_of(style, row), size=32)
            np.testing.assert_array_equal(np.asarray(image), expected)


def test_it_is_the_same_every_time_and_for_one_seed(out, archives, tmp_path):
    avatars.build(tmp_path / "again", count=COUNT, archives=archives)
    assert everything(tmp_path / "again") == everything(out)
    assert avatars.build(out, count=COUNT, archives=archives).startswith("already there: 360 ")
    first, other = (list(avatars.rows("train", count=20, seed=seed)) for seed in (0, 1))
    assert first == rows(out, "train")[:20] and first != other


def test_a_size_is_so_many_pixels_a_cell(archives, tmp_path):
    for size in (16, 64):
        avatars.build(tmp_path / str(size), count=40, size=size, archives=archives)
    small, large = (load(f"folder:{tmp_path / size}").images for size in ("16", "64"))
    np.testing.assert_array_equal(small.repeat(4, 1).repeat(4, 2), large)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 40}, "--size=40; expected a multiple of 16, from 16 to 256"),
        ({"size": 0}, "--size=0; expected a multiple"),
        ({"count": 39}, "--count=39; expected 40 to 1000000"),
    ],
)
def test_arguments_out_of_range(archives, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        avatars.build(tmp_path / "set", archives=archives, **options)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(archives, tmp_path, monkeypatch, error):
    save, calls = Image.Image.save, []

    def fails(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) == 30:
            raise error
        save(self, *arguments, **options)

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
        avatars.build(tmp_path / "data" / "set", count=40, archives=archives)
    assert list((tmp_path / "data").iterdir()) == []


def test_another_set_is_not_replaced(out, archives, tmp_path):
    for more in ({"seed": 1}, {"size": 16}, {"count": COUNT + 10}):
        with pytest.raises(UserError, match="another number, size, seed or version; choose"):
            avatars.build(out, archives=archives, **{"count": COUNT, **more})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something else; choose a new folder"):
        avatars.build(tmp_path / "mine", archives=archives)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("package/lib/components/hat.js", b"", "hat.js has no variant07"),
        ("package/lib/index.js", b"", "index.js has no head"),
        ("package/lib/components/eyes.js", None, "components/eyes.js"),
    ],
)
def test_an_archive_that_is_not_as_expected(tmp_path, monkeypatch, name, data, message):
    files = {**style_files(), name: data}
    files = {name: data for name, data in files.items() if data is not None}
    path = tmp_path / "bad" / avatars.PACKAGE.file_name
    monkeypatch.setattr(avatars, "PACKAGE", write_archive(path, files))
    with pytest.raises(UserError, match=rf"no readable style .*{message}") as caught:
        avatars.build(tmp_path / "set", count=40, archives=tmp_path / "bad")
    assert "\n" not in str(caught.value) and not (tmp_path / "set").exists()


def test_without_node_the_command_says_what_to_do(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "make.py")],
        env={"PYTHONPATH": str(EXAMPLE.parents[1]), "PATH": str(tmp_path),
             "XDG_CACHE_HOME": str(tmp_path / "cache")},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .* npm, which is not installed; install Node.js .*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_the_command_makes_a_folder(archives, tmp_path, capsys):
    arguments = [f"--out={tmp_path / 'set'}", "--count=40", f"--archives={archives}"]
    assert make(arguments) == 0
    assert capsys.readouterr().out.endswith("set: 36 pictures in train, 4 in test\n")
    assert make([*arguments[:2], "--archives=nowhere"]) == 2
    assert make(["--out="]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_a_folder_that_is_not_made_names_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = r"data/avatars holds no avatars; .* python examples/avatars/make.py --out=data/avat"
    with pytest.raises(UserError, match=expected):
        avatar_set.pictures()


def test_the_example_imports_what_is_public():
    public = {"diffjax.data", "diffjax.errors", "diffjax.experiment"}
    found = set()
    for path in (*EXAMPLE.glob("*.py"), *EXAMPLE.parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "diffjax":
                found |= {f"diffjax.{name.name}" for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module)
            elif isinstance(node, ast.Import):
                found |= {name.name for name in node.names}
    assert {name for name in found if name.startswith("diffjax")} == public
