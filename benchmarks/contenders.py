"""Everyone who computes the planes of `workloads`: landscapex, other tools, plain PyTorch."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import baselines
import numpy as np
import pytest
import torch
from baselines import InPlace, Setting, Unavailable
from timing import CLOSE, Difference, Timed, difference, stopwatch
from workloads import DISTANCE, Plane, Workload

import landscapex as lx

OURS = "landscapex"
ROUNDED = 0.5  # relative; bfloat16: a wrong surface is farther off, a coarse one is not


@dataclass(frozen=True)
class Contender:
    """One way to compute a plane, ready to run.

    Attributes:
        plane: What it is asked for.
        run: Computes it and says how long that took.
        about: Settings that were chosen, or the engine in use.
        close: The largest relative difference that rounding explains.
    """

    plane: Plane
    run: Callable[[], Timed]
    about: Callable[[], str] = lambda: ""
    close: float = CLOSE


class Landscapex:
    """`surface` of an Objective that is bound once.

    Seconds per point are those between the first and the last report of finished points, or, if
    there is only one report, those that the plane takes longer than one of 2 x 2 points. So what a
    call does once (reading data, checking the centre, capture) is left out: it is told by itself.
    """

    def __init__(
        self, workload: Workload, plane: Plane, *, engine: str, precision: str = "model"
    ) -> None:
        data = (workload.inputs, workload.labels)
        self.objective = lx.Objective(workload.model, data, "cross_entropy", precision=precision)
        self.plane, self.engine, self.used = plane, engine, ""

    def __call__(self) -> Timed:
        losses, marks = self._surface(len(self.plane.alpha), len(self.plane.beta))
        begin, *reports, end = marks
        if len(reports) > 1:
            taken = reports[-1] - reports[0]
        else:
            start, *_, stop = self._surface(2, 2)[1]
            taken = (end - begin) - (stop - start)
        points, cpu, wall = taken.tolist()
        return Timed(losses, int(points), cpu, wall, float((end - begin)[2]))

    def _surface(self, *points: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Losses; points finished, CPU and wall seconds at the start, each report and the end."""
        marks = [self.mark(0)]
        alpha, beta = self.plane.alpha, self.plane.beta
        surface = lx.surface(
            self.objective,
            directions=self.plane.directions,
            span=[(alpha[0], alpha[-1]), (beta[0], beta[-1])],
            points=points,
            engine=self.engine,
            progress=False,
            callback=lambda progress: marks.append(self.mark(progress.done)),
        )
        marks.append(self.mark(surface.loss.size))
        self.used = surface.provenance["engine"]["name"]
        return surface.loss, marks

    def mark(self, points: int) -> np.ndarray:
        return np.array([points, time.process_time(), time.perf_counter()])


@functools.cache
def best_engine(workload: Workload, precision: str) -> tuple[str, str]:
    """The compiled engine, or why it cannot be had; tried with an Objective that is used once."""
    plane = workload.rectangle((2, 2))
    try:
        Landscapex(workload, plane, engine="compiled", precision=precision)()
    except lx.errors.CaptureError as reason:
        return "eager", str(reason).partition(", got: ")[2].rstrip(".")
    return "compiled", ""


def _landscapex(
    workload: Workload, points: tuple[int, int], engine: str, precision: str = "model"
) -> Contender:
    plane = workload.rectangle(points)
    made = Landscapex(workload, plane, engine=engine, precision=precision)
    close = ROUNDED if precision == "bf16" else CLOSE
    return Contender(plane, made, lambda: f"{made.used} engine", close)


def _best_landscapex(workload: Workload, precision: str) -> Contender:
    engine, why = best_engine(workload, precision)
    made = _landscapex(workload, getattr(workload.size, engine), engine, precision)
    return replace(made, about=lambda: f"{engine} engine: {why}") if why else made


def ours(workload: Workload) -> Contender:
    return _best_landscapex(workload, "model")


def ours_bf16(workload: Workload) -> Contender:
    return _best_landscapex(workload, "bf16")


def ours_eager(workload: Workload) -> Contender:
    return _landscapex(workload, workload.size.eager, "eager")


def loss_landscape_style(workload: Workload) -> Contender:
    plane = workload.square()
    run = stopwatch(lambda: baselines.loss_landscape_style(workload, plane))
    return Contender(plane, run, lambda: f"batches of {baselines.LOADER_BATCH}")


def other_tools() -> ModuleType:
    try:
        import other_tools as found
    except pytest.skip.Exception as missing:
        raise Unavailable(str(missing)) from missing
    return found


def loss_landscapes(workload: Workload) -> Contender:
    tools, plane = other_tools(), workload.square()

    def compute() -> np.ndarray:
        return tools.loss_landscapes_surface(
            workload.model, plane.directions, (plane.alpha, plane.beta), workload.mean_loss
        )

    return Contender(plane, stopwatch(compute), lambda: "one batch")


def landscaper(workload: Workload) -> Contender:
    """It scales directions itself, so it is asked for a plane of its own."""
    tools, plane = other_tools(), workload.square()
    scaled = tools.landscaper_directions(workload.model, plane.directions)
    plane = replace(plane, directions=scaled)

    def compute() -> np.ndarray:
        side = len(plane.alpha)
        return tools.landscaper_surface(workload.model, scaled, side, DISTANCE, workload.mean_loss)[
            0
        ]

    return Contender(plane, stopwatch(compute), lambda: "one batch, its own scale of directions")


def vmap(workload: Workload) -> Contender:
    if workload.name in ("W4", "W6"):
        raise Unavailable("left out to save time")
    plane = workload.rectangle((2, baselines.VMAP_POINTS // 2))
    run = stopwatch(lambda: baselines.vmapped(workload, plane))
    return Contender(plane, run, lambda: f"batches of {baselines.VMAP_BATCH:,}")


@functools.lru_cache(maxsize=1)
def plain_setting(workload: Workload, threads: int) -> Setting:
    """What is best for PyTorch in place, with so many threads."""
    del threads
    return baselines.best_setting(workload)


def _in_place(workload: Workload, setting: Setting, close: float, **options: Any) -> Contender:
    plane = workload.square()
    made = InPlace(workload, plane, setting, **options)
    return Contender(plane, stopwatch(made), lambda: str(setting), close)


def in_place(workload: Workload) -> Contender:
    return _in_place(workload, plain_setting(workload, torch.get_num_threads()), CLOSE)


def onednn(workload: Workload) -> Contender:
    options = {"make_total": baselines.summed_onednn}
    return _in_place(workload, baselines.best_setting(workload, **options), CLOSE, **options)


def autocast(workload: Workload) -> Contender:
    options = {"context": baselines.autocast}
    return _in_place(workload, baselines.best_setting(workload, **options), ROUNDED, **options)


def compiled(workload: Workload) -> Contender:
    """At the setting that is best without compilation: each try takes half a minute."""
    plane, setting = workload.square(), plain_setting(workload, torch.get_num_threads())
    made = baselines.compiled(workload, plane, setting)
    return Contender(plane, stopwatch(made), lambda: str(setting))


CONTENDERS: dict[str, Callable[[Workload], Contender]] = {
    OURS: ours,
    "landscapex, bf16": ours_bf16,
    "landscapex, eager": ours_eager,
    "loss-landscape style": loss_landscape_style,
    "loss-landscapes": loss_landscapes,
    "landscaper": landscaper,
    "vmap over 8 points": vmap,
    "torch.compile": compiled,
    "PyTorch in place": in_place,
    "PyTorch in place, oneDNN": onednn,
    "PyTorch in place, bf16": autocast,
}


def prepare(
    workload: Workload, names: tuple[str, ...] = tuple(CONTENDERS)
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Those that run here, and for the others the reason."""
    ready, skipped = {}, {}
    for name in names:
        try:
            ready[name] = CONTENDERS[name](workload)
        except Unavailable as reason:
            skipped[name] = str(reason)
    return ready, skipped


def prove_equal(workload: Workload, name: str, contender: Contender) -> tuple[Difference, Timed]:
    """Run once and compare with float64; of a long row, with every n-th point of it."""
    timed = contender.run()
    assert timed.losses.shape == (len(contender.plane.alpha), len(contender.plane.beta))
    plane, every = contender.plane.thinned()
    losses = timed.losses[:, ::every]
    before = None
    if name == "loss-landscapes":
        step = plane.beta[1] - plane.beta[0]
        before = workload.exact(replace(plane, beta=plane.beta - step))
    found = difference(name, losses, workload.exact(plane), before)
    assert found.unexplained < contender.close, (
        f"{name} computes another surface: it is off by {found.unexplained:.1e}"
    )
    return found, timed
