"""Pictures for papers and slides, straight from a result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from landscapex import plot
from landscapex.errors import ArgumentError
from landscapex.export.target import check_result, check_target
from landscapex.grids.results import Surface

SUFFIXES = (".png", ".svg", ".pdf")


def to_picture(
    surface: Surface,
    path: str | os.PathLike[str],
    *,
    column: str = "loss",
    relief: bool = False,
    dpi: float = 150.0,
    **options: Any,
) -> Path:
    """Draw a result and write the picture; the same result gives the same bytes.

    Args:
        surface: Any result.
        path: Where to; ``.png``, ``.svg`` or ``.pdf`` is the format. An existing file is replaced.
        column: What to draw.
        relief: A relief in place of contours; of a plane only.
        dpi: Pixels per inch of a PNG.
        **options: Those of `landscapex.plot.line`, `contour`, `slices` or `surface3d`.

    Returns:
        The absolute path.

    Raises:
        ArgumentError: `path` ends otherwise, or the result cannot be drawn like this.
        ArgumentTypeError: `surface` is not a result.
        OutputError: The file cannot be written.
    """
    check_result(surface)
    target = check_target(path, SUFFIXES)
    if relief and surface.ndim != 2:
        raise ArgumentError(f"`relief` must be False for a {surface.kind}, got True.")
    draw = surface.plot3d if relief else surface.plot
    return plot.save(draw(column, **options), target, dpi=dpi)
