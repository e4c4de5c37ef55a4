"""Results: frozen views of one dataset."""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from landscapex._arrays import read_only, same_bits
from landscapex._names import did_you_mean
from landscapex.errors import ArgumentError, ArgumentTypeError
from landscapex.grids.grid import AXIS_NAMES
from landscapex.grids.line_measures import LineMeasures, measure_line
from landscapex.storage import store
from landscapex.storage.dataset import check_dataset, columns_of, dataset_of
from landscapex.storage.header import MASK, AxisInfo, RunHeader

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NOTES = 3  # that are printed


@dataclass(frozen=True)
class Minimum:
    """The lowest point of a grid.

    Attributes:
        value: The lowest finite loss; NaN if there is none.
        coordinates: Where it is, one number per axis.
    """

    value: float
    coordinates: tuple[float, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Surface:
    """Losses and metrics on a line, a plane or a volume of parameters.

    ``surface.loss[i, j]`` is the loss at ``center + alpha[i] d1 + beta[j] d2``. Arrays are
    float64 and read-only; points that were not evaluated are NaN, and False in `evaluated`. A NaN
    or infinity where `evaluated` is True is what the model gave.

    Takes a dataset like the one that `to_xarray` returns, and copies it.

    Attributes:
        path: The file or journal it came from, if any.

    Raises:
        ArgumentError: If the dataset is not laid out like this.
        ArgumentTypeError: If it is not a dataset.

    Example:
        >>> alpha = AxisInfo("alpha", (-1.0, 0.0, 1.0), "random direction 1", "1 = ‖w‖")
        >>> header = RunHeader("line", (alpha,), ("loss",), {"parameters": "3fa2"})
        >>> surface = Surface.from_run(header, np.ones(3, bool), np.array([[2.0], [0.5], [3.0]]))
        >>> surface.loss
        array([2. , 0.5, 3. ])
        >>> surface.minimum
        Minimum(value=0.5, coordinates=(0.0,))
    """

    _dataset: xr.Dataset
    path: Path | None = None

    def __post_init__(self) -> None:
        """Copy the dataset, so that nobody else can change it, and check it."""
        if not isinstance(self._dataset, xr.Dataset):
            raise ArgumentTypeError(
                f"`dataset` must be an xarray.Dataset, got {type(self._dataset).__name__}."
            )
        copy = self._dataset.copy(deep=True)
        check_dataset(copy)
        object.__setattr__(self, "_dataset", copy)

    @classmethod
    def from_run(
        cls,
        header: RunHeader,
        done: np.ndarray,
        values: np.ndarray,
        *,
        path: str | os.PathLike[str] | None = None,
    ) -> Surface:
        """Make a result of what a run has computed so far.

        Args:
            header: What the run computes.
            done: ``(G,)`` bool: which points were evaluated.
            values: ``(G, M)``: their values; what is in other points does not matter.
            path: Where they are stored, if anywhere.

        Returns:
            The result.

        Raises:
            ArgumentError: If the shapes do not fit the header.
        """
        dataset = dataset_of(header, done, values)
        return cls(dataset, None if path is None else Path(path))

    def to_xarray(self) -> xr.Dataset:
        """A copy as a dataset.

        Returns:
            Dimensions "alpha", "beta", "gamma" as far as there are; one float64 variable per
            column and the boolean mask ``evaluated``; coordinates with the attributes ``label``
            and ``unit``; the attributes ``kind``, ``landscapex`` (the version that wrote it) and
            ``provenance`` (JSON).
        """
        return self._dataset.copy(deep=True)

    @property
    def kind(self) -> str:
        """One of "line", "surface" and "volume"."""
        return str(self._dataset.attrs["kind"])

    @property
    def ndim(self) -> int:
        """Number of axes, 1 to 3."""
        return len(self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Points per axis."""
        return tuple(self._dataset.sizes[name] for name in self._dims)

    @property
    def axes(self) -> tuple[AxisInfo, ...]:
        """What each axis is, with its coordinates as a tuple."""
        return tuple(
            AxisInfo(
                name,
                tuple(self._dataset[name].values.tolist()),
                str(self._dataset[name].attrs.get("label", "")),
                str(self._dataset[name].attrs.get("unit", "")),
            )
            for name in self._dims
        )

    @property
    def coordinates(self) -> tuple[np.ndarray, ...]:
        """The coordinates along each axis, in units of the stored direction."""
        return tuple(read_only(self._dataset[name].values) for name in self._dims)

    @property
    def columns(self) -> tuple[str, ...]:
        """What was computed at every point: "loss", then metrics and losses of other data."""
        return columns_of(self._dataset)

    @property
    def loss(self) -> np.ndarray:
        """The loss, with one dimension per axis."""
        return self["loss"]

    @property
    def evaluated(self) -> np.ndarray:
        """Which points were evaluated, bool, with one dimension per axis."""
        return read_only(self._dataset[MASK].values)

    @property
    def complete(self) -> bool:
        """Whether all points were evaluated."""
        return bool(self.evaluated.all())

    @property
    def provenance(self) -> dict[str, Any]:
        """How the numbers were made: model, data, settings, versions, fingerprint."""
        return dict(json.loads(self._dataset.attrs["provenance"]))

    @property
    def center_loss(self) -> float:
        """The loss at the centre, a grid point or not; NaN if it is not known."""
        recorded = (self.provenance.get("center") or {}).get("loss")
        if recorded is not None:
            return float(recorded)
        nodes = [np.flatnonzero(values == 0) for values in self.coordinates]
        return float(self.loss[tuple(n[0] for n in nodes)]) if all(map(len, nodes)) else np.nan

    @property
    def minimum(self) -> Minimum:
        """The lowest finite loss; of equal ones the first in C order."""
        finite = np.where(np.isfinite(self.loss), self.loss, np.inf)
        index = np.unravel_index(int(finite.argmin()), self.shape)
        if np.isposinf(finite[index]):
            return Minimum(np.nan, (np.nan,) * self.ndim)
        where = tuple(float(v[i]) for v, i in zip(self.coordinates, index, strict=True))
        return Minimum(float(finite[index]), where)

    def measures(self, column: str = "loss") -> LineMeasures:
        """Barrier, bump, monotonicity and convexity of a line on [0, 1].

        Args:
            column: What to measure, say ``"test_loss"`` or ``"error"``.

        Returns:
            The measures; NaN where a value on [0, 1] is NaN or missing.

        Raises:
            ArgumentError: If the result is not a line, has no such column, or has 0 or 1 not
                among its coordinates.
        """
        if self.kind != "line":
            raise ArgumentError(
                f"barriers and their like must be asked of a line, got a {self.kind}."
            )
        return measure_line(self.coordinates[0], self[column])

    @property
    def barrier(self) -> float:
        """How high the loss of a line rises above its chord on [0, 1]; see `LineMeasures`."""
        return self.measures().barrier

    @property
    def monotone(self) -> bool:
        """Whether the loss of a line nowhere rises on [0, 1]; see `LineMeasures`."""
        return self.measures().monotone

    @property
    def monotone_violation(self) -> float:
        """All that the loss of a line climbs on [0, 1]; see `LineMeasures`."""
        return self.measures().monotone_violation

    @property
    def convexity_defect(self) -> float:
        """How far the loss of a line is from convex on [0, 1]; see `LineMeasures`."""
        return self.measures().convexity_defect

    @property
    def bump(self) -> float:
        """The highest climb of the loss of a line on [0, 1]; see `LineMeasures`."""
        return self.measures().bump

    @property
    def nonfinite(self) -> int:
        """How many of the evaluated losses are NaN or infinite."""
        return int((self.evaluated & ~np.isfinite(self.loss)).sum())

    def __getitem__(self, column: str) -> np.ndarray:
        """The values of a column, read-only float64, with one dimension per axis.

        Args:
            column: One of `columns`.

        Returns:
            The values, NaN where not evaluated.

        Raises:
            ArgumentError: If there is no such column.
        """
        if column not in self.columns:
            raise ArgumentError(
                f"`column` must be one of {self.columns}, got {column!r}"
                f"{did_you_mean(column, self.columns) or '.'}"
            )
        return read_only(self._dataset[column].values)

    def __iter__(self) -> Iterator[str]:
        """The names of the columns, as for a mapping."""
        return iter(self.columns)

    def __contains__(self, column: object) -> bool:
        """Whether there is such a column."""
        return column in self.columns

    def equals(self, other: Surface) -> bool:
        """Whether grid, columns and all numbers are the same bit by bit.

        Args:
            other: Another result.

        Returns:
            True if so. Every NaN equals every NaN; 0.0 and -0.0 differ; provenance is not compared.
        """
        return (
            self.kind == other.kind
            and self.columns == other.columns
            and all(map(same_bits, self.coordinates, other.coordinates))
            and np.array_equal(self.evaluated, other.evaluated)
            and all(same_bits(self[name], other[name]) for name in self.columns)
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result to a NetCDF-4 file; it is there whole, or not at all.

        Args:
            path: Where to, say ``surface.nc``; an existing file is replaced.

        Returns:
            The absolute path.

        Raises:
            ArgumentError: If the name ends like a file of another format, say ``.html``.
            OutputError: If it cannot be written.
        """
        return store.write_dataset(self._dataset, path)

    def plot(self, column: str = "loss", **options: Any) -> Figure:
        """Draw the result: a line, filled contours, or slices of a volume.

        Args:
            column: What to draw.
            **options: Those of `landscapex.plot.line`, `contour` and `slices`.

        Returns:
            A figure, which notebooks display.
        """
        from landscapex import plot

        draw = (plot.line, plot.contour, plot.slices)[self.ndim - 1]
        return draw(self, column=column, **options)

    def plot3d(self, column: str = "loss", **options: Any) -> Figure:
        """Draw a two-dimensional result as a relief.

        Args:
            column: What to draw.
            **options: Those of `landscapex.plot.surface3d`.

        Returns:
            A figure, which notebooks display.
        """
        from landscapex import plot

        return plot.surface3d(self, column=column, **options)

    def to_html(self, path: str | os.PathLike[str], column: str = "loss", **options: Any) -> Path:
        """Write the result as one interactive page; needs ``landscapex[interactive]``.

        Args:
            path: Where to, ending in ``.html``; an existing file is replaced.
            column: What to draw.
            **options: Those of `landscapex.export.to_html`.

        Returns:
            The absolute path.
        """
        from landscapex import export

        return export.to_html(self, path, column=column, **options)

    def to_vts(self, path: str | os.PathLike[str], column: str = "loss", **options: Any) -> Path:
        """Write the result as a grid for ParaView; needs ``landscapex[paraview]``.

        Args:
            path: Where to, ending in ``.vts``.
            column: What the height is.
            **options: Those of `landscapex.export.to_vts`.

        Returns:
            The absolute path.
        """
        from landscapex import export

        return export.to_vts(self, path, column=column, **options)

    def to_h5(self, path: str | os.PathLike[str], **options: Any) -> Path:
        """Write a line or a plane as a surface file of Li et al.'s `loss-landscape`.

        Args:
            path: Where to, ending in ``.h5``.
            **options: Those of `landscapex.export.to_h5`.

        Returns:
            The absolute path.
        """
        from landscapex import export

        return export.to_h5(self, path, **options)

    def to_csv(self, path: str | os.PathLike[str], **options: Any) -> Path:
        """Write the result as a table, one row per point.

        Args:
            path: Where to, ending in ``.csv``.
            **options: Those of `landscapex.export.to_csv`.

        Returns:
            The absolute path.
        """
        from landscapex import export

        return export.to_csv(self, path, **options)

    def to_picture(
        self, path: str | os.PathLike[str], column: str = "loss", **options: Any
    ) -> Path:
        """Draw the result and write the picture.

        Args:
            path: Where to, ending in ``.png``, ``.svg`` or ``.pdf``; an existing file is replaced.
            column: What to draw.
            **options: Those of `landscapex.export.to_picture`.

        Returns:
            The absolute path.
        """
        from landscapex import export

        return export.to_picture(self, path, column=column, **options)

    def __repr__(self) -> str:
        """What it is, in a few lines, and the first notes of its provenance."""
        size = " x ".join(map(str, self.shape))
        count, total = int(self.evaluated.sum()), self.loss.size
        state = "complete" if self.complete else f"{count} of {total} evaluated"
        lines = [f"{self.kind.capitalize()} of {size} points, {state}"]
        lines += [f"  {name:<10} {_range(self[name])}" for name in self.columns]
        for axis in self.axes:
            about = ", ".join(text for text in (axis.label, axis.unit) if text)
            lines.append(f"  {axis.name:<10} {axis.values[0]:g} to {axis.values[-1]:g}  {about}")
        if self.minimum.coordinates[0] == self.minimum.coordinates[0]:
            where = ", ".join(f"{c:g}" for c in self.minimum.coordinates)
            lines.append(f"  {'minimum':<10} {self.minimum.value:.6g} at ({where})")
        if self.nonfinite:
            lines.append(f"  {'not finite':<10} {self.nonfinite} of {count} losses")
        notes = self.provenance.get("notes") or []
        lines += [f"  note: {note}" for note in notes[:_NOTES]]
        if notes[_NOTES:]:
            lines.append(f'  and {len(notes) - _NOTES} more in provenance["notes"]')
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        """A small picture and the provenance, for notebooks."""
        from landscapex import plot

        picture = base64.b64encode(plot.thumbnail(self)).decode()
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(_brief(value))}</td></tr>"
            for name, value in self.provenance.items()
        )
        return (
            f"<img alt='thumbnail' src='data:image/png;base64,{picture}'/>"
            f"<pre>{html.escape(repr(self))}</pre>"
            f"<details><summary>Provenance</summary><table>{rows}</table></details>"
        )

    @property
    def _dims(self) -> tuple[str, ...]:
        return AXIS_NAMES[: len(self._dataset.sizes)]


def _range(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite.min():.6g} to {finite.max():.6g}" if finite.size else "no finite value"


def _brief(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]} ..."
