"""The dataset of a result: how what a run has computed is laid out in it, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from landscapex.errors import ArgumentError
from landscapex.grids.grid import AXIS_NAMES
from landscapex.storage.header import KINDS, MASK, RunHeader, check_columns


def dataset_of(header: RunHeader, done: np.ndarray, values: np.ndarray) -> xr.Dataset:
    """Lay out what a run has computed so far.

    Args:
        header: What the run computes.
        done: ``(G,)`` bool: which points were evaluated.
        values: ``(G, M)``: their values; what is in other points does not matter.

    Returns:
        A dataset as `landscapex.grids.results.Surface.to_xarray` describes it.

    Raises:
        ArgumentError: If the shapes do not fit the header.
    """
    import landscapex  # for its version

    mask = np.asarray(done, dtype=bool)
    array = np.asarray(values, dtype=np.float64)
    size, columns = header.num_points, len(header.columns)
    for name, got, expected in (
        ("done", mask.shape, (size,)),
        ("values", array.shape, (size, columns)),
    ):
        if got != expected:
            raise ArgumentError(f"`{name}` must have shape {expected}, got {got}.")
    dims, shape = AXIS_NAMES[: len(header.axes)], header.shape
    array = np.where(mask[:, None], array, np.nan)
    variables: dict[str, Any] = {
        name: (dims, array[:, k].reshape(shape)) for k, name in enumerate(header.columns)
    }
    variables[MASK] = (dims, mask.reshape(shape))
    coordinates = {
        axis.name: (axis.name, np.array(axis.values), {"label": axis.label, "unit": axis.unit})
        for axis in header.axes
    }
    provenance = {**header.provenance, "fingerprint": header.fingerprint}
    provenance.setdefault("recorded", header.recorded)
    provenance.setdefault("landscapex", landscapex.__version__)
    attributes = {
        "kind": header.kind,
        "landscapex": str(provenance["landscapex"]),
        "provenance": json.dumps(provenance),
    }
    return xr.Dataset(variables, coordinates, attributes)


def check_dataset(dataset: xr.Dataset) -> None:
    """Refuse a dataset that is not laid out as `grids.results.Surface.to_xarray` says.

    Args:
        dataset: Any dataset.

    Raises:
        ArgumentError: If it is not.
    """
    dims = AXIS_NAMES[: len(dataset.sizes)]
    if set(dataset.sizes) != set(dims) or not dims:
        raise ArgumentError(
            f"`dataset` must have the first of {AXIS_NAMES} as dimensions, got "
            f"{tuple(dataset.sizes)}."
        )
    for name in dims:
        values = dataset[name].values
        if (
            name not in dataset.coords
            or values.dtype != np.float64
            or not np.isfinite(values).all()
        ):
            raise ArgumentError(f"`dataset` must have finite float64 coordinates {name!r}.")
    if dataset.attrs.get("kind") != KINDS[len(dims) - 1]:
        raise ArgumentError(
            f"`dataset` must have the attribute kind={KINDS[len(dims) - 1]!r}, got "
            f"{dataset.attrs.get('kind')!r}."
        )
    if MASK not in dataset or dataset[MASK].dtype != bool:
        raise ArgumentError(f"`dataset` must have a boolean variable {MASK!r}.")
    check_columns(columns_of(dataset))
    for column, variable in dataset.data_vars.items():
        if variable.dims != dims or variable.dtype not in (np.float64, bool):
            raise ArgumentError(
                f"`dataset` must hold float64 over {dims}, got {variable.dtype} over "
                f"{variable.dims} in {column!r}."
            )
        if column != MASK and not np.isnan(variable.values[~dataset[MASK].values]).all():
            raise ArgumentError(f"`dataset` must be NaN where not evaluated, see {column!r}.")
    try:
        readable = isinstance(json.loads(dataset.attrs["provenance"]), dict)
    except (KeyError, TypeError, ValueError, RecursionError):
        readable = False
    if not readable:
        raise ArgumentError("`dataset` must have an attribute provenance, a JSON object.")


def columns_of(dataset: xr.Dataset) -> tuple[str, ...]:
    """What was computed at every point.

    Args:
        dataset: Laid out like a result.

    Returns:
        Names of its variables but the mask.
    """
    return tuple(str(name) for name in dataset.data_vars if name != MASK)
