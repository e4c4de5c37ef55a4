"""A page that any browser turns and zooms.

The page is one file and asks the network for nothing. It is drawn like the pictures of
`landscapex.plot`: heights and colours are on the scale that `choose` takes, texts are in the unit
of the column. Points that are not finite, or not evaluated yet, are left out, marked and counted.
"""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from landscapex._extras import require
from landscapex._pictures.contours import colors_for
from landscapex._pictures.curves import COLORS
from landscapex._pictures.panel import (
    GREEK,
    axis_text,
    best_point,
    best_word,
    center_value,
    check_column,
    hole_texts,
    kind_for,
    plain,
    wrapped,
)
from landscapex._pictures.relief import BOX
from landscapex._pictures.scale import Scale, choose, number_text
from landscapex.errors import ArgumentError
from landscapex.export.target import check_result, check_target, provenance_line, write
from landscapex.grids.results import Surface
from landscapex.plot import _title

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Floats = NDArray[np.float64]
Trace = dict[str, Any]

SUFFIXES = (".html", ".htm")
_FLOOR_ROOM = 0.1  # holes are marked this much of the range below the lowest value
_ISOSURFACES = 5
_SYMBOLS = {"centre": "circle", "best": "diamond", "hole": "x"}
_CENTER_COLOR = "#D55E00"  # stands out from viridis, also for the colour-blind

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ margin: 0; height: 100vh; display: flex; flex-direction: column; font-family: sans-serif; }}
main {{ flex: 1; min-height: 0; }}
footer {{ padding: 4px 12px; font-size: 12px; color: #555; }}
</style>
</head>
<body>
<main>{figure}</main>
<footer>{provenance}</footer>
</body>
</html>
"""


def to_html(
    surface: Surface,
    path: str | os.PathLike[str],
    *,
    column: str = "loss",
    scale: str = "auto",
    title: str | None = None,
) -> Path:
    """Write a result as one interactive page; the file is there whole, or not at all.

    Args:
        surface: Any result.
        path: Where to, ending in ``.html``; an existing file is replaced.
        column: What to draw.
        scale: "auto", "linear", "log" or "symlog", as in `landscapex.plot`.
        title: Above the picture; None for a default, "" for none.

    Returns:
        The absolute path.

    Raises:
        ArgumentError: `path` does not end in ``.html`` or ``.htm``, or as for `figure`.
        ArgumentTypeError: `surface` is not a result.
        MissingExtraError: plotly is not installed.
        OutputError: The file cannot be written.
    """
    target = check_target(path, SUFFIXES)
    drawn = figure(surface, column, scale=scale, title=title)
    page = _PAGE.format(
        title=html.escape(_title(title, [surface], [column]) or f"{plain(column)} ({target.stem})"),
        figure=drawn.to_html(
            full_html=False,
            include_plotlyjs=True,
            div_id="landscape",
            default_width="100%",
            default_height="100%",
            config={"displaylogo": False, "responsive": True},
        ),
        provenance=html.escape(provenance_line(surface)),
    ).encode(errors="replace")  # names of files may hold what is not text
    return write(target, page)


def figure(
    surface: Surface, column: str = "loss", *, scale: str = "auto", title: str | None = None
) -> Figure:
    """An interactive figure: a curve, a relief, or the isosurfaces of a volume.

    Args:
        surface: Any result; a volume must not have holes.
        column: What to draw.
        scale: "auto", "linear", "log" or "symlog".
        title: Above the picture; None for a default, "" for none.

    Returns:
        A plotly figure. Its heights are places on the scale: logarithms where that is "log".

    Raises:
        ArgumentError: There is no such column, the scale cannot be used, or a volume has holes or
            an axis with a single point.
        ArgumentTypeError: `surface` is not a result.
        MissingExtraError: plotly is not installed.

    Example:
        >>> from landscapex.storage.store import AxisInfo, RunHeader
        >>> alpha = AxisInfo("alpha", (-1.0, 0.0, 1.0), "random direction", "1 = ‖θ‖")
        >>> header = RunHeader("line", (alpha,), ("loss",), {}, {}, {})
        >>> line = Surface.from_run(header, np.ones(3, bool), np.array([[200.0], [2.0], [20.0]]))
        >>> drawn = figure(line)
        >>> drawn.data[0].text[2]
        'α = 1<br>loss = 20'
        >>> drawn.layout.yaxis.title.text
        'loss (log scale)'
    """
    objects = require("plotly.graph_objects", "interactive")
    check_result(surface)
    check_column(surface, column)
    values = surface[column]
    fitted = choose([values], kind_for([column], scale))
    missing = hole_texts(values, surface.evaluated, fitted)
    if surface.ndim == 3:
        _check_volume(surface, missing)
    draw = (_curve, _relief, _isosurfaces)[surface.ndim - 1]
    traces = draw(surface, column, fitted)
    traces += _marks(surface, column, fitted) + _holes(surface, column, fitted, missing)
    text = _html(wrapped(_title(title, [surface], [column]), 90))
    layout = {
        "template": "plotly_white",
        "title": {"text": text, "x": 0.02},
        "legend": {"x": 0.01, "y": 0.99, "bgcolor": "rgba(255,255,255,0.7)"},
        "margin": {"l": 70, "r": 20, "t": 60 if text else 20, "b": 70},
        "hovermode": "closest",
        "showlegend": True,
        **_axes(surface, column, fitted),
    }
    return objects.Figure(traces, layout)


def _curve(surface: Surface, column: str, scale: Scale) -> list[Trace]:
    return [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": surface.coordinates[0].tolist(),
            "y": _nullable(scale.forward(surface[column])),
            "text": _point_texts(surface, column, scale).tolist(),
            "hoverinfo": "text",
            "name": _html(plain(column)),
            "connectgaps": False,
            "line": {"color": COLORS[0]},
            "marker": {"size": 5},
        }
    ]


def _relief(surface: Surface, column: str, scale: Scale) -> list[Trace]:
    """The faces between four finite points, and dots for finite points that no face has."""
    heights = scale.forward(surface[column])
    if scale.empty:
        return []
    texts = _point_texts(surface, column, scale)
    x, y = surface.coordinates
    # plotly has rows along y: transposed here, and nowhere else.
    relief = {
        "type": "surface",
        "x": x.tolist(),
        "y": y.tolist(),
        "z": _nullable(heights.T),
        "text": texts.T.astype(str),  # of nested lists plotly would make one text per row
        "hoverinfo": "text",
        "connectgaps": False,
        "cmin": _color_range(scale)[0],
        "cmax": _color_range(scale)[1],
        **_colors(column, scale),
    }
    alone = _faceless(heights)
    if not alone.any():
        return [relief]
    dots = _points(surface, alone, heights[alone], texts[alone].tolist())
    dots["marker"] = {"size": 4, "color": dots["z"], "colorscale": _color_scale(scale)}
    dots["marker"] |= {"cmin": relief["cmin"], "cmax": relief["cmax"]}
    dots["showlegend"] = False
    return [relief, dots] if min(heights.shape) > 1 else [dots]


def _isosurfaces(surface: Surface, column: str, scale: Scale) -> list[Trace]:
    if scale.constant:
        return []
    places = _iso_places(scale)
    points = [grid.ravel().tolist() for grid in np.meshgrid(*surface.coordinates, indexing="ij")]
    return [
        {
            "type": "isosurface",
            **dict(zip("xyz", points, strict=True)),
            "value": _nullable(scale.forward(surface[column]).ravel()),
            "text": _point_texts(surface, column, scale).ravel().tolist(),
            "hoverinfo": "text",
            "isomin": float(places[0]),
            "isomax": float(places[-1]),
            "surface": {"count": _ISOSURFACES},
            "caps": {axis: {"show": False} for axis in "xyz"},
            "opacity": 0.4,
            "cmin": _color_range(scale)[0],
            "cmax": _color_range(scale)[1],
            **_colors(column, scale),
        }
    ]


def _check_volume(surface: Surface, missing: dict[str, str]) -> None:
    """Refuse what has no isosurfaces: plotly would draw triangles into holes."""
    if missing:
        raise ArgumentError(
            "`to_html` needs volumes without holes, got "
            f"{', '.join(missing.values())}; draw slices with `plot`."
        )
    if min(surface.shape) < 2:
        raise ArgumentError(
            "`to_html` needs volumes with at least 2 points along each axis, "
            f"got {surface.shape}; draw slices with `plot`."
        )


def _marks(surface: Surface, column: str, scale: Scale) -> list[Trace]:
    """The centre, if it is inside the grid, and the best grid point, if that is another one."""
    traces = []
    center = center_value(surface, column)
    if center is not None:
        text = f"centre: {plain(column)} {scale.number(center)}"
        traces.append(_mark(surface, "centre", (0.0,) * surface.ndim, center, text, scale))
    best = best_point(surface[column], surface.coordinates, column)
    if best is not None:
        value, where = best
        place = ", ".join(number_text(w, 3) for w in where)
        text = f"grid {best_word(column)}: {scale.number(value)} at ({place})"
        traces.append(_mark(surface, "best", where, value, text, scale))
    return traces


def _mark(
    surface: Surface, kind: str, where: Sequence[float], value: float, text: str, scale: Scale
) -> Trace:
    position = [*where] if surface.ndim == 3 else [*where, _nullable(scale.forward(value))]
    trace = _scatter(surface.ndim, [[p] for p in position], [_html(text)])
    trace["name"] = _html(text)
    trace["marker"] = {
        "symbol": _SYMBOLS[kind],
        "size": 9 if surface.ndim == 1 else 6,
        "color": _CENTER_COLOR if kind == "centre" else "white",
        "line": {"color": "black", "width": 1},
    }
    return trace


def _holes(surface: Surface, column: str, scale: Scale, missing: dict[str, str]) -> list[Trace]:
    """Where something is missing: crosses below the picture, which is left open there."""
    if not missing:
        return []
    holes = ~np.isfinite(scale.forward(surface[column]))
    first, last = scale.limits()
    floor = np.full(int(holes.sum()), first - _FLOOR_ROOM * (last - first))
    texts = _point_texts(surface, column, scale)[holes].tolist()
    trace = _points(surface, holes, floor, texts)
    trace["name"] = "<br>".join(missing.values())
    trace["marker"] = {"symbol": _SYMBOLS["hole"], "size": 4, "color": "gray"}
    return [trace]


def _points(
    surface: Surface, chosen: NDArray[np.bool_], heights: Floats, texts: list[str]
) -> Trace:
    where = np.nonzero(chosen)
    places = [c[index].tolist() for c, index in zip(surface.coordinates, where, strict=True)]
    return _scatter(surface.ndim, [*places, heights.tolist()], texts)


def _scatter(ndim: int, places: list[list[Any]], texts: list[str]) -> Trace:
    return {
        "type": "scatter" if ndim == 1 else "scatter3d",
        "mode": "markers",
        **dict(zip("xyz", places, strict=False)),
        "text": texts,
        "hoverinfo": "text",
    }


def _axes(surface: Surface, column: str, scale: Scale) -> dict[str, Any]:
    """Titles with units; heights carry texts in the unit of the column."""
    ticks = _ticks(scale)
    height = {
        "title": {"text": _html(scale.label(column))},
        "tickmode": "array",
        "tickvals": ticks.tolist(),
        "ticktext": scale.texts(ticks),
    }
    if surface.ndim == 1:
        title = {"text": _html(axis_text(surface.axes[0], 76))}
        return {"xaxis": {"title": title, "zeroline": True}, "yaxis": height}
    axes = {
        f"{letter}axis": {
            # These titles are drawn by WebGL, which knows line breaks but no entities.
            "title": {"text": axis_text(info, 40).replace("\n", "<br>"), "font": {"size": 11}}
        }
        for letter, info in zip("xyz", surface.axes, strict=False)
    }
    if surface.ndim == 2:
        axes["zaxis"] = {**height, "title": {"text": scale.label(column), "font": {"size": 11}}}
    lengths = BOX if surface.ndim == 2 else (1.0, 1.0, 1.0)
    return {
        "scene": {
            **axes,
            "aspectmode": "manual",
            "aspectratio": dict(zip("xyz", lengths, strict=True)),
            "camera": {"eye": {"x": 1.0, "y": -1.6, "z": 1.1}},
        }
    }


def _colors(column: str, scale: Scale) -> dict[str, Any]:
    """Colours as in the pictures, with texts in the unit of the column."""
    ticks = _ticks(scale)
    return {
        "colorscale": _color_scale(scale),
        "colorbar": {
            "title": {"text": _html(scale.label(column)), "side": "right"},
            "tickmode": "array",
            "tickvals": ticks.tolist(),
            "ticktext": scale.texts(ticks),
            "len": 0.75,
        },
    }


def _color_scale(scale: Scale) -> list[list[Any]]:
    colormap = mpl.colormaps[colors_for(scale)[0]]
    return [[k / 32, to_hex(colormap(k / 32))] for k in range(33)]


def _color_range(scale: Scale) -> tuple[float, float]:
    _, norm = colors_for(scale)
    return float(norm.vmin or 0.0), float(norm.vmax or 0.0)


def _ticks(scale: Scale) -> Floats:
    """Level values; the ends of the range where there are too few, the one value if constant."""
    if scale.empty:
        return np.empty(0)
    if scale.constant:
        return scale.forward([scale.low])
    levels = scale.levels()
    return levels if levels.size > 1 else np.unique([*scale.limits(), *levels])


def _iso_places(scale: Scale) -> Floats:
    """Evenly spaced on the drawn scale: plotly draws no others."""
    return np.linspace(*scale.limits(), _ISOSURFACES + 2)[1:-1]


def _point_texts(surface: Surface, column: str, scale: Scale) -> NDArray[np.object_]:
    """What to say at each point: coordinates, and the value as computed."""
    names = [GREEK.get(info.name, info.name) for info in surface.axes]
    axes = [[number_text(c, 4) for c in values.tolist()] for values in surface.coordinates]
    values, evaluated = surface[column], surface.evaluated
    texts = np.empty(surface.shape, dtype=object)
    for index in np.ndindex(surface.shape):
        value = scale.number(float(values[index])) if evaluated[index] else "not evaluated"
        place = [f"{n} = {a[i]}" for n, a, i in zip(names, axes, index, strict=True)]
        texts[index] = f"{', '.join(place)}<br>{_html(plain(column))} = {value}"
    return texts


def _faceless(heights: Floats) -> NDArray[np.bool_]:
    """Finite points that are no corner of a face whose four corners are finite."""
    there = np.isfinite(heights)
    whole = there[:-1, :-1] & there[1:, :-1] & there[:-1, 1:] & there[1:, 1:]
    covered = np.zeros_like(there)
    n, m = heights.shape
    for i, j in np.ndindex(2, 2):
        covered[i : n - 1 + i, j : m - 1 + j] |= whole
    return there & ~covered


def _nullable(array: Floats) -> Any:
    """Nested lists with None where there is nothing to draw: JSON has no NaN."""
    objects = array.astype(object)
    objects[~np.isfinite(array)] = None
    return objects.tolist()


def _html(text: str) -> str:
    """Text that plotly shows as it is."""
    return html.escape(text, quote=False).replace("\n", "<br>")
