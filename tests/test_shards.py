"""Runs that were cut into shards: joined by the last, taken up by others, never mixed."""

from __future__ import annotations

import contextlib
import errno
import itertools
import subprocess
import sys

import models
import numpy as np
import pytest
import storage
import torch
from evaluate_cases import BATCH, QUIET, interrupted, mse, raised, small
from hypothesis import given, settings
from hypothesis import strategies as st

import landscapex as lx
from landscapex.errors import (
    ArgumentError,
    CorruptFileError,
    LandscapexWarning,
    OutputError,
    ResumeMismatchError,
)
from landscapex.grids import filling
from landscapex.storage import journal, opening, parts
from landscapex.storage.journal import Journal
from landscapex.storage.journal_lines import parse
from landscapex.storage.lock import FileLock

EVERY = range(77)  # points of `small`


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def points_of(*shards):
    """What these shards compute: every n-th chunk of 16."""
    return [k for k in EVERY if any(k // 16 % n == i for i, n in shards)]


def evaluated(surface):
    return np.flatnonzero(surface.evaluated.ravel()).tolist()


@settings(deadline=None, max_examples=8)
@given(st.integers(1, 3), st.randoms(use_true_random=False))
def test_the_same_bits_from_any_number_of_shards(tmp_path_factory, n, random):
    """The last one joins them, whichever that is."""
    truth = small()
    out = tmp_path_factory.mktemp("shards") / "s.nc"
    order = [(i, n) for i in range(n)]
    random.shuffle(order)
    for k, (i, _) in enumerate(order):
        part = small(out=out, shard=random.choice([(i, n), f"{i}/{n}"]))
        assert evaluated(part) == points_of(*order[: k + 1])
    assert names(out.parent) == ["s.nc"]
    assert part.path == out
    for result in (part, lx.open(out), lx.merge(out)):
        assert raised(result) == raised(truth)
        assert result.equals(truth)


def test_a_sharded_run_goes_on_where_it_stopped(tmp_path):
    out = tmp_path / "s.nc"
    done = interrupted(out, 2, shard="0/2")
    assert done < 16 + 16 + 13
    small(out=out, shard="1/2")
    with pytest.warns(LandscapexWarning, match="missing"):
        partial = lx.merge(out)
    assert partial.evaluated.sum() == done + 32
    small(out=out, shard="0/2")
    assert lx.open(out).equals(small())
    assert names(tmp_path) == ["s.nc"]


shard_runs = st.integers(1, 4).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(1, 2))))
)


@settings(deadline=None, max_examples=12)
@given(st.lists(shard_runs, max_size=2), st.integers(1, 4))
def test_any_split_takes_up_what_another_left(tmp_path_factory, earlier, n):
    """No point is computed twice, whoever died how and with how many others."""
    out = tmp_path_factory.mktemp("dead") / "s.nc"
    computed = []

    def count(progress):
        computed.extend(map(tuple, progress.coordinates))

    for parts_before, deaths in earlier:
        for i, chunks in deaths:
            left = itertools.count(1 - chunks)

            def die(progress, left=left):
                count(progress)
                if next(left) >= 0:
                    raise StopIteration

            with contextlib.suppress(StopIteration):
                small(out=out, shard=(i, parts_before), callback=die)
    if out.exists():  # a part was all that was left
        assert lx.open(out).equals(small())
    for i in range(n):
        result = small(out=out, shard=None if n == 1 else (i, n), callback=count)
    assert result.complete
    assert raised(result) == raised(small())
    assert len(computed) == len(set(computed)) == 77
    assert names(out.parent) == ["s.nc"]


def test_a_whole_run_takes_up_what_shards_left(tmp_path):
    out, seen = tmp_path / "s.nc", []
    small(out=out, shard=(1, 3))
    interrupted(out, 1, shard=(2, 3))
    told = lx.open(out).evaluated.sum()
    result = small(out=out, callback=lambda p: seen.append(p.done))
    assert seen[0] > told
    assert result.equals(small())
    assert names(tmp_path) == ["s.nc"]


def test_fault_22_merge_says_whose_points_are_missing(tmp_path, monkeypatch):
    out = tmp_path / "s.nc"
    small(out=out, shard=(0, 4))
    monkeypatch.setattr(filling, "BLOCK_SECONDS", 0.0)  # one point after the other
    done = interrupted(out, 3, shard=(2, 4))
    assert done == 3
    with pytest.warns(LandscapexWarning) as caught:
        partial = lx.merge(out)
    said = str(caught[0].message)
    assert f"{48 - done} of 77 points of {out} are still missing" in said
    assert (
        f": 16 of 16 of part 1/4, which has no journal; {16 - done} of 16 of part 2/4; "
        "16 of 16 of part 3/4, which has no journal."
    ) in said
    assert evaluated(partial) == sorted([*points_of((0, 4)), *range(32, 32 + done)])
    interrupted(out, 1)  # now it is not split any more
    with pytest.warns(LandscapexWarning, match=r"still missing\. Their journals stay"):
        lx.merge(out)


def test_partial_results_of_all_parts_open_while_one_goes_on(tmp_path):
    out, seen = tmp_path / "s.nc", []
    small(out=out, shard=(0, 2))
    truth = small()

    def look(progress):
        for path in (out, tmp_path / "s.nc.journal.shard1of2"):
            partial = lx.open(path)
            assert partial.evaluated.sum() == 45 + progress.done
            assert np.array_equal(partial.loss[partial.evaluated], truth.loss[partial.evaluated])
        seen.append(progress.done)

    small(out=out, shard=(1, 2), callback=look)
    assert seen[-1] == 32


def test_fault_05_a_part_of_another_run_is_never_mixed_in(tmp_path):
    """Found at the start, not after hours; and nothing is left of the one that was refused."""
    out = tmp_path / "s.nc"
    interrupted(out, 1, shard=(0, 2))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for shard in ((1, 2), (1, 3), None):
        with pytest.raises(ResumeMismatchError, match=r"(?s)shard0of2 belongs.*directions: .*seed"):
            small(out=out, shard=shard, seed=1)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_fault_05_models_that_differ_are_found_although_they_begin_at_once(tmp_path, monkeypatch):
    """Both look for the other before either has a journal: models that nobody seeded."""
    out, opened = tmp_path / "s.nc", Journal.open

    def opened_together(path, header, **options):
        if options["shard"] == (1, 2):
            monkeypatch.undo()
            interrupted(out, 1, shard=(0, 2))
        return opened(path, header, **options)

    monkeypatch.setattr(Journal, "open", opened_together)
    with pytest.raises(ResumeMismatchError, match=r"(?s)parameters: .*All parts of a run must"):
        lx.surface(
            models.mlp(3, 4, 1, seed=1), BATCH, mse, points=(7, 11), out=out, shard=(1, 2), **QUIET
        )
    assert names(tmp_path) == ["s.nc.journal.shard0of2"]


def test_fault_06_another_split_at_the_same_time_is_refused(tmp_path):
    out = tmp_path / "s.nc"

    def nested(progress):
        for shard in (None, (1, 3)):
            with pytest.raises(OutputError, match="two runs at once: this very process") as caught:
                lx.surface(
                    models.mlp(3, 4, 1), BATCH, mse, points=(7, 11), out=out, shard=shard, **QUIET
                )
            assert caught.value.errno == errno.EBUSY
        other = models.mlp(3, 4, 1)  # the other half of the same split may go on
        lx.surface(other, BATCH, mse, points=(7, 11), out=out, shard=(1, 2), **QUIET)

    def once(progress, left=[1]):  # noqa: B006
        if left:
            left.pop()
            nested(progress)

    small(out=out, shard=(0, 2), callback=once)
    assert names(tmp_path) == ["s.nc"]
    assert lx.open(out).equals(small())


@pytest.mark.parametrize("shard", [None, (0, 2)])
def test_fault_06_who_is_refused_and_does_not_use_torchrun_hears_nothing_of_it(tmp_path, shard):
    out = tmp_path / "s.nc"
    path = journal.journal_path(out, shard)
    lock = FileLock(path.with_name(f"{path.name}.lock"), out)
    with pytest.raises(OutputError, match="two runs at once: this very process") as caught:
        small(out=out, shard=shard, points=(2, 2))
    assert not hasattr(caught.value, "__notes__")
    lock.release()


def test_a_dead_process_does_not_keep_another_split_from_going_on(tmp_path):
    out = tmp_path / "s.nc"
    interrupted(out, 1, shard=(0, 2))
    lock = storage.lock_of(out, pid=storage.dead_pid())
    lock.rename(tmp_path / "s.nc.journal.shard0of2.lock")
    assert small(out=out).complete
    assert names(tmp_path) == ["s.nc"]


def test_two_that_finish_at_once_join_them_one_after_the_other(tmp_path, monkeypatch):
    """The second finds that there is nothing left to do."""
    out = tmp_path / "s.nc"
    for i in range(2):
        assert not small(out=tmp_path / f"{i}.nc", shard=(i, 2)).complete
        kept = tmp_path / f"{i}.nc.journal.shard{i}of2"
        kept.rename(tmp_path / f"s.nc.journal.shard{i}of2")
    written, nested = [], []
    save = lx.Surface.save

    def saving(self, path):
        code = f"import landscapex as lx; print(lx.merge({str(out)!r}).complete)"
        command = [sys.executable, "-W", "ignore", "-c", code]
        nested.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        with pytest.raises(subprocess.TimeoutExpired):  # it waits for us
            nested[0].wait(4)
        saved = save(self, path)
        written.append(saved.stat().st_ino)
        return saved

    monkeypatch.setattr(lx.Surface, "save", saving)
    assert lx.merge(out).complete
    printed, _ = nested[0].communicate(timeout=60)
    assert printed == "True\n"
    assert written == [out.stat().st_ino]  # by us, and nobody after us
    assert names(tmp_path) == ["s.nc"]


def test_a_part_that_was_joined_by_others_meanwhile_opens_the_result(tmp_path, monkeypatch):
    out, read = tmp_path / "s.nc", parts.read_file
    small(out=out, shard=(0, 2))
    whole = tmp_path / "whole.nc"
    small(out=whole)

    def joined_meanwhile(path, **options):
        if path.name.endswith("shard0of2") and whole.exists():
            for journal in tmp_path.glob("*.journal.*"):
                journal.unlink()
            whole.rename(out)
        return read(path, **options)

    monkeypatch.setattr(parts, "read_file", joined_meanwhile)
    assert lx.merge(out).equals(small())


def test_what_a_process_left_that_died_after_the_join_is_deleted(tmp_path):
    """It had written the result, and not yet deleted every journal."""
    out = tmp_path / "s.nc"
    small(out=tmp_path / "t.nc", shard=(0, 2))
    (tmp_path / "t.nc.journal.shard0of2").rename(tmp_path / "s.nc.journal.shard0of2")
    lock = storage.lock_of(out, pid=storage.dead_pid())
    lock.rename(tmp_path / "s.nc.journal.shard0of2.lock")
    small(out=tmp_path / "whole.nc").path.rename(out)
    assert lx.merge(out).equals(small())
    assert names(tmp_path) == ["s.nc"]


@pytest.mark.parametrize("look", [1, 2])  # the first is for threads and batches
def test_a_journal_that_vanishes_at_the_start_is_no_error(tmp_path, monkeypatch, look):
    """Somebody else joined it, between the look for it and the look into it."""
    out, read, looks = tmp_path / "s.nc", parts.read_file, itertools.count(1)
    small(out=out, shard=(0, 2))

    def vanishing(path, **options):
        if next(looks) == look:
            path.unlink()
        return read(path, **options)

    monkeypatch.setattr(parts, "read_file", vanishing)
    assert small(out=out).equals(small())
    assert next(looks) > look


def test_what_a_run_takes_over_is_read_without_its_points(tmp_path, monkeypatch):
    out, read = tmp_path / "s.nc", []
    small(out=out, shard=(0, 2))
    path = tmp_path / "s.nc.journal.shard0of2"
    header = parse(path.read_bytes(), path).header
    monkeypatch.setattr(
        parts, "parse", lambda data, path: (read.append(data), parse(data, path))[1]
    )
    (tmp_path / "s.nc.journal").write_bytes(b"")
    assert parts.read_header(out) == header
    parts.remove_journals(out, header)
    assert names(tmp_path) == []
    assert read == 2 * [read[0]]
    assert read[0].count(b"\n") == 1
    assert parts.read_header(out) is None


def test_nobody_else_joins_while_a_whole_run_is_put_away(tmp_path, monkeypatch):
    out, save, seen = tmp_path / "s.nc", lx.Surface.save, []

    def saving(self, path):
        with pytest.raises(OutputError, match="two runs at once: this very process"):
            FileLock(tmp_path / "s.nc.lock", out)
        seen.append(names(tmp_path))
        return save(self, path)

    monkeypatch.setattr(lx.Surface, "save", saving)
    small(out=out)
    assert seen == [["s.nc.journal", "s.nc.lock"]]
    assert names(tmp_path) == ["s.nc"]


def test_who_waited_to_join_looks_again_at_what_is_there(tmp_path, monkeypatch):
    """The run that he found complete was joined and deleted, and another has begun."""
    out, exclusive = tmp_path / "s.nc", opening._exclusive
    for i in range(2):
        small(out=tmp_path / f"{i}.nc", shard=(i, 2))
        kept = tmp_path / f"{i}.nc.journal.shard{i}of2"
        kept.rename(tmp_path / f"s.nc.journal.shard{i}of2")

    def waiting(result):
        monkeypatch.undo()
        for path in tmp_path.iterdir():
            path.unlink()
        interrupted(out, 1, seed=1)
        return exclusive(result)

    monkeypatch.setattr(opening, "_exclusive", waiting)
    with pytest.warns(LandscapexWarning, match="are still missing"):
        assert lx.merge(out).provenance["seed"] == 1
    assert names(tmp_path) == ["s.nc.journal"]


@pytest.mark.parametrize(
    ("owner", "step"), [(journal, "read_file"), (journal.os, "truncate"), (journal.os, "open")]
)
def test_a_journal_that_is_joined_while_its_run_goes_on_begins_anew(
    tmp_path, monkeypatch, owner, step
):
    """Between any two looks at it; the points are in the result by then."""
    path = storage.begun(tmp_path / "s.nc", 8)
    do = getattr(owner, step)

    def joined_just_now(given, *arguments):
        if given == path:
            monkeypatch.undo()
            path.unlink()
        return do(given, *arguments)

    monkeypatch.setattr(owner, step, joined_just_now)
    with Journal.open(tmp_path / "s.nc", storage.HEADER) as opened:
        assert not opened.done.any()
        storage.fill(opened, storage.VALUES)
    _, done, values = parts.read_journals(tmp_path / "s.nc")
    assert done.all()
    assert np.array_equal(values, storage.VALUES, equal_nan=True)


def test_without_resume_a_part_starts_over_and_nothing_is_joined(tmp_path):
    """Journals of the others may be of the run that is replaced."""
    out, seen = tmp_path / "s.nc", []
    small(out=out, shard=(0, 2))
    interrupted(out, 1, shard=(1, 2))
    part = small(out=out, shard=(1, 2), resume=False, callback=lambda p: seen.append(p.done))
    assert seen[-1] == 32
    assert evaluated(part) == points_of((1, 2))
    assert not out.exists()
    assert lx.merge(out).equals(small())


def test_a_journal_that_a_power_cut_emptied_counts_for_nothing(tmp_path):
    out = tmp_path / "s.nc"
    interrupted(out, 1, shard=(0, 3))
    (tmp_path / "s.nc.journal.shard1of3").write_bytes(b"\0" * 100)
    with pytest.warns(LandscapexWarning, match=r"shard1of3 is empty, as a power cut may leave it"):
        result = small(out=out)
    assert result.equals(small())
    (tmp_path / "s.nc").unlink()
    (tmp_path / "s.nc.journal.shard2of3").write_bytes(b"")
    with pytest.warns(LandscapexWarning), pytest.raises(CorruptFileError, match="is empty"):
        lx.open(out)


@pytest.mark.parametrize("shard", [None, (1, 2)])
@pytest.mark.parametrize("left", [b"", b"\0" * 100])
def test_the_only_journal_there_is_may_have_been_emptied(tmp_path, shard, left):
    """It is one's own, or that of the only other part; when all is done, it goes as well."""
    out = tmp_path / "s.nc"
    for name in ("s.nc.journal", "s.nc.journal.shard0of2"):
        (tmp_path / name).write_bytes(left)
        with pytest.warns(LandscapexWarning, match="empty, as a power cut may leave it"):
            part = small(out=out, shard=shard)
        if shard is None:
            assert names(tmp_path) == ["s.nc"]
            assert small(out=out).equals(small())  # the finished result, without a complaint
            out.unlink()
        else:
            assert evaluated(part) == points_of(shard)


def test_fault_22_points_of_another_grid_are_not_taken_for_done(tmp_path):
    """Its journals lie beside the result that they will replace: same model, same directions."""
    out = tmp_path / "s.nc"
    small(out=out)
    small(out=out, points=(7, 12), shard=(0, 2), resume=False)
    with pytest.warns(LandscapexWarning, match="36 of 84 points .* of part 1/2"):
        assert lx.merge(out).evaluated.sum() == 48
    assert names(tmp_path) == ["s.nc", "s.nc.journal.shard0of2"]
    small(out=out, points=(7, 12), shard=(1, 2))
    assert lx.open(out).equals(small(points=(7, 12)))
    assert names(tmp_path) == ["s.nc"]


def test_fault_05_parts_that_disagree_name_the_points(tmp_path):
    out = tmp_path / "s.nc"
    whole = tmp_path / "s.nc.journal"
    interrupted(out, 1)
    header = parse(whole.read_bytes(), whole).header
    done = int(lx.open(out).evaluated.sum())
    with Journal.open(out, header, shard=(0, 2)) as journal:
        values = np.array(lx.open(out).loss.ravel()[:done, None])
        values[12] = np.nextafter(values[12], 9)
        journal.append(0, values)
    with pytest.raises(
        ResumeMismatchError, match=rf"at 1 of {done} points, the first of them \[12\]"
    ):
        lx.open(out)


def test_fault_06_who_is_refused_after_both_began_leaves_nothing(tmp_path, monkeypatch):
    """Neither saw the other before it had a journal of its own."""
    out, opened = tmp_path / "s.nc", Journal.open

    def opened_together(path, header, **options):
        other = opened(path, header, **{**options, "shard": (0, 2)})
        stack.callback(other.close)
        return opened(path, header, **options)

    monkeypatch.setattr(Journal, "open", opened_together)
    with contextlib.ExitStack() as stack:
        with pytest.raises(OutputError, match="shard0of2 must not be written by two runs at once"):
            small(out=out)
        assert not (tmp_path / "s.nc.journal").exists()
    assert names(tmp_path) == ["s.nc.journal.shard0of2"]


def test_who_goes_on_in_another_way_says_so(tmp_path):
    out = tmp_path / "s.nc"
    small(out=out, shard=(0, 2), threads=2)
    result = small(out=out, threads=1)
    note = "threads was 2 for the first points and 1 for later ones"
    assert note in result.provenance["notes"]
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("shard", ["2/2", "-1/2", "0/0", (1, 1)])
def test_a_part_is_counted_from_0(shard):
    with pytest.raises(ArgumentError, match=r"0 <= i < n: parts are counted from 0, got"):
        small(shard=shard)


@pytest.mark.parametrize("shard", ["all", "1", 3, "1/2/3", (1, 2, 3), "a/b", (0.5, 2)])
def test_what_is_no_part_is_refused(shard):
    with pytest.raises(ArgumentError, match=r"`shard` must be 'i/n', \(i, n\) or 'auto', got"):
        small(shard=shard)
