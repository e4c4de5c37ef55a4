"""Pictures of curvature maps: what is drawn is what was computed, and its sign is seen."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from matplotlib.collections import QuadMesh

from landscapex import plot
from landscapex._pictures.contours import colors_for
from landscapex._pictures.curvature_map import map_figure
from landscapex._pictures.layout import fit_scale
from landscapex._pictures.panel import panel_of
from landscapex.errors import ArgumentError
from landscapex.grids.results import Surface
from landscapex.storage.store import AxisInfo, RunHeader

ENDS = ("smallest", "largest")
X, Y = np.linspace(-1, 1, 5), np.linspace(-1, 1, 7)
A, B = np.meshgrid(X, Y, indexing="ij")


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def make_map(provenance=None, **columns):
    """A map of 5 x 7 points that is different in every direction."""
    smallest, largest = A - 2 * B - 0.5, 5 + A + 3 * B**2
    values = {
        "loss": 1 + A**2 + 2 * B**2 + 0.5 * A, "smallest": smallest, "largest": largest,
        "ratio": np.abs(smallest / largest), "smallest_residual": 0 * A + 1e-9,
        "largest_residual": 0 * A + 1e-9, "converged": 0 * A + 1, **columns,
    }  # fmt: skip
    axes = [
        AxisInfo(name, tuple(c), f"random direction {k}", "1 = ‖d‖")
        for k, (name, c) in enumerate((("alpha", X), ("beta", Y)))
    ]
    header = RunHeader("surface", tuple(axes), tuple(values), {}, provenance=provenance or {})
    table = np.stack([v.ravel() for v in values.values()], axis=1)
    return Surface.from_run(header, np.ones(35, bool), table)


def test_the_picture_shows_loss_ratio_and_both_ends():
    finished = make_map()
    figure = map_figure(finished, "a title", "auto", None)
    loss, ratio, smallest, largest = figure.axes[:4]
    assert loss.get_title("left") == "loss"
    assert ratio.get_title("left") == "|λmin / λmax|"
    for ax, column in ((loss, "loss"), (ratio, "ratio"), (smallest, ENDS[0]), (largest, ENDS[1])):
        (mesh,) = [c for c in ax.collections if isinstance(c, QuadMesh)]
        panel = panel_of(finished, column, "test")
        drawn = fit_scale([panel], "auto", None)[0].forward(finished[column])
        np.testing.assert_allclose(mesh.get_array().data, drawn.T)  # alpha runs to the right
        assert "not converged" not in legend(ax)
    figure.canvas.draw()


@pytest.mark.parametrize("matrix", ["Hessian", "Gauss-Newton matrix"])
def test_titles_say_of_what_matrix_the_eigenvalues_are(matrix):
    axes = map_figure(make_map({"curvature": {"matrix": matrix}}), "", "auto", None).axes
    shown = [" ".join(ax.get_title("left").split()) for ax in axes[2:4]]
    assert shown[0] == f"smallest eigenvalue λmin of the {matrix} (blue: below 0)"
    assert shown[1] == f"largest eigenvalue λmax of the {matrix}"


def legend(ax):
    shown = ax.get_legend()
    return " ".join(t.get_text() for t in shown.get_texts()) if shown else ""


def test_points_that_did_not_converge_are_crossed_out_in_the_picture():
    converged = np.ones((5, 7))
    converged[1, 2] = converged[4, 0] = 0
    residual = np.where(converged == 0, 0.25, 1e-9)
    doubtful = make_map(converged=converged, largest_residual=residual)
    axes = map_figure(doubtful, "", "auto", None).axes
    assert "not converged" not in legend(axes[0])
    for ax in axes[1:4]:
        assert "2 points not converged (residual up to 0.25)" in legend(ax)
        (crosses,) = [line for line in ax.lines if line.get_marker() == "x"]
        np.testing.assert_array_equal(crosses.get_xdata(), X[[1, 4]])
        np.testing.assert_array_equal(crosses.get_ydata(), Y[[2, 0]])


def test_given_levels_are_those_of_the_ratio():
    figure = map_figure(make_map(), "", "linear", [0.0, 0.25, 0.5])
    (bar,) = figure.axes[1].child_axes
    assert bar.get_ylabel() == "ratio (linear scale)"
    assert [t.get_text() for t in bar.get_yticklabels()] == ["0", "0.25", "0.5"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (-np.linspace(1, 9, 35), "linear"),
        (np.linspace(1, 9, 35), "linear"),
        (-np.geomspace(1e-3, 1e3, 35), "symlog"),
        (np.geomspace(1e-3, 1e3, 35), "symlog"),
        (np.linspace(-1, 3, 35), "linear"),
    ],
)
def test_colours_of_the_smallest_eigenvalue_diverge_from_zero(values, kind):
    """Also where all have one sign: blue means a direction that leads down."""
    changed = make_map(smallest=values.reshape(5, 7))
    scale, _, _ = fit_scale([panel_of(changed, "smallest", "test")], "auto", None)
    name, norm = colors_for(scale)
    assert (scale.kind, name) == (kind, "RdBu_r")
    assert norm(scale.forward(0.0)) == 0.5
    drawn = norm(scale.forward(values))
    assert ((drawn > 0.5) == (values > 0)).all()
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert scale.levels().size >= 2
    plot.contour(changed, "smallest").canvas.draw()


def test_a_logarithmic_scale_on_request_says_no_more_than_it_is():
    scale, _, _ = fit_scale([panel_of(make_map(), "smallest", "test")], "log", None)
    assert colors_for(scale)[0] == "viridis"


def test_only_maps_over_a_plane_are_drawn():
    dataset = make_map().to_xarray()
    line = Surface(dataset.isel(beta=0).drop_vars("beta").assign_attrs(kind="line"))
    with pytest.raises(ArgumentError, match="`curvature_map` needs results with 2 axes, got 1"):
        map_figure(line, "", "auto", None)
    without = Surface(dataset.drop_vars("ratio"))
    with pytest.raises(ArgumentError, match=r"`column` must be one of .*, got 'ratio'"):
        map_figure(without, "", "auto", None)
