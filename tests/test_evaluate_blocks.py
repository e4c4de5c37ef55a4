"""Points are taken in blocks: of how many, and what is asked after each of them."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace

import models
import pytest
from evaluate_cases import BATCH, QUIET, mse, small

import landscapex as lx
from landscapex.errors import ModelChangedError
from landscapex.grids import filling


@pytest.mark.parametrize("check", [True, False])
def test_a_block_takes_half_a_second_and_its_time_is_told(check, monkeypatch):
    """On a clock on which a loss takes 1/16 s, and nothing else takes any time."""
    now, told = [1000.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def loss(m, batch):
        now[0] += 1 / 16
        return mse(m, batch)

    objective = lx.Objective(models.mlp(3, 4, 1), BATCH, loss, check=check)
    lx.line(objective, points=20, engine="eager", callback=told.append, **QUIET)
    assert [p.done for p in told] == [8, 16, 20]  # 16 belong together in parts of a run
    assert [p.seconds for p in told] == [8 / 16, 16 / 16, 20 / 16]
    assert {p.total for p in told} == {20}


@pytest.mark.parametrize(
    ("left", "room", "count"),
    [
        (100, math.inf, 32),
        (100, 32.0, 32),
        (100, 31.9, 31),
        (100, 8.0, 8),
        (100, 7.9, 0),  # fewer take as long as 8
        (5, 5.0, 5),
        (5, 4.9, 0),
        (5, -1.0, 0),
    ],
)
def test_a_block_is_as_large_as_there_is_time_for(left, room, count):
    run = filling._Run.__new__(filling._Run)
    run._fewest, run._pace, run._point_seconds = 8, 32, 0.1
    run.stop = SimpleNamespace(room=lambda seconds: room if seconds == 0.1 else None)
    assert run._next(left) == count


def test_a_callback_that_changes_the_model_is_found_before_the_next_block(monkeypatch):
    """Past the counters of versions, which see what does not go through ``.data``."""
    monkeypatch.setattr(filling, "BLOCK_SECONDS", 0.0)  # one point after the other
    model, calls = models.mlp(3, 4, 1), []
    weight = next(model.parameters())

    def loss(m, batch):
        calls.append("loss")
        return mse(m, batch)

    def change(progress):
        calls.append("changed")
        weight.data[0, 0] += 1

    with pytest.raises(ModelChangedError, match="was written to"):
        lx.line(model, BATCH, loss, points=3, engine="eager", callback=change, **QUIET)
    assert calls.index("changed") == len(calls) - 1


@pytest.mark.parametrize("more", [-1, 0])
def test_directions_are_held_up_to_a_limit(more, monkeypatch):
    size = sum(p.numel() * p.element_size() for p in models.mlp(3, 4, 1).parameters())
    monkeypatch.setattr(filling, "HELD", 2 * size + more)
    note = small(points=(3, 3)).provenance["directions"][0]["note"]
    assert ("drawn anew for every point" in note) == (more < 0)
