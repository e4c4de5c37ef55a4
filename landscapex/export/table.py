"""A table for spreadsheets and statistics: one row per point, every digit of every number."""

from __future__ import annotations

import csv
import io
import os
from itertools import product
from pathlib import Path

from landscapex.export.target import check_result, check_target, description, write
from landscapex.grids.results import Surface

SUFFIXES = (".csv",)
_MARKS = (b"# landscapex", b"alpha,")


def to_csv(surface: Surface, path: str | os.PathLike[str], *, comments: bool = True) -> Path:
    """Write a result as comma-separated values, one row per grid point.

    Columns are the coordinates ("alpha", ...), what was computed ("loss", ...), and "evaluated",
    which is False where a point is missing. Numbers have the fewest digits that give back their
    bits; "nan", "inf" and "-inf" are written like this. The last axis changes fastest.

    Args:
        surface: Any result.
        path: Where to, ending in ``.csv``; an existing table of landscapex is replaced.
        comments: Begin with lines that start with ``#`` and say how the numbers were made and what
            the axes are: ``pandas.read_csv(path, comment="#")`` and
            ``read.csv(path, comment.char = "#")`` leave them out.

    Returns:
        The absolute path.

    Raises:
        ArgumentError: `path` does not end in ``.csv``.
        ArgumentTypeError: `surface` is not a result.
        OutputError: The file cannot be written, or somebody else's file is there.

    Example:
        >>> import numpy as np
        >>> from landscapex.storage.store import AxisInfo, RunHeader
        >>> alpha = AxisInfo("alpha", (-1.0, 0.0, 1.0), "random direction")
        >>> header = RunHeader("line", (alpha,), ("loss",), {}, {}, {})
        >>> done = np.array([True, True, False])
        >>> line = Surface.from_run(header, done, np.array([[0.1], [np.nan], [0.0]]))
        >>> print(to_csv(line, "line.csv", comments=False).read_text(), end="")
        alpha,loss,evaluated
        -1.0,0.1,True
        0.0,nan,True
        1.0,nan,False
    """
    check_result(surface)
    target = check_target(path, SUFFIXES, _MARKS)
    buffer = io.StringIO(newline="")
    if comments:
        buffer.writelines(f"# {line}\n" for line in description(surface))
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow([*(axis.name for axis in surface.axes), *surface.columns, "evaluated"])
    places = product(*(axis.values for axis in surface.axes))
    values = [surface[name].ravel().tolist() for name in surface.columns]
    evaluated = surface.evaluated.ravel().tolist()
    rows = zip(places, zip(*values, strict=True), evaluated, strict=True)
    table.writerows([*place, *numbers, there] for place, numbers, there in rows)
    return write(target, buffer.getvalue().encode())
