"""Curvature maps: both ends of the spectrum at every point, whatever happens on the way."""

from __future__ import annotations

import math
import re

import models
import numpy as np
import pytest
import reference
import torch
from curvature_map_cases import ENDS, plane, ragged, small
from curvature_map_cases import finished as finished
from evaluate_cases import QUIET, UNIT, Point
from torch import nn
from torch.func import functional_call, hessian
from torch.nn import functional as F

import landscapex as lx
from landscapex.curvature.maps import COLUMNS, curvature_map
from landscapex.curvature.operators import hessian as hessian_at
from landscapex.errors import LandscapexWarning
from landscapex.grids import filling


def saddle(x, y):
    return x**4 - x**2 * y + 3 * y**2 + 0.3 * x


def saddle_hessian(x, y):
    return [[12 * x**2 - 2 * y, -2 * x], [-2 * x, 6.0]]


def dense(model, result, seed=0, params=None):
    """All eigenvalues at every point of a map: dense, in float64, of the mean over all samples."""
    directions = lx.directions.random(model, len(result.shape), seed=seed)
    theta = {n: p.detach() for n, p in model.named_parameters()}
    names = [n for n in theta if params is None or n in params]
    x, y = (torch.cat(parts) for parts in zip(*ragged(), strict=True))

    def loss(moving, fixed):
        return F.cross_entropy(functional_call(model, {**fixed, **moving}, (x,)), y)

    found = np.empty((*result.shape, sum(theta[n].numel() for n in names)))
    for index in np.ndindex(*result.shape):
        at = dict(theta)
        for k, i in enumerate(index):
            at = {n: at[n] + result.coordinates[k][i] * directions[k][n] for n in at}
        blocks = hessian(loss)({n: at[n] for n in names}, at)
        rows = [
            torch.cat([blocks[a][b].reshape(at[a].numel(), -1) for b in names], 1) for a in names
        ]
        found[index] = torch.linalg.eigvalsh(torch.cat(rows)).numpy()
    return found


# --- The right numbers ---------------------------------------------------------------------------


def test_both_ends_of_a_known_hessian_at_every_point():
    """Known in closed form at every point; alpha is the first dimension (trap 5)."""
    result = plane(saddle, span=((-1, 1), (-2, 1)))
    assert result.columns == ("loss", *COLUMNS)
    assert result.shape == (3, 5)
    for i, x in enumerate(result.coordinates[0]):
        for j, y in enumerate(result.coordinates[1]):
            low, high = np.linalg.eigvalsh(saddle_hessian(x, y))
            assert result.loss[i, j] == pytest.approx(saddle(x, y), rel=1e-12)
            assert result["smallest"][i, j] == pytest.approx(low, rel=1e-10, abs=1e-12)
            assert result["largest"][i, j] == pytest.approx(high, rel=1e-10)
            assert result["ratio"][i, j] == pytest.approx(abs(low / high), rel=1e-9, abs=1e-12)
    assert (result["converged"] == 1).all()


def test_trap_18_both_ends_of_a_network_against_dense_linear_algebra_on_ragged_batches(finished):
    """Mean over samples, not over batches of 8 and 2."""
    result = finished
    expected = dense(models.mlp(4, 5, 3, act=nn.Tanh).double(), result)
    scale = np.abs(expected).max(-1)
    assert (expected[..., 0] < -1e-3 * scale).any()  # it is not convex everywhere
    for end, column in zip((0, -1), ENDS, strict=True):
        assert (np.abs(result[column] - expected[..., end]) <= 1e-6 * scale).all()
        assert (result[f"{column}_residual"] <= 1e-8 * scale * (1 + 1e-6)).all()
    np.testing.assert_array_equal(result["ratio"], np.abs(result["smallest"] / result["largest"]))
    assert (result["converged"] == 1).all()
    assert (result["products"] >= 2).all()


def test_a_residual_is_no_smaller_than_the_distance_to_an_eigenvalue():
    model = models.mlp(4, 5, 3, act=nn.Tanh).double()
    result = small(model=model, tol=1e-2, points=3)
    expected = dense(model, result)
    for column in ENDS:
        distance = np.abs(expected - result[column][..., None]).min(-1)
        assert (distance <= result[f"{column}_residual"] + 1e-12).all()
    assert result["smallest_residual"].max() > 1e-7  # it stopped early


@pytest.mark.parametrize("factor", [1.0, -1.0])
def test_trap_34_a_definite_hessian_has_two_ends_of_one_sign(factor):
    """A shifted power iteration would give the end of largest magnitude twice."""
    model = nn.Linear(6, 1, bias=False).double()
    values = torch.tensor([2.0, 4.0, 5.0, 7.0, 8.0, 9.0]).double()
    objective = lx.Objective(
        model, None, lambda m, b: factor * (values * m.weight[0] ** 2).sum() / 2
    )
    result = curvature_map(objective, points=3, **QUIET)
    low, high = (2.0, 9.0) if factor > 0 else (-9.0, -2.0)
    np.testing.assert_allclose(result["smallest"], low, rtol=1e-12)
    np.testing.assert_allclose(result["largest"], high, rtol=1e-12)
    np.testing.assert_allclose(result["ratio"], abs(low / high), rtol=1e-12)


def test_a_flat_loss_has_no_ratio():
    result = plane(lambda x, y: 3 * x - y)
    assert (result["smallest"] == 0).all()
    assert (result["largest"] == 0).all()
    assert np.isnan(result["ratio"]).all()
    assert (result["converged"] == 1).all()


def test_one_parameter_has_one_eigenvalue():
    objective = lx.Objective(Point(), None, lambda m, b: m.x[0] ** 4, params="x")
    result = curvature_map(objective, directions=UNIT[:1], points=3, **QUIET)
    assert result.kind == "line"
    for column in ENDS:
        np.testing.assert_allclose(result[column], [12.0, 0.0, 12.0], atol=1e-12)


def test_the_curvature_of_a_block_of_parameters():
    model = models.mlp(4, 5, 3, act=nn.Tanh).double()
    names = ["0.weight", "0.bias"]
    result = small(model=model, params=names, points=3)
    expected = dense(model, result, params=names)
    scale = np.abs(expected).max()
    for end, column in zip((0, -1), ENDS, strict=True):
        np.testing.assert_allclose(result[column], expected[..., end], atol=1e-6 * scale)


def test_generalised_gauss_newton_is_never_negative():
    result = small(kind="ggn", points=3, span=3.0)
    assert (result["smallest"] >= -1e-7 * result["largest"]).all()
    assert (small(points=3, span=3.0)["smallest"] < -1e-3 * result["largest"]).any()


def test_points_start_from_the_eigenvectors_at_the_centre():
    """So that beside it there is less left to do."""
    model, (x, y), loss = lx.examples.digits()
    data = x[:32].double(), y[:32]
    result = curvature_map(model.double(), data, loss, points=2, span=1e-7, **QUIET)
    assert (result["products"] < 0.7 * result.provenance["center"]["products"]).all()


@pytest.mark.parametrize("bn", ["eval", "batch"])
def test_a_point_has_the_curvature_of_an_operator_made_there(bn):
    """With batch norm, and with parameters of the model outside the objective."""
    model = models.seeded(models.ConvNet).double()
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(11, 1, 6, 6, generator=rng).double()
    data = [(images[:8], torch.arange(8) % 3), (images[8:], torch.arange(3))]
    objective = lx.Objective(model, data, "cross_entropy", bn=bn, params=["conv.*", "head.*"])
    directions = lx.directions.random(objective, 1)
    result = curvature_map(objective, directions=directions, points=2, span=0.5, **QUIET)
    for i, a in enumerate(result.coordinates[0]):
        at = objective.space.gather() + a * directions.vectors[0]
        values = torch.linalg.eigvalsh(hessian_at(objective, center=at).dense())
        assert result["smallest"][i] == pytest.approx(float(values[0]), abs=1e-8)
        assert result["largest"][i] == pytest.approx(float(values[-1]), rel=1e-8)


@pytest.mark.parametrize(("count", "kind"), [(1, "line"), (2, "surface"), (3, "volume")])
def test_the_directions_give_the_number_of_axes(count, kind):
    model = models.mlp(4, 5, 3, act=nn.Tanh).double()
    directions = lx.directions.random(model, count)
    result = small(model=model, directions=directions, points=2)
    assert (result.kind, result.shape) == (kind, (2,) * count)


def test_losses_are_those_of_a_surface_on_the_eager_engine():
    options = {"points": (3, 5), "span": 1.5, **QUIET}
    model = models.mlp(4, 5, 3, act=nn.Tanh).double()
    surface = lx.surface(model, ragged(), "cross_entropy", engine="eager", **options)
    np.testing.assert_array_equal(small(model=model, **options).loss, surface.loss)


def test_metrics_of_the_objective_are_columns_too():
    model = models.mlp(4, 5, 3, act=nn.Tanh).double()
    objective = lx.Objective(model, ragged(), "cross_entropy", metrics="accuracy")
    result = curvature_map(objective, points=2, **QUIET)
    assert result.columns == ("loss", "accuracy", *COLUMNS)
    assert result.provenance["center"]["accuracy"] == objective.evaluate()["accuracy"]


# --- What is not finite, or not converged --------------------------------------------------------


def test_fault_11_points_without_a_finite_loss_are_holes_and_the_map_goes_on():
    with pytest.warns(LandscapexWarning, match="5 of 25 losses are NaN or infinite"):
        result = plane(lambda x, y: (x + 0.75) ** 1.5 + y**2 + x * y, points=5)
    holes = np.isnan(result.loss)
    assert holes[0].all()
    assert not holes[1:].any()
    for column in (*ENDS, "ratio", "smallest_residual", "largest_residual"):
        np.testing.assert_array_equal(np.isnan(result[column]), holes)
    np.testing.assert_array_equal(result["converged"], ~holes)
    assert (result["products"][holes] == 0).all()


def test_a_hessian_that_is_not_finite_is_a_hole_too():
    with pytest.warns(LandscapexWarning, match="3 of 9 points have no finite"):
        result = plane(lambda x, y: (x * x) ** 0.75 + y**2, points=3, center=torch.ones(2))
    holes = np.zeros((3, 3), bool)
    holes[0] = True  # x = 1 - 1
    assert np.isfinite(result.loss).all()
    np.testing.assert_array_equal(np.isnan(result["smallest"]), holes)
    np.testing.assert_array_equal(result["converged"], ~holes)
    np.testing.assert_allclose(result["smallest"][1], 0.75, rtol=1e-10)


def test_a_centre_that_is_not_finite_costs_its_start_vector_only():
    with pytest.warns(LandscapexWarning, match="no finite"):
        result = plane(lambda x, y: (x * x) ** 0.75 + y**2, points=3)
    np.testing.assert_allclose(result["largest"][0], 2.0, rtol=1e-10)
    assert math.isnan(result.provenance["center"]["smallest"])


def test_points_that_did_not_converge_say_so():
    with pytest.warns(LandscapexWarning, match="9 of 9 points did not converge") as caught:
        result = small(points=3, max_products=12)
    assert len(caught) == 1  # not one for each point
    assert (result["converged"] == 0).all()
    assert (result["products"] <= 12).all()
    assert (result["largest_residual"] > 1e-8 * result["largest"]).all()


def test_fault_17_an_error_of_the_loss_says_where(tmp_path):
    def loss(x, y):
        if torch.is_grad_enabled() and x > 0.5:
            raise ZeroDivisionError("no gradient here")
        return saddle(x, y)

    out = tmp_path / "s.nc"
    with pytest.raises(ZeroDivisionError, match="no gradient here") as caught:
        plane(loss, out=out, points=(5, 9))
    assert "landscapex: at alpha=1, beta=-1" in caught.value.__notes__
    found = lx.open(out)
    count = int(found.evaluated.sum())
    assert 20 < count <= 36  # what was in the same half second is lost
    assert found.evaluated.ravel()[:count].all()
    assert (found["converged"][found.evaluated] == 1).all()


# --- The model, the words ------------------------------------------------------------------------


def test_trap_21_the_model_and_the_generators_come_back_bit_for_bit(generators_untouched):
    model = models.seeded(models.ConvNet)
    model.train()
    model.head.weight.requires_grad_(False)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    rng = torch.Generator().manual_seed(0)
    data = [(torch.randn(5, 1, 6, 6, generator=rng), torch.tensor([0, 1, 2, 0, 1]))]
    before = reference.everything(model)
    result = curvature_map(model, data, "cross_entropy", points=2, **QUIET)
    assert reference.changes(before, reference.everything(model)) == []
    assert result.complete


def test_the_provenance_says_what_was_computed(finished):
    about = finished.provenance
    assert about["curvature"]["kind"] == "hessian"
    assert about["curvature"]["matrix"] == "Hessian"
    ggn = small(kind="ggn", points=2).provenance["curvature"]
    assert (ggn["kind"], ggn["matrix"]) == ("ggn", "Gauss-Newton matrix")
    assert about["curvature"]["parameters"] == 43
    assert about["curvature"]["start"].startswith("eigenvectors at the centre")
    assert set(about["center"]) == {"loss", *COLUMNS}
    assert about["center"]["largest"] == pytest.approx(finished["largest"][2, 3], rel=1e-6)
    assert about["fingerprint"]["computes"] == "ends of the spectrum"
    assert about["engine"]["name"] == "eager"


def test_the_progress_bar_names_the_map(monkeypatch):
    named, bar = [], filling.progress_bar
    monkeypatch.setattr(filling, "progress_bar", lambda **o: named.append(o["desc"]) or bar(**o))
    small(points=2)
    assert named == ["curvature map"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "hesian"}, "`kind` must be "),
        ({"tol": 0.0}, "`tol` must be "),
        ({"max_products": 3}, "`max_products` must be "),
        ({"directions": "hesian"}, "`directions` must be "),
        ({"points": 1}, "`points` must be at least 2, got 1"),
        ({"shard": "3/3"}, "`shard` i/n must have 0 <= i < n: parts are counted from 0, got '3/3'"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        small(**options)
