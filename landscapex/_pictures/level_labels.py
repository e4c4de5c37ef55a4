"""Where the labels of level lines go: far from the border, from marks and from each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.contour import ContourSet

# All lengths are fractions of the side of the axes.
_SHORTEST = 0.25  # a shorter line has no room for a label
_BORDER = 0.04
_APART = 0.09
_MOST_PER_LEVEL = 2
_MOST = 16
_STEP = 0.02


def label_lines(
    ax: Axes, lines: ContourSet, texts: Sequence[str], avoid: Iterable[tuple[float, float]]
) -> None:
    """Write the value of each level line into the line, where there is room for it.

    Args:
        ax: The axes of the lines; limits and aspect are final.
        lines: The lines.
        texts: One text per level.
        avoid: Data coordinates of marks that must stay visible.
    """
    places = label_places(ax, lines, avoid)
    if not places:
        return
    ax.apply_aspect()
    labels = dict(zip(np.asarray(lines.levels).tolist(), texts, strict=True))
    written = ax.clabel(lines, fontsize=8, inline=True, inline_spacing=3, fmt=labels, manual=places)
    for text in written or ():
        text.set_clip_on(True)


def label_places(
    ax: Axes, lines: ContourSet, avoid: Iterable[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Data coordinates for the labels, each on a vertex of its line."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    origin, size = np.array([left, bottom]), np.array([right - left, top - bottom])
    taken = [(np.asarray(p, dtype=np.float64) - origin) / size for p in avoid]
    found: list[tuple[float, float]] = []
    for segments in lines.allsegs:
        scaled = sorted(
            ((np.asarray(s) - origin) / size for s in segments if len(s) > 1), key=_length
        )
        for segment in scaled[: -_MOST_PER_LEVEL - 1 : -1]:
            if len(found) >= _MOST or _length(segment) < _SHORTEST:
                break
            place = _best_place(segment, taken)
            if place is not None:
                taken.append(place)
                x, y = place * size + origin
                found.append((float(x), float(y)))
    return found


def _length(segment: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(np.diff(segment, axis=0), axis=1).sum())


def _best_place(
    segment: NDArray[np.float64], taken: Sequence[NDArray[np.float64]]
) -> NDArray[np.float64] | None:
    steps = np.linalg.norm(np.diff(segment, axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    places = np.arange(_STEP, along[-1], _STEP)
    points = np.stack([np.interp(places, along, segment[:, k]) for k in (0, 1)], axis=1)
    before, after = points[:-6], points[6:]
    if not len(before):
        return None
    points = points[3:-3]
    chord = after - before
    straight = np.linalg.norm(chord, axis=1) / (6 * _STEP)
    level = np.abs(chord[:, 0]) / np.maximum(np.linalg.norm(chord, axis=1), 1e-12)
    border = np.minimum(points, 1 - points).min(axis=1)
    apart = np.full(len(points), 1.0)
    for other in taken:
        apart = np.minimum(apart, np.linalg.norm(points - other, axis=1))
    score = np.minimum(border / 0.1, 1) + np.minimum(apart / 0.2, 1) + straight + 0.4 * level
    score[(border < _BORDER) | (apart < _APART) | (straight < 0.8)] = -np.inf
    best = int(np.argmax(score))
    return points[best] if np.isfinite(score[best]) else None
