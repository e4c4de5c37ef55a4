"""How a result is laid out as a dataset, and datasets that are none."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from storage import HEADER, VALUES

from landscapex.errors import ArgumentError, ArgumentTypeError, CorruptFileError
from landscapex.grids.results import Surface
from landscapex.storage import opening, store
from landscapex.storage.dataset import check_dataset, dataset_of

ENDLESS = np.array([0.0, 1, 2, 3, np.inf])
DEEP = "[" * 100_000


@pytest.fixture
def surface() -> xr.Dataset:
    return dataset_of(HEADER, np.ones(15, dtype=bool), VALUES)


def test_numbers_and_masks_of_other_types_are_stored_as_float64_and_bool():
    values = VALUES.astype(np.float32)
    found = dataset_of(HEADER, [1, 0] * 7 + [1], values)
    assert found["evaluated"].dtype == bool
    assert found["loss"].dtype == np.float64
    assert found["loss"].values.ravel()[::2].tolist() == values[::2, 0].tolist()
    assert np.isnan(found["loss"].values.ravel()[1::2]).all()
    check_dataset(found)


@pytest.mark.parametrize(
    ("done", "values", "message"),
    [
        (np.ones(14, bool), VALUES, r"`done` must have shape \(15,\), got \(14,\)"),
        (np.ones(15, bool), VALUES[:, :1], r"`values` must have shape \(15, 2\), got \(15, 1\)"),
    ],
)
def test_arrays_that_do_not_fit_the_header_are_refused(done, values, message):
    with pytest.raises(ArgumentError, match=message):
        Surface.from_run(HEADER, done, values)


def renamed(old: str, new: str):
    return lambda d: d.rename({old: new})


def without_provenance(d: xr.Dataset) -> xr.Dataset:
    return d.drop_attrs().assign_attrs(kind="surface")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("beta", "gamma"), r"`dataset` must have the first of .* got \('alpha', 'gamma'\)"),
        (lambda d: d.isel(alpha=0, beta=0), r"must have the first of .* got \(\)"),
        (lambda d: d.drop_vars("beta"), "`dataset` must have finite float64 coordinates 'beta'"),
        (lambda d: d.assign_coords(beta=range(5)), "must have finite float64 coordinates 'beta'"),
        (lambda d: d.assign_coords(beta=ENDLESS), "must have finite float64 coordinates 'beta'"),
        (lambda d: d.assign_attrs(kind="line"), "attribute kind='surface', got 'line'"),
        (lambda d: d.drop_attrs(), "attribute kind='surface', got None"),
        (lambda d: d.drop_vars("evaluated"), "must have a boolean variable 'evaluated'"),
        (lambda d: d.assign(evaluated=d["loss"]), "must have a boolean variable 'evaluated'"),
        (lambda d: d.drop_vars("loss"), r"`columns` must begin with 'loss', got \('accuracy',\)"),
        (lambda d: d.assign(loss=d["evaluated"].astype("f4")), "must hold float64 .* got float32"),
        (lambda d: d.assign(loss=d["loss"].T), r"must hold float64 over \('alpha', 'beta'\), got"),
        (lambda d: d.assign(evaluated=~d["evaluated"]), "NaN where not evaluated, see 'loss'"),
        (without_provenance, "an attribute provenance, a JSON object"),
        (lambda d: d.assign_attrs(provenance=3), "an attribute provenance, a JSON object"),
        (lambda d: d.assign_attrs(provenance=DEEP), "an attribute provenance, a JSON object"),
        (lambda d: d.assign_attrs(provenance="{"), "an attribute provenance, a JSON object"),
        (lambda d: d.assign_attrs(provenance="[]"), "an attribute provenance, a JSON object"),
    ],
)  # fmt: skip
def test_a_dataset_that_is_no_surface_is_refused(surface, change, message):
    with pytest.raises(ArgumentError, match=message):
        Surface(change(surface))


def test_a_file_of_a_dataset_that_is_no_surface_is_refused(surface, tmp_path):
    store.write_dataset(surface.assign_attrs(provenance="{"), tmp_path / "s.nc")
    with pytest.raises(CorruptFileError, match=r"s\.nc is not a surface: .* a JSON object"):
        opening.open(tmp_path / "s.nc")


def test_only_a_dataset_makes_a_result():
    with pytest.raises(ArgumentTypeError, match=r"`dataset` must be an xarray\.Dataset, got dict"):
        Surface({})
