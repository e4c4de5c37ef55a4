"""Pictures: what is drawn is what was computed."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.patches import Rectangle
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from plot_cases import (
    BOWL,
    TILTED,
    UNIT,
    A,
    B,
    X,
    Y,
    colorbar_of,
    contours_of,
    legend_texts,
    make,
    volume,
)

from landscapex import export, plot
from landscapex._pictures.layout import fit_scale
from landscapex._pictures.panel import panel_of
from landscapex._pictures.relief import polygons
from landscapex._pictures.scale import choose
from landscapex.export.paraview import relief_of
from landscapex.grids.results import Surface

pytestmark = pytest.mark.filterwarnings("error")


def plane() -> Surface:
    """The 3 x 5 grid of f = 10 x + y."""
    x, y = np.arange(3.0), np.arange(5.0)
    return make(10 * x[:, None] + y, x, y)


def mesh_of(ax) -> QuadMesh:
    """The coloured cells; cells of holes carry a name of their own."""
    (mesh,) = [c for c in ax.collections if isinstance(c, QuadMesh) and c.get_alpha() is None]
    return mesh


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


def test_a_relief_of_a_fine_grid_reaches_its_border_and_says_what_is_drawn():
    x = np.linspace(-1, 1, 400)
    ax = plot.surface3d(make(1 + x[:, None] ** 2 + Y[:3], x, Y[:3])).axes[0]
    assert "relief: 1 in 3 points along each axis" in legend_texts(ax)
    (surface,) = [c for c in ax.collections if isinstance(c, Poly3DCollection)]
    corners = np.asarray(surface._faces)
    assert (corners[..., 0].min(), corners[..., 0].max()) == (-1, 1)
    assert len(corners) < 151


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


# ---------------------------------------------------------------- levels


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


@pytest.mark.parametrize("column", ["accuracy", "test_error", "top5"])
def test_fractions_of_samples_are_drawn_as_they_are_unless_asked_otherwise(column):
    wide = np.geomspace(0.01, 1, BOWL.size).reshape(BOWL.shape)
    surface = make({"loss": wide, column: wide}, X, Y)
    for scale, kind in [("auto", "linear"), ("log", "log")]:
        figure = plot.contour(surface, column, scale=scale)
        assert colorbar_of(figure).get_ylabel() == f"{column.replace('_', ' ')} ({kind} scale)"
    line = make({"loss": wide[0], column: wide[0]}, Y)
    assert plot.line(line, column=column).axes[0].get_yscale() == "linear"
    assert relief_of(surface, column, "auto", None).scale.kind == "linear"
    assert export.figure(surface, column).layout.scene.zaxis.title.text.endswith("(linear scale)")


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


@pytest.mark.parametrize(("count", "said"), [(6, "6 of 9 slices"), (9, ""), (20, "")])
def test_slices_say_how_many_they_leave_out(count, said):
    title = plot.slices(volume(), count=count).get_suptitle()
    assert title.endswith("; " + said if said else "‖d‖ = 12.1)")


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
