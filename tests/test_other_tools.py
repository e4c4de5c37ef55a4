"""Planes and models: where published tools are wrong on an input on which landscapex is right.

loss-landscapes 3.0.6 and landscaper 1.3.1, as they are. Each test shows the defect, with its size,
and asserts what landscapex does on the same input; the numbers are those of the list of traps.
"""

from __future__ import annotations

import copy
import math

import matplotlib.axes
import matplotlib.pyplot as plt
import numpy as np
import other_tools
import pytest
import reference
import torch
from other_tools import Function, loss_landscapes
from other_tools_cases import cross_entropy, digits, flat, named
from torch import Tensor, nn
from torch.nn import functional as F

import landscapex as lx

CLOSE = 1e-4  # relative; float32 against float64


class Plane(nn.Module):
    """Two parameters x and y, at (1, 1): the loss is 10 x + y."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(1))
        self.y = nn.Parameter(torch.ones(1))

    def forward(self) -> Tensor:
        return (10 * self.x + self.y).squeeze()


UNIT = [
    {"x": torch.ones(1), "y": torch.zeros(1)},
    {"x": torch.zeros(1), "y": torch.ones(1)},
]


def position(module: Plane) -> np.ndarray:
    return np.array([float(module.x), float(module.y)])


def plane_loss(module: Plane, batch: object) -> Tensor:
    del batch
    return module()


def exact(
    model: nn.Module,
    directions: list[dict[str, Tensor]],
    coordinates: tuple[np.ndarray, np.ndarray],
    inputs: Tensor,
    labels: Tensor,
) -> np.ndarray:
    """The surface in float64, one state_dict per point."""
    wide = copy.deepcopy(model).double()
    loss = cross_entropy(inputs.double(), labels)
    return reference.surface(wide, directions, coordinates, loss)


def error(values: np.ndarray, right: np.ndarray) -> float:
    """The largest relative error."""
    return float(np.abs(values / right - 1).max())


def test_trap_01_every_odd_row_of_loss_landscapes_is_one_step_off():
    model, inputs, labels = digits()
    directions = named(lx.directions.random(model))
    points = 7
    axis = np.linspace(-1, 1, points)
    extended = np.concatenate([[2 * axis[0] - axis[1]], axis])
    wide = exact(model, directions, (axis, extended), inputs, labels)
    right, one_step_off = wide[:, 1:], wide[:, :-1]

    theirs = other_tools.loss_landscapes_surface(
        model, directions, (axis, axis), cross_entropy(inputs, labels)
    )
    ours = lx.surface(
        model,
        [(inputs, labels)],
        "cross_entropy",
        directions=directions,
        points=points,
        progress=False,
    ).loss

    assert error(theirs[::2], right[::2]) < CLOSE
    assert error(theirs[1::2], one_step_off[1::2]) < CLOSE
    assert error(theirs[1::2], right[1::2]) > 0.5
    assert error(ours, right) < CLOSE


def test_trap_01_landscaper_adds_up_rounding_errors_step_by_step():
    """The ends of a line are off by ten roundings of a weight; ours are rounded once."""
    model, inputs, _ = digits()
    points, distance = 51, 0.5
    directions = other_tools.landscaper_directions(model, named(lx.directions.random(model, 1)))
    steps = other_tools.landscaper_steps(points, distance)
    right = flat(model.parameters()) + torch.from_numpy(steps)[:, None] * flat(
        directions[0].values()
    )

    theirs: list[Tensor] = []
    other_tools.landscaper_surface(
        model,
        directions,
        points,
        distance,
        lambda module: theirs.append(flat(module.parameters())) or 0.0,
    )
    ours: list[Tensor] = []

    def noted(module: nn.Module, batch: object) -> Tensor:
        ours.append(flat(module.parameters()))
        return module(inputs[:1]).sum()

    objective = lx.Objective(model, None, noted, check=False)
    span = (steps[0], steps[-1])
    lx.line(objective, directions=directions, span=span, points=points, progress=False)
    error_of_theirs = float((torch.stack(theirs) - right).abs().max())
    error_of_ours = float((torch.stack(ours[-points:]) - right).abs().max())
    assert error_of_theirs > 5 * error_of_ours
    # half a unit in the last place of the largest weight
    assert error_of_ours <= 2.0 ** (math.floor(math.log2(float(right.abs().max()))) - 24)


def test_trap_02_loss_landscapes_restores_by_subtraction():
    """Most weights differ in their last bits after one perturbation, and more after 49."""
    model, inputs, labels = digits()
    before = copy.deepcopy(model)
    changed = []
    for number in (1, 49):
        moved = copy.deepcopy(model)
        metric = other_tools.loss_landscapes_metrics.LossPerturbations(
            F.cross_entropy, inputs, labels, number, None
        )
        loss_landscapes.point(moved, metric)
        differs = flat(moved.parameters()) != flat(before.parameters())
        changed.append(float(differs.double().mean()))
    assert changed[0] > 0.5
    assert changed[1] > 0.8

    lx.surface(model, [(inputs, labels)], "cross_entropy", points=7, progress=False)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)
    )


@pytest.mark.parametrize(("points", "is_node"), [(5, False), (7, False), (6, True)])
def test_trap_03_the_model_is_no_point_of_a_plane_with_odd_steps(points, is_node):
    """And no such plane is centred on it: loss-landscapes steps before it evaluates."""
    torch.manual_seed(0)
    visited = loss_landscapes.random_plane(Plane(), Function(position), steps=points)
    offset = np.abs(visited - 1).max(-1)
    assert (offset.min() < 1e-6) == is_node
    # the middle of its grid is off by half of a step or more
    assert np.abs(visited.mean((0, 1)) - 1).max() > 0.04

    ours = lx.surface(
        Plane(), None, plane_loss, directions=UNIT, points=points // 2 * 2 + 1, progress=False
    )
    middle = points // 2
    assert [axis[middle] for axis in ours.coordinates] == [0, 0]
    assert ours.loss[middle, middle] == ours.center_loss == 11
    assert ours.loss.mean() == pytest.approx(11)


@pytest.mark.parametrize(("points", "real"), [(5, 0.4), (51, 25 / 51), (6, 1 / 3)])
def test_trap_04_landscaper_labels_a_point_that_it_does_not_reach(points, real):
    """The last point of 51 is labelled 0.5 and lies at 0.490, in its own unit."""
    distance = 0.5
    unit = math.sqrt(2)  # the length of the parameters of the plane
    losses, axes = other_tools.landscaper_surface(
        Plane(), UNIT[:1], points, distance, lambda module: module().item()
    )
    assert axes[0][-1] == distance
    # the maximum carries noise (trap 7); its neighbour does not
    step = (losses[-2] - losses[-3]) / 10 / unit
    reached = (losses[-2] - 11) / 10 / unit + step
    assert reached == pytest.approx(real, abs=1e-5)

    ours = lx.line(
        Plane(), None, plane_loss, directions=UNIT[:1], span=0.5, points=points, progress=False
    )
    displaced = (ours.loss - 11) / 10
    np.testing.assert_allclose(displaced, ours.coordinates[0], atol=1e-7)
    assert ours.coordinates[0][-1] == 0.5


def test_trap_04_a_larger_distance_makes_the_plane_of_loss_landscapes_smaller():
    step = []
    for distance in (1, 2, 4):
        torch.manual_seed(0)
        visited = loss_landscapes.random_plane(
            Plane(), Function(position), steps=5, distance=distance
        )
        step.append(np.linalg.norm(visited[0, 1] - visited[0, 0]))
    assert step[0] / step[1] == pytest.approx(2, rel=1e-4)
    assert step[0] / step[2] == pytest.approx(4, rel=1e-4)

    for span in (1, 2, 4):
        ours = lx.line(
            Plane(), None, plane_loss, directions=UNIT[:1], span=span, points=5, progress=False
        )
        assert (ours.loss[-1] - 11) / 10 == pytest.approx(span, rel=1e-6)


def test_trap_05_landscaper_gives_each_loss_the_coordinates_of_another_point():
    """``10 x + y`` on a 3x5 grid: 12 of 15 points; on 5x5 its picture is transposed."""
    ours = lx.surface(
        Plane(), None, plane_loss, directions=UNIT, points=(3, 5), span=2, progress=False
    )
    theirs = other_tools.landscaper.LossLandscape(ours.loss, list(ours.coordinates))
    expected = 11 + 10 * theirs.coords[:, 0] + theirs.coords[:, 1]
    assert np.sum(np.abs(theirs.loss.ravel() - expected) > 1e-6) == 12

    for point in ours.to_xarray()["loss"].stack(point=("alpha", "beta")):
        assert float(point) == pytest.approx(11 + 10 * float(point.alpha) + float(point.beta))


def test_trap_05_the_contour_plot_of_landscaper_is_transposed(monkeypatch):
    drawn = {}
    real = matplotlib.axes.Axes.contourf

    def contourf(self, x, y, z, **options):
        drawn.update(x=x, y=y, z=z)
        return real(self, x, y, z, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "contourf", contourf)
    axis = np.linspace(-0.5, 0.5, 5)
    losses = 11 + 10 * axis[:, None] + axis  # [i, j] at (axis[i], axis[j])
    figure = other_tools.landscaper.LossLandscape(losses, [axis, axis]).show_contour(show=False)
    assert "First" in figure.axes[0].get_xlabel()
    np.testing.assert_allclose(drawn["z"], 11 + drawn["x"] + 10 * drawn["y"])  # not 10 x + y

    ours = lx.surface(
        Plane(), None, plane_loss, directions=UNIT, points=5, span=0.5, progress=False
    )
    np.testing.assert_allclose(ours.loss, losses, rtol=1e-6)
    drawn.clear()
    ours.plot()
    x, y = np.broadcast_arrays(drawn["x"], np.reshape(drawn["y"], (-1, 1)))
    np.testing.assert_allclose(drawn["z"], 11 + 10 * x + y, rtol=1e-6)
    plt.close("all")


def test_trap_07_landscaper_replaces_what_is_not_finite_and_adds_noise_to_the_maximum():
    """NaN becomes the mean, infinity the maximum, and both and the maximum then get noise."""

    def loss(module: nn.Module, batch: object = None) -> Tensor:
        x, y = position(module)
        if x > 1.35 and y > 1.35:
            return torch.tensor(math.nan)
        return torch.tensor(math.inf) if x < 0.65 and y < 0.65 else module()

    theirs = []
    for seed in (0, 1):
        np.random.seed(seed)  # noqa: NPY002  (it draws from the global generator)
        losses, _ = other_tools.landscaper_surface(Plane(), UNIT, 5, 0.5, lambda m: float(loss(m)))
        theirs.append(losses)
    assert np.isfinite(theirs).all()
    moved = theirs[0] != theirs[1]
    assert moved.sum() == 2  # the infinite point and the maximum
    finite = ~moved
    finite[-1, -1] = False
    # NaN, at the highest corner of a plane, now looks like the middle
    assert theirs[0][-1, -1] == pytest.approx(11, abs=1)

    with pytest.warns(lx.errors.LandscapexWarning, match="2 of 25 losses are NaN or infinite"):
        ours = lx.surface(
            Plane(), None, loss, directions=UNIT, points=5, span=0.4 * math.sqrt(2), progress=False
        )
    assert np.isnan(ours.loss[-1, -1])
    assert ours.loss[0, 0] == math.inf
    assert np.isfinite(ours.loss).sum() == 23
    assert ours.nonfinite == 2
    np.testing.assert_allclose(ours.loss[finite], theirs[0][finite], rtol=1e-5)


def with_batch_norm(inputs: Tensor) -> nn.Module:
    """In training mode, with running statistics that differ from those of the data."""
    model = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    nn.init.normal_(model[1].bias)
    model[1].running_mean += 2
    model(inputs)
    return model


@pytest.mark.parametrize("tool", ["loss-landscapes", "landscaper"])
def test_trap_17_both_evaluate_in_training_mode_and_change_running_statistics(tool):
    _, inputs, labels = digits()
    model = with_batch_norm(inputs)
    before = copy.deepcopy(model.state_dict())
    loss = cross_entropy(inputs, labels)
    right = loss(copy.deepcopy(model).eval())

    theirs = copy.deepcopy(model)
    seen: list[float] = []

    def noted(module: nn.Module) -> float:
        seen.append(loss(module))
        return seen[-1]

    if tool == "landscaper":
        draw = other_tools.landscaper_utils.generate_random_orthogonal_directions(theirs, 1)
        named_draw = dict(zip(dict(theirs.named_parameters()), draw[0], strict=True))
        other_tools.landscaper_surface(theirs, [named_draw], 3, 0.1, noted)
        at_center = seen[1]
    else:
        at_center = loss_landscapes.point(theirs, Function(noted))
    assert abs(at_center / right - 1) > 0.02
    assert int(theirs[1].num_batches_tracked) == len(seen) + 1
    assert not torch.equal(theirs[1].running_var, before["1.running_var"])

    ours = lx.surface(model, [(inputs, labels)], "cross_entropy", points=3, progress=False)
    assert ours.loss[1, 1] == pytest.approx(right, rel=1e-6)
    assert model.training
    assert model[1].training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_trap_21_loss_landscapes_leaves_the_model_moved_and_without_gradients():
    """Unless it is told to copy the model: at a distance of 0.7 times its own length."""
    model, inputs, labels = digits()
    before = flat(model.parameters())
    theirs = copy.deepcopy(model)
    loss_landscapes.random_plane(theirs, Function(lambda module: 0.0), steps=7)
    assert float((flat(theirs.parameters()) - before).norm() / before.norm()) > 0.5
    assert not any(p.requires_grad for p in theirs.parameters())

    lx.surface(model, [(inputs, labels)], "cross_entropy", points=3, progress=False)
    assert torch.equal(flat(model.parameters()), before)
    assert all(p.requires_grad for p in model.parameters())


def test_landscaper_restores_the_model_by_copy():
    """Traps 2 and 21 are not its own."""
    model, inputs, labels = digits()
    before = copy.deepcopy(model)
    other_tools.landscaper_surface(
        model, named(lx.directions.random(model)), 3, 0.5, cross_entropy(inputs, labels)
    )
    for a, b in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.requires_grad
