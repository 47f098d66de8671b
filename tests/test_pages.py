"""README and the manual: examples run, commands name files, flags and keys that exist."""

import ast
import doctest
import functools
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from diffjax import flags
from diffjax.checkpoints import workdir
from diffjax.experiment import schema
from diffjax.experiment.backbone_keys import NETWORK_FIELDS

ROOT = Path(__file__).resolve().parents[1]
# Where the manual's build writes.
BUILT = ("_build", "house.svg", "notebooks", "project", "reference")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(
        page
        for page in sorted((ROOT / "docs").rglob("*.md"))
        if not {*BUILT} & {*page.relative_to(ROOT / "docs").parts}
    ),
]
DIGITS = "experiments/digits.py"  # where a page leaves the config open
KEYS = {
    key
    for kind in schema.KINDS.values()
    for key in (*kind.keys, *(key for fields in NETWORK_FIELDS.values() for key in fields))
}


def name(page):
    return str(page.relative_to(ROOT))


@functools.cache
def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    """The code blocks of a page in a language."""
    found = re.findall(r"^```(.*)\n((?:.*\n)*?)```$", text_of(page), flags=re.MULTILINE)
    return [code for of, code in found if of == language]


def commands(page, program):
    """The arguments of a program in each block of commands."""
    lines = "\n".join([*blocks(page, "bash"), *blocks(page, "")]).replace("\\\n", " ")
    found = re.findall(rf"(?:^|[ /]){re.escape(program)}( .*)?$", lines, flags=re.MULTILINE)
    return [arguments.partition("  #")[0] for arguments in found]


def everywhere(find):
    """(page, what) pairs of all pages as pytest's parameters."""
    return [
        pytest.param(page, what, id=f"{name(page)}-{i}")
        for page in PAGES
        for i, what in enumerate(find(page))
    ]


def anchors(page):
    """The anchors that a code host and Sphinx make of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def labels():
    """MyST's labels, "(label)=", which links of every page may name."""
    return {label for p in PAGES for label in re.findall(r"^\((.+)\)=$", text_of(p), re.MULTILINE)}


@pytest.mark.parametrize("page", [p for p in PAGES if ">>> " in text_of(p)], ids=name)
def test_the_examples_run(page):
    result = doctest.testfile(
        str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert result.attempted > 0 and result.failed == 0


def test_readme_has_an_example():
    assert text_of(ROOT / "README.md").count(">>> ") > 5


@pytest.mark.parametrize(
    "page, code", everywhere(lambda page: [b for b in blocks(page, "python") if ">>> " not in b])
)
def test_code_is_python(page, code):
    ast.parse(code)


def by_file(page, command):
    """A command with the config file of its run, --config=runs/..., that the page trains."""
    run = re.search(r"--config=(runs/\S+)", command)
    if run is None:
        return command
    trained, *_ = [c for c in commands(page, "python -m diffjax.main") if f"dir={run[1]}" in c]
    return command.replace(run[0], re.search(r"--config=\S+", trained)[0])


@pytest.mark.parametrize(
    "page, command", everywhere(lambda p: commands(p, "python -m diffjax.main"))
)
def test_commands_parse(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = by_file(page, command)
    arguments = shlex.split(command.replace("FOLDER", "folder").replace("=FILE", f"={DIGITS}"))
    about = flags.help_wanted(arguments)
    if about:
        assert flags.explain(about)
    elif about is None and arguments:
        assert flags.parse(arguments).mode in flags.MODES


def test_there_are_commands():
    of = {name(page): len(commands(page, "python -m diffjax.main")) for page in PAGES}
    assert of["README.md"] >= 3 and sum(of.values()) >= 49, of


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_other_commands_exist(page):
    for module in re.findall(r"python -m ([\w.]+)", text_of(page)):
        assert module == "pip" or find_spec(module), module
    for script in re.findall(r"python ([\w/]+\.py)", text_of(page)):
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if any(target.is_relative_to(ROOT / "docs" / built) for built in BUILT):
            continue  # the manual's build checks these
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target) | labels(), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_keys_exist(page):
    sections = {key.rpartition(".")[0] for key in KEYS}
    for key in re.findall(r"`(?:--)?config\.(?!json`|model\.update)([\w.]+)", text_of(page)):
        assert key in KEYS or key in sections, f"config.{key}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_excerpts_are_of_their_files(page):
    for code in blocks(page, "python"):
        first, _, rest = code.partition("\n")
        if re.fullmatch(r"# [\w/]+\.py", first):
            assert rest in (ROOT / first[2:]).read_text(), first


def test_the_keys_that_may_change_are_listed():
    page = text_of(ROOT / "docs/how_to/resume.md")
    listed = page.split("These keys may change when a run goes on:")[1].split("With any other")[0]
    names = {key.removesuffix("*") for key in re.findall(r"`([\w.*]+)`", listed)}
    assert names == set(workdir.MAY_CHANGE)


def test_the_loop_of_your_own_learns_its_data():
    first, second, *_ = blocks(ROOT / "docs/how_to/own_loop.md", "python")
    assert first.count("\n") <= 60
    others = (
        "import sys; print([m for m in ('flax', 'optax', 'ml_collections') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", "\n".join([first, second, others])],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    std, nats, modules = run.stdout.splitlines()
    assert modules == "[]"
    spread, of_data = (float(number) for number in re.findall(r"[\d.]+", std))
    assert spread == pytest.approx(of_data, rel=0.2)
    model, true = (float(number) for number in re.findall(r"[\d.]+", nats))
    assert true - 0.1 < model < true + 0.03  # of 1,000 points, next to a standard error of 0.03


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make ([\w-]+)", text_of(page), flags=re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_what_has_not_been_run_is_said():
    for page in ("README.md", "docs/how_to/devices.md"):
        assert "diffjax has not run on a GPU or TPU yet" in text_of(ROOT / page)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "RESULTS.md"], ids=name)
def test_nothing_is_left_to_be_filled_in(page):
    assert not re.findall(r"^[A-Z_]{4,}$", text_of(page), flags=re.MULTILINE)
