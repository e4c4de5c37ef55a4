"""Pictures: what is drawn is what was computed, and a person can read it."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from landscapex import plot
from landscapex._pictures.layout import fit_scale
from landscapex._pictures.level_labels import label_places
from landscapex._pictures.panel import axis_text, panel_of, wrapped
from landscapex._pictures.relief import polygons
from landscapex._pictures.scale import choose
from landscapex.errors import ArgumentError, ArgumentTypeError, OutputError
from landscapex.grids.results import Surface
from landscapex.storage.store import AxisInfo, RunHeader

PNG = b"\x89PNG\r\n\x1a\n"
GAMMA = "\N{GREEK SMALL LETTER GAMMA}"
UNIT = "1 = the length of the weights, filter by filter (‖d‖ = {})"


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def make(columns, *coordinates, done=None, units=None, **provenance) -> Surface:
    names = ("alpha", "beta", "gamma")[: len(coordinates)]
    units = units or [UNIT.format(12.3), UNIT.format(12.5), UNIT.format(12.1)]
    axes = tuple(
        AxisInfo(name, tuple(map(float, c)), f"random direction {k + 1}", units[k])
        for k, (name, c) in enumerate(zip(names, coordinates, strict=True))
    )
    if not isinstance(columns, dict):
        columns = {"loss": columns}
    values = np.stack([np.asarray(v, np.float64).ravel() for v in columns.values()], axis=1)
    mask = np.ones(len(values), bool) if done is None else np.asarray(done, bool).ravel()
    kind = ("line", "surface", "volume")[len(coordinates) - 1]
    header = RunHeader(kind, axes, tuple(columns), {}, {}, provenance)
    return Surface.from_run(header, mask, values)


X, Y = np.linspace(-1, 1, 13), np.linspace(-1, 1, 11)
A, B = np.meshgrid(X, Y, indexing="ij")
BOWL = 0.3 + A**2 + 2 * B**2 + 0.5 * A * B
TILTED = np.exp(3 * A) * BOWL


def plane() -> Surface:
    """The 3 x 5 grid of f = 10 x + y."""
    x, y = np.arange(3.0), np.arange(5.0)
    return make(10 * x[:, None] + y, x, y)


def volume() -> Surface:
    x, y, z = np.linspace(-1, 1, 5), np.linspace(-1, 1, 7), np.linspace(-1, 1, 9)
    a, b, c = np.meshgrid(x, y, z, indexing="ij")
    return make(1 + 100 * a + 10 * b + c, x, y, z)


def mesh_of(ax) -> QuadMesh:
    """The coloured cells; cells of holes carry a name of their own."""
    (mesh,) = [c for c in ax.collections if isinstance(c, QuadMesh) and c.get_alpha() is None]
    return mesh


def contours_of(ax) -> tuple[QuadContourSet | None, QuadContourSet | None]:
    sets = [c for c in ax.collections if isinstance(c, QuadContourSet)]
    filled = next((c for c in sets if c.filled), None)
    return filled, next((c for c in sets if not c.filled), None)


def legend_texts(ax) -> list[str]:
    legend = ax.get_legend()
    return [] if legend is None else [t.get_text() for t in legend.get_texts()]


def colorbar_of(figure) -> object:
    (ax,) = [a for a in [*figure.axes, *children(figure)] if "scale)" in a.get_ylabel()]
    return ax


def children(figure) -> list:
    return [child for a in figure.axes for child in a.child_axes]


# ---------------------------------------------------------------- what is drawn


def test_trap_05_contour_is_transposed_only_when_drawn():
    surface = plane()
    ax = plot.contour(surface).axes[0]
    mesh = mesh_of(ax)
    np.testing.assert_array_equal(mesh.get_array().reshape(5, 3), surface.loss.T)
    corners = mesh.get_coordinates()
    np.testing.assert_allclose(corners[0, :, 0], [-0.5, 0.5, 1.5, 2.5])
    np.testing.assert_allclose(corners[:, 0, 1], [-0.5, 0.5, 1.5, 2.5, 3.5, 4.5])
    _, lines = contours_of(ax)
    for level, segments in zip(lines.levels, lines.allsegs, strict=True):
        for x, y in np.concatenate(segments):
            assert 10 * x + y == pytest.approx(level)
    assert ax.get_xlim() == (0, 2)
    assert ax.get_ylim() == (0, 4)
    assert "direction 1" in ax.get_xlabel()
    assert "direction 2" in ax.get_ylabel()


def test_trap_05_relief_is_transposed_only_when_drawn():
    ax = plot.surface3d(plane()).axes[0]
    (surface,) = [c for c in ax.collections if isinstance(c, Poly3DCollection)]
    corners = np.asarray(surface._faces).reshape(-1, 3)  # matplotlib has no public way to them
    assert len(corners) == 8 * 4
    np.testing.assert_allclose(corners[:, 2], 10 * corners[:, 0] + corners[:, 1])


def test_trap_05_slices_are_transposed_only_when_drawn():
    surface = volume()
    for cut, axis in enumerate(("alpha", "beta", "gamma")):
        figure = plot.slices(surface, axis=axis, count=99)
        size = surface.shape[cut]
        for k, ax in enumerate(figure.axes[:size]):
            expected = np.take(surface.loss, k, axis=cut).T
            scale = choose([surface.loss])
            np.testing.assert_allclose(
                mesh_of(ax).get_array().reshape(expected.shape), scale.forward(expected)
            )


def test_a_line_is_drawn_at_its_coordinates():
    surface = make(X**2, X)
    curve = plot.line(surface).axes[0].lines[0]
    np.testing.assert_array_equal(curve.get_xdata(), X)
    np.testing.assert_array_equal(curve.get_ydata(), X**2)


def test_uneven_coordinates_keep_their_places():
    x = np.array([-1.0, 0.0, 0.1, 2.0])
    mesh = mesh_of(plot.contour(make(np.outer(x, Y) + 5, x, Y)).axes[0])
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], [-1.5, -0.5, 0.05, 1.05, 2.95])


def test_level_lines_are_interpolated_on_the_scale_that_is_seen():
    surface = make(10.0 ** (2 * A), X, Y)
    _, lines = contours_of(plot.contour(surface).axes[0])
    for level, segments in zip(lines.levels, lines.allsegs, strict=True):
        np.testing.assert_allclose(np.concatenate(segments)[:, 0], level / 2, atol=1e-12)


# ---------------------------------------------------------------- holes


def holey() -> Surface:
    values = TILTED.copy()
    values[2, 3], values[4, 5], values[0, 0] = np.nan, np.inf, -np.inf
    return make(values, X, Y, done=np.arange(values.size) < 120)


def test_fault_11_holes_are_counted_and_left_out():
    surface = holey()
    ax = plot.contour(surface).axes[0]
    texts = legend_texts(ax)
    assert "3 points not finite" in texts
    assert "23 points not evaluated" in texts
    drawn = np.ma.getmaskarray(mesh_of(ax).get_array()).reshape(len(Y), len(X)).T
    np.testing.assert_array_equal(drawn, ~np.isfinite(surface.loss))
    assert [p for p in ax.patches if isinstance(p, Rectangle) and p.get_hatch()]
    (darker,) = [c for c in ax.collections if isinstance(c, QuadMesh) and c.get_alpha()]
    cells = ~np.ma.getmaskarray(darker.get_array()).reshape(len(Y), len(X)).T
    np.testing.assert_array_equal(cells, surface.evaluated & ~np.isfinite(surface.loss))


def test_fault_11_holes_in_a_relief_have_no_polygon():
    z = BOWL.copy()
    z[2, 3] = np.nan
    shapes, heights = polygons(X, Y, z)
    triangles = [s for s in shapes if len(s) == 3]
    assert len(triangles) == 4
    assert len(shapes) == (len(X) - 1) * (len(Y) - 1)
    assert all(np.isfinite(s).all() for s in shapes)
    assert np.isfinite(heights).all()
    assert not any((s[:, :2] == (X[2], Y[3])).all(axis=1).any() for s in shapes)
    assert legend_texts(plot.surface3d(make(z, X, Y)).axes[0])[-1] == "1 point not finite"


def test_fault_11_holes_are_gaps_in_a_line():
    values = X**2
    values[3] = np.inf
    ax = plot.line(make(values, X, done=np.arange(len(X)) < 11)).axes[0]
    gaps = np.isnan(ax.lines[0].get_ydata())
    assert np.flatnonzero(gaps).tolist() == [3, 11, 12]
    assert "1 point not finite" in legend_texts(ax)
    assert "2 points not evaluated" in legend_texts(ax)
    spans = sorted((p.get_x(), p.get_x() + p.get_width()) for p in ax.patches)
    half = 0.5 * (X[1] - X[0])
    np.testing.assert_allclose(spans, [(X[3] - half, X[3] + half), (X[11] - half, 1.0)])


def test_trap_07_drawing_changes_no_number():
    surface = holey()
    before = surface.to_xarray()
    for draw in (plot.contour, plot.surface3d, plot.thumbnail, plot.compare):
        draw(surface)
    assert surface.to_xarray().identical(before)


def test_a_surface_without_holes_has_no_hatching():
    ax = plot.contour(make(BOWL, X, Y)).axes[0]
    assert not ax.patches
    assert not any("point" in t for t in legend_texts(ax))


def test_a_point_alone_is_still_visible():
    values = np.full(BOWL.shape, np.nan)
    values[4, 7] = 1.5
    surface = make(values, X, Y)
    assert mesh_of(plot.contour(surface).axes[0]).get_array().count() == 1
    relief = plot.surface3d(surface).axes[0]
    points = [c for c in relief.collections if type(c).__name__ == "Path3DCollection"]
    assert np.ravel(points[0]._offsets3d).tolist() == [X[4], Y[7], 1.5]
    x = np.linspace(-1, 1, 101)
    curve = make(np.where((np.arange(101) > 60) | (np.arange(101) == 30), 1.5, np.nan), x)
    dots = plot.line(curve).axes[0].lines[1].get_ydata()
    assert np.flatnonzero(np.isfinite(dots)).tolist() == [30]


def test_a_forced_log_scale_says_what_has_no_place_on_it():
    surface = make(BOWL - BOWL[6, 5], X, Y)
    texts = legend_texts(plot.contour(surface, scale="log").axes[0])
    count = int((surface.loss <= 0).sum())
    assert count > 0
    assert any(t.startswith(f"{count} point") and "not above 0" in t for t in texts)


def test_explicit_levels_are_drawn_and_bound_the_colours():
    surface = make(BOWL, X, Y)
    figure = plot.contour(surface, levels=[1.5, 0.5, 1.0])
    filled, lines = contours_of(figure.axes[0])
    assert lines.levels.tolist() == [0.5, 1.0, 1.5]
    assert filled.levels[[0, -1]].tolist() == [0.5, 1.5]
    assert filled.extend == "both"
    assert [t.get_text() for t in colorbar_of(figure).get_yticklabels()] == ["0.5", "1", "1.5"]


@pytest.mark.parametrize(
    ("levels", "ends"),
    [([0.5, 1], "both"), ([0, 1], "max"), ([0.5, 99], "min"), ([0, 99], "neither"), (5, "neither")],
)
def test_the_colour_bar_points_where_colours_are_cut_off(levels, ends):
    panel = panel_of(make(BOWL, X, Y), "loss", "contour")
    assert fit_scale([panel], "auto", levels)[2] == ends


@pytest.mark.parametrize("level", [-1, 99])
def test_a_level_outside_the_data_is_neither_drawn_nor_does_it_stretch_the_bar(level):
    figure = plot.contour(make(BOWL, X, Y), levels=[level])
    assert contours_of(figure.axes[0])[1] is None
    np.testing.assert_allclose(colorbar_of(figure).get_ylim(), [BOWL.min(), BOWL.max()])


def test_a_relief_of_a_fine_grid_reaches_its_border_and_says_what_is_drawn():
    x = np.linspace(-1, 1, 400)
    ax = plot.surface3d(make(1 + x[:, None] ** 2 + Y[:3], x, Y[:3])).axes[0]
    assert "relief: 1 in 3 points along each axis" in legend_texts(ax)
    (surface,) = [c for c in ax.collections if isinstance(c, Poly3DCollection)]
    corners = np.asarray(surface._faces)
    assert (corners[..., 0].min(), corners[..., 0].max()) == (-1, 1)
    assert len(corners) < 151


# ---------------------------------------------------------------- readable


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


# ---------------------------------------------------------------- marks


def test_centre_and_better_minimum_are_marked_with_their_values():
    surface = make((A - X[8]) ** 2 + B**2 + 0.1, X, Y, center={"loss": 0.25})
    assert legend_texts(plot.contour(surface).axes[0]) == [
        "centre: loss 0.25",
        f"grid minimum: 0.1 at ({X[8]:.3g}, 0)",
    ]
    ax = plot.contour(surface).axes[0]
    marked = {tuple(np.ravel(line.get_xydata())) for line in ax.lines}
    assert marked == {(0.0, 0.0), (X[8], 0.0)}


def test_a_minimum_at_the_centre_is_not_marked_twice():
    ax = plot.contour(make(BOWL, X, Y)).axes[0]
    assert legend_texts(ax) == ["centre: loss 0.3"]


def test_the_best_accuracy_is_the_largest():
    surface = make({"loss": BOWL, "accuracy": 1 / (1 + (A - 1) ** 2 + B**2)}, X, Y)
    assert legend_texts(plot.contour(surface, "accuracy").axes[0])[1] == (
        "grid maximum: 1 at (1, 0)"
    )


def test_no_end_of_an_unknown_metric_is_called_the_best():
    surface = make({"loss": BOWL, "temperature": A}, X, Y)
    assert legend_texts(plot.contour(surface, "temperature").axes[0]) == ["centre: temperature 0"]


def test_a_grid_without_the_centre_marks_none():
    texts = legend_texts(plot.contour(make(BOWL, X + 5, Y, center={"loss": 1.0})).axes[0])
    assert not any("centre" in t for t in texts)


def test_a_centre_between_grid_points_is_marked():
    x = np.linspace(-1, 1, 12)
    surface = make(1 + x[:, None] ** 2 + Y**2, x, Y, center={"loss": 1.0})
    assert legend_texts(plot.contour(surface).axes[0])[0] == "centre: loss 1"


# ---------------------------------------------------------------- several results


def test_compare_shares_colours_levels_and_limits():
    small, large = make(BOWL, X, Y), make(5 * BOWL, 2 * X, Y)
    figure = plot.compare(small, large, labels=["small", "large"])
    one, two = figure.axes[:2]
    assert [a.get_title(loc="left") for a in (one, two)] == ["small", "large"]
    assert one.get_xlim() == two.get_xlim() == (-2, 2)
    assert mesh_of(one).norm.vmin == mesh_of(two).norm.vmin == pytest.approx(np.log10(BOWL.min()))
    assert mesh_of(one).norm.vmax == mesh_of(two).norm.vmax
    levels = set(np.round(contours_of(one)[1].levels, 9))
    assert levels & set(np.round(contours_of(two)[1].levels, 9))
    assert colorbar_of(figure).get_ylabel() == "loss (log scale)"


def test_compare_in_three_dimensions_shares_heights():
    figure = plot.compare(make(BOWL, X, Y), make(50 * BOWL, X, Y), kind="surface3d")
    one, two = figure.axes[:2]
    assert one.get_zlim() == two.get_zlim()


def test_compare_names_results_by_title_file_or_number(tmp_path):
    saved = make(BOWL, X, Y)
    saved = Surface(saved.to_xarray(), saved.save(tmp_path / "seed7.nc"))
    figure = plot.compare(make(BOWL, X, Y, title="mine"), saved, make(BOWL, X, Y))
    assert [a.get_title(loc="left") for a in figure.axes[:3]] == ["mine", "seed7", "result 3"]


def test_slices_are_spread_and_contain_the_centre():
    figure = plot.slices(volume(), count=4)
    titles = [a.get_title(loc="left") for a in figure.axes[:4]]
    assert titles == [
        "\N{GREEK SMALL LETTER GAMMA} = \N{MINUS SIGN}1",
        "\N{GREEK SMALL LETTER GAMMA} = 0",
        "\N{GREEK SMALL LETTER GAMMA} = 0.25",
        "\N{GREEK SMALL LETTER GAMMA} = 1",
    ]
    assert any("centre" in t for t in legend_texts(figure.axes[1]))
    assert not any("centre" in t for t in legend_texts(figure.axes[0]))
    assert any(t.startswith("slice minimum") for t in legend_texts(figure.axes[0]))


def test_columns_of_one_quantity_share_a_panel():
    columns = {"loss": X**2 + 1, "test_loss": X**2 + 2, "accuracy": 1 - X**2 / 2}
    surface = make(columns, X)
    figure = plot.line(surface, column=list(columns))
    assert [a.get_ylabel() for a in figure.axes] == [
        "loss, test loss (linear scale)",
        "accuracy (linear scale)",
    ]
    assert legend_texts(figure.axes[0]) == ["loss (centre 1)", "test loss (centre 2)"]


def test_lines_of_several_results_share_axes_and_are_told_apart():
    figure = plot.line(make(X**2 + 1, X), make(3 * X**2 + 1, 2 * X), labels=["a", "b"])
    (ax,) = figure.axes
    assert legend_texts(ax)[:2] == ["a (centre 1)", "b (centre 1)"]
    assert ax.lines[0].get_color() != ax.lines[3].get_color()
    assert ax.get_xlim()[1] > 2
    assert "12.3" in ax.get_xlabel()


def test_lines_in_different_units_do_not_claim_one_length():
    one, two = make(X**2 + 1, X), make(X**2 + 1, X, units=[UNIT.format(99)])
    assert plot.line(one, two).axes[0].get_xlabel().endswith("filter by filter")


# ---------------------------------------------------------------- manners


def test_nothing_global_is_touched():
    """No window, no backend, no pyplot, no settings: pictures work on any machine."""
    code = (
        "import sys, matplotlib as mpl, numpy as np\n"
        "settings = lambda: {k: mpl.rcParams[k] for k in mpl.rcParams if k != 'backend'}\n"
        "before = settings()\n"
        "from landscapex import plot\n"
        "from landscapex.grids.results import Surface\n"
        "from landscapex.storage.store import AxisInfo, RunHeader\n"
        "axes = tuple(AxisInfo(n, (-1.0, 0.0, 1.0), 'd', '1') for n in ('alpha', 'beta'))\n"
        "header = RunHeader('surface', axes, ('loss',), {}, {}, {})\n"
        "s = Surface.from_run(header, np.ones(9, bool), np.arange(9.0)[:, None])\n"
        "for f in (plot.contour, plot.surface3d, plot.compare): plot.png(f(s))\n"
        "plot.thumbnail(s)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert mpl.get_backend(auto_select=False) is None\n"
        "assert settings() == before\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_fault_26_threads_draw_the_same_pictures():
    surfaces = [make(np.exp(k * A) * BOWL, X, Y) for k in range(4)]
    surfaces += [make(np.exp(k * X), X) for k in (2, 6)]
    alone = [plot.png(s.plot()) for s in surfaces]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda s: plot.png(s.plot()), surfaces)) == alone


def test_a_notebook_shows_the_figure_without_pyplot():
    figure = plot.contour(make(BOWL, X, Y))
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(PNG)


@pytest.mark.parametrize(
    "surface",
    [
        make(X**2, X),
        make(BOWL, X, Y),
        volume(),
        make(BOWL * np.nan, X, Y),
        make(X * np.nan, X),
        make(BOWL, X, Y, done=np.zeros(BOWL.size)),
    ],
    ids=["line", "surface", "volume", "nan surface", "nan line", "nothing evaluated"],
)
def test_thumbnails_are_small_pictures(surface):
    picture = plot.thumbnail(surface)
    assert picture.startswith(PNG)
    assert len(picture) < 60_000
    image = mpl.image.imread(io.BytesIO(picture))
    assert 200 < image.shape[0] < 330
    assert 250 < image.shape[1] < 420


def test_the_users_axes_are_drawn_into():
    figure = Figure()
    inner = figure.subfigures(1, 2)[1]
    ax = inner.add_subplot()
    assert plot.contour(make(BOWL, X, Y), ax=ax, colorbar=False) is figure
    assert contours_of(ax)[1] is not None
    other = figure.add_subplot(projection="3d")
    assert plot.surface3d(make(BOWL, X, Y), ax=other, colorbar=False) is figure
    flat = figure.add_subplot()
    columns = {"loss": X**2, "accuracy": X**4}
    assert plot.line(make(columns, X), column=["loss", "accuracy"], ax=flat) is figure
    assert flat.get_ylabel() == "loss, accuracy (linear scale)"


@pytest.mark.parametrize(("suffix", "start"), [("png", PNG), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_saved_pictures_are_of_the_format_of_their_suffix(tmp_path, suffix, start):
    path = tmp_path / f"ein Bild ä.{suffix}"
    path.write_bytes(b"old")
    assert plot.save(plot.contour(make(BOWL, X, Y)), path) == path
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(OutputError, match=r"taken\.png could not be written"):
        plot.save(plot.contour(make(BOWL, X, Y)), tmp_path / "taken.png")
    assert [p.name for p in tmp_path.iterdir()] == ["taken.png"]


SURFACE, LINE = make(BOWL, X, Y), make(X**2, X)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plot.contour(LINE), ArgumentError, "`contour` needs results with 2 axes, got 1"),
        (lambda: plot.line(SURFACE), ArgumentError, "with 1 axis, got 2; use `contour`"),
        (lambda: plot.slices(SURFACE), ArgumentError, "with 3 axes, got 2; use `contour`"),
        (lambda: plot.surface3d(volume()), ArgumentError, "with 2 axes, got 3; use `slices`"),
        (lambda: plot.line(), ArgumentError, "`line` needs at least one result, got none"),
        (lambda: plot.contour([1]), ArgumentTypeError, "`contour` draws results .*, got list"),
        (lambda: plot.contour(SURFACE, "x"), ArgumentError, "must be one of loss, got 'x'"),
        (lambda: plot.line(LINE, column=["loss", "x"]), ArgumentError, "one of loss, got 'x'"),
        (lambda: plot.contour(SURFACE, scale="ln"), ArgumentError, "`scale` must be .*got 'ln'"),
        (lambda: plot.line(LINE, scale=2), ArgumentTypeError, "`scale` must be a string, got int"),
        (
            lambda: plot.contour(make(-BOWL, X, Y), scale="log"),
            ArgumentError,
            r'`scale="log"` needs values above 0, got at most .0\.',
        ),
        (lambda: plot.contour(SURFACE, levels=0), ArgumentError, "must be at least 1, got 0"),
        (lambda: plot.contour(SURFACE, levels=[]), ArgumentError, "must be finite numbers, got"),
        (lambda: plot.contour(SURFACE, levels="a"), ArgumentTypeError, "numbers, got 'a'"),
        (
            lambda: plot.contour(SURFACE, levels=[0, 1], scale="log"),
            ArgumentError,
            "`levels` must be above 0 on a log scale, got 0",
        ),
        (lambda: plot.compare(SURFACE, kind="pie"), ArgumentError, "`kind` must be .*got 'pie'"),
        (lambda: plot.compare(SURFACE, labels=[]), ArgumentError, r"one name per result \(1\)"),
        (lambda: plot.compare(SURFACE, labels="a"), ArgumentError, r"per result \(1\), got 'a'"),
        (lambda: plot.slices(volume(), count=0), ArgumentError, "`count` must be .* 1, got 0"),
        (lambda: plot.slices(volume(), axis="z"), ArgumentError, "`axis` must be .*got 'z'"),
        (
            lambda: plot.surface3d(SURFACE, ax=Figure().add_subplot()),
            ArgumentError,
            '`ax` must be made with projection="3d", got Axes',
        ),
        (lambda: plot.save(Figure(), "a.nc"), ArgumentError, r"`path` must end in .*got 'a\.nc'"),
    ],
)
def test_errors_say_what_must_hold_and_what_arrived(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_axes_that_were_removed_are_refused():
    ax = Figure().add_subplot()
    ax.remove()
    with pytest.raises(ArgumentError, match="`ax` must belong to a figure"):
        plot.contour(SURFACE, ax=ax)
