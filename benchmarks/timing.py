"""Contenders that run in turn, round by round, in one process: CPU time and wall time per point."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

ROUNDS = 5
CLOSE = 1e-4  # relative; float32 against float64


@dataclass(frozen=True)
class Timed:
    """A plane of losses, seconds for `points` of them, and wall seconds of the whole call.

    `device` is the time of a GPU, by its own events.
    """

    losses: np.ndarray
    points: int
    cpu: float
    wall: float
    call: float
    device: float = 0.0


Round = Mapping[str, Timed]


def stopwatch(compute: Callable[[], np.ndarray]) -> Callable[[], Timed]:
    """Time the whole of a call."""

    def run() -> Timed:
        cpu, wall = time.process_time(), time.perf_counter()
        losses = compute()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return Timed(losses, losses.size, cpu, wall, wall)

    return run


def in_turn(runs: Mapping[str, Callable[[], Timed]]) -> Iterator[Round]:
    """Rounds, in which each runs once; another one begins each time."""
    names = list(runs)
    for round_ in itertools.count():
        first = round_ % len(names)
        taken = {name: runs[name]() for name in names[first:] + names[:first]}
        yield {name: taken[name] for name in names}


def summary(
    rounds: Sequence[Round], ours: str, clocks: Sequence[str] = ("cpu", "wall")
) -> dict[str, dict[str, float]]:
    """Milliseconds per point and ratios to `ours` in the same round: medians and extremes."""
    made = {}
    for name in rounds[0]:
        row: dict[str, float] = {"points": rounds[0][name].points}
        for clock in clocks:
            times = [_milliseconds(taken[name], clock) for taken in rounds]
            ratios = [
                t / _milliseconds(taken[ours], clock)
                for t, taken in zip(times, rounds, strict=True)
            ]
            for what, values in ((f"{clock} ms", times), (f"{clock} ratio", ratios)):
                row[what] = statistics.median(values)
                row[f"{what} min"], row[f"{what} max"] = min(values), max(values)
        made[name] = row
    return made


def once(first: Timed, wall: float) -> float:
    """Wall seconds of a first call besides its points, of which each takes `wall` seconds."""
    return max(0.0, first.call - first.losses.size * wall)


def _milliseconds(timed: Timed, clock: str) -> float:
    return getattr(timed, clock) / timed.points * 1e3


@dataclass(frozen=True)
class Difference:
    """Largest relative differences of a plane from the exact one.

    `unexplained` leaves out the defects of other tools that tests/test_other_tools.py shows.
    """

    asked: float
    unexplained: float


def difference(
    name: str, losses: np.ndarray, exact: np.ndarray, before: np.ndarray | None = None
) -> Difference:
    """Compare a plane with the exact one.

    Two tools are off in known places: loss-landscapes by one step in every odd row, landscaper at
    its maximum, to which it adds noise.

    Args:
        name: Of the contender.
        losses: What it computed, (rows, columns).
        exact: What it was asked for.
        before: For loss-landscapes: what is exact one step earlier in the second direction.
    """
    expected = exact.copy()
    if name == "loss-landscapes":
        assert before is not None
        expected[1::2] = before[1::2]
    off = np.abs(losses / expected - 1)
    if name == "landscaper":
        off.flat[losses.argmax()] = off.flat[exact.argmax()] = 0
    return Difference(float(np.abs(losses / exact - 1).max()), float(off.max()))
