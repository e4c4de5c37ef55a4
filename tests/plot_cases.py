"""Small results to draw, and what is found in their pictures."""

from __future__ import annotations

import numpy as np
from matplotlib.contour import QuadContourSet

from landscapex.grids.results import Surface
from landscapex.storage.store import AxisInfo, RunHeader

UNIT = "1 = the length of the weights, filter by filter (‖d‖ = {})"


def make(columns, *coordinates, done=None, units=None, **provenance) -> Surface:
    names = ("alpha", "beta", "gamma")[: len(coordinates)]
    units = units or [UNIT.format(12.3), UNIT.format(12.5), UNIT.format(12.1)]
    axes = tuple(
        AxisInfo(name, tuple(map(float, c)), f"random direction {k + 1}", units[k])
        for k, (name, c) in enumerate(zip(names, coordinates, strict=True))
    )
    if not isinstance(columns, dict):
        columns = {"loss": columns}
    values = np.stack([np.asarray(v, np.float64).ravel() for v in columns.values()], axis=1)
    mask = np.ones(len(values), bool) if done is None else np.asarray(done, bool).ravel()
    kind = ("line", "surface", "volume")[len(coordinates) - 1]
    header = RunHeader(kind, axes, tuple(columns), {}, {}, provenance)
    return Surface.from_run(header, mask, values)


X, Y = np.linspace(-1, 1, 13), np.linspace(-1, 1, 11)
A, B = np.meshgrid(X, Y, indexing="ij")
BOWL = 0.3 + A**2 + 2 * B**2 + 0.5 * A * B
TILTED = np.exp(3 * A) * BOWL


def volume() -> Surface:
    x, y, z = np.linspace(-1, 1, 5), np.linspace(-1, 1, 7), np.linspace(-1, 1, 9)
    a, b, c = np.meshgrid(x, y, z, indexing="ij")
    return make(1 + 100 * a + 10 * b + c, x, y, z)


def contours_of(ax) -> tuple[QuadContourSet | None, QuadContourSet | None]:
    sets = [c for c in ax.collections if isinstance(c, QuadContourSet)]
    filled = next((c for c in sets if c.filled), None)
    return filled, next((c for c in sets if not c.filled), None)


def legend_texts(ax) -> list[str]:
    legend = ax.get_legend()
    return [] if legend is None else [t.get_text() for t in legend.get_texts()]


def colorbar_of(figure) -> object:
    (ax,) = [a for a in [*figure.axes, *children(figure)] if "scale)" in a.get_ylabel()]
    return ax


def children(figure) -> list:
    return [child for a in figure.axes for child in a.child_axes]
