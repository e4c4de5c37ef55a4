"""The arguments that all who fill a grid share, checked."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, runtime_checkable

import numpy as np

from landscapex._directions import Directions
from landscapex.engine.choice import ENGINES
from landscapex.errors import ArgumentError, ArgumentTypeError
from landscapex.grids.grid import Span
from landscapex.grids.ranks import this_rank
from landscapex.grids.time_limit import parse_time_limit
from landscapex.model.parameters import Ignore, Normalize
from landscapex.session import Point
from landscapex.storage.files import check_output, check_result_name

AUTO: Final = "auto"  # the part of a process of torchrun

Shard = str | tuple[int, int] | None
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
    time_limit: float | None  # seconds
    engine: str
    threads: int | None
    progress: bool
    callback: Callable[[Progress], object] | None
    confirm: bool


def checked_options(arguments: dict[str, Any]) -> Options:
    """Check the shared arguments, before any work.

    Args:
        arguments: By name; those that `Options` does not have are left out.

    Returns:
        The options.

    Raises:
        ArgumentError: If one has an unknown value.
        ArgumentTypeError: If one has the wrong type.
    """
    chosen = {name: arguments[name] for name in Options.__dataclass_fields__}
    if arguments["engine"] not in ENGINES:
        raise ArgumentError(
            f"`engine` must be 'auto', 'eager' or 'compiled', got {arguments['engine']!r}."
        )
    if chosen["out"] is not None and not isinstance(chosen["out"], str | os.PathLike):
        raise ArgumentTypeError(f"`out` must be a path, got {type(chosen['out']).__name__}.")
    if chosen["callback"] is not None and not callable(chosen["callback"]):
        raise ArgumentTypeError("`callback` must be callable, got " + repr(chosen["callback"]))
    threads = chosen["threads"]
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ArgumentError(f"`threads` must be a whole number of at least 1, got {threads!r}.")
    if chosen["out"] is not None:
        check_output(chosen["out"])
        check_result_name(chosen["out"])
        chosen["out"] = Path(chosen["out"])
    chosen["time_limit"] = parse_time_limit(chosen["time_limit"])
    shard = parse_shard(chosen["shard"])
    if shard is not None and chosen["shard"] == AUTO:
        if chosen["out"] is None:
            raise ArgumentError(
                "`out` must be given with shard='auto': processes share their points by its "
                "journals, got None."
            )
        chosen["progress"] = chosen["progress"] and shard[0] == 0  # one bar is enough
    chosen["shard"] = shard
    return Options(**chosen)


def parse_shard(shard: Shard) -> tuple[int, int] | None:
    """``"i/n"`` or ``(i, n)`` as a pair, checked; ``"auto"`` as this process was started.

    Args:
        shard: The argument of `surface`.

    Returns:
        ``(i, n)``, or None for all of it.

    Raises:
        ArgumentError: If it is not a part of a whole.

    Example:
        >>> parse_shard("1/4")
        (1, 4)
    """
    if shard == AUTO:
        rank = this_rank()
        return None if rank is None or rank.size == 1 else (rank.number, rank.size)
    if shard is None:
        return None
    parts = shard.split("/") if isinstance(shard, str) else shard
    try:
        i, n = (int(p) if isinstance(p, str) else operator.index(p) for p in parts)
    except (TypeError, ValueError):
        raise ArgumentError(f"`shard` must be 'i/n', (i, n) or 'auto', got {shard!r}.") from None
    if not 0 <= i < n:
        raise ArgumentError(
            f"`shard` i/n must have 0 <= i < n: parts are counted from 0, got {shard!r}."
        )
    return i, n
