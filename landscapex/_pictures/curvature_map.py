"""A curvature map: the loss, and beside it the ends of the spectrum and their ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from landscapex._pictures.contours import draw_panel
from landscapex._pictures.layout import (
    Levels,
    Picture,
    add_colorbar,
    add_header,
    figure_size,
    fit_scale,
)
from landscapex._pictures.panel import Panel, axis_text, panel_of, wrapped
from landscapex._pictures.scale import number_text

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from landscapex.grids.results import Surface

_TITLES = {
    "loss": "loss",
    "ratio": "|λmin / λmax|",
    "smallest": "smallest eigenvalue λmin{of} (blue: below 0)",
    "largest": "largest eigenvalue λmax{of}",
}


def map_figure(surface: Surface, title: str, kind: str, levels: Levels) -> Figure:
    """Four panels over one plane: loss, ratio, smallest and largest eigenvalue.

    Args:
        surface: A curvature map with two axes.
        title: Above all panels; may be empty.
        kind: Scale of the ratio: "auto", "linear", "log" or "symlog".
        levels: Of the ratio.

    Returns:
        The figure.
    """
    matrix = surface.provenance.get("curvature", {}).get("matrix", "")
    of = f" of the {matrix}" if matrix else ""
    panels = [
        panel_of(surface, column, "curvature_map", words.format(of=of))
        for column, words in _TITLES.items()
    ]
    wide, high = figure_size(panels[0], colorbar=True)
    figure = Picture(figsize=(0.76 * 2 * wide, 0.76 * 2 * high + 0.5))
    axes = figure.subplots(2, 2, sharex=True, sharey=True, squeeze=False)
    entries = [
        _draw(figure, ax, panel, surface, *((kind, levels) if panel.column == "ratio" else ()))
        for ax, panel in zip(axes.ravel(), panels, strict=True)
    ]
    rows = max(map(len, entries))
    for ax, panel, handles in zip(axes.ravel(), panels, entries, strict=True):
        add_header(ax, panel.title, handles, rows=rows, width=44)
    for ax in axes[1]:
        ax.set_xlabel(axis_text(panels[0].x, 44), parse_math=False)
    for ax in axes[:, 0]:
        ax.set_ylabel(axis_text(panels[0].y, 44), parse_math=False)
    if title:
        figure.suptitle(wrapped(title, 80), fontsize=13, parse_math=False)
    return figure


def _draw(
    figure: Figure,
    ax: Axes,
    panel: Panel,
    surface: Surface,
    kind: str = "auto",
    levels: Levels = None,
) -> list[Artist]:
    """Draw one panel with its colour bar; its legend entries."""
    scale, lines, extend = fit_scale([panel], kind, levels)
    handles = draw_panel(ax, panel, scale, lines)
    if panel.column != "loss":
        handles += _mark_doubtful(ax, surface)
    if not scale.empty:
        cax = ax.inset_axes((1.035, 0.0, 0.045, 1.0))
        add_colorbar(figure, panel.column, scale, lines, extend, cax=cax)
    return handles


def _mark_doubtful(ax: Axes, surface: Surface) -> list[Artist]:
    """Crosses on points whose eigenvalues are not as exact as was asked for."""
    i, j = np.nonzero((surface["converged"] == 0) & np.isfinite(surface["smallest"]))
    if i.size == 0:
        return []
    x, y = surface.coordinates
    style: dict[str, Any] = {"linestyle": "none", "marker": "x", "markersize": 5, "color": "black"}
    style["path_effects"] = [withStroke(linewidth=2.5, foreground="white")]  # on dark colours
    ax.plot(x[i], y[j], zorder=4, **style)
    worst = max(float(np.max(surface[f"{end}_residual"][i, j])) for end in ("smallest", "largest"))
    noun = "point" if i.size == 1 else "points"
    text = f"{i.size} {noun} not converged (residual up to {number_text(worst, 2)})"
    return [Line2D([], [], label=text, **style)]
