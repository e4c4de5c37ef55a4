"""Fill a grid: chunk by chunk, with a journal, progress and requests to stop; no point is lost."""

from __future__ import annotations

import contextlib
import errno
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from landscapex import axes
from landscapex._directions import (
    Directions,
    DrawnDirections,
    check_layout,
    check_usable,
    layout_of,
)
from landscapex._progress_bar import progress_bar
from landscapex._warnings import warn
from landscapex.engine.choice import Region
from landscapex.errors import (
    ArgumentError,
    DirectionError,
    GridError,
    OutputError,
    ResumeMismatchError,
    TimeLimitWarning,
)
from landscapex.grids.earlier import finished_run, read_earlier
from landscapex.grids.grid import CONFIRM_ABOVE, Grid, make_grid
from landscapex.grids.options import Options, Plane, Progress
from landscapex.grids.provenance import describe_run
from landscapex.grids.quantities import Losses, Quantity
from landscapex.grids.ranks import this_rank
from landscapex.grids.results import Surface
from landscapex.grids.time_limit import Deadline
from landscapex.interrupts import Interrupts, terminated
from landscapex.objective import Objective
from landscapex.session import Point, Session
from landscapex.storage import opening
from landscapex.storage.header import KINDS, RunHeader
from landscapex.storage.journal import Journal
from landscapex.storage.parts import CHUNK, Elsewhere, owned, read_elsewhere

BLOCK_SECONDS = 0.5  # of work that may be lost
TOGETHER_SECONDS = 1.0  # where points share work
HELD = 4 * 2**30  # bytes of random directions; larger ones are drawn anew at every point
NAMED = ("random", "hessian")  # directions that are made here


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
    earlier = read_earlier(options)
    with (
        Interrupts() as interrupts,
        _thread_count(options.threads or earlier.threads),
        objective.session(_center(options), layout=earlier.layout) as session,
    ):
        computed = quantity(session)
        fingerprint = session.fingerprint()  # before an evaluation touches running statistics
        directions = _directions(num_axes, session, options)
        spans = _default_spans(directions, options)
        grid = make_grid(num_axes, options.span, options.points, default_spans=spans)
        center = computed.center(interrupts)
        _confirm_size(grid, len(center), computed.seconds, options.confirm)
        _warn_of_lost_steps(session, directions, grid)
        wanted = options.engine if options.engine != "auto" else earlier.engine
        computed.prepare(directions.steps, _region(grid), center, wanted)
        header = describe_run(session, computed, directions, grid, center, fingerprint)
        elsewhere = _read_elsewhere(options, header)
        finished = finished_run(options, header, begun=elsewhere is not None)
        if finished is not None:
            return finished
        stop = Deadline(interrupts, options.time_limit, began)
        run = _Run(session, computed, grid, header, options, stop)
        with contextlib.ExitStack() as stack:
            if options.out is not None:
                run.journal, run.elsewhere = _begin(options, header, stack)
            interrupts.armed = True
            run.fill()
        result = run.result(time.monotonic() - began)
    if interrupts.signum is not None:  # also if it arrived while the model was put back
        stopped = _stopped(interrupts.signum, result, options)
        raise stopped
    if not run.complete:
        warn(TimeLimitWarning(_kept(result, options, "the time limit"), surface=result))
        return result
    _warn_of_results(result, center[0])
    for remark in computed.remarks(result):
        warn(remark)
    return result if options.out is None else _put_away(result, options, header)


def _read_elsewhere(options: Options, header: RunHeader) -> Elsewhere | None:
    """What others have of this run; nothing counts if it shall start over."""
    if options.out is None or not options.resume:
        return None
    return read_elsewhere(options.out, header, options.shard)


def _begin(
    options: Options, header: RunHeader, stack: contextlib.ExitStack
) -> tuple[Journal, Elsewhere | None]:
    """Open the journal of this run, and look once more at those of others."""
    assert options.out is not None, "there is something to write"
    try:
        journal = Journal.open(options.out, header, shard=options.shard, resume=options.resume)
    except OutputError as error:
        if error.errno == errno.EBUSY and options.shard is None and this_rank() is not None:
            error.add_note(
                "landscapex: with shard='auto', every process of torchrun computes its own part."
            )
        raise
    stack.enter_context(journal)
    try:
        # Of two that begin at once, one at least sees the journal of the other: better to refuse
        # now what cannot be joined than after hours of work.
        return journal, _read_elsewhere(options, header)
    except (ResumeMismatchError, OutputError):
        if not journal.done.any():
            journal.path.unlink(missing_ok=True)
        raise


def _put_away(result: Surface, options: Options, header: RunHeader) -> Surface:
    """Write a finished run to its file; of a part, if all the others are there."""
    assert options.out is not None, "there is somewhere to write to"
    if options.shard is None:
        return opening.put_away(result, options.out, header)
    # Journals of others may be of the runs that this one starts over: `merge` joins them later.
    return opening.join(options.out) if options.resume else result


class _Run:
    """One pass over the points that are ours and not done."""

    def __init__(
        self,
        session: Session,
        quantity: Quantity,
        grid: Grid,
        header: RunHeader,
        options: Options,
        stop: Deadline,
    ) -> None:
        self.session, self.quantity, self.grid = session, quantity, grid
        self.header, self.options, self.stop = header, options, stop
        self.journal: Journal | None = None
        self.elsewhere: Elsewhere | None = None
        self.complete = False  # whether all points that are ours are there
        # points at once: what is lost if the loss raises, or the machine stops
        self._fewest, self._most = quantity.at_once or (1, CHUNK)
        self._seconds = BLOCK_SECONDS if quantity.at_once is None else TOGETHER_SECONDS
        self._latest = np.inf
        self._set_pace(quantity.seconds)
        self._done = np.zeros(grid.size, dtype=bool)
        self._values = np.full((grid.size, len(header.columns)), np.nan)

    def fill(self) -> None:
        """Evaluate, keep and report every chunk; returns early on a request to stop."""
        if self.journal is not None:
            self._done, self._values = self.journal.done.copy(), self.journal.values.copy()
        if self.elsewhere is not None:
            there = self.elsewhere.done & ~self._done
            self._values[there] = self.elsewhere.values[there]
            self._done |= there
        chunks = owned(self.grid.size, self.options.shard)
        total = sum(stop - start for start, stop in chunks)
        finished = int(sum(self._done[start:stop].sum() for start, stop in chunks))
        began = time.monotonic()
        bar = progress_bar(
            total=total,
            initial=finished,
            unit="point",
            desc=self.quantity.name or self.header.kind,
            disable=not self.options.progress or sys.stderr is None,
            delay=0.5,
            dynamic_ncols=True,
        )
        with bar:
            for start, stop in _missing(chunks, self._done):
                while start < stop:
                    count = self._next(stop - start)
                    values = self._evaluate(start, start + count) if count else self._values[:0]
                    if len(values):
                        self._keep(start, values)
                        finished += len(values)
                        bar.update(len(values))
                        seconds = time.monotonic() - began
                        self._report(start, values, finished, total, seconds)
                    start += len(values)
                    if start < stop and (not count or self.stop.requested):
                        return
                if self.stop.requested:
                    break
        self.complete = all(self._done[start:stop].all() for start, stop in chunks)

    def _next(self, left: int) -> int:
        """How many of the next points to take at once: as many as a block has time for, or none."""
        count = min(self._pace, left)
        room = self.stop.room(self._point_seconds)
        return count if room >= count else int(room) if room >= min(self._fewest, left) else 0

    def _evaluate(self, start: int, stop: int) -> np.ndarray:
        """Values of these points, or of the first of them if asked to stop."""
        points = self.grid.points(start, stop)
        began = time.monotonic()
        values = self.quantity.values(points, self.stop)
        if len(values):
            self._set_pace((time.monotonic() - began) / len(values))
        self.session.snapshot.check_unchanged(contents=True)  # before they are kept
        return values

    def _set_pace(self, seconds: float) -> None:
        """How many points to take at once when one takes so long.

        One that took longer than the one before may have been stopped (SIGSTOP, a laptop that
        slept): the next one tells.
        """
        self._point_seconds, self._latest = min(seconds, self._latest), seconds
        points = int(self._seconds / max(self._point_seconds, 1e-9))
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
        if self.elsewhere is not None:
            notes += [note for note in self.elsewhere.notes if note not in notes]
        for batches in self.session.engine.data.values():  # what became short on the way
            said = self.session.memory_notes(batches)
            notes += [note for note in said if note not in notes]
        provenance = {**header.provenance, "seconds": round(seconds, 3), "notes": notes}
        return Surface.from_run(replace(header, provenance=provenance), self._done, self._values)


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
        held = num_axes * session.center.nbytes <= HELD or rule == "model"
        draw = axes.random if held else axes.random_in_pieces
        directions: Directions = draw(
            objective, num_axes, seed=options.seed, normalize=rule, ignore=ignore,
            center=session.center,
        )  # fmt: skip
    else:
        if isinstance(wanted, str):
            wanted = _eigenvectors(num_axes, session, options)
        elif isinstance(wanted, Plane):
            wanted = wanted.directions
        directions = wanted if isinstance(wanted, Directions) else axes.given(objective, wanted)
        check_layout(directions, session.space)
        if not isinstance(directions, DrawnDirections):  # those are drawn where the model is
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


def _eigenvectors(num_axes: int, session: Session, options: Options) -> Directions:
    """Those of the largest curvature at the centre."""
    from landscapex.curvature.lanczos import eigenpairs  # only this kind of directions needs it
    from landscapex.curvature.operators import linearize

    loss = session.values()[0]
    found = eigenpairs(
        linearize(session), min(num_axes, session.space.size), seed=options.seed,
        progress=options.progress,
    )  # fmt: skip
    return found.directions(layout_of(session.space), loss=loss)


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
    steps = [float(np.abs(values[values != 0]).min()) for values in grid.axes]
    counts = np.zeros((2, len(steps)), dtype=np.int64)  # of entries that should move, and do not
    for i, e in enumerate(session.space.entries):
        along = directions.steps
        part = along[:, e.offset : e.end] if isinstance(along, Tensor) else along.of(i)
        c = session.center[e.offset : e.end]
        kind = e.dtype.to_real()
        for k, (step, d) in enumerate(zip(steps, part, strict=True)):
            moved = (c.double() + step * d.double()).to(session.center.dtype).to(kind)
            counts[:, k] += int((d != 0).sum()), int(((d != 0) & (moved == c.to(kind))).sum())
    for axis, step, moving, lost in zip(directions.axes, steps, *counts.tolist(), strict=True):
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
    if signum == signal.SIGTERM:
        return terminated(_kept(result, options, "SIGTERM"), surface=result)
    stopped = KeyboardInterrupt(_kept(result, options, "Ctrl-C"))
    stopped.surface = result  # type: ignore[attr-defined]
    return stopped


def _kept(result: Surface, options: Options, by: str) -> str:
    """What there is of a run that was stopped, and how to go on."""
    have = f"{int(result.evaluated.sum())} of {result.loss.size} points"
    again = "the same call" if options.resume else "the same call with resume=True"
    kept = "are in `.surface`"
    if options.out is not None:
        kept = f"are kept beside {options.out}; {again} goes on"
    return f"stopped by {by}: {have} {kept}."


@contextlib.contextmanager
def _thread_count(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
