"""Tables and pictures: every number as computed, the same bytes every time."""

from __future__ import annotations

import csv
import os
import re
import xml.etree.ElementTree as ET
from itertools import product
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
from export_cases import PLACES, make, plane, volume
from matplotlib.text import Text
from PIL import Image

from landscapex import export, plot
from landscapex.errors import ArgumentError, ArgumentTypeError, OutputError

DAY = 86_400


def rows_of(path) -> tuple[list[str], list[dict[str, str]]]:
    """Lines of comment, and the rows below the head, by the module of the standard library."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line for line in lines if line.startswith("#")]
    return comments, list(csv.DictReader(lines[len(comments) :]))


# ---------------------------------------------------------------- tables


def test_trap_05_each_row_has_the_value_of_its_place(tmp_path):
    _, rows = rows_of(plane().to_csv(tmp_path / "s.csv"))
    assert list(rows[0]) == ["alpha", "beta", "loss", "evaluated"]
    assert [(float(r["alpha"]), float(r["beta"])) for r in rows] == [*product(range(3), range(5))]
    assert all(float(r["loss"]) == 10 * float(r["alpha"]) + float(r["beta"]) for r in rows)


def test_a_table_gives_back_every_bit(tmp_path):
    values = np.random.default_rng(0).normal(size=(24, 2)) * 10.0 ** np.arange(-12, 12)[:, None]
    values[3, 0], values[4, 0], values[5, 0], values[6, 0] = np.nan, np.inf, -np.inf, -0.0
    sides = [np.random.default_rng(k).normal(size=n) for k, n in enumerate((2, 3, 4))]
    surface = make({"loss": values[:, 0], "accuracy": values[:, 1]}, *sides, done=values[:, 0] != 1)
    _, rows = rows_of(surface.to_csv(tmp_path / "s.csv"))
    for name in surface.columns:
        read = np.array([float(row[name]) for row in rows])
        assert read.tobytes() == surface[name].tobytes()
    for name, side in zip(("alpha", "beta", "gamma"), sides, strict=True):
        assert {float(row[name]) for row in rows} == set(side.tolist())


def test_trap_06_what_was_not_evaluated_is_told_from_nan(tmp_path):
    (x,) = PLACES[1]
    loss = np.where(np.arange(9) < 3, np.nan, 1.0)
    _, rows = rows_of(make(loss, x, done=np.arange(9) != 1).to_csv(tmp_path / "s.csv"))
    assert [row["loss"] for row in rows[:4]] == ["nan", "nan", "nan", "1.0"]
    assert [row["evaluated"] for row in rows[:4]] == ["True", "False", "True", "True"]


def test_comments_say_how_it_was_made_and_can_be_left_out(tmp_path):
    surface = make(np.ones(9), *PLACES[1], seed=3, created="two\nlines")
    comments, _ = rows_of(surface.to_csv(tmp_path / "s.csv"))
    assert comments[0].startswith("# landscapex ")
    assert "seed 3" in comments[0]
    assert "two lines" in comments[0]
    assert comments[1].startswith("# alpha: random direction 1, 1 = the length of the weights")
    bare = surface.to_csv(tmp_path / "s.csv", comments=False)
    assert bare.read_text().startswith("alpha,loss,evaluated\n-1.0,1.0,True\n")


def test_names_with_commas_stay_one_column(tmp_path):
    surface = make({"loss": np.ones(9), 'odd, "name"': np.arange(9.0)}, *PLACES[1])
    _, rows = rows_of(surface.to_csv(tmp_path / "s.csv"))
    assert [float(row['odd, "name"']) for row in rows] == list(range(9))


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_same_result_gives_the_same_picture(tmp_path, monkeypatch, suffix):
    """No date, no random names, whatever the clock says; and no global setting is touched."""
    before = dict(mpl.rcParams)
    surface = make(np.arange(35.0).reshape(5, 7) - 3, *PLACES[2], done=np.arange(35) != 4)
    first = surface.to_picture(tmp_path / f"a.{suffix}").read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(400 * DAY))
    assert surface.to_picture(tmp_path / f"b.{suffix}").read_bytes() == first
    assert dict(mpl.rcParams) == before


def test_names_in_an_svg_still_lead_somewhere(tmp_path):
    path = make(np.arange(35.0).reshape(5, 7), *PLACES[2]).to_picture(tmp_path / "s.svg")
    text = path.read_text()
    names = [e.get("id") for e in ET.fromstring(text).iter() if e.get("id")]
    assert len(names) == len(set(names))
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert len(used) > 5
    assert used <= set(names)


def test_pictures_are_valid_files_of_their_kind(tmp_path):
    surface = plane()
    with Image.open(surface.to_picture(tmp_path / "s.png", dpi=50)) as small:
        pixels = np.asarray(small.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    with Image.open(surface.to_picture(tmp_path / "s.png", dpi=100)) as large:
        assert large.size[0] > 1.8 * pixels.shape[1]
    pdf = surface.to_picture(tmp_path / "s.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-1.")
    assert pdf.rstrip().endswith(b"%%EOF")
    root = ET.fromstring(surface.to_picture(tmp_path / "s.svg").read_bytes())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_a_picture_shows_what_was_asked_for(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot, "save", lambda figure, path, **_: drawn.append(figure))
    x, y = PLACES[2]
    grid = np.exp(3 * x[:, None] + y)
    surface = make({"loss": grid, "error": grid / 99}, x, y)
    surface.to_picture(tmp_path / "s.png", "error", scale="linear")
    surface.to_picture(tmp_path / "s.png", relief=True)
    texts = [{text.get_text() for text in figure.findobj(Text)} for figure in drawn]
    assert "error (linear scale)" in texts[0]
    assert not any("error" in text for text in texts[1])
    assert [any(ax.name == "3d" for ax in figure.axes) for figure in drawn] == [False, True]


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plane().to_csv("s.txt"), ArgumentError, r"must end in \.csv, got 's\.txt'"),
        (lambda: export.to_csv([1], "s.csv"), ArgumentTypeError, "`surface` must be a result"),
        (lambda: plane().to_csv("no/s.csv"), OutputError, "`path` must be in a folder that exists"),
        (lambda: plane().to_csv("s\0.csv"), OutputError, "`path` must be the name of a file, got"),
        (lambda: plane().save("no/s.nc"), OutputError, "`path` must be in a folder that exists"),
        (lambda: plane().to_picture("s.gif"), ArgumentError, "one of .png, .svg, .pdf, got"),
        (lambda: plane().to_picture("s.png", "x"), ArgumentError, "`column` must be one of loss"),
        (
            lambda: plane().to_picture("s.png", dpi="high"),
            ArgumentError,
            "`dpi` must be a finite number above 0, got 'high'",
        ),
        (
            lambda: plane().to_picture("s.png", dpi=1),
            ArgumentError,
            "`dpi` must be from 10 to 2,400, got 1",
        ),
        (
            lambda: plane().to_picture("s.png", dpi=1e9),
            ArgumentError,
            r"`dpi` must be from 10 to 2,400, got 1000000000\.0",
        ),
        (
            lambda: plane().to_picture("s.png", title=b"x"),
            ArgumentTypeError,
            "`title` must be a string or None, got b'x'",
        ),
        (
            lambda: volume().to_picture("s.png", relief=True),
            ArgumentError,
            "`relief` must be False for a volume, got True",
        ),
        (lambda: export.to_picture(1, "s.png"), ArgumentTypeError, "`surface` must be a result"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch, call, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        call()
    assert not list(tmp_path.iterdir())


def test_without_room_nothing_is_written(tmp_path, monkeypatch):
    full = SimpleNamespace(f_bavail=0, f_frsize=1, f_blocks=1)
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(OutputError, match="only 0 are free"):
        plane().to_csv(tmp_path / "s.csv")
    assert not list(tmp_path.iterdir())


def test_a_table_of_somebody_else_is_kept(tmp_path):
    target = tmp_path / "täglich ☃.csv"
    target.write_text("day,sales\n")
    with pytest.raises(OutputError, match="must not be replaced: landscapex did not write it"):
        plane().to_csv(target)
    assert target.read_text() == "day,sales\n"
    target.write_text("")
    for comments in (True, False, True):
        assert plane().to_csv(target, comments=comments) == target
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
