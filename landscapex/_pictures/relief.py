"""A surface in three dimensions: polygons between finite points, nothing across holes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.art3d import Poly3DCollection  # type: ignore[import-untyped]
from numpy.typing import NDArray

from landscapex._pictures.contours import cell_edges, colors_for, hole_handles
from landscapex._pictures.panel import Mark, Panel, hole_texts, marks_of
from landscapex._pictures.scale import Scale

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from mpl_toolkits.mplot3d.axes3d import Axes3D  # type: ignore[import-untyped]

BOX = (1.0, 1.0, 0.72)  # relative lengths of the three axes
MOST_ROWS = 151  # polygons of a finer grid would be smaller than a pixel

_CORNERS = ((0, 0), (1, 0), (1, 1), (0, 1))
_LIGHT = np.array([-0.5, 0.35, 0.8]) / np.linalg.norm([-0.5, 0.35, 0.8])
_FLOOR_ROOM = 0.22  # between the floor with its level lines and the lowest point
_GREY = "0.75"
_CENTER_COLOR = "#D55E00"  # stands out from viridis, also for the colour-blind


def draw_relief(ax: Axes3D, panel: Panel, scale: Scale, lines: NDArray[np.float64]) -> list[Artist]:
    """Draw the surface, its level lines on the floor, the centre and the best point.

    Args:
        ax: Three-dimensional axes; marks stay visible if made with ``computed_zorder=False``.
        panel: What to draw.
        scale: How values become heights and colours.
        lines: Level lines, as places on the drawn scale.

    Returns:
        Legend entries.
    """
    x, y = panel.coordinates
    first, last = scale.limits()
    drawn = np.clip(scale.forward(panel.values), first, last)  # NaN stays NaN
    floor = first - _FLOOR_ROOM * (last - first)
    missing = hole_texts(panel.values, panel.evaluated, scale)
    step = -(-max(drawn.shape) // MOST_ROWS)
    rows, columns = (np.unique([*range(0, n, step), n - 1]) for n in drawn.shape)
    _draw_polygons(ax, x[rows], y[columns], drawn[np.ix_(rows, columns)], scale)
    _draw_floor(ax, x, y, drawn, scale, lines, floor)
    left, right, bottom, top = panel.extent
    ax.set(xlim=(left, right), ylim=(bottom, top), zlim=(floor, last))
    ax.set_box_aspect(BOX, zoom=0.9)
    ax.view_init(elev=30, azim=-58)
    ax.xaxis.set_major_locator(MaxNLocator(4, prune="upper"))  # would run into the first of y
    ax.yaxis.set_major_locator(MaxNLocator(4))
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_pane_color((1.0, 1.0, 1.0, 0.0))
    ax.grid(False)
    handles: list[Artist] = [_draw_mark(ax, m, scale, floor) for m in marks_of(panel, scale)]
    handles += hole_handles(missing)
    if step > 1:
        text = f"relief: 1 in {step} points along each axis"
        handles.append(Line2D([], [], linestyle="none", label=text))
    return handles


def polygons(
    x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64]
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Polygons between neighbouring finite points: four corners, or the three that exist.

    Args:
        x: ``(n,)`` coordinates of the first axis of `z`.
        y: ``(m,)`` coordinates of the second axis.
        z: ``(n, m)`` heights, NaN at holes.

    Returns:
        Corners ``(4 or 3, 3)`` of each polygon and the mean height of each.
    """
    grid = np.stack(np.broadcast_arrays(x[:, None], y[None, :], z), axis=-1)
    n, m = z.shape
    corners = np.stack([grid[i : n - 1 + i, j : m - 1 + j] for i, j in _CORNERS], axis=2)
    corners = corners.reshape(-1, 4, 3)
    there = np.isfinite(corners[..., 2])
    kept = [(c, t) for c, t in zip(corners, there, strict=True) if t.sum() >= 3]
    shapes = [c[t] for c, t in kept]
    return shapes, np.array([s[:, 2].mean() for s in shapes])


def _draw_polygons(
    ax: Axes3D,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    z: NDArray[np.float64],
    scale: Scale,
) -> None:
    cmap, norm = colors_for(scale)
    palette = ScalarMappable(norm, cmap)
    shapes, heights = polygons(x, y, z)
    if shapes:
        colors = np.asarray(palette.to_rgba(heights))
        colors[:, :3] *= brightness(shapes, x, y, scale)[:, None]
        ax.add_collection3d(
            Poly3DCollection(
                shapes, facecolors=colors, edgecolors=(0, 0, 0, 0.18), linewidths=0.25, zorder=2
            )
        )
    lonely = _lonely(z)
    if lonely.any():
        i, j = np.nonzero(lonely)
        colors = palette.to_rgba(z[i, j])
        ax.scatter(
            x[i], y[j], z[i, j], c=colors, s=36, edgecolors="black", linewidths=0.5,
            depthshade=False, zorder=2.5,
        )  # fmt: skip


def _lonely(z: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Finite points that belong to no polygon."""
    there = np.isfinite(z)
    n, m = there.shape
    full = sum(there[i : n - 1 + i, j : m - 1 + j].astype(int) for i, j in _CORNERS)
    covered = np.zeros_like(there)
    for i, j in _CORNERS:
        covered[i : n - 1 + i, j : m - 1 + j] |= np.asarray(full) >= 3
    return there & ~covered


def brightness(
    shapes: list[NDArray[np.float64]],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    scale: Scale,
) -> NDArray[np.float64]:
    """How bright each polygon is under a lamp, in the proportions of the box, not of the data.

    Args:
        shapes: Corners of each polygon.
        x: All coordinates of the first axis.
        y: All coordinates of the second axis.
        scale: Of the heights.

    Returns:
        One factor per polygon, from 0.72 to 1.
    """
    first, last = scale.limits()
    size = np.array([np.ptp(x) or 1.0, np.ptp(y) or 1.0, last - first]) / np.array(BOX)
    corners = np.array([s[:3] for s in shapes]) / size
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals *= np.sign(normals[:, 2:]) / np.linalg.norm(normals, axis=1, keepdims=True)
    shaded: NDArray[np.float64] = 0.72 + 0.28 * np.clip(normals @ _LIGHT, 0, 1)
    return shaded


def _draw_floor(
    ax: Axes3D,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    drawn: NDArray[np.float64],
    scale: Scale,
    lines: NDArray[np.float64],
    floor: float,
) -> None:
    holes = np.argwhere(np.isnan(drawn))
    if holes.size:
        ex, ey = cell_edges(x), cell_edges(y)
        ex, ey = np.clip(ex, x.min(), x.max()), np.clip(ey, y.min(), y.max())
        cells = [[(ex[i + a], ey[j + b], floor) for a, b in _CORNERS] for i, j in holes.tolist()]
        ax.add_collection3d(Poly3DCollection(cells, facecolors=_GREY, edgecolors="none", zorder=1))
    if min(drawn.shape) < 2 or not np.isfinite(drawn).any():
        return
    z = np.ma.masked_invalid(drawn).T
    own = lines[(lines > z.min()) & (lines < z.max())]
    if own.size:
        cmap, norm = colors_for(scale)
        # The middle of a diverging map is as white as the paper.
        style = {"colors": "0.35"} if scale.diverging else {"cmap": cmap, "norm": norm}
        ax.contour(
            x, y, z, levels=own, **style, linewidths=1.1, linestyles="solid",
            zdir="z", offset=floor, corner_mask=True, zorder=1.5,
        )  # fmt: skip


def _draw_mark(ax: Axes3D, mark: Mark, scale: Scale, floor: float) -> Artist:
    """A ball for the centre, a triangle for the best point; a stem shows where they are."""
    style: dict[str, Any] = {
        "linestyle": "none", "marker": "o" if mark.kind == "centre" else "v", "markersize": 7,
        "markerfacecolor": _CENTER_COLOR if mark.kind == "centre" else "white",
        "markeredgecolor": "black", "markeredgewidth": 0.8,
    }  # fmt: skip
    height = float(scale.forward(mark.value))
    if np.isfinite(height):
        first, last = scale.limits()
        height = min(max(height, first), last)
        (x, y) = mark.where
        ax.plot([x, x], [y, y], [floor, height], color="0.25", linewidth=0.9, zorder=4)
        ax.plot([x], [y], [height], zorder=5, **style)
    return Line2D([], [], label=mark.text, **style)
