"""Full disks, torn lines and damaged journals."""

from __future__ import annotations

import errno
import json
import os
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from storage import (
    HEADER,
    VALUES,
    begun,
    bits,
    file_size_limit,
    fill,
    make_header,
    make_values,
    read_damaged,
)

from landscapex.errors import (
    CorruptFileError,
    LandscapexWarning,
    OutputError,
)
from landscapex.grids.results import Surface
from landscapex.storage import files, journal, store
from landscapex.storage.store import Journal


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "s.nc"


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


def test_fault_03_nothing_is_written_behind_a_half_line_that_cannot_be_cut(out, monkeypatch):
    def torn(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[:20])
        raise OSError(errno.EIO, "Input/output error")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    j = Journal.open(out, HEADER)
    j.append(0, VALUES[:4])
    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_all", torn)
        patch.setattr(os, "ftruncate", refuse)
        with pytest.raises(OutputError, match="at point 4: Input/output error"):
            j.append(4, VALUES[4:8])
    size = j.path.stat().st_size
    for use in (lambda: j.append(4, VALUES[4:8]), j.sync, j.close):
        with pytest.raises(OutputError, match="could not be written: Read-only file system"):
            use()
    assert j.path.stat().st_size == size
    with pytest.warns(LandscapexWarning, match="ended in 20 bytes"), Journal.open(out, HEADER) as j:
        assert j.done.sum() == 4


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
    monkeypatch.setattr(os, "statvfs", lambda path: Status(f_bavail=3, f_frsize=7))
    files.check_space(out, 21)  # just enough
    with pytest.raises(OutputError, match="needs about 22 bytes, but only 21 are free"):
        files.check_space(out, 22)
    monkeypatch.setattr(os, "statvfs", lambda path: Status(f_bavail=0, f_blocks=0))
    Journal.open(out, HEADER).close()  # a file system that does not tell


@pytest.mark.parametrize("columns", [("loss",), ("loss", "accuracy", "error")])
def test_fault_03_the_room_that_a_run_asks_for_is_enough_and_not_much_more(out, columns):
    header = make_header(300, 100, columns=columns)
    values = -make_values(header) / 3  # long numbers
    everything = np.ones(len(values), dtype=bool)
    with Journal.open(out, header) as j:
        needed = journal._bytes_needed(header, j.done)
        empty = j.path.stat().st_size
        for start in range(0, len(values), 100):
            j.append(start, values[start : start + 100])
        lines = j.path.stat().st_size - empty
    Surface.from_run(header, everything, values).save(out)
    result = out.stat().st_size
    assert lines + result < needed < 5 * (lines + result)
    rest = journal._bytes_needed(header, everything)
    assert result < rest < 2 * result
    assert rest < needed


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
        (journal.first_line(HEADER, None).replace(b"loss", b"lost"), "must begin with the header"),
        (b"\0\n", "must begin with the header"),
    ],
)
def test_a_file_that_is_no_journal_is_refused(out, data, message):
    out.with_name("s.nc.journal").write_bytes(data)
    with pytest.raises(CorruptFileError, match=message):
        store.read_journals(out)


def test_an_empty_journal_alone_tells_nothing_of_a_run(out):
    out.with_name("s.nc.journal").write_bytes(b"")
    with pytest.warns(LandscapexWarning), pytest.raises(CorruptFileError, match="is empty, as a p"):
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
