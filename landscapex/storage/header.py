"""What a run computes: axes, columns, fingerprint. The first line of every journal."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field, fields
from typing import Any, Final

import numpy as np

from landscapex._loaders import FROZEN
from landscapex.errors import ArgumentError
from landscapex.grids.grid import AXIS_NAMES

JSON = Any  # None, bool, int, float, str, and lists and dicts of these
KINDS: Final = ("line", "surface", "volume")  # by number of axes
_CENTER_TOLERANCE: Final = 1e-6  # relative, between runs under the same recorded circumstances
MASK: Final = "evaluated"  # the variable that says which points exist

# Names that NetCDF takes for variables: https://docs.unidata.ucar.edu/nug/current/
_VARIABLE_NAME: Final = re.compile(r"\w([^\x00-\x1f\x7f/]*[^\x00-\x1f\x7f/\s])?")


@dataclass(frozen=True)
class AxisInfo:
    """One axis of a grid.

    Attributes:
        name: ``"alpha"``, ``"beta"`` or ``"gamma"``.
        values: The coordinates, in units of the stored direction.
        label: What the direction is, e.g. ``"random direction 1"``.
        unit: In words, what a step of 1 is, e.g. ``"1 = the length of the weights, filter by
            filter (‖d‖ = 12.3)"``.
    """

    name: str
    values: tuple[float, ...]
    label: str = ""
    unit: str = ""

    def __post_init__(self) -> None:
        """Refuse axes that do not exist and coordinates that are not finite."""
        object.__setattr__(self, "values", tuple(float(v) for v in self.values))
        if self.name not in AXIS_NAMES:
            raise ArgumentError(f"`name` must be one of {AXIS_NAMES}, got {self.name!r}.")
        if not self.values or not all(map(math.isfinite, self.values)):
            raise ArgumentError(
                f"`values` of axis {self.name} must be one or more finite numbers, got "
                f"{self.values}."
            )


@dataclass(frozen=True)
class RunHeader:
    """What a run computes, and how; the same header, the same numbers.

    Points are numbered 0 to G - 1 in C order over the axes: the last axis changes fastest.

    Attributes:
        kind: ``"line"``, ``"surface"`` or ``"volume"``, by the number of axes.
        axes: The axes, named "alpha", "beta", "gamma" in this order.
        columns: Names of the M numbers computed at every point, ``"loss"`` first.
        fingerprint: What the numbers depend on, field by field, as hashes or short literals; runs
            that differ in one are never joined.
        recorded: What may change the last bits of the numbers (threads, versions, instruction
            set, batch layout); a difference is noted.
        provenance: Everything else that a reader of the result may want to know.

    Raises:
        ArgumentError: If the parts do not fit together, or are not JSON.

    Example:
        >>> axis = AxisInfo("alpha", (-1.0, 0.0, 1.0), "random direction 1", "1 = ‖w‖")
        >>> header = RunHeader("line", (axis,), ("loss", "accuracy"), {"parameters": "3fa2"})
        >>> header.shape, header.num_points
        ((3,), 3)
        >>> RunHeader.from_json(header.to_json()) == header
        True
    """

    kind: str
    axes: tuple[AxisInfo, ...]
    columns: tuple[str, ...]
    fingerprint: dict[str, str]
    recorded: dict[str, JSON] = field(default_factory=dict)
    provenance: dict[str, JSON] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Bring the parts to JSON types; refuse what does not fit together."""
        for name in ("axes", "columns"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("fingerprint", "recorded", "provenance"):
            object.__setattr__(self, name, _plain(getattr(self, name), name))
        names = tuple(axis.name for axis in self.axes)
        if names not in (AXIS_NAMES[:n] for n in (1, 2, 3)):
            raise ArgumentError(f"`axes` must be the first of {AXIS_NAMES}, got {names}.")
        if self.kind != KINDS[len(names) - 1]:
            raise ArgumentError(
                f"`kind` must be {KINDS[len(names) - 1]!r} for {len(names)} axes, got "
                f"{self.kind!r}."
            )
        check_columns(self.columns)

    @property
    def shape(self) -> tuple[int, ...]:
        """Points per axis."""
        return tuple(len(axis.values) for axis in self.axes)

    @property
    def num_points(self) -> int:
        """Grid points ``G``."""
        return math.prod(self.shape)

    def to_json(self) -> str:
        """The header as one line of JSON; floats keep their bits."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        parts["axes"] = [
            {f.name: getattr(axis, f.name) for f in fields(axis)} for axis in self.axes
        ]
        return json.dumps(parts, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> RunHeader:
        """The inverse of `to_json`.

        Args:
            text: What `to_json` returned.

        Returns:
            An equal header.

        Raises:
            ArgumentError: If ``text`` is not a header.
        """
        try:
            parts = json.loads(text)
            return cls(**{**parts, "axes": tuple(AxisInfo(**axis) for axis in parts["axes"])})
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ArgumentError(f"`text` must be the JSON of a header: {error}") from error


def differences(stored: RunHeader, mine: RunHeader) -> list[str]:
    """The fields in which two runs differ such that their numbers must not be mixed.

    Args:
        stored: The header on disk.
        mine: The header of the run that wants to go on.

    Returns:
        One line per field, ``field: stored -> mine``; empty if the runs are the same.
    """
    pairs: dict[str, tuple[object, object]] = {
        "kind": (stored.kind, mine.kind),
        "columns": (", ".join(stored.columns), ", ".join(mine.columns)),
    }
    for name in AXIS_NAMES:
        old, new = (
            next((axis.values for axis in header.axes if axis.name == name), ())
            for header in (stored, mine)
        )
        if old != new:
            pairs[f"axis {name}"] = _describe(old, new)
    for name in dict.fromkeys((*stored.fingerprint, *mine.fingerprint)):
        pairs[name] = stored.fingerprint.get(name), mine.fingerprint.get(name)
    if stored.recorded == mine.recorded and not _same_center(stored, mine):
        # what no hash sees: an attribute that the model or the loss reads
        pairs["loss at the centre"] = _center(stored), _center(mine)
    found = {n: f"{n}: {_short(a)} -> {_short(b)}" for n, (a, b) in pairs.items() if a != b}
    if "data" in found and (chance := _frozen_draws(stored, mine)):
        found["data"] += f" ({'; '.join(chance)})"
    return [*found.values()]


def _frozen_draws(*headers: RunHeader) -> list[str]:
    """What is known to make the data others each time they are read."""
    notes = [note for header in headers for note in header.provenance.get("notes", [])]
    return [*dict.fromkeys(n for n in notes if isinstance(n, str) and n.endswith(FROZEN))]


def _center(header: RunHeader) -> float | None:
    values = header.provenance.get("center")
    loss = values.get("loss") if isinstance(values, dict) else None
    return loss if isinstance(loss, float) else None


def _same_center(stored: RunHeader, mine: RunHeader) -> bool:
    a, b = _center(stored), _center(mine)
    if a is None or b is None or a == b or (a != a and b != b):
        return True
    return abs(a - b) <= _CENTER_TOLERANCE * max(abs(a), abs(b))


def recorded_differences(stored: RunHeader, mine: RunHeader) -> tuple[str, ...]:
    """The recorded circumstances in which two runs differ, one sentence each."""
    names = dict.fromkeys((*stored.recorded, *mine.recorded))
    pairs = {name: (stored.recorded.get(name), mine.recorded.get(name)) for name in names}
    return tuple(
        f"{name} was {a!r} for the first points and {b!r} for later ones"
        for name, (a, b) in pairs.items()
        if a != b
    )


def check_columns(columns: tuple[str, ...]) -> None:
    """Refuse column names that could not be told apart, or not be stored.

    Args:
        columns: Names of the numbers at every point.

    Raises:
        ArgumentError: If "loss" is not first, a name comes twice, is taken, or is not a name.
    """
    if not columns or columns[0] != "loss":
        raise ArgumentError(f"`columns` must begin with 'loss', got {columns}.")
    if len(set(columns)) < len(columns):
        raise ArgumentError(f"`columns` must differ from each other, got {columns}.")
    for name in columns:
        if name in (*AXIS_NAMES, MASK):
            raise ArgumentError(f"`columns` must not use the name {name!r}: it is taken.")
        if not _VARIABLE_NAME.fullmatch(name):
            raise ArgumentError(
                "`columns` must be names that begin with a letter, digit or underscore and hold "
                f"no slash or control character, got {name!r}."
            )


def _plain(value: Any, name: str) -> Any:
    """A copy made of JSON only: tuples become lists, NumPy scalars become numbers."""

    def convert(item: object) -> object:
        if isinstance(item, np.generic | np.ndarray):
            return item.tolist()
        raise TypeError(f"{type(item).__name__} is not JSON")

    try:
        copy = json.loads(json.dumps(value, default=convert))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"`{name}` must be made of JSON values: {error}") from error
    if not isinstance(copy, dict):
        raise ArgumentError(f"`{name}` must be a mapping, got {type(value).__name__}.")
    return copy


def _describe(old: tuple[float, ...], new: tuple[float, ...]) -> tuple[str, str]:
    """Two lists of coordinates in a few words that differ."""
    words = [f"{len(v)} points from {v[0]!r} to {v[-1]!r}" if v else "none" for v in (old, new)]
    if words[0] == words[1]:
        i = next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
        words = [f"{v[i]!r} at point {i}" for v in (old, new)]
    return words[0], words[1]


def _short(value: object) -> str:
    if value is None:
        return "nothing"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}..."
