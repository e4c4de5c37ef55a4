"""Runs beside the line to their solution: coordinates without cancellation, and the cost strip."""

from __future__ import annotations

import copy
import math
import os
import signal

import models
import numpy as np
import pytest
import reference
import torch
from torch import nn

import landscapex as lx
from landscapex import projections
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    GridError,
    LandscapexWarning,
    Terminated,
)
from landscapex.projections import cost_strip, residual_coordinates
from landscapex.studies import coststrip
from landscapex.trajectories import runs

QUIET = {"progress": False}


def walk(size=40, steps=9, dtype=torch.float64, seed=0):
    """A path through the space of ``size`` numbers."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(steps + 1, size, generator=generator, dtype=torch.float64)
    return drawn.cumsum(0).to(dtype)


def slow_coordinates(points, solution):
    """The formulas of the paper, in NumPy."""
    points = np.asarray(points, dtype=np.float64)
    way = points[solution] - points[0]
    u = way / np.linalg.norm(way)
    alpha = (points - points[0]) @ u
    residual = points - points[0] - alpha[:, None] * u
    return alpha, np.linalg.norm(residual, axis=1), np.linalg.norm(points, axis=1)


@pytest.fixture(scope="module")
def run():
    """Six states of a small network with batch norm, as training left them; model and data."""
    case = models.case("conv")
    model, states = case.model.train(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(6):
        states.append(copy.deepcopy(model.state_dict()))
        for x, y in case.batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval(), states, case.batches


# --- Coordinates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("solution", [-1, 9, 6, -3])
def test_coordinates_against_the_formulas(solution):
    points = walk()
    found = residual_coordinates(list(points), solution=solution)
    alpha, beta, norm = slow_coordinates(points, solution)
    np.testing.assert_allclose(found.alpha, alpha, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.beta, beta, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.norm, norm, rtol=1e-12)
    assert found.solution == solution % 10
    assert found.length == pytest.approx(alpha[solution], rel=1e-12)
    assert found.steps.tolist() == list(range(10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a3_every_checkpoint_is_put_together_again(dtype):
    points = walk(dtype=dtype)
    found = residual_coordinates(list(points), solution=6)
    for t, point in enumerate(points):
        again = (
            points[0].double() + found.alpha[t] * found.unit + found.beta[t] * found.direction(t)
        )
        assert torch.allclose(again, point.double(), rtol=1e-12, atol=1e-12)
    assert found.beta[6] == 0 == found.alpha[0] == found.beta[0]


def test_a_small_residual_beside_a_long_way_keeps_its_digits():
    """``|d|^2 - alpha^2`` has none left: a residual of 1e-9 of the way comes out as 0 or 1e-8."""
    generator = torch.Generator().manual_seed(1)
    way, aside = torch.randn(2, 200, dtype=torch.float64, generator=generator)
    aside -= (aside @ way) / (way @ way) * way
    aside *= 1e-9 * way.norm() / aside.norm()
    found = residual_coordinates([torch.zeros_like(way), 0.7 * way + aside, way])
    assert found.beta[1] == pytest.approx(float(aside.norm()), rel=1e-6)


def test_points_on_the_line_have_no_residual():
    way = walk()[3]
    found = residual_coordinates([way * 0, way * 0.3, way * 1.9, way], solution=3)
    assert found.beta.tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(found.alpha / found.length, [0, 0.3, 1.9, 1], rtol=1e-14)


def test_directions_are_unit_vectors_across_the_line(generators_untouched):
    found = residual_coordinates(list(walk()), solution=6)
    for t in range(-10, 10):
        v = found.direction(t)
        assert float(v.norm()) == pytest.approx(1, rel=1e-14)
        assert abs(float(v @ found.unit)) < 1e-14
    # without a residual it is drawn, the same every time
    assert torch.equal(found.direction(6), found.direction(-4))


def test_a_solution_may_be_none_of_the_checkpoints():
    points = walk()
    found = residual_coordinates(list(points[:5]), solution=points[7])
    alpha, beta, _ = slow_coordinates(points, 7)
    np.testing.assert_allclose(found.alpha, alpha[:5], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.beta, beta[:5], rtol=1e-12, atol=1e-12)
    assert found.solution is None


def test_what_the_projection_leaves_out():
    found = residual_coordinates([torch.tensor(p) for p in ([3.0, 0], [3.0, 4], [7.0, 0])])
    assert found.line_share[1:].tolist() == [0, 1]
    assert math.isnan(found.line_share[0])
    assert found.relative_residual.tolist() == [0, 4 / 5, 0]


def test_states_count_by_their_parameters_alone(run, tmp_path):
    """Buffers are no coordinates; names, not places, decide what belongs together."""
    model, states, _ = run
    names = [n for n, _ in model.named_parameters()]
    points = [torch.cat([s[n].reshape(-1) for n in names]) for s in states]
    expected = residual_coordinates(points)
    turned = [dict(reversed(s.items())) for s in states]
    for k, s in enumerate(states):
        torch.save({f"module.{n}": t for n, t in s.items()}, tmp_path / f"step-{k}.pt")
    modules = [copy.deepcopy(model) for _ in states]
    for m, s in zip(modules, states, strict=True):
        m.load_state_dict(s)
    for checkpoints in (states, turned, tmp_path, modules):
        found = residual_coordinates(checkpoints, model)
        np.testing.assert_allclose(found.alpha, expected.alpha, rtol=1e-12)
        np.testing.assert_allclose(found.beta, expected.beta, rtol=1e-12)


def test_arrays_are_taken_as_flat_vectors():
    points = walk()
    found = residual_coordinates(points.numpy())
    assert np.array_equal(found.alpha, residual_coordinates(list(points)).alpha)
    with pytest.raises(ValueError, match="read-only"):
        found.alpha[0] = 1


def test_a_checkpoint_that_is_not_finite_has_no_coordinates():
    points = walk().clone()
    points[2, 5] = torch.nan
    found = residual_coordinates(list(points))
    assert np.flatnonzero(np.isnan(found.alpha)).tolist() == [2]
    with pytest.raises(ArgumentError, match="checkpoint 2 must be finite"):
        found.direction(2)
    assert "largest residual" in repr(found)


def test_one_parameter_leaves_no_room_for_a_residual():
    """There is no direction across the line: none is made of NaN."""
    found = residual_coordinates([torch.tensor([x]) for x in (0.5, 2.0, 1.75)])
    assert found.beta.tolist() == [0, 0, 0]
    assert found.alpha.tolist() == [0, 1.5, 1.25]
    message = "a direction across the line to the solution must have at least 2 parameters .* got 1"
    with pytest.raises(ArgumentError, match=message):
        found.direction(1)
    objective = lx.Objective(
        nn.Linear(1, 1, bias=False), (torch.ones(2, 1), torch.ones(2, 1)), "mse_loss"
    )
    run = [torch.tensor([x]) for x in (0.5, 2.0)]
    for offsets in (None, [-1.0, 0.0, 1.0]):
        with pytest.raises(ArgumentError, match=message):
            cost_strip(objective, run, offsets=offsets, **QUIET)
    two = residual_coordinates([torch.tensor([x, 3.0]) for x in (0.5, 2.0)]).direction(0)
    assert two.abs().tolist() == pytest.approx([0, 1], abs=1e-15)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"solution": 10}, ArgumentError, "`solution` must be one of the 10 checkpoints, got 10"),
        ({"solution": 0}, ArgumentError, "a finite distance above 0 from the first.* got 0.0"),
        ({"solution": {"w": torch.ones(1)}}, ArgumentTypeError, "`model` must be given unless"),
    ],
)
def test_solutions_that_are_none_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        residual_coordinates(list(walk()), **options)
    with pytest.raises(ArgumentError, match="`t` must be from -10 to 9, got 10"):
        residual_coordinates(list(walk())).direction(10)


def test_states_without_a_model_are_refused(run):
    with pytest.raises(ArgumentTypeError, match="`model` must be given unless all checkpoints"):
        residual_coordinates(run[1])


# --- The cost strip ------------------------------------------------------------------------------


def slow_strip(model, states, data, along, offsets):
    """One state_dict per point."""
    names = [n for n, _ in model.named_parameters()]
    points = [torch.cat([s[n].reshape(-1) for n in names]).double() for s in states]
    out = np.empty((len(states), len(offsets)))
    for t, state in enumerate(states):
        for j, b in enumerate(offsets):
            point = points[0] + along.alpha[t] * along.unit + b * along.direction(t)
            copied, start = copy.deepcopy(state), 0
            for n in names:
                size = copied[n].numel()
                copied[n] = point[start : start + size].view(copied[n].shape).float()
                start += size
            moved = copy.deepcopy(model)
            moved.load_state_dict(copied)
            out[t, j] = models.Case(moved, data, "cross_entropy").reference()
    return out


def test_every_point_of_the_strip_against_a_loop(run):
    model, states, data = run
    before = reference.everything(model)
    strip = cost_strip(lx.Objective(model, data, "cross_entropy"), states, points=5, **QUIET)
    reach = 1.5 * strip.coordinates.beta.max()
    np.testing.assert_allclose(strip.offsets, np.linspace(-reach, reach, 5), rtol=1e-14)
    assert strip.offsets[2] == 0
    expected = slow_strip(model, states, data, strip.coordinates, strip.offsets)
    np.testing.assert_allclose(strip.loss, expected, rtol=2e-5)
    assert strip.complete
    assert reference.changes(before, reference.everything(model)) == []


def test_the_run_lies_on_the_strip(run):
    """Each column has the buffers of its own checkpoint, and passes through it exactly."""
    model, states, data = run
    objective = lx.Objective(model, data, "cross_entropy")
    along = residual_coordinates(states, model)
    strip = cost_strip(objective, states, offsets=sorted(set(along.beta)), **QUIET)
    for t, state in enumerate(states):
        at = strip.offsets.tolist().index(along.beta[t])
        true = objective.loss(state)
        assert strip.loss[t, at] == strip.true_loss[t] == true


def test_a_strip_opens_its_run_once_and_reads_a_checkpoint_once_per_column(
    run, tmp_path, monkeypatch
):
    """A run that is still being recorded must not grow between two looks at it."""
    model, states, data = run
    for k, state in enumerate(states):
        torch.save(state, tmp_path / f"step-{k}.pt")
    (tmp_path / "notes.pt").touch()
    objective = lx.Objective(model, data, "cross_entropy")
    expected = cost_strip(objective, states, points=3, **QUIET)
    read, count = runs.Checkpoint.read, []

    def counted(checkpoint):
        if not count:
            torch.save(states[0], tmp_path / "step-6.pt")  # now there is one more
        count.append(checkpoint.step)
        return read(checkpoint)

    monkeypatch.setattr(runs.Checkpoint, "read", counted)
    with pytest.warns(LandscapexWarning, match="no step in the names of notes.pt") as warned:
        strip = cost_strip(objective, tmp_path, points=3, **QUIET)
    assert len(warned) == 1
    np.testing.assert_array_equal(strip.loss, expected.loss)
    # the line is between the last and the first; then its coordinates; then the columns
    assert count == [5, 0, *range(6), *range(6)]


def test_a_checkpoint_that_is_not_finite_leaves_its_column_out(run):
    model, states, data = run
    broken = copy.deepcopy(states)
    broken[1]["conv.weight"][0] = torch.nan
    broken[3]["bn.running_mean"][0] = torch.nan  # its parameters are finite
    objective = lx.Objective(model, data, "cross_entropy")
    with pytest.warns(LandscapexWarning, match="2 of 6 checkpoints are not finite"):
        strip = cost_strip(objective, broken, points=3, **QUIET)
    assert np.flatnonzero(~strip.evaluated.any(axis=1)).tolist() == [1, 3]
    assert np.isnan(strip.loss[[1, 3]]).all()
    assert "bn.running_mean" in strip.provenance["notes"][0]
    assert not strip.complete
    assert "12 of 18 evaluated" in repr(strip)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_no_point_is_lost_on_a_request_to_stop(run, signum):
    model, states, data = run
    calls = []

    def stopping(net, batch):
        calls.append(1)
        if len(calls) == 40:
            os.kill(os.getpid(), signum)
        return nn.functional.cross_entropy(net(batch[0]), batch[1])

    whole = cost_strip(lx.Objective(model, data, "cross_entropy"), states, points=5, **QUIET)
    before, handlers = reference.everything(model), signal.getsignal(signum)
    signal.signal(signum, signal.SIG_DFL if signum == signal.SIGTERM else handlers)
    with pytest.raises(
        (KeyboardInterrupt, Terminated), match=r"of 30 points are in `\.surface`"
    ) as e:
        cost_strip(lx.Objective(model, data, stopping), states, points=5, **QUIET)
    part = e.value.surface
    count = int(part.evaluated.sum())
    assert 5 < count < 30
    np.testing.assert_allclose(part.loss[part.evaluated], whole.loss[part.evaluated], rtol=1e-6)
    assert np.isnan(part.loss[~part.evaluated]).all()
    assert np.isnan(part.true_loss[-1])  # nothing is begun after the request
    assert reference.changes(before, reference.everything(model)) == []
    signal.signal(signum, handlers)


def test_a_strip_becomes_a_dataset(run):
    model, states, data = run
    strip = cost_strip(lx.Objective(model, data, "cross_entropy"), states, points=3, **QUIET)
    dataset = strip.to_xarray()
    assert dataset["loss"].dims == ("checkpoint", "offset")
    assert np.array_equal(dataset["loss"], strip.loss)
    assert np.array_equal(dataset["alpha"], strip.coordinates.alpha)
    assert dataset["true_loss"].values.tolist() == strip.true_loss.tolist()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"points": 1}, GridError, "`points` must be a whole number of at least 2, got 1"),
        ({"offsets": [1.0, 0.0]}, GridError, "`offsets` must be finite increasing numbers"),
        ({"offsets": [0.0, np.inf]}, GridError, "`offsets` must be finite increasing numbers"),
        ({"offsets": []}, GridError, "`offsets` must be finite increasing numbers"),
    ],
)
def test_strips_that_cannot_be_had_are_refused(run, options, error, message):
    model, states, data = run
    objective = lx.Objective(model, data, "cross_entropy")
    with pytest.raises(error, match=message):
        cost_strip(objective, states, **options)
    with pytest.raises(ArgumentTypeError, match="`objective` must be an Objective, got ConvNet"):
        cost_strip(model, states)
    with pytest.raises(ArgumentError, match="the run must leave the line to its solution"):
        cost_strip(objective, [states[0], states[5]])


# --- Pictures ------------------------------------------------------------------------------------


def test_the_picture_of_residuals_shows_runs_and_the_random_walk(run):
    model, states, _ = run
    found = residual_coordinates(states, model, solution=3, label="training")
    left, right = found.plot(title="there").axes
    texts = [t.get_text() for t in left.get_legend().get_texts()]
    assert texts == ["start", "solution", "a random walk of as many steps, n → ∞", "training"]
    drawn = next(x for x in left.lines if len(x.get_xdata()) == 6)
    assert np.array_equal(drawn.get_ydata(), found.beta / found.length)
    assert np.array_equal(right.lines[1].get_ydata(), found.beta)
    percent = 100 * found.relative_residual.max()
    (text,) = [t.get_text() for t in right.get_legend().get_texts() if "at most" in t.get_text()]
    assert f"{percent:.3g} % of ‖θ‖" in text


def test_the_picture_of_several_runs_compares_them(run):
    model, states, _ = run
    found = [residual_coordinates(states, model, solution=k) for k in (3, 5)]
    left, right = found[0].plot(found[1], labels=["early", "late"]).axes
    assert [t.get_text() for t in left.get_legend().get_texts()][-2:] == ["early", "late"]
    assert np.array_equal(right.lines[1].get_ydata(), found[1].relative_residual)
    with pytest.raises(ArgumentError, match=r"`labels` must be one name per result \(2\)"):
        found[0].plot(found[1], labels=["one"])


def test_the_picture_of_a_strip_has_the_run_on_it(run):
    model, states, data = run
    strip = cost_strip(lx.Objective(model, data, "cross_entropy"), states, points=5, **QUIET)
    ax, *_ = strip.plot(scale="linear", title="there").axes
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts[:2] == ["the run", "solution"]
    assert "columns in the order of time; no plane: v(t) turns" in texts
    assert "2 columns have no residual: v(t) is random" in texts
    x, y, z = ax.lines[0].get_data_3d()
    along = strip.coordinates
    assert np.array_equal(x, along.alpha)
    assert np.array_equal(y, along.beta)
    assert np.array_equal(z, strip.true_loss)
    (cells,) = ax.collections
    assert len(cells.get_facecolor()) == 5 * 4
    assert np.all(cells.get_facecolor()[:, 3] == 1)  # of a fold, only what is in front is seen
    with pytest.raises(ArgumentError, match="`scale` must be one of"):
        strip.plot(scale="cubic")


def test_the_namespace_is_complete():
    assert projections.CostStrip is coststrip.CostStrip
    assert set(projections.__all__) == {
        "CostStrip", "ResidualCoordinates", "cost_strip", "residual_coordinates",
    }  # fmt: skip
