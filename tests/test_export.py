"""Interactive pages: what they show is what was computed, and they need nothing but themselves."""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from export_cases import ALPHA, BETA, PLACES, UNIT, hide, make, plane, volume

from landscapex import export
from landscapex._extras import require
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    LandscapexError,
    MissingExtraError,
    OutputError,
)
from landscapex.grids.results import Surface


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class Page(HTMLParser):
    """Elements with their attributes, text outside of scripts, and the scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._open = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open != "style":
            self.text += data

    def figure(self) -> tuple[list[dict], dict]:
        """Traces and layout, from the arguments of Plotly.newPlot; NaN is not JSON."""
        (script,) = [s for s in self.scripts if "Plotly.newPlot(" in s and len(s) < 1_000_000]
        rest = script.partition("Plotly.newPlot(")[2].lstrip()

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        decoder = json.JSONDecoder(parse_constant=refuse)
        found = []
        for _ in range(3):
            value, end = decoder.raw_decode(rest)
            found.append(value)
            rest = rest[end:].lstrip().removeprefix(",").lstrip()
        assert found[0] == "landscape"
        return found[1], found[2]


def written(surface: Surface, folder: Path, **options) -> tuple[list[dict], dict]:
    return Page(surface.to_html(folder / "s.html", **options)).figure()


def of_type(traces: list[dict], kind: str) -> dict:
    (trace,) = [t for t in traces if t["type"] == kind]
    return trace


def named(traces: list[dict], start: str) -> dict:
    (trace,) = [t for t in traces if t.get("name", "").startswith(start)]
    return trace


# ---------------------------------------------------------------- what is drawn


def test_trap_05_relief_has_each_value_at_its_place(tmp_path):
    relief = of_type(written(plane(), tmp_path)[0], "surface")
    assert (relief["x"], relief["y"]) == ([0, 1, 2], [0, 1, 2, 3, 4])
    assert len(relief["z"]) == len(relief["text"]) == 5
    for row, texts, y in zip(relief["z"], relief["text"], relief["y"], strict=True):
        assert row == [10 * x + y for x in relief["x"]]
        for text, x in zip(texts, relief["x"], strict=True):
            assert text.startswith(f"{ALPHA} = {x:g}, {BETA} = {y:g}<br>loss = ")
            assert float(text.rpartition(" ")[2]) == 10 * x + y


def test_trap_05_isosurfaces_have_each_value_at_its_place(tmp_path):
    surface = volume()
    trace = of_type(written(surface, tmp_path, scale="linear")[0], "isosurface")
    assert len(trace["value"]) == surface.loss.size
    for x, y, z, value in zip(*(trace[k] for k in ("x", "y", "z", "value")), strict=True):
        assert value == pytest.approx(200 + 100 * x + 10 * y + z)
    # The last axis fastest: plotly finds the text of a point at k + K j + K J i.
    np.testing.assert_array_equal(np.reshape(trace["x"], (2, 3, 4))[:, 0, 0], [-1, 1])
    np.testing.assert_array_equal(np.reshape(trace["z"], (2, 3, 4))[0, 0], surface.coordinates[2])
    assert all(
        float(text.rpartition(" ")[2]) == pytest.approx(value, rel=1e-3)
        for text, value in zip(trace["text"], trace["value"], strict=True)
    )
    assert surface.loss.min() < trace["isomin"] < trace["isomax"] < surface.loss.max()


def test_a_line_is_a_curve_through_its_values(tmp_path):
    (x,) = PLACES[1]
    traces, layout = written(make(1 + x**2, x), tmp_path)
    curve = named(traces, "loss")
    assert curve["x"] == x.tolist()
    assert curve["y"] == (1 + x**2).tolist()
    title = layout["xaxis"]["title"]["text"]
    assert title == f"{ALPHA}, random direction 1<br>{UNIT.format(12)}"
    assert layout["yaxis"]["title"]["text"] == "loss (linear scale)"


def test_heights_are_logarithms_and_texts_are_losses(tmp_path):
    x, y = PLACES[2]
    loss = np.exp(4 * x[:, None] + y)
    traces, layout = written(make(loss, x, y), tmp_path)
    relief = of_type(traces, "surface")
    np.testing.assert_allclose(relief["z"], np.log10(loss).T)
    texts = np.array([[float(t.rpartition(" ")[2]) for t in row] for row in relief["text"]])
    np.testing.assert_allclose(texts, loss.T, rtol=1e-3)
    for axis in (layout["scene"]["zaxis"], relief["colorbar"]):
        assert axis["title"]["text"] == "loss (log scale)"
        assert len(axis["tickvals"]) > 3
        shown = [float(t) for t in axis["ticktext"]]
        np.testing.assert_allclose(shown, 10.0 ** np.array(axis["tickvals"]), rtol=1e-6)
    assert relief["cmin"] == pytest.approx(np.log10(loss.min()))
    assert relief["cmax"] == pytest.approx(np.log10(loss.max()))


def test_a_chosen_scale_and_column_are_drawn(tmp_path):
    x, y = PLACES[2]
    loss, accuracy = np.exp(4 * x[:, None] + y), 0.5 + 0.1 * x[:, None] + 0.01 * y
    surface = make({"loss": loss, "test_accuracy": accuracy}, x, y)
    linear = of_type(written(surface, tmp_path, scale="linear")[0], "surface")
    np.testing.assert_array_equal(linear["z"], loss.T)
    traces, layout = written(surface, tmp_path, column="test_accuracy")
    np.testing.assert_array_equal(of_type(traces, "surface")["z"], accuracy.T)
    assert layout["scene"]["zaxis"]["title"]["text"] == "test accuracy (linear scale)"
    assert named(traces, "grid maximum")["z"] == [accuracy.max()]


def test_axes_say_what_one_unit_is(tmp_path):
    _, layout = written(plane(), tmp_path)
    for letter, name, k in (("x", ALPHA, 0), ("y", BETA, 1)):
        title = layout["scene"][f"{letter}axis"]["title"]["text"].replace("<br>", " ")
        assert title == f"{name}, random direction {k + 1} {UNIT.format(12 + k)}"


@pytest.mark.parametrize("ndim", [1, 2])
def test_centre_and_best_point_are_marked(tmp_path, ndim):
    places = PLACES[ndim]
    grids = np.meshgrid(*places, indexing="ij")
    loss = 100.0 ** (1 + sum(g**2 for g in grids)) - 300 * (grids[0] == 0.5)
    surface = make(loss, *places, center={"loss": 99.5})
    traces, _ = written(surface, tmp_path)
    height = "xyz"[ndim]
    centre = named(traces, "centre: loss 99.5")
    assert [centre[k] for k in "xyz"[:ndim]] == [[0.0]] * ndim
    assert centre[height] == [pytest.approx(np.log10(99.5))]
    best = named(traces, "grid minimum")
    assert [best[k][0] for k in "xyz"[:ndim]] == list(surface.minimum.coordinates)
    assert best["x"] == [0.5]
    assert best[height] == [pytest.approx(np.log10(surface.minimum.value))]


def test_no_centre_is_marked_outside_of_the_grid(tmp_path):
    x, y = PLACES[2]
    traces, _ = written(make(1 + x[:, None] + y**2 + 3, x + 2, y), tmp_path)
    assert not [t for t in traces if t.get("name", "").startswith("centre")]


# ---------------------------------------------------------------- holes


@pytest.mark.parametrize("ndim", [1, 2])
def test_trap_07_holes_stay_holes_and_are_counted(tmp_path, ndim):
    shape = tuple(len(c) for c in PLACES[ndim])
    loss = 2 + np.arange(np.prod(shape), dtype=float).reshape(shape)
    done = np.ones(shape, bool)
    loss.flat[[1, 2]], done.flat[3] = [np.nan, np.inf], False
    surface = make(loss, *PLACES[ndim], done=done)
    held = np.array(export.figure(surface).data[0]["xyz"[ndim]], dtype=object)
    assert sum(value is None for value in held.ravel()) == 3  # not left to the encoder of JSON
    traces, _ = written(surface, tmp_path)
    drawn = of_type(traces, "surface") if ndim == 2 else named(traces, "loss")
    heights = np.array(drawn["xyz"[ndim]], dtype=object).T
    assert drawn["connectgaps"] is False
    missing = ~done | ~np.isfinite(loss)
    assert all(value is None for value in heights[missing])
    np.testing.assert_array_equal(heights[~missing].astype(float), loss[~missing])
    holes = named(traces, "2 points not finite<br>1 point not evaluated")
    assert [t.rpartition(" = ")[2] for t in holes["text"]] == ["nan", "inf", "not evaluated"]
    index = np.nonzero(missing)
    for letter, places, i in zip("xyz", PLACES[ndim], index, strict=False):
        assert holes[letter] == places[i].tolist()
    assert max(holes["xyz"[ndim]]) < loss[~missing].min()


def test_values_without_a_place_on_a_log_scale_are_holes(tmp_path):
    (x,) = PLACES[1]
    traces, _ = written(make(x + 0.5, x), tmp_path, scale="log")
    assert sum(value is None for value in named(traces, "loss")["y"]) == np.sum(x <= -0.5)
    holes = named(traces, "3 points not above 0")
    assert holes["text"][0] == f"{ALPHA} = \N{MINUS SIGN}1<br>loss = \N{MINUS SIGN}0.5"


def test_points_between_holes_are_dots(tmp_path):
    loss = np.full((4, 4), np.nan)
    loss[0, 0], loss[2:, 2:] = 7.0, 3.0
    traces, _ = written(make(loss, np.arange(4.0), np.arange(4.0)), tmp_path)
    dots = [t for t in traces if t["type"] == "scatter3d" and t.get("showlegend") is False]
    assert [(t["x"], t["y"], t["z"]) for t in dots] == [([0.0], [0.0], [7.0])]
    row = make(np.arange(1.0, 5), [0.0], np.arange(4.0))
    traces, _ = written(row, tmp_path)
    assert {t["type"] for t in traces} == {"scatter3d"}
    assert traces[0]["z"] == [1, 2, 3, 4]


@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("value", [np.nan, 0.0, 3.0])
def test_nothing_and_constants_can_be_written(tmp_path, ndim, value):
    shape = tuple(len(c) for c in PLACES[ndim])
    traces, layout = written(make(np.full(shape, value), *PLACES[ndim]), tmp_path)
    axis = layout["yaxis"] if ndim == 1 else layout["scene"]["zaxis"]
    assert axis["ticktext"] == ([] if np.isnan(value) else [str(int(value))])
    assert [t for t in traces if "not finite" in t.get("name", "")] or not np.isnan(value)


def test_a_constant_volume_has_no_isosurface(tmp_path):
    traces, _ = written(volume(np.ones(24)), tmp_path)
    assert {t["type"] for t in traces} <= {"scatter3d"}


# ---------------------------------------------------------------- the page


def test_the_page_is_whole_and_asks_the_network_for_nothing(tmp_path):
    page = Page(plane().to_html(tmp_path / "s.html"))
    tags = [tag for tag, _ in page.elements]
    assert not {"link", "img", "iframe", "object", "base"} & set(tags)
    assert not [a for _, a in page.elements if {"src", "href", "srcset"} & set(a)]
    assert max(map(len, page.scripts)) > 1_000_000  # plotly.js itself
    assert tags.count("html") == tags.count("title") == tags.count("meta") == 1


def test_title_and_provenance_are_on_the_page(tmp_path):
    surface = make(
        np.arange(35.0).reshape(5, 7), *PLACES[2], done=np.arange(35) > 2,
        title="A net", seed=3, created="2026-01-02T03:04:05+00:00", versions={"torch": "2.13.0"},
    )  # fmt: skip
    page = Page(surface.to_html(tmp_path / "s.html"))
    assert page.figure()[1]["title"]["text"] == "A net"
    line = page.text.strip().splitlines()[-1]
    parts = [
        "2026-01-02T03:04:05+00:00",
        "5 \N{MULTIPLICATION SIGN} 7 points, 32 of 35 evaluated",
        *["seed 3", "torch 2.13.0", "weights 3fa2b1"],
    ]
    assert line.endswith(" · ".join(parts))
    assert line.startswith("landscapex ")
    assert "complete" in export.provenance_line(plane())
    other = Page(surface.to_html(tmp_path / "s.html", title="Mine"))
    assert other.figure()[1]["title"]["text"] == "Mine"


def test_text_of_a_user_is_text(tmp_path):
    bad = "</script><script>alert(1)</script><img src=x>"
    surface = make({"loss": np.ones(9), "a<b": np.arange(9.0)}, *PLACES[1], title=bad, created=bad)
    page = Page(surface.to_html(tmp_path / "s.html", column="a<b"))
    assert not [s for s in page.scripts if s.startswith("alert")]
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert bad in page.text
    traces, layout = page.figure()
    shown = layout["title"]["text"].replace("<br>", "")
    assert "<" not in shown
    assert "&lt;script&gt;" in shown
    assert traces[0]["text"][1].endswith("<br>a&lt;b = 1")


@pytest.mark.skipif(sys.platform == "darwin", reason="needs names of any bytes")
def test_a_file_may_have_a_name_that_is_not_text(tmp_path):
    target = Path(os.fsdecode(os.fsencode(tmp_path / "s") + b"\xff.html"))
    assert "<title>loss (s?)</title>" in plane().to_html(target).read_text(encoding="utf-8")


def test_the_same_result_gives_the_same_page(tmp_path):
    first, again = (plane().to_html(tmp_path / "s.html").read_bytes() for _ in range(2))
    assert first == again


def test_a_page_is_replaced_at_once_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "s.html"
    target.write_text("before")

    def fail(*_):
        assert len(list(tmp_path.iterdir())) == 2
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OutputError, match="could not be written"):
            plane().to_html(target)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["before"]
    assert plane().to_html(target) == target
    assert [p.name for p in tmp_path.iterdir()] == ["s.html"]


@pytest.mark.parametrize(
    ("make_surface", "options", "error", "message"),
    [
        (plane, {"path": "s.nc"}, ArgumentError, r"`path` must end in one of .html, .htm, got"),
        (plane, {"path": "no/s.html"}, OutputError, "`path` must be in a folder that exists"),
        (plane, {"path": "."}, OutputError, "`path` must be a file, got the folder"),
        (plane, {"path": "a\0.html"}, OutputError, "`path` must be the name of a file, got 'a"),
        (plane, {"path": "a\ud800.html"}, OutputError, "`path` must be the name of a file, got"),
        (plane, {"path": 3}, ArgumentTypeError, "`path` must be a string or a Path, got int"),
        (plane, {"column": "x"}, ArgumentError, "`column` must be one of loss, got 'x'"),
        (plane, {"column": np.array(["loss", "x"])}, ArgumentError, r"one of loss, got array\("),
        (plane, {"title": 3}, ArgumentTypeError, "`title` must be a string or None, got 3"),
        (plane, {"scale": "cubic"}, ArgumentError, "`scale` must be one of"),
        (
            lambda: volume([np.nan, *range(23)]),
            {},
            ArgumentError,
            "needs volumes without holes, got 1 point not finite; draw slices with `plot`",
        ),
        (
            lambda: make(np.arange(4.0), [0.0], [0.0, 1.0], [0.0, 1.0]),
            {},
            ArgumentError,
            r"at least 2 points along each axis, got \(1, 2, 2\)",
        ),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path, monkeypatch, make_surface, options, error, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        make_surface().to_html(**{"path": "s.html", **options})
    assert not list(tmp_path.iterdir())


def test_only_results_are_drawn():
    with pytest.raises(ArgumentTypeError, match=r"`surface` must be a result .*, got list"):
        export.figure([1.0])


# ---------------------------------------------------------------- missing packages


@pytest.fixture
def without_plotly(monkeypatch):
    hide(monkeypatch, "plotly")


@pytest.mark.usefixtures("without_plotly")
def test_fault_29_a_missing_extra_is_named_with_the_command_that_installs_it(tmp_path):
    with pytest.raises(MissingExtraError) as caught:
        plane().to_html(tmp_path / "s.html")
    assert str(caught.value).endswith(": pip install 'landscapex[interactive]'")
    assert "No module named 'plotly'" in str(caught.value)
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, LandscapexError)
    assert caught.value.name == "plotly"
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("without_plotly")
def test_fault_29_everything_else_works_without_the_extra(tmp_path):
    importlib.reload(export.page)
    assert plane().plot() is not None
    assert plane().save(tmp_path / "s.nc").exists()


def test_fault_29_a_broken_package_says_what_it_misses(tmp_path, monkeypatch):
    (tmp_path / "half_there.py").write_text("import its_own_requirement")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"half_there.*'its_own_requirement'.*\[more\]'$"):
        require("half_there", "more")


def test_an_error_inside_a_package_is_its_own(tmp_path, monkeypatch):
    (tmp_path / "falls_over.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        require("falls_over", "more")


def test_present_packages_are_returned():
    assert require("json.decoder", "interactive") is json.decoder
