"""Pictures that a person can read, however awkward the values and the texts are."""

from __future__ import annotations

import io
import itertools

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

from landscapex import directions, plot
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


def offset_texts(figure) -> list[str]:
    """What matplotlib takes out of the texts of the ticks and puts somewhere else."""
    axes = [axis for ax in figure.axes for axis in ax._axis_map.values()]
    return [t for axis in axes if (t := axis.get_offset_text().get_text())]


def tick_texts(axis) -> list[str]:
    low, high = axis.get_view_interval()
    ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    return [text.get_text() for place, text in ticks if low <= place <= high]


TINY = 1e-5


@pytest.mark.parametrize("draw", [plot.contour, plot.surface3d, plot.compare, plot.slices])
def test_short_axes_have_whole_numbers_and_nothing_beside_them(draw):
    if draw is plot.slices:
        surface = make(np.ones((5, 5, 3)), *[TINY * np.linspace(-1, 1, n) for n in (5, 5, 3)])
    else:
        surface = make(2 + TINY * BOWL, TINY * X, TINY * Y)
    figure = draw(surface)
    figure.draw_without_rendering()
    assert offset_texts(figure) == []
    minus = "\N{MINUS SIGN}"
    assert tick_texts(figure.axes[0].xaxis)[:2] == [f"{minus}1e{minus}5", f"{minus}5e{minus}6"]
    assert tick_texts(figure.axes[0].yaxis)[0] == f"{minus}1e{minus}5"


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e-3, 1.0])
def test_a_nearly_flat_line_has_whole_numbers_and_says_what_they_leave_out(size):
    surface = make(2.302585 + size * BOWL[:, 4], X)
    figure = plot.line(surface)
    figure.draw_without_rendering()
    (ax,) = figure.axes
    assert offset_texts(figure) == []
    texts = tick_texts(ax.yaxis)
    assert len(set(texts)) == len(texts) > 2
    label = ax.get_ylabel()
    summand = float(label.split("\N{MINUS SIGN} ")[1].split()[0]) if size < 1e-5 else 0.0
    assert summand == 0 or label.startswith("loss \N{MINUS SIGN} 2.302585")
    low, high = ax.get_ylim()
    ticks = [y for y in ax.get_yticks() if low <= y <= high]
    read = [summand + float(t.replace("\N{MINUS SIGN}", "-")) for t in texts]
    assert np.allclose(read, ticks, rtol=1e-15, atol=0.02 * (ticks[1] - ticks[0]))


@pytest.mark.parametrize("span", [1e-7, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0, 1e6])
def test_numbers_below_an_axis_do_not_cover_each_other(span):
    bowl, curve = make(TILTED, span * X, span * Y), make(TILTED[:, 4], span * X)
    for figure in (plot.contour(bowl), plot.compare(bowl, bowl, bowl), plot.line(curve)):
        figure.draw_without_rendering()
        ax = figure.axes[0]
        low, high = ax.get_xlim()
        texts = zip(ax.get_xticks(), ax.get_xticklabels(), strict=True)
        boxes = [t.get_window_extent() for x, t in texts if low <= x <= high]
        assert len(boxes) > 2
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_long_heights_of_a_relief_keep_away_from_their_axis_and_its_name():
    figure = plot.surface3d(make(0.0179894 + 1e-6 * BOWL, X, Y))
    figure.draw_without_rendering()
    axis = figure.axes[0].zaxis
    name = axis.label.get_window_extent()
    line = axis.line.get_window_extent()
    texts = [tick.label1 for tick in axis.majorTicks]  # as drawn; asking for them moves them
    boxes = [text.get_window_extent() for text in texts]
    assert max(len(text.get_text()) for text in texts) > 7
    for box in boxes:
        assert not box.overlaps(name)
        assert box.x0 > line.x1 - 0.5 * line.width


def test_texts_that_a_caller_chose_are_kept():
    ax = mpl.figure.Figure().subplots()
    ax.xaxis.set_major_formatter("{x:.0f} steps")
    ax.yaxis.set_major_formatter("{x:.9f}")
    plot.line(make(2.302585 + 1e-7 * BOWL[:, 4], X), ax=ax)
    assert ax.xaxis.get_major_formatter()(3.0) == "3 steps"
    assert ax.yaxis.get_major_formatter()(3.0) == "3.000000000"
    assert ax.get_ylabel() == "loss (linear scale)"


def test_the_label_of_a_line_drawn_over_another_holds_for_both():
    ax = mpl.figure.Figure().subplots()
    for base in (2.302585, 1.75):
        plot.line(make(base + 1e-7 * BOWL[:, 4], X), ax=ax)
    summand = float(ax.get_ylabel().split("\N{MINUS SIGN} ")[1].split()[0])
    (text,) = ax.yaxis.get_major_formatter().format_ticks([2.302585])
    assert summand + float(text) == pytest.approx(2.302585, abs=1e-3)


@pytest.mark.parametrize("module", [plot, directions])
def test_a_listing_names_what_is_for_users(module):
    assert dir(module) == sorted(module.__all__)


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
