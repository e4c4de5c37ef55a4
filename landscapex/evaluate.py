"""Lines, surfaces and volumes: fill a grid with losses, chunk by chunk, losing none."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from landscapex import axes, results, store
from landscapex.axes import Directions
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    DirectionError,
    GridError,
    LandscapexWarning,
    ResumeMismatchError,
    Terminated,
)
from landscapex.grid import CONFIRM_ABOVE, Grid, Span, make_grid
from landscapex.header import KINDS, RunHeader, differences
from landscapex.interrupts import Interrupts
from landscapex.journal import Journal
from landscapex.objective import Objective, Point, Session, bind
from landscapex.parameters import Ignore, Normalize
from landscapex.provenance import describe_run
from landscapex.results import Surface

BLOCK_SECONDS = 0.5  # of work that may be lost
CHUNK = 16  # points per turn of a shard: part of the format of a run

Auto = Literal["auto"]
Shard = None | str | tuple[int, int]


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


@dataclass(frozen=True)
class _Options:
    """The keyword arguments that `line`, `surface` and `volume` share."""

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
    threads: int | None
    progress: bool
    callback: Callable[[Progress], object] | None
    confirm: bool


def line(
    model: nn.Module | Objective,
    data: Any = None,
    loss: Any = None,
    *,
    directions: Any = "random",
    normalize: Normalize | Auto | None = "auto",
    ignore: Ignore | Auto | None = "auto",
    span: Span = None,
    points: int = 51,
    center: Point = None,
    metrics: Any = (),
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    shard: Shard = None,
    engine: str = "auto",
    precision: str = "model",
    threads: int | None = None,
    progress: bool = True,
    callback: Callable[[Progress], object] | None = None,
    confirm: bool = False,
) -> Surface:
    """The loss along one direction: ``loss[i]`` at ``center + alpha[i] d``.

    Takes the arguments of `surface`, with one direction.

    Returns:
        A result of kind "line".

    References:
        Goodfellow, Vinyals, Saxe, "Qualitatively characterizing neural network optimization
        problems", ICLR 2015, section 3.

    Example:
        >>> import landscapex as lx
        >>> lx.line(*lx.examples.digits(), points=5, progress=False).shape
        (5,)
    """
    objective = bind(model, data, loss, metrics=metrics, precision=precision)
    return _run(1, objective, engine, _options(locals()))


def surface(
    model: nn.Module | Objective,
    data: Any = None,
    loss: Any = None,
    *,
    directions: Any = "random",
    normalize: Normalize | Auto | None = "auto",
    ignore: Ignore | Auto | None = "auto",
    span: Span = None,
    points: int | Sequence[int] = 51,
    center: Point = None,
    metrics: Any = (),
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    shard: Shard = None,
    engine: str = "auto",
    precision: str = "model",
    threads: int | None = None,
    progress: bool = True,
    callback: Callable[[Progress], object] | None = None,
    confirm: bool = False,
) -> Surface:
    """The loss on a plane: ``loss[i, j]`` at ``center + alpha[i] d1 + beta[j] d2``.

    Every point is formed from the unchanged centre, evaluated on all data in evaluation mode, and
    averaged over samples in float64. The model comes back bit for bit.

    Args:
        model: A module, or an `Objective` (then without data, loss, metrics and precision).
        data: See `Objective`.
        loss: See `Objective`.
        directions: ``"random"``, `Directions`, a tensor ``(K, P)``, or a sequence of mappings
            {parameter name: tensor}.
        normalize: ``"filter"``, ``"layer"``, ``"model"``, ``"weight"`` or None; ``"auto"`` is
            ``"filter"`` for random directions and None for all others.
        ignore: ``"bias_bn"``, ``"copy"`` or None; ``"auto"`` is ``"bias_bn"`` for random
            directions and None for all others.
        span: ``s`` for coordinates from -s to s, ``(lo, hi)`` for all axes, or one pair per
            direction; None for (-1, 1), or (-0.5, 1.5) between models. Coordinates multiply the
            direction.
        points: Per axis: one number, or one per direction. An odd number over a symmetric span
            has the centre as a point.
        center: None for the live parameters, a state_dict, or a flat vector ``(P,)``.
        metrics: See `Objective`.
        seed: Of random directions.
        out: Result file (NetCDF-4). While the work goes on, finished points are kept in a journal
            beside it.
        resume: Go on with an interrupted run of the same settings, and return a finished one;
            False starts over.
        shard: ``"i/n"`` or ``(i, n)``: compute part i (from 0) of n; see `merge`.
        engine: ``"auto"`` or ``"eager"``.
        precision: See `Objective`.
        threads: torch's threads during this call; None leaves them.
        progress: Show a bar with the time left.
        callback: Called with a `Progress` whenever points are finished, at least every half second
            unless one takes longer; the model is not at its centre then.
        confirm: Allow more than a million points.

    Returns:
        A result of kind "surface"; it may be partial with ``shard``.

    Raises:
        ArgumentError: If an option has an unknown value.
        GridError: If the grid is empty, not finite or too large.
        DirectionError: If a direction is zero, not finite, or parallel to the other.
        NondeterministicLossError: If the centre gives two different losses.
        NonFiniteCenterError: If the parameters are not finite.
        ResumeMismatchError: If ``out`` holds another run.
        OutputError: If ``out`` cannot be written.
        KeyboardInterrupt: On Ctrl-C, after the point at hand; ``surface`` is the partial result.
        Terminated: On SIGTERM, likewise.

    References:
        Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural Nets",
        NeurIPS 2018, section 4.

    Example:
        >>> import landscapex as lx
        >>> lx.surface(*lx.examples.digits(), points=(3, 5), progress=False).shape
        (3, 5)
    """
    objective = bind(model, data, loss, metrics=metrics, precision=precision)
    return _run(2, objective, engine, _options(locals()))


def volume(
    model: nn.Module | Objective,
    data: Any = None,
    loss: Any = None,
    *,
    directions: Any = "random",
    normalize: Normalize | Auto | None = "auto",
    ignore: Ignore | Auto | None = "auto",
    span: Span = None,
    points: int | Sequence[int] = 21,
    center: Point = None,
    metrics: Any = (),
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    shard: Shard = None,
    engine: str = "auto",
    precision: str = "model",
    threads: int | None = None,
    progress: bool = True,
    callback: Callable[[Progress], object] | None = None,
    confirm: bool = False,
) -> Surface:
    """The loss in three directions: ``loss[i, j, k]``; takes the arguments of `surface`.

    Returns:
        A result of kind "volume".

    Example:
        >>> import landscapex as lx
        >>> lx.volume(*lx.examples.digits(), points=3, progress=False).shape
        (3, 3, 3)
    """
    objective = bind(model, data, loss, metrics=metrics, precision=precision)
    return _run(3, objective, engine, _options(locals()))


def _options(arguments: dict[str, Any]) -> _Options:
    """Check the shared arguments, before any work."""
    chosen = {name: arguments[name] for name in _Options.__dataclass_fields__}
    if arguments["engine"] not in ("auto", "eager"):
        raise ArgumentError(f"`engine` must be 'auto' or 'eager', got {arguments['engine']!r}.")
    if chosen["out"] is not None and not isinstance(chosen["out"], str | os.PathLike):
        raise ArgumentTypeError(f"`out` must be a path, got {type(chosen['out']).__name__}.")
    if chosen["callback"] is not None and not callable(chosen["callback"]):
        raise ArgumentTypeError("`callback` must be callable, got " + repr(chosen["callback"]))
    threads = chosen["threads"]
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ArgumentError(f"`threads` must be a whole number of at least 1, got {threads!r}.")
    chosen["out"] = None if chosen["out"] is None else Path(chosen["out"])
    chosen["shard"] = parse_shard(chosen["shard"])
    return _Options(**chosen)


def parse_shard(shard: Shard) -> tuple[int, int] | None:
    """``"i/n"`` or ``(i, n)`` as a pair, checked.

    Args:
        shard: The argument of `surface`.

    Returns:
        ``(i, n)``, or None.

    Raises:
        ArgumentError: If it is not a part of a whole.

    Example:
        >>> parse_shard("1/4")
        (1, 4)
    """
    if shard is None:
        return None
    parts = shard.split("/") if isinstance(shard, str) else shard
    try:
        i, n = (int(p) for p in parts)
    except (TypeError, ValueError):
        raise ArgumentError(f"`shard` must be 'i/n' or (i, n), got {shard!r}.") from None
    if not 0 <= i < n:
        raise ArgumentError(f"`shard` i/n must have 0 <= i < n, got {shard!r}.")
    return i, n


def _run(num_axes: int, objective: Objective, engine: str, options: _Options) -> Surface:
    make_grid(num_axes, options.span, options.points)  # refuse bad numbers before reading data
    if isinstance(options.directions, str) and options.directions != "random":
        raise ArgumentError(
            f"`directions` must be 'random' or hold directions, got {options.directions!r}."
        )
    began = time.monotonic()
    with (
        _thread_count(options.threads),
        Interrupts() as interrupts,
        objective.session(options.center) as session,
    ):
        directions = _directions(num_axes, session, options)
        spans = [a.default_span for a in directions.axes]
        grid = make_grid(num_axes, options.span, options.points, default_spans=spans)
        fingerprint = session.fingerprint()  # before an evaluation touches running statistics
        started = time.monotonic()
        center = session.checked_center(interrupts)
        seconds = (time.monotonic() - started) / (2 if objective.check else 1)
        _confirm_size(grid, len(center), seconds, options.confirm)
        _warn_of_lost_steps(session, directions, grid)
        header = describe_run(session, directions, grid, center, fingerprint)
        finished = _finished(options, header)
        if finished is not None:
            return finished
        run = _Run(session, directions.vectors, grid, header, options, interrupts, seconds)
        with contextlib.ExitStack() as stack:
            if options.out is not None:
                run.journal = stack.enter_context(
                    Journal.open(options.out, header, shard=options.shard, resume=options.resume)
                )
            interrupts.armed = True
            run.fill()
        result = run.result(time.monotonic() - began)
        if interrupts.signum is not None:
            raise _stopped(interrupts.signum, result, options.out)
    _warn_of_results(result, center[0])
    if options.out is not None and options.shard is None:
        result.save(options.out)
        store.remove_journals(options.out, header)
        result = results.open(options.out)
    return result


class _Run:
    """One pass over the points that are ours and not done."""

    def __init__(
        self,
        session: Session,
        directions: Tensor,
        grid: Grid,
        header: RunHeader,
        options: _Options,
        interrupts: Interrupts,
        seconds_per_point: float,
    ) -> None:
        self.session, self.directions, self.grid = session, directions, grid
        self.header, self.options, self.interrupts = header, options, interrupts
        self.journal: Journal | None = None
        # points at once: what is lost if the loss raises, or the machine stops
        self._pace = max(1, min(CHUNK, int(BLOCK_SECONDS / max(seconds_per_point, 1e-9))))
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
            desc=self.header.kind,
            disable=not self.options.progress,
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
        """Values of the next points: what half a second is enough for, up to ``stop``."""
        points = self.grid.points(start, min(start + self._pace, stop))
        values = self.session.losses(self.directions, points, self.interrupts)
        self.session.snapshot.check_unchanged(contents=True)  # before they are kept
        return values

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
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _missing(chunks: Sequence[tuple[int, int]], done: np.ndarray) -> Iterator[tuple[int, int]]:
    """The stretches of points without a value, each within one chunk."""
    for start, stop in chunks:
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


def _directions(num_axes: int, session: Session, options: _Options) -> Directions:
    """The directions of this run, scaled as asked for, checked."""
    objective, wanted = session.objective, options.directions
    random_draw = isinstance(wanted, str)
    rule = options.normalize if options.normalize != "auto" else "filter" if random_draw else None
    ignore = options.ignore if options.ignore != "auto" else "bias_bn" if random_draw else None
    if random_draw:
        directions = axes.random(
            objective, num_axes, seed=options.seed, normalize=rule, ignore=ignore,
            center=session.center,
        )  # fmt: skip
    else:
        directions = wanted if isinstance(wanted, Directions) else axes.given(objective, wanted)
        axes.check_layout(directions, session.space)
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
    axes.check_usable(directions)
    return directions


def _finished(options: _Options, header: RunHeader) -> Surface | None:
    """The result that is already at ``out``, if it is this one."""
    out = options.out
    if out is None or not options.resume or not out.is_file():
        return None
    there = results.open(out)
    stored = replace(header, fingerprint=there.provenance.get("fingerprint", {}), axes=there.axes,
                     kind=there.kind, columns=there.columns)  # fmt: skip
    if found := differences(stored, header):
        raise ResumeMismatchError(
            f"{out} holds the result of another run; pass resume=False to replace it. It differs "
            "in: " + "; ".join(found)
        )
    if not there.complete:
        return None
    store.remove_journals(out, header)  # the run was killed before it could
    return there


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
            _warn(
                f"{lost / moving:.0%} of the parameters do not move at all at the smallest step "
                f"({step:.3g}) along {axis.label}: it is below their resolution "
                f"({session.describe()['model']['dtype']}). Take a larger span, or fewer points."
            )


def _warn_of_results(result: Surface, center: float) -> None:
    losses = result.loss[result.evaluated]
    if len(losses) > 1 and np.array_equal(losses, np.full_like(losses, center), equal_nan=False):
        _warn(
            "the loss is the same at every point: it does not depend on the parameters that move. "
            "Does it use another copy of the model?"
        )
    if result.nonfinite:
        _warn(f"{result.nonfinite} of {len(losses)} losses are NaN or infinite; kept as they are.")


def _warn(message: str) -> None:
    warnings.warn(message, LandscapexWarning, stacklevel=2)


def _stopped(signum: int, result: Surface, out: Path | None) -> BaseException:
    have = f"{int(result.evaluated.sum())} of {result.loss.size} points"
    kept = f"are kept beside {out}; the same call goes on" if out else "are in `.surface`"
    if signum == signal.SIGTERM:
        return Terminated(f"stopped by SIGTERM: {have} {kept}.", surface=result)
    stopped = KeyboardInterrupt(f"stopped by Ctrl-C: {have} {kept}.")
    stopped.surface = result  # type: ignore[attr-defined]
    return stopped


@contextlib.contextmanager
def _thread_count(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
