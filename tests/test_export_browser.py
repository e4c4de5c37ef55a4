"""Interactive pages in a real browser: drawn, without complaints, without the network."""

from __future__ import annotations

import time
from collections.abc import Callable

import browser
import numpy as np
import pytest
from export_cases import PLACES, make, volume

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DATA = """(() => {
  const page = document.getElementById('landscape');
  return page._fullData.map(({type, visible, y, z, value}) => ({type, visible, y, z, value}));
})()"""
MADE = "Boolean(document.getElementById('landscape')?._fullData)"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    opened = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def surfaces():
    x, y = PLACES[2]
    return {
        "scatter": make(1 + PLACES[1][0] ** 2, *PLACES[1]),
        "surface": make(2 + 10 * x[:, None] ** 2 + y, x, y, title="<b>Größe</b>"),
        "isosurface": volume(),
    }


def wait(done: Callable[[], bool]) -> None:
    """Until it is done: without a GPU the first picture takes seconds."""
    deadline = time.monotonic() + browser.PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def coloured(pixels: np.ndarray) -> float:
    """The share of the screen that is neither white nor gray."""
    wide = pixels.astype(int)
    return float((wide.max(axis=2) - wide.min(axis=2) > 40).mean())


@pytest.mark.parametrize(
    ("kind", "least"), [("scatter", 0.001), ("surface", 0.03), ("isosurface", 0.03)]
)
def test_a_page_is_drawn_and_asks_the_network_for_nothing(tmp_path, chromium, kind, least):
    surface = surfaces()[kind]
    page = surface.to_html(tmp_path / "Seite ☃.html", scale="linear")
    chromium.open(page)
    wait(lambda: chromium.evaluate(MADE))
    traces = chromium.evaluate(DATA)
    assert [t["visible"] for t in traces] == [True] * len(traces)
    first = traces[0]
    assert first["type"] == kind
    held = {"scatter": "y", "surface": "z", "isosurface": "value"}[kind]
    expected = surface.loss.T if kind == "surface" else surface.loss.ravel()
    np.testing.assert_allclose(first[held], expected)
    wait(lambda: coloured(chromium.pixels()) > least)
    requested = {r["request"]["url"] for r in chromium.found("Network.requestWillBeSent")}
    assert page.as_uri() in requested
    assert {url.partition(":")[0] for url in requested} <= {"file", "data", "blob"}
    assert [e for e in chromium.found("Log.entryAdded") if e["entry"]["level"] == "error"] == []
    said = chromium.found("Runtime.consoleAPICalled")
    assert [call for call in said if call["type"] in ("error", "assert", "warning")] == []
    assert chromium.found("Runtime.exceptionThrown") == []


def test_an_empty_screen_would_be_noticed(tmp_path, chromium):
    page = tmp_path / "empty.html"
    page.write_text("<title>nothing</title><script>console.error('x'); nothing()</script>")
    chromium.open(page)
    assert coloured(chromium.pixels()) == 0
    assert [e["type"] for e in chromium.found("Runtime.consoleAPICalled")] == ["error"]
    assert len(chromium.found("Runtime.exceptionThrown")) == 1
