"""The page in a real Chromium: each panel does its work on a tiny run."""

import base64
import importlib.util
import json
import urllib.parse
from pathlib import Path

import numpy as np
import pytest

# tests/ is no package: the driver is loaded by its path.
spec = importlib.util.spec_from_file_location("chromium", Path(__file__).with_name("chromium.py"))
chromium = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chromium)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        chromium.executable() is None, reason="needs Chromium, such as Debian's package chromium"
    ),
]
DONE = "document.getElementById('panel').dataset.done"
SHOWN = (
    "[...document.querySelectorAll('#panel canvas.picture')]"
    ".filter((c) => c.width > 1 && new Set(c.getContext('2d')"
    ".getImageData(0, 0, c.width, c.height).data).size > 4).length"
)


@pytest.fixture(scope="module")
def browser():
    made = chromium.Browser()
    made.window(1200, 900)
    yield made
    made.close()


@pytest.fixture
def page(browser, server):
    """page(view) opens a view and waits until its work is done."""
    browser.events.clear()

    def open_view(view):
        browser.open(f"{server.address}#{view}")
        browser.wait(f"document.readyState === 'complete' && {DONE} !== undefined")
        return browser

    yield open_view
    assert not browser.complaints()
    asked = [a for a in browser.addresses() if a != "about:blank"]
    assert asked and all(a.startswith(server.address) for a in asked)


def values_of(browser):
    query = browser.run("location.hash").partition("?")[2]
    return dict(urllib.parse.parse_qsl(query))


def test_draw(page):
    browser = page("draw?label=3&seed=1&steps=4&sampler=ddim")
    assert browser.run(SHOWN) >= 3
    assert browser.run("document.querySelector('#panel input[type=range]').max") == "4"
    place = "document.querySelector('#panel .timeline output').textContent"
    assert browser.run(place) == "t = 0, the picture"
    # The slider by keyboard: x_T at its start.
    browser.run("document.querySelector('#panel input[type=range]').focus()")
    browser.key("Home", 36)
    browser.wait(f"{place} !== 't = 0, the picture'", 10)
    # A control changes the address, and the picture is drawn again.
    browser.run(
        "[...document.querySelectorAll('#panel button')]"
        ".find((b) => b.getAttribute('aria-label') === 'Next seed').click()"
    )
    assert values_of(browser)["seed"] == "2"
    browser.wait(f"{DONE} === '2'")


def test_draw_gives_its_code(page):
    browser = page("draw?label=3&seed=1&steps=3")
    browser.run(
        "[...document.querySelectorAll('button')].find((b) => b.textContent === 'Copy as Python')"
        ".click()"
    )
    shown = "document.querySelector('.code pre')"
    browser.wait(f"!{shown}.hidden", 60)
    assert "model.sample(labels=[3], seed=1, steps=3)" in browser.run(f"{shown}.textContent")


def test_compare(page):
    browser = page("compare?by=steps&items=2,3&seed=1")
    assert browser.run(SHOWN) == 2
    texts = browser.run("document.querySelector('.gallery').innerText")
    assert "2 steps" in texts and "evaluations" in texts


def test_mix(page):
    browser = page("mix?seed=1&seed_to=2&count=3&steps=2")
    assert browser.run(SHOWN) == 4  # and the large one
    assert "50 % seed 2" in browser.run("document.querySelector('.gallery').innerText")


def test_edit_and_paint(page):
    browser = page("edit?seed=1&steps=2&count=1")
    assert browser.run(SHOWN) >= 3
    box = browser.run(
        "(({x, y, width}) => [x, y, width])(document.querySelector('canvas.mask')"
        ".getBoundingClientRect())"
    )
    x, y, width = box
    browser.run(
        "[...document.querySelectorAll('button')].find((b) => b.textContent === 'Clear').click()"
    )
    cell = width / 8
    browser.drag((x + cell / 2, y + cell / 2), (x + cell / 2, y + width - cell / 2))
    browser.wait(f"{DONE} === '2'")
    bits = values_of(browser)["mask"].replace("-", "+").replace("_", "/")
    found = np.unpackbits(np.frombuffer(base64.b64decode(bits + "=" * (-len(bits) % 4)), np.uint8))
    painted = found.reshape(8, 8).astype(bool)
    assert painted[:, 0].all() and not painted[:, 4:].any()


def test_training(page, tiny_run):
    browser = page("training")
    last = json.loads((tiny_run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert f"step\n{last}" in browser.run("document.querySelector('.tiles').innerText")
    assert browser.run("document.querySelectorAll('svg.chart path').length") >= 2
    browser.wait("document.querySelector('img.sheet').naturalWidth > 0", 20)
    with (tiny_run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": last + 1, "loss": 0.123}) + "\n")
    browser.wait(f"document.querySelector('.tiles').innerText.includes('{last + 1}')", 20)


def test_toy(page):
    browser = page("toy?steps=5&particles=20")
    browser.run(
        "[...document.querySelectorAll('button')].find((b) => b.textContent === 'clear').click()"
    )
    x, y = browser.run(
        "(({x, y}) => [x, y])(document.querySelector('canvas.plane').getBoundingClientRect())"
    )
    browser.drag((x + 100, y + 100), (x + 150, y + 120), (x + 200, y + 140), (x + 250, y + 160))
    browser.wait(f"{DONE} === '2'")
    assert len(values_of(browser)["points"]) >= 4 * 3


def test_tabs_by_keyboard(page):
    browser = page("toy?steps=2&particles=5")
    browser.run("document.getElementById('tab-toy').focus()")
    browser.key("ArrowLeft", 37)
    browser.wait("document.activeElement.id === 'tab-training'", 10)
    browser.wait(f"{DONE} !== undefined && location.hash.startsWith('#training')", 20)
    tabs = "[...document.querySelectorAll('[role=tab]')]"
    assert browser.run(f"{tabs}.filter((t) => t.tabIndex === 0).length") == 1
    browser.key("Home", 36)
    browser.wait("document.activeElement.id === 'tab-draw'", 10)
    browser.wait(f"{DONE} !== undefined && location.hash.startsWith('#draw')")


def test_a_wrong_value_is_shown(browser, server):
    browser.open(f"{server.address}#draw?seed=x")
    line = "document.getElementById('error')"
    browser.wait(f"{line} && !{line}.hidden", 60)
    assert "seed is 'x': expected a whole number" in browser.run(f"{line}.textContent")


@pytest.mark.parametrize(
    "view", ["draw?steps=2", "edit?steps=2&count=1", "training", "toy?steps=2"]
)
def test_a_small_window_in_both_colours(page, view):
    colours = []
    for dark in (False, True):
        browser = page(view)
        browser.window(360, 740, dark=dark)
        assert browser.run("document.documentElement.scrollWidth") <= 360
        colours.append(browser.run("getComputedStyle(document.body).backgroundColor"))
    browser.run("document.getElementById('theme').click()")
    colours.append(browser.run("getComputedStyle(document.body).backgroundColor"))
    browser.run("localStorage.clear()")
    browser.window(1200, 900)
    assert colours[0] != colours[1] and colours[2] == colours[0]


def test_every_control_has_a_name(page):
    for view in ("draw?steps=2", "compare?by=steps&items=2", "edit?steps=2&count=1", "toy?steps=2"):
        browser = page(view)
        found = browser.run(
            "[...document.querySelectorAll('button, select, input:not([type=file]), canvas')]"
            ".filter((e) => !(e.textContent.trim() || e.getAttribute('aria-label') ||"
            " e.labels?.length || e.getAttribute('aria-hidden') || e.closest('[aria-hidden]')))"
            ".map((e) => e.outerHTML)"
        )
        assert not found
