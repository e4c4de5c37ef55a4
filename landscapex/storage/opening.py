"""Results from files, and from the journals of runs that go on or were cut into shards."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from landscapex._warnings import warn
from landscapex.errors import ArgumentError, CorruptFileError
from landscapex.grids.results import Surface
from landscapex.storage import store
from landscapex.storage.header import RunHeader


def open(path: str | os.PathLike[str]) -> Surface:
    """Open a result, or what there is of it while its run goes on.

    Args:
        path: A finished ``.nc``; or the name of one that is still being computed, or was
            interrupted; or a journal.

    Returns:
        The result. Points that have not been evaluated yet are holes: NaN, and False in
        ``evaluated``.

    Raises:
        CorruptFileError: If nothing is there, the file is damaged, or it is not a result.
        ResumeMismatchError: If journals of different runs lie side by side.
    """
    given = store.check_path(path)
    result = store.result_path(given)
    journal_first = given != result
    for _ in range(3):  # a run may finish between the look for its result and for its journal
        if not journal_first and os.path.exists(result):
            return _from_file(result, Path(path) if given == result else result)
        try:
            return Surface.from_run(*store.read_journals(result), path=path)
        except CorruptFileError as error:
            if error.errno != errno.ENOENT:
                raise
            journal_first = False
    store.fail_missing(given)


def merge(path: str | os.PathLike[str]) -> Surface:
    """Join the journals of the shards of a run.

    Args:
        path: The result that the shards were computed for (their ``out``).

    Returns:
        The result. If all points are there, it has been written to ``path`` and the journals are
        deleted; else it has holes, a warning says how many, and the journals stay.

    Raises:
        CorruptFileError: If there is neither a journal nor a result, or one is damaged.
        ResumeMismatchError: If the journals belong to different runs.
        OutputError: If the result cannot be written.
    """
    result = store.result_path(store.check_path(path))
    if not store.find_journals(result):
        return open(result)
    header, done, values = store.read_journals(result)
    surface = Surface.from_run(header, done, values, path=path)
    if not surface.complete and not _is_finished(result, header):
        missing = int((~surface.evaluated).sum())
        warn(
            f"{missing} of {surface.loss.size} points of {result} are missing: not all shards "
            "have finished. Their journals stay; merge again later.",
        )
        return surface
    if surface.complete:
        surface.save(result)
    store.remove_journals(result, header)
    return open(result)


def _from_file(file: Path, path: Path) -> Surface:
    dataset = store.read_dataset(file)
    try:
        return Surface(dataset, path)
    except ArgumentError as error:
        raise CorruptFileError(f"{file} is not a surface: {error}") from error


def _is_finished(result: Path, header: RunHeader) -> bool:
    """Whether this run has been merged before, by a process that died deleting the journals."""
    if not os.path.exists(result):
        return False
    there = open(result)
    return there.complete and there.provenance.get("fingerprint") == header.fingerprint
