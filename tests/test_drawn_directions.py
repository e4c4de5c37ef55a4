"""Random directions that nobody holds: the numbers of those that are held, in less memory."""

from __future__ import annotations

import models
import numpy as np
import pytest
import reference
import torch
from evaluate_cases import BATCH, QUIET, mse, raised, small
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import landscapex as lx
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    CaptureError,
    DirectionError,
    ModelChangedError,
)
from landscapex.grids import filling


class Odd(nn.Module):
    """Filters of every kind, a tied weight, a bf16 and a complex parameter, an empty one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.up = nn.ConvTranspose2d(2, 4, 3, groups=2)
        self.mix = nn.MultiheadAttention(4, 2)
        self.norm = nn.BatchNorm2d(4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.short = nn.Parameter(torch.randn(3, 4, dtype=torch.bfloat16))
        self.wave = nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.dead = nn.Parameter(torch.zeros(2, 5))
        self.turned = nn.Parameter(torch.randn(5, 3).T)

    def forward(self, x):
        moved = [p.abs().float().pow(1.5).sum() for p in self.parameters()]
        return torch.stack(moved).sum() + x.sum()


def odd_surface(**options):
    objective = lx.Objective(Odd(), [torch.ones(2)], lambda m, b: m(b))
    return lx.surface(objective, **{"points": (5, 4), **QUIET, **options})


RULES = [
    {},
    {"normalize": "layer"},
    {"normalize": "weight", "ignore": None},
    {"normalize": None, "ignore": "copy"},
    {"normalize": "filter", "ignore": "copy", "seed": 5},
    {"normalize": "filter", "ignore": None},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_surface_is_the_same_whether_its_directions_are_held_or_not(rule, monkeypatch):
    held = odd_surface(**rule)
    monkeypatch.setattr(filling, "HELD", 0)
    drawn = odd_surface(**rule)
    assert raised(drawn) == raised(held)
    about, before = drawn.provenance["directions"], held.provenance["directions"]
    assert "drawn anew for every point" in about[0]["note"]
    assert "drawn anew" in drawn.provenance["engine"]["why"]
    for mine, theirs in zip(about, before, strict=True):
        assert mine.pop("note") != theirs.pop("note")
        assert mine.pop("norm") == pytest.approx(theirs.pop("norm"), rel=1e-12)
        assert mine == theirs
    cosines = drawn.provenance["cosines"]
    assert np.allclose(cosines, held.provenance["cosines"], atol=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_numbers_are_those_of_random_directions(rule):
    model = Odd()
    held = lx.directions.random(model, 3, **rule)
    drawn = lx.directions.random_in_pieces(model, 3, **rule)
    assert drawn.vectors.shape == held.vectors.shape
    assert drawn.axes[0].zero_filters == held.axes[0].zero_filters
    for k in range(3):
        mine, theirs = drawn[k], held[k]
        assert list(mine) == list(theirs)
        for name, t in mine.items():
            assert torch.equal(t, theirs[name]), name
    assert drawn.norm().tolist() == pytest.approx(held.norm().tolist(), rel=1e-12)


def test_who_drew_them_may_give_them_to_a_surface():
    objective = lx.Objective(Odd(), [torch.ones(2)], lambda m, b: m(b))
    drawn = lx.directions.random_in_pieces(objective)
    surface = lx.surface(objective, directions=drawn, points=(5, 4), **QUIET)
    assert raised(surface) == raised(odd_surface())
    with pytest.raises(DirectionError, match="must be held to be normalised, got directions in p"):
        lx.surface(objective, directions=drawn, normalize="layer", points=(5, 4), **QUIET)


def test_they_go_on_where_they_stopped_and_other_draws_are_refused(tmp_path, monkeypatch):
    truth = small()
    monkeypatch.setattr(filling, "HELD", 0)
    out = tmp_path / "s.nc"

    def stop(progress):
        raise StopIteration

    with pytest.raises(StopIteration):
        small(out=out, callback=stop)
    with pytest.raises(lx.errors.ResumeMismatchError, match="directions: "):
        small(out=out, seed=1)
    with pytest.raises(lx.errors.ResumeMismatchError, match="directions: "):
        small(out=out, normalize="layer")
    assert raised(small(out=out)) == raised(truth)


def test_a_rule_that_needs_all_tensors_at_once_is_held(monkeypatch):
    held = small(normalize="model")
    monkeypatch.setattr(filling, "HELD", 0)
    assert raised(small(normalize="model")) == raised(held)
    assert small(normalize="model").provenance["directions"][0]["note"] == ""
    with pytest.raises(ArgumentError, match="or None in pieces, got 'model'"):
        lx.directions.random_in_pieces(models.mlp(3, 4, 1), normalize="model")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n": 0}, ArgumentError, "`n` must be a whole number of at least 1, got 0"),
        ({"seed": 1.5}, ArgumentTypeError, "`seed` must be a whole number, got 1.5"),
        ({"ignore": "bn"}, ArgumentError, "`ignore` must be 'bias_bn', 'copy' or None, got 'bn'"),
        ({"normalize": "rows"}, ArgumentError, "`normalize` must be 'filter', 'layer', 'model', "),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        lx.directions.random_in_pieces(models.mlp(3, 4, 1), **options)


def test_the_compiled_engine_needs_directions_that_are_held(monkeypatch):
    monkeypatch.setattr(filling, "HELD", 0)
    with pytest.raises(CaptureError, match=r"held in memory, got directions so large"):
        small(engine="compiled")


def test_maps_move_along_them_too(monkeypatch):
    def curvature():
        return lx.curvature_map(models.mlp(3, 4, 1), BATCH, mse, points=3, **QUIET)

    held = curvature()
    monkeypatch.setattr(filling, "HELD", 0)
    drawn = curvature()
    for column in held.columns:
        assert np.array_equal(drawn[column], held[column]), column


def test_the_model_comes_back_and_writes_of_others_are_seen(monkeypatch):
    """Also those past the version counters: every entry is compared, tensor by tensor."""
    monkeypatch.setattr(filling, "HELD", 0)
    monkeypatch.setattr(filling, "BLOCK_SECONDS", 0.0)  # compared after every point
    model = Odd()
    before = reference.everything(model)
    calls = []

    def loss(m, batch):
        calls.append(1)
        value = m(batch).detach()
        if len(calls) == 8:
            m.second.weight.data[1, 2] += 1e-3
        return value

    objective = lx.Objective(model, [torch.ones(2)], loss)
    with pytest.raises(ModelChangedError, match=r"first\.weight was written to"):
        lx.surface(objective, points=(5, 4), **QUIET)
    assert reference.changes(before, reference.everything(model)) == []
    assert odd_surface().complete


def test_steps_that_rounding_swallows_are_said(monkeypatch):
    monkeypatch.setattr(filling, "HELD", 0)
    objective = lx.Objective(
        models.mlp(3, 4, 1).to(torch.bfloat16), [torch.ones(2)],
        lambda m, b: sum(p.float().sum() for p in m.parameters()),
    )  # fmt: skip
    with pytest.warns(lx.errors.LandscapexWarning, match=r"% of the parameters do not move at all"):
        lx.line(objective, span=1e-4, points=3, **QUIET)


class Largest(TorchDispatchMode):
    """Notes every piece of memory of at least so many bytes that tensors are made in."""

    def __init__(self, least):
        super().__init__()
        self.least, self.found = least, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.device.type == "cpu":
                memory = t.untyped_storage()
                if memory.nbytes() >= self.least:
                    self.found[memory.data_ptr()] = memory.nbytes()
        return out


def largest_tensors(monkeypatch, held):
    """Of a surface of 8 layers: in multiples of the model, what is at least a quarter of it."""
    monkeypatch.setattr(filling, "HELD", held)
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(32, 32, bias=False) for _ in range(8)])
    size = sum(p.nbytes for p in model.parameters())
    objective = lx.Objective(model, [torch.ones(1, 32)], lambda m, b: m(b).square().mean())
    with Largest(size // 4) as noted:
        surface = lx.surface(objective, points=(2, 2), engine="eager", **QUIET)
    return sorted(bytes_ / size for bytes_ in noted.found.values()), surface


def test_without_holding_them_a_surface_takes_the_memory_of_one_more_model(monkeypatch):
    """The centre; all else is of the size of single tensors."""
    held, truth = largest_tensors(monkeypatch, np.inf)
    drawn, surface = largest_tensors(monkeypatch, 0)
    assert raised(surface) == raised(truth)
    assert 2.0 in held
    assert [multiple for multiple in drawn if multiple >= 1] == [1.0]
