"""landscapex and PyTorch in place on one device, in every arithmetic; timed by its own events."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import contenders
import numpy as np
import torch
from baselines import InPlace, Setting, Unavailable, candidates
from contenders import ROUNDED, Contender
from timing import CLOSE, Timed
from torch import Tensor
from workloads import Plane, Workload

import landscapex as lx

OURS = "landscapex"
PRECISIONS = ("fp32", "tf32", "bf16x3", "bf16")
CLOSENESS = {"fp32": CLOSE, "bf16x3": CLOSE, "tf32": 0.05, "bf16": ROUNDED}
NAMES = ("W1", "W2", "W3", "W4")
# the samples of a workload, so many times: enough to keep a device busy
TIMES = {"W1": 6, "W2": 6, "W3": 26, "W4": 78}
_BATCHES = (1 << 12, 1 << 14)  # candidates beside those of a processor
_WARM, _TIMED = 2, 3  # evaluations per candidate


class Clock:
    """Seconds of the device and of the wall; reading it waits until the device is idle."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._start: Any = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            self._start = torch.cuda.Event(enable_timing=True)
            self._start.record()

    def now(self) -> tuple[float, float]:
        if self._start is None:
            return time.perf_counter(), time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        torch.cuda.synchronize(self.device)
        return self._start.elapsed_time(event) / 1e3, time.perf_counter()


@dataclass(frozen=True)
class OnDevice:
    """A workload on a device, its samples several times over.

    Attributes:
        source: On the processor: the mean over its samples is that over all of them.
        there: On the device.
        device: Which.
    """

    source: Workload
    there: Workload
    device: torch.device

    def plane(self, points: tuple[int, int]) -> tuple[Plane, Plane]:
        """The same points, with directions here and there."""
        here = self.source.rectangle(points)
        moved = [{n: t.to(self.device) for n, t in d.items()} for d in here.directions]
        return here, replace(here, directions=moved)


def on_device(workload: Workload, device: torch.device, times: int) -> OnDevice:
    """Copy a workload to a device."""

    def repeated(t: Tensor) -> Tensor:
        return t.repeat(times, *[1] * (t.ndim - 1)).to(device)

    there = replace(
        workload,
        model=copy.deepcopy(workload.model).to(device),
        inputs=repeated(workload.inputs),
        labels=repeated(workload.labels),
        known={},
    )
    return OnDevice(workload, there, device)


class Landscapex(contenders.Landscapex):
    """As on a processor, by the clock of the device."""

    def __init__(self, device: torch.device, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.device = device
        self.clock: Clock | None = None

    def __call__(self) -> Timed:
        self.clock = Clock(self.device)
        timed = super().__call__()
        return replace(timed, device=timed.cpu, cpu=0.0)  # see `mark`

    def mark(self, points: int) -> np.ndarray:
        assert self.clock is not None
        return np.array([points, *self.clock.now()])


class InPlaceOnDevice(InPlace):
    """Losses stay on the device until those of a point are complete."""

    @torch.no_grad()
    def loss(self) -> float:
        with self.context():
            parts = [self.total(x, y) for x, y in self.batches]
            return float(torch.stack(parts).double().sum()) / self.samples


@contextlib.contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """What PyTorch computes in."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    cast = precision == "bf16"
    try:
        with torch.autocast(device.type, torch.bfloat16) if cast else contextlib.nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn


def ours(case: OnDevice, precision: str) -> Contender:
    """The compiled engine, or the eager one and why."""
    sizes = case.source.size
    if case.device.type != "cuda" and precision in ("tf32", "bf16x3"):
        raise Unavailable("only on a CUDA device")
    try:
        _ours(case, precision, "compiled", (2, 2)).run()
    except lx.errors.CaptureError as reason:
        why = str(reason).partition(", got: ")[2].rstrip(".")
        if precision == "bf16x3":
            raise Unavailable(why) from reason
        made = _ours(case, precision, "eager", sizes.eager)
        return replace(made, about=lambda: f"eager engine: {why}")
    return _ours(case, precision, "compiled", sizes.compiled)


def _ours(case: OnDevice, precision: str, engine: str, points: tuple[int, int]) -> Contender:
    here, there = case.plane(points)
    run = Landscapex(case.device, case.there, there, engine=engine, precision=precision)
    return Contender(here, run, lambda: f"{run.used} engine", CLOSENESS[precision])


def in_place(case: OnDevice, precision: str) -> Contender:
    """Resident data, weights written in place, one synchronisation per point."""
    if precision == "bf16x3":
        raise Unavailable("PyTorch has no such arithmetic")
    side = case.source.size.side
    here, there = case.plane((side, side))
    options = {"context": lambda: arithmetic(precision, case.device)}
    tried = [InPlaceOnDevice(case.there, there, s, **options) for s in settings(case.there)]
    best = min(range(len(tried)), key=lambda k: _seconds(tried[k].loss, case.device))
    setting = settings(case.there)[best]

    def run() -> Timed:
        clock = Clock(case.device)
        (device, wall), losses = clock.now(), tried[best]()
        device, wall = (b - a for a, b in zip((device, wall), clock.now(), strict=True))
        return Timed(losses, losses.size, 0.0, wall, wall, device)

    return Contender(here, run, lambda: str(setting), CLOSENESS[precision])


def settings(workload: Workload) -> list[Setting]:
    """Batch sizes and layouts that are tried."""
    layouts = {s.layout for s in candidates(workload)}
    larger = [Setting(n, m) for n in _BATCHES if n < len(workload.labels) for m in layouts]
    return [*candidates(workload), *sorted(larger, key=str)]


def _seconds(work: Callable[[], float], device: torch.device) -> float:
    """The least of several evaluations."""
    taken = []
    for _ in range(_WARM + _TIMED):
        clock = Clock(device)
        (start, _), _, (end, _) = clock.now(), work(), clock.now()
        taken.append(end - start)
    return min(taken[_WARM:])


def prepare(case: OnDevice) -> tuple[dict[str, Contender], dict[str, str]]:
    """Those that run here, and for the others the reason; fp32 by landscapex is the measure."""
    ready, skipped = {}, {}
    for label, make in ((OURS, ours), ("PyTorch in place", in_place)):
        for precision in PRECISIONS:
            name = label if precision == "fp32" else f"{label}, {precision}"
            try:
                ready[name] = make(case, precision)
            except Unavailable as reason:
                skipped[name] = str(reason)
    return ready, skipped
