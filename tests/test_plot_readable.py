"""Pictures that a person can read, however awkward the values and the texts are."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.text import Text
from plot_cases import (
    BOWL,
    TILTED,
    UNIT,
    A,
    B,
    X,
    Y,
    children,
    colorbar_of,
    contours_of,
    legend_texts,
    make,
    volume,
)

from landscapex import plot
from landscapex._pictures.level_labels import label_places
from landscapex._pictures.panel import axis_text, wrapped
from landscapex._pictures.scale import choose
from landscapex.storage.store import AxisInfo

pytestmark = pytest.mark.filterwarnings("error")


AWKWARD = {
    "constant": np.full(BOWL.shape, 2.302585),
    "zero": np.zeros(BOWL.shape),
    "tiny range": 2.302585 + 1e-12 * BOWL,
    "one ulp": np.where(A > 0, 1.0, np.nextafter(1.0, 2)),
    "row of holes": np.where(np.arange(13)[:, None] == 4, np.nan, BOWL),
    "one point": np.where((A[3, 3] == A) & (B[3, 3] == B), 1.5, np.nan),
    "one zero": np.where((A[3, 3] == A) & (B[3, 3] == B), 0.0, np.inf),
    "one row": np.where(np.arange(13)[:, None] == 4, BOWL, np.nan),
    "19 decades": 10.0 ** (19 * (A**2 + B**2) / 2 - 9),
    "all of double": 10.0 ** (600 * (A**2 + B**2) / 2 - 300),
    "both signs, wide": 1e200 * A**7 + 1e-5 * B,
    "negative": BOWL - 40,
    "negative, wide": -(10.0 ** (6 * A)),
    "touches zero": A**2 + B**2,
    "nothing finite": np.where(A > 0, np.nan, np.inf),
}


@pytest.mark.parametrize("draw", [plot.contour, plot.surface3d])
@pytest.mark.parametrize("values", AWKWARD.values(), ids=AWKWARD)
def test_awkward_surfaces_are_readable(values, draw):
    surface = make(values, X, Y)
    figure = draw(surface)
    figure.draw_without_rendering()
    bars = [a for a in [*figure.axes, *children(figure)] if "scale)" in a.get_ylabel()]
    if not np.isfinite(values).any():
        assert not bars
        assert f"{values.size} points not finite" in legend_texts(figure.axes[0])
        return
    labels = [t.get_text() for t in bars[0].get_yticklabels()]
    assert 1 <= len(labels) <= 14
    assert len(set(labels)) == len(labels)
    assert all(0 < len(text) <= 12 for text in labels)


@pytest.mark.parametrize("values", AWKWARD.values(), ids=AWKWARD)
def test_awkward_lines_are_readable(values):
    figure = plot.line(make(values[:, 3], X))
    figure.draw_without_rendering()
    ax = figure.axes[0]
    if np.isfinite(values[:, 3]).any():
        assert [t for t in ax.get_yticklabels() if t.get_text()]
    else:
        assert "no finite value" in [t.get_text() for t in ax.texts]


@pytest.mark.parametrize("shape", [(2, 2), (2, 5), (7, 2)])
def test_the_smallest_grids_are_drawn(shape):
    x, y = np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1])
    surface = make(1 + x[:, None] + 2 * y**2, x, y)
    for draw in (plot.contour, plot.surface3d):
        draw(surface).draw_without_rendering()
    assert contours_of(plot.contour(surface).axes[0])[1] is not None


@pytest.mark.parametrize("name", ["contour", "surface3d", "line", "compare", "slices"])
def test_no_text_is_cut_off_or_covers_another(name):
    bowl = make({"loss": TILTED, "accuracy": 1 / (1 + BOWL)}, X, Y, title="A run " * 20)
    curve = make({"loss": TILTED[:, 4], "accuracy": 1 / (1 + X**2)}, X, title="A run " * 20)
    figure = {
        "contour": lambda: plot.contour(bowl),
        "surface3d": lambda: plot.surface3d(bowl),
        "line": lambda: plot.line(curve, column=["loss", "accuracy"]),
        "compare": lambda: plot.compare(bowl, bowl, bowl, bowl, bowl, labels=list("abcde")),
        "slices": lambda: plot.slices(volume()),
    }[name]()
    figure.draw_without_rendering()
    outer = figure.bbox
    boxes = []
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text() and text.axes is not None:
            box = text.get_window_extent()
            assert outer.padded(1).contains(box.x0, box.y0), text
            assert outer.padded(1).contains(box.x1, box.y1), text
            if text.get_rotation() in (0, 90):
                boxes.append((text.get_text(), box.shrunk(0.9, 0.9)))
    titles = [
        b
        for b in boxes
        if b[0].startswith(("A run", "centre", "grid", "\N{GREEK SMALL LETTER GAMMA}"))
    ]
    assert titles
    for text, box in titles:
        assert not [other for other, b in boxes if b is not box and box.overlaps(b)], text


def test_level_labels_keep_away_from_marks_border_and_each_other():
    surface = make(TILTED, X, Y)
    ax = plot.contour(surface).axes[0]
    _, lines = contours_of(ax)
    marks = [(0.0, 0.0), (-1.0, 0.1)]
    places = np.array(label_places(ax, lines, marks)) / 2  # the axes are 2 wide and 2 high
    assert len(places) >= 5
    assert (np.abs(places) <= 0.5 - 0.04).all()
    everything = np.concatenate([np.array(marks) / 2, places])
    distances = np.linalg.norm(everything[:, None] - everything, axis=2)
    assert distances[~np.eye(len(everything), dtype=bool)][2:].min() >= 0.08
    scale = choose([TILTED])
    written = {t.get_text() for t in ax.texts}
    assert len(written) >= 4
    assert written <= set(scale.texts(scale.levels()))


def test_saving_keeps_what_hangs_out_of_the_figure():
    figure = plot.contour(make(BOWL, X, Y))
    figure.text(1.4, 0.5, "outside")
    narrow, wide = io.BytesIO(), io.BytesIO()
    figure.savefig(narrow, bbox_inches=None)
    figure.savefig(wide)
    sizes = [mpl.image.imread(io.BytesIO(b.getvalue())).shape[1] for b in (narrow, wide)]
    assert sizes[1] > 1.3 * sizes[0]


def test_a_line_without_room_has_no_label():
    ax = plot.contour(make(A, X, Y), levels=[0, 0.95], scale="linear").axes[0]
    _, lines = contours_of(ax)
    (place,) = label_places(ax, lines, [])
    assert place[0] == pytest.approx(0)
    marks = [(0.0, float(y)) for y in np.linspace(-1, 1, 21)]
    assert label_places(ax, lines, marks) == []


def test_axes_say_what_one_unit_is():
    ax = plot.contour(make(BOWL, X, Y)).axes[0]
    assert ax.get_xlabel().split("\n")[0] == "\N{GREEK SMALL LETTER ALPHA}, random direction 1"
    assert UNIT.format(12.3) in ax.get_xlabel().replace("\n", " ")
    assert UNIT.format(12.5) in ax.get_ylabel().replace("\n", " ")


def test_long_texts_are_wrapped_into_even_lines_outside_parentheses():
    text = wrapped(UNIT.format(12.3), 50)
    assert all(len(row) <= 50 for row in text.split("\n"))
    assert "(‖d‖ = 12.3)" in text
    assert min(map(len, text.split("\n"))) > 15
    axis = AxisInfo("beta", (0.0, 1.0), "random direction 2", UNIT.format(3))
    assert axis_text(axis, 60, details=False).endswith("filter by filter")


def test_text_of_a_user_is_never_read_as_mathematics():
    """Each of these would raise when drawn, or come out in italics."""
    bad = "a $\\bad{$"
    units = [bad, bad]
    surface = make({"loss": BOWL, bad: BOWL}, X, Y, title=bad, units=units)
    curve = make({"loss": X**2, bad: X**2}, X, title=bad, units=units)
    for figure in (
        plot.contour(surface, bad),
        plot.surface3d(surface, bad),
        plot.compare(surface, surface, column=bad, labels=[bad, bad], title=bad),
        plot.line(curve, curve, column=["loss", bad], labels=[bad, bad], title=bad),
    ):
        figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("units", "factor", "aspect"),
    [
        (["1 = x (2)", "1 = x (3)"], 1, 1.0),
        (["1 = x, ‖d‖ = 1.5e-3", "1 = x, ‖d‖ = 2"], 1, 1.0),
        (["1 = x", "1 = y"], 1, "auto"),
        (["1 = x", "1 = x"], 30, "auto"),
    ],
)
def test_equal_units_have_equal_lengths_unless_a_sliver_results(units, factor, aspect):
    ax = plot.contour(make(BOWL, X, factor * Y, units=units)).axes[0]
    assert ax.get_aspect() == aspect


def test_the_colour_bar_says_column_and_scale():
    surface = make({"loss": TILTED, "test_accuracy": 1 / (1 + BOWL)}, X, Y)
    assert colorbar_of(plot.contour(surface)).get_ylabel() == "loss (log scale)"
    label = colorbar_of(plot.contour(surface, "test_accuracy")).get_ylabel()
    assert label == "test accuracy (linear scale)"
    assert not children(plot.contour(surface, colorbar=False))
