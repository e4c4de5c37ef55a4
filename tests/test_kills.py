"""Surfaces killed at random moments: nothing that was acknowledged is lost, no number is wrong."""

from __future__ import annotations

import os
import signal

import pytest
import tqdm.auto
from evaluate_cases import small
from reliability.kills import Kind, Zygote, survive

from landscapex._progress_bar import progress_bar
from landscapex.engine.native import unavailable

# 100 in all; a run of four processes takes longest
KILLS = [(Kind("eager", 1), 40), (Kind("eager", 4), 20)]
KILLS += [(Kind("compiled", 1), 25), (Kind("compiled", 4), 15)]


@pytest.fixture(scope="module")
def zygote():
    with Zygote() as started:
        yield started


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "count"), KILLS, ids=str)
def test_fault_01_killed_surfaces_lose_nothing_and_go_on_to_the_same_bits(
    kind, count, tmp_path, zygote
):
    if kind.engine == "compiled" and unavailable() is not None:
        pytest.skip("the compiled engine is not built")
    report = survive(kind, count, tmp_path / "runs", zygote)
    assert report.kept, report
    assert report.kills >= count, report


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fault_22_a_killed_process_does_not_hold_up_those_it_was_forked_with():
    """Bars of tqdm take a lock that is common to all of them, also bars that are not shown."""
    with progress_bar(disable=True):
        lock = tqdm.auto.tqdm.get_lock()
    pid = os.fork()
    if pid == 0:
        with progress_bar(disable=True):
            tqdm.auto.tqdm.get_lock().acquire()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    free = lock.locks[0].acquire(timeout=5)
    if free:
        lock.locks[0].release()
    else:  # other tests go on
        tqdm.auto.tqdm.set_lock(tqdm.std.TRLock())
    assert free


@pytest.mark.parametrize("shard", [None, (0, 2)])
def test_fault_01_what_a_run_left_that_died_deleting_its_journals_is_deleted(shard, tmp_path):
    out = tmp_path / "s.nc"
    small(out=out, shard=(1, 2))
    journal = next(tmp_path.glob("*.journal.*"))
    kept = journal.read_bytes()
    result = small(out=out)
    journal.write_bytes(kept)
    assert small(out=out, shard=shard).equals(result)
    assert [p.name for p in tmp_path.iterdir()] == ["s.nc"]
