"""What is drawn: the values of a result over two axes, and the words that go with them."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from landscapex._names import did_you_mean
from landscapex._pictures.scale import Scale, number_text
from landscapex.errors import ArgumentError, ArgumentTypeError
from landscapex.grids.results import Surface
from landscapex.losses.metrics import BUILT_IN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from landscapex.storage.store import AxisInfo

GREEK = {
    name: unicodedata.lookup(f"GREEK SMALL LETTER {name}") for name in ("alpha", "beta", "gamma")
}

_TOGETHER = r"\([^()]*\)|‖[^‖]*‖ = [\w.+-]+"  # a parenthesis, a norm and its value
_MOST_STRETCHED = 4.0  # equal units would make a sliver of anything longer


@dataclass(frozen=True)
class Mark:
    """A point that is marked: "centre" or "best", where it is, its value, and what to say of it."""

    kind: str
    where: tuple[float, float]
    value: float
    text: str


@dataclass(frozen=True)
class Panel:
    """Values over two axes; ``values[i, j]`` is at ``(x[i], y[j])`` and transposed only when drawn.

    Attributes:
        x: The horizontal axis.
        y: The vertical axis.
        values: ``(len(x), len(y))`` float64, as computed.
        evaluated: ``(len(x), len(y))`` bool; False where nothing was computed yet.
        column: What the values are.
        center: The value at (0, 0); None where the panel does not contain the centre.
        title: Above the panel; may be empty.
        part: What the panel shows of a result: its "grid", or a "slice" of it.
    """

    x: AxisInfo
    y: AxisInfo
    values: NDArray[np.float64]
    evaluated: NDArray[np.bool_]
    column: str
    center: float | None
    title: str = ""
    part: str = "grid"

    @property
    def coordinates(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The coordinates of both axes."""
        return np.asarray(self.x.values, np.float64), np.asarray(self.y.values, np.float64)

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top of the grid."""
        left, right, bottom, top = (f(c) for c in self.coordinates for f in (np.min, np.max))
        # A single coordinate is drawn as one cell; see `cell_edges`.
        wide, high = 0.5 * (left == right), 0.5 * (bottom == top)
        return float(left - wide), float(right + wide), float(bottom - high), float(top + high)


def marks_of(panel: Panel, scale: Scale) -> list[Mark]:
    """The centre, if the panel contains it, and the best grid point, if that is another one."""
    marks = []
    if panel.center is not None:
        text = f"centre: {plain(panel.column)} {scale.number(panel.center)}"
        marks.append(Mark("centre", (0.0, 0.0), panel.center, text))
    best = best_point(panel.values, panel.coordinates, panel.column)
    if best is not None:
        value, (x, y) = best
        where = f"({number_text(x, 3)}, {number_text(y, 3)})"
        text = f"{panel.part} {best_word(panel.column)}: {scale.number(value)} at {where}"
        marks.append(Mark("best", (x, y), value, text))
    return marks


def plain(column: str) -> str:
    """The name of a column as people write it."""
    return column.replace("_", " ")


def center_value(surface: Surface, column: str) -> float | None:
    """The value at the centre, from the provenance or else the grid; None if the grid omits it."""
    if any(min(a.values) > 0 or max(a.values) < 0 for a in surface.axes):
        return None
    recorded = (surface.provenance.get("center") or {}).get(column)
    if isinstance(recorded, int | float):
        return float(recorded)
    nodes = [np.flatnonzero(np.asarray(a.values) == 0) for a in surface.axes]
    if any(n.size == 0 for n in nodes):
        return None
    index = tuple(int(n[0]) for n in nodes)
    return float(surface[column][index]) if surface.evaluated[index] else None


def best_word(column: str) -> str:
    """Which end of a column is the best one: "minimum", "maximum", or "" where nobody can know."""
    quantity = column.rsplit("_", 1)[-1]
    return {"loss": "minimum", "error": "minimum", "accuracy": "maximum", "top5": "maximum"}.get(
        quantity, ""
    )


def kind_for(columns: Iterable[str], kind: str) -> str:
    """The kind of scale for columns that share one: "auto" is linear for fractions of samples.

    Their ends are known to everybody, and a logarithm would stretch the one near 0.

    Returns:
        "linear", or `kind` itself.
    """
    fractions = all(c.rsplit("_", 1)[-1] in BUILT_IN for c in columns)
    return "linear" if kind == "auto" and fractions else kind


def sign_matters(column: str) -> bool:
    """Whether the first question about a value is its sign: of the smallest curvature, say."""
    return column == "smallest"


def best_point(
    values: NDArray[np.float64], coordinates: Sequence[NDArray[np.float64]], column: str
) -> tuple[float, tuple[float, ...]] | None:
    """Value and coordinates of the best grid point, unless the centre is as good.

    Returns:
        None if there is none, or if it is the centre of the grid itself.
    """
    word = best_word(column)
    finite = np.isfinite(values)
    if not word or not finite.any():
        return None
    signed = np.where(finite, values if word == "minimum" else -values, np.inf)
    index = np.unravel_index(int(np.argmin(signed)), values.shape)
    nodes = [np.flatnonzero(c == 0) for c in coordinates]
    if all(n.size for n in nodes) and signed[tuple(n[0] for n in nodes)] == signed[index]:
        return None
    where = tuple(float(c[i]) for c, i in zip(coordinates, index, strict=True))
    return float(values[index]), where


def hole_texts(
    values: NDArray[np.float64], evaluated: NDArray[np.bool_], scale: Scale
) -> dict[str, str]:
    """What is missing in the picture, in words: keys "finite", "positive", "evaluated"."""
    finite = np.isfinite(values)
    counts = {
        "finite": (int(np.sum(evaluated & ~finite)), "not finite"),
        "positive": (
            int(np.sum(evaluated & finite & ~scale.drawable(values))),
            "not above 0 (no place on a log scale)",
        ),
        "evaluated": (int(np.sum(~evaluated)), "not evaluated"),
    }
    return {
        key: f"{count:,} {'point' if count == 1 else 'points'} {words}"
        for key, (count, words) in counts.items()
        if count
    }


def axis_text(info: AxisInfo, width: int, *, details: bool = True) -> str:
    """Label and unit of an axis, wrapped to lines of at most `width` characters.

    Args:
        info: The axis.
        width: Characters.
        details: Whether to keep the norm of the direction in the unit.

    Returns:
        The text.

    Example:
        >>> from types import SimpleNamespace
        >>> axis = SimpleNamespace(name="alpha", label="random direction 1", unit="1 = ‖θ‖")
        >>> print(axis_text(axis, 40))
        α, random direction 1
        1 = ‖θ‖
    """
    name = GREEK.get(info.name, info.name)
    first = ", ".join(t for t in (name, info.label) if t)
    unit = info.unit if details else essential(info.unit)
    return "\n".join(wrapped(text, width) for text in (first, unit) if text)


def wrapped(text: str, width: int) -> str:
    """Text in lines of at most `width` characters, parentheses and norms unbroken if possible."""
    kept = re.sub(_TOGETHER, lambda part: part[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
    if max((len(word) for word in kept.split(" ")), default=0) > width:
        kept = text
    lines = [line for row in kept.split("\n") for line in _even_lines(row, width)]
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def _even_lines(text: str, width: int) -> list[str]:
    """No more lines than needed, and no last line of one word."""
    lines = textwrap.wrap(text, width)
    while len(lines) > 1 and len(tighter := textwrap.wrap(text, width := width - 1)) == len(lines):
        lines = tighter
    return lines


def essential(unit: str) -> str:
    """The unit without what belongs to one direction only: parentheses, and norms like ``‖d‖ = 3``.

    Args:
        unit: As `AxisInfo.unit`.

    Returns:
        What directions of one kind have in common.

    Example:
        >>> essential("1 = each filter moves by its own length, ‖d‖ = 13.47")
        '1 = each filter moves by its own length'
    """
    return re.sub(rf"[,;]?\s*(?:{_TOGETHER})", "", unit).strip()


def same_unit(one: str, other: str) -> bool:
    """Whether 1 means the same on two axes; the norm of a direction does not count."""
    return essential(one) == essential(other)


def equal_aspect(panel: Panel) -> bool:
    """Whether both axes have one unit and the picture would not become a sliver."""
    left, right, bottom, top = panel.extent
    wide, high = right - left, top - bottom
    if not (wide > 0 and high > 0 and same_unit(panel.x.unit, panel.y.unit)):
        return False
    return 1 / _MOST_STRETCHED <= wide / high <= _MOST_STRETCHED


def panel_of(surface: Surface, column: str, function: str, title: str = "") -> Panel:
    """A two-dimensional result as a panel; anything else is refused in the name of `function`."""
    check_surfaces([surface], 2, function)
    check_column(surface, column)
    values = np.where(surface.evaluated, surface[column], np.nan)
    x, y = surface.axes
    center = center_value(surface, column)
    return Panel(x, y, values, np.asarray(surface.evaluated), column, center, title)


def slice_of(surface: Surface, column: str, cut: int, index: int) -> Panel:
    """One slice of a three-dimensional result, at `index` along axis `cut`."""
    info = surface.axes[cut]
    x, y = (a for k, a in enumerate(surface.axes) if k != cut)
    evaluated = np.take(surface.evaluated, index, axis=cut)
    values = np.where(evaluated, np.take(surface[column], index, axis=cut), np.nan)
    at = float(info.values[index])
    center = center_value(surface, column) if at == 0 else None
    title = f"{GREEK.get(info.name, info.name)} = {number_text(at, 3)}"
    return Panel(x, y, values, evaluated, column, center, title, part="slice")


def slice_indices(info: Any, count: int) -> list[int]:
    """Evenly spaced indices; the one nearest 0 replaces its neighbour."""
    size = len(info.values)
    middle = int(np.argmin(np.abs(np.asarray(info.values))))
    if count >= size:
        return list(range(size))
    if count == 1:
        return [middle]
    chosen = np.linspace(0, size - 1, count).round().astype(int)
    chosen[np.argmin(np.abs(chosen - middle))] = middle
    return sorted(set(chosen.tolist()))


def check_surfaces(surfaces: Sequence[Surface], ndim: int, function: str) -> None:
    """Refuse anything but results with `ndim` axes, in the name of `function`.

    Raises:
        ArgumentError: There is no result, or one has another number of axes.
        ArgumentTypeError: Something is not a result.
    """
    if not surfaces:
        raise ArgumentError(f"`{function}` needs at least one result, got none.")
    other = {1: "line", 2: "contour", 3: "slices"}
    for surface in surfaces:
        if not isinstance(surface, Surface):
            raise ArgumentTypeError(
                f"`{function}` draws results of line, surface or volume, "
                f"got {type(surface).__name__}."
            )
        if surface.ndim != ndim:
            raise ArgumentError(
                f"`{function}` needs results with {ndim} {'axis' if ndim == 1 else 'axes'}, "
                f"got {surface.ndim}; use `{other[surface.ndim]}`."
            )


def check_column(surface: Surface, column: str) -> None:
    """Refuse a column that the result does not have.

    Raises:
        ArgumentError: There is no such column.
    """
    if not isinstance(column, str) or column not in surface.columns:
        raise ArgumentError(
            f"`column` must be one of {', '.join(surface.columns)}, got {column!r}"
            f"{did_you_mean(column, surface.columns) or '.'}"
        )
