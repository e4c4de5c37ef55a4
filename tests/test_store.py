"""Journals and result files: nothing acknowledged is lost, nothing damaged is believed."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import pickle
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from pathlib import Path

import h5netcdf
import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from storage import (
    CHUNK,
    bits,
    file_size_limit,
    fill,
    fork,
    kill_writers,
    make_header,
    make_values,
    read_damaged,
    unprivileged,
    wait,
)

from landscapex import _lock, journal, store
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    CorruptFileError,
    LandscapexError,
    LandscapexWarning,
    OutputError,
    ResumeMismatchError,
)
from landscapex.header import AxisInfo, RunHeader
from landscapex.store import Journal

HEADER = make_header(3, 5)
VALUES = make_values(HEADER)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "s.nc"


def begun(out: Path, stop: int | None = 8, header: RunHeader = HEADER, **options) -> Path:
    """The journal of a run that ended after ``stop`` points."""
    with Journal.open(out, header, **options) as j:
        fill(j, VALUES, stop)
    return j.path


# Journal: what is kept


@given(raw=arrays(np.uint64, (7, 2)), cuts=st.sets(st.integers(1, 6)))
@settings(max_examples=50, deadline=None)
def test_trap_07_every_float_comes_back_with_its_bits_however_it_was_chunked(
    tmp_path_factory, raw, cuts
):
    out = tmp_path_factory.mktemp("j") / "s.nc"
    header, values = make_header(7), raw.view(np.float64)
    edges = [0, *sorted(cuts), 7]
    with Journal.open(out, header) as j:
        for start, stop in reversed(list(itertools.pairwise(edges))):
            j.append(start, values[start:stop])
    stored, done, found = store.read_journals(out)
    assert done.all()
    assert bits(found) == bits(values)
    assert stored == header


def test_trap_07_nan_and_infinity_are_kept_whatever_their_bits(out):
    payloads = [0x7FF8000000000000, 0xFFF8000000000000, 0x7FF0000000000001, 0xFFFFFFFFFFFFFFFF]
    nans = struct.unpack("4d", struct.pack("4Q", *payloads))
    specials = [*nans, np.inf, -np.inf, -0.0, 5e-324]
    header = make_header(8, columns=("loss",))
    with Journal.open(out, header) as j:
        j.append(0, np.array(specials)[:, None])
    _, _, found = store.read_journals(out)
    assert bits(found)[:4] == payloads
    assert bits(found)[4:] == bits(np.array(specials[4:]))


def test_trap_06_no_value_means_not_computed(out):
    header = make_header(6, columns=("loss",))
    with Journal.open(out, header) as j:
        j.append(1, np.array([[0.0], [-3.0], [np.nan]]))
        assert j.done.tolist() == [False, True, True, True, False, False]
        assert np.array_equal(j.values[:, 0], [np.nan, 0, -3] + [np.nan] * 3, equal_nan=True)
    with Journal.open(out, header) as j:
        assert j.done.tolist() == [False, True, True, True, False, False]
        assert j.values[1:3].tolist() == [[0.0], [-3.0]]
        assert np.isnan(j.values[[0, 3, 4, 5]]).all()


def test_trap_05_points_are_numbered_with_the_last_axis_fastest(out):
    with Journal.open(out, make_header(3, 5, columns=("loss",))) as j:
        for i in range(3):
            for k in range(5):
                j.append(5 * i + k, np.array([[10.0 * i + k]]))
    _, _, values = store.read_journals(out)
    assert values.reshape(3, 5)[2, 4] == 24
    assert values.reshape(3, 5)[1].tolist() == [10, 11, 12, 13, 14]


def test_a_line_can_be_read_without_landscapex(out):
    path = begun(out, 8)
    first, second, third = path.read_text().splitlines()
    assert json.loads(first)["header"]["columns"] == ["loss", "accuracy"]
    assert json.loads(second)["start"] == 0
    rows = [[float.fromhex(v) for v in row] for row in json.loads(third)["values"]]
    assert rows == VALUES[4:8].tolist()
    rest = third.partition(",")[2].encode()
    seed = int(json.loads(first)["crc32"], 16)
    assert json.loads(third)["crc32"] == f"{zlib.crc32(rest, seed):08x}"


def test_a_chunk_is_one_write(out, monkeypatch):
    with Journal.open(out, HEADER) as j:
        sizes = []
        write = os.write
        monkeypatch.setattr(
            os, "write", lambda fd, data: sizes.append(len(data)) or write(fd, data)
        )
        before = j.path.stat().st_size
        j.append(0, VALUES[:4])
        monkeypatch.undo()
        assert sizes == [j.path.stat().st_size - before]


def test_resume_keeps_the_points_and_the_first_header(out):
    begun(out, 8)
    later = make_header(3, 5, recorded={"threads": 7}, provenance={"seed": 0, "created": "later"})
    with Journal.open(out, later) as j:
        assert j.done.tolist() == [True] * 8 + [False] * 7
        assert bits(j.values[:8]) == bits(VALUES[:8])
        assert j.header == HEADER
        assert j.notes == ("threads was 2 for the first points and 7 for later ones",)
        fill(j, VALUES)
    _, done, values = store.read_journals(out)
    assert done.all()
    assert bits(values) == bits(VALUES)


def test_without_resume_the_run_starts_over(out):
    begun(out, 8)
    with Journal.open(out, make_header(4), resume=False) as j:
        assert not j.done.any()
        assert j.header == make_header(4)
    assert not store.read_journals(out)[1].any()


def test_arrays_of_a_journal_cannot_be_changed_by_its_readers(out):
    with Journal.open(out, HEADER) as j:
        for array in (j.done, j.values):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1


@pytest.mark.parametrize(
    ("start", "values", "message"),
    [
        (0, np.zeros((2, 3)), r"`values` must have shape \(n, 2\), got \(2, 3\)"),
        (0, np.zeros(2), r"`values` must have shape \(n, 2\), got \(2,\)"),
        (0, np.zeros((0, 2)), r"`values` must have shape \(n, 2\), got \(0, 2\)"),
        (14, np.zeros((2, 2)), "`start` must be 0 to 13, got 14"),
        (-1, np.zeros((2, 2)), "`start` must be 0 to 13, got -1"),
        (3, np.zeros((2, 2)), "`start` must lead to new points, got 3: done before"),
    ],
)
def test_append_refuses_what_does_not_fit(out, start, values, message):
    with Journal.open(out, HEADER) as j:
        j.append(4, VALUES[4:5])
        size = j.path.stat().st_size
        with pytest.raises(ArgumentError, match=message):
            j.append(start, values)
        assert j.path.stat().st_size == size


def test_a_closed_journal_says_so_and_closes_twice(out):
    with Journal.open(out, HEADER) as j:
        pass
    j.close()
    for use in (j.sync, lambda: j.append(0, VALUES[:1])):
        with pytest.raises(OutputError, match="must be open, but it was closed"):
            use()


def test_threads_may_append(out):
    header = make_header(40, 20)
    values = make_values(header)
    with Journal.open(out, header) as j:

        def work(k: int) -> None:
            for start in range(10 * k, 800, 80):
                j.append(start, values[start : start + 10])

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    _, done, found = store.read_journals(out)
    assert done.all()
    assert bits(found) == bits(values)


def test_the_disk_has_every_point_within_the_second_even_if_none_follows(out, monkeypatch):
    monkeypatch.setattr(journal, "SYNC_SECONDS", 0.05)
    synced = threading.Event()
    monkeypatch.setattr(journal, "sync_data", lambda descriptor: synced.set())
    with Journal.open(out, HEADER) as j:
        assert not synced.wait(0.15)  # nothing to sync
        for start in (0, 4):
            j.append(start, VALUES[start : start + 4])
            assert synced.wait(5)
            synced.clear()
        j.append(8, VALUES[8:12])
        j.sync()
        assert synced.is_set()
    assert journal.SYNC_SECONDS <= 1


def test_appending_does_not_wait_for_the_disk(out, monkeypatch):
    monkeypatch.setattr(journal, "SYNC_SECONDS", 0.01)
    busy, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(journal, "sync_data", lambda descriptor: (busy.set(), go_on.wait(10)))
    with Journal.open(out, HEADER) as j:
        j.append(0, VALUES[:4])
        assert busy.wait(5)
        j.append(4, VALUES[4:8])
        assert j.done[7]
        go_on.set()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no fdatasync")
def test_without_fdatasync_fsync_is_used(out, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", calls.append)
    monkeypatch.delattr(os, "fdatasync")
    with Journal.open(out, HEADER) as j:
        calls.clear()
        j.append(0, VALUES[:4])
        j.sync()
        j.sync()  # has nothing to do
        assert len(calls) == 1
        j.append(4, VALUES[4:8])
    assert len(calls) == 2  # closing syncs


# Fault 1


def test_fault_01_killed_writers_lose_nothing_they_acknowledged(tmp_path):
    counts = kill_writers(tmp_path, kills=30)
    assert (counts.lost, counts.wrong, counts.unreadable) == (0, 0, 0)
    assert counts.kills == 30
    assert counts.midway >= 5, "the kills must hit runs that are going on"


def test_fault_01_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(out, tmp_path):
    for stop in (4, 8, 15):
        begun(out, stop)
    whole = tmp_path / "whole.nc"
    begun(whole, 15)
    for a, b in zip(store.read_journals(out), store.read_journals(whole), strict=True):
        assert a == b if isinstance(a, RunHeader) else a.tobytes() == b.tobytes()


# Fault 3


def test_fault_03_a_full_disk_stops_cleanly_and_the_journal_goes_on_later(out):
    header = make_header(40, 10)
    values = make_values(header)
    with Journal.open(out, header) as j:
        fill(j, values, 40)
        limit = j.path.stat().st_size + 100  # the next line is longer
        with file_size_limit(limit), pytest.raises(OutputError) as caught:
            fill(j, values)
        assert caught.value.errno == errno.EFBIG
        assert str(j.path) in str(caught.value)
        assert "at point 40" in str(caught.value)
        assert "File too large" in str(caught.value)
        assert "the 40 of 400 points written so far are kept" in str(caught.value)
        needed = int(
            str(caught.value).partition("About ")[2].partition(" bytes")[0].replace(",", "")
        )
        assert j.done.sum() == 40
        assert j.path.read_bytes().endswith(b"]]}\n")
        before = j.path.stat().st_size
        fill(j, values)  # there is room again
        assert j.path.stat().st_size - before < needed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, done, found = store.read_journals(out)
    assert done.all()
    assert bits(found) == bits(values)


@pytest.mark.parametrize("how", ["append", "sync", "close"])
def test_fault_03_a_disk_that_fails_later_is_reported_by_the_next_call(out, monkeypatch, how):
    """NFS and quotas report a full disk when the data is flushed, not when it is written."""

    def full(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(journal, "SYNC_SECONDS", 0.01)
    monkeypatch.setattr(journal, "sync_data", full)
    j = Journal.open(out, HEADER)
    j.append(0, VALUES[:4])
    deadline = time.monotonic() + 5
    while j._failure is None and time.monotonic() < deadline:
        time.sleep(0.005)
    use = {"append": lambda: j.append(4, VALUES[4:8]), "sync": j.sync, "close": j.close}[how]
    with pytest.raises(OutputError, match="Disk quota exceeded") as caught:
        use()
    assert caught.value.errno == errno.EDQUOT
    if how != "close":
        with pytest.raises(OutputError, match="Disk quota exceeded"):
            j.close()
    monkeypatch.undo()  # and the lock was given back all the same
    Journal.open(out, HEADER).close()


def test_an_error_in_the_run_is_not_hidden_by_one_of_the_journal(out, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal, "sync_data", full)

    def run() -> None:
        with Journal.open(out, HEADER) as j:
            j.append(0, VALUES[:4])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()


def test_an_interrupt_in_the_middle_of_a_write_leaves_no_half_line(out, monkeypatch):
    def interrupted(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[:20])
        raise KeyboardInterrupt

    with Journal.open(out, HEADER) as j:
        j.append(0, VALUES[:4])
        with monkeypatch.context() as patch:
            patch.setattr(journal, "write_all", interrupted)
            with pytest.raises(KeyboardInterrupt):
                j.append(4, VALUES[4:8])
        assert not j.done[4]
        j.append(4, VALUES[4:8])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, done, values = store.read_journals(out)
    assert done.sum() == 8
    assert bits(values[:8]) == bits(VALUES[:8])


def test_fault_03_room_is_checked_before_the_run(out, monkeypatch):
    real = os.statvfs(out.parent)
    fields = {name: getattr(real, name) for name in dir(real) if name.startswith("f_")}

    class Status:
        def __init__(self, **changed):
            self.__dict__.update({**fields, **changed})

    monkeypatch.setattr(os, "statvfs", lambda path: Status(f_bavail=3, f_frsize=4096))
    with pytest.raises(
        OutputError, match=r"needs about [\d,]+ bytes, but only 12,288 are free"
    ) as e:
        Journal.open(out, HEADER)
    assert e.value.errno == errno.ENOSPC
    assert os.listdir(out.parent) == []
    with pytest.raises(OutputError, match="are free"):
        store.write_dataset(xr.Dataset({"loss": ("alpha", np.zeros(9999))}), out)
    monkeypatch.setattr(os, "statvfs", lambda path: Status(f_bavail=0, f_blocks=0))
    Journal.open(out, HEADER).close()  # a file system that does not tell


def test_fault_03_a_result_that_does_not_fit_leaves_the_old_one(out):
    old = xr.Dataset({"loss": ("alpha", np.arange(3.0))})
    store.write_dataset(old, out)
    new = xr.Dataset({"loss": ("alpha", np.zeros(100_000))})
    with file_size_limit(50_000), pytest.raises(OutputError, match=r"[\d,]+ bytes are needed") as e:
        store.write_dataset(new, out)
    assert e.value.errno == errno.EFBIG
    assert str(out) in str(e.value)
    xr.testing.assert_identical(store.read_dataset(out), old)
    assert os.listdir(out.parent) == ["s.nc"]


def test_fault_03_no_file_can_be_made(out):
    with file_size_limit(0), pytest.raises(OutputError, match="cannot be written") as caught:
        Journal.open(out, HEADER)
    assert caught.value.errno == errno.EFBIG
    assert os.listdir(out.parent) == []


# Fault 4


def test_fault_04_a_torn_line_is_cut_at_every_length(out):
    path = begun(out, 12)
    data = path.read_bytes()
    last = data[:-1].rindex(b"\n") + 1
    for size in (*range(last + 1, len(data), 7), len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.warns(LandscapexWarning, match="no whole line.*8 of 15 points") as caught:
            j = Journal.open(out, HEADER)
        assert len(caught) == 1
        j.close()
        assert path.read_bytes() == data[:last]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        begun(out, 15)
    assert bits(store.read_journals(out)[2]) == bits(VALUES)


@pytest.mark.parametrize("tail", [b"\0" * 700, b"\0" * 5 + b"\n", b"{}\n{}\n", b"\n", b"\xff\xfe"])
def test_fault_04_nuls_and_other_tails_are_cut(out, tail):
    path = begun(out, 8)
    data = path.read_bytes()
    path.write_bytes(data + tail)
    with pytest.warns(LandscapexWarning, match=f"in {len(tail)} bytes that are no whole line"):
        j = Journal.open(out, HEADER)
    with j:
        assert path.read_bytes() == data
        assert j.done.sum() == 8
        fill(j, VALUES)
    assert bits(store.read_journals(out)[2]) == bits(VALUES)


@pytest.mark.parametrize("data", [b"", b"\0" * 4096])
def test_fault_04_a_journal_lost_in_a_power_cut_starts_over(out, data):
    out.with_name("s.nc.journal").write_bytes(data)
    with pytest.warns(LandscapexWarning, match="was empty"):
        j = Journal.open(out, HEADER)
    with j:
        assert not j.done.any()


def test_a_damaged_line_in_the_middle_costs_its_own_points_only(out):
    path = begun(out, 12)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"0x1", b"0x2", 1)
    path.write_bytes(b"".join(lines))
    for use in (lambda: store.read_journals(out), lambda: Journal.open(out, HEADER).close()):
        with pytest.warns(LandscapexWarning, match="damaged in line 3"):
            use()
    with pytest.warns(LandscapexWarning):
        j = Journal.open(out, HEADER)
    with j:
        assert j.done.tolist() == [True] * 4 + [False] * 4 + [True] * 4 + [False] * 3
        fill(j, VALUES)
    with pytest.warns(LandscapexWarning):
        _, done, values = store.read_journals(out)
    assert done.all()
    assert bits(values) == bits(VALUES)


def test_a_line_of_another_run_is_not_believed(out, tmp_path):
    path = begun(out, 8)
    other = begun(tmp_path / "t.nc", 12, make_header(3, 5, fingerprint={"parameters": "0"}))
    line = other.read_bytes().splitlines(keepends=True)[-1]
    path.write_bytes(path.read_bytes() + line)
    with pytest.warns(LandscapexWarning, match="no whole line"):
        assert store.read_journals(out)[1].sum() == 8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not a journal\n", "must begin with the header of a journal, got b'not a journal"),
        (b'{"crc32":"00000000",', "must begin with the header of a journal"),
        (b"", "got an empty file"),
        (journal.first_line(HEADER, None).replace(b"loss", b"lost"), "must begin with the header"),
        (b"\0\n", "must begin with the header"),
    ],
)
def test_a_file_that_is_no_journal_is_refused(out, data, message):
    out.with_name("s.nc.journal").write_bytes(data)
    with pytest.raises(CorruptFileError, match=message):
        store.read_journals(out)


def sealed(text: bytes, seed: int = 0) -> bytes:
    return b'{"crc32":"%08x",%s\n' % (zlib.crc32(text, seed), text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'"landscapex journal":2,"shard":null,"header":{}}', "version 1, got 2: another release"),
        (b'"shard":null,"header":{}}', "must begin with a header"),
        (b'"landscapex journal":1,"shard":null,"header":{}}', "must begin with a header"),
        (b'"landscapex journal":1,"shard":null,"header":[1]}', "must begin with a header"),
        (b'"landscapex journal":1', "must begin with a header"),
        (b'"landscapex journal":' + b"[" * 100_000, "must begin with a header"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(out, text, message):
    out.with_name("s.nc.journal").write_bytes(sealed(text))
    for use in (lambda: store.read_journals(out), lambda: Journal.open(out, HEADER)):
        with pytest.raises(CorruptFileError, match=message):
            use()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'"start":14,"values":[["0x1p0","0x1p0"],["0x1p0","0x1p0"]]}', "14 to 15 are not on the"),
        (b'"start":-1,"values":[["0x1p0","0x1p0"]]}', "are not on the grid"),
        (b'"start":9,"values":[["0x1p0"]]}', "are not on the grid"),
        (b'"start":9,"values":[["0x1p0"],["0x1p0","0x1p0"]]}', "makes no sense"),
        (b'"start":9,"values":[[1,2]]}', "makes no sense"),
        (b'"start":9,"values":[["nan:12","nan:zz"]]}', "makes no sense"),
        (b'"start":9.5,"values":[["0x1p0","0x1p0"]]}', "makes no sense"),
        (b'"start":9,"values":[["0x1p9999","0x1p0"]]}', "makes no sense"),
        (b'"start":0,"values":[["0x1p0","0x1p0"]]}', "0 to 0 were written twice and differ"),
        (b'"values":[]}', "makes no sense"),
        (b'"start":0', "makes no sense"),
    ],
)
def test_a_whole_line_that_makes_no_sense_is_refused(out, text, message):
    path = begun(out, 8)
    seed = int(json.loads(path.read_bytes().splitlines()[0])["crc32"], 16)
    path.write_bytes(path.read_bytes() + sealed(text, seed))
    with pytest.raises(CorruptFileError, match=message):
        store.read_journals(out)


# Fault 5

AXES = HEADER.axes
MOVED = AxisInfo("beta", (*AXES[1].values[:-1], 1.5), "random direction 2", "1 = ‖w‖")
NUDGED = AxisInfo("beta", (-1, -0.5, 1e-300, 0.5, 1))


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"fingerprint": {"parameters": "777", "data": "99ab00"}}, "parameters: 3fa2c1 -> 777"),
        ({"fingerprint": {"parameters": "3fa2c1"}}, "data: 99ab00 -> nothing"),
        (
            {"fingerprint": {**HEADER.fingerprint, "loss": "0123456789" * 6}},
            r"loss: nothing -> 0123456789012345\.\.\.",
        ),
        ({"columns": ("loss", "error")}, "columns: loss, accuracy -> loss, error"),
        (
            {"axes": (AXES[0], MOVED)},
            "beta: 5 points from -1.0 to 1.0 -> 5 points from -1.0 to 1.5",
        ),
        ({"axes": (AXES[0], NUDGED)}, "beta: 0.0 at point 2 -> 1e-300 at point 2"),
        ({"axes": AXES[:1], "kind": "line"}, "axis beta: 5 points from -1.0 to 1.0 -> none"),
    ],
)
def test_fault_05_a_journal_of_another_run_is_refused_field_by_field(out, changed, line):
    path = begun(out, 8)
    before = path.read_bytes()
    other = make_header(3, 5, **changed)
    with pytest.raises(ResumeMismatchError, match=line) as caught:
        Journal.open(out, other)
    assert "resume=False" in str(caught.value)
    assert path.read_bytes() == before
    Journal.open(out, HEADER).close()  # the lock is free


def test_fault_05_all_differences_are_listed_and_no_others(out):
    begun(out, 8)
    other = make_header(
        3, 5, columns=("loss", "error"), fingerprint={"parameters": "1", "data": "99ab00"},
        recorded={"threads": 9},
    )  # fmt: skip
    with pytest.raises(ResumeMismatchError) as caught:
        Journal.open(out, other)
    assert [text.strip() for text in str(caught.value).splitlines()[1:-1]] == [
        "columns: loss, accuracy -> loss, error",
        "parameters: 3fa2c1 -> 1",
    ]


def test_fault_05_a_torn_journal_of_another_run_is_not_touched(out):
    path = begun(out, 8)
    path.write_bytes(path.read_bytes()[:-5])
    before = path.read_bytes()
    with pytest.warns(LandscapexWarning), pytest.raises(ResumeMismatchError):
        Journal.open(out, make_header(3, 5, fingerprint={}))
    assert path.read_bytes() == before


# Fault 6


def test_fault_06_a_second_writer_fails_at_once(out):
    with Journal.open(out, HEADER) as j:
        began = time.monotonic()
        with pytest.raises(OutputError, match="two runs at once: this very process") as caught:
            Journal.open(out, HEADER)
        assert caught.value.errno == errno.EBUSY
        read, write = os.pipe()

        def second() -> None:
            try:
                Journal.open(out, HEADER)
            except OutputError as error:
                os.write(write, str(error).encode())

        assert wait(fork(second)) == 0
        os.close(write)
        with os.fdopen(read) as pipe:
            message = pipe.read()
        assert f"process {os.getpid()} on {socket.gethostname()}" in message
        assert str(j.path) + ".lock" in message
        assert time.monotonic() - began < 2
        fill(j, VALUES)
    assert sorted(os.listdir(out.parent)) == ["s.nc.journal"]
    Journal.open(out, HEADER).close()


def lock_of(out: Path, **changed) -> Path:
    """A lock as if another run had left it."""
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "start": "1", "since": "noon"}
    path = out.with_name("s.nc.journal.lock")
    path.write_text(json.dumps({**holder, **changed}))
    return path


def dead_pid() -> int:
    pid = fork(lambda: None)
    wait(pid)
    return pid


def test_fault_06_the_lock_of_a_dead_process_is_stale(out):
    lock_of(out, pid=dead_pid())
    with Journal.open(out, HEADER) as j:
        fill(j, VALUES)
    assert os.listdir(out.parent) == ["s.nc.journal"]


def test_fault_06_the_lock_of_a_killed_writer_is_stale(out):
    ready, go = os.pipe()

    def work() -> None:
        Journal.open(out, HEADER).append(0, VALUES[:4])
        os.write(go, b"!")
        time.sleep(60)

    pid = fork(work)
    assert os.read(ready, 1) == b"!"
    with pytest.raises(OutputError, match=f"process {pid} on"):
        Journal.open(out, HEADER)
    os.kill(pid, 9)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # a zombie until its parent asks for it
    with Journal.open(out, HEADER) as j:
        assert j.done.sum() == 4
    wait(pid)


def test_fault_06_a_process_number_that_is_used_again_is_not_the_old_process(out):
    lock_of(out, start=_lock.process_start(os.getpid()))
    with pytest.raises(OutputError, match="this very process"):
        Journal.open(out, HEADER)
    lock_of(out, start="1")
    Journal.open(out, HEADER).close()


@pytest.mark.parametrize(
    "changed", [{"host": "elsewhere", "pid": 2**22 + 1}, {"start": None}, {"start": ""}]
)
def test_fault_06_a_lock_that_cannot_be_judged_is_respected(out, changed):
    path = lock_of(out, **changed)
    before = path.read_bytes()
    with pytest.raises(OutputError, match=f"if that run is gone, delete {path}"):
        Journal.open(out, HEADER)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["", '{"pid": 1', "[]", '{"pid": "x"}'])
def test_fault_06_a_lock_that_nobody_finished_writing_is_stale(out, monkeypatch, text):
    monkeypatch.setattr(_lock, "_PATIENCE", 0.1)
    out.with_name("s.nc.journal.lock").write_text(text)
    Journal.open(out, HEADER).close()


def test_fault_06_of_many_that_find_a_stale_lock_one_takes_it(out):
    for _ in range(5):
        lock_of(out, pid=dead_pid())
        ready, go = os.pipe()
        hold, done = os.pipe()

        def work(go=go, hold=hold, done=done) -> None:
            os.close(done)
            with Journal.open(out, HEADER):
                os.write(go, b"!")
                os.read(hold, 1)  # until the parent closes its end

        pids = [fork(work) for _ in range(6)]
        os.close(go)
        os.close(hold)
        winners = os.read(ready, 1)
        time.sleep(0.05)
        os.close(done)
        statuses = [wait(pid) for pid in pids]
        winners += os.read(ready, 10)
        os.close(ready)
        assert winners == b"!"
        assert sorted(statuses) == [0, 1, 1, 1, 1, 1]


def test_fault_06_a_lock_that_somebody_was_faster_to_take_over_is_respected(out, monkeypatch):
    path = lock_of(out, pid=dead_pid())

    def somebody_is_faster(descriptor: int) -> None:
        monkeypatch.undo()
        path.unlink()
        lock_of(out, host="elsewhere")

    monkeypatch.setattr(_lock, "_exclude_others", somebody_is_faster)
    with pytest.raises(OutputError, match="on elsewhere has been writing it"):
        Journal.open(out, HEADER)
    assert json.loads(path.read_text())["host"] == "elsewhere"


def test_fault_06_without_advisory_locks_it_works_all_the_same(out, monkeypatch):
    def missing(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_lock.fcntl, "flock", missing)
    lock_of(out, pid=dead_pid())
    with Journal.open(out, HEADER), pytest.raises(OutputError, match="two runs at once"):
        Journal.open(out, HEADER)


def test_a_forked_child_does_not_give_the_lock_of_its_parent_back(out):
    with Journal.open(out, HEADER) as j:
        assert wait(fork(j.close)) == 0
        with pytest.raises(OutputError, match="two runs at once"):
            Journal.open(out, HEADER)
        j.append(0, VALUES[:4])


def test_a_journal_that_nobody_closed_gives_its_lock_back(out):
    Journal.open(out, HEADER)
    Journal.open(out, HEADER).close()


def test_a_lock_that_is_no_longer_ours_is_left_alone(out):
    with Journal.open(out, HEADER):
        path = out.with_name("s.nc.journal.lock")
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


def test_the_start_of_a_process_tells_it_from_others():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mine = _lock.process_start(os.getpid())
    assert mine
    assert mine == _lock.process_start(os.getpid())
    assert _lock.process_start(child.pid)
    child.communicate(b"\n")
    assert _lock.process_start(child.pid) is None
    assert _lock.process_start(2**80) is None


def test_where_there_is_no_proc_ps_tells(monkeypatch):
    """As on macOS."""
    try:
        subprocess.run(["ps"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs ps")
    monkeypatch.setattr(_lock, "_stat_of_proc", lambda pid: None)
    start = _lock.process_start(os.getpid())
    assert start
    assert start == _lock.process_start(os.getpid())
    assert str(time.gmtime().tm_year) in start
    child = fork(lambda: None)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert _lock.process_start(child) is None  # a zombie
    wait(child)
    monkeypatch.setattr(_lock, "_stat_of_ps", lambda pid: None)
    assert _lock.process_start(os.getpid()) == ""


# Fault 7 and damaged files in general


@pytest.fixture(scope="module")
def dataset() -> xr.Dataset:
    return xr.Dataset(
        {
            "loss": (("alpha", "beta"), make_values(HEADER)[:, 0].reshape(3, 5)),
            "evaluated": (("alpha", "beta"), np.arange(15).reshape(3, 5) != 7),
            "names": ("beta", np.array([*"abcd", "ü"], dtype=object)),
            "scale": ((), 2.5),
        },
        {"alpha": ("alpha", np.linspace(-1, 1, 3), {"unit": "1 = ‖w‖"}), "beta": np.arange(5.0)},
        {"kind": "surface", "provenance": json.dumps({"seed": 0})},
    )


def test_a_dataset_comes_back_identical(out, dataset):
    assert store.write_dataset(dataset, out) == out
    xr.testing.assert_identical(store.read_dataset(out), dataset)
    assert os.listdir(out.parent) == ["s.nc"]


def test_a_file_can_be_read_without_landscapex(out, dataset):
    store.write_dataset(dataset, out)
    xr.testing.assert_identical(xr.load_dataset(out, engine="h5netcdf"), dataset)
    with h5py.File(out) as file:
        assert file.userblock_size == 512
        assert file["loss"][:].tobytes() == dataset["loss"].values.tobytes()
        assert file["evaluated"][:].tolist() == dataset["evaluated"].values.astype(int).tolist()
        assert file.attrs["kind"] == "surface"
        assert file["alpha"].attrs["unit"] == "1 = ‖w‖"
        assert "_FillValue" not in file["loss"].attrs  # it would make holes of NaN
        checked = {name: file[name].fletcher32 for name in file if file[name].dtype.kind in "fib"}
    assert checked == {"loss": True, "evaluated": True, "alpha": True, "beta": True, "scale": False}
    with out.open("rb") as file:
        block = file.read(512)
    assert block.startswith(
        b"landscapex result 1; the rest is HDF5 (NetCDF-4)\nSHA-256 of the bytes"
    )


def test_a_result_is_on_the_disk_before_it_takes_its_name_and_so_is_the_name(
    out, dataset, monkeypatch
):
    events = []
    fsync, rename = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        events.append("replace")
        assert source.read_bytes().startswith(store.MAGIC)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    store.write_dataset(dataset, out)
    assert events == ["file", "replace", "folder"]


def test_the_same_dataset_gives_the_same_bytes(tmp_path, dataset):
    a, b = (store.write_dataset(dataset, tmp_path / name).read_bytes() for name in "ab")
    assert a == b


def test_the_dataset_of_the_caller_is_not_touched(out, dataset):
    before = dataset.copy(deep=True)
    dataset["loss"].encoding = {"dtype": "float32"}
    store.write_dataset(dataset, out)
    assert dataset["loss"].encoding == {"dtype": "float32"}
    xr.testing.assert_identical(dataset, before)
    xr.testing.assert_identical(store.read_dataset(out), before)


def test_trap_07_a_dataset_keeps_nan_payloads(out):
    raw = np.array([0x7FF8000000000000, 0xFFF8000000000123, 0x7FF0000000000000, 1 << 63], np.uint64)
    store.write_dataset(xr.Dataset({"loss": ("alpha", raw.view(np.float64))}), out)
    assert bits(store.read_dataset(out)["loss"].values) == raw.tolist()


def test_attributes_may_be_longer_than_hdf5_likes(out):
    text = json.dumps({"notes": ["ü" * 300_000]})
    store.write_dataset(xr.Dataset(attrs={"provenance": text}), out)
    assert store.read_dataset(out).attrs["provenance"] == text


def test_large_variables_are_stored_in_slabs(out):
    values = np.arange(3_000_000.0).reshape(3, 1000, 1000)
    store.write_dataset(xr.Dataset({"loss": (("alpha", "beta", "gamma"), values)}), out)
    with h5py.File(out) as file:
        assert file["loss"].chunks == (1, 1000, 1000)
    assert np.array_equal(store.read_dataset(out)["loss"].values, values)


@pytest.mark.parametrize("place", [0, 60, 200, 511, 512, 700, -1])
def test_fault_07_one_flipped_bit_is_found_before_hdf5_sees_a_byte(
    out, dataset, monkeypatch, place
):
    data = bytearray(store.write_dataset(dataset, out).read_bytes())
    data[place] ^= 1
    out.write_bytes(data)
    monkeypatch.setattr(store.h5netcdf, "File", lambda *args, **kw: pytest.fail("HDF5 was asked"))
    with pytest.raises(CorruptFileError, match=r"SHA-256|must be a result of landscapex"):
        store.read_dataset(out)


def test_a_plain_hdf5_file_with_our_hash_is_refused_as_ours(out):
    data = b"this is no HDF5 file"
    out.write_bytes(store._user_block(data) + data)
    with pytest.raises(CorruptFileError, match="is not a result of landscapex"):
        store.read_dataset(out)


def test_files_that_are_not_results_are_refused(tmp_path):
    with h5netcdf.File(io.BytesIO(), "w") as file:
        file.dimensions = {"x": 1}
    plain = tmp_path / "plain.nc"
    xr.Dataset({"loss": ("alpha", np.zeros(3))}).to_netcdf(plain, engine="h5netcdf")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("a,b\n1,2\n")
    for name, message in {
        "plain.nc": r"must be a result of landscapex, got one that begins with b'\\x89HDF",
        "empty": "must be a result of landscapex, got an empty file",
        "text": "must be a result of landscapex, got one that begins with b'a,b",
        "fifo": "must be a regular file",
        "missing": "could not be read: No such file or directory",
        ".": "must be a regular file",
    }.items():
        with pytest.raises(CorruptFileError, match=message):
            store.read_dataset(tmp_path / name)


@pytest.mark.parametrize("count", [400])
def test_fault_07_damaged_results_give_our_errors_or_the_same_numbers(out, dataset, count):
    data = store.write_dataset(dataset, out).read_bytes()

    def check(path: Path) -> bool:
        return store.read_dataset(path).identical(dataset)

    reads = read_damaged(data, out, check, count)
    assert (reads.wrong, reads.foreign) == (0, 0)
    assert reads.refused == count
    assert reads.slowest < 5


@pytest.mark.parametrize("count", [400])
def test_fault_07_damaged_journals_give_our_errors_or_the_same_numbers(out, count):
    path = begun(out, 15)
    data = path.read_bytes()

    def right(done: np.ndarray, values: np.ndarray) -> bool:
        return bits(values[done]) == bits(VALUES[done]) and bool(np.isnan(values[~done]).all())

    def check(path: Path) -> bool:
        header, done, values = store.read_journals(path)
        with Journal.open(out, HEADER) as j:  # cuts
            resumed = right(j.done, j.values)
        return header == HEADER and right(done, values) and resumed

    reads = read_damaged(data, path, check, count)
    assert (reads.wrong, reads.foreign) == (0, 0)
    assert min(reads.refused, reads.same) > 0.1 * count  # a header is a third of this file
    assert reads.slowest < 5


# Fault 28


def weird_places(folder: Path) -> dict[str, tuple[str | Path, int]]:
    loop = folder / "loop"
    loop.symlink_to(loop)
    (folder / "file").touch()
    os.mkfifo(folder / "fifo")
    return {
        "must be a file, got the folder": (folder, errno.EISDIR),
        "create .*nowhere first": (folder / "nowhere" / "s.nc", errno.ENOENT),
        "Too many levels of symbolic links": (loop, errno.ELOOP),
        "symbolic links|folder that exists": (loop / "s.nc", errno.ELOOP),
        "File name too long": (folder / ("x" * 300), errno.ENAMETOOLONG),
        "Not a directory": (folder / "file" / "s.nc", errno.ENOTDIR),
        "must be a regular file, got /dev/null": ("/dev/null", errno.EINVAL),
        "must be a regular file, got .*fifo": (folder / "fifo", errno.EINVAL),
        "must be the name of a file, got ''": ("", errno.EINVAL),
        r"must be the name of a file, got 'a\\x00b'": ("a\0b", errno.EINVAL),
    }


def test_fault_28_a_place_that_cannot_be_written_is_refused_at_the_start(tmp_path, dataset):
    for message, (place, code) in weird_places(tmp_path).items():
        before = sorted(os.listdir(tmp_path))
        for use in (lambda p: Journal.open(p, HEADER), lambda p: store.write_dataset(dataset, p)):
            with pytest.raises(OutputError, match=message) as caught:
                use(place)
            assert caught.value.errno == code
        assert sorted(os.listdir(tmp_path)) == before


def test_fault_28_a_name_with_no_room_for_the_journals_is_refused(tmp_path):
    with pytest.raises(OutputError, match="File name too long"):
        Journal.open(tmp_path / ("x" * 250), HEADER)
    assert os.listdir(tmp_path) == []


def test_fault_28_a_folder_without_permission_is_refused_at_the_start(dataset):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        os.chmod(folder, 0o755)
        closed = Path(folder, "closed")
        closed.mkdir(0o555)
        with unprivileged():
            for use in (
                lambda: Journal.open(closed / "s.nc", HEADER),
                lambda: store.write_dataset(dataset, closed / "s.nc"),
            ):
                with pytest.raises(OutputError, match="no permission to write") as caught:
                    use()
                assert caught.value.errno == errno.EACCES


def test_fault_28_a_journal_that_belongs_to_somebody_else(dataset):
    if os.geteuid() != 0:
        pytest.skip("only root can make a file that is somebody else's")
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        out = Path(folder, "s.nc")
        begun(out, 8)
        with unprivileged(), pytest.raises(OutputError, match="Permission denied"):
            Journal.open(out, HEADER)
        Journal.open(out, HEADER).close()


@pytest.mark.parametrize(
    "name", ["ünïcödé ‖d‖.nc", "with space.nc", "s*[0-9]?.nc", "no-suffix", "."]
)
def test_fault_28_unusual_names_work(tmp_path, dataset, name):
    out = tmp_path / (name if name != "." else "./sub/../s.nc")
    (tmp_path / "sub").mkdir()
    (tmp_path / "s5.nc.journal").write_text("not ours")
    begun(out, 15)
    assert store.read_journals(out)[1].all()
    store.write_dataset(dataset, out)
    store.remove_journals(out)
    xr.testing.assert_identical(store.read_dataset(out), dataset)
    assert (tmp_path / "s5.nc.journal").exists()


def test_fault_28_a_link_is_written_through_and_shares_the_lock(tmp_path, dataset):
    real, link = tmp_path / "real.nc", tmp_path / "link.nc"
    link.symlink_to(real)
    with Journal.open(link, HEADER) as j:
        assert j.path == tmp_path / "real.nc.journal"
        with pytest.raises(OutputError, match="two runs at once"):
            Journal.open(real, HEADER)
    store.write_dataset(dataset, link)
    assert link.is_symlink()
    xr.testing.assert_identical(store.read_dataset(real), dataset)


def test_fault_28_the_name_of_a_journal_is_not_the_name_of_a_result(tmp_path):
    for name in ("s.nc.journal", "s.nc.journal.shard0of2"):
        with pytest.raises(OutputError, match="`out` must name the result, not its journal"):
            Journal.open(tmp_path / name, HEADER)


def test_a_path_must_be_a_path():
    for path in (3, None, b"s.nc"):
        with pytest.raises(ArgumentTypeError, match="`path` must be a string or a Path, got"):
            store.read_dataset(path)


def test_a_result_is_readable_by_whom_the_umask_says(out, dataset):
    before = os.umask(0o027)
    try:
        store.write_dataset(dataset, out)
    finally:
        os.umask(before)
    assert stat.S_IMODE(out.stat().st_mode) == 0o640


# Shards, and reading what others write


def test_shards_are_joined_and_overlap_is_allowed_if_it_agrees(out):
    for i in range(3):
        with Journal.open(out, HEADER, shard=(i, 3)) as j:
            assert j.path == out.with_name(f"s.nc.journal.shard{i}of3")
            for c, start in enumerate(range(0, 15, CHUNK)):
                if c % 3 == i:
                    j.append(start, VALUES[start : start + CHUNK])
    with Journal.open(out, HEADER) as j:
        j.append(3, VALUES[3:6])
    assert [p.name[len("s.nc.journal") :] for p in store.find_journals(out)] == [
        "", ".shard0of3", ".shard1of3", ".shard2of3",
    ]  # fmt: skip
    header, done, values = store.read_journals(out)
    assert header == HEADER
    assert done.all()
    assert bits(values) == bits(VALUES)


def test_shards_of_one_run_may_be_written_at_once_and_are_in_order(out):
    journals = [Journal.open(out, HEADER, shard=(i, 12)) for i in reversed(range(12))]
    assert [p.name.partition("shard")[2] for p in store.find_journals(out)] == [
        f"{i}of12" for i in range(12)
    ]
    for j in journals:
        j.close()


def test_shards_of_different_runs_are_never_joined(out):
    begun(out, 4, shard=(0, 2))
    begun(out, 4, make_header(3, 5, fingerprint={"parameters": "0"}), shard=(1, 2))
    with pytest.raises(ResumeMismatchError, match=r"shard1of2 belongs to another run"):
        store.read_journals(out)


def test_journals_that_disagree_are_never_joined(out):
    begun(out, 4, shard=(0, 2))
    with Journal.open(out, HEADER, shard=(1, 2)) as j:
        j.append(3, np.nextafter(VALUES[3:5], np.inf))
    with pytest.raises(ResumeMismatchError, match=r"shard1of2 must agree .*points \[3\]"):
        store.read_journals(out)


def test_shards_that_ran_otherwise_are_joined_with_a_note(out):
    begun(out, 4, shard=(0, 2))
    begun(out, 4, make_header(3, 5, recorded={"threads": 5}), shard=(1, 2))
    header, _, _ = store.read_journals(out)
    note = "threads was 2 for the first points and 5 for later ones"
    assert header.provenance["notes"] == ["made by a test", note]


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_a_shard_must_be_a_part(out, shard):
    with pytest.raises(ArgumentError, match=r"`shard` must be \(i, n\) with 0 <= i < n, got"):
        Journal.open(out, HEADER, shard=shard)


def test_a_journal_under_the_name_of_another_shard_is_refused(out):
    begun(out, 4, shard=(0, 2)).rename(out.with_name("s.nc.journal.shard1of2"))
    with pytest.raises(ResumeMismatchError, match=r"shard: \[0, 2\] -> \(1, 2\)"):
        Journal.open(out, HEADER, shard=(1, 2))


def test_a_journal_can_be_read_while_it_is_written(out):
    with Journal.open(out, HEADER) as j, warnings.catch_warnings():
        warnings.simplefilter("error")
        for start in range(0, 12, CHUNK):
            j.append(start, VALUES[start : start + CHUNK])
            _, done, values = store.read_journals(j.path)
            assert done.sum() == start + CHUNK
            assert bits(values[done]) == bits(VALUES[done])
        data = j.path.read_bytes()
        j.path.write_bytes(data[:-9])  # as if the writer were in the middle of a line
        assert store.read_journals(out)[1].sum() == 8
        assert j.path.read_bytes() == data[:-9]
        j.path.write_bytes(data)


def test_no_journal_at_all(out):
    for place in (out, out.with_name("s.nc.journal"), out.parent / "nowhere" / "s.nc"):
        with pytest.raises(CorruptFileError, match="does not exist, and there is no journal") as e:
            store.read_journals(place)
        assert e.value.errno == errno.ENOENT


def test_removing_journals_leaves_other_runs_and_living_locks(out):
    begun(out, 4, shard=(0, 3))
    begun(out, 4, make_header(3, 5, fingerprint={}), shard=(1, 3))
    lock_of(out, pid=dead_pid()).rename(out.with_name("s.nc.journal.shard0of3.lock"))
    out.with_name("s.nc.journal.shard2of3").write_text("damaged")
    store.remove_journals(out, HEADER)
    names = ["s.nc.journal.shard1of3", "s.nc.journal.shard2of3"]
    assert sorted(os.listdir(out.parent)) == names
    with Journal.open(out, HEADER) as j:
        store.remove_journals(out)
        assert os.listdir(out.parent) == [f"{j.path.name}.lock"]
    store.remove_journals(out)
    assert os.listdir(out.parent) == []


# Headers


def test_a_header_survives_json_with_the_bits_of_its_coordinates():
    axis = AxisInfo("alpha", (-0.1, 0.1 + 0.2, 5e-324), "ü", "1 = ‖w‖")
    provenance = {"center": {"loss": np.float64(0.1)}, "t": (1, np.int64(2)), "a": np.zeros(2)}
    header = RunHeader("line", (axis,), ("loss",), {"a": "b"}, {"x": None}, provenance)
    again = RunHeader.from_json(header.to_json())
    assert again == header
    assert bits(np.array(again.axes[0].values)) == bits(np.array(axis.values))
    assert again.provenance == {"center": {"loss": 0.1}, "t": [1, 2], "a": [0.0, 0.0]}
    assert "\n" not in header.to_json()


def test_a_header_does_not_share_the_dicts_it_was_made_of():
    notes = ["first"]
    header = make_header(3, provenance={"notes": notes})
    notes.append("second")
    assert header.provenance == {"notes": ["first"]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "volume"}, "`kind` must be 'surface' for 2 axes, got 'volume'"),
        ({"axes": ()}, r"`axes` must be the first of \('alpha', 'beta', 'gamma'\), got \(\)"),
        ({"axes": AXES[::-1]}, r"`axes` must be the first of .* got \('beta', 'alpha'\)"),
        ({"columns": ()}, r"`columns` must begin with 'loss', got \(\)"),
        ({"columns": ("accuracy", "loss")}, "`columns` must begin with 'loss', got"),
        ({"columns": ("loss", "a", "a")}, "`columns` must differ from each other, got"),
        ({"columns": ("loss", "beta")}, "`columns` must not use the name 'beta': it is taken"),
        ({"columns": ("loss", "evaluated")}, "must not use the name 'evaluated'"),
        ({"columns": ("loss", "top/5")}, "hold no slash or control character, got 'top/5'"),
        ({"columns": ("loss", "")}, "`columns` must be names that begin with a letter"),
        ({"columns": ("loss", ".")}, "`columns` must be names that begin with a letter"),
        ({"columns": ("loss", "x ")}, "`columns` must be names that begin with a letter"),
        ({"recorded": {"x": object()}}, "`recorded` must be made of JSON values: object is not"),
        ({"provenance": [1]}, "`provenance` must be a mapping, got list"),
    ],
)
def test_a_header_that_does_not_fit_together_is_refused(changed, message):
    with pytest.raises(ArgumentError, match=message):
        make_header(3, 5, **changed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("delta", (0.0,)), "`name` must be one of .* got 'delta'"),
        (("alpha", ()), "`values` of axis alpha must be one or more finite numbers"),
        (("alpha", (0.0, np.nan)), "`values` of axis alpha must be one or more finite numbers"),
    ],
)
def test_an_axis_that_is_none_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        AxisInfo(*arguments)


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '{"axes": 3}', '{"axes": [{}]}', "{}", "[" * 99999]
)
def test_text_that_is_no_header_is_refused(text):
    with pytest.raises(ArgumentError, match="`text` must be the JSON of a header"):
        RunHeader.from_json(text)


# Trap 41


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/landscapex-payload-ran"),))


def test_trap_41_no_pickle_is_read_or_written(out, dataset, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("pickle was used")

    data = pickle.dumps(Payload())
    for name in ("load", "loads", "dump", "dumps", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    begun(out, 15)
    store.read_journals(out)
    store.write_dataset(dataset, out)
    store.read_dataset(out)
    out.write_bytes(data)
    out.with_name("s.nc.journal").write_bytes(data)
    for use in (store.read_dataset, store.read_journals):
        with pytest.raises(CorruptFileError):
            use(out)
    assert not Path("/tmp/landscapex-payload-ran").exists()


def test_every_error_is_one_of_ours_and_one_of_pythons():
    for kind in (OutputError, CorruptFileError):
        assert issubclass(kind, LandscapexError)
        assert issubclass(kind, OSError)
    assert issubclass(ResumeMismatchError, ValueError)


def test_global_generators_are_left_alone(out, dataset, generators_untouched):
    begun(out, 15)
    store.write_dataset(dataset, out)
    store.read_dataset(out)
