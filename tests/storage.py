"""What tests of storage share: runs of known values, killed writers, damaged files.

Counts are arguments, so that the everyday tests and the large figures run the same code.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from landscapex.errors import LandscapexError, LandscapexWarning
from landscapex.grids.results import Surface
from landscapex.storage.header import AxisInfo, RunHeader
from landscapex.storage.journal import Journal
from landscapex.storage.parts import read_journals, remove_journals
from landscapex.storage.store import read_dataset

CHUNK = 4


def make_header(*shape: int, columns: tuple[str, ...] = ("loss", "accuracy"), **parts) -> RunHeader:
    """A header of this shape; ``parts`` replace its fields."""
    axes = tuple(
        AxisInfo(name, tuple(np.linspace(-1, 1, n)), f"random direction {k}", "1 = ‖w‖")
        for k, (name, n) in enumerate(zip(("alpha", "beta", "gamma"), shape, strict=False), start=1)
    )
    fields = {
        "kind": ("line", "surface", "volume")[len(shape) - 1],
        "axes": axes,
        "columns": columns,
        "fingerprint": {"parameters": "3fa2c1", "data": "99ab00"},
        "recorded": {"threads": 2},
        "provenance": {"seed": 0, "notes": ["made by a test"]},
    }
    return RunHeader(**{**fields, **parts})


def make_values(header: RunHeader, seed: int = 0) -> np.ndarray:
    """Finite numbers of all magnitudes and both signs, ``(G, M)``."""
    rng = np.random.default_rng(seed)
    shape = header.num_points, len(header.columns)
    return rng.standard_normal(shape) * 10.0 ** rng.integers(-300, 300, shape)


def bits(values: np.ndarray) -> list[int]:
    """The bits of float64 numbers, NaN payloads included."""
    return np.ascontiguousarray(values, dtype=np.float64).view(np.uint64).ravel().tolist()


def fill(journal: Journal, values: np.ndarray, stop: int | None = None) -> None:
    """Append what is missing, chunk by chunk."""
    for start in range(0, len(values) if stop is None else stop, CHUNK):
        if not journal.done[start]:
            journal.append(start, values[start : start + CHUNK])


HEADER = make_header(3, 5)
VALUES = make_values(HEADER)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writing beyond ``size`` bytes of any file fails with EFBIG, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGXFSZ, handler)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Permissions do not hold for root: be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def fork(work: Callable[[], object]) -> int:
    """Run ``work`` in a child; exit status 0 if it returned, 1 if it raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch may have started threads
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    """The exit status of a child; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def begun(out: Path, stop: int | None = 8, header: RunHeader = HEADER, **options) -> Path:
    """The journal of a run that ended after ``stop`` points."""
    with Journal.open(out, header, **options) as j:
        fill(j, VALUES, stop)
    return j.path


def lock_of(out: Path, **changed) -> Path:
    """A lock as if another run had left it."""
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "start": "1", "since": "noon"}
    path = out.with_name("s.nc.journal.lock")
    path.write_text(json.dumps({**holder, **changed}))
    return path


def dead_pid() -> int:
    pid = fork(lambda: None)
    wait(pid)
    return pid


@dataclass
class Kills:
    """What became of killed writers."""

    kills: int = 0
    midway: int = 0  # killed with some points acknowledged and some missing
    finished: int = 0
    lost: int = 0  # points acknowledged but not there
    wrong: int = 0  # points with other bits
    unreadable: int = 0


def kill_writers(folder: Path, kills: int, seed: int = 0) -> Kills:
    """SIGKILL processes that compute a surface, at random times; each resumes the one before."""
    rng = np.random.default_rng(seed)
    header = make_header(23, 11)
    values = make_values(header, seed)
    out, counts, acknowledged = folder / "s.nc", Kills(), set()
    while counts.kills < kills:
        read, write = os.pipe()
        pid = fork(lambda end=write: _write_run(out, header, values, end))
        os.close(write)
        if rng.integers(4):  # else the beginning is hit as well
            select.select([read], [], [], 10)
        time.sleep(rng.uniform(0, 0.06))
        os.kill(pid, signal.SIGKILL)
        killed = wait(pid) == -signal.SIGKILL
        with os.fdopen(read, "rb") as pipe:
            acknowledged |= {start for (start,) in struct.iter_unpack("i", pipe.read())}
        counts.kills += killed
        counts.midway += killed and 0 < len(acknowledged) < header.num_points / CHUNK
        _inspect(out, header, values, acknowledged, counts)
        if out.exists():
            counts.finished += 1
            out.unlink()
            remove_journals(out)
            acknowledged.clear()
    return counts


def _write_run(out: Path, header: RunHeader, values: np.ndarray, pipe: int) -> None:
    warnings.simplefilter("ignore")
    with Journal.open(out, header) as journal:
        for start in range(0, len(values), CHUNK):
            if not journal.done[start]:
                journal.append(start, values[start : start + CHUNK])
                os.write(pipe, struct.pack("i", start))
                time.sleep(0.0003)
        surface = Surface.from_run(journal.header, journal.done, journal.values)
    surface.save(out)
    remove_journals(out)


def _inspect(
    out: Path, header: RunHeader, values: np.ndarray, acknowledged: set[int], counts: Kills
) -> None:
    """Compare what a killed writer left with what it acknowledged."""
    wanted = np.zeros(len(values), dtype=bool)
    for start in acknowledged:
        wanted[start : start + CHUNK] = True
    try:
        if out.exists():
            dataset = read_dataset(out)
            done = dataset["evaluated"].values.ravel()
            found = np.stack([dataset[name].values.ravel() for name in header.columns], axis=1)
        elif any(out.parent.glob("s.nc.journal")):
            _, done, found = read_journals(out)
        else:
            done, found = np.zeros_like(wanted), values
    except LandscapexError:
        counts.unreadable += 1
        return
    counts.lost += int((wanted & ~done).sum())
    counts.wrong += int((found[done].view(np.uint64) != values[done].view(np.uint64)).sum())


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One kind of damage, at a random place."""
    array = bytearray(data)
    at = int(rng.integers(len(data)))
    size = int(rng.integers(1, 200))
    match rng.choice(["flip", "flip", "truncate", "insert", "remove", "random", "zero", "copy"]):
        case "flip":
            for place in rng.integers(len(data), size=rng.integers(1, 9)):
                array[place] ^= 1 << int(rng.integers(8))
        case "truncate":
            del array[at:]
        case "insert":
            array[at:at] = rng.bytes(size)
        case "remove":
            del array[at : at + size]
        case "random":
            array[at : at + size] = rng.bytes(len(array[at : at + size]))
        case "zero":
            array[at : at + size] = bytes(len(array[at : at + size]))
        case "copy":
            place = int(rng.integers(len(data)))
            array[at : at + size] = array[place : place + size]
    return bytes(array)


@dataclass
class Reads:
    """What became of damaged files."""

    refused: int = 0
    same: int = 0  # every number that was read is the right one
    wrong: int = 0
    foreign: int = 0  # errors that are not ours
    slowest: float = 0.0


def read_damaged(
    data: bytes, path: Path, check: Callable[[Path], bool], count: int, seed: int = 0
) -> Reads:
    """Read damaged copies of a file; ``check`` reads one and says whether its numbers are right."""
    rng, reads = np.random.default_rng(seed), Reads()
    for _ in range(count):
        while (damaged := mutate(data, rng)) == data:
            pass  # zeros on zeros
        path.write_bytes(damaged)
        began = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", LandscapexWarning)
                right = check(path)
            reads.same += right
            reads.wrong += not right
        except LandscapexError:
            reads.refused += 1
        except Exception:
            reads.foreign += 1
        reads.slowest = max(reads.slowest, time.monotonic() - began)
    return reads
