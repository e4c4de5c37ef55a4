"""Checkpoints of a trajectory: read again as they were, losses with their own statistics."""

from __future__ import annotations

import copy
import gc
import types

import numpy as np
import pytest
import torch
from torch import nn
from trajectory_cases import P, Tied, batch_norm, curve, linear, rng, skewed

import landscapex as lx
from landscapex import axes
from landscapex.errors import (
    ArgumentError,
    LandscapexWarning,
    NonFiniteCenterError,
    ParameterMismatchError,
)
from landscapex.model.parameters import ParameterSpace
from landscapex.trajectories import principal
from landscapex.trajectories.plane import trajectory
from landscapex.trajectories.principal import Rows, fit, random_walk_ratios
from landscapex.trajectories.recorder import Recorder
from landscapex.trajectories.runs import open_run


def test_blocks_of_columns_and_files_read_again_give_the_same(tmp_path):
    points, model = curve(dtype=torch.float32), linear(torch.float32)
    space = ParameterSpace(model)
    sizes = [(e.name, e.shape, e.offset, e.end) for e in space.entries]
    for t, flat in enumerate(points):
        state = {f"net.{n}": flat[a:b].reshape(s).clone() for n, s, a, b in sizes}
        torch.save(state, tmp_path / f"model_{t}.pt")
    whole = trajectory(list(points), model, n=3)
    rows = Rows(open_run(tmp_path), space, kept=0, block=9 * 8 * 11)  # 11 columns at once
    for t in range(9):
        assert torch.equal(rows.read(t)[0], points[t])
    assert [b.shape[1] for _, b in rows.blocks()] == [11, 11, 11, 11, 11, 11, 4]
    assert torch.equal(torch.cat([b for _, b in rows.blocks()], 1), points.double())
    used = np.ones(9, bool)
    found = principal.principal_components(rows, 3, used=used, origin=8, center=True)
    np.testing.assert_allclose(found.vectors, whole.directions.vectors, atol=1e-7)
    placed = fit(rows, whole.directions.vectors, 8)
    np.testing.assert_allclose(placed.coordinates, whole.coordinates, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(placed.residuals, whole.residuals, rtol=1e-9, atol=1e-13)


def test_a_checkpoint_that_changes_while_it_is_read_is_an_error(tmp_path):
    model = linear(torch.float32)
    for t in range(2):
        torch.save(linear(torch.float32).state_dict(), tmp_path / f"model_{t}.pt")
    rows = Rows(open_run(tmp_path), ParameterSpace(model), kept=0)
    for t in range(2):
        rows.read(t)
    torch.save({"other": torch.ones(1)}, tmp_path / "model_1.pt")
    with pytest.raises(ParameterMismatchError, match="must not change while it is read"):
        list(rows.blocks())


@pytest.mark.parametrize("stored", ["files", "states", "vectors"])
def test_numbers_do_not_depend_on_what_fits_into_memory(tmp_path, stored):
    """Checkpoints in float64 of a model in float32 are rounded, kept in memory or read again."""
    space = ParameterSpace(linear(torch.float32))
    points = list(curve(dtype=torch.float64) / 3)
    if stored != "vectors":
        points = [
            {e.name: flat[e.offset : e.end].view(e.shape) for e in space.entries} for flat in points
        ]
    if stored == "files":
        for t, state in enumerate(points):
            torch.save({n: s.clone() for n, s in state.items()}, tmp_path / f"model_{t}.pt")
    blocks = []
    for kept in (0, 1 << 20):
        rows = Rows(open_run(tmp_path if stored == "files" else points), space, kept=kept)
        for t in range(len(rows)):
            rows.read(t)
        blocks.append(torch.cat([block for _, block in rows.blocks()], 1))
    assert torch.equal(*blocks)
    assert torch.equal(blocks[0], (curve() / 3).float().double())


def bytes_held(root, *, apart_from):
    """Of all tensors that an object leads to; those of a model do not count."""
    known = {id(x) for x in apart_from} | {t.untyped_storage().data_ptr() for t in apart_from}
    todo, storages = [root], {}
    while todo:
        thing = todo.pop()
        if id(thing) in known or isinstance(thing, (type, types.ModuleType, types.FunctionType)):
            continue
        known.add(id(thing))
        if isinstance(thing, torch.Tensor):
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        todo += gc.get_referents(thing)
    return sum(size for place, size in storages.items() if place not in known)


def test_checkpoints_that_are_files_are_not_kept_in_memory(tmp_path):
    model = linear()
    with Recorder(tmp_path, model) as record:
        for step in range(20):
            record(step)
            with torch.no_grad():
                model[0].weight += torch.randn(5, 12, generator=rng(step), dtype=torch.float64)
    one, live = 8 * P, [*model.parameters(), *model.buffers()]
    made = trajectory(tmp_path, model)
    assert bytes_held(made, apart_from=live) <= 3 * one  # two directions and the centre
    plane = skewed(model)
    placed = made.onto(plane)
    assert bytes_held(placed, apart_from=live) <= 3 * one
    states = [s for _, s in open_run(tmp_path).states()]
    copied = trajectory(states, model)
    assert bytes_held(copied, apart_from=live) <= 23 * one  # each once
    for state in states:
        for tensor in state.values():
            tensor.zero_()
    again = copied.onto(plane)
    np.testing.assert_array_equal(placed.coordinates, again.coordinates)
    np.testing.assert_array_equal(placed.residuals, again.residuals)


def test_a_run_is_found_again_from_another_folder(tmp_path, monkeypatch):
    model = linear(torch.float32)
    space = ParameterSpace(model)
    monkeypatch.chdir(tmp_path)
    with Recorder("recorded", model) as record:
        for t, flat in enumerate(curve(dtype=torch.float32)):
            model.load_state_dict(space.unflatten(flat))
            torch.save(model.state_dict(), f"{t}.pt")
            record(t)
    sources = (".", [f"{t}.pt" for t in range(9)], "recorded")
    made = [trajectory(source, model) for source in sources]
    monkeypatch.chdir("/")
    plane = axes.random(model, 2)
    placed = [path.onto(plane).coordinates for path in made]
    np.testing.assert_array_equal(placed[0], placed[1])
    np.testing.assert_array_equal(placed[0], placed[2])


def test_a_file_that_has_changed_is_not_taken_for_the_checkpoint(tmp_path):
    model = linear()
    for t in range(3):
        torch.save({k: v + t**2 * torch.rand(()) for k, v in linear().state_dict().items()},
                   tmp_path / f"{t}.pt")  # fmt: skip
    made, plane = trajectory(tmp_path, model, n=1), skewed(model)
    made.onto(plane)
    (tmp_path / "1.pt").rename(tmp_path / "gone")
    with pytest.raises(ArgumentError, match=r"`checkpoint` must be a file, got .*1\.pt"):
        made.onto(plane)
    torch.save(linear().state_dict(), tmp_path / "1.pt")
    with pytest.raises(ParameterMismatchError, match=r"1\.pt must not change while its run is in"):
        made.onto(plane)
    (tmp_path / "gone").rename(tmp_path / "1.pt")
    made.onto(plane)


class Bowl(nn.Module):
    """A loss that is known everywhere: half the squared distance from the weights' own target."""

    def __init__(self, size=6):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, x):
        return x * self.weight


def bowl():
    x = torch.ones(2, 6, dtype=torch.float64)
    return lx.Objective(Bowl(), (x, 3 * x), lambda m, b: (m(b[0]) - b[1]).square().sum(1).mean())


def test_trap_15_the_plane_goes_through_the_checkpoint_and_not_through_the_mean():
    points = torch.randn(5, 6, generator=rng(3), dtype=torch.float64)
    objective = bowl()
    for origin in ("last", "first", 2):
        made = trajectory(list(points), objective, origin=origin, progress=False, drawn=True)
        o = made.origin
        assert o == {"last": 4, "first": 0, 2: 2}[origin]
        assert torch.equal(made.center, points[o])
        assert not made.coordinates[o].any()
        assert made.residuals[o] == made.distances[o] == 0
        true = (points - 3).square().sum(1).numpy()
        np.testing.assert_allclose(made.losses, true, rtol=1e-14)
        at = points[o] + torch.from_numpy(made.coordinates) @ made.directions.vectors
        np.testing.assert_allclose(made.drawn[:, 0], (at - 3).square().sum(1), rtol=1e-12)
        np.testing.assert_allclose(made.residuals, (points - at).norm(dim=1), rtol=1e-12)
        assert made.drawn[o, 0] == made.losses[o]
        # where a checkpoint is off the plane, its true loss is another than the one drawn
        assert np.abs(made.drawn[:, 0] - made.losses)[np.arange(5) != o].min() > 1e-3


def test_trap_15_the_surface_around_a_trajectory_starts_at_its_origin():
    points = torch.randn(4, 6, generator=rng(3), dtype=torch.float64)
    objective = bowl()
    made = trajectory(list(points), objective, progress=False)
    surface = lx.surface(objective, directions=made, span=(-1, 1), points=3, progress=False)
    assert surface.loss[1, 1] == made.losses[-1]
    corner = points[-1] + made.directions.vectors.sum(0)
    assert surface.loss[2, 2] == pytest.approx(float((corner - 3).square().sum()), rel=1e-12)


def test_trap_16_every_checkpoint_is_evaluated_with_its_own_running_statistics(tmp_path):
    model = batch_norm()
    x, y = torch.randn(20, 3), torch.randint(0, 2, (20,))
    expected = []
    with Recorder(tmp_path, model) as record:
        for step in range(4):
            with torch.no_grad():
                model[0].weight += torch.randn(4, 3)
            model.train()(10 * x + step)
            record(step)
            expected.append(float(nn.functional.cross_entropy(model.eval()(x), y)))
    objective = lx.Objective(copy.deepcopy(model), (x, y), "cross_entropy", metrics=["accuracy"])
    before = copy.deepcopy(objective.model.state_dict())
    made = trajectory(tmp_path, objective, progress=False)
    np.testing.assert_allclose(made.losses, expected, rtol=1e-6)
    assert made.columns == ("loss", "accuracy")
    names = [name for name, _ in made.directions.layout]
    assert names == [name for name, _ in model.named_parameters()]
    assert not made.notes
    after = objective.model.state_dict()
    assert all(torch.equal(after[n], before[n]) for n in before)
    # the plane has the statistics of its origin
    other = trajectory(tmp_path, objective, progress=False, origin="first")
    assert torch.equal(other.center["1.running_var"], open_run(tmp_path)[0].read()["1.running_var"])
    surface = lx.surface(objective, directions=other, span=(-1, 1), points=3, progress=False)
    assert surface.loss[1, 1] == pytest.approx(expected[0], rel=1e-6)


def test_missing_statistics_are_noted():
    model = batch_norm()
    objective = lx.Objective(model, (torch.randn(5, 3), torch.zeros(5, dtype=int)), "cross_entropy")
    states = [dict(copy.deepcopy(batch_norm()).named_parameters()) for _ in range(2)]
    states[0]["0.weight"] = states[0]["0.weight"] + 1
    message = r"lack 2 buffers or frozen parameters \(1.running_mean, 1.running_var\): those of the"
    with pytest.warns(LandscapexWarning, match=message):
        made = trajectory(states, objective, n=1, progress=False)
    assert any("lack 2 buffers" in note for note in made.notes)


def test_trap_22_tied_weights_count_once_in_distances(tmp_path):
    model = Tied()
    x = torch.arange(5)
    expected = []
    with Recorder(tmp_path, model) as record:
        for step in range(3):
            record(step)
            expected.append(float(nn.functional.cross_entropy(model(x), x)))
            with torch.no_grad():
                model.embedding.weight += torch.randn(5, 3)
    states = [c.read() for c in open_run(tmp_path)]
    made = trajectory(tmp_path, lx.Objective(Tied(), (x, x), "cross_entropy"), progress=False)
    assert made.directions.vectors.shape == (2, 15)
    np.testing.assert_allclose(made.losses, expected, rtol=1e-6)
    for t, distance in enumerate(made.distances):
        moved = states[t]["embedding.weight"].double() - states[2]["embedding.weight"].double()
        assert distance == pytest.approx(float(moved.norm()), rel=1e-12)
    # a file that has the other name only
    one = [{"head.weight": s["head.weight"].clone()} for s in states]
    again = trajectory(one, Tied(), progress=False)
    np.testing.assert_array_equal(again.coordinates, made.coordinates)
    assert again.project(made.center).distance == 0


def test_a_checkpoint_that_is_not_finite_is_reported_and_left_out():
    points, objective = curve(6)[:, :6].contiguous(), bowl()
    whole = trajectory([p for t, p in enumerate(points) if t != 2], objective, progress=False)
    points[2, 3] = torch.nan
    points[2, 4] = torch.inf
    message = r"checkpoint 2 has NaN or infinity in weight \(2 of 6\); it has no coordinates"
    with pytest.warns(LandscapexWarning, match=message):
        made = trajectory(list(points), objective, progress=False, drawn=True)
    assert made.finite.tolist() == [True, True, False, True, True, True]
    for values in (made.coordinates, made.losses, made.residuals, made.distances, made.drawn):
        assert np.isnan(values[2]).all()
    np.testing.assert_allclose(made.coordinates[made.finite], whole.coordinates, rtol=1e-9)
    np.testing.assert_array_equal(made.losses[made.finite], whole.losses)
    steps = np.array([0, 1, 3, 4, 5])
    np.testing.assert_array_equal(made.walk, random_walk_ratios(steps)[: len(made.walk)])
    assert np.isfinite(made.span).all()
    with pytest.raises(NonFiniteCenterError, match=r"origin .* must be finite, but checkpoint 2"):
        trajectory(list(points), objective, origin=2, progress=False)


def test_an_infinite_checkpoint_has_no_coordinates_either():
    points = curve()
    points[3, 5] = torch.inf
    with pytest.warns(LandscapexWarning, match="checkpoint 3 has NaN or infinity"):
        made = trajectory(list(points), linear())
    for values in (made.coordinates, made.residuals, made.distances):
        assert np.isnan(values[3]).all()
        assert np.isfinite(np.delete(values, 3, axis=0)).all()


def test_statistics_that_are_not_finite_cost_the_loss_alone():
    model = batch_norm()
    x = torch.randn(5, 3)
    objective = lx.Objective(model, (x, torch.zeros(5, dtype=int)), "cross_entropy")
    states = [copy.deepcopy(model.state_dict()) for _ in range(4)]
    for k, state in enumerate(states):
        state["0.weight"] += torch.randn(4, 3, generator=rng(k))
    states[1]["1.running_var"][0] = torch.nan
    with pytest.warns(LandscapexWarning, match=r"checkpoint 1 has no loss: .*1.running_var"):
        made = trajectory(states, objective, progress=False)
    assert np.isnan(made.losses).tolist() == [False, True, False, False]
    assert made.finite.all()


def test_learning_rate_drops_are_found(tmp_path):
    model = linear()
    rates = [0.1, 0.1, 0.099, 0.01, 0.01, 0.02, 0.005, 0.005]
    with Recorder(tmp_path, model) as record:
        for step, rate in enumerate(rates):
            record(step, lr=rate, epoch=step / 2, loss=1 / (step + 1))
            with torch.no_grad():
                model[0].weight += torch.randn(5, 12)
    made = trajectory(tmp_path, linear(), progress=False)
    assert made.drops == (3, 6)
    np.testing.assert_array_equal(made.rates, rates)
    np.testing.assert_array_equal(made.epochs, np.arange(8) / 2)
    np.testing.assert_array_equal(made.recorded, 1 / np.arange(1, 9))
    assert made.columns == ()
    assert np.isnan(made.losses).all()


def test_nothing_is_drawn_from_the_global_generators(generators_untouched):
    trajectory(list(torch.randn(4, 6, generator=rng(), dtype=torch.float64)), bowl())
