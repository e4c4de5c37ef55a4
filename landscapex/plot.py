"""Pictures of surfaces: lines, contours, reliefs, several results side by side.

Every function returns a matplotlib figure that belongs to the caller: nothing is shown, no window
is opened, and neither pyplot, its backend nor the global settings are touched, so that pictures
can be drawn in threads and on machines without a display. A figure is displayed by a notebook if
it is the last expression of a cell, and saved by `save` or ``figure.savefig``. To draw into a
figure of pyplot, pass ``ax=``; one made with ``layout="constrained"`` makes room for the labels.

What cannot be drawn is left out, never replaced: points that are not finite, or not evaluated yet,
are grey holes, counted in the legend.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from landscapex._numbers import check_positive
from landscapex._pictures.contours import draw_panel
from landscapex._pictures.coststrip import cost_strip as cost_strip
from landscapex._pictures.curvature_map import map_figure
from landscapex._pictures.curves import draw_curves, group_columns
from landscapex._pictures.eigenvalues import eigenvalues as eigenvalues
from landscapex._pictures.files import picture_bytes
from landscapex._pictures.flow import draw_flow as gradient_flow
from landscapex._pictures.gallery import finish_relief, panels_figure, relief_axes
from landscapex._pictures.gradients import draw_gradients as gradient_history
from landscapex._pictures.histograms import histograms as histograms
from landscapex._pictures.interpolation import interpolation as interpolation
from landscapex._pictures.layout import (
    Levels,
    Picture,
    add_colorbar,
    add_header,
    figure_size,
    fit_scale,
    png,
    root_figure,
)
from landscapex._pictures.panel import (
    GREEK,
    axis_text,
    check_column,
    check_surfaces,
    essential,
    panel_of,
    plain,
    slice_indices,
    slice_of,
)
from landscapex._pictures.relief import draw_relief
from landscapex._pictures.residual import residuals as residuals
from landscapex._pictures.scale import check_kind
from landscapex._pictures.spectrum import draw_spectrum as spectrum
from landscapex._pictures.trajectory import draw_trajectory as trajectory
from landscapex.errors import ArgumentError, ArgumentTypeError
from landscapex.storage.files import check_path, replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from landscapex.grids.results import Surface

__all__ = [
    "compare",
    "contour",
    "cost_strip",
    "curvature_map",
    "eigenvalues",
    "gradient_flow",
    "gradient_history",
    "histograms",
    "interpolation",
    "line",
    "residuals",
    "save",
    "slices",
    "spectrum",
    "surface3d",
    "thumbnail",
    "trajectory",
]

_DPI = (10, 2400)  # smaller letters and larger pictures cannot be drawn
_KINDS = ("contour", "surface3d", "line")


def line(
    *surfaces: Surface,
    column: str | Sequence[str] = "loss",
    ax: Axes | None = None,
    scale: str = "auto",
    labels: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw one-dimensional results as lines on shared axes.

    Columns of one quantity (``loss`` and ``test_loss``) share a panel; other quantities get their
    own panel below it. Values that are not finite are gaps in a line.

    Args:
        *surfaces: Results with one axis.
        column: What to draw; one name or several.
        ax: Draw everything into these axes instead of a new figure.
        scale: "auto", "linear", "log" or "symlog".
        labels: One name per result; by default its title, or the name of its file.
        title: Above the picture; None for a default, "" for none.

    Returns:
        The figure.

    Raises:
        ArgumentError: A result does not have one axis, a column is missing, `labels` do not fit,
            or the scale is unknown.
        ArgumentTypeError: Something that is not a result was passed.

    Example:
        >>> import numpy as np
        >>> from landscapex.grids.results import Surface
        >>> from landscapex.storage.store import AxisInfo, RunHeader
        >>> alpha = AxisInfo("alpha", (-1.0, 0.0, 1.0), "random direction", "1 = ‖θ‖")
        >>> header = RunHeader("line", (alpha,), ("loss",), {}, {}, {})
        >>> values = np.array([[2.0], [1.0], [2.0]])
        >>> figure = line(Surface.from_run(header, np.ones(3, bool), values))
        >>> figure.axes[0].get_ylabel()
        'loss (linear scale)'
    """
    check_surfaces(surfaces, 1, "line")
    columns = [column] if isinstance(column, str) else list(column)
    for surface in surfaces:
        for name in columns:
            check_column(surface, name)
    check_kind(scale)
    names = _labels(surfaces, labels)
    groups = group_columns(columns, surfaces[0].columns) if ax is None else [columns]
    if ax is None:
        figure: Figure = Picture(figsize=(6.8, 1.3 + 3.3 * len(groups)))
        axes = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0].tolist()
    else:
        figure, axes = root_figure(ax), [ax]
    for panel_ax, group in zip(axes, groups, strict=True):
        handles = draw_curves(panel_ax, surfaces, group, names, scale)
        top = panel_ax is axes[0]
        add_header(panel_ax, _title(title, surfaces, columns) if top else "", handles)
    axes[-1].set_xlabel(_shared_axis_text(surfaces), parse_math=False)
    return figure


def contour(
    surface: Surface,
    column: str = "loss",
    *,
    ax: Axes | None = None,
    scale: str = "auto",
    levels: Levels = None,
    title: str | None = None,
    colorbar: bool = True,
) -> Figure:
    """Draw a two-dimensional result as filled contours with labelled level lines.

    The centre is marked, and the best point of the grid if it is a better one. Axes of one unit
    have equal scales.

    Args:
        surface: A result with two axes.
        column: What to draw.
        ax: Draw into these axes instead of a new figure.
        scale: "auto", "linear", "log" or "symlog".
        levels: About how many level lines, or their values in the unit of the column. The colours
            then run from the first to the last of them; values beyond get the colour of that end.
        title: Above the picture; None for a default, "" for none.
        colorbar: Whether to draw one.

    Returns:
        The figure.

    Raises:
        ArgumentError: The result does not have two axes, the column is missing, or the scale or
            levels cannot be used.
        ArgumentTypeError: `surface` is not a result.
    """
    panel = panel_of(surface, column, "contour")
    fitted, lines, extend = fit_scale([panel], scale, levels)
    own = ax is None
    if ax is None:
        figure: Figure = Picture(figsize=figure_size(panel, colorbar))
        ax = figure.add_subplot()
    else:
        figure = root_figure(ax)
    handles = draw_panel(ax, panel, fitted, lines)
    ax.set_xlabel(axis_text(panel.x, 62), parse_math=False)
    ax.set_ylabel(axis_text(panel.y, 52), parse_math=False)
    add_header(ax, _title(title, [surface], [column]), handles)
    if colorbar and not fitted.empty:
        # As high as equally scaled axes; in a foreign layout there may be no room beside them.
        where = {"cax": ax.inset_axes((1.035, 0.0, 0.045, 1.0))} if own else {"ax": [ax]}
        add_colorbar(figure, column, fitted, lines, extend, **where)
    return figure


def surface3d(
    surface: Surface,
    column: str = "loss",
    *,
    ax: Axes | None = None,
    scale: str = "auto",
    levels: Levels = None,
    title: str | None = None,
    colorbar: bool = True,
) -> Figure:
    """Draw a two-dimensional result as a relief over its level lines.

    Args:
        surface: A result with two axes.
        column: What to draw.
        ax: Draw into these axes, made with ``projection="3d"``, instead of a new figure.
        scale: "auto", "linear", "log" or "symlog"; heights and colours are both on this scale.
        levels: As in `contour`; heights beyond the given levels are cut off.
        title: Above the picture; None for a default, "" for none.
        colorbar: Whether to draw one.

    Returns:
        The figure.

    Raises:
        ArgumentError: The result does not have two axes, the column is missing, `ax` is not
            three-dimensional, or the scale or levels cannot be used.
        ArgumentTypeError: `surface` is not a result.
    """
    panel = panel_of(surface, column, "surface3d")
    fitted, lines, extend = fit_scale([panel], scale, levels)
    figure, axes = relief_axes(ax)
    handles = draw_relief(axes, panel, fitted, lines)
    finish_relief(axes, panel, fitted, lines)
    add_header(axes, _title(title, [surface], [column]), handles, rows=len(handles))
    if colorbar and not fitted.empty:
        add_colorbar(figure, column, fitted, lines, extend, ax=[axes], shrink=0.62, pad=0.09)
    return figure


def compare(
    *surfaces: Surface,
    column: str = "loss",
    labels: Sequence[str] | None = None,
    kind: str = "contour",
    scale: str = "auto",
    levels: Levels = None,
    title: str | None = None,
) -> Figure:
    """Draw several results side by side on shared axes, levels and colours.

    Args:
        *surfaces: Results with two axes (one for ``kind="line"``).
        column: What to draw.
        labels: One name per result; by default its title, or the name of its file.
        kind: "contour", "surface3d" or "line".
        scale: "auto", "linear", "log" or "symlog", chosen for all results together.
        levels: As in `contour`; not for lines.
        title: Above all panels; None or "" for none.

    Returns:
        The figure.

    Raises:
        ArgumentError: A result has the wrong number of axes, the column is missing, or `kind`,
            `labels`, the scale or the levels cannot be used.
        ArgumentTypeError: Something that is not a result was passed.
    """
    if kind not in _KINDS:
        raise ArgumentError(f"`kind` must be one of {', '.join(_KINDS)}, got {kind!r}.")
    if kind == "line":
        return line(*surfaces, column=column, scale=scale, labels=labels, title=title)
    check_surfaces(surfaces, 2, kind)
    names = _labels(surfaces, labels)
    panels = [panel_of(s, column, kind, name) for s, name in zip(surfaces, names, strict=True)]
    return panels_figure(panels, scale, levels, title or "", relief=kind == "surface3d")


def curvature_map(
    surface: Surface,
    *,
    scale: str = "auto",
    levels: Levels = None,
    title: str | None = None,
) -> Figure:
    """Draw a curvature map: the loss, both ends of the spectrum, and their ratio.

    Args:
        surface: A result of `landscapex.curvature_map` with two axes.
        scale: Of the ratio: "auto", "linear", "log" or "symlog".
        levels: Of the ratio; as in `contour`.
        title: Above all panels; None or "" for none.

    Returns:
        The figure.

    Raises:
        ArgumentError: The result has another number of axes or is no curvature map, or the scale
            or the levels cannot be used.
        ArgumentTypeError: `surface` is not a result.

    References:
        Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural Nets",
        NeurIPS 2018, figure 7.
    """
    check_surfaces([surface], 2, "curvature_map")
    return map_figure(surface, title or "", scale, levels)


def slices(
    surface: Surface,
    column: str = "loss",
    *,
    axis: str | None = None,
    count: int = 6,
    scale: str = "auto",
    levels: Levels = None,
    title: str | None = None,
) -> Figure:
    """Draw a three-dimensional result as contours of evenly spaced slices.

    Args:
        surface: A result with three axes.
        column: What to draw.
        axis: The name of the axis that is cut; by default the last one.
        count: How many slices; all if there are fewer; the default title says how many of how
            many. The slice through the centre is always one of them if the grid has it.
        scale: "auto", "linear", "log" or "symlog", chosen for all slices together.
        levels: As in `contour`.
        title: Above all panels; None for a default, "" for none.

    Returns:
        The figure.

    Raises:
        ArgumentError: The result does not have three axes, there is no such column or axis,
            `count` is below 1, or the scale or levels cannot be used.
        ArgumentTypeError: `surface` is not a result.
    """
    check_surfaces([surface], 3, "slices")
    check_column(surface, column)
    names = [a.name for a in surface.axes]
    if axis is not None and axis not in names:
        raise ArgumentError(f"`axis` must be one of {', '.join(names)}, got {axis!r}.")
    if count < 1:
        raise ArgumentError(f"`count` must be at least 1, got {count}.")
    cut = names.index(axis) if axis is not None else 2
    info = surface.axes[cut]
    panels = [slice_of(surface, column, cut, k) for k in slice_indices(info, count)]
    default = _title(title, [surface], [column])
    symbol = f"{GREEK.get(info.name, info.name)}: {info.label}, {info.unit}".rstrip(", ")
    if len(panels) < len(info.values):
        symbol += f"; {len(panels)} of {len(info.values)} slices"
    text = "\n".join(t for t in (default, symbol) if t) if title != "" else ""
    return panels_figure(panels, scale, levels, text)


def thumbnail(surface: Surface) -> bytes:
    """A small picture of any result for its notebook representation.

    Args:
        surface: A result with one, two or three axes; of three, the slice nearest the centre.

    Returns:
        A PNG file.
    """
    figure = Picture(figsize=(3.4, 2.7), dpi=100)
    ax = figure.add_subplot()
    column = surface.columns[0]
    if surface.ndim == 1:
        draw_curves(ax, [surface], [column], [""], "auto")
    else:
        cut = min(surface.ndim - 1, 2)
        if surface.ndim == 2:
            panel = panel_of(surface, column, "thumbnail")
        else:
            panel = slice_of(surface, column, cut, slice_indices(surface.axes[cut], 1)[0])
        fitted, lines, extend = fit_scale([panel], "auto", 6)
        draw_panel(ax, panel, fitted, lines, line_labels=False)
        if not fitted.empty:
            cax = ax.inset_axes((1.05, 0.0, 0.06, 1.0))
            add_colorbar(figure, column, fitted, lines, extend, cax=cax)
        ax.set_ylabel(GREEK.get(panel.y.name, panel.y.name))
    ax.set_xlabel(GREEK.get(surface.axes[0].name, surface.axes[0].name))
    for each in figure.findobj(lambda artist: hasattr(artist, "set_fontsize")):
        each.set_fontsize(8)  # type: ignore[attr-defined]
    return png(figure)


def save(figure: Figure, path: str | os.PathLike[str], *, dpi: float = 150.0) -> Path:
    """Write a figure to a file; an existing file is replaced at once or not at all.

    The same figure gives the same bytes in png, svg and pdf: no date, no random names.

    Args:
        figure: Any matplotlib figure.
        path: Where to; the suffix (``.png``, ``.pdf``, ``.svg``, ...) is the format.
        dpi: Pixels per inch of pictures made of pixels.

    Returns:
        The path.

    Raises:
        ArgumentError: The suffix is not a format that matplotlib writes, or ``dpi`` not a number
            from 10 to 2,400.
        OutputError: The file cannot be written.
    """
    low, high = _DPI
    if not low <= check_positive("dpi", dpi) <= high:
        raise ArgumentError(f"`dpi` must be from {low} to {high:,}, got {dpi!r}.")
    target = Path(path)
    known = figure.canvas.get_supported_filetypes()
    suffix = target.suffix[1:].lower()
    if suffix not in known:
        raise ArgumentError(
            f"`path` must end in one of {', '.join('.' + k for k in sorted(known))}, "
            f"got {str(path)!r}."
        )
    replace_file(check_path(target), picture_bytes(figure, suffix, dpi=dpi))
    return target


def __dir__() -> list[str]:
    return sorted(__all__)


def _title(title: str | None, surfaces: Sequence[Surface], columns: Sequence[str]) -> str:
    if title is not None:
        if not isinstance(title, str):
            raise ArgumentTypeError(f"`title` must be a string or None, got {title!r}.")
        return title
    if len(surfaces) != 1:
        return ""
    provenance = surfaces[0].provenance
    if provenance.get("title"):
        return str(provenance["title"])
    model = (provenance.get("model") or {}).get("class")
    return f"{', '.join(plain(c) for c in columns)} around the weights of {model}" if model else ""


def _labels(surfaces: Sequence[Surface], labels: Sequence[str] | None) -> list[str]:
    if labels is None:
        return [_default_label(s, k) for k, s in enumerate(surfaces)]
    if isinstance(labels, str) or len(labels) != len(surfaces):
        raise ArgumentError(
            f"`labels` must be one name per result ({len(surfaces)}), got {labels!r}."
        )
    return [str(label) for label in labels]


def _default_label(surface: Surface, index: int) -> str:
    path = getattr(surface, "path", None)
    return str(
        surface.provenance.get("title") or (Path(path).stem if path else f"result {index + 1}")
    )


def _shared_axis_text(surfaces: Sequence[Surface]) -> str:
    infos = [s.axes[0] for s in surfaces]
    texts = {axis_text(a, 76) for a in infos}
    if len(texts) == 1:
        return texts.pop()
    labels, units = {a.label for a in infos}, {essential(a.unit) for a in infos}
    first = labels.pop() if len(labels) == 1 else "along the direction of each result"
    second = units.pop() if len(units) == 1 else "1 = the direction of each result once"
    return f"{GREEK.get(infos[0].name, infos[0].name)}, {first}\n{second}"
