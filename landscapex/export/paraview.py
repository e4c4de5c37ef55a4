"""Grids and paths for ParaView, VisIt and whatever else reads VTK's XML files.

Arrays hold what was computed, float64 and untouched. Only the places of the points are made for the
eye: heights are on the scale of the pictures, so that a loss of ten thousand does not need a tower
of ten thousand units.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from landscapex._extras import require
from landscapex._pictures.panel import check_column, kind_for
from landscapex._pictures.scale import Scale, choose
from landscapex._pictures.trajectory import _check_plane
from landscapex.errors import ArgumentError, ArgumentTypeError
from landscapex.export.target import check_result, check_target, description, write
from landscapex.grids.results import Surface
from landscapex.storage.files import fail
from landscapex.trajectories.trajectory import Trajectory

SUFFIXES = (".vts",)
PATH_SUFFIXES = (".vtp",)
_USUAL_RANGE = (1e-290, 1e300)  # of places on a scale; a factor for others may overflow
_HEIGHT = 0.5  # of a relief, of the longer side of its grid
_DECLARATION = b'<?xml version="1.0"?>\n'
_MARK = b'<?xml version="1.0"?>\n<!-- landscapex'
# vtkDataSetAttributes::HIDDENPOINT and HIDDENCELL; filters look at the one or at the other.
_GHOSTS, _HIDDEN_POINT, _HIDDEN_CELL = "vtkGhostType", 2, 32

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Relief:
    """Heights of values: ``base + factor * (place on the scale) / unit``.

    Attributes:
        scale: Of the column.
        factor: Units of height per unit of the scale; 0 for a flat picture.
        base: Height of place 0 of the scale.
        unit: 1; another power of two for ranges so small or large that a factor alone would not be
            a number.
    """

    scale: Scale
    factor: float
    base: float
    unit: float = 1.0

    def heights(self, values: Floats) -> Floats:
        """Where values are drawn.

        Args:
            values: Of any shape.

        Returns:
            The height of each; the lowest there is for one that has no place on the scale, since
            VTK's cameras and boxes cannot bear points at NaN.
        """
        places = self.scale.forward(values)
        places = np.where(np.isfinite(places), places, self.scale.limits()[0])
        return self.base + self.factor * (places / self.unit)


def relief_of(surface: Surface, column: str, scale: str, height: float | None) -> Relief:
    """How high the values of a column are drawn.

    Args:
        surface: A line or a plane.
        column: Of the surface.
        scale: As in `landscapex.plot`.
        height: As in `to_vts`.

    Returns:
        The rule, from values to heights.

    Raises:
        ArgumentError: There is no such column, or the scale or the height cannot be used.
        ArgumentTypeError: The height is not a number.
    """
    check_column(surface, column)
    fitted = choose([surface[column]], kind_for([column], scale))
    if height is None:
        return Relief(fitted, 1.0, fitted.offset)
    if isinstance(height, bool) or not isinstance(height, int | float | np.number):
        raise ArgumentTypeError(f"`height` must be a number or None, got {type(height).__name__}.")
    if not 0 <= height < np.inf:
        raise ArgumentError(f"`height` must be finite and not negative, got {height!r}.")
    first, last = fitted.limits()
    longest = max(float(np.ptp(c)) for c in surface.coordinates) or 1.0
    unit = _unit(first, last)
    factor = float(height) * longest / (last / unit - first / unit)
    return Relief(fitted, factor, 0.0 - factor * (first / unit), unit)


def _unit(first: float, last: float) -> float:
    """A power of two in which a range is neither tiny nor infinite; 1 if it is neither anyway."""
    low, high = _USUAL_RANGE
    if low < last - first < high:
        return 1.0
    return math.ldexp(0.5, math.frexp(max(abs(first), abs(last)))[1])


def to_vts(
    surface: Surface,
    path: str | os.PathLike[str],
    *,
    column: str = "loss",
    scale: str = "auto",
    height: float | None = _HEIGHT,
) -> Path:
    """Write a result as a structured grid of VTK; needs ``landscapex[paraview]``.

    x is alpha and y is beta. z is gamma in a volume, and the height of the column elsewhere. Every
    column is an array of the points, as computed, NaN and infinities included; so are "evaluated"
    (0 or 1) and, where the scale is not linear, the place on it, for colours like those of the
    pictures. Points without a value are hidden (``vtkGhostType``): a relief has holes there. The
    head of the file says how the numbers were made and what the axes are.

    Args:
        surface: Any result.
        path: Where to, ending in ``.vts``; an existing file of landscapex is replaced.
        column: What the height is, and what ParaView colours first.
        scale: "auto", "linear", "log" or "symlog": of the heights, as in `landscapex.plot`.
        height: From the lowest to the highest value, in units of the longer side of the grid; 0
            for a flat picture (`Warp By Scalar` then raises it); None for z = the value itself,
            or its place on a scale that is not linear.

    Returns:
        The absolute path.

    Raises:
        ArgumentError: `path` does not end in ``.vts``, there is no such column, or the scale or
            the height cannot be used.
        ArgumentTypeError: `surface` is not a result, or `height` not a number.
        MissingExtraError: pyevtk is not installed.
        OutputError: The file cannot be written, or somebody else's file is there.
    """
    to_grid = require("pyevtk.hl", "paraview").gridToVTK
    check_result(surface)
    target = check_target(path, SUFFIXES, (_MARK,))
    relief = relief_of(surface, column, scale, height)
    shape = (*surface.shape, 1, 1)[:3]
    sides = [*surface.coordinates, np.zeros(1), np.zeros(1)][:3]
    x, y, z = (np.ascontiguousarray(grid) for grid in np.meshgrid(*sides, indexing="ij"))
    if surface.ndim < 3:
        z = relief.heights(surface[column]).reshape(shape)
    columns = {name: surface[name] for name in dict.fromkeys((column, *surface.columns))}
    bits = {}
    if relief.scale.kind != "linear":
        bits[relief.scale.label(column)] = relief.scale.forward(surface[column])
    bits["evaluated"] = surface.evaluated.astype(np.uint8)
    hidden = ~relief.scale.drawable(surface[column])
    cells = None
    if hidden.any():
        bits[_GHOSTS] = np.where(hidden, _HIDDEN_POINT, 0).astype(np.uint8)
        cells = {_GHOSTS: np.where(_touching(hidden.reshape(shape)), _HIDDEN_CELL, 0)}
        cells[_GHOSTS] = cells[_GHOSTS].astype(np.uint8)
    points = {
        _attribute(name): np.ascontiguousarray(values).reshape(shape)
        for name, values in {**_beside(columns, bits), **bits}.items()
    }
    about = description(surface)
    if surface.ndim < 3:
        about.append(_height_text(relief, column))
    return _write(
        target, about, lambda stem: to_grid(stem, x, y, z, cellData=cells, pointData=points)
    )


def _beside(
    columns: dict[str, NDArray[Any]], own: dict[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Columns under names that neither an array of ours has, nor VTK a meaning for."""
    named: dict[str, NDArray[Any]] = {}
    for name, values in columns.items():
        free = name
        while free in own or free in named or free == _GHOSTS:
            free += " (column)"
        named[free] = values
    return named


def _touching(points: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which cells of a grid have one of these points as a corner; a side of 1 has 1 cell."""
    for axis, length in enumerate(points.shape):
        if length > 1:
            low, high = (points.take(range(k, length - 1 + k), axis) for k in (0, 1))
            points = low | high
    return points


def to_vtp(
    trajectory: Trajectory,
    path: str | os.PathLike[str],
    surface: Surface | None = None,
    *,
    column: str = "loss",
    scale: str = "auto",
    height: float | None = _HEIGHT,
) -> Path:
    """Write a training run in its plane as a polyline of VTK; needs ``landscapex[paraview]``.

    Arrays of the points: "step", "epoch", "residual" (distance from the plane) and the true values
    of the checkpoints. Checkpoints that are not finite are left out.

    Args:
        trajectory: With one or two directions.
        path: Where to, ending in ``.vtp``; an existing file of landscapex is replaced.
        surface: The plane that it will be shown with; the path then lies on the relief that
            `to_vts` writes of it with the same ``column``, ``scale`` and ``height``, which takes
            the losses where the checkpoints are drawn: ``lx.trajectory(..., drawn=True)``. None
            for a path at height 0.
        column: The height of the relief.
        scale: As in `to_vts`.
        height: As in `to_vts`.

    Returns:
        The absolute path.

    Raises:
        ArgumentError: `path` does not end in ``.vtp``, there are more than two directions, the
            surface is not of the plane of the trajectory, the trajectory has no drawn values of
            the column, or as for `to_vts`.
        ArgumentTypeError: `trajectory` or `surface` is something else.
        MissingExtraError: pyevtk is not installed.
        OutputError: The file cannot be written, or somebody else's file is there.
    """
    vtk = require("pyevtk.vtk", "paraview")
    if not isinstance(trajectory, Trajectory):
        raise ArgumentTypeError(
            f"`trajectory` must be a Trajectory, got {type(trajectory).__name__}."
        )
    target = check_target(path, PATH_SUFFIXES, (_MARK,))
    size = len(trajectory.directions)
    if size > 2:
        raise ArgumentError(f"`trajectory` must have one or two directions, got {size}.")
    there = trajectory.finite
    places = np.zeros((3, int(there.sum())))
    places[:size] = trajectory.coordinates[there].T
    about = [f"landscapex: {len(trajectory)} checkpoints of a training run"]
    if surface is not None:
        check_result(surface)
        _check_plane(trajectory, surface)
        relief = relief_of(surface, column, scale, height)
        places[2] = relief.heights(_drawn(trajectory, column)[there])
        about.append(_height_text(relief, column))
    own = {"step": trajectory.steps, "epoch": trajectory.epochs}
    own["residual"] = trajectory.residuals
    columns = {name: trajectory.values[:, k] for k, name in enumerate(trajectory.columns)}
    points = {
        _attribute(name): values[there].copy()
        for name, values in {**own, **_beside(columns, own)}.items()
    }
    return _write(target, about, lambda stem: _polyline(vtk, stem, places, points))


def _drawn(trajectory: Trajectory, column: str) -> Floats:
    """Values of the plane where the checkpoints are drawn."""
    if trajectory.drawn is None or column not in trajectory.columns:
        raise ArgumentError(
            f"`trajectory` must have {column!r} where its checkpoints are drawn, got none: compute "
            "it with `drawn=True`."
        )
    return trajectory.drawn[:, trajectory.columns.index(column)]


def _polyline(vtk: Any, stem: str, places: Floats, points: dict[str, NDArray[Any]]) -> None:
    """One line through all places ``(3, T)``, with arrays of the points."""
    count = places.shape[1]
    xyz = tuple(np.ascontiguousarray(row) for row in places)
    line = {"connectivity": np.arange(count), "offsets": np.array([count])}
    file = vtk.VtkFile(stem, vtk.VtkPolyData)
    file.openGrid()
    file.openPiece(npoints=count, nlines=1)
    file.openElement("Points")
    file.addData("points", xyz)
    file.closeElement("Points")
    file.openElement("Lines")
    for name, numbers in line.items():
        file.addData(name, numbers)
    file.closeElement("Lines")
    file.openData("Point", scalars=next(iter(points)))
    for name, numbers in points.items():
        file.addData(name, numbers)
    file.closeData("Point")
    file.closePiece()
    file.closeGrid()
    for block in (xyz, *line.values(), *points.values()):  # in the order of the head
        file.appendData(block)
    file.save()


def _write(target: Path, about: list[str], write_stem: Callable[[str], object]) -> Path:
    """Have a file written, to a stem without its suffix, and bring it to its place."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_stem(os.path.join(folder, "made"))
            (made,) = Path(folder).iterdir()
            data = made.read_bytes().removeprefix(_DECLARATION)
    except OSError as error:
        fail(f"{target} could not be made in a temporary folder: {error.strerror}.", error.errno)
    text = "\n".join(about).replace("--", "- -").replace("--", "- -")  # comments know no "--"
    return write(target, _DECLARATION + f"<!-- {text} -->\n".encode() + data)


def _height_text(relief: Relief, column: str) -> str:
    """What z is, for a reader who wants to go back to values."""
    scale = relief.scale
    unit = "" if relief.unit == 1 else f" / {relief.unit!r}"
    text = f"z = {relief.base!r} + {relief.factor!r} * place of {scale.label(column)}{unit}"
    if scale.kind == "symlog":
        t = repr(scale.threshold)
        text += f": v / {t} up to {t}, sign(v) * (1 + log10(|v| / {t})) beyond"
    return text


def _attribute(name: str) -> str:
    """A name between double quotes in XML; pyevtk writes it as it is."""
    return escape(name, {'"': "&quot;"})
