"""One two-dimensional picture: holes, colours, level lines and marks."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from landscapex._pictures.level_labels import label_lines
from landscapex._pictures.panel import Mark, Panel, equal_aspect, hole_texts, marks_of
from landscapex._pictures.scale import Scale

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.contour import ContourSet

NOT_EVALUATED = "0.93"
NOT_FINITE = "0.72"
HATCH = "////"
HATCH_COLOR = "0.6"

_BANDS = 4  # shades between two level lines


def hole_handles(texts: dict[str, str]) -> list[Artist]:
    """Legend entries for the holes."""
    faces = {"finite": NOT_FINITE, "positive": NOT_FINITE, "evaluated": NOT_EVALUATED}
    return [
        Patch(facecolor=faces[key], edgecolor=HATCH_COLOR, hatch=HATCH, linewidth=0, label=text)
        for key, text in texts.items()
    ]


def colors_for(scale: Scale) -> tuple[str, Normalize]:
    """Colour map and norm on the drawn scale: viridis; blue-white-red around 0 for both signs."""
    first, last = scale.limits()
    if scale.diverging:
        reach = max(-first, last)
        return "RdBu_r", Normalize(-reach, reach)
    return "viridis", Normalize(first, last)


def cell_edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of the cells around grid coordinates: halfway between neighbours."""
    if values.size == 1:
        return np.array([values[0] - 0.5, values[0] + 0.5])
    middle = values[:-1] + 0.5 * np.diff(values)
    first, last = values[0] - (middle[0] - values[0]), values[-1] + (values[-1] - middle[-1])
    return np.concatenate([[first], middle, [last]])


def shades(scale: Scale, lines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Borders of the filled bands on the drawn scale: level lines with shades between."""
    first, last = scale.limits()
    borders = np.unique(np.concatenate([[first], lines[(lines > first) & (lines < last)], [last]]))
    bands = max(_BANDS, -(-16 // (borders.size - 1)))
    parts = [np.linspace(a, b, bands, endpoint=False) for a, b in itertools.pairwise(borders)]
    return np.concatenate([*parts, [last]])


def draw_panel(
    ax: Axes,
    panel: Panel,
    scale: Scale,
    lines: NDArray[np.float64],
    *,
    line_labels: bool = True,
) -> list[Artist]:
    """Draw holes, colours, level lines, the centre and the best point.

    Args:
        ax: Where to draw.
        panel: What to draw.
        scale: How values become colours.
        lines: Level lines, as places on the drawn scale.
        line_labels: Whether the level lines carry their values.

    Returns:
        Legend entries: the marks and the holes.
    """
    x, y = panel.coordinates
    left, right, bottom, top = panel.extent
    ax.set(xlim=(left, right), ylim=(bottom, top))
    if equal_aspect(panel):
        ax.set_aspect("equal", adjustable="box")
    drawn = scale.forward(panel.values)
    marks = marks_of(panel, scale)
    missing = hole_texts(panel.values, panel.evaluated, scale)
    if missing:
        _draw_holes(ax, panel)
    cmap, norm = colors_for(scale)
    if np.isfinite(drawn).any():
        # Cells first: they reach into the half steps beside holes that no contour covers.
        ax.pcolormesh(
            cell_edges(x), cell_edges(y), np.ma.masked_invalid(drawn).T, cmap=cmap, norm=norm,
            zorder=1, rasterized=True, antialiased=False,
        )  # fmt: skip
        own = _draw_contours(ax, x, y, drawn, scale, lines)
        if own is not None and line_labels:
            label_lines(ax, own, scale.texts(np.asarray(own.levels)), [m.where for m in marks])
    return [*(draw_mark(ax, m) for m in marks), *hole_handles(missing)]


def _draw_holes(ax: Axes, panel: Panel) -> None:
    x, y = panel.coordinates
    left, right, bottom, top = panel.extent
    ax.add_patch(
        Rectangle(
            (left, bottom), right - left, top - bottom, facecolor=NOT_EVALUATED,
            edgecolor=HATCH_COLOR, hatch=HATCH, linewidth=0, zorder=0.5,
        )
    )  # fmt: skip
    # Half transparent black keeps the hatching: 0.72 on 0.93.
    alone = np.ma.masked_equal((panel.evaluated & ~np.isfinite(panel.values)).astype(float), 0)
    ax.pcolormesh(
        cell_edges(x), cell_edges(y), alone.T, cmap=ListedColormap(["black"]), alpha=0.22,
        zorder=0.7, rasterized=True, antialiased=False, linewidth=0, label="_not_finite",
    )  # fmt: skip


def _draw_contours(
    ax: Axes,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    drawn: NDArray[np.float64],
    scale: Scale,
    lines: NDArray[np.float64],
) -> ContourSet | None:
    if min(drawn.shape) < 2:
        return None
    cmap, norm = colors_for(scale)
    z = np.ma.masked_invalid(drawn).T
    ax.contourf(
        x, y, z, levels=shades(scale, lines), cmap=cmap, norm=norm, extend="both",
        corner_mask=True, zorder=2, antialiased=False,
    )  # fmt: skip
    own = lines[(lines > z.min()) & (lines < z.max())]
    if own.size == 0:
        return None
    return ax.contour(
        x, y, z, levels=own, colors=line_colors(scale, own), linewidths=0.9, linestyles="solid",
        corner_mask=True, zorder=3,
    )  # fmt: skip


def line_colors(scale: Scale, places: NDArray[np.float64]) -> list[str]:
    """Black on light colours, white on dark ones."""
    cmap, norm = colors_for(scale)
    rgba = ScalarMappable(norm, cmap).to_rgba(places)
    bright = np.asarray(rgba)[:, :3] @ np.array([0.2126, 0.7152, 0.0722])
    return ["black" if b > 0.4 else "white" for b in bright]


def draw_mark(ax: Axes, mark: Mark) -> Artist:
    """A cross for the centre, a triangle for the best point.

    Args:
        ax: Where to draw.
        mark: What to draw.

    Returns:
        The legend entry.
    """
    (x, y) = mark.where
    if mark.kind == "centre":
        ax.plot([x], [y], zorder=5, **_style("+", 13, 4.5, "white"))  # a white edge on dark colours
        ax.plot([x], [y], zorder=5.1, **_style("+", 12, 2, "black"))
        return Line2D([], [], label=mark.text, **_style("+", 10, 2, "black"))
    style = {**_style("v", 8, 1.2, "black"), "markerfacecolor": "white"}
    ax.plot([x], [y], zorder=6, clip_on=False, **style)
    return Line2D([], [], label=mark.text, **style)


def _style(marker: str, size: float, width: float, color: str) -> dict[str, Any]:
    return {
        "linestyle": "none", "marker": marker, "markersize": size, "markeredgewidth": width,
        "markeredgecolor": color, "color": color,
    }  # fmt: skip
