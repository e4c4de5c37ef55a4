"""Grid points: coordinates along the axes of a line, plane or volume."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from landscapex.errors import ArgumentTypeError, GridError

AXIS_NAMES = ("alpha", "beta", "gamma")
CONFIRM_ABOVE = 1_000_000  # grid points
_ROUNDING = 4 * np.finfo(np.float64).eps
_MOST = 100_000_000  # grid points; the bookkeeping of more would not fit into common memories

Span = None | float | Sequence[float] | Sequence[Sequence[float]]


@dataclass(frozen=True)
class Grid:
    """``K`` axes of coordinates; points are numbered in C order, the last axis fastest.

    Attributes:
        axes: One increasing float64 array per direction.
    """

    axes: tuple[np.ndarray, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Points per axis."""
        return tuple(len(a) for a in self.axes)

    @property
    def size(self) -> int:
        """Grid points ``G``."""
        return math.prod(self.shape)

    def points(self, start: int, stop: int) -> np.ndarray:
        """Coordinates of points ``start .. stop - 1``, ``(stop - start, K)`` float64."""
        index = np.unravel_index(np.arange(start, stop), self.shape)
        return np.stack([a[i] for a, i in zip(self.axes, index, strict=True)], axis=1)

    def chunks(self, size: int) -> Iterator[tuple[int, int]]:
        """Consecutive ranges of at most ``size`` points."""
        for start in range(0, self.size, size):
            yield start, min(start + size, self.size)

    @property
    def holds_center(self) -> bool:
        """Whether the centre (all coordinates 0) is a grid point."""
        return all(bool((a == 0).any()) for a in self.axes)


def make_grid(
    num_directions: int,
    span: Span = None,
    points: int | Sequence[int] = 51,
    *,
    default_spans: Sequence[tuple[float, float]] | None = None,
) -> Grid:
    """Evenly spaced coordinates, ends included.

    Both ends are exact, and a symmetric span has coordinates that are exactly symmetric, with an
    exact 0 in the middle for an odd number of points.

    Args:
        num_directions: ``K``, 1 to 3.
        span: ``s`` for (-s, s), ``(lo, hi)`` for all axes, or one such pair per direction; None
            for ``default_spans``.
        points: Per axis; one number for all axes, or one per direction.
        default_spans: One pair per direction.

    Returns:
        The grid.

    Raises:
        GridError: If a span is not finite or not increasing, an axis has fewer than two points, or
            there are more than 100 million in all.
        ArgumentTypeError: If ``points`` or ``span`` are not numbers.

    Example:
        >>> make_grid(2, 1.0, (3, 5)).shape
        (3, 5)
    """
    spans = _spans(num_directions, span, default_spans)
    counts = _counts(num_directions, points)
    return Grid(tuple(_axis(lo, hi, n) for (lo, hi), n in zip(spans, counts, strict=True)))


def _axis(lo: float, hi: float, n: int) -> np.ndarray:
    i = np.arange(n, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        values = (lo * (n - 1 - i) + hi * i) / (n - 1)
    # -0.3, 0, 0.3, ... to 0.9: rounding must not keep the centre from being a point
    values[np.abs(values) < _ROUNDING * max(abs(lo), abs(hi))] = 0.0
    if not np.isfinite(values).all() or (np.diff(values) <= 0).any():
        raise GridError(
            f"`span` must hold {n} different numbers, got ({lo}, {hi}), too narrow or too wide."
        )
    values[0], values[-1] = lo, hi
    return values


def _counts(num_directions: int, points: int | Sequence[int]) -> list[int]:
    if isinstance(points, Iterable) and not isinstance(points, str):
        counts: list[Any] = list(points)
    else:
        counts = [points] * num_directions
    if len(counts) != num_directions:
        raise GridError(
            f"`points` must have one number per direction ({num_directions}), got {points}."
        )
    for n in counts:
        if not _is_number(n) or not math.isfinite(n) or int(n) != n:
            raise ArgumentTypeError(f"`points` must be a whole number, got {n!r}.")
        if n < 2:
            raise GridError(f"`points` must be at least 2, got {n}.")
    counts = [int(n) for n in counts]
    if math.prod(counts) > _MOST:
        raise GridError(f"`points` must be at most {_MOST:,} in all, got {math.prod(counts):,}.")
    return counts


def _spans(
    num_directions: int, span: Span, default_spans: Sequence[tuple[float, float]] | None
) -> list[tuple[float, float]]:
    if span is None:
        pairs: list[Any] = list(default_spans or [(-1.0, 1.0)] * num_directions)
    elif isinstance(span, Iterable) and not isinstance(span, str):
        parts = list(span)
        flat = len(parts) == 2 and all(_is_number(s) for s in parts)
        pairs = [parts] * num_directions if flat else parts
    else:
        pairs = [span] * num_directions
    if len(pairs) != num_directions:
        raise GridError(
            f"`span` must be s, (lo, hi), or one pair per direction ({num_directions}), got {span}."
        )
    return [_pair(p) for p in pairs]


def _pair(pair: Any) -> tuple[float, float]:
    if _is_number(pair):
        pair = (-pair, pair)
    if not isinstance(pair, Sequence | np.ndarray) or isinstance(pair, str) or len(pair) != 2:
        raise GridError(f"`span` must hold pairs (lo, hi), got {pair!r}.")
    if not all(_is_number(p) for p in pair):
        raise ArgumentTypeError(f"`span` must hold numbers, got {pair!r}.")
    lo, hi = float(pair[0]), float(pair[1])
    if not (math.isfinite(lo) and math.isfinite(hi)):
        raise GridError(f"`span` must be finite, got ({lo}, {hi}).")
    if lo >= hi:
        raise GridError(f"`span` must increase from lo to hi, got ({lo}, {hi}).")
    return lo, hi


def _is_number(x: object) -> bool:
    return isinstance(x, int | float | np.integer | np.floating) and not isinstance(x, bool)
