"""Runs with a time limit: they end before it, keep what is done, and go on later."""

from __future__ import annotations

import itertools
import time
import warnings

import models
import numpy as np
import pytest
import reference
from evaluate_cases import BATCH, QUIET, mse, small
from hypothesis import given
from hypothesis import strategies as st

import landscapex as lx
from landscapex.errors import ArgumentError, LandscapexWarning, TimeLimitWarning
from landscapex.grids import filling
from landscapex.grids.time_limit import Deadline, parse_time_limit
from landscapex.interrupts import Abandon


class Quiet:
    """Nobody else wants the work to end."""

    requested = False

    def poll(self):
        pass


class Clock:
    """A time that passes only when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@given(st.integers(0, 9), st.integers(0, 30), st.integers(0, 59), st.integers(0, 59))
def test_a_limit_is_written_as_batch_systems_write_it(days, hours, minutes, seconds):
    whole = seconds + 60 * (minutes + 60 * (hours + 24 * days))
    if whole:
        assert parse_time_limit(f"{days}-{hours:02}:{minutes:02}:{seconds:02}") == whole
        assert parse_time_limit(f"{days * 24 + hours}:{minutes}:{seconds}") == whole
        assert parse_time_limit(str(whole)) == parse_time_limit(whole) == whole


def test_no_limit_is_none():
    assert parse_time_limit(None) is None
    assert parse_time_limit(0.25) == parse_time_limit("0.25") == 0.25
    assert Deadline(Quiet(), None, 0.0).room(1e9) == np.inf


@pytest.mark.parametrize(
    "limit", [0, -1, "0:00:00", "2:30", "1:60:00", "1:00:61", "soon", "", "nan", "inf", True, [60]]
)
def test_what_is_no_limit_is_refused(limit):
    with pytest.raises(
        ArgumentError, match="`time_limit` must be a number of seconds above 0, 'H:"
    ):
        small(time_limit=limit)


def test_the_end_comes_a_bit_before_the_limit(monkeypatch):
    clock = Clock(monkeypatch)
    short, long = Deadline(Quiet(), 10, clock.now), Deadline(Quiet(), 3600, clock.now)
    clock.now += 9.4
    short.poll()
    assert not short.requested
    clock.now += 0.2
    assert short.requested
    with pytest.raises(Abandon):
        short.poll()
    clock.now += 3594.9 - 9.6
    assert not long.requested
    assert long.room(0.05) == pytest.approx(0.1 / 0.05 / 1.5)
    clock.now += 0.2
    assert long.requested
    assert long.room(0.05) < 0


PAUSE = [0.0]  # it is no part of the loss: a run goes on however long its points took


def paused(m, batch):
    time.sleep(PAUSE[0])
    return mse(m, batch)


def run(limit, each, points=40, **options):
    """A line whose points take so long; what it returned, and how long it took."""
    model, PAUSE[0] = models.mlp(3, 4, 1), each
    before = reference.everything(model)
    objective = lx.Objective(model, BATCH, paused)
    began = time.monotonic()
    result = lx.line(objective, points=points, time_limit=limit, **{**QUIET, **options})
    seconds = time.monotonic() - began
    assert reference.changes(before, reference.everything(model)) == []
    return result, seconds


@pytest.mark.parametrize("stored", [False, True])
def test_a_run_that_takes_too_long_ends_in_time_and_goes_on_later(stored, tmp_path):
    out = tmp_path / "s.nc" if stored else None
    with pytest.warns(TimeLimitWarning) as caught:
        partial, seconds = run(2.0, each=0.2, out=out)
    assert seconds < 2.0
    done = int(partial.evaluated.sum())
    assert 1 < done <= 8  # the centre took two
    message = f"stopped by the time limit: {done} of 40 points "
    assert str(caught[0].message).startswith(message)
    assert isinstance(caught[0].message, LandscapexWarning)
    assert caught[0].message.surface is partial
    if stored:
        assert "the same call goes on" in str(caught[0].message)
        assert lx.open(out).equals(partial)
        finished, _ = run(None, each=0, out=out)
        assert finished.complete
        assert np.array_equal(finished.loss[:done], partial.loss[:done])


def test_the_limit_counts_from_the_call(tmp_path, monkeypatch):
    """Whatever the data and the centre take; an empty run is a journal all the same."""
    out = tmp_path / "s.nc"

    class Slow(list):
        def __iter__(self):
            time.sleep(0.5)
            return super().__iter__()

    with pytest.warns(TimeLimitWarning, match="0 of 77 points are kept"):
        partial = lx.surface(
            models.mlp(3, 4, 1), Slow(BATCH), mse, points=(7, 11), time_limit=0.2, out=out, **QUIET
        )
    assert not partial.evaluated.any()
    assert lx.open(out).shape == (7, 11)
    assert small(out=out).complete


def test_fault_30_a_run_that_was_stopped_for_a_while_uses_the_time_that_is_left(monkeypatch):
    """Ten minutes for one point are no reason to leave seven minutes to nobody."""
    monotonic, slept, calls = time.monotonic, [0.0], itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + slept[0])
    monkeypatch.setattr(filling, "BLOCK_SECONDS", 0.0)  # one point after the other

    def stopped_once(m, batch):
        if next(calls) == 20:
            slept[0] += 600
        return mse(m, batch)

    result = lx.line(models.mlp(3, 4, 1), BATCH, stopped_once, points=40, time_limit=1020, **QUIET)
    assert result.complete


def test_no_point_begins_that_there_is_no_time_for():
    """Points of 0.4 s, and a limit that a third one would exceed by little."""
    calls = []

    def loss(m, batch):
        calls.append(time.monotonic())
        time.sleep(0.4)
        return mse(m, batch)

    objective = lx.Objective(models.mlp(3, 4, 1), BATCH, loss, check=False)
    with pytest.warns(TimeLimitWarning, match="2 of 40 points"):
        lx.line(objective, points=40, time_limit=1.7, **QUIET)
    assert len(calls) == 1 + 2


def test_a_point_that_outlasts_the_limit_is_given_up():
    """Its batches take far longer than those of the centre did."""
    calls = []

    def loss(m, batch):
        calls.append(1)
        if len(calls) > 100:
            time.sleep(0.05)
        return mse(m, batch)

    objective = lx.Objective(models.mlp(3, 4, 1), BATCH * 100, loss, check=False)
    began = time.monotonic()
    with pytest.warns(TimeLimitWarning, match="0 of 2 points"):
        lx.line(objective, points=2, time_limit=1, **QUIET)
    assert time.monotonic() - began < 1.5
    assert len(calls) < 150


def test_a_run_that_ends_in_time_does_not_hear_of_the_limit(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = small(out=tmp_path / "s.nc", time_limit="1:00:00")
    assert result.equals(small())


def test_the_limit_may_be_an_error_that_carries_the_result():
    with warnings.catch_warnings():
        warnings.simplefilter("error", TimeLimitWarning)
        with pytest.raises(TimeLimitWarning) as caught:
            run(0.5, each=0.05)
    assert 0 < caught.value.surface.evaluated.sum() < 40


def test_a_part_that_ran_out_of_time_is_not_joined(tmp_path):
    out = tmp_path / "s.nc"
    run(None, each=0, out=out, shard=(0, 2))
    with pytest.warns(TimeLimitWarning):
        partial, _ = run(0.5, each=0.05, out=out, shard=(1, 2))
    assert 24 <= partial.evaluated.sum() < 40
    assert not out.exists()
    assert run(None, each=0, out=out)[0].complete


@pytest.mark.parametrize("kind", ["map", "interpolation", "volume"])
def test_everything_on_a_grid_has_a_limit(kind, monkeypatch):
    model, other = models.mlp(3, 4, 1), models.mlp(3, 4, 1, seed=1)
    monkeypatch.setattr(filling, "BLOCK_SECONDS", 0.0)  # one point after the other
    limit = {"time_limit": 2, "callback": lambda progress: time.sleep(0.6), **QUIET}
    call = {
        "map": lambda: lx.curvature_map(model, BATCH, mse, points=3, **limit),
        "volume": lambda: lx.volume(model, BATCH, mse, points=3, **limit),
        "interpolation": lambda: lx.interpolate(model, other, BATCH, mse, points=9, **limit),
    }[kind]
    if kind == "map":  # what it needs is imported once
        lx.hessian(lx.Objective(model, BATCH, mse)).eigenvalues(1)
    with pytest.warns(TimeLimitWarning):
        found = call()
    assert 0 < found.evaluated.sum() <= 4


def test_few_points_of_the_compiled_engine_are_not_begun_without_time(monkeypatch):
    """A call of fewer points than it wants takes as long as one of as many as it wants."""
    clock = Clock(monkeypatch)
    run = filling._Run.__new__(filling._Run)
    run._fewest, run._pace, run._point_seconds = 8, 32, 0.1
    run.stop = Deadline(Quiet(), 100, clock.now)
    assert run._next(100) == 32
    assert run._next(5) == 5
    clock.now += 95 - 1.6
    assert run._next(100) == 10
    clock.now += 0.5
    assert run._next(100) == 0
    assert run._next(5) == 5
