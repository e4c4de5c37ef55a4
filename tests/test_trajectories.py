"""Training trajectories: components, coordinates, what a plane leaves out, true losses."""

from __future__ import annotations

import copy
import gc
import random
import types
import warnings

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import landscapex as lx
from landscapex import axes
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    CorruptFileError,
    DirectionError,
    LandscapexWarning,
    NonFiniteCenterError,
    ParameterMismatchError,
)
from landscapex.grids.results import Surface
from landscapex.model.parameters import ParameterSpace
from landscapex.trajectories import principal
from landscapex.trajectories.plane import Trajectory, project, trajectory
from landscapex.trajectories.principal import Rows, fit, random_walk_limit, random_walk_ratios
from landscapex.trajectories.recorder import Recorder
from landscapex.trajectories.runs import open_run


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(dtype=torch.float64):
    """Something with 68 parameters: 12 x 5 + 5 + 3."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 5), nn.LayerNorm(5, bias=False)).to(dtype)


P = 70


def curve(count=9, seed=0, dtype=torch.float64):
    """A curved path with components of falling strength, ``(T, P)``."""
    t = torch.linspace(0, 1, count, dtype=torch.float64)[:, None]
    basis = torch.randn(4, P, generator=rng(seed), dtype=torch.float64)
    shape = torch.cat([3 * t, torch.sin(3 * t), 0.3 * torch.cos(7 * t), 0.1 * t**4], 1)
    return (5 + shape @ basis).to(dtype)


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


def skewed(model, seed=1):
    """Two filter-normalised directions that are neither orthogonal nor of length 1."""
    plane = axes.random(model, 2, seed=seed)
    mixed = torch.stack([plane.vectors[0], 0.6 * plane.vectors[0] + plane.vectors[1]])
    return axes.given(model, mixed)


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


def batch_norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


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


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


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


def digits_run(folder, *, epochs=6):
    """A small network trained on the bundled digits, recorded; and its objective."""
    _, (x, y), loss = lx.examples.digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    drops = torch.optim.lr_scheduler.MultiStepLR(optimizer, [4], 0.1)
    order, step = rng(), 0
    with Recorder(folder, model, every=6, optimizer=optimizer) as record:
        for epoch in range(epochs):
            for batch in torch.randperm(len(x), generator=order).split(128):
                value = nn.functional.cross_entropy(model(x[batch]), y[batch])
                record(step, epoch=epoch, loss=value)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                step += 1
            drops.step()
        record(step, epoch=epochs)
    return model, lx.Objective(model, (x, y), loss, metrics=["accuracy"])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    torch.manual_seed(0)
    model, objective = digits_run(folder)
    return folder, model, objective, trajectory(folder, objective, drawn=True, progress=False)


def test_a_real_training_run_from_recorder_to_the_surface_of_its_plane(digits):
    folder, model, objective, made = digits
    assert len(made) == 13
    assert made.steps[-1] == 72
    assert torch.equal(made.center["0.weight"], model[0].weight)
    states = [s for _, s in open_run(folder).states()]
    for t in (0, 5, 12):
        assert made.losses[t] == objective.loss(states[t])
    assert made.losses[-1] < 0.3 < 2 < made.losses[0]
    # a run of 12 moves is no random walk: more lies in the first component
    assert made.explained[0] > made.walk[0]
    surface = lx.surface(objective, directions=made, span=made.span, points=9, progress=False)
    assert surface.complete
    # a corner of a grid at the coordinates of a checkpoint is where that checkpoint is drawn
    x, y = made.coordinates[3].tolist()
    corner = lx.surface(
        objective, directions=made, span=[(x, x + 1), (y, y + 1)], points=2, progress=False
    )
    assert corner.loss[0, 0] == pytest.approx(made.drawn[3, 0], rel=1e-6)
    # the drawn loss is the true one at the origin, and elsewhere as far as the residual allows
    assert made.drawn[-1, 0] == pytest.approx(made.losses[-1], rel=1e-6)
    flat = [ParameterSpace(model).vector(s, what="a state") for s in states]
    for t, state in enumerate(flat):
        at = flat[-1] + torch.from_numpy(made.coordinates[t]).float() @ made.directions.vectors
        path = [state + k / 8 * (at - state) for k in range(9)]
        steepest = max(float(objective.gradient(p).norm()) for p in path)
        assert abs(made.drawn[t, 0] - made.losses[t]) <= 1.05 * steepest * made.residuals[t] + 1e-6


def test_a_trajectory_comes_back_from_its_file(digits, tmp_path):
    *_, made = digits
    path = made.save(tmp_path / "run.safetensors")
    back = Trajectory.load(path)
    assert repr(back) == repr(made)
    assert torch.equal(back.directions.vectors, made.directions.vectors)
    assert back.directions.axes == made.directions.axes
    assert back.directions.layout == made.directions.layout
    assert back.center.keys() == made.center.keys()
    assert all(torch.equal(back.center[n], made.center[n]) for n in made.center)
    for name, value in vars(made).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(back, name), value)
            assert not getattr(back, name).flags.writeable
            assert getattr(back, name).dtype == value.dtype
    assert (back.columns, back.notes, back.provenance) == (
        made.columns,
        made.notes,
        made.provenance,
    )
    assert back.provenance["model"]["class"] == "Sequential"
    np.testing.assert_array_equal(back.project(made.center).coordinates, [0, 0])
    with pytest.raises(ArgumentError, match="must have its checkpoints for `onto`"):
        back.onto(made.directions)


def test_a_trajectory_of_flat_vectors_comes_back_too(tmp_path):
    made = trajectory(list(curve()), linear())
    back = Trajectory.load(made.save(tmp_path / "a"))
    assert torch.equal(back.center, made.center)
    assert back.drawn is None
    assert not back.walk.flags.writeable


def test_no_flipped_bit_of_a_trajectory_goes_unnoticed(tmp_path):
    path = trajectory(list(curve()), linear()).save(tmp_path / "run")
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    draw = random.Random(0)
    # every byte of the header, where some bits may stand for nothing, and some of the numbers
    for place in [*range(length), *draw.sample(range(length, len(whole)), 300)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CorruptFileError):
            Trajectory.load(path)
    for kept in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(CorruptFileError):
            Trajectory.load(path)
    with pytest.raises(CorruptFileError, match="must exist"):
        Trajectory.load(tmp_path / "none")
    axes.random(linear(), 2).save(tmp_path / "directions")
    with pytest.raises(CorruptFileError, match="must be a file of landscapex trajectory 1"):
        Trajectory.load(tmp_path / "directions")


def test_nothing_is_drawn_from_the_global_generators(generators_untouched):
    trajectory(list(torch.randn(4, 6, generator=rng(), dtype=torch.float64)), bowl())


def texts(figure: Figure) -> str:
    drawn = [t.get_text() for t in figure.findobj(mpl.text.Text)]
    return "\n".join(drawn)


def test_the_picture_shows_path_true_losses_drops_null_and_distance(digits):
    _, _, objective, made = digits
    surface = lx.surface(objective, directions=made, span=made.span, points=7, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = made.plot(surface, scale="log")
        figure.canvas.draw()
    top, bottom = figure.axes[:2]
    path = [line for line in top.lines if len(line.get_xdata()) == len(made)]
    np.testing.assert_array_equal(path[-1].get_xydata(), made.coordinates)
    points = next(c for c in top.collections if c.get_offsets().shape == made.coordinates.shape)
    np.testing.assert_allclose(points.get_offsets(), made.coordinates)
    assert points.norm.vmin <= points.get_array().min()
    assert points.get_array()[0] == pytest.approx(np.log10(made.losses[0]))
    np.testing.assert_array_equal(bottom.lines[0].get_xydata()[:, 1], made.residuals)
    said = texts(figure).replace("\n", " ")
    for text in (
        "training of Sequential, 1,210 parameters",
        f"start, step 0: loss {made.losses[0]:.4g}",
        f"end, step 72: loss {made.losses[-1]:.4g}",
        "lower learning rate, step 48",
        f"PC 1: {made.explained[0]:.1%} of variance (random walk {made.walk[0]:.1%})",
        "the plane goes through step 72",
        f"by {made.residuals.max():.3g}",
        "loss (log scale)",
    ):
        assert text in said, text


def test_pictures_of_every_kind_of_trajectory_can_be_drawn(digits):
    folder, model, objective, made = digits
    assert "not evaluated" not in texts(made.plot())
    assert "accuracy" in texts(made.plot(column="accuracy", scale="linear", title="a"))
    made.onto(axes.random(model, 2)).plot().canvas.draw()
    trajectory(folder, model, progress=False).plot(title="").canvas.draw()
    with pytest.warns(LandscapexWarning):
        single = trajectory([s for _, s in open_run(folder)[:2].states()], model)
    with pytest.raises(ArgumentError, match="must have 2 directions to be drawn, got 1"):
        single.plot()
    other = lx.surface(objective, points=3, progress=False)
    message = "must be over the plane of the trajectory .*, got one with other directions"
    with pytest.raises(ArgumentError, match=message):
        made.plot(other)


class Odd(nn.Module):
    """Tied, frozen, complex, of two dtypes, with statistics and a buffer that no file has."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm1d(4)
        self.turn = nn.Parameter(torch.ones(4, dtype=torch.complex64))
        self.scale = nn.Parameter(torch.ones(4, dtype=torch.bfloat16), requires_grad=False)
        self.register_buffer("shift", torch.zeros(4), persistent=False)

    def forward(self, x):
        x = self.norm(self.b(self.a(x).relu()) * self.turn.real) + self.shift
        return x * self.scale


def odd_run(count=4):
    torch.manual_seed(0)
    model, states = Odd(), []
    for k in range(count):
        states.append(copy.deepcopy(model.state_dict()))
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn(p.shape, generator=rng(k)).to(p.dtype)
            model.norm.running_var *= 1.5
    return model, states


@pytest.mark.parametrize("origin", ["last", 1])
@pytest.mark.parametrize("known", ["states", "vectors"])
@pytest.mark.parametrize("evaluated", [True, False])
def test_a_path_is_drawn_over_its_own_plane_alone(origin, known, evaluated):
    model, states = odd_run()
    objective = lx.Objective(model, (torch.randn(9, 4), torch.zeros(9, dtype=int)), "cross_entropy")
    if known == "vectors":
        states = [objective.space.vector(s, what="a state") for s in states]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = trajectory(states, objective if evaluated else model, origin=origin, progress=False)
    quick = {"points": 3, "progress": False}
    figure = made.plot(lx.surface(objective, directions=made, **quick))
    assert "centre" not in texts(figure)
    elsewhere = {"directions": made.directions, "span": made.span, **quick}
    refused = "must be over the plane of the trajectory .*, got one with {}"
    foreign = lx.surface(objective, **elsewhere)  # around the live weights
    with pytest.raises(ArgumentError, match=refused.format("another centre")):
        made.plot(foreign)
    statistics = copy.deepcopy(made.center)
    if known == "vectors":
        with torch.no_grad():
            model.norm.running_mean += 1
    else:
        statistics["norm.running_mean"] += 1
    foreign = lx.surface(objective, center=statistics, **elsewhere)
    with pytest.raises(ArgumentError, match=refused.format("other buffers, such as statistics")):
        made.plot(foreign)


def test_a_model_that_no_surface_can_be_had_of_has_a_trajectory():
    model = linear()
    model.register_buffer("graph", torch.eye(3).to_sparse())
    assert len(trajectory(list(curve()), model)) == 9


def test_a_surface_that_does_not_say_where_it_is_is_refused(digits):
    _, _, objective, made = digits
    dataset = lx.surface(objective, directions=made, points=3, progress=False).to_xarray()
    dataset.attrs["provenance"] = "{}"
    with pytest.raises(ArgumentError, match="got one of unknown directions"):
        made.plot(Surface(dataset))
