"""Training trajectories: components, coordinates, and what a plane leaves out."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from trajectory_cases import P, Tied, batch_norm, curve, linear, rng, skewed

import landscapex as lx
from landscapex import axes
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    DirectionError,
    LandscapexWarning,
    ParameterMismatchError,
)
from landscapex.model.parameters import ParameterSpace
from landscapex.trajectories.plane import Trajectory, project, trajectory
from landscapex.trajectories.principal import random_walk_limit, random_walk_ratios


def svd(points, origin=-1, *, center=True):
    """The textbook answer: rows relative to the origin, mean off, singular value decomposition."""
    rows = np.asarray(points, dtype=np.float64)
    rows = rows - rows[origin]
    rows = rows - rows.mean(0) if center else rows
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    return values, vectors


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("origin", ["last", "first", 3, -2])
def test_c4_components_are_those_of_the_singular_value_decomposition(center, origin):
    points = curve()
    made = trajectory(list(points), linear(), n=3, center=center, origin=origin)
    o = {"last": 8, "first": 0, 3: 3, -2: 7}[origin]
    values, vectors = svd(points, o, center=center)
    np.testing.assert_allclose(made.explained[:3], (values**2 / (values**2).sum())[:3], rtol=1e-10)
    found = made.directions.vectors.numpy()
    signs = np.sign((found * vectors[:3]).sum(1))
    np.testing.assert_allclose(found, signs[:, None] * vectors[:3], atol=1e-10)
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-14)
    expected = (points - points[o]).numpy() @ found.T
    np.testing.assert_allclose(made.coordinates, expected, rtol=1e-10, atol=1e-12)
    farthest = np.abs(made.coordinates).argmax(0)
    assert (made.coordinates[farthest, range(3)] > 0).all()


def test_c4_with_biases_left_out():
    points, model = curve(), linear()
    made = trajectory(list(points), model, ignore="bias_bn")
    kept = np.zeros(P, bool)
    kept[:60] = True
    values, vectors = svd(np.where(kept, points, 0.0))
    np.testing.assert_allclose(made.explained[:2], (values**2 / (values**2).sum())[:2], rtol=1e-10)
    found = made.directions.vectors.numpy()
    assert not found[:, 60:].any()
    np.testing.assert_allclose(np.abs((found * vectors[:2]).sum(1)), 1, atol=1e-12)
    # what was left out of the components is not left out of the distance from the plane
    moved = (points - points[-1]).numpy()
    off = moved - made.coordinates @ found
    np.testing.assert_allclose(made.residuals, np.linalg.norm(off, axis=1), atol=1e-12)
    assert made.residuals[0] > np.linalg.norm(moved[0, 60:])


@pytest.mark.parametrize("center", [True, False])
def test_the_null_model_is_a_random_walk(center):
    """Antognini and Sohl-Dickstein; also where steps are unevenly recorded."""
    size, seeds = 30_000, 3
    for steps in (np.arange(40), np.unique(np.geomspace(1, 400, 25).astype(int))):
        shares = []
        for seed in range(seeds):
            moves = np.random.default_rng(seed).standard_normal((len(steps) - 1, size))
            walk = np.cumsum(moves * np.sqrt(np.diff(steps))[:, None], axis=0)
            walk = np.concatenate([np.zeros((1, size)), walk])
            values, _ = svd(walk, center=center)
            shares.append(values**2 / (values**2).sum())
        predicted = random_walk_ratios(steps, center=center)
        np.testing.assert_allclose(np.mean(shares, 0)[:4], predicted[:4], rtol=0.02)


def test_the_null_model_tends_to_the_published_shares():
    for center, first in ((True, 6 / np.pi**2), (False, 8 / np.pi**2)):
        limit = random_walk_limit(4, center=center)
        assert limit[0] == pytest.approx(first, rel=1e-14)
        found = random_walk_ratios(np.arange(1200), center=center)
        np.testing.assert_allclose(found[:4], limit, rtol=2e-3)
        assert found.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(random_walk_limit(3), 6 / (np.pi * np.array([1, 2, 3])) ** 2)
    odd = np.array([1, 3, 5])
    np.testing.assert_allclose(random_walk_limit(3, center=False), 8 / (np.pi * odd) ** 2)


def test_a_walk_has_two_independent_sides_of_an_origin_in_its_middle():
    found = random_walk_ratios(np.arange(5), center=False, origin=2)
    one_side = np.linalg.eigvalsh([[1, 1], [1, 2]])
    expected = np.sort(np.concatenate([one_side, one_side, [0]]))[::-1] / 6
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_explained_variance_stands_beside_the_null_at_the_same_steps():
    steps = np.array([0, 1, 2, 4, 8, 16, 32])
    points = curve(7)
    made = trajectory(dict(zip(steps.tolist(), points, strict=True)), linear())
    np.testing.assert_array_equal(made.steps, steps)
    expected = random_walk_ratios(steps)[: len(made.explained)]
    np.testing.assert_array_equal(made.walk, expected)
    np.testing.assert_array_equal(made.walk_limit, random_walk_limit(len(made.explained)))
    label = made.directions.axes[0].label
    assert label == (f"PC 1: {made.explained[0]:.1%} of variance (random walk {expected[0]:.1%})")
    assert label in repr(made)


def test_trap_14_c3_coordinates_are_by_least_squares():
    plane = skewed(linear())
    displacement = 0.3 * plane.vectors[0] - 0.7 * plane.vectors[1]
    found = project(displacement, plane)
    np.testing.assert_allclose(found.coordinates, [0.3, -0.7], atol=1e-10)
    assert found.residual < 1e-13
    assert found.distance == pytest.approx(float(displacement.norm()), rel=1e-14)
    by_length = project(displacement, plane, method="cos").coordinates
    lengths = plane.norm().numpy()
    expected = (plane.vectors @ displacement).numpy() / lengths
    np.testing.assert_allclose(by_length, expected, rtol=1e-12)
    assert np.abs(by_length - [0.3, -0.7]).min() > 0.1


def test_trap_14_coordinates_in_a_skewed_plane_come_back():
    model = linear()
    plane = skewed(model)
    wanted = torch.tensor([[0.3, -0.7], [1.5, 0.2], [-0.4, 0.9], [0.0, 0.0]], dtype=torch.float64)
    off = torch.randn(4, P, generator=rng(5), dtype=torch.float64)
    off -= (torch.linalg.lstsq(plane.vectors.T, off.T).solution.T) @ plane.vectors
    off[3] = 0
    points = 2.0 + wanted @ plane.vectors + off
    made = trajectory(list(points), model)
    assert made.explained.size > 0
    for placed in (made.onto(plane), trajectory(list(points), model, directions=plane)):
        np.testing.assert_allclose(placed.coordinates, wanted, atol=1e-10)
        np.testing.assert_allclose(placed.residuals, off.norm(dim=1), atol=1e-10)
        assert placed.explained.size == placed.walk.size == 0
        assert placed.directions is plane


def test_residuals_near_the_plane_do_not_cancel():
    """Far along the plane and 1e-9 off it: norms subtracted would give noise of 1e-3."""
    plane = axes.given(linear(), torch.eye(P, dtype=torch.float64)[:2] * 10)
    off = torch.zeros(3, P, dtype=torch.float64)
    off[:2, 5] = torch.tensor([1e-9, 3e-9])
    points = torch.tensor([[1e4, 2e4], [-3e4, 1.0], [0, 0]], dtype=torch.float64) @ plane.vectors
    made = trajectory(list(points + off), linear(), directions=plane)
    np.testing.assert_allclose(made.residuals, [1e-9, 3e-9, 0], rtol=1e-6)


def test_a_straight_line_has_one_component():
    line = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None] * torch.arange(P)
    with pytest.warns(LandscapexWarning, match="on a straight line, so there is no component 2"):
        made = trajectory(list(line), linear())
    assert len(made.directions) == 1
    np.testing.assert_allclose(made.explained, [1.0])
    np.testing.assert_allclose(made.residuals, 0, atol=1e-12)
    assert made.coordinates.shape == (6, 1)


def test_rounding_is_not_taken_for_a_second_component():
    line = torch.linspace(0, 1, 6)[:, None] * torch.arange(P) / 7 + 100
    with pytest.warns(LandscapexWarning, match="component 2 is no longer than the rounding"):
        trajectory(list(line), linear(torch.float32))


def test_two_checkpoints_span_one_direction():
    points = curve()[[0, 4]]
    with pytest.warns(LandscapexWarning, match="on a straight line"):
        made = trajectory(list(points), linear())
    length = float((points[0] - points[1]).norm())
    np.testing.assert_allclose(made.coordinates, [[length], [0]], rtol=1e-12)


def test_checkpoints_that_are_all_the_same_have_no_plane():
    same = [torch.ones(P, dtype=torch.float64) for _ in range(3)]
    with pytest.raises(DirectionError, match="must differ from each other, got the same"):
        trajectory(same, linear())


def test_the_span_holds_the_trajectory_and_a_tenth_more():
    made = trajectory(list(curve()), linear())
    for (low, high), values in zip(made.span, made.coordinates.T, strict=True):
        room = 0.1 * np.ptp(values)
        assert low == pytest.approx(values.min() - room)
        assert high == pytest.approx(values.max() + room)


def test_points_of_every_kind_are_projected(tmp_path):
    model = batch_norm()
    states = []
    for k in range(4):
        state = copy.deepcopy(model.state_dict())
        state["0.weight"] += torch.randn(4, 3, generator=rng(k))
        states.append(state)
    made = trajectory(states, model)
    other = batch_norm()
    other.load_state_dict(states[1])
    flat = ParameterSpace(other).gather()
    for point in (states[1], other, flat):
        found = made.project(point)
        np.testing.assert_allclose(found.coordinates, made.coordinates[1], atol=1e-6)
        assert found.residual == pytest.approx(made.residuals[1], rel=1e-5)
        assert found.distance == pytest.approx(made.distances[1], rel=1e-6)
    with pytest.raises(ParameterMismatchError, match=r"must have 0.weight of shape \(4, 3\)"):
        made.project({"0.bias": torch.ones(4)})
    with pytest.raises(ArgumentTypeError, match=r"`point` must be a flat vector, .* got list"):
        made.project([1.0])
    with pytest.raises(DirectionError, match=r"must have shape \(34,\), got \(31,\)"):
        project(torch.ones(31), made.directions)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net.encoder."])
@pytest.mark.parametrize("file", [False, True])
def test_trap_22_points_are_projected_under_the_names_that_checkpoints_may_have(
    tmp_path, prefix, file
):
    """As by `checkpoints.load`: all names with one prefix, a tied weight under either name."""
    states = [{"embedding.weight": torch.randn(5, 3, generator=rng(k))} for k in range(4)]
    made = trajectory(states, lx.Objective(Tied(), (torch.arange(5),) * 2, "cross_entropy"))
    if file:
        made = Trajectory.load(made.save(tmp_path / "run"))
    expected = made.project(states[1])
    np.testing.assert_allclose(expected.coordinates, made.coordinates[1], rtol=1e-6)
    for name in ("embedding.weight", "head.weight"):
        point = {prefix + name: states[1]["embedding.weight"], "optimizer.lr": torch.ones(())}
        found = made.project(point)
        np.testing.assert_array_equal(found.coordinates, expected.coordinates)
        assert (found.residual, found.distance) == (expected.residual, expected.distance)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"n": 0}, ArgumentError, "`n` must be a whole number of at least 1, got 0"),
        ({"origin": "mean"}, ArgumentError, "`origin` must be 'first', 'last' or a number from -9"),
        ({"origin": 9}, ArgumentError, "a number from -9 to 8, got 9"),
        ({"origin": [0]}, ArgumentError, r"a number from -9 to 8, got \[0\]"),
        ({"ignore": "copy"}, ArgumentError, "`ignore` must be 'bias_bn' or None, got 'copy'"),
        ({"drawn": True}, ArgumentTypeError, "`drawn` must be False without an Objective"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        trajectory(list(curve()), linear(), **options)


def test_what_does_not_fit_is_refused():
    points, model = curve(), linear()
    with pytest.raises(ArgumentError, match="must hold at least two checkpoints, got 1"):
        trajectory([points[0]], model)
    with pytest.raises(ArgumentTypeError, match="must be an Objective or a module, got int"):
        trajectory(list(points), 3)
    with pytest.raises(ParameterMismatchError, match="checkpoint 1 must have shape"):
        trajectory([points[0], points[1][:5]], model)
    states = [{"0.weight": torch.ones(2, 2)}] * 1 + [dict(model.named_parameters())]
    with pytest.raises(ParameterMismatchError, match=r"checkpoint 0 must fit .*0.bias: missing"):
        trajectory(states, model)
    made = trajectory(list(points), model)
    other = axes.random(nn.Linear(2, 1), 2)
    with pytest.raises(DirectionError, match="must be over the parameters of the trajectory"):
        made.onto(other)
    with pytest.raises(DirectionError, match="must be over the objective's"):
        trajectory(list(points), model, directions=other)
    parallel = axes.given(model, torch.ones(2, P, dtype=torch.float64))
    for call in (made.onto, lambda d: project(torch.ones(P), d)):
        with pytest.raises(DirectionError, match="must not be parallel"):
            call(parallel)
    with pytest.raises(ArgumentError, match="`method` must be 'least_squares' or 'cos'"):
        made.project(points[0], method="sin")
