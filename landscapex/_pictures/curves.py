"""One-dimensional results as curves on shared axes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from landscapex._pictures.contours import (
    HATCH,
    HATCH_COLOR,
    NOT_EVALUATED,
    NOT_FINITE,
    cell_edges,
    hole_handles,
)
from landscapex._pictures.panel import (
    best_point,
    best_word,
    center_value,
    hole_texts,
    kind_for,
    plain,
    wrapped,
)
from landscapex._pictures.scale import Scale, choose, number_text
from landscapex._pictures.ticks import plain_ticks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from landscapex.grids.results import Surface

# Okabe and Ito, Color Universal Design (2008); without their yellow, which is faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("solid", "dashed", "dotted", "dashdot")

_DOTS_UP_TO = 41  # points that are drawn as dots too, so that a reader sees the resolution


def group_columns(columns: Sequence[str], known: Sequence[str]) -> list[list[str]]:
    """Columns of one quantity together: ``test_loss`` belongs to ``loss``, ``accuracy`` does not.

    Args:
        columns: The columns to group, in order.
        known: All columns of the result.

    Returns:
        The groups, in the order of their first column.

    Example:
        >>> group_columns(["loss", "accuracy", "test_loss"], ["loss", "accuracy", "test_loss"])
        [['loss', 'test_loss'], ['accuracy']]
    """
    groups: dict[str, list[str]] = {}
    for column in columns:
        parents = [k for k in known if column.endswith("_" + k)]
        groups.setdefault(min(parents, key=len, default=column), []).append(column)
    return list(groups.values())


def draw_curves(
    ax: Axes, surfaces: Sequence[Surface], columns: Sequence[str], names: Sequence[str], scale: str
) -> list[Artist]:
    """Draw each column of each result, its centre, and what is missing.

    Args:
        ax: Where to draw.
        surfaces: Results with one axis.
        columns: Columns that share the vertical axis.
        names: What each result is called in the legend.
        scale: "auto" or the name of a scale.

    Returns:
        Legend entries.
    """
    fitted = choose([s[c] for s in surfaces for c in columns], kind_for(columns, scale))
    several = len(surfaces) > 1
    handles: list[Artist] = []
    for i, surface in enumerate(surfaces):
        for j, column in enumerate(columns):
            color = COLORS[(i if several else j) % len(COLORS)]
            style = STYLES[j % len(STYLES)]
            handle = _draw_curve(ax, surface, column, fitted, color, style)
            parts = [names[i]] if several else []
            parts += [plain(column)] if len(columns) > 1 else []
            if parts:
                handle.set_label(_with_center(", ".join(parts), surface, column, fitted))
                handles.append(handle)
    handles += _draw_holes(ax, surfaces, columns, names, fitted)
    if any(min(s.axes[0].values) <= 0 <= max(s.axes[0].values) for s in surfaces):
        ax.axvline(0, color="0.55", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    if len(surfaces) == 1 and len(columns) == 1:
        handles = [*_mark_single(ax, surfaces[0], columns[0], fitted), *handles]
    _set_scale(ax, fitted)
    named = replace(fitted, offset=plain_ticks(ax, fitted.offset))
    ax.set_ylabel(wrapped(named.label(", ".join(columns)), 36), parse_math=False)
    ax.grid(True, color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
    return handles


def _draw_curve(
    ax: Axes, surface: Surface, column: str, scale: Scale, color: str, style: str
) -> Line2D:
    x = np.asarray(surface.axes[0].values, dtype=np.float64)
    values = np.asarray(surface[column], dtype=np.float64)
    y = np.where(scale.drawable(values) & surface.evaluated, values, np.nan)
    dots = y if x.size <= _DOTS_UP_TO else _alone(y)
    (handle,) = ax.plot(x, y, color=color, linestyle=style, linewidth=1.8, zorder=3)
    ax.plot(x, dots, color=color, linestyle="none", marker="o", markersize=3, zorder=3)
    center = center_value(surface, column)
    if center is not None and scale.drawable(center):
        ax.plot(
            [0], [center], color=color, marker="o", markersize=7, markeredgecolor="black",
            markeredgewidth=0.8, linestyle="none", zorder=4,
        )  # fmt: skip
    return handle


def _alone(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values without a finite neighbour: no line goes through them."""
    there = np.concatenate([[False], np.isfinite(y), [False]])
    return np.where(there[:-2] | there[2:], np.nan, y)


def _with_center(name: str, surface: Surface, column: str, scale: Scale) -> str:
    center = center_value(surface, column)
    return name if center is None else f"{name} (centre {scale.number(center)})"


def _mark_single(ax: Axes, surface: Surface, column: str, scale: Scale) -> list[Artist]:
    handles: list[Artist] = []
    center = center_value(surface, column)
    if center is not None:
        handles.append(
            Line2D(
                [], [], color=COLORS[0], marker="o", markersize=7, markeredgecolor="black",
                markeredgewidth=0.8, linestyle="none",
                label=f"centre: {plain(column)} {scale.number(center)}",
            )
        )  # fmt: skip
    values = np.where(surface.evaluated, surface[column], np.nan)
    best = best_point(values, [np.asarray(surface.axes[0].values)], column)
    if best is not None and scale.drawable(best[0]):
        value, (x,) = best
        (handle,) = ax.plot(
            [x], [value], marker="v", markersize=8, markeredgecolor="black", zorder=5,
            markerfacecolor="white", linestyle="none", clip_on=False,
            label=f"grid {best_word(column)}: {scale.number(value)} at {number_text(x, 3)}",
        )  # fmt: skip
        handles.append(handle)
    return handles


def _draw_holes(
    ax: Axes,
    surfaces: Sequence[Surface],
    columns: Sequence[str],
    names: Sequence[str],
    scale: Scale,
) -> list[Artist]:
    """Grey stripes where a result has no value, and one legend entry per kind of hole."""
    handles: list[Artist] = []
    for surface, name in zip(surfaces, names, strict=True):
        x = np.asarray(surface.axes[0].values, dtype=np.float64)
        edges = np.clip(cell_edges(x), x.min(), x.max())
        bad = np.zeros(x.size, dtype=bool)
        for column in columns:
            values = np.asarray(surface[column], dtype=np.float64)
            bad |= surface.evaluated & ~scale.drawable(values)
            who = [name] if len(surfaces) > 1 else []
            who += [plain(column)] if len(columns) > 1 else []
            for handle in hole_handles(hole_texts(values, surface.evaluated, scale)):
                handle.set_label(": ".join([*who, str(handle.get_label())]))
                handles.append(handle)
        for face, missing in ((NOT_FINITE, bad), (NOT_EVALUATED, ~surface.evaluated)):
            for first, after in _runs(missing):
                ax.axvspan(
                    edges[first], edges[after], facecolor=face, edgecolor=HATCH_COLOR,
                    hatch=HATCH, linewidth=0, zorder=0.5,
                )  # fmt: skip
    return handles


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Half-open ranges of True."""
    padded = np.concatenate([[False], flags, [False]]).astype(np.int8)
    turns = np.flatnonzero(np.diff(padded))
    return [(int(a), int(b)) for a, b in turns.reshape(-1, 2)]


def _set_scale(ax: Axes, scale: Scale) -> None:
    if scale.empty:
        ax.set_yticks([])
        ax.text(0.5, 0.5, "no finite value", transform=ax.transAxes, ha="center", va="center")
    elif scale.kind == "log":
        ax.set_yscale("log")
        narrow = scale.high < 1e3 * scale.low
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    elif scale.kind == "symlog":
        ax.set_yscale("symlog", linthresh=scale.threshold)
        first, last = scale.limits()
        room = 0.05 * (last - first)
        ax.set_ylim(*scale.inverse(np.array([first - room, last + room])))
    if scale.kind != "linear":
        # Plain text: matplotlib's own powers are typeset by a parser that threads share.
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number_text(value)))
        ax.yaxis.set_minor_formatter(NullFormatter())
