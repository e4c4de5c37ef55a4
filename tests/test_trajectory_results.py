"""What a recorded run leads to: the surface of its plane, a file of its trajectory, a picture."""

from __future__ import annotations

import copy
import random
import warnings

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from trajectory_cases import curve, linear, rng

import landscapex as lx
from landscapex import axes
from landscapex.errors import ArgumentError, CorruptFileError, LandscapexWarning
from landscapex.grids.results import Surface
from landscapex.model.parameters import ParameterSpace
from landscapex.trajectories.plane import Trajectory, trajectory
from landscapex.trajectories.recorder import Recorder
from landscapex.trajectories.runs import open_run


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


def test_a_model_that_no_surface_can_be_had_of_has_a_trajectory():
    model = linear()
    model.register_buffer("graph", torch.eye(3).to_sparse())
    assert len(trajectory(list(curve()), model)) == 9


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


def test_a_surface_that_does_not_say_where_it_is_is_refused(digits):
    _, _, objective, made = digits
    dataset = lx.surface(objective, directions=made, points=3, progress=False).to_xarray()
    dataset.attrs["provenance"] = "{}"
    with pytest.raises(ArgumentError, match="got one of unknown directions"):
        made.plot(Surface(dataset))
