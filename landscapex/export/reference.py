"""Surface files of the code of Li et al., `loss-landscape`, in both directions.

The code names arrays "train_loss", "train_acc" (percent), "test_loss", "test_acc", "min_eig" and
"max_eig". It walks ``numpy.meshgrid(xcoordinates, ycoordinates)`` and numbers points with x
fastest, but gives its arrays the shape ``(len(x), len(y))``: entry k of the flattened array is at
``(x[k % len(x)], y[k // len(x)])`` whatever the shape says. Points that it has not computed are
-1 (min_eig: +1); it takes every value that is not positive for one of them.

Source: github.com/tomgoldstein/loss-landscape, plot_surface.py, scheduler.py and
plot_hessian_eigen.py; Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural
Nets", NeurIPS 2018.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from landscapex._warnings import warn
from landscapex.errors import ArgumentError, ArgumentTypeError, CorruptFileError
from landscapex.export.hdf5 import (
    ABOUT,
    MARK,
    SUFFIXES,
    Contents,
    digest,
    put,
    put_about,
    read,
    write_bytes,
)
from landscapex.export.target import check_result, check_target, write
from landscapex.grids.grid import AXIS_NAMES
from landscapex.grids.results import Surface
from landscapex.storage.header import KINDS, MASK, AxisInfo, RunHeader, check_columns

_WHAT: Final = "a surface file of loss-landscape"
_RESERVED: Final = {"dir_file", "xcoordinates", "ycoordinates", ABOUT, MASK, *AXIS_NAMES}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Array:
    """One array of the format: its name, unit and what stands for "not computed"."""

    name: str
    missing: float = -1.0
    factor: float = 1.0  # from our unit to theirs
    kind: str = "train"  # arrays of one kind are computed together


_ARRAYS: Final = {
    "loss": _Array("train_loss"),
    "accuracy": _Array("train_acc", factor=100.0),
    "test_loss": _Array("test_loss", kind="test"),
    "test_accuracy": _Array("test_acc", factor=100.0, kind="test"),
    "smallest": _Array("min_eig", missing=1.0, kind="eigenvalue"),
    "largest": _Array("max_eig", kind="eigenvalue"),
}
_COLUMNS: Final = {array.name: column for column, array in _ARRAYS.items()}


def to_h5(surface: Surface, path: str | os.PathLike[str], *, directions: str = "") -> Path:
    """Write a line or a plane as a surface file of `loss-landscape`.

    "accuracy" becomes percent; columns that the format does not know keep their names, and its
    code leaves them alone. Arrays have the order that the code reads, and the shape ``(len(y),
    len(x))`` that its pictures need. Points that were not evaluated are -1; NaN stays NaN. What
    the format has no place for, axes and provenance, is in the dataset "landscapex".

    Args:
        surface: With one or two axes.
        path: Where to, ending in ``.h5`` or ``.hdf5``; an existing file of landscapex is replaced.
        directions: The name of a file of directions (see `directions_to_h5`), for ``dir_file``.

    Returns:
        The absolute path.

    Raises:
        ArgumentError: `path` ends otherwise, the result has three axes, a column has a name of
            the format, or an evaluated point could not be told from a missing one.
        ArgumentTypeError: `surface` is not a result, or `directions` not a string.
        OutputError: The file cannot be written, or somebody else's file is there.
    """
    check_result(surface)
    target = check_target(path, SUFFIXES, (MARK,))
    if not isinstance(directions, str):
        raise ArgumentTypeError(f"`directions` must be a string, got {type(directions).__name__}.")
    if surface.ndim > 2:
        raise ArgumentError("`surface` must have one or two axes for loss-landscape, got 3.")
    taken = (_RESERVED | set(_COLUMNS)) & set(surface.columns) - set(_ARRAYS)
    if taken:
        raise ArgumentError(
            f"`surface` must not have columns with names of the format, got {min(taken)!r}."
        )
    arrays = {}
    for column in surface.columns:
        array = _ARRAYS.get(column, _Array(column, kind="ours"))
        arrays[array.name] = np.where(
            surface.evaluated, surface[column] * array.factor, array.missing
        )
    for kind, there in _computed(arrays).items():
        if (there != surface.evaluated).any():
            raise ArgumentError(
                f"`surface` must not have {kind} values that the format takes for missing points "
                "(-1), got some."
            )
    about = {
        "axes": [{"label": axis.label, "unit": axis.unit} for axis in surface.axes],
        "provenance": surface.provenance,
        "numbers": _sealed(surface.coordinates, arrays),
    }

    def fill(file: h5py.File) -> None:
        file["dir_file"] = directions
        for letter, places in zip("xy", surface.coordinates, strict=False):
            put(file, f"{letter}coordinates", places)
        for name, values in arrays.items():
            put(file, name, np.ascontiguousarray(values.T))
        put_about(file, about)

    return write(target, write_bytes(fill))


def read_h5(path: str | os.PathLike[str]) -> Surface:
    """Read a surface file of `loss-landscape`.

    Args:
        path: What `plot_surface.py` or `to_h5` wrote.

    Returns:
        A line or a plane with the columns "loss", "accuracy" (a fraction), "test_loss",
        "test_accuracy", "smallest" and "largest", as far as the file has them, and its other
        arrays under their own names. ``surface.loss[i, j]`` is at ``x[i]``, ``y[j]``, also for
        grids that are not square. Points that were not computed are NaN, and False in
        ``evaluated``; a warning says where something was computed for a part of the points only.

    Raises:
        CorruptFileError: If the file is damaged, missing, or something else.
    """
    header, arrays = read(path, _WHAT, _parse)
    computed = _computed(arrays)
    evaluated: NDArray[np.bool_] = np.logical_or.reduce(list(computed.values()))
    table = np.empty((evaluated.size, len(arrays)))
    for k, (name, values) in enumerate(arrays.items()):
        array = _ARRAYS.get(_COLUMNS.get(name, ""), _Array(name, kind="ours"))
        there = computed.get(array.kind, evaluated)
        table[:, k] = np.where(there, values / array.factor, np.nan).ravel()
    for kind, there in computed.items():
        if (there != evaluated).any():
            missing = int((evaluated & ~there).sum())
            warn(f"{missing} of {evaluated.size} points have no {kind} values: they are NaN.")
    return Surface.from_run(header, evaluated.ravel(), table, path=path)


def _parse(contents: Contents) -> tuple[RunHeader, dict[str, Floats]]:
    """What a file says that it holds, and its arrays ``[x, y]``, "train_loss" first."""
    letters = "xy" if "ycoordinates" in contents.arrays else "x"
    sides = [_coordinates(contents, f"{letter}coordinates") for letter in letters]
    shape = tuple(map(len, sides))
    arrays = {}
    for name in dict.fromkeys(("train_loss", *contents.arrays)):
        if name not in _COLUMNS and not _is_column(name, contents.arrays[name].shape, shape):
            continue
        values = contents.array(name).astype(np.float64)
        if values.shape not in (shape, shape[::-1]):
            raise CorruptFileError(f"{name!r} must have shape {shape}, got {values.shape}")
        arrays[name] = values.reshape(shape[::-1]).T
    if about := contents.about:
        _check_numbers(about["numbers"], sides, arrays)
    return _header(contents, sides, [_COLUMNS.get(name, name) for name in arrays]), arrays


def _coordinates(contents: Contents, name: str) -> Floats:
    values = contents.array(name).astype(np.float64)
    if values.ndim != 1 or not values.size:
        raise CorruptFileError(f"{name!r} must have one dimension, got shape {values.shape}")
    return values


def _is_column(name: str, got: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether this is one more number per point, under a name that a result can have."""
    try:
        check_columns(("loss", name))
    except ArgumentError:
        return False
    return got in (shape, shape[::-1]) and name not in _RESERVED and name not in _ARRAYS


def _header(contents: Contents, sides: list[Floats], columns: list[str]) -> RunHeader:
    """What the numbers are, from what the file says of itself."""
    directions = contents.texts.get("dir_file", "")
    about = contents.about
    unit = f"1 = the direction in {directions}" if directions else "1 = the direction itself"
    words = about.get("axes") or [{"label": f"{k}direction", "unit": unit} for k in "xy"]
    axes = tuple(
        AxisInfo(name, tuple(values.tolist()), str(text["label"]), str(text["unit"]))
        for name, values, text in zip(AXIS_NAMES, sides, words, strict=False)
    )
    provenance: dict[str, Any] = {"format": "loss-landscape", "dir_file": directions}
    provenance |= about.get("provenance", {})
    fingerprint = provenance.pop("fingerprint", {})
    return RunHeader(KINDS[len(axes) - 1], axes, tuple(columns), fingerprint, {}, provenance)


def _sealed(sides: Sequence[Floats], arrays: Mapping[str, Floats]) -> dict[str, Any]:
    """What tells later whether the numbers of a file are still those that were written."""
    kept = arrays["train_loss"] > 0  # all other points their code computes when it goes on
    points = np.packbits(kept).tobytes().hex()
    return {"arrays": [*arrays], "points": points, "sha256": _digest(sides, arrays, kept)}


def _check_numbers(
    sealed: Mapping[str, Any], sides: Sequence[Floats], arrays: Mapping[str, Floats]
) -> None:
    """Compare numbers with what `_sealed` said of them; there may be more by now."""
    packed = np.frombuffer(bytes.fromhex(sealed["points"]), np.uint8)
    shape = arrays["train_loss"].shape
    kept = np.unpackbits(packed, count=math.prod(shape)).reshape(shape) == 1
    mine = {name: arrays[name] for name in sealed["arrays"]}
    if _digest(sides, mine, kept) != sealed["sha256"]:
        raise CorruptFileError("its numbers do not match their SHA-256")


def _digest(sides: Sequence[Floats], arrays: Mapping[str, Floats], kept: NDArray[np.bool_]) -> str:
    numbers = {name: values[kept] for name, values in arrays.items()}
    return digest({**numbers, **{f"{k}/": side for k, side in enumerate(sides)}, "/": kept})


def _computed(arrays: dict[str, Floats]) -> dict[str, NDArray[np.bool_]]:
    """Per kind of known arrays, where not all of its arrays say "not computed"."""
    computed: dict[str, NDArray[np.bool_]] = {}
    for name, values in arrays.items():
        if name in _COLUMNS:
            array = _ARRAYS[_COLUMNS[name]]
            there = values != array.missing
            computed[array.kind] = computed.get(array.kind, np.zeros_like(there)) | there
    return computed
