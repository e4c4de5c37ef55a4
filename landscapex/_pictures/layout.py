"""What surrounds the drawing: figure, colour bar, title, legend, and the scale panels share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from numpy.typing import NDArray

from landscapex._pictures.contours import colors_for, line_colors, shades
from landscapex._pictures.panel import Panel, equal_aspect, kind_for, sign_matters, wrapped
from landscapex._pictures.scale import Scale, choose, number_text
from landscapex._pictures.ticks import plain_ticks
from landscapex.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

Levels = int | Sequence[float] | None

_DEFAULT_LEVELS = 9
_LEGEND_SIZE = 9.0
_LEGEND_ROW = 1.45 * _LEGEND_SIZE  # points from one legend row to the next


class Picture(Figure):
    """A matplotlib figure without a window that notebooks display even if pyplot never ran.

    What hangs out of the figure is saved too: the layout engine does not see all labels of
    three-dimensional axes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, layout="constrained", **kwargs)
        FigureCanvasAgg(self)

    def savefig(self, fname: Any, *, transparent: bool | None = None, **kwargs: Any) -> None:
        """Save as `matplotlib.figure.Figure.savefig`, with ``bbox_inches="tight"`` by default."""
        super().savefig(fname, transparent=transparent, **{"bbox_inches": "tight", **kwargs})

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: Figure, *, dpi: float | None = None) -> bytes:
    """The figure as a PNG file in memory.

    Args:
        figure: Any matplotlib figure.
        dpi: Pixels per inch; None for the figure's own.

    Returns:
        The bytes of the file.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi or "figure", bbox_inches="tight")
    return buffer.getvalue()


def fit_scale(
    panels: Sequence[Panel], kind: str, levels: Levels
) -> tuple[Scale, NDArray[np.float64], str]:
    """One scale for all panels.

    Args:
        panels: What will be drawn.
        kind: "auto" or the name of a scale.
        levels: How many level lines, or their values.

    Returns:
        The scale, the level lines as places on it, and which ends of the colours are cut off:
        "neither", "min", "max" or "both".

    Raises:
        ArgumentError: The scale is unknown, or it or the levels cannot be used for these values.
    """
    signed = any(sign_matters(p.column) for p in panels)
    kind = kind_for([p.column for p in panels], kind)
    whole = choose([p.values for p in panels], kind, signed=signed)
    if levels is None or isinstance(levels, int | np.integer):
        count = _DEFAULT_LEVELS if levels is None else int(levels)
        if count < 1:
            raise ArgumentError(f"`levels` must be at least 1, got {count}.")
        return whole, whole.levels(count), "neither"
    values = _level_values(levels, whole)
    if values.size < 2 or whole.empty:
        return whole, whole.forward(values), "neither"
    low, high = float(values[0]), float(values[-1])
    ends = {(True, True): "both", (True, False): "min", (False, True): "max"}
    extend = ends.get((whole.low < low, whole.high > high), "neither")
    clipped = replace(whole, low=low, high=high)
    return clipped, clipped.forward(values), extend


def _level_values(levels: Sequence[float], scale: Scale) -> NDArray[np.float64]:
    try:
        values = np.unique(np.asarray(levels, dtype=np.float64))
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"`levels` must be a number or numbers, got {levels!r}.") from None
    if values.size == 0 or not np.isfinite(values).all():
        raise ArgumentError(f"`levels` must be finite numbers, got {list(levels)}.")
    if scale.kind == "log" and values[0] <= 0:
        raise ArgumentError(
            f"`levels` must be above 0 on a log scale, got {number_text(float(values[0]))}."
        )
    return values


def add_colorbar(
    figure: Figure,
    column: str,
    scale: Scale,
    lines: NDArray[np.float64],
    extend: str,
    **where: Any,
) -> None:
    """A colour bar with the level lines on it, labelled with column and scale.

    Args:
        figure: The figure.
        column: What the colours show.
        scale: How values become colours.
        lines: Level lines, as places on the drawn scale.
        extend: Which ends of the colours are cut off.
        **where: ``cax`` or ``ax``, as for ``Figure.colorbar``.
    """
    cmap, norm = colors_for(scale)
    first, last = scale.limits()
    ticks = inside = lines[(lines >= first) & (lines <= last)]
    if scale.constant:
        ticks = scale.forward([scale.low])
    elif ticks.size < 2:
        ticks = np.unique(np.concatenate([[first], ticks, [last]]))
    bar = figure.colorbar(
        ScalarMappable(norm, cmap), boundaries=shades(scale, lines), spacing="proportional",
        extend=extend, extendfrac=0.04, drawedges=False, **where,
    )  # fmt: skip
    bar.set_ticks(ticks.tolist(), labels=scale.texts(ticks))
    bar.minorticks_off()
    bar.set_label(scale.label(column), parse_math=False)
    bar.ax.hlines(inside, 0, 1, colors=line_colors(scale, inside), linewidths=0.9)


def add_header(
    ax: Axes, title: str, handles: Sequence[Artist], *, rows: int | None = None, width: int = 62
) -> None:
    """Title over legend over axes: outside the axes nothing can be covered, nor covers the legend.

    Args:
        ax: The axes.
        title: May be empty.
        handles: Legend entries.
        rows: Room for that many, so that neighbours are level; None for what is needed.
        width: Characters after which the title is wrapped.
    """
    plain_ticks(ax)
    longest = max((len(str(h.get_label())) for h in handles), default=0)
    across = 1 if rows is not None or longest > 32 else 2
    needed = -(-len(handles) // across) if rows is None else rows
    if handles:
        legend = ax.legend(
            handles=list(handles), loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=across,
            fontsize=_LEGEND_SIZE, frameon=False, borderaxespad=0.25, borderpad=0.2,
            handletextpad=0.5, handlelength=1.6, labelspacing=0.3, columnspacing=1.5,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
    if title:
        pad = 6 + _LEGEND_ROW * needed + (4 if needed else 0)
        ax.set_title(wrapped(title, width), loc="left", fontsize=12, pad=pad, parse_math=False)


def figure_size(panel: Panel, colorbar: bool) -> tuple[float, float]:
    """Inches such that the axes fill the figure, also when both units are equal."""
    wide = 4.9
    high = 4.2
    if equal_aspect(panel):
        left, right, bottom, top = panel.extent
        ratio = (top - bottom) / (right - left)
        wide, high = (wide, wide * ratio) if ratio <= 1 else (max(wide / ratio, 2.6), wide)
    return wide + (2.1 if colorbar else 1.1), high + 1.6


def root_figure(ax: Axes) -> Figure:
    """The figure that the axes are in, also if a subfigure is between.

    Args:
        ax: The axes.

    Returns:
        The figure.

    Raises:
        ArgumentError: The axes were removed.
    """
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ArgumentError("`ax` must belong to a figure, got axes that were removed from theirs.")
    return figure
