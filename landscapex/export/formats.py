"""The format by the suffix: what `landscapex export` does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from landscapex.errors import ArgumentError
from landscapex.export import hdf5, page, paraview, picture, table
from landscapex.export.reference import read_h5, to_h5
from landscapex.grids.results import Surface
from landscapex.storage.files import check_path
from landscapex.storage.opening import open as open_result

_RESULT: Final = (".nc",)
# Suffixes, writer, and whether it draws one column (on a scale) or writes all there are.
_FORMATS: Final[tuple[tuple[tuple[str, ...], Callable[..., Path], bool], ...]] = (
    (page.SUFFIXES, page.to_html, True),
    (paraview.SUFFIXES, paraview.to_vts, True),
    (picture.SUFFIXES, picture.to_picture, True),
    (table.SUFFIXES, table.to_csv, False),
    (hdf5.SUFFIXES, to_h5, False),
    (_RESULT, Surface.save, False),
)
SUFFIXES: Final = tuple(suffix for suffixes, _, _ in _FORMATS for suffix in suffixes)


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    column: str | None = None,
    scale: str | None = None,
) -> Path:
    """Write a result from a file in another format.

    Args:
        source: What `landscapex.open` takes, or a surface file of `loss-landscape` (``.h5``).
        target: Where to; the suffix is the format.
        column: What is drawn, in formats that draw; None for "loss".
        scale: "auto", "linear", "log" or "symlog", in formats that draw; None for "auto".

    Returns:
        The absolute path.

    Raises:
        ArgumentError: The suffix of the target is not known, or an option is given that the format
            has no use for.
        CorruptFileError: The source is damaged, missing, or something else.
        MissingExtraError: The format needs a package that is not installed.
        OutputError: The target cannot be written.
    """
    suffix = check_path(target).suffix.lower()
    if suffix not in SUFFIXES:
        raise ArgumentError(
            f"`target` must end in one of {', '.join(SUFFIXES)}, got {os.fspath(target)!r}."
        )
    write, draws = next(row[1:] for row in _FORMATS if suffix in row[0])
    options: dict[str, Any] = {"column": column, "scale": scale}
    given = {name: value for name, value in options.items() if value is not None}
    if given and not draws:
        raise ArgumentError(
            f"`{min(given)}` must not be given for {suffix}, which holds all columns as they are, "
            f"got {given[min(given)]!r}."
        )
    theirs = check_path(source).suffix.lower() in hdf5.SUFFIXES
    surface = read_h5(source) if theirs else open_result(source)
    return write(surface, target, **given)
