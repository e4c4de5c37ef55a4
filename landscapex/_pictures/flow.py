"""Gradient flow near a critical point: its phase portrait in the plane of extreme curvatures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D

from landscapex._arrays import Array
from landscapex._pictures.curves import COLORS
from landscapex._pictures.layout import Picture, add_header
from landscapex._pictures.scale import number_text

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from landscapex.criticality.flow import GradientFlow


_CONSTANTS = 3.0  # time constants of the slower direction that are drawn
_LONGEST = 100.0  # of the faster one
_GRID = 81
_NEAR = 2.0  # extents of the path: a critical point nearer than this is drawn
_ROOM = 0.25
_DOTS = 6  # equal times along the path


def draw_flow(flow: GradientFlow, time: float | None = None) -> Figure:
    """Draw field lines, level lines and the path in the plane of two extreme curvatures.

    Args:
        flow: With two directions or more.
        time: Until when the path is drawn; None for three time constants of the slower direction.

    Returns:
        The figure.
    """
    pair = [0, len(flow.values) - 1]
    values, slopes = flow.values[pair], flow.slopes[pair]
    until = _until(values) if time is None else time
    times = np.linspace(0, until, 400)
    path = flow.coordinates(times)[:, pair]
    critical = np.where(values != 0, -slopes / np.where(values != 0, values, 1.0), np.nan)
    box = [_range(path[:, k], critical[k]) for k in range(2)]
    box = [r if r[1] > r[0] else (-0.5 * width, 0.5 * width)
           for r, width in zip(box, _widths(box), strict=True)]  # fmt: skip
    figure = Picture(figsize=(6.8, 5.6))
    ax = figure.add_subplot()
    _draw_field(ax, values, slopes, box)
    handles = _draw_path(ax, path, until)
    handles += _draw_critical(ax, values, critical, box)
    ax.set(xlim=box[0], ylim=box[1])
    low, high = (number_text(float(v)) for v in values)
    ax.set_xlabel(f"along the smallest curvature, λ = {low}", parse_math=False)
    ax.set_ylabel(f"along the largest curvature, λ = {high}", parse_math=False)
    add_header(ax, "Gradient flow of the quadratic model", handles)
    return figure


def _until(values: Array) -> float:
    sizes = np.abs(values)
    fast, slow = sizes.max(), sizes.min()
    if not fast:
        return 1.0
    return float(min(_CONSTANTS / slow if slow else np.inf, _LONGEST / fast))


def _range(path: Array, critical: float) -> tuple[float, float]:
    """Of one axis: the path, and the critical point if it is near."""
    low, high = float(path.min()), float(path.max())
    if np.isfinite(critical) and low - critical < _NEAR * (high - low) > critical - high:
        low, high = min(low, critical), max(high, critical)
    room = _ROOM * (high - low)
    return low - room, high + room


def _widths(box: list[tuple[float, float]]) -> tuple[float, float]:
    """Of both axes; an axis along which nothing moves is as wide as the other."""
    wide = [high - low for low, high in box]
    other = max(wide) or 1.0
    return wide[0] or other, wide[1] or other


def _draw_field(ax: Axes, values: Array, slopes: Array, box: list[tuple[float, float]]) -> None:
    x, y = (np.linspace(low, high, _GRID) for low, high in box)
    a, b = np.meshgrid(x, y)
    loss = slopes[0] * a + slopes[1] * b + 0.5 * (values[0] * a**2 + values[1] * b**2)
    ax.contour(x, y, loss, levels=14, colors="0.75", linewidths=0.8, linestyles="solid", zorder=1)
    ax.streamplot(
        x, y, -slopes[0] - values[0] * a, -slopes[1] - values[1] * b,
        color=COLORS[4], linewidth=0.7, density=1.1, arrowsize=0.9, zorder=2,
    )  # fmt: skip


def _draw_path(ax: Axes, path: Array, until: float) -> list[Artist]:
    (line,) = ax.plot(
        path[:, 0], path[:, 1], color=COLORS[1], linewidth=2.2, zorder=4,
        label=f"the flow until t = {number_text(until)}; a dot every {number_text(until / _DOTS)}",
    )  # fmt: skip
    steps = np.linspace(0, len(path) - 1, _DOTS + 1).round().astype(int)
    ax.plot(*path[steps].T, color=COLORS[1], marker="o", markersize=4, linestyle="none", zorder=5)
    ax.plot(0, 0, color=COLORS[1], marker="o", markersize=9, markeredgecolor="black", zorder=6)
    start = Line2D(
        [], [], color=COLORS[1], marker="o", markersize=9, markeredgecolor="black",
        linestyle="none", label="the point",
    )  # fmt: skip
    return [start, line]


def _draw_critical(
    ax: Axes, values: Array, critical: Array, box: list[tuple[float, float]]
) -> list[Artist]:
    inside = all(low <= c <= high for c, (low, high) in zip(critical, box, strict=True))
    if not inside:
        return []
    kind = {0: "minimum", 1: "saddle", 2: "maximum"}[int((values < 0).sum())]
    (mark,) = ax.plot(
        *critical, color="black", marker="x", markersize=9, markeredgewidth=2, linestyle="none",
        zorder=6, label=f"critical point of the model: {kind} in this plane",
    )  # fmt: skip
    return [mark]
