"""Lines between models: the whole way, and a closer look at both ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D

from landscapex._pictures.curves import COLORS, STYLES, draw_curves
from landscapex._pictures.layout import Picture, add_header
from landscapex._pictures.panel import GREEK, check_column, check_surfaces, kind_for, plain
from landscapex._pictures.scale import Scale, check_kind, choose, number_text
from landscapex.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from landscapex.grids.results import Surface

_CLOSE = 3  # points of a line that is worth a closer look
_ROOM = 0.06  # of the height of a closer look, above and below


def interpolation(
    *lines: Surface,
    column: str | Sequence[str] = "loss",
    labels: Sequence[str] | None = None,
    scale: str = "linear",
    zoom: tuple[float, float] | None = (0.1, 0.9),
    title: str = "",
) -> Figure:
    """Draw losses between models, with the chords of their barriers, and both ends enlarged.

    Args:
        *lines: Results of `landscapex.interpolate`; one of a part of the way, with more points,
            joins in where it is.
        column: What to draw: columns of one quantity, say ``["loss", "test_loss"]``.
        labels: One name per result; None for numbers.
        scale: "auto", "linear", "log" or "symlog".
        zoom: The closer looks show the coordinates up to the first and from the second number,
            where a result has at least 3 points there; None for no closer looks.
        title: Above all; may be empty.

    Returns:
        The figure.

    Raises:
        ArgumentError: If ``zoom`` is not two increasing numbers, ``labels`` do not fit, or a
            result or column cannot be drawn.
    """
    columns = [column] if isinstance(column, str) else list(column)
    names = names_of(lines, labels)
    check_surfaces(lines, 1, "interpolation")
    for line in lines:
        for column in columns:
            check_column(line, column)
    check_kind(scale)
    if zoom is not None and not (len(zoom) == 2 and zoom[0] < zoom[1]):
        raise ArgumentError(f"`zoom` must be two increasing numbers or None, got {zoom}.")
    parts = [] if zoom is None else _close_parts(lines, zoom)
    figure = Picture(figsize=(6.8, 7.6 if parts else 4.6))
    heights = [3, 2] if parts else [3]
    grid = figure.add_gridspec(len(heights), max(len(parts), 1), height_ratios=heights)
    whole = figure.add_subplot(grid[0, :])
    handles = _legend(draw_curves(whole, lines, columns, names, scale), lines, columns, names)
    fitted = choose([s[c] for s in lines for c in columns], kind_for(columns, scale))
    handles += _draw_chords(whole, lines, columns, fitted)
    if any(min(s.axes[0].values) <= 1 <= max(s.axes[0].values) for s in lines):
        whole.axvline(1, color="0.55", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    whole.set_xlabel(f"{GREEK['alpha']}, 0 = the first model, 1 = the second")
    add_header(whole, title, handles)
    for k, part in enumerate(parts):
        close = figure.add_subplot(grid[1, k])
        _draw_close(close, lines, columns, names, scale, part)
        if k:
            close.set_ylabel("")
    return figure


def names_of(results: Sequence[Any], labels: Sequence[str] | None) -> list[str]:
    """One name per result.

    Args:
        results: What is drawn.
        labels: As given; None for numbers.

    Returns:
        The names.

    Raises:
        ArgumentError: If there are more or fewer.
    """
    if labels is None:
        return [f"result {k + 1}" for k in range(len(results))]
    if isinstance(labels, str) or len(labels) != len(results):
        raise ArgumentError(
            f"`labels` must be one name per result ({len(results)}), got {labels!r}."
        )
    return [str(label) for label in labels]


def _close_parts(lines: Sequence[Surface], zoom: tuple[float, float]) -> list[tuple[float, float]]:
    """The ends that some result has points enough in: of two, a closer look shows nothing new."""
    first = min(s.axes[0].values[0] for s in lines)
    last = max(s.axes[0].values[-1] for s in lines)
    return [
        (low, high)
        for low, high in ((first, zoom[0]), (zoom[1], last))
        if any(sum(low <= x <= high for x in s.axes[0].values) >= _CLOSE for s in lines)
    ]


def _legend(
    handles: Sequence[Artist],
    lines: Sequence[Surface],
    columns: Sequence[str],
    names: Sequence[str],
) -> list[Artist]:
    """Legend entries that name results and columns; the centre is one end, which the axis says."""
    found: list[Artist] = []
    for i, name in enumerate(names):
        for j, column in enumerate(columns):
            parts = [name] if len(lines) > 1 else []
            parts += [plain(column)] if len(columns) > 1 or not parts else []
            color = COLORS[(i if len(lines) > 1 else j) % len(COLORS)]
            style: Any = STYLES[j % len(STYLES)]
            label = ", ".join(parts)
            found.append(Line2D([], [], color=color, linestyle=style, linewidth=1.8, label=label))
    holes = [h for h in handles if not isinstance(h, Line2D)]
    return found + holes


def _draw_chords(
    ax: Axes, lines: Sequence[Surface], columns: Sequence[str], scale: Scale
) -> list[Artist]:
    """Between the ends, where 0 and 1 are points; the height of each barrier in words."""
    handles: list[Artist] = []
    alpha = np.linspace(0.0, 1.0, 101)
    for i, line in enumerate(lines):
        for j, column in enumerate(columns):
            try:
                found = line.measures(column)
            except ArgumentError:  # a part of the way only
                continue
            x, values = line.coordinates[0], line[column]
            first, last = (float(values[np.argmin(np.abs(x - end))]) for end in (0.0, 1.0))
            chord = (1 - alpha) * first + alpha * last
            chord = np.where(scale.drawable(chord), chord, np.nan)
            color = COLORS[(i if len(lines) > 1 else j) % len(COLORS)]
            ax.plot(alpha, chord, color=color, linewidth=0.9, linestyle=(0, (1, 2)), zorder=2)
            label = f"chord; barrier {number_text(found.barrier)}"
            handles.append(
                Line2D([], [], color=color, linewidth=0.9, linestyle=(0, (1, 2)), label=label)
            )
    return handles


def _draw_close(
    ax: Axes,
    lines: Sequence[Surface],
    columns: Sequence[str],
    names: Sequence[str],
    scale: str,
    part: tuple[float, float],
) -> None:
    """The values between two coordinates, as high as they are there."""
    draw_curves(ax, lines, columns, names, scale)
    low, high = np.inf, -np.inf
    for line in lines:
        x = line.coordinates[0]
        for column in columns:
            inside = line[column][(x >= part[0]) & (x <= part[1])]
            inside = inside[np.isfinite(inside)]
            if inside.size:
                low, high = min(low, float(inside.min())), max(high, float(inside.max()))
    ax.set_xlim(*part)
    if low < high and ax.get_yscale() == "linear":
        room = _ROOM * (high - low)
        ax.set_ylim(low - room, high + room)
    for mark in ax.lines:  # marks of what lies outside
        mark.set_clip_on(True)
    ax.set_xlabel(f"{GREEK['alpha']} from {number_text(part[0])} to {number_text(part[1])}")
