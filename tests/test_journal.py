"""Journals: nothing acknowledged is lost, and no runs are mixed."""

from __future__ import annotations

import errno
import itertools
import json
import os
import struct
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from storage import (
    CHUNK,
    HEADER,
    VALUES,
    begun,
    bits,
    dead_pid,
    fill,
    kill_writers,
    lock_of,
    make_header,
    make_values,
)

from landscapex.errors import (
    ArgumentError,
    CorruptFileError,
    LandscapexWarning,
    OutputError,
    ResumeMismatchError,
)
from landscapex.grids.results import Surface
from landscapex.storage import journal, parts, store
from landscapex.storage.header import AxisInfo, RunHeader
from landscapex.storage.store import Journal


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "s.nc"


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
    payloads.append(0x7FF8000000000001)  # one bit from the NaN that needs no bits
    nans = struct.unpack("5d", struct.pack("5Q", *payloads))
    specials = [*nans, np.inf, -np.inf, -0.0, 5e-324]
    header = make_header(9, columns=("loss",))
    with Journal.open(out, header) as j:
        j.append(0, np.array(specials)[:, None])
    _, _, found = store.read_journals(out)
    assert bits(found)[:5] == payloads
    assert bits(found)[5:] == bits(np.array(specials[5:]))
    assert b'[["nan"],["nan:fff8000000000000"],' in j.path.read_bytes()


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


def test_nothing_that_was_appended_stays_off_the_disk_for_more_than_a_second(out, monkeypatch):
    waits = []

    class Timer(threading.Timer):
        def start(self) -> None:
            waits.append(self.interval)

    monkeypatch.setattr(journal.threading, "Timer", Timer)
    with Journal.open(out, HEADER) as j:
        assert waits == []
        fill(j, VALUES)
    assert 0 < max(waits) <= 1


def test_the_room_that_is_asked_for_is_enough_whatever_a_run_says_about_itself(out):
    header = make_header(3, 5, provenance={"notes": ["x" * 300_000]})
    needed = journal._bytes_needed(header, np.zeros(15, dtype=bool))
    with Journal.open(out, header) as j:
        fill(j, VALUES)
        written = j.path.stat().st_size
    written += Surface.from_run(header, j.done, j.values).save(out).stat().st_size
    assert written <= needed <= 1.2 * written


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
    with pytest.raises(ResumeMismatchError, match=r"shard1of2 must agree .*first of them \[3\]"):
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


def test_a_journal_that_cannot_be_deleted_is_an_output_error(out, monkeypatch):
    path = begun(out)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", refuse)
    message = f"{path} could not be deleted: Operation not permitted"
    with pytest.raises(OutputError, match=message) as caught:
        store.remove_journals(out)
    assert caught.value.errno == errno.EPERM


def test_only_a_run_that_was_split_lacks_parts(out):
    missing = np.zeros(15, dtype=bool)
    assert parts.say_missing(out, missing) == ""
    begun(out)
    assert parts.say_missing(out, missing) == ""
    begun(out, shard=(0, 2))
    os.utime(out.with_name("s.nc.journal"), (0, 0))
    assert parts.say_missing(out, missing) == "15 of 15 of part 0/2"


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
