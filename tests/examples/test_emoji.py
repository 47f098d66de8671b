"""The set of examples/emoji, from small archives made here: captions, held out, all that fails."""

import ast
import base64
import dataclasses
import doctest
import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import emoji_folder as emoji
import emoji_names
import emoji_set
import npm_archives as npm
from diffjax.data import ArraySource, load
from diffjax.errors import UserError
from emoji_names import SKIN_TONES, names
from fetch import main as fetch

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "emoji"
TONES = tuple(SKIN_TONES)
FLAGS = 150
REAL = npm.cache_folder()  # where the archives are outside of tests


def entry(name: str, unified: str, short: str, *, tones: tuple[str, ...] = (), **more) -> dict:
    made = {"name": name, "unified": unified, "short_name": short, "category": "Objects"}
    if tones:
        # As in emoji.json: two people have a tone each.
        made["skin_variations"] = {t: {"unified": f"{unified}-{t}"} for t in tones}
        made["category"] = "People & Body"
    return {**made, "subcategory": "thing", **more}


ENTRIES = [
    *(entry(f"GESTURE {i} SIGN", f"1F0{i:02}", f"g{i}", tones=TONES) for i in range(40)),
    entry("TWO PEOPLE", "1F91D", "two", tones=(TONES[0], f"{TONES[0]}-{TONES[4]}", "1F3FC-1F3FC")),
    entry("EMOJI MODIFIER FITZPATRICK TYPE-3", "1F3FC", "skin-tone-3", category="Component"),
    *(entry(f"THING {i}", f"2{i:03}-FE0F", f"thing_{i}") for i in range(FLAGS)),
    entry("ONLY ONE STYLE", "3000", "one_style"),
]


def picture(*what: str, mode: str = "RGBA") -> bytes:
    """A picture that differs for all `what`, transparent at the left."""
    generator = np.random.default_rng(list("\0".join(what).encode()))
    pixels = generator.integers(0, 256, (64, 64, 4), np.uint8)
    pixels[:, :8, 3], pixels[:, 8:, 3] = 0, 255
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def code_points() -> list[str]:
    found = []
    for made in ENTRIES:
        found += [
            made["unified"],
            *(v["unified"] for v in made.get("skin_variations", {}).values()),
        ]
    return [unified.lower() for unified in found]


def write_archive(path: Path, files: dict[str, bytes]) -> str:
    """Writes a .tgz; returns the digest as npm publishes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    digest = hashlib.sha512(path.read_bytes()).digest()
    return "sha512-" + base64.b64encode(digest).decode()


def contents(style: str) -> dict[str, bytes]:
    folder, suffix = emoji.STYLES[style].folder, emoji.STYLES[style].suffix
    files = {
        f"{folder}{unified}{suffix}": picture(unified, style)
        for unified in code_points()
        if unified != "3000" or style == "google"
    }
    if style != "fluent":
        files["package/emoji.json"] = json.dumps(ENTRIES).encode()
        files["package/../../evil.txt"] = b"never unpacked"
        files[f"package/img/{style}/sheets/64.png"] = b"no picture"
    return files


@pytest.fixture(scope="session")
def original(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A folder of archives, and each style's digest."""
    folder = tmp_path_factory.mktemp("archives")
    return folder, {
        style: write_archive(folder / emoji.STYLES[style].package.file_name, contents(style))
        for style in emoji.STYLES
    }


def pin(monkeypatch, style: str, integrity: str) -> None:
    was = emoji.STYLES[style]
    package = dataclasses.replace(was.package, integrity=integrity)
    monkeypatch.setitem(emoji.STYLES, style, dataclasses.replace(was, package=package))


@pytest.fixture
def archives(original, monkeypatch) -> Path:
    folder, digests = original
    for style, digest in digests.items():
        pin(monkeypatch, style, digest)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # no npm but a test's own


def rows(out: Path, split: str) -> list[dict[str, str]]:
    lines = (out / split / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def everything(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.fixture
def out(archives, tmp_path) -> Path:
    emoji.build(tmp_path / "set", archives=archives)
    return tmp_path / "set"


# What is made


def test_the_folder_loads_with_its_captions(out):
    train, test = (load(f"folder:{out}", split=split) for split in ("train", "test"))
    assert train.image_shape == test.image_shape == (64, 64, 3)
    assert len(train) == len(rows(out, "train")) and len(test) == len(rows(out, "test"))
    assert len(train) + len(test) == 2 * len(code_points()) - 1
    for source, split in ((train, "train"), (test, "test")):
        found = {source.captions[source[i]["caption"]] for i in range(len(source))}
        assert found == {row["text"] for row in rows(out, split)}
        assert len(source.captions) == len(source)
    assert "CC-BY-4.0" in (out / "CREDITS.txt").read_text()
    assert "Apache-2.0" in (out / "CREDITS.txt").read_text()


def test_captions_follow_from_the_columns(out):
    for row in rows(out, "train") + rows(out, "test"):
        tone = f", {row['skin_tone']} skin tone" if row["skin_tone"] else ""
        assert row["text"] == f"{row['name']}{tone}, {row['style']} style"
        assert row["file_name"] == f"{row['style']}/{row['unified'].lower()}.png"
    found = {row["text"] for row in rows(out, "train") + rows(out, "test")}
    assert {
        "gesture 1, twitter style",
        "gesture 1, medium-dark skin tone, google style",
        "two people, light and dark skin tone, twitter style",
        "two people, medium-light skin tone, twitter style",
        "skin tone swatch, medium-light skin tone, google style",
        "thing 7, twitter style",
    } <= found


def test_pictures_are_laid_on_white(out):
    row = next(row for row in rows(out, "train") if row["style"] == "twitter")
    with Image.open(out / "train" / row["file_name"]) as image:
        assert image.mode == "RGB"
        pixels = np.asarray(image)
    assert (pixels[:, :8] == 255).all()
    drawn = Image.open(io.BytesIO(picture(row["unified"].lower(), "twitter")))
    assert (pixels[:, 8:] == np.asarray(drawn)[:, 8:, :3]).all()


def test_what_is_held_out_is_new_but_its_parts_are_not(out):
    train, test = rows(out, "train"), rows(out, "test")
    assert {row["text"] for row in train}.isdisjoint(row["text"] for row in test)
    assert not any("held_out" in row for row in train)
    known = Counter((row["name"], row["skin_tone"]) for row in train)
    tones = {name: {t for n, t in known if n == name and t} for name, _ in known}
    in_style = {(row["name"], row["style"]) for row in train}
    assert Counter(row["held_out"] for row in test).keys() == {"skin_tone", "style"}
    for row in test:
        assert row["style"] in {"twitter", "google"} and row["name"] in tones
        if row["held_out"] == "skin_tone":
            assert (row["name"], row["skin_tone"]) not in known  # in no style
            assert len(tones[row["name"]]) >= 3
        else:
            assert row["skin_tone"] == "" and (row["name"], row["style"]) not in in_style
            other = {"twitter": "google", "google": "twitter"}[row["style"]]
            assert (row["name"], other) in in_style


def test_about_the_wanted_share_is_held_out(out):
    test = rows(out, "test")
    toned = {(row["name"], row["skin_tone"]) for row in test if row["held_out"] == "skin_tone"}
    assert 0.04 < len(toned) / (40 * 5) < 0.17
    assert 0.04 < sum(row["held_out"] == "style" for row in test) / (2 * FLAGS) < 0.13
    common = Counter(row["skin_tone"] for row in rows(out, "train"))
    assert min(common[tone] for tone in SKIN_TONES.values()) > 0.7 * 2 * 40


def test_it_is_the_same_every_time_in_whatever_order_styles_are_named(out, archives, tmp_path):
    emoji.build(tmp_path / "again", styles=("google", "twitter"), archives=archives)
    assert everything(tmp_path / "again") == everything(out)


def test_what_is_held_out_in_a_tone_does_not_depend_on_the_styles(out, archives, tmp_path):
    emoji.build(tmp_path / "one", styles=("google",), archives=archives)
    found = rows(tmp_path / "one", "test")
    assert {row["held_out"] for row in found} == {"skin_tone"}  # one style: no other to learn from
    expected = {
        (row["name"], row["skin_tone"])
        for row in rows(out, "test")
        if row["held_out"] == "skin_tone"
    }
    assert {(row["name"], row["skin_tone"]) for row in found} == expected


def test_pixels_of_train_are_not_in_test(archives, tmp_path, monkeypatch, out):
    held = next(row for row in rows(out, "test") if row["held_out"] == "style")
    files = contents(held["style"])
    folder = emoji.STYLES[held["style"]].folder
    files[f"{folder}{held['unified'].lower()}.png"] = files[f"{folder}1f000.png"]
    for style in ("twitter", "google"):
        made = files if style == held["style"] else contents(style)
        path = tmp_path / "other" / emoji.STYLES[style].package.file_name
        pin(monkeypatch, style, write_archive(path, made))
    summary = emoji.build(tmp_path / "new", archives=tmp_path / "other")
    assert "1 left out, as train has the same pixels" in summary
    gone = {row["text"] for row in rows(tmp_path / "new", "test")}
    assert gone == {row["text"] for row in rows(out, "test")} - {held["text"]}
    assert held["text"] not in {row["text"] for row in rows(tmp_path / "new", "train")}


def test_all_styles_at_a_smaller_size(archives, tmp_path):
    emoji.build(tmp_path / "s", styles=("fluent", "twitter"), size=16, archives=archives)
    assert load(f"folder:{tmp_path / 's'}").image_shape == (16, 16, 3)
    assert {row["style"] for row in rows(tmp_path / "s", "train")} == {"twitter", "fluent"}
    assert "MIT" in (tmp_path / "s" / "CREDITS.txt").read_text()
    names_only = emoji.build(tmp_path / "f", styles=("fluent",), size=64, archives=archives)
    assert "images in train" in names_only


def test_a_tall_picture_is_set_in_the_middle_of_white():
    tall = np.zeros((12, 8, 3), np.uint8)
    small = emoji.to_size(tall, 6)
    assert small.shape == (6, 6, 3)
    assert (small[:, 0] > 200).all() and (small[:, 2:4] < 20).all()


# Made before, or in the way


def test_a_second_call_finds_it(out, archives, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr(emoji, "read_archives", lambda *_: pytest.fail("read again"))
    assert emoji.build(out, archives=archives).startswith("already there: ")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_an_empty_folder_is_filled(archives, tmp_path):
    (tmp_path / "empty").mkdir()
    emoji.build(tmp_path / "empty", archives=archives)
    assert rows(tmp_path / "empty", "test")


def test_another_build_is_not_replaced(out, archives):
    with pytest.raises(UserError, match="holds an emoji set of other styles, size or version"):
        emoji.build(out, size=32, archives=archives)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_something_else_is_not_replaced(archives, tmp_path, content):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    if content is not None:
        (tmp_path / "mine" / "build.json").write_text(content)
    with pytest.raises(UserError, match="holds something else; choose a new folder"):
        emoji.build(tmp_path / "mine", archives=archives)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(UserError, match="holds something else"):
        emoji.build(tmp_path / "mine" / "thesis.txt", archives=archives)


# What fails leaves nothing behind


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(archives, tmp_path, monkeypatch, error):
    save, calls = Image.Image.save, []

    def fails(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) == 100:
            raise error
        save(self, *arguments, **options)

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        emoji.build(tmp_path / "data" / "set", archives=archives)
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"styles": ("apple",)}, "--styles=apple; expected some of twitter,google,fluent"),
        ({"styles": ("google", "google")}, "each once"),
        ({"styles": ()}, "each once"),
        ({"size": 65}, "--size=65; expected 8 to 64"),
        ({"size": 7}, "--size=7; expected 8 to 64"),
        ({"size": 257, "styles": ("fluent",)}, "expected 8 to 256"),
    ],
)
def test_arguments_out_of_range(archives, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        emoji.build(tmp_path / "set", archives=archives, **options)
    assert not (tmp_path / "set").exists()


def test_an_archive_of_another_digest_is_refused(archives, tmp_path, monkeypatch):
    pin(monkeypatch, "google", "sha512-AAAA")
    with pytest.raises(UserError, match=r"is not emoji-datasource-google@16.0.0 as it was publ"):
        emoji.build(tmp_path / "set", archives=archives)
    assert not (tmp_path / "set").exists()


def test_a_missing_archive_is_named(archives, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"has no .*; put it there with: npm pack emoji-datasource"):
        emoji.build(tmp_path / "set", archives=tmp_path / "none")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"package/emoji.json": b"{"}, "no readable package/emoji.json"),
        ({"package/img/twitter/64/1.png": b""}, "no readable package/emoji.json"),
        ({"package/emoji.json": b"[]"}, "has no .png files in package/img/twitter/64/"),
        (
            {
                "package/emoji.json": json.dumps(ENTRIES).encode(),
                "package/img/twitter/64/2000-fe0f.png": b"no picture",
            },
            "cannot read 2000-fe0f .no PNG or WebP.; fetch",
        ),
        (None, "expected a .tgz"),
    ],
)
def test_an_archive_that_is_not_as_expected(tmp_path, monkeypatch, files, message):
    path = tmp_path / "bad" / emoji.STYLES["twitter"].package.file_name
    digest = write_archive(path, files or {"x": bytes(9999)})
    if files is None:
        path.write_bytes(path.read_bytes()[:-20])
        digest = "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    pin(monkeypatch, "twitter", digest)
    with pytest.raises(UserError, match=message) as caught:
        emoji.build(tmp_path / "set", styles=("twitter",), archives=tmp_path / "bad")
    assert "\n" not in str(caught.value) and not (tmp_path / "set").exists()


# npm


def fake_npm(tmp_path: Path, script: str) -> None:
    (tmp_path / "bin").mkdir(exist_ok=True)
    path = tmp_path / "bin" / "npm"
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def kept() -> list[str]:
    folder = npm.cache_folder()
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def test_archives_are_fetched_once_and_kept(archives, tmp_path):
    # pack SPEC --ignore-scripts --silent --pack-destination FOLDER
    fake_npm(tmp_path, f'echo "$2" >> {tmp_path}/log; cp {archives}/*.tgz "$6"')
    emoji.build(tmp_path / "set")
    emoji.build(tmp_path / "small", size=8)
    specs = ["emoji-datasource-twitter@16.0.0", "emoji-datasource-google@16.0.0"]
    assert (tmp_path / "log").read_text().split() == specs
    assert kept() == sorted(
        emoji.STYLES[style].package.file_name for style in ("google", "twitter")
    )


def test_without_npm_it_says_what_to_do(archives, tmp_path):
    with pytest.raises(UserError, match=r"npm, which is not installed; .* --archives"):
        emoji.build(tmp_path / "set")
    assert kept() == []


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'npm error code ENOTFOUND' >&2; exit 1", "npm error code ENOTFOUND"),
        ("exit 3", "exit code 3"),
        ("exit 0", "exit code 0"),
        ('echo x > "$6/emoji-datasource-twitter-16.0.0.tgz"', "SHA-512 differs"),
    ],
)
def test_a_failed_fetch_keeps_nothing(archives, tmp_path, script, message):
    fake_npm(tmp_path, script)
    with pytest.raises(UserError, match=message) as caught:
        emoji.build(tmp_path / "set")
    assert "\n" not in str(caught.value)
    assert kept() == [] and not (tmp_path / "set").exists()


def test_an_npm_that_hangs_or_a_cache_that_can_not_be_written(archives, tmp_path, monkeypatch):
    fake_npm(tmp_path, "exit 0")

    def hangs(command, **_):
        raise subprocess.TimeoutExpired("npm", 1)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", hangs)
        with pytest.raises(UserError, match="timed out"):
            emoji.build(tmp_path / "set")
    assert kept() == []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "bin" / "npm"))
    with pytest.raises(UserError, match=r"cannot write to .* set XDG_CACHE_HOME"):
        emoji.build(tmp_path / "set")


def test_scoped_packages_are_called_as_npm_calls_them():
    package = npm.Package("@lobehub/fluent-emoji-3d", "1.1.0", "sha512-x")
    assert package.file_name == "lobehub-fluent-emoji-3d-1.1.0.tgz"


# Names


def test_the_example_of_names():
    assert doctest.testmod(emoji_names) == (0, 3)


@pytest.mark.parametrize(
    ("name", "short", "subcategory", "expected"),
    [
        ("FRENCH FRIES", "fries", "food-prepared", "french fries"),
        ("France Flag", "flag-fr", "country-flag", "flag of france"),
        ("São Tomé & Príncipe Flag", "flag-st", "country-flag", "flag of sao tome and principe"),
        ("Congo - Kinshasa Flag", "flag-cd", "country-flag", "flag of congo (kinshasa)"),
        ("PIRATE FLAG", "pirate_flag", "flag", "pirate flag"),
        ("BLACK HEART SUIT", "hearts", "game", "heart suit"),
        ("BLACK SCISSORS", "scissors", "office", "scissors"),
        ("BLACK CAT", "black_cat", "animal-mammal", "black cat"),
        ("HEAVY BLACK HEART", "heart", "heart", "red heart"),
        ("WARNING SIGN", "warning", "warning", "warning sign"),
        ("NEW MOON SYMBOL", "new_moon", "sky & weather", "new moon"),
        ("CLOCK FACE TWO OCLOCK", "clock2", "time", "clock face at two o'clock"),
        ("FAMILY: MAN, WOMAN, BOY", "family3", "family", "family of man, woman and boy"),
        ("KISS: WOMAN, MAN", "wkm", "family", "woman and man kissing"),
        ("MAN: RED HAIR", "red_haired_man", "person", "man with red hair"),
        ("MAN: BALD", "bald_man", "person", "bald man"),
        ("LEO", "leo", "zodiac", "leo zodiac sign"),
        ("SQUARED COOL", "cool", "alphanum", "cool button"),
    ],
)
def test_names_are_readable(name, short, subcategory, expected):
    made = entry(name, "1", short, category="Objects", subcategory=subcategory)
    assert names([made]) == [expected]


def test_a_persons_white_cane_stays_white():
    made = entry("MAN WITH WHITE CANE", "1", "man_with_probing_cane", category="People & Body")
    assert names([made]) == ["man with white cane"]


def test_two_of_one_name_get_their_short_names():
    made = [entry("MAN IN TUXEDO", "1", f"{who}_in_tuxedo") for who in ("person", "man")]
    assert names(made) == ["person in tuxedo", "man in tuxedo"]


# The command


def test_the_command_says_in_a_line_what_it_made(archives, tmp_path, capsys):
    out = tmp_path / "set"
    arguments = [f"--out={out}", f"--archives={archives}", "--size=8", "--styles=google,twitter"]
    for expected in (f"{out}: ", f"{out}: already there: "):
        assert fetch(arguments) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(expected) and "images in train" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out="], "--out= is empty"),
        (["--archives=/nowhere"], "--archives=/nowhere is no folder"),
        (["--styles="], "--styles=; expected some of twitter,google,fluent"),
        (["--size=4"], "--size=4; expected 8 to 64"),
        ([], "npm, which is not installed"),
    ],
)
def test_wrong_arguments_are_one_line_and_code_2(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert fetch(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_as_a_script_from_another_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "fetch.py"), "--size=4"],
        env={"PYTHONPATH": str(EXAMPLE.parents[1]), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --size=4") and done.stderr.count("\n") == 1


# The source


def test_the_source_has_both_splits_with_their_captions(out):
    source = emoji_set.pictures(str(out))
    assert isinstance(source, ArraySource) and isinstance(source.held_out, ArraySource)
    for found, split in ((source, "train"), (source.held_out, "test")):
        stored = load(f"folder:{out}", split=split)
        np.testing.assert_array_equal(found.images, stored.images)
        np.testing.assert_array_equal(found.caption_numbers, stored.caption_numbers)
        assert found.captions == stored.captions
        # The column "category" of metadata.jsonl.
        assert found.class_names == stored.class_names and "People & Body" in found.class_names
    small = emoji_set.pictures(str(out), image_size=16, channels=1)
    assert small.image_shape == small.held_out.image_shape == (16, 16, 1)


def test_a_folder_that_is_not_made_names_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = r"data/emoji holds no emoji; .* python examples/emoji/fetch.py --out=data/emoji"
    with pytest.raises(UserError, match=expected):
        emoji_set.pictures()
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="holds no emoji"):
        emoji_set.pictures(str(tmp_path))


def test_the_example_imports_what_is_public():
    public = {
        "diffjax.data", "diffjax.errors", "diffjax.experiment", "diffjax.stable_diffusion.create"
    }  # fmt: skip
    found = set()
    for path in EXAMPLE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "diffjax":
                found |= {f"diffjax.{name.name}" for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module)
            elif isinstance(node, ast.Import):
                found |= {name.name for name in node.names}
    assert {name for name in found if name.startswith("diffjax")} == public


# The real one


def test_the_real_archives(tmp_path):
    packages = [emoji.STYLES[style].package.file_name for style in ("twitter", "google")]
    if missing := [name for name in packages if not (REAL / name).is_file()]:
        pytest.skip(f"{REAL} has no {' and '.join(missing)}; examples/emoji/fetch.py gets them")
    emoji.build(tmp_path / "set", size=8, archives=REAL)
    train, test = rows(tmp_path / "set", "train"), rows(tmp_path / "set", "test")
    assert len(train) > 6900 and len(test) > 500
    captions = [row["text"] for row in train + test]
    assert len(set(captions)) == len(captions)
    assert all(caption.isascii() and caption == caption.lower() for caption in captions)
    assert "waving hand, medium skin tone, twitter style" in captions
    assert {row["name"] for row in test} <= {row["name"] for row in train}
    common = Counter(row["skin_tone"] for row in train)
    assert min(common[tone] for tone in SKIN_TONES.values()) > 500
