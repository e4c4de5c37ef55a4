"""Several panels in one figure: contours or reliefs in rows, with everything shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from landscapex._pictures.contours import draw_panel
from landscapex._pictures.layout import (
    Levels,
    Picture,
    add_colorbar,
    add_header,
    figure_size,
    fit_scale,
    root_figure,
)
from landscapex._pictures.panel import Panel, axis_text, plain, wrapped
from landscapex._pictures.relief import draw_relief
from landscapex._pictures.scale import Scale
from landscapex.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Without computed_zorder=False the marks disappear behind the surface.
RELIEF: dict[str, Any] = {"projection": "3d", "computed_zorder": False}

_MOST_HEIGHTS = 7  # texts beside the vertical axis
_LETTERS, _HALF_LETTER = 2, 2.6  # of these texts, for which matplotlib leaves room; points


def panels_figure(
    panels: Sequence[Panel], scale: str, levels: Levels, title: str, *, relief: bool = False
) -> Figure:
    """Panels in rows of at most three, one scale and one colour bar for all.

    Args:
        panels: What to draw, at least one.
        scale: "auto" or the name of a scale.
        levels: How many level lines, or their values.
        title: Above all panels; may be empty.
        relief: Whether to draw in three dimensions.

    Returns:
        The figure.
    """
    fitted, lines, extend = fit_scale(panels, scale, levels)
    across = min(len(panels), 3) if len(panels) != 4 else 2
    down = -(-len(panels) // across)
    figure = Picture(figsize=_size(panels, across, down, relief))
    options = RELIEF if relief else {}
    axes = [figure.add_subplot(down, across, k + 1, **options) for k in range(len(panels))]
    if relief:
        entries = [draw_relief(ax, p, fitted, lines) for ax, p in zip(axes, panels, strict=True)]
        rows = max(map(len, entries))
        for ax, panel, handles in zip(axes, panels, entries, strict=True):
            finish_relief(ax, panel, fitted, lines)
            add_header(ax, panel.title, handles, rows=rows, width=34)
    else:
        _flat_panels(axes, panels, fitted, lines, across)
    if title:
        figure.suptitle(wrapped(title, 32 * across + 12), fontsize=13, parse_math=False)
    if not fitted.empty:
        beside: dict[str, Any] = {"ax": axes, "aspect": 24 * down, "shrink": 0.8}
        beside["pad"] = 0.06 if relief else 0.02
        if down == 1 and not relief:
            beside = {"cax": axes[-1].inset_axes((1.05, 0.0, 0.055, 1.0))}
        add_colorbar(figure, panels[0].column, fitted, lines, extend, **beside)
    return figure


def _size(panels: Sequence[Panel], across: int, down: int, relief: bool) -> tuple[float, float]:
    if relief:
        return 4.6 * across + 1.1, 4.8 * down
    wide, high = figure_size(panels[0], colorbar=False)
    return 0.66 * wide * across + 1.4, (0.66 * high + 0.5) * down + 0.4


def _flat_panels(
    axes: Sequence[Axes],
    panels: Sequence[Panel],
    scale: Scale,
    lines: NDArray[np.float64],
    across: int,
) -> None:
    entries = [draw_panel(ax, p, scale, lines) for ax, p in zip(axes, panels, strict=True)]
    extents = np.array([p.extent for p in panels])
    left, bottom = extents[:, [0, 2]].min(axis=0)
    right, top = extents[:, [1, 3]].max(axis=0)
    alike_x = len({axis_text(p.x, 40, details=False) for p in panels}) == 1
    alike_y = len({axis_text(p.y, 40, details=False) for p in panels}) == 1
    exact_x = len({p.x.unit for p in panels}) == 1 or not alike_x
    exact_y = len({p.y.unit for p in panels}) == 1 or not alike_y
    for k, (ax, panel) in enumerate(zip(axes, panels, strict=True)):
        ax.set(xlim=(left, right), ylim=(bottom, top))
        if not alike_x or k + across >= len(panels):
            ax.set_xlabel(axis_text(panel.x, 40, details=exact_x), parse_math=False)
        if not alike_y or k % across == 0:
            ax.set_ylabel(axis_text(panel.y, 40, details=exact_y), parse_math=False)
        row = entries[k - k % across : k - k % across + across]
        add_header(ax, panel.title, entries[k], rows=max(map(len, row)), width=34)


def finish_relief(ax: Any, panel: Panel, scale: Scale, lines: NDArray[np.float64]) -> None:
    """Label the axes of a relief."""
    ax.set_xlabel(axis_text(panel.x, 36), parse_math=False, labelpad=14, fontsize=9)
    ax.set_ylabel(axis_text(panel.y, 36), parse_math=False, labelpad=14, fontsize=9)
    ticks = lines[:: -(-lines.size // _MOST_HEIGHTS) or 1]
    ax.tick_params(labelsize=8, pad=0)
    name_heights(ax, plain(panel.column), ticks, scale.texts(ticks))


def name_heights(ax: Any, name: str, ticks: NDArray[np.float64], texts: Sequence[str]) -> None:
    """Label the vertical axis of a relief, clear of the axis however long the texts are.

    Args:
        ax: Three-dimensional axes.
        name: Of the axis.
        ticks: Heights.
        texts: One per height; matplotlib centres them at a fixed distance from the axis.
    """
    more = _HALF_LETTER * max(max(map(len, texts), default=0) - _LETTERS, 0)
    ax.set_zticks(ticks, texts, fontsize=8)
    ax.tick_params(axis="z", pad=more)
    ax.set_zlabel(name, parse_math=False, labelpad=2 + 2 * more, fontsize=9)


def relief_axes(ax: Any) -> tuple[Figure, Any]:
    """The given three-dimensional axes, or new ones, and their figure.

    Args:
        ax: Axes, or None.

    Returns:
        Figure and axes.

    Raises:
        ArgumentError: The given axes are flat.
    """
    if ax is None:
        figure = Picture(figsize=(7.8, 6.8))
        return figure, figure.add_subplot(**RELIEF)
    if not hasattr(ax, "get_zlim"):
        raise ArgumentError(f'`ax` must be made with projection="3d", got {type(ax).__name__}.')
    return root_figure(ax), ax
