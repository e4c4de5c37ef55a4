"""The flow near critical points in closed form: descent, Newton's step, escape times, portraits."""

from __future__ import annotations

import copy
import math

import models
import numpy as np
import pytest
import torch
from criticality_cases import gradient_of, operator_of, symmetric

import landscapex as lx
from landscapex import criticality
from landscapex.curvature.lanczos import eigenpairs


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


def test_float32_operators_give_a_flow_of_their_precision():
    matrix, g = symmetric(30, 1), gradient_of(30, 1)
    flow = criticality.gradient_flow(torch.from_numpy(g), operator_of(matrix, torch.float32))
    assert flow.vectors.dtype == torch.float32
    found = flow.displacement(flow.coordinates(1.0)).double().numpy()
    whole = criticality.gradient_flow(g, matrix)
    assert relative(found, whole.displacement(whole.coordinates(1.0)).numpy()) < 1e-5


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
    assert low <= 0 <= high
