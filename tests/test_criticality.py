"""Critical points: of which kind they are, and the curvature along the gradient towards them."""

from __future__ import annotations

import math
from dataclasses import replace

import models
import numpy as np
import pytest
import torch
from criticality_cases import gradient_of, operator_of, symmetric

import landscapex as lx
from landscapex import criticality
from landscapex.curvature.lanczos import eigenpairs
from landscapex.errors import ArgumentError, ArgumentTypeError

# --- Kinds of points -----------------------------------------------------------------------------

KINDS = {
    "minimum": ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "minimum", 0),
    "maximum": ([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0], "maximum", 6),
    "saddle": ([-1.0, -2.0, 3.0, 4.0, 5.0, 6.0], "saddle", 2),
    "degenerate valley": ([0.0, 0.0, 3.0, 4.0, 5.0, 6.0], "undecided", 0),
    "degenerate ridge": ([0.0, -2.0, -3.0, -4.0, -5.0, -6.0], "undecided", 5),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_critical_points_from_the_whole_matrix(name):
    values, kind, index = KINDS[name]
    found = criticality.classify_critical_point(np.zeros(6), symmetric(6, 2, values))
    assert (found.kind, found.index, found.index_is_exact) == (kind, index, True)
    assert found.smallest == pytest.approx(min(values), abs=1e-12)
    assert found.largest == pytest.approx(max(values), abs=1e-12)


def test_an_eigenvalue_that_is_rounding_of_the_matrix_has_no_sign():
    valley = symmetric(6, 2, [0.0, 0.0, 3.0, 4.0, 5.0, 6.0]).astype(np.float32)
    for matrix in (valley, torch.from_numpy(valley)):
        found = criticality.classify_critical_point(np.zeros(6), matrix)
        assert (found.kind, found.index) == ("undecided", 0)
    whole = torch.tensor([[0, -1], [-1, 0]])
    assert criticality.classify_critical_point(torch.zeros(2), whole).kind == "saddle"


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_critical_points_from_both_ends_of_the_spectrum(name):
    values, kind, _ = KINDS[name]
    spread = np.concatenate([values, np.full(24, np.median(values))])
    known = eigenpairs(operator_of(symmetric(30, 2, spread)), 6, which="BE")
    found = criticality.classify_critical_point(torch.zeros(30), known)
    assert found.kind == kind
    exact = int((spread < -1e-9).sum())
    assert found.index == exact if found.index_is_exact else found.index < exact
    assert found.index_is_exact is (name not in ("maximum", "degenerate ridge"))


@pytest.mark.parametrize(
    ("which", "values", "kind", "reason"),
    [
        ("LA", [1.0, 2.0, 3.0, 4.0], "undecided", "smallest eigenvalue is not known"),
        ("SA", [-4.0, -3.0, -2.0, -1.0], "undecided", "largest eigenvalue is not known"),
        ("SA", [1.0, 2.0, 3.0, 4.0], "minimum", "smallest eigenvalue is 1"),
        ("LA", [-4.0, -3.0, -2.0, -1.0], "maximum", "largest eigenvalue is -1"),
        ("LM", [-4.0, 3.0, 0.2, 0.1], "saddle", "from -4 to 3"),
    ],
)
def test_an_end_of_the_spectrum_that_is_not_known_decides_nothing(which, values, kind, reason):
    known = eigenpairs(operator_of(symmetric(4, 3, values)), 2, which=which)
    found = criticality.classify_critical_point(np.zeros(4), known)
    assert found.kind == kind
    assert reason in found.reason


def test_an_eigenvalue_within_its_residual_has_no_sign():
    known = eigenpairs(operator_of(symmetric(8, 4, [-1e-3, 1, 2, 3, 4, 5, 6, 7])), 2, which="SA")
    assert criticality.classify_critical_point(np.zeros(8), known).index == 1
    rough = replace(known, residuals=np.full(2, 1e-2))
    found = criticality.classify_critical_point(np.zeros(8), rough)
    assert (found.kind, found.index) == ("undecided", 0)
    unfinished = replace(known, values=np.array([0.5, 1.0]), converged=np.array([False, True]))
    found = criticality.classify_critical_point(np.zeros(8), unfinished)
    assert found.kind == "undecided"
    assert "converged" in found.reason


def test_a_point_with_a_gradient_is_not_critical_and_the_scale_is_that_of_the_curvature():
    matrix = symmetric(5, 5, [1.0, 2.0, 3.0, 4.0, 100.0])
    g = gradient_of(5, 5)
    g *= 5e-5 / np.linalg.norm(g)
    for factor in (1.0, 1e6, 1e-6):  # of the loss: the kind must not depend on its unit
        found = criticality.classify_critical_point(factor * g, factor * matrix)
        assert found.kind == "minimum"
        found = criticality.classify_critical_point(3 * factor * g, factor * matrix)
        assert found.kind == "not critical"
        found = criticality.classify_critical_point(3 * factor * g, factor * matrix, length=2.0)
        assert found.kind == "minimum"
    strict = criticality.classify_critical_point(g, matrix, gradient_tolerance=1e-5)
    assert (strict.kind, strict.gradient_tolerance) == ("not critical", 1e-5)
    blunt = criticality.classify_critical_point(g, matrix, curvature_tolerance=1.5)
    assert (blunt.kind, blunt.index) == ("undecided", 0)


def test_the_saddle_of_the_scalar_chain():
    """J = (1 - w1 w2)^2 / 2: a saddle with eigenvalues -1, 1 at 0; on w1 w2 = 1 one is zero."""
    w = torch.zeros(2, dtype=torch.float64)

    def loss(w):
        return 0.5 * (1 - w[0] * w[1]) ** 2

    def kind(w):
        gradient, matrix = torch.func.grad(loss)(w), torch.func.hessian(loss)(w)
        return criticality.classify_critical_point(gradient, matrix)

    found = kind(w)
    assert (found.kind, found.index) == ("saddle", 1)
    assert (found.smallest, found.largest) == (-1.0, 1.0)
    valley = kind(torch.tensor([2.0, 0.5], dtype=torch.float64))
    assert (valley.kind, valley.index) == ("undecided", 0)
    assert valley.largest == pytest.approx(4.25, rel=1e-12)
    assert kind(torch.tensor([0.3, 0.1], dtype=torch.float64)).kind == "not critical"


# --- The gradient and its curvature --------------------------------------------------------------


@pytest.mark.parametrize("by_products", [False, True])
def test_the_gradient_grows_along_the_flow_where_the_curvature_is_negative(by_products):
    matrix, g = symmetric(6, 6), gradient_of(6, 6)
    given = operator_of(matrix) if by_products else matrix
    found = criticality.gradient_curvature(g, given)
    assert found.gradient_norm == pytest.approx(np.linalg.norm(g), rel=1e-14)
    assert found.curvature == pytest.approx(g @ matrix @ g / (g @ g), rel=1e-12)
    flow = criticality.gradient_flow(g, matrix)
    lengths = [
        np.linalg.norm(g + matrix @ flow.displacement(flow.coordinates(t)).numpy())
        for t in (-1e-5, 1e-5)
    ]
    rate = math.log(lengths[1] / lengths[0]) / 2e-5
    assert rate == pytest.approx(-found.curvature, rel=1e-5)
    turned = matrix @ g / np.linalg.norm(g)
    assert found.turning == pytest.approx(
        np.linalg.norm(turned - found.curvature * g / np.linalg.norm(g)), rel=1e-9
    )


def test_the_best_step_along_the_gradient_is_the_lowest_point_of_the_model():
    g = np.array([2.0, 0.0])
    assert criticality.gradient_curvature(g, np.diag([4.0, 1.0])).best_step == 0.25
    assert criticality.gradient_curvature(g, np.diag([-4.0, 1.0])).best_step == math.inf


def test_the_history_of_a_run_has_loss_gradient_and_curvature_at_every_point():
    model = models.mlp(4, 6, 3, act=torch.nn.Tanh).double()
    x, y = torch.randn(20, 4).double(), torch.arange(20) % 3
    objective = lx.Objective(model, (x, y), "cross_entropy", weight_decay=0.1, batch_size=8)
    points = [objective.space.gather() * f for f in (0.0, 0.5, 1.5)]

    def loss(vector):
        named = objective.space.unflatten(vector)
        output = torch.func.functional_call(model, named, (x,))
        return torch.nn.functional.cross_entropy(output, y) + 0.05 * vector @ vector

    found = criticality.gradient_history(objective, points, steps=[0, 10, 50])
    assert found.steps.tolist() == [0, 10, 50]
    for k, point in enumerate(points):
        g, h = torch.func.grad(loss)(point), torch.func.hessian(loss)(point)
        assert found.loss[k] == pytest.approx(float(loss(point)), rel=1e-10)
        assert found.gradient_norm[k] == pytest.approx(float(g.norm()), rel=1e-9)
        assert found.curvature[k] == pytest.approx(float(g @ h @ g / (g @ g)), rel=1e-9)
    assert criticality.gradient_history(objective, points).steps.tolist() == [0, 1, 2]
    flat = lx.Objective(model, (x, y), lambda m, b: (m(b[0]) ** 2).mean())
    rest = criticality.gradient_history(flat, [torch.zeros(objective.space.size)])
    assert rest.gradient_norm[0] == 0
    assert math.isnan(rest.curvature[0])


def test_the_picture_of_a_history_shows_all_three():
    history = criticality.GradientHistory(
        np.arange(4), np.array([2.0, 1.0, 0.5, 0.2]), np.array([0.1, 0.5, 2.0, 3.0]),
        np.array([-0.1, 1.0, 500.0, np.nan]),
    )  # fmt: skip
    axes = history.plot().axes
    drawn = [ax.lines[0].get_ydata() for ax in axes]
    for values, expected in zip(
        drawn, (history.loss, history.gradient_norm, history.curvature), strict=True
    ):
        np.testing.assert_array_equal(values, expected)
    assert [ax.get_yscale() for ax in axes] == ["log", "log", "symlog"]
    assert "4 points" in repr(history)


# --- Arguments -----------------------------------------------------------------------------------

G, H = np.ones(3), np.eye(3)


def bowl():
    x = torch.ones(4, 1)
    return lx.Objective(torch.nn.Linear(1, 1), (x, x), "mse_loss")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: criticality.gradient_flow([1.0], H), ArgumentTypeError,
         "`gradient` must be a tensor or an array, got list"),
        (lambda: criticality.gradient_flow(np.ones((3, 1)), H), ArgumentError,
         r"`gradient` must have shape \(P,\), got \(3, 1\)"),
        (lambda: criticality.gradient_flow(np.array([1.0, np.nan]), H), ArgumentError,
         "`gradient` must be finite, got NaN or infinity"),
        (lambda: criticality.gradient_flow(G, "H"), ArgumentTypeError,
         "curvature must be a tensor, an array or known by products, got str"),
        (lambda: criticality.gradient_flow(G, np.eye(4)), ArgumentError,
         r"curvature must have shape \(3, 3\), got \(4, 4\)"),
        (lambda: criticality.gradient_flow(G, np.eye(3) * np.inf), ArgumentError,
         "curvature must be finite, got NaN or infinity"),
        (lambda: criticality.gradient_flow(G, np.triu(np.ones((3, 3)))), ArgumentError,
         "curvature must be symmetric, got entries that differ by 1"),
        (lambda: criticality.gradient_flow(G, operator_of(np.eye(4))), ArgumentError,
         r"`gradient` must have shape \(4,\), got \(3,\)"),
        (lambda: criticality.gradient_flow(0 * G, operator_of(H)), ArgumentError,
         "`eigenpairs` must be given for an operator where the gradient is zero"),
        (lambda: criticality.gradient_flow(
            G, operator_of(H), eigenpairs(operator_of(np.eye(4)), 1)), ArgumentError,
         "`eigenpairs` must be over P = 3 parameters, got 4"),
        (lambda: criticality.gradient_flow(G, operator_of(H), steps=0), ArgumentError,
         "`steps` must be at least 1, got 0"),
        (lambda: criticality.gradient_flow(G, H).coordinates(np.inf), ArgumentError,
         "`time` must be finite, got inf"),
        (lambda: criticality.gradient_flow(G, H).descent_coordinates(-1, 0.1), ArgumentError,
         "`steps` must be whole numbers of at least 0, got -1"),
        (lambda: criticality.gradient_flow(G, H).descent_coordinates(1.5, 0.1), ArgumentError,
         "`steps` must be whole numbers of at least 0, got 1.5"),
        (lambda: criticality.gradient_flow(G, H).descent_coordinates(1, 0.0), ArgumentError,
         "`learning_rate` must be a finite number above 0, got 0.0"),
        (lambda: criticality.gradient_flow(G, H).escape_times(-1.0), ArgumentError,
         "`size` must be a finite number above 0, got -1.0"),
        (lambda: criticality.gradient_flow(G, H).escape_times(1.0, start=0), ArgumentError,
         "`start` must be a finite number above 0, got 0"),
        (lambda: criticality.gradient_flow(np.ones(1), np.eye(1)).plot(), ArgumentError,
         "a plane must have two directions, got 1"),
        (lambda: criticality.classify_critical_point(G, eigenpairs(operator_of(np.eye(4)), 1)),
         ArgumentError, "`spectrum` must be over P = 3 parameters, got 4"),
        (lambda: criticality.classify_critical_point(G, H, length=0), ArgumentError,
         "`length` must be a finite number above 0, got 0"),
        (lambda: criticality.classify_critical_point(G, H, gradient_tolerance=-1.0),
         ArgumentError, "`gradient_tolerance` must be a finite number above 0, got -1.0"),
        (lambda: criticality.classify_critical_point(G, H, curvature_tolerance=0.0),
         ArgumentError, "`curvature_tolerance` must be a finite number above 0, got 0.0"),
        (lambda: criticality.gradient_history(torch.nn.Linear(1, 1), []), ArgumentTypeError,
         "`objective` must be an Objective, got Linear"),
        (lambda: criticality.gradient_history(bowl(), []), ArgumentError,
         "`points` must hold at least one point, got none"),
        (lambda: criticality.gradient_history(bowl(), [None], steps=[1, 2]), ArgumentError,
         r"`steps` must be one per point \(1\), got 2"),
        (lambda: criticality.gradient_curvature(0 * G, H), ArgumentError,
         "`gradient` must not be zero"),
        (lambda: criticality.gradient_curvature(G, operator_of(np.eye(4))), ArgumentError,
         r"`gradient` must have shape \(4,\), got \(3,\)"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
