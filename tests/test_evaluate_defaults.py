"""What line, surface and volume do where nothing is said."""

from __future__ import annotations

import inspect

import models
import pytest
from evaluate_cases import BATCH, mse

import landscapex as lx
from landscapex.grids import filling
from landscapex.grids.grid import make_grid

SAID_NOTHING = {
    "directions": "random", "normalize": "auto", "ignore": "auto", "span": None, "center": None,
    "metrics": (), "seed": 0, "out": None, "resume": True, "shard": None, "time_limit": None,
    "engine": "auto", "precision": "model", "threads": None, "progress": True, "callback": None,
    "confirm": False,
}  # fmt: skip


@pytest.mark.parametrize(("name", "points"), [("line", 51), ("surface", 51), ("volume", 21)])
def test_the_three_kinds_have_one_set_of_defaults(name, points):
    asked = inspect.signature(getattr(lx, name)).parameters.values()
    found = {p.name: p.default for p in asked if p.kind is p.KEYWORD_ONLY}
    assert {**SAID_NOTHING, "points": points} == found


def test_a_grid_has_51_points_on_each_axis():
    assert make_grid(2).shape == (51, 51)


@pytest.mark.parametrize("name", ["line", "surface", "volume"])
def test_progress_is_shown_unless_it_is_not_wanted(name, monkeypatch):
    disabled, bar = [], filling.progress_bar

    def seen(**how):
        disabled.append(how["disable"])
        return bar(**{**how, "disable": True})

    monkeypatch.setattr(filling, "progress_bar", seen)
    for options in {}, {"progress": False}:
        getattr(lx, name)(models.mlp(3, 4, 1), BATCH, mse, points=2, **options)
    assert disabled == [False, True]
