"""Surfaces: what they say about a run, and what they keep through files, journals and shards."""

from __future__ import annotations

import errno
import json
import os
import pickle
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.figure import Figure
from matplotlib.text import Text
from storage import bits, fill, make_header, make_values

import landscapex as lx
from landscapex import export
from landscapex.errors import (
    ArgumentError,
    CorruptFileError,
    LandscapexWarning,
    OutputError,
    ResumeMismatchError,
)
from landscapex.grids.results import Minimum, Surface
from landscapex.storage import opening, store
from landscapex.storage.header import AxisInfo
from landscapex.storage.store import Journal

HEADER = make_header(3, 5)
VALUES = make_values(HEADER)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "s.nc"


def make_surface(*shape: int, done=None, values=None, **parts) -> Surface:
    header = make_header(*shape, **parts)
    values = make_values(header) if values is None else np.asarray(values, float)
    done = np.ones(header.num_points, bool) if done is None else done
    return Surface.from_run(header, done, values.reshape(header.num_points, -1))


def plane(shape: tuple[int, int] = (3, 5)) -> np.ndarray:
    """``f = 10 x + y`` at the numbers of rows and columns."""
    return 10.0 * np.arange(shape[0])[:, None] + np.arange(shape[1])


# What a result says


def test_trap_05_rows_are_alpha_and_columns_are_beta_through_journal_dataset_and_file(out):
    header = make_header(3, 5, columns=("loss",))
    with Journal.open(out, header) as journal:
        fill(journal, plane().reshape(-1, 1))
    from_journal = opening.open(out)
    from_journal.save(out)
    store.remove_journals(out)
    from_file = opening.open(out)
    for surface in (from_journal, from_file):
        assert surface.loss.tolist() == plane().tolist()
        dataset = surface.to_xarray()
        assert dataset["loss"].dims == ("alpha", "beta")
        assert float(dataset["loss"].sel(alpha=1, beta=-0.5)) == 21
        assert surface.coordinates[0].tolist() == [-1, 0, 1]
        assert surface.coordinates[1].tolist() == [-1, -0.5, 0, 0.5, 1]
    with h5py.File(out) as file:
        assert file["loss"][2, 1] == 21


def test_trap_06_zero_and_negative_losses_are_losses_and_nan_may_be_one():
    done = np.array([True, True, True, True, False])
    surface = make_surface(5, done=done, values=[0, -2, np.nan, -np.inf, 7], columns=("loss",))
    assert surface.evaluated.tolist() == done.tolist()
    assert surface.loss[:2].tolist() == [0, -2]
    assert np.isnan(
        surface.loss[[2, 4]]
    ).all()  # what was not evaluated has no value, whatever it was
    assert surface.nonfinite == 2
    assert not surface.complete
    assert surface.minimum == Minimum(-2.0, (-0.5,))


def test_trap_07_what_was_computed_is_stored_bit_by_bit(out):
    payloads = [0x7FF8000000000000, 0xFFF8000000000123, 0x7FF0000000000001]
    nans = struct.unpack("3d", struct.pack("3Q", *payloads))
    surface = make_surface(7, values=[*nans, np.inf, -np.inf, -0.0, 1e-320], columns=("loss",))
    surface.save(out)
    again = opening.open(out)
    assert bits(again.loss) == bits(surface.loss)
    assert bits(again.loss)[:3] == payloads
    assert again.equals(surface)


@given(raw=arrays(np.uint64, (6, 2)), done=arrays(bool, 6))
@settings(max_examples=25, deadline=None)
def test_saving_and_opening_changes_nothing(tmp_path_factory, raw, done):
    surface = make_surface(2, 3, done=done, values=raw.view(np.float64))
    path = surface.save(tmp_path_factory.mktemp("r") / "s.nc")
    again = opening.open(path)
    assert again.equals(surface)
    assert surface.equals(again)
    assert again.provenance == surface.provenance
    assert again.axes == surface.axes
    assert again.path == path
    xr.testing.assert_identical(again.to_xarray(), surface.to_xarray())


def test_the_parts_of_a_result():
    surface = make_surface(2, 3, 4)
    header = make_header(2, 3, 4)
    assert (surface.kind, surface.ndim, surface.shape) == ("volume", 3, (2, 3, 4))
    assert surface.axes == header.axes
    assert surface.columns == tuple(surface) == ("loss", "accuracy")
    assert "accuracy" in surface
    assert "evaluated" not in surface
    assert surface.loss.tolist() == surface["loss"].tolist()
    assert bits(surface["accuracy"]) == bits(make_values(header)[:, 1])
    assert surface.complete
    assert surface.path is None
    assert surface.provenance["seed"] == 0
    assert surface.provenance["fingerprint"] == header.fingerprint
    assert surface.provenance["recorded"] == header.recorded
    assert surface.provenance["landscapex"] == lx.__version__
    with pytest.raises(ArgumentError, match=r"`column` must be one of \('loss', 'accuracy'\), got"):
        surface["error"]
    with pytest.raises(ArgumentError, match="got 'acc_uracy'; did you mean 'accuracy'"):
        surface["acc_uracy"]


def test_the_documented_layout_of_the_dataset(out):
    columns = ("loss", "test_loss", "accuracy", "a", "Z")
    make_surface(3, 5, columns=columns).save(out)
    dataset = xr.load_dataset(out, engine="h5netcdf")
    assert tuple(dataset.data_vars) == (*columns, "evaluated")
    for name in columns:
        assert dataset[name].dims == ("alpha", "beta")
        assert dataset[name].dtype == np.float64
    assert dataset["evaluated"].dtype == bool
    assert dataset["alpha"].attrs == {"label": "random direction 1", "unit": "1 = ‖w‖"}
    assert set(dataset.attrs) == {"kind", "landscapex", "provenance"}
    assert dataset.attrs["kind"] == "surface"
    assert json.loads(dataset.attrs["provenance"])["notes"] == ["made by a test"]
    with h5py.File(out) as file:
        assert all(file[name].fletcher32 for name in file)


def test_a_result_cannot_be_changed():
    surface = make_surface(3, 5)
    before = surface.to_xarray()
    for array in (surface.loss, surface.evaluated, *surface.coordinates):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(AttributeError):
        surface.path = Path("x")
    copy = surface.to_xarray()
    copy["loss"][:] = 0
    copy["alpha"].attrs["unit"] = "miles"
    copy.attrs["kind"] = "line"
    surface.provenance["seed"] = 99
    xr.testing.assert_identical(surface.to_xarray(), before)
    mine = surface.to_xarray()
    other = Surface(mine)
    mine["loss"][:] = 0
    assert other.equals(surface)


def test_results_may_be_kept_in_sets_and_are_compared_by_equals():
    surface, other = make_surface(3, 5), make_surface(3, 5)
    assert surface == surface
    assert surface != other
    assert surface.equals(other)
    assert len({surface, other}) == 2


def test_the_minimum_is_the_first_of_the_lowest_finite_values():
    values = [np.nan, 3, -np.inf, 1, 1, np.inf]
    surface = make_surface(2, 3, values=values, columns=("loss",))
    assert surface.minimum == Minimum(1.0, (1.0, -1.0))
    empty = make_surface(3, values=[np.nan, np.inf, np.nan], columns=("loss",))
    assert np.isnan([empty.minimum.value, *empty.minimum.coordinates]).all()


def test_the_loss_at_the_centre_is_the_recorded_one_or_that_of_the_grid():
    values = [5, 6, 7]
    for provenance, points, expected in [
        ({"center": {"loss": 1.5}}, 3, 1.5),
        ({"center": {"loss": 0.0}}, 3, 0.0),
        ({}, 3, 6.0),
        ({"center": None}, 3, 6.0),
        ({}, 2, np.nan),
    ]:
        surface = make_surface(
            points, values=values[:points], columns=("loss",), provenance=provenance
        )
        assert np.array_equal(surface.center_loss, expected, equal_nan=True)


@pytest.mark.parametrize(
    "other",
    [
        make_surface(5, 3, values=VALUES),
        make_surface(15, values=VALUES),
        make_surface(3, 5, values=np.nextafter(VALUES, 1)),
        make_surface(3, 5, values=VALUES, columns=("loss", "error")),
        make_surface(3, 5, values=VALUES, done=np.arange(15) != 3),
        make_surface(
            3, 5, values=VALUES,
            axes=(HEADER.axes[0], AxisInfo("beta", (-1.0, -0.5, -0.0, 0.5, 1.0))),
        ),
    ],
    ids=["shape", "ndim", "values", "columns", "mask", "negative zero"],
)  # fmt: skip
def test_results_that_differ_are_not_equal(other):
    surface = make_surface(3, 5, values=VALUES)
    assert surface.equals(make_surface(3, 5, values=VALUES, provenance={"seed": 8}))
    assert not surface.equals(other)
    assert not other.equals(surface)


def test_nan_equals_nan_but_a_result_is_no_hole():
    values = np.array([np.nan, 1.0, 2.0])
    other = np.frombuffer(struct.pack("Q2d", 0xFFF8000000000123, 1, 2))
    a, b = (make_surface(3, values=v, columns=("loss",)) for v in (values, other))
    assert a.equals(b)
    hole = make_surface(3, values=values, columns=("loss",), done=np.array([False, True, True]))
    assert not a.equals(hole)


@pytest.mark.parametrize(
    ("method", "columned"),
    [
        ("to_html", True),
        ("to_vts", True),
        ("to_picture", True),
        ("to_h5", False),
        ("to_csv", False),
    ],
)
def test_exports_get_what_they_are_asked_for(monkeypatch, method, columned):
    told, surface = [], make_surface(3, 5)

    def record(*arguments, **options):
        told.append((arguments, options))
        return Path("there")

    monkeypatch.setattr(export, method, record)
    write = getattr(surface, method)
    assert write("here", option=3) == Path("there")
    assert told.pop() == (
        (surface, "here"),
        {"option": 3, **({"column": "loss"} if columned else {})},
    )
    if columned:
        write("here", "accuracy")
        assert told.pop() == ((surface, "here"), {"column": "accuracy"})


@pytest.mark.parametrize("shape", [(5,), (4, 5), (3, 4, 5)])
def test_every_kind_of_result_can_be_drawn(shape):
    surface = make_surface(*shape, values=np.arange(2 * np.prod(shape)))
    for column in surface:
        figure = surface.plot(column)
        assert isinstance(figure, Figure)
        texts = [text.get_text() for text in figure.findobj(Text)]
        assert any(column in text for text in texts)
    if len(shape) == 2:
        assert surface.plot3d("accuracy", scale="linear").axes[0].name == "3d"
    with pytest.raises(ArgumentError):
        surface.plot("error")


# Files and journals


def test_the_public_names():
    assert lx.open is opening.open
    assert lx.merge is opening.merge
    assert lx.Surface is Surface


def test_a_journal_opens_as_a_surface_with_holes_while_the_run_goes_on(out):
    for path in (out, str(out), out.with_name("s.nc.journal")):
        with Journal.open(out, HEADER) as journal:
            fill(journal, VALUES, 8)
            surface = opening.open(path)
            assert surface.path == Path(path)
        assert surface.evaluated.ravel().tolist() == [True] * 8 + [False] * 7
        assert bits(surface.loss.ravel()[:8]) == bits(VALUES[:8, 0])
        assert np.isnan(surface.loss.ravel()[8:]).all()
        assert surface.axes == HEADER.axes
        assert surface.provenance["seed"] == 0


def test_a_finished_result_goes_before_a_journal_unless_the_journal_is_asked_for(out):
    finished = make_surface(3, 5, values=VALUES)
    finished.save(out)
    with Journal.open(out, HEADER) as journal:
        fill(journal, VALUES, 8)
    assert opening.open(out).equals(finished)
    assert opening.open(out.with_name("s.nc.journal")).evaluated.sum() == 8
    store.remove_journals(out)
    assert opening.open(out.with_name("s.nc.journal")).path == out  # its run has finished


def test_a_run_that_finishes_while_it_is_looked_for_is_found(out, monkeypatch):
    finished = make_surface(3, 5, values=VALUES)

    def gone(path):
        finished.save(out)
        store.fail_missing(path)

    monkeypatch.setattr(store, "read_journals", gone)
    assert opening.open(out).equals(finished)


def test_a_file_that_is_not_there_is_one_of_pythons_own_errors_too(out):
    for read in (lx.open, lx.merge, store.read_dataset, lx.directions.load):
        with pytest.raises(FileNotFoundError) as caught:
            read(out)
        assert isinstance(caught.value, CorruptFileError)
        assert caught.value.errno == errno.ENOENT
    out.write_bytes(b"")
    with pytest.raises(CorruptFileError) as caught:
        lx.open(out)
    assert not isinstance(caught.value, FileNotFoundError)


def test_what_cannot_be_opened(out, tmp_path):
    with pytest.raises(CorruptFileError, match=r"s\.nc does not exist, and there is no journal"):
        opening.open(out)
    with pytest.raises(CorruptFileError, match="must be a regular file"):
        opening.open(tmp_path)
    with pytest.raises(OutputError, match="must be the name of a file, got ''"):
        opening.open("")
    out.write_bytes(b"")
    with pytest.raises(CorruptFileError, match="an empty file"):
        opening.open(out)
    out.unlink()
    out.with_name("s.nc.journal").write_bytes(b"nothing\n")
    with pytest.raises(CorruptFileError, match="must begin with the header of a journal"):
        opening.open(out)


def test_trap_41_a_pickle_is_not_opened(out, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for name in ("s.nc", "s.nc.journal"):
        tmp_path.joinpath(name).write_bytes(pickle.dumps(Payload()))
        with pytest.raises(CorruptFileError):
            opening.open(tmp_path / name)
    assert not (tmp_path / "ran").exists()


# Shards


def run_shard(out: Path, i: int, n: int, header=HEADER, stop: int = 99) -> None:
    with Journal.open(out, header, shard=(i, n)) as journal:
        for c, start in enumerate(range(0, len(VALUES), 4)):
            if c % n == i and start < stop:
                journal.append(start, VALUES[start : start + 4])


@given(n=st.integers(1, 5))
@settings(max_examples=5, deadline=None)
def test_merging_shards_gives_the_file_of_one_run(tmp_path_factory, n):
    out = tmp_path_factory.mktemp("m") / "s.nc"
    for i in range(n):
        run_shard(out, i, n)
    merged = opening.merge(out)
    whole = out.with_name("whole.nc")
    with Journal.open(whole, HEADER) as journal:
        fill(journal, VALUES)
    opening.open(whole).save(whole)
    assert out.read_bytes() == whole.read_bytes()
    assert merged.equals(opening.open(out))
    assert merged.path == out
    assert sorted(os.listdir(out.parent)) == ["s.nc", "whole.nc", "whole.nc.journal"]


def test_merging_too_early_says_how_many_points_are_missing_and_keeps_the_journals(out):
    run_shard(out, 0, 2)
    before = {p.name: p.read_bytes() for p in out.parent.iterdir()}
    with pytest.warns(LandscapexWarning, match=r"7 of 15 points of .*s\.nc are still missing"):
        partial = opening.merge(out)
    assert partial.evaluated.sum() == 8
    assert {p.name: p.read_bytes() for p in out.parent.iterdir()} == before
    run_shard(out, 1, 2)
    assert opening.merge(out.with_name("s.nc.journal.shard0of2")).complete
    assert os.listdir(out.parent) == ["s.nc"]
    assert opening.merge(out).complete  # again, with nothing left to do


def test_a_merge_that_died_while_it_deleted_journals_is_completed(out):
    for i in range(3):
        run_shard(out, i, 3)
    left = out.with_name("s.nc.journal.shard1of3").read_bytes()
    merged = opening.merge(out)
    out.with_name("s.nc.journal.shard1of3").write_bytes(left)
    assert opening.merge(out).equals(merged)
    assert os.listdir(out.parent) == ["s.nc"]


def test_a_partial_merge_does_not_pass_for_the_finished_result_of_another_run(out):
    make_surface(3, 5, fingerprint={"parameters": "0"}).save(out)
    before = out.read_bytes()
    run_shard(out, 0, 2)
    with pytest.warns(LandscapexWarning, match="7 of 15 points"):
        assert opening.merge(out).evaluated.sum() == 8
    assert out.read_bytes() == before


def test_shards_of_different_runs_are_not_merged(out):
    run_shard(out, 0, 2)
    run_shard(out, 1, 2, make_header(3, 5, fingerprint={"parameters": "0"}))
    before = sorted(os.listdir(out.parent))
    with pytest.raises(ResumeMismatchError, match=r"parameters: 3fa2c1 -> 0"):
        opening.merge(out)
    assert sorted(os.listdir(out.parent)) == before


def test_nothing_to_merge(out):
    with pytest.raises(CorruptFileError, match="does not exist, and there is no journal"):
        opening.merge(out)


def test_a_damaged_shard_is_not_merged(out):
    run_shard(out, 0, 1)
    path = out.with_name("s.nc.journal.shard0of1")
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"kind"', b'"kinD"'))
    with pytest.raises(CorruptFileError):
        opening.merge(out)
    assert not out.exists()


@pytest.mark.parametrize(("code", "waits"), [(errno.EBUSY, True), (errno.EACCES, False)])
def test_who_writes_the_same_result_is_waited_for_and_nothing_else(out, monkeypatch, code, waits):
    tries = []

    def refuse(path, purpose):
        tries.append(path)
        assert len(tries) < 20, "it never gives up"
        error = OutputError("no lock")
        error.errno = code
        raise error

    monkeypatch.setattr(opening, "FileLock", refuse)
    monkeypatch.setattr(opening, "_PATIENCE", 0.12)
    with pytest.raises(OutputError, match="no lock"):
        opening.put_away(make_surface(3, 5), out, HEADER)
    assert set(tries) == {out.with_name("s.nc.lock")}
    assert (len(tries) > 1) == waits
    assert not out.exists()


def test_a_result_that_cannot_be_saved(out, tmp_path):
    surface = make_surface(3, 5)
    with pytest.raises(OutputError, match="got the folder"):
        surface.save(tmp_path)
    assert surface.save(str(out)) == out
