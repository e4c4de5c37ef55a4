"""Journals beside each other: which of them are deleted, and how long those who join them wait."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from storage import HEADER, VALUES, begun, fill, make_header

from landscapex.errors import CorruptFileError, OutputError
from landscapex.grids.results import Surface
from landscapex.storage import opening, parts
from landscapex.storage.journal import Journal
from landscapex.storage.lock import FileLock


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "s.nc"


def test_only_journals_of_the_run_are_deleted_whatever_lies_before_them(out):
    """One of another run, one that cannot be read, and one that somebody else deletes."""
    another = make_header(3, 5, fingerprint={"parameters": "another"})
    mine = [begun(out, 4, shard=(i, 4)) for i in (1, 3)]
    kept = [begun(out, 4, another, shard=(0, 4)), begun(out, 4, shard=(2, 4))]
    kept[1].write_bytes(b"damaged" + kept[1].read_bytes())
    assert parts.find_journals(out) == sorted([*mine, *kept])
    parts.remove_journals(out, HEADER)
    assert parts.find_journals(out) == kept
    parts.remove_journals(out)
    assert os.listdir(out.parent) == []


def test_a_damaged_journal_beside_a_finished_result_is_not_passed_over(out):
    with Journal.open(out, HEADER) as j:
        fill(j, VALUES)
        Surface.from_run(HEADER, j.done, j.values).save(out)
    j.path.write_bytes(b"damaged" + j.path.read_bytes())
    before = j.path.read_bytes()
    with pytest.raises(CorruptFileError, match=r"s\.nc\.journal"):
        opening.merge(out)
    assert j.path.read_bytes() == before
    assert opening.open(out).complete


def test_who_joins_waits_half_a_minute_for_whoever_writes_the_result(out, monkeypatch):
    now, looks = [1000.0], []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(opening, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    with Journal.open(out, HEADER) as j:
        fill(j, VALUES)
    before = j.path.read_bytes()
    other = FileLock(out.with_name("s.nc.lock"), out)
    with pytest.raises(OutputError, match="two runs at once") as caught:
        opening.merge(out)
    assert caught.value.errno == errno.EBUSY
    assert sum(looks) == pytest.approx(30, abs=0.1)
    assert max(looks) < 0.2  # and goes on soon when it is written
    assert j.path.read_bytes() == before
    other.release()
    assert opening.merge(out).complete
