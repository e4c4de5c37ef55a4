"""Surfaces as text, in a terminal and in a notebook."""

from __future__ import annotations

import html
from xml.etree import ElementTree

import numpy as np
import pytest
from storage import make_header
from test_results import make_surface

from landscapex.grids.results import Surface
from landscapex.storage.header import AxisInfo


def test_the_text_of_a_result():
    values = [2.0, np.nan, 0.25, 1.0, 8.0]
    done = np.array([True, True, True, True, False])
    header = make_header(5, columns=("loss",))
    text = repr(Surface.from_run(header, done, np.array(values)[:, None]))
    assert text == "\n".join(
        [
            "Line of 5 points, 4 of 5 evaluated",
            "  loss       0.25 to 2",
            "  alpha      -1 to 1  random direction 1, 1 = ‖w‖",
            "  minimum    0.25 at (0)",
            "  not finite 1 of 4 losses",
            "  note: made by a test",
        ]
    )
    nothing = make_surface(2, 2, values=[np.nan] * 4, columns=("loss",))
    assert "Surface of 2 x 2 points, complete" in repr(nothing)
    assert "no finite value" in repr(nothing)
    assert "minimum" not in repr(nothing)


@pytest.mark.parametrize(
    ("count", "last"),
    [
        (0, "  minimum    0 at (0)"),
        (3, "  note: number 2"),
        (4, '  and 1 more in provenance["notes"]'),
        (9, '  and 6 more in provenance["notes"]'),
    ],
)
def test_the_text_of_a_result_ends_with_its_first_notes(count, last):
    notes = [f"number {k}" for k in range(count)]
    alone = {"columns": ("loss",), "values": [1.0, 0.0, 1.0]}
    lines = repr(make_surface(3, **alone, provenance={"notes": notes})).split("\n")
    assert [line for line in lines if "note:" in line] == [f"  note: {n}" for n in notes[:3]]
    assert lines[-1] == last
    assert "note" not in repr(make_surface(3, **alone, provenance={}))


def test_the_notebook_text_is_escaped_and_has_picture_and_provenance():
    evil = "<script>alert('&')</script>"
    axis = AxisInfo("alpha", (-1.0, 0.0, 1.0), evil, evil)
    surface = make_surface(
        3,
        axes=(axis,),
        provenance={"title": evil, evil: [evil], "long": "x" * 9000, "whole": "y" * 300},
    )
    text = surface._repr_html_()
    tree = ElementTree.fromstring(f"<div>{text}</div>")  # well-formed
    assert not list(tree.iter("script"))
    assert tree.find("img").attrib["src"].startswith("data:image/png;base64,iVBORw0KGgo")
    cells = [cell.text for cell in tree.iter("td")]
    assert evil in cells
    assert html.escape(evil) in text
    assert f"{'x' * 300} ..." in cells
    assert "y" * 300 in cells
    assert tree.find("pre").text == repr(surface)
