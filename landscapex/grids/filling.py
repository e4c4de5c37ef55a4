"""Fill a grid: chunk by chunk, with a journal, progress and requests to stop; no point is lost."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from tqdm.auto import tqdm

from landscapex import axes
from landscapex._directions import Directions, check_layout, check_usable, layout_of
from landscapex._warnings import warn
from landscapex.engine.choice import Region
from landscapex.engine.layout import Layout
from landscapex.errors import (
    ArgumentError,
    DirectionError,
    GridError,
    ResumeMismatchError,
    Terminated,
)
from landscapex.grids.grid import CONFIRM_ABOVE, Grid, Span, make_grid
from landscapex.grids.provenance import describe_run
from landscapex.grids.quantities import Losses, Quantity
from landscapex.grids.results import Surface
from landscapex.interrupts import Interrupts
from landscapex.model.parameters import Ignore, Normalize
from landscapex.objective import Objective
from landscapex.session import Point, Session
from landscapex.storage import opening, store
from landscapex.storage.files import check_path
from landscapex.storage.header import KINDS, RunHeader, differences
from landscapex.storage.journal import Journal, journal_path

BLOCK_SECONDS = 0.5  # of work that may be lost
TOGETHER_SECONDS = 1.0  # where points share work
CHUNK = 16  # points per turn of a shard: part of the format of a run
NAMED = ("random", "hessian")  # directions that are made here

Auto = Literal["auto"]


@dataclass(frozen=True)
class Progress:
    """What a callback is told whenever points are finished.

    Attributes:
        done: Points finished, those of an earlier run included.
        total: Points this call is to finish.
        seconds: Since the call began.
        columns: Names of the values.
        coordinates: Of the points just finished, ``(n, K)``.
        values: At these points, ``(n, M)``.
    """

    done: int
    total: int
    seconds: float
    columns: tuple[str, ...]
    coordinates: np.ndarray
    values: np.ndarray


@runtime_checkable
class Plane(Protocol):
    """Directions that come with the point they start from: a `Trajectory`.

    Attributes:
        directions: The axes.
        center: Where their coordinates are 0; taken unless the caller gives another centre.
        span: One pair per direction; taken unless the caller gives another.
    """

    @property
    def directions(self) -> Directions:
        """The axes."""

    @property
    def center(self) -> Point:
        """Where their coordinates are 0."""

    @property
    def span(self) -> Sequence[tuple[float, float]]:
        """What is drawn, one pair per direction."""


@dataclass(frozen=True)
class Options:
    """The keyword arguments that all who fill a grid share."""

    directions: Any
    normalize: Normalize | Auto | None
    ignore: Ignore | Auto | None
    span: Span
    points: int | Sequence[int]
    center: Point
    seed: int
    out: Path | None
    resume: bool
    shard: tuple[int, int] | None
    engine: str
    threads: int | None
    progress: bool
    callback: Callable[[Progress], object] | None
    confirm: bool


def fill_grid(
    num_axes: int,
    objective: Objective,
    options: Options,
    quantity: Callable[[Session], Quantity] = Losses,
) -> Surface:
    """Compute a line, surface or volume, or what is missing of it.

    Args:
        num_axes: 1, 2 or 3.
        objective: Whose landscape it is.
        options: How.
        quantity: What is computed at every point, made for the session of the run.

    Returns:
        The result; see `evaluate.surface`.

    Raises:
        ArgumentError: If the directions are a string other than "random" and "hessian".
        KeyboardInterrupt: On Ctrl-C; see `evaluate.surface`.
        Terminated: On SIGTERM.
    """
    make_grid(num_axes, options.span, options.points)  # refuse bad numbers before reading data
    if isinstance(options.directions, str) and options.directions not in NAMED:
        raise ArgumentError(
            "`directions` must be 'random' or 'hessian', or hold directions, got "
            f"{options.directions!r}."
        )
    began = time.monotonic()
    with (
        _thread_count(options.threads or _earlier_threads(options)),
        Interrupts() as interrupts,
        objective.session(_center(options), layout=_earlier_layout(options)) as session,
    ):
        computed = quantity(session)
        fingerprint = session.fingerprint()  # before an evaluation touches running statistics
        directions = _directions(num_axes, session, options)
        spans = _default_spans(directions, options)
        grid = make_grid(num_axes, options.span, options.points, default_spans=spans)
        center = computed.center(interrupts)
        _confirm_size(grid, len(center), computed.seconds, options.confirm)
        _warn_of_lost_steps(session, directions, grid)
        wanted = options.engine if options.engine != "auto" else _earlier_engine(options)
        computed.prepare(directions.vectors, _region(grid), center, wanted)
        header = describe_run(session, computed, directions, grid, center, fingerprint)
        finished = _finished(options, header)
        if finished is not None:
            return finished
        run = _Run(session, computed, grid, header, options, interrupts)
        with contextlib.ExitStack() as stack:
            if options.out is not None:
                run.journal = stack.enter_context(
                    Journal.open(options.out, header, shard=options.shard, resume=options.resume)
                )
            interrupts.armed = True
            run.fill()
        result = run.result(time.monotonic() - began)
    if interrupts.signum is not None:  # also if it arrived while the model was put back
        stopped = _stopped(interrupts.signum, result, options)
        raise stopped
    _warn_of_results(result, center[0])
    for remark in computed.remarks(result):
        warn(remark)
    if options.out is not None and options.shard is None:
        result.save(options.out)
        store.remove_journals(options.out, header)
        result = opening.open(options.out)
    return result


class _Run:
    """One pass over the points that are ours and not done."""

    def __init__(
        self,
        session: Session,
        quantity: Quantity,
        grid: Grid,
        header: RunHeader,
        options: Options,
        interrupts: Interrupts,
    ) -> None:
        self.session, self.quantity, self.grid = session, quantity, grid
        self.header, self.options, self.interrupts = header, options, interrupts
        self.journal: Journal | None = None
        # points at once: what is lost if the loss raises, or the machine stops
        self._fewest, self._most = quantity.at_once or (1, CHUNK)
        self._seconds = BLOCK_SECONDS if quantity.at_once is None else TOGETHER_SECONDS
        self._set_pace(quantity.seconds)
        self._done = np.zeros(grid.size, dtype=bool)
        self._values = np.full((grid.size, len(header.columns)), np.nan)

    def fill(self) -> None:
        """Evaluate, keep and report every chunk; returns early on a request to stop."""
        if self.journal is not None:
            self._done, self._values = self.journal.done.copy(), self.journal.values.copy()
        i, n = self.options.shard or (0, 1)
        chunks = [c for k, c in enumerate(self.grid.chunks(CHUNK)) if k % n == i]
        total = sum(stop - start for start, stop in chunks)
        finished = int(sum(self._done[start:stop].sum() for start, stop in chunks))
        began = time.monotonic()
        bar = tqdm(
            total=total,
            initial=finished,
            unit="point",
            desc=self.quantity.name or self.header.kind,
            disable=not self.options.progress or sys.stderr is None,
            delay=0.5,
            dynamic_ncols=True,
            mininterval=0.1 if _watched() else 10.0,  # lines of a log file stay
        )
        with bar:
            for start, stop in _missing(chunks, self._done):
                while start < stop:
                    values = self._evaluate(start, stop)
                    if len(values):
                        self._keep(start, values)
                        finished += len(values)
                        bar.update(len(values))
                        seconds = time.monotonic() - began
                        self._report(start, values, finished, total, seconds)
                    if self.interrupts.requested:
                        return
                    start += len(values)

    def _evaluate(self, start: int, stop: int) -> np.ndarray:
        """Values of the next points: what a block has time for, up to ``stop``."""
        points = self.grid.points(start, min(start + self._pace, stop))
        began = time.monotonic()
        values = self.quantity.values(points, self.interrupts)
        if len(values):
            self._set_pace((time.monotonic() - began) / len(values))
        self.session.snapshot.check_unchanged(contents=True)  # before they are kept
        return values

    def _set_pace(self, seconds: float) -> None:
        """How many points to take at once when one takes so long."""
        points = int(self._seconds / max(seconds, 1e-9))
        self._pace = max(self._fewest, min(self._most, points))

    def _report(
        self, start: int, values: np.ndarray, finished: int, total: int, seconds: float
    ) -> None:
        if self.options.callback is None:
            return
        points = self.grid.points(start, start + len(values))
        columns = self.header.columns
        self.options.callback(Progress(finished, total, seconds, columns, points, values))
        self.session.snapshot.check_unchanged(contents=True)

    def _keep(self, start: int, values: np.ndarray) -> None:
        if self.journal is not None:
            self.journal.append(start, values)
        self._done[start : start + len(values)] = True
        self._values[start : start + len(values)] = values

    def result(self, seconds: float) -> Surface:
        """What is there now, partial or not."""
        header = self.header
        notes = list(header.provenance["notes"])
        if self.journal is not None:
            header = self.journal.header
            notes += self.journal.notes
        provenance = {**header.provenance, "seconds": round(seconds, 3), "notes": notes}
        return Surface.from_run(replace(header, provenance=provenance), self._done, self._values)


def _watched() -> bool:
    """Whether somebody sees the bar move: a terminal or a notebook."""
    return (sys.stderr is not None and sys.stderr.isatty()) or "ipykernel" in sys.modules


def _region(grid: Grid) -> Region:
    low, high = (np.array([f(a) for a in grid.axes]) for f in (np.min, np.max))
    return Region(low, high, grid.size)


def _missing(chunks: Sequence[tuple[int, int]], done: np.ndarray) -> Iterator[tuple[int, int]]:
    """The stretches of points without a value, each within chunks that follow each other."""
    joined: list[tuple[int, int]] = []
    for start, stop in chunks:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    for start, stop in joined:
        first = start
        while first < stop:
            if done[first]:
                first += 1
                continue
            last = first
            while last < stop and not done[last]:
                last += 1
            yield first, last
            first = last


def _center(options: Options) -> Point:
    """The centre that was asked for, or else the one that comes with the directions."""
    if options.center is None and isinstance(options.directions, Plane):
        return options.directions.center
    return options.center


def _default_spans(directions: Directions, options: Options) -> Sequence[tuple[float, float]]:
    """One pair per direction."""
    if isinstance(options.directions, Plane):
        return options.directions.span
    return [a.default_span for a in directions.axes]


def _directions(num_axes: int, session: Session, options: Options) -> Directions:
    """The directions of this run, scaled as asked for, checked."""
    objective, wanted = session.objective, options.directions
    random_draw = wanted == "random" if isinstance(wanted, str) else False
    rule = options.normalize if options.normalize != "auto" else "filter" if random_draw else None
    ignore = options.ignore if options.ignore != "auto" else "bias_bn" if random_draw else None
    if random_draw:
        directions = axes.random(
            objective, num_axes, seed=options.seed, normalize=rule, ignore=ignore,
            center=session.center,
        )  # fmt: skip
    else:
        if isinstance(wanted, str):
            wanted = _eigenvectors(num_axes, session, options.seed)
        elif isinstance(wanted, Plane):
            wanted = wanted.directions
        directions = wanted if isinstance(wanted, Directions) else axes.given(objective, wanted)
        check_layout(directions, session.space)
        vectors = directions.vectors.to(session.space.device, session.space.dtype)
        directions = replace(directions, vectors=vectors)
        if rule is not None or ignore is not None:
            directions = axes.normalize(
                directions, objective, rule, ignore=ignore, center=session.center
            )
    if len(directions) != num_axes:
        raise DirectionError(
            f"a {KINDS[num_axes - 1]} needs {num_axes} direction(s), got {len(directions)}."
        )
    check_usable(directions)
    return directions


def _eigenvectors(num_axes: int, session: Session, seed: int) -> Directions:
    """Those of the largest curvature at the centre."""
    from landscapex.curvature.lanczos import eigenpairs  # only this kind of directions needs it
    from landscapex.curvature.operators import linearize

    loss = session.values()[0]
    found = eigenpairs(linearize(session), min(num_axes, session.space.size), "LA", seed=seed)
    return found.directions(layout_of(session.space), loss=loss)


def _finished(options: Options, header: RunHeader) -> Surface | None:
    """The result that is already at ``out``, if it is this one."""
    out = options.out
    if out is None or not out.is_file():
        return None
    if not options.resume:
        store.check_replaceable(out)
        return None
    if journal_path(check_path(out), options.shard).exists():
        return None  # it is newer than the result, whose place it will take
    there = opening.open(out)
    stored = replace(
        header,
        kind=there.kind,
        axes=there.axes,
        columns=there.columns,
        fingerprint=there.provenance.get("fingerprint", {}),
        recorded=there.provenance.get("recorded", {}),
        provenance=there.provenance,
    )
    if found := differences(stored, header):
        raise ResumeMismatchError(
            f"{out} holds the result of another run; pass resume=False to replace it. It differs "
            "in: " + "; ".join(found)
        )
    return there if there.complete else None


def _confirm_size(grid: Grid, num_columns: int, seconds: float, confirmed: bool) -> None:
    if grid.size > CONFIRM_ABOVE and not confirmed:
        hours = grid.size * seconds / 3600
        megabytes = grid.size * num_columns * 30 / 1e6
        raise GridError(
            f"a grid of {grid.size:,} points (more than {CONFIRM_ABOVE:,}) must be confirmed: it "
            f"would take about {hours:.2g} hours and {megabytes:.0f} MB; pass confirm=True."
        )


def _warn_of_lost_steps(session: Session, directions: Directions, grid: Grid) -> None:
    """Steps that rounding to the parameters' dtype swallows are worth knowing about."""
    for k, (values, axis) in enumerate(zip(grid.axes, directions.axes, strict=True)):
        step = float(np.abs(values[values != 0]).min())
        moving = lost = 0
        for e in session.space.entries:
            d = directions.vectors[k, e.offset : e.end]
            c = session.center[e.offset : e.end]
            kind = e.dtype.to_real()
            moved = (c.double() + step * d.double()).to(session.center.dtype).to(kind)
            moving += int((d != 0).sum())
            lost += int(((d != 0) & (moved == c.to(kind))).sum())
        if lost > 0.5 * moving:
            warn(
                f"{lost / moving:.0%} of the parameters do not move at all at the smallest step "
                f"({step:.3g}) along {axis.label}: it is below their resolution "
                f"({session.describe()['model']['dtype']}). Take a larger span, or fewer points."
            )


def _warn_of_results(result: Surface, center: float) -> None:
    losses = result.loss[result.evaluated]
    if len(losses) > 1 and np.array_equal(losses, np.full_like(losses, center), equal_nan=False):
        warn(
            "the loss is the same at every point: it does not depend on the parameters that move. "
            "Does it use another copy of the model?"
        )
    if result.nonfinite:
        warn(f"{result.nonfinite} of {len(losses)} losses are NaN or infinite; kept as they are.")


def _stopped(signum: int, result: Surface, options: Options) -> BaseException:
    have = f"{int(result.evaluated.sum())} of {result.loss.size} points"
    again = "the same call" if options.resume else "the same call with resume=True"
    kept = "are in `.surface`"
    if options.out is not None:
        kept = f"are kept beside {options.out}; {again} goes on"
    if signum == signal.SIGTERM:
        return Terminated(f"stopped by SIGTERM: {have} {kept}.", surface=result)
    stopped = KeyboardInterrupt(f"stopped by Ctrl-C: {have} {kept}.")
    stopped.surface = result  # type: ignore[attr-defined]
    return stopped


def _earlier(options: Options, name: str) -> Any:
    """What was recorded of the run that this one goes on with; None if there is none."""
    if options.out is None or not options.resume or not store.find_journals(options.out):
        return None
    return store.read_journals(options.out)[0].recorded.get(name)


def _earlier_threads(options: Options) -> int | None:
    """The threads of the run that this one goes on with: other threads may round differently."""
    threads = _earlier(options, "threads")
    return threads if isinstance(threads, int) else None


def _earlier_layout(options: Options) -> Layout | None:
    """Batches of other sizes round differently."""
    layout = _earlier(options, "layout")
    return Layout(**layout) if isinstance(layout, dict) else None


def _earlier_engine(options: Options) -> str:
    """A run that began on the eager engine goes on there: engines round differently."""
    return "eager" if _earlier(options, "engine") == "eager" else "auto"


@contextlib.contextmanager
def _thread_count(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
