"""Runs killed at random moments: nothing acknowledged is lost, and they go on to the same bits.

A run is one process, or four that are the shards of one run, killed together or one at a time. What
is left goes on, and may be killed again, before it is let finish.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import models
import numpy as np
import torch
from reliability.figure import Figure

import landscapex as lx
from landscapex.errors import CorruptFileError, LandscapexWarning
from landscapex.grids.options import Progress
from landscapex.storage.lock import remove_stale_lock

KILLS = 250  # of each kind
# So many that most of the time of a run goes into them. A compiled engine would be done with few
# samples before anything could strike.
POINTS = {"eager": (32, 40), "compiled": (80, 96)}
SAMPLES = {"eager": 4, "compiled": 1024}
MIDDLE = 0.05  # of the kills; if fewer come in the middle of the points, moments are wrong
MANY = 100  # kills, of which some at least come while the result is written, and to resumed runs


@dataclass(frozen=True)
class Kind:
    """How the runs are computed.

    Attributes:
        engine: Of their points.
        processes: How many work on one run.
    """

    engine: str
    processes: int

    def __str__(self) -> str:
        """In words."""
        split = "one process" if self.processes == 1 else f"{self.processes} processes, as shards"
        return f"{self.engine} engine, {split}"


KINDS = tuple(Kind(engine, processes) for engine in POINTS for processes in (1, 4))


@dataclass
class Report:
    """What became of the runs that were killed.

    Attributes:
        kills: Moments at which something was killed.
        processes: That were killed.
        acknowledged: Points that the callback of a killed run had been told.
        unreadable: Results that could not be opened, though something was acknowledged.
        lost: Acknowledged points that are not there.
        wrong: Points whose value is not that of the uninterrupted run.
        different: Runs that went on to other bits.
        leftovers: Other files beside the finished results.
        temporaries: Files that were being written when the signal came, which are never mistaken
            for anything.
        locks: Of the dead, found beside finished results and known to be such.
        middle: Kills after which some points, but not all, were there.
        ending: Kills after which all were: before, while, or after the result was written.
        again: Kills of runs that had been killed before.
    """

    kills: int = 0
    processes: int = 0
    acknowledged: int = 0
    unreadable: int = 0
    lost: int = 0
    wrong: int = 0
    different: int = 0
    leftovers: list[str] = field(default_factory=list)
    temporaries: int = 0
    locks: int = 0
    middle: int = 0
    ending: int = 0
    again: int = 0

    @property
    def kept(self) -> bool:
        """Whether nothing was lost, and the kills came when there was something to lose."""
        bad = self.unreadable + self.lost + self.wrong + self.different + len(self.leftovers)
        everywhere = min(self.ending, self.again) > 0 or self.kills < MANY
        return not bad and self.middle >= MIDDLE * self.kills > 0 and everywhere

    def __str__(self) -> str:
        """Everything, good or bad."""
        of_these = "".join(f" ({name})" for name in sorted(set(self.leftovers)))
        return (
            f"{self.unreadable} unreadable, {self.lost} of {self.acknowledged:,} acknowledged "
            f"points lost, {self.wrong} wrong values, {self.different} resumed to other bits, "
            f"{len(self.leftovers)} files left over{of_these} apart from {self.temporaries} "
            f"temporary ones and {self.locks} locks of the dead; "
            f"{self.middle} of the kills came in the middle of the points, {self.ending} when all "
            f"were there and the result was being written, {self.again} to a run killed before; "
            f"{self.processes} processes died"
        )


def measure(share: float) -> Iterator[Figure]:
    """R1: a figure for each kind of run."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, Zygote() as zygote:
        for k, kind in enumerate(KINDS):
            count = max(5, round(KILLS * share))
            report = survive(kind, count, Path(folder, str(k)), zygote)
            kept = report.kept and report.kills >= count
            yield Figure(f"SIGKILL, {kind}", f"{report.kills} kills", str(report), kept)


@functools.cache
def _objective(engine: str) -> lx.Objective:
    """Kept, because plans of compiled models are kept with it."""
    samples = SAMPLES[engine]
    batch = torch.linspace(-1, 1, 3 * samples).view(samples, 3), torch.zeros(samples, 1)
    return lx.Objective(models.mlp(3, 32, 1), [batch], "mse_loss")


def surface(
    engine: str,
    out: Path | None = None,
    shard: tuple[int, int] | None = None,
    callback: Callable[[Progress], object] | None = None,
) -> lx.Surface:
    """The run that is killed, or a shard of it."""
    return lx.surface(
        _objective(engine), points=POINTS[engine], engine=engine, out=out, shard=shard,
        callback=callback, progress=False,
    )  # fmt: skip


def _shards(count: int) -> list[tuple[int, int] | None]:
    return [None] if count == 1 else [(i, count) for i in range(count)]


# --- The runs, and what is found after them ------------------------------------------------------


def survive(kind: Kind, count: int, folder: Path, zygote: Zygote) -> Report:
    """Kill runs ``count`` times at uniformly random moments, look at what is there, and go on.

    Runs that ended before the signal came are looked at too, but are not among the ``count``.
    """
    truth, report, rng = surface(kind.engine), Report(), random.Random(str(kind))
    folder.mkdir()
    whole = sorted(zygote.run(kind, folder / f"whole{k}.nc", None).seconds for k in range(3))[1]
    for k in range(5 * count):
        if report.kills >= count:
            break
        out = folder / f"{k}" / "s.nc"
        out.parent.mkdir()
        acknowledged = np.zeros(truth.loss.size, dtype=bool)
        while report.kills < count:
            moments = _moments(kind, whole, rng)
            before, told = report.kills, zygote.run(kind, out, moments)
            report.kills += len({m for m, dead in zip(moments, told.killed, strict=True) if dead})
            report.processes += sum(told.killed)
            report.again += (report.kills - before) * bool(acknowledged.any())
            for first, number in told.acknowledged:
                acknowledged[first : first + number] = True
            done = _examine(out, acknowledged, truth, report)
            report.middle += (report.kills - before) * (0 < done < truth.loss.size)
            report.ending += (report.kills - before) * (done == truth.loss.size)
            if report.kills == before or rng.random() < 0.5:
                break
        report.acknowledged += int(acknowledged.sum())
        _go_on(kind, out, rng.choice([1, kind.processes]), truth, report)
    return report


def _moments(kind: Kind, whole: float, rng: random.Random) -> list[float]:
    """When each process is killed, in seconds: all together, or one at a time."""
    if rng.random() < 0.5:
        return [rng.uniform(0, whole)] * kind.processes
    return [rng.uniform(0, whole) for _ in range(kind.processes)]


def _examine(out: Path, acknowledged: np.ndarray, truth: lx.Surface, report: Report) -> int:
    """How many points are there; what is wrong with them goes into the report."""
    try:
        found = lx.open(out)
    except CorruptFileError as error:
        journals = [p for p in out.parent.glob("*.journal*") if p.suffix not in (".lock", ".tmp")]
        report.unreadable += bool(journals) or "does not exist" not in str(error)
        report.lost += int(acknowledged.sum())
        return 0
    done = found.evaluated.ravel()
    report.lost += int((acknowledged & ~done).sum())
    bits, right = (s.loss.ravel().view(np.uint64) for s in (found, truth))
    report.wrong += int((bits[done] != right[done]).sum())
    return int(done.sum())


def _go_on(kind: Kind, out: Path, parts: int, truth: lx.Surface, report: Report) -> None:
    """Let the run finish, in as many parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LandscapexWarning)  # a torn last line is cut
        for shard in _shards(parts):
            result = surface(kind.engine, out, shard)
    report.different += not (result.equals(truth) and lx.open(out).equals(truth))
    for name in sorted(p.name for p in out.parent.iterdir() if p.name != out.name):
        if name.endswith(".tmp"):
            report.temporaries += 1
        elif name.endswith(".lock") and _is_of_the_dead(out.with_name(name)):
            report.locks += 1
        else:
            report.leftovers.append(name)


def _is_of_the_dead(lock: Path) -> bool:
    remove_stale_lock(lock)
    return not lock.exists()


# --- The processes that are killed ---------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """What a run told before it ended.

    Attributes:
        acknowledged: Points, as first and number.
        killed: For each process, whether the signal ended it.
        seconds: Until the last one had ended.
    """

    acknowledged: list[tuple[int, int]]
    killed: list[bool]
    seconds: float


class Zygote:
    """A process that has imported everything once, and forks the processes of each run."""

    def __enter__(self) -> Self:
        """Start it."""
        tests = Path(__file__).parents[1]
        code = (
            f"import sys; sys.path.insert(0, {str(tests)!r}); "
            "from reliability import kills; kills.serve()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def run(self, kind: Kind, out: Path, moments: list[float] | None) -> Told:
        """One run, whose processes are killed after so many seconds; or not at all."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = [kind.engine, kind.processes, str(out), moments]
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Told(**json.loads(self._process.stdout.readline()))

    def __exit__(self, *_: object) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(30) == 0


def serve() -> None:
    """Serve `Zygote.run` until the input ends."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        engine, processes, out, moments = json.loads(line)
        print(json.dumps(_run(engine, processes, Path(out), moments)), flush=True)


def _run(engine: str, processes: int, out: Path, moments: list[float] | None) -> dict[str, Any]:
    """Fork, kill, and collect what was told."""
    numbers = _numbers(engine)
    reader, writer = os.pipe()
    began = time.monotonic()
    pids = [_start(engine, out, shard, numbers, reader, writer) for shard in _shards(processes)]
    os.close(writer)
    for moment, pid in sorted(zip(moments or [], pids, strict=moments is not None)):
        time.sleep(max(0.0, began + moment - time.monotonic()))
        os.kill(pid, signal.SIGKILL)  # it keeps its number until it is waited for
    with os.fdopen(reader) as told:
        lines = told.read().splitlines()
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert set(statuses) <= {0, -signal.SIGKILL}, statuses
    return {
        "acknowledged": [tuple(map(int, line.split())) for line in lines],
        "killed": [status != 0 for status in statuses],
        "seconds": time.monotonic() - began,
    }


@functools.cache
def _numbers(engine: str) -> dict[tuple[float, ...], int]:
    """The number of each grid point, by its coordinates; everything slow is done by then."""
    axes = surface(engine).coordinates
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    return {tuple(point): k for k, point in enumerate(points.tolist())}


def _start(
    engine: str,
    out: Path,
    shard: tuple[int, int] | None,
    numbers: dict[tuple[float, ...], int],
    reader: int,
    writer: int,
) -> int:
    """Fork a process that computes a part, and tells which points it was told are kept."""

    def tell(progress: Progress) -> None:
        first = numbers[tuple(progress.coordinates[0].tolist())]
        os.write(writer, b"%d %d\n" % (first, len(progress.coordinates)))

    if pid := os.fork():
        return pid
    code = 1
    try:
        os.close(reader)
        surface(engine, out, shard, tell)
        code = 0
    finally:
        os._exit(code)
