"""Near critical points: the flow in closed form, Newton's step, escape times, kinds of points."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import models
import numpy as np
import pytest
import torch

import landscapex as lx
from landscapex import criticality
from landscapex.curvature.lanczos import eigenpairs
from landscapex.curvature.linear import SymmetricOperator
from landscapex.errors import ArgumentError, ArgumentTypeError


def symmetric(size, seed, values=None):
    """A random symmetric matrix, rotated; eigenvalues of both signs unless given."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((size, size)))
    values = rng.standard_normal(size) if values is None else np.asarray(values, float)
    return (q * values) @ q.T


def gradient_of(size, seed):
    return np.random.default_rng(1000 + seed).standard_normal(size)


def operator_of(matrix, dtype=torch.float64):
    m = torch.from_numpy(matrix).to(dtype)
    return SymmetricOperator(lambda v: m @ v, len(matrix), dtype)


def runge_kutta(matrix, g, time, dt=1e-3):
    """The flow by the classical method of fourth order, step by step."""

    def slope(e):
        return -g - matrix @ e

    e = np.zeros(len(g))
    for _ in range(round(time / dt)):
        a = slope(e)
        b = slope(e + dt / 2 * a)
        c = slope(e + dt / 2 * b)
        d = slope(e + dt * c)
        e = e + dt / 6 * (a + 2 * b + 2 * c + d)
    return e


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# --- The flow ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_check_a2_the_flow_equals_runge_kutta(seed):
    """dt 1e-3, t = 2, a random symmetric 6x6 matrix with eigenvalues of both signs."""
    matrix, g = symmetric(6, seed), gradient_of(6, seed)
    assert np.linalg.eigvalsh(matrix)[0] < 0
    flow = criticality.gradient_flow(g, matrix)
    found = flow.displacement(flow.coordinates(2.0)).numpy()
    assert relative(found, runge_kutta(matrix, g, 2.0)) < 1e-10


def test_the_flow_of_a_flat_direction_is_a_straight_line():
    """Curvatures 0, and so small that 1 - exp would lose every digit."""
    tiny = 1e-12
    matrix, g = np.diag([0.0, tiny, -tiny]), np.array([1.0, 2.0, -3.0])
    flow = criticality.gradient_flow(g, matrix)
    t = 7.0
    found = flow.displacement(flow.coordinates(t)).numpy()
    expected = -g * t * (1 - np.diag(matrix) * t / 2)
    np.testing.assert_allclose(found, expected, rtol=1e-15)


def test_the_series_meets_the_closed_form_where_it_takes_over():
    t, switch = 2.0, 1e-6
    for factor in (0.999, 1.001):
        for value in (switch / t * factor, -switch / t * factor):
            flow = criticality.gradient_flow(np.array([1.0]), np.array([[value]]))
            x = value * t
            exact = -t * (1 - x / 2 + x**2 / 6 - x**3 / 24)
            assert flow.coordinates(t)[0] == pytest.approx(exact, rel=1e-15)


def test_the_model_loss_along_the_flow_falls_at_the_rate_of_the_squared_gradient():
    matrix, g = symmetric(5, 3), gradient_of(5, 3)
    flow = criticality.gradient_flow(g, matrix, loss=1.5)
    times = np.linspace(0, 2, 2001)
    losses = flow.model_loss(flow.coordinates(times))
    assert losses[0] == 1.5
    e = flow.displacement(flow.coordinates(times)).numpy()
    direct = 1.5 + e @ g + 0.5 * np.einsum("ti,ij,tj->t", e, matrix, e)
    np.testing.assert_allclose(losses, direct, rtol=1e-11)
    squared = ((g + e @ matrix) ** 2).sum(1)
    np.testing.assert_allclose(np.gradient(losses, times)[1:-1], -squared[1:-1], rtol=1e-4)


@pytest.mark.parametrize("rate", [1e-9, 0.05, 0.5, 3.0])
@pytest.mark.parametrize("values", [[0.0, 1e-13, 2.0, -0.7, 0.4], [2.0, 1.0, -1.0, 0.5, 20.0]])
def test_descent_with_finite_steps_equals_the_loop(values, rate):
    """Also where steps overshoot (rate * curvature above 1), or reach the end at once."""
    matrix, g = symmetric(5, 1, values), gradient_of(5, 1)
    flow = criticality.gradient_flow(g, matrix)
    e = np.zeros(5)
    for n in range(12):
        found = flow.displacement(flow.descent_coordinates(n, rate)).numpy()
        np.testing.assert_allclose(found, e, rtol=1e-10, atol=1e-12 * np.abs(e).max(initial=0))
        e = e - rate * (g + matrix @ e)


def test_descent_with_small_steps_tends_to_the_flow():
    matrix, g = symmetric(5, 2), gradient_of(5, 2)
    flow = criticality.gradient_flow(g, matrix)
    exact = flow.coordinates(1.0)
    errors = [relative(flow.descent_coordinates(n, 1 / n), exact) for n in (100, 1000)]
    assert errors[0] == pytest.approx(10 * errors[1], rel=0.05)
    assert errors[1] < 2e-3


def test_stable_steps_are_those_below_twice_the_inverse_of_the_largest_curvature():
    matrix, g = symmetric(4, 0, [4.0, 1.0, 0.5, 0.1]), gradient_of(4, 0)
    flow = criticality.gradient_flow(g, matrix)
    assert flow.stable_learning_rate == pytest.approx(0.5, rel=1e-12)
    far = [np.abs(flow.descent_coordinates(2000, 0.5 * f)).max() for f in (0.99, 1.01)]
    assert far[0] < 100 < 1e6 < far[1]
    down = criticality.gradient_flow(g, symmetric(4, 0, [-4.0, -1.0, -0.5, -0.1]))
    assert down.stable_learning_rate == math.inf


def test_times_far_beyond_the_range_of_numbers_give_infinity_and_no_warning(recwarn):
    flow = criticality.gradient_flow(np.array([1.0, 1.0]), np.diag([-1.0, 1.0]))
    coordinates = flow.coordinates(1e5)
    assert coordinates[0] == -math.inf
    assert coordinates[1] == -1.0
    assert flow.model_loss(coordinates) == -math.inf
    assert not recwarn.list


# --- By products ---------------------------------------------------------------------------------


def test_the_flow_by_products_equals_that_of_the_whole_matrix():
    matrix, g = symmetric(60, 5), gradient_of(60, 5)
    operator = operator_of(matrix)
    flow = criticality.gradient_flow(torch.from_numpy(g), operator, steps=30)
    assert flow.products == operator.products == 30
    whole = criticality.gradient_flow(g, matrix)
    for t in (0.1, 1.0, 3.0):
        found = flow.displacement(flow.coordinates(t)).numpy()
        assert relative(found, whole.displacement(whole.coordinates(t)).numpy()) < 1e-10
    stepped = flow.displacement(flow.descent_coordinates(20, 0.1)).numpy()
    expected = whole.displacement(whole.descent_coordinates(20, 0.1)).numpy()
    assert relative(stepped, expected) < 1e-10


def test_the_defect_is_how_far_the_flow_is_from_its_equation():
    """``|de/dt + g + H e|``, with the derivative in closed form; zero for the whole space."""
    matrix, g = symmetric(40, 6), gradient_of(40, 6)
    flow = criticality.gradient_flow(torch.from_numpy(g), operator_of(matrix), steps=6)
    for t in (0.2, 1.0, 2.5):
        speed = flow.displacement(-np.exp(-flow.values * t) * flow.slopes).numpy()
        e = flow.displacement(flow.coordinates(t)).numpy()
        expected = np.linalg.norm(speed + g + matrix @ e)
        assert float(flow.defect(t)) == pytest.approx(expected, rel=1e-8)
    assert float(flow.defect(1.0)) > 1e-3
    assert float(criticality.gradient_flow(g, matrix).defect(1.0)) == 0.0
    full = criticality.gradient_flow(torch.from_numpy(g), operator_of(matrix), steps=100)
    assert full.products <= 40
    assert float(full.defect(1.0)) < 1e-8


def test_known_eigenvectors_save_products():
    values = np.concatenate([[-3.0, -2.0, 30.0, 20.0], np.full(46, 0.5)])
    matrix, g = symmetric(50, 7, values), gradient_of(50, 7)
    known = eigenpairs(operator_of(matrix), 4, which="BE")
    operator = operator_of(matrix)
    flow = criticality.gradient_flow(torch.from_numpy(g), operator, known)
    assert operator.products == flow.products == 1
    whole = criticality.gradient_flow(g, matrix)
    found = flow.displacement(flow.coordinates(0.5)).numpy()
    assert relative(found, whole.displacement(whole.coordinates(0.5)).numpy()) < 1e-6
    assert float(flow.defect(0.5)) < 1e-4 * flow.gradient_norm


def test_known_eigenvectors_serve_where_the_gradient_is_zero():
    matrix = symmetric(20, 8, np.linspace(-2, 5, 20))
    known = eigenpairs(operator_of(matrix), 2, which="BE")
    flow = criticality.gradient_flow(torch.zeros(20), operator_of(matrix), known)
    assert flow.products == 0
    found = flow.escape_times(1.0, start=1e-3)
    assert found.first == pytest.approx(math.log(1e3) / 2, rel=1e-6)
    assert flow.escape_times(1.0).first == math.inf


def test_the_flow_is_that_of_small_steps_of_gradient_descent_on_a_network():
    """For times far below the inverse of the largest curvature the quadratic model is exact."""
    torch.manual_seed(3)
    model = models.mlp(4, 6, 3, act=torch.nn.Tanh).double()
    x, y = torch.randn(40, 4).double(), torch.arange(40) % 3
    objective = lx.Objective(model, (x, y), "cross_entropy")
    theta = objective.space.gather()

    def loss(vector):
        named = objective.space.unflatten(vector)
        output = torch.func.functional_call(model, named, (x,))
        return torch.nn.functional.cross_entropy(output, y)

    matrix = torch.func.hessian(loss)(theta)
    flow = criticality.gradient_flow(objective.gradient(), matrix, loss=objective.loss())
    errors = []
    for time in (0.2, 0.1):
        time = time / flow.values[-1]
        rate, point = time / 100, theta.clone()
        for _ in range(100):
            point -= rate * objective.gradient(point)
        straight = -time * objective.gradient()
        expected = point - theta
        found = flow.displacement(flow.coordinates(time))
        curved = float((expected - straight).norm())  # what the curvature does to the path
        assert curved > 0.01 * float(straight.norm())
        stepped = flow.displacement(flow.descent_coordinates(100, rate))
        errors.append(float((stepped - expected).norm()) / curved)
        assert float((found - expected).norm()) < 0.2 * curved
        falls = float(flow.model_loss(flow.coordinates(time))) - flow.loss
        assert falls == pytest.approx(objective.loss(point) - flow.loss, rel=0.02)
    # third derivatives enter at one more order of t: halving the time halves the relative error
    assert errors[1] < 0.7 * errors[0]


# --- Newton's step, escape -----------------------------------------------------------------------


def test_newtons_step_goes_to_the_saddle_and_descent_does_not():
    """On (x^2 - y^2) / 2 from (1, 0.01): Newton jumps to the origin, descent leaves it."""
    point, matrix = np.array([1.0, 0.01]), np.diag([1.0, -1.0])
    flow = criticality.gradient_flow(matrix @ point, matrix, loss=0.5 * (1 - 1e-4))
    step = flow.newton()
    np.testing.assert_allclose(point + step.displacement.numpy(), 0, atol=1e-15)
    assert (step.negative, step.flat) == (1, 0)
    assert step.loss == pytest.approx(0, abs=1e-15)
    assert "1 negative curvature" in repr(step)
    end = point + flow.displacement(flow.coordinates(8.0)).numpy()
    np.testing.assert_allclose(end, [math.exp(-8), 0.01 * math.exp(8)], rtol=1e-12)


def test_newtons_step_leaves_flat_directions_alone():
    matrix, g = symmetric(4, 4, [0.0, 1.0, 2.0, -3.0]), gradient_of(4, 4)
    step = criticality.gradient_flow(g, matrix).newton()
    assert (step.negative, step.flat) == (1, 1)
    expected = -np.linalg.pinv(matrix, rcond=1e-9) @ g
    np.testing.assert_allclose(step.displacement.numpy(), expected, rtol=1e-9)


def test_escape_times_are_those_of_the_flow_and_of_the_steps():
    matrix = symmetric(4, 9, [-0.5, -2.0, 1.0, 3.0])
    g = gradient_of(4, 9) * 1e-3
    flow = criticality.gradient_flow(g, matrix)
    found = flow.escape_times(1.0, learning_rate=0.01)
    np.testing.assert_allclose(found.curvatures, [-2.0, -0.5], rtol=1e-12)
    critical = -flow.slopes / flow.values
    for k, (time, steps) in enumerate(zip(found.times, found.steps, strict=True)):
        distance = flow.coordinates(time)[k] - critical[k]
        assert abs(distance) == pytest.approx(1.0, rel=1e-9)
        before, after = (
            abs(flow.descent_coordinates(n, 0.01)[k] - critical[k])
            for n in (math.floor(steps), math.ceil(steps))
        )
        assert before <= 1.0 <= after
    assert found.first == found.times.min()
    assert len(str(found).splitlines()) == 3
    assert "steps" in str(found)
    with pytest.raises(ValueError, match="read-only"):
        found.times[0] = 0.0


def test_a_direction_that_is_left_already_takes_no_time():
    flow = criticality.gradient_flow(np.array([5.0, 0.0]), np.diag([-1.0, -2.0]))
    found = flow.escape_times(1.0)
    assert found.times.tolist() == [math.inf, 0.0]
    bowl = criticality.gradient_flow(np.ones(2), np.eye(2)).escape_times(1.0)
    assert (len(bowl.times), bowl.first) == (0, math.inf)


def test_a_flat_direction_is_no_way_down_because_of_rounding():
    """Its critical point would be 1e14 away: left behind already, in no time."""
    flow = criticality.gradient_flow(np.array([1e-3, 1e-3, 1.0]), np.diag([-3.0, -1e-17, 2.0]))
    found = flow.escape_times(1.0)
    assert found.curvatures.tolist() == pytest.approx([-3.0], rel=1e-12)
    assert found.first == pytest.approx(math.log(3e3) / 3, rel=1e-9)


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


# --- Pictures ------------------------------------------------------------------------------------


def test_the_phase_portrait_shows_the_flow_in_the_plane_of_extreme_curvatures():
    matrix, g = np.diag([2.0, -1.0, 0.5]), np.array([1.0, 0.02, 0.5])
    flow = criticality.gradient_flow(g, matrix)
    ax = flow.plot(2.0).axes[0]
    expected = flow.coordinates(np.linspace(0, 2.0, 400))[:, [0, 2]]
    path = next(line for line in ax.lines if len(line.get_xdata()) == 400)
    np.testing.assert_allclose(path.get_xydata(), expected, atol=1e-15)
    assert "λ = \N{MINUS SIGN}1" in ax.get_xlabel()
    assert "λ = 2" in ax.get_ylabel()
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert any("saddle in this plane" in t for t in texts)
    assert any("until t = 2" in t for t in texts)


@pytest.mark.parametrize(
    ("matrix", "g"),
    [
        (np.eye(2), np.zeros(2)),
        (np.zeros((2, 2)), np.array([1.0, 0.0])),
        (np.diag([1e-9, 1.0]), np.array([1.0, 1.0])),
        (np.diag([-1.0, -100.0]), np.array([1.0, 0.0])),
    ],
)
def test_phase_portraits_of_odd_cases_can_be_drawn(matrix, g):
    figure = criticality.gradient_flow(g, matrix).plot()
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_xlim()
    assert low < 0 < high or low <= 0 <= high


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


# --- Arguments, results --------------------------------------------------------------------------

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


def test_float32_operators_give_a_flow_of_their_precision():
    matrix, g = symmetric(30, 1), gradient_of(30, 1)
    flow = criticality.gradient_flow(torch.from_numpy(g), operator_of(matrix, torch.float32))
    assert flow.vectors.dtype == torch.float32
    found = flow.displacement(flow.coordinates(1.0)).double().numpy()
    whole = criticality.gradient_flow(g, matrix)
    assert relative(found, whole.displacement(whole.coordinates(1.0)).numpy()) < 1e-5


def test_what_is_given_is_left_alone_and_what_is_returned_cannot_be_written():
    matrix, g = symmetric(4, 1), gradient_of(4, 1)
    before = copy.deepcopy((matrix, g))
    flow = criticality.gradient_flow(g, matrix)
    assert np.array_equal(matrix, before[0])
    assert np.array_equal(g, before[1])
    for array in (flow.values, flow.slopes):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0.0
    assert repr(flow).startswith("GradientFlow(4 directions, curvature ")
