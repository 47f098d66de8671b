"""The manual's generated pages have everything that they are made of."""

import configparser
import itertools
import re
from pathlib import Path

import api
import api_pages
import commands_page
import config_page
import house
import pytest

import diffjax
from diffjax import flags
from diffjax.commands import FORMATS, MODES
from diffjax.experiment.backbone_keys import NETWORK_FIELDS
from diffjax.experiment.schema import KINDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pages():
    return api_pages.pages()


@pytest.fixture(scope="module")
def commands():
    return commands_page.page()


def test_every_public_module_is_on_one_page(pages):
    shown = re.findall(r"^\.\. automodule:: (\S+)$", "\n".join(pages.values()), flags=re.MULTILINE)
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "diffjax").rglob("*.py")
        if not path.name.startswith("_") or path.name == "__init__.py"
    }
    assert sorted(shown) == sorted(files)


def test_every_name_of_dj_is_documented():
    for name in set(diffjax.__all__) - {"__version__"}:
        path = api.resolve(f"dj.{name}", "")
        assert path, name
        assert api.load(path) is getattr(diffjax, name)


def test_a_name_has_its_shortest_path():
    assert api.resolve("dj.samplers.ddim", "") == "diffjax.sampling.samplers.ddim"
    assert api.resolve("Data", "diffjax.process") == "diffjax.types.Data"
    assert api.resolve("grids.trailing", "diffjax.sampling.samplers") == "diffjax.grids.trailing"
    assert api.resolve("dj.samplers.no_such", "") is None


def test_a_new_room_gets_a_page_of_its_own(monkeypatch):
    monkeypatch.delitem(api_pages.PAGES, "accelerator")
    assert ".. automodule:: diffjax.accelerator.library" in api_pages.pages()["accelerator.md"]


def test_every_key_is_explained():
    text = config_page.page()
    for name, kind in KINDS.items():
        for key, entry in kind.keys.items():
            same = KINDS["diffusion"].keys.get(key) == entry
            anchor = "config" if name == "diffusion" or same else name
            name_and_default = (
                rf"`{re.escape(key)}`{{#{anchor}-[\w-]+}} = `{re.escape(repr(entry.default))}`"
            )
            assert re.search(name_and_default, text), key
    for network, fields in NETWORK_FIELDS.items():
        part = text.split(f"of the network {network}\n")[1].split("\n#")[0]
        assert all(f"`{key}`{{#{network.replace('_', '-')}-" in part for key in fields)
    anchors = re.findall(r"\{#(\S+)\}", text)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r"\]\(#(\S+)\)", text)) <= set(anchors)


def test_every_mode_flag_and_format_is_listed(commands):
    listed = re.findall(r"^\s+--(?:\[no\])?(\w+):", flags.help_text(""), flags=re.MULTILINE)
    for flag in set(listed) - {"flagfile", "undefok"}:  # absl's own
        assert f"| `--{flag}` |" in commands, flag
    assert all(f"| `{name}` |" in commands for name in (*MODES, *FORMATS))


def test_every_module_that_is_a_command_is_listed(commands):
    for path in (ROOT / "diffjax").rglob("__main__.py"):
        name = ".".join(path.parent.relative_to(ROOT).parts)
        assert f"### python -m {name}\n" in commands
    assert "| `--dir` |" in commands  # of diffjax.data
    assert "### python -m benchmarks.gpu\n" in commands


def test_the_house_is_drawn_as_it_is_built():
    """Its rooms are the layers of the import linter, in their order."""
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    lines = setup["importlinter:contract:rooms"]["layers"].split("\n")
    layers = [[name.strip() for name in line.split("|")] for line in lines if line.strip()]
    level = {name: i for i, names in enumerate(layers) for name in names}
    drawn = [name for _, rooms in house.STOREYS for room in rooms for name in room.names]
    assert sorted(drawn) == sorted(set(level) - {"_version"})
    assert all(level[a] <= level[b] for a, b in itertools.pairwise(drawn))
