"""The journals of one result, taken together: shards that go on, ended, or died.

Whoever works on a result reads the journals of all the others, however the run was split before,
and writes into its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from landscapex._arrays import same_bits
from landscapex._warnings import warn
from landscapex.errors import CorruptFileError, ResumeMismatchError
from landscapex.storage.files import check_path, fail, read_file, sync_folder
from landscapex.storage.header import RunHeader, differences, recorded_differences
from landscapex.storage.journal import (
    fail_missing,
    journal_path,
    refuse_run,
    result_path,
    shard_of,
    warn_of_damage,
)
from landscapex.storage.journal_lines import Contents, is_empty, parse
from landscapex.storage.lock import check_free, remove_stale_lock

CHUNK: Final = 16  # points per turn of a shard: part of the format of a run

Shard = tuple[int, int] | None
_SAME: Final = "All parts of a run must have the same model and data: seed what is random."


@dataclass(frozen=True)
class Elsewhere:
    """What is in the journals of others who work, or worked, on the same run.

    Attributes:
        done: ``(G,)`` bool.
        values: ``(G, M)`` float64, NaN where nothing is done.
        notes: Circumstances in which they differ, one sentence each.
    """

    done: np.ndarray
    values: np.ndarray
    notes: tuple[str, ...]


def owned(num_points: int, shard: Shard) -> list[tuple[int, int]]:
    """The points of a shard: every n-th chunk of `CHUNK` points, beginning with the i-th.

    Args:
        num_points: ``G``.
        shard: ``(i, n)``; None for all.

    Returns:
        Ranges (start, stop) in order.

    Example:
        >>> owned(40, (0, 2)), owned(40, (1, 2))
        ([(0, 16), (32, 40)], [(16, 32)])
    """
    i, n = shard or (0, 1)
    starts = range(i * CHUNK, num_points, n * CHUNK)
    return [(start, min(start + CHUNK, num_points)) for start in starts]


def find_journals(out: str | os.PathLike[str]) -> list[Path]:
    """All journals of a result: its own first, then those of shards in order.

    Args:
        out: The result, or one of its journals; it need not exist.

    Returns:
        Absolute paths.

    Raises:
        OutputError: If ``out`` is no path of a file.
    """
    result = result_path(check_path(out))
    try:
        names = os.listdir(result.parent)
    except OSError:
        return []
    paths = [result.with_name(name) for name in names if name != result.name]
    found = [path for path in paths if result_path(path) == result]
    return sorted(found, key=lambda path: [int(n) for n in re.findall(r"\d+", path.suffix)])


def read_journals(out: str | os.PathLike[str]) -> tuple[RunHeader, np.ndarray, np.ndarray]:
    """Read all journals of a result, also while they are being written; nothing is changed.

    Args:
        out: The result, or one of its journals.

    Returns:
        The header; ``(G,)`` bool: which points are done; ``(G, M)`` float64: their values, NaN
        elsewhere. If shards ran under different circumstances, the header's provenance notes it.

    Raises:
        CorruptFileError: If there is no journal, one cannot be read, or all are empty
            (``errno.ENODATA``).
        ResumeMismatchError: If the journals belong to different runs, or disagree on a point.
    """
    paths = find_journals(out)
    if not paths:
        fail_missing(check_path(out))
    header: RunHeader | None = None
    notes: dict[str, None] = {}
    for path, part in _contents(paths):
        if header is None:
            header, done, values = part.header, part.done, part.values
            continue
        if found := differences(header, part.header):
            refuse_run(path, found, f"The journals of {paths[0].name} are compared with it.")
        notes.update(dict.fromkeys(recorded_differences(header, part.header)))
        _add(path, part, done, values)
    if header is None:
        fail(f"{paths[0]} is empty, as a power cut may leave it.", errno.ENODATA, CorruptFileError)
    if notes:
        provenance = {**header.provenance}
        provenance["notes"] = [*provenance.get("notes", []), *notes]
        header = replace(header, provenance=provenance)
    return header, done, values


def read_header(out: str | os.PathLike[str]) -> RunHeader | None:
    """What is computed where journals are, without a look at their points.

    Args:
        out: The result, or one of its journals.

    Returns:
        The header of the first journal; None if there is none, or all are empty.

    Raises:
        CorruptFileError: If it cannot be read.
    """
    for path in find_journals(out):
        try:
            header = _header_of(path)
        except CorruptFileError as error:
            if error.errno == errno.ENOENT:  # joined by somebody else meanwhile
                continue
            raise
        if header is not None:
            return header
    return None


def read_elsewhere(
    out: str | os.PathLike[str], header: RunHeader, shard: Shard
) -> Elsewhere | None:
    """What others have done of a run, or do at this moment: they need not be done again.

    Args:
        out: The result.
        header: Of the run that wants to go on.
        shard: Its part, whose own journal is left out.

    Returns:
        Their points; None if there is no other journal.

    Raises:
        CorruptFileError: If a journal cannot be read.
        OutputError: If somebody computes the same run at this moment, split in another way.
        ResumeMismatchError: If a journal belongs to another run, or they disagree on a point.
    """
    mine = journal_path(check_path(out), shard)
    paths = [path for path in find_journals(out) if path != mine]
    done = np.zeros(header.num_points, dtype=bool)
    values = np.full((header.num_points, len(header.columns)), np.nan)
    notes: dict[str, None] = {}
    seen = False
    for path, part in _contents(paths, vanish=True):
        if found := differences(part.header, header):
            refuse_run(path, found, f"{_SAME} Else use another `out`, or delete the journal.")
        if not _beside(shard_of(path), shard):
            check_free(path.with_name(f"{path.name}.lock"), path)
        notes.update(dict.fromkeys(recorded_differences(part.header, header)))
        _add(path, part, done, values)
        seen = True
    return Elsewhere(done, values, tuple(notes)) if seen else None


def say_missing(out: str | os.PathLike[str], done: np.ndarray) -> str:
    """Whose points are missing, in words.

    Args:
        out: The result.
        done: ``(G,)`` bool.

    Returns:
        Parts of the split that was written to last, with how much each of them lacks; "" for a run
        that was not split.
    """
    named: dict[Path, float] = {}
    for path in find_journals(out):
        with contextlib.suppress(OSError):  # it was joined meanwhile
            named[path] = path.stat().st_mtime
    if not named:
        return ""
    newest = shard_of(max(named, key=lambda path: named[path]))
    if newest is None:
        return ""
    there = {shard_of(path) for path in named}
    lacking = []
    for i in range(newest[1]):
        shard = i, newest[1]
        ranges = owned(len(done), shard)
        size = sum(stop - start for start, stop in ranges)
        left = size - sum(int(done[start:stop].sum()) for start, stop in ranges)
        if left:
            never = "" if shard in there else ", which has no journal"
            lacking.append(f"{left} of {size} of part {i}/{shard[1]}{never}")
    return "; ".join(lacking)


def remove_journals(out: str | os.PathLike[str], header: RunHeader | None = None) -> None:
    """Delete the journals of a result, and the locks that dead processes left on them.

    Args:
        out: The result.
        header: Delete only journals of this run, and those that a power cut emptied; None: all.

    Raises:
        OutputError: If a journal cannot be deleted.
    """
    paths = find_journals(out)
    for path in paths:
        try:
            found = None if header is None else _header_of(path)
            if header is not None and found is not None and differences(found, header):
                continue
            # the journal last: by it, whoever goes on after a kill finds what is left
            remove_stale_lock(path.with_name(f"{path.name}.lock"))
            path.unlink(missing_ok=True)
        except CorruptFileError:
            continue  # not known to be of this run, or deleted by somebody else
        except OSError as error:
            fail(f"{path} could not be deleted: {error.strerror}.", error.errno)
    if paths:
        with contextlib.suppress(OSError):  # they are gone, if not yet for good
            sync_folder(paths[0].parent)


def _contents(paths: Sequence[Path], *, vanish: bool = False) -> Iterator[tuple[Path, Contents]]:
    """Journals as they are now, without those that a power cut emptied."""
    for path in paths:
        try:
            data = read_file(path)
        except CorruptFileError as error:
            if vanish and error.errno == errno.ENOENT:  # joined by somebody else meanwhile
                continue
            raise
        if is_empty(data):
            warn(f"{path} is empty, as a power cut may leave it: it counts for nothing.")
            continue
        part = parse(data, path)
        warn_of_damage(path, part, live=True)
        yield path, part


def _add(path: Path, part: Contents, done: np.ndarray, values: np.ndarray) -> None:
    """Enter the points of a journal; where others were before it, they must agree."""
    both = done & part.done
    if not same_bits(values[both], part.values[both]):
        numbers = np.flatnonzero(both).tolist()
        differing = [k for k in numbers if not same_bits(values[k], part.values[k])]
        raise ResumeMismatchError(
            f"{path} must agree with the other journals of its run where they overlap, got other "
            f"values at {len(differing)} of {len(numbers)} points, the first of them "
            f"{differing[:10]}."
        )
    values[part.done] = part.values[part.done]
    done |= part.done


def _header_of(path: Path) -> RunHeader | None:
    """The first line of a journal; None if a power cut emptied it."""
    line = read_file(path, line=True)
    return None if is_empty(line) else parse(line, path).header


def _beside(other: Shard, mine: Shard) -> bool:
    """Whether two parts are of one split: they may be computed at the same time."""
    return other is not None and mine is not None and other[1] == mine[1]
