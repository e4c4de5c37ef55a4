"""Controls: random walks, convex bowls, random planes, against what is known of them."""

from __future__ import annotations

import copy

import models
import numpy as np
import pytest
import torch

import landscapex as lx
from landscapex.controls import (
    convex_descent,
    random_directions,
    random_plane,
    random_point,
    random_walk,
    random_walk_shape,
)
from landscapex.errors import ArgumentError, ArgumentTypeError
from landscapex.projections import residual_coordinates
from landscapex.studies.interpolation import interpolate

QUIET = {"progress": False}


def test_the_shape_of_random_walks_is_a_semicircle_and_a_line():
    alpha, beta = random_walk_shape(np.linspace(0, 1, 101))
    np.testing.assert_allclose((alpha - 0.5) ** 2 + beta**2, 0.25, atol=1e-15)
    after = random_walk_shape(np.array([[1.0, 1.25], [2.0, 5.0]]))
    assert after[0].tolist() == [[1, 1], [1, 1]]
    assert after[1].tolist() == [[0, 0.5], [1, 2]]


@pytest.mark.parametrize("seed", [0, 1])
def test_random_walks_tend_to_their_shape(seed, generators_untouched):
    distances = []
    for size in (50, 5_000):
        walk = random_walk(size, steps=120, solution=90, seed=seed)
        alpha, beta = random_walk_shape(walk.steps / 90)
        off = np.hypot(walk.alpha / walk.length - alpha, walk.beta / walk.length - beta)
        distances.append(off.max())
    assert distances[1] < 0.05
    assert distances[1] < 0.5 * distances[0]


def test_a_walk_is_the_sum_of_its_steps():
    """Drawn again at every reading, and the same for another number of steps."""
    walk = random_walk(30, steps=12, solution=8)
    points = torch.stack(list(walk._points))
    expected = residual_coordinates(list(points), solution=8)
    assert np.array_equal(walk.alpha, expected.alpha)
    assert np.array_equal(walk.beta, expected.beta)
    assert points[0].norm() == 0
    steps = points.diff(dim=0)
    assert abs(float(steps.mean())) < 0.2
    assert float(steps.std()) == pytest.approx(1, abs=0.1)
    longer = random_walk(30, steps=20, solution=8)
    assert np.array_equal(longer.alpha[:13], walk.alpha)
    assert not np.array_equal(random_walk(30, steps=12, solution=8, seed=1).alpha, walk.alpha)
    assert walk.label == "random walk in 30 dimensions"


def test_the_picture_draws_the_shape_beside_the_walk():
    walk = random_walk(3_000, steps=60, solution=40)
    alpha, beta = walk.random_walk()
    assert (alpha[-1], beta[-1]) == (1, np.sqrt(0.5))
    ours = np.interp(alpha[alpha < 1], walk.alpha[:41] / walk.length, walk.beta[:41] / walk.length)
    np.testing.assert_allclose(ours, beta[alpha < 1], atol=0.06)


@pytest.mark.parametrize("learning_rate", [0.3, 1.9])
def test_descent_on_a_bowl_against_its_closed_form(learning_rate):
    """Without momentum, ``x_k = (1 - h lambda)^k x_0``; the minimiser is 0."""
    spectrum = np.array([1.0, 0.3, 0.01])
    run = convex_descent(spectrum.tolist(), learning_rate=learning_rate, steps=25, seed=3)
    start = next(iter(run._points)).numpy()
    points = start * (1 - learning_rate * spectrum) ** np.arange(26)[:, None]
    expected = residual_coordinates(points, solution=torch.zeros(3, dtype=torch.float64))
    np.testing.assert_allclose(run.alpha, expected.alpha, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(run.beta, expected.beta, rtol=1e-10, atol=1e-12)
    assert run.length == pytest.approx(np.linalg.norm(start), rel=1e-12)
    assert run.solution is None


def test_momentum_is_that_of_torch():
    """SGD of torch has the learning rate outside the momentum: the same steps."""
    spectrum = torch.tensor([1.0, 0.2], dtype=torch.float64)
    run = convex_descent(spectrum.tolist(), learning_rate=0.4, momentum=0.7, steps=15)
    x = next(iter(run._points)).clone().requires_grad_()
    optimizer = torch.optim.SGD([x], lr=0.4, momentum=0.7)
    for point in run._points:
        np.testing.assert_allclose(x.detach(), point, rtol=1e-12)
        optimizer.zero_grad()
        (0.5 * (spectrum * x * x).sum()).backward()
        optimizer.step()


def test_the_default_bowl_is_badly_conditioned():
    run = convex_descent(50, learning_rate=1.0, steps=200)
    assert len(run) == 201
    assert run.alpha[-1] < run.length
    assert run.label == "convex: learning rate 1, momentum 0"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: random_walk(0), ArgumentError, "`size` must be at least 1, got 0"),
        (lambda: random_walk(2.0), ArgumentTypeError, "`size` must be a whole number, got 2.0"),
        (lambda: random_walk(9, steps=5), ArgumentError, "`solution` must be from 1 to 5 steps"),
        (lambda: random_walk(9, solution=0), ArgumentError, "`solution` must be from 1 to 1000"),
        (lambda: convex_descent([]), ArgumentError, "`spectrum` must be finite numbers above 0"),
        (lambda: convex_descent([1, -1]), ArgumentError, "`spectrum` must be finite numbers abo"),
        (lambda: convex_descent(0), ArgumentError, "`spectrum` must be finite numbers above 0"),
        (lambda: convex_descent(momentum=1), ArgumentError, "`momentum` must be at least 0 and"),
        (lambda: convex_descent(learning_rate=2), ArgumentError, "above 0 and below 2, where"),
        (lambda: convex_descent([4], learning_rate=0.5), ArgumentError, r"below 0\.5, where"),
        (lambda: convex_descent(steps=0), ArgumentError, "`steps` must be at least 1, got 0"),
        (lambda: convex_descent(steps=1.5), ArgumentTypeError, "`steps` must be a whole number"),
    ],
)
def test_settings_that_mean_nothing_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_momentum_widens_the_range_of_learning_rates():
    assert np.isfinite(convex_descent([1.0], learning_rate=2.9, momentum=0.5).alpha).all()


def test_random_points_are_as_long_as_the_model_tensor_by_tensor(generators_untouched):
    model = models.case("conv").model
    with torch.no_grad():
        model.head.bias.zero_()
    start = random_point(model, scale=3.0, seed=4)
    for name, p in model.named_parameters():
        assert float(start[name].norm()) == pytest.approx(3 * float(p.detach().norm()), rel=1e-6)
    assert not start["head.bias"].any()
    assert torch.equal(start["bn.running_var"], model.bn.running_var)
    cosine = torch.cosine_similarity(start["up.weight"].flatten(), model.up.weight.flatten(), dim=0)
    assert abs(float(cosine)) < 0.6
    assert not torch.equal(random_point(model, seed=5)["up.weight"] * 3, start["up.weight"])


def test_random_points_tie_what_the_model_ties_and_can_start_a_line():
    model = models.seeded(models.TiedLMHeadModel)
    start = random_point(model)
    assert torch.equal(start["head.weight"], start["embedding.weight"])
    ids = torch.randint(0, 20, (4, 5))
    data = [{"input_ids": ids, "labels": ids}]
    line = interpolate(start, model, data, points=3, **QUIET)
    assert line.loss[-1] == lx.Objective(model, data).loss()
    complex_layer = torch.nn.Linear(3, 2).to(torch.complex64)
    drawn = random_point(complex_layer)["weight"]
    assert float(drawn.abs().square().sum()) == pytest.approx(
        float(complex_layer.weight.detach().abs().square().sum()), rel=1e-6
    )
    for scale in (0, float("inf"), "1"):
        with pytest.raises(ArgumentError, match="`scale` must be a finite number above 0, got"):
            random_point(model, scale=scale)


# --- Planes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training():
    """Digits: some states of a run, and their objective."""
    _, (x, y), loss = lx.examples.digits()
    model = lx.examples.train_digits(epochs=0)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    states = []
    for _ in range(6):
        states.append(copy.deepcopy(model.state_dict()))
        for batch in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return lx.Objective(model.eval(), (x, y), loss), states


def test_random_directions_are_orthonormal_over_all_parameters(generators_untouched):
    model = models.mlp(200, 3)[0]
    with torch.no_grad():
        model.weight.zero_()  # they are not scaled to the model
    drawn = random_directions(model, 4, seed=2)
    gram = drawn.vectors.double() @ drawn.vectors.double().T
    torch.testing.assert_close(gram, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-6)
    assert (drawn[0]["bias"] != 0).all()
    assert not torch.equal(random_directions(model, 4, seed=3).vectors, drawn.vectors)
    for n in (0, 604):
        with pytest.raises(ArgumentError, match="`n` must be from 1 to 603, got"):
            random_directions(model, n)
    with pytest.raises(ArgumentError, match="`along` must have a finite length above 0"):
        random_directions(model, along=torch.zeros(603))


def test_a_run_in_a_random_plane_goes_nowhere(training):
    """The plane holds little of the run, and the loss hardly changes in it."""
    objective, states = training
    path = random_plane(states, objective, **QUIET)
    assert path.origin == 5
    assert path.coordinates[5].tolist() == [0, 0]
    assert np.nanmax(np.abs(path.coordinates)) < 0.1 * path.distances.max()
    plane = lx.surface(objective, directions=path, span=path.span, points=3, **QUIET)
    assert np.ptp(plane.loss) < 0.05 * np.ptp(path.losses)


def test_half_of_a_plane_may_be_the_way_to_the_solution(training):
    """Its first coordinate is the projection, from the first checkpoint on."""
    objective, states = training
    path = random_plane(states, objective, half=True, solution=4, seed=1, **QUIET)
    along = residual_coordinates(states, objective, solution=4)
    np.testing.assert_allclose(path.coordinates[:, 0], along.alpha, rtol=1e-5, atol=1e-5)
    assert path.directions.axes[0].label == "along the run"
    assert abs(float(path.directions.cosine()[0, 1])) < 1e-6
    assert np.abs(path.coordinates[:, 1]).max() < 0.1 * along.beta.max()


def test_runs_of_a_random_plane_are_what_runs_of_projections_are(training):
    """Arrays too, and a folder is opened once: it may be that of a run that goes on."""
    objective, states = training
    points = np.stack([objective.space.vector(s, what="a state").numpy() for s in states])
    drawn = random_plane(points, objective, seed=1, **QUIET)
    expected = random_plane(states, objective, seed=1, **QUIET)
    np.testing.assert_array_equal(drawn.coordinates, expected.coordinates)


def test_a_plane_needs_the_number_of_its_solution(training):
    objective, states = training
    with pytest.raises(ArgumentError, match="`solution` must be the number of a checkpoint"):
        random_plane(states, objective, solution=states[2])
