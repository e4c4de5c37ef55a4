"""A training run drawn in its plane: the path, true losses, and how far off the plane it is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from landscapex._pictures.contours import colors_for, draw_panel
from landscapex._pictures.layout import Levels, Picture, add_colorbar, add_header, fit_scale
from landscapex._pictures.panel import (
    Panel,
    axis_text,
    equal_aspect,
    panel_of,
    plain,
    wrapped,
)
from landscapex._pictures.scale import Scale, number_text
from landscapex.errors import ArgumentError
from landscapex.storage.header import AxisInfo

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from landscapex.grids.results import Surface
    from landscapex.trajectories.trajectory import Trajectory

_RED = "#d81b1b"
_LETTERS = 13  # of a label, per inch
_MOST_DROPS = 12  # marks beyond that are no marks: a learning rate that falls at every checkpoint


def draw_trajectory(
    path: Trajectory,
    surface: Surface | None = None,
    column: str = "loss",
    *,
    scale: str = "auto",
    levels: Levels = None,
    title: str | None = None,
) -> Figure:
    """Draw a run over the contours of its plane, and its distance from the plane below.

    The colour of a checkpoint is its true value on the scale of the contours: where it differs from
    the colour around it, the plane does not show what the checkpoint is.

    Args:
        path: The run, along two directions.
        surface: The plane; None for the path alone.
        column: What the colours show.
        scale: "auto", "linear", "log" or "symlog".
        levels: As for `landscapex.plot.contour`.
        title: Above the picture; None for a default, "" for none.

    Returns:
        The figure.

    Raises:
        ArgumentError: If the run has not two directions, or the surface is not over its plane:
            along its directions, through its origin, with the buffers of that checkpoint.
    """
    if len(path.directions) != 2:
        raise ArgumentError(
            f"a trajectory must have 2 directions to be drawn, got {len(path.directions)}."
        )
    panel = _empty_panel(path, column) if surface is None else panel_of(surface, column, "contour")
    if surface is not None:
        _check_plane(path, surface)
    values = _values(path, column)
    both = [panel, replace(panel, values=values[:, None], evaluated=np.isfinite(values)[:, None])]
    fitted, lines, extend = fit_scale(both, scale, levels)
    wide, high = _size(panel)
    figure = Picture(figsize=(wide + 2.1, high + 3.4))
    top, bottom = figure.subplots(2, 1, height_ratios=[5, 1.15])
    if surface is not None:  # the ends of the run are marked instead of the centre
        handles = draw_panel(top, replace(panel, center=None), fitted, lines)
    else:
        handles = _draw_empty(top, panel)
    handles += _draw_path(top, path, values, fitted, column)
    top.set_xlabel(axis_text(panel.x, 62), parse_math=False)
    top.set_ylabel(axis_text(panel.y, int(_LETTERS * high)), parse_math=False)
    default = path.provenance.get("title", "") if title is None else title
    add_header(top, default, handles)
    if not fitted.empty:
        cax = top.inset_axes((1.035, 0.0, 0.045, 1.0))
        add_colorbar(figure, column, fitted, lines, extend, cax=cax)
    _draw_residuals(bottom, path)
    return figure


def caption(path: Trajectory) -> str:
    """How far the checkpoints are from the plane, in words.

    Args:
        path: The run.

    Returns:
        One sentence.
    """
    t = int(np.nanargmax(path.residuals))
    far, distance = path.residuals[t], path.distances[t]
    share = f" ({far / distance:.0%} of its distance from the origin)" if distance else ""
    return (
        f"farthest from the plane: step {path.steps[t]} by {number_text(float(far), 3)}{share}; "
        f"the plane goes through step {path.steps[path.origin]}"
    )


def _empty_panel(path: Trajectory, column: str) -> Panel:
    """The plane without values."""
    norms = path.directions.norm().tolist()
    x, y = (
        AxisInfo(name, span, axis.label, axis.unit(norm))
        for name, span, axis, norm in zip(
            ("alpha", "beta"), path.span, path.directions.axes, norms, strict=True
        )
    )
    nothing = np.full((2, 2), np.nan)
    return Panel(x, y, nothing, np.zeros((2, 2), bool), column, None)


def _draw_empty(ax: Axes, panel: Panel) -> list[Artist]:
    left, right, bottom, top = panel.extent
    ax.set(xlim=(left, right), ylim=(bottom, top))
    if equal_aspect(panel):
        ax.set_aspect("equal", adjustable="box")
    ax.grid(color="0.9")
    ax.set_axisbelow(True)
    return []


def _check_plane(path: Trajectory, surface: Surface) -> None:
    """Refuse a surface along other axes, or through another point."""
    known = surface.provenance.get("fingerprint", {})
    center = path.provenance.get("fingerprint", {})
    wanted = {
        "directions": ("other directions", path.directions.fingerprint()),
        "parameters": ("another centre", center.get("parameters")),
        "buffers": ("other buffers, such as statistics of batch norm", center.get("buffers")),
    }
    for name, (difference, ours) in wanted.items():
        if ours is not None and known.get(name) != ours:
            got = f"one with {difference}" if name in known else f"one of unknown {name}"
            raise ArgumentError(
                "`surface` must be over the plane of the trajectory "
                f"(directions=trajectory), got {got}."
            )


def _values(path: Trajectory, column: str) -> np.ndarray:
    if column in path.columns:
        return path.values[:, path.columns.index(column)]
    return np.full(len(path), np.nan)


def _size(panel: Panel) -> tuple[float, float]:
    """Inches of the upper axes."""
    wide, high = 5.4, 4.8
    if equal_aspect(panel):
        left, right, bottom, top = panel.extent
        high = min(max(wide * (top - bottom) / (right - left), 2.2), 6.6)
    return wide, high


def _draw_path(
    ax: Axes, path: Trajectory, values: np.ndarray, scale: Scale, column: str
) -> list[Artist]:
    """The path and its points; returns the entries of the legend."""
    x, y = path.coordinates.T
    ax.plot(x, y, color="white", linewidth=3.0, zorder=5)
    ax.plot(x, y, color="black", linewidth=1.2, zorder=5.1)
    cmap, norm = colors_for(scale)
    cmap_of = matplotlib.colormaps[cmap]
    seen = np.isfinite(x)
    ax.scatter(
        x[seen], y[seen], c=scale.forward(values)[seen], cmap=cmap, norm=norm, s=34,
        edgecolors="black", linewidths=0.9, zorder=6, plotnonfinite=True,
    )  # fmt: skip
    entries: list[Artist] = []
    last = int(np.flatnonzero(seen)[-1])
    for t, marker, word in ((int(np.flatnonzero(seen)[0]), "s", "start"), (last, "*", "end")):
        face = cmap_of(norm(scale.forward(values[t]))) if np.isfinite(values[t]) else "white"
        style = _mark(marker, 15 if marker == "*" else 9, "black", face)
        halo = [withStroke(linewidth=4.5, foreground="white")]
        ax.plot(x[t], y[t], zorder=7, clip_on=False, path_effects=halo, **style)
        value = f": {plain(column)} {scale.number(float(values[t]))}"
        text = f"{word}, step {path.steps[t]}{value if np.isfinite(values[t]) else ''}"
        entries.append(Line2D([], [], label=text, **{**style, "markersize": 9}))
    drops = [t for t in path.drops if seen[t]]
    if 0 < len(drops) <= _MOST_DROPS:
        style = _mark("o", 12, _RED, "none")
        ax.plot(x[drops], y[drops], zorder=6.5, **style)
        listed = ", ".join(str(path.steps[t]) for t in drops[:4]) + (", ..." if drops[4:] else "")
        entries.append(
            Line2D(
                [], [], label=f"lower learning rate, step {listed}", **{**style, "markersize": 8}
            )
        )
    return entries


def _draw_residuals(ax: Axes, path: Trajectory) -> None:
    """Distances from the plane over the steps."""
    ax.plot(path.steps, path.residuals, color="black", marker=".", linewidth=1.1)
    ax.set(ylim=(0, None), ylabel="distance\noff the plane")
    ax.set_xlabel(f"step\n{wrapped(caption(path), 84)}", parse_math=False)
    drops = [t for t in path.drops if path.finite[t]]
    if 0 < len(drops) <= _MOST_DROPS:
        for t in drops:
            ax.axvline(float(path.steps[t]), color=_RED, linewidth=1.0)
    ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)


def _mark(marker: str, size: float, edge: str, face: Any) -> dict[str, Any]:
    return {
        "linestyle": "none", "marker": marker, "markersize": size, "markeredgewidth": 1.6,
        "markeredgecolor": edge, "markerfacecolor": face, "color": edge,
    }  # fmt: skip
