"""Results from files, and from the journals of runs that go on or were cut into shards."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from landscapex._warnings import warn
from landscapex.errors import ArgumentError, CorruptFileError, OutputError
from landscapex.grids.results import Surface
from landscapex.storage import store
from landscapex.storage.header import RunHeader, differences
from landscapex.storage.lock import FileLock
from landscapex.storage.parts import say_missing

_PATIENCE: Final = 30.0  # seconds that somebody else may take to write the result


def open(path: str | os.PathLike[str]) -> Surface:
    """Open a result, or what there is of it while its run goes on.

    Args:
        path: A finished ``.nc``; or the name of one that is still being computed, or was
            interrupted; or a journal.

    Returns:
        The result. Points that have not been evaluated yet are holes: NaN, and False in
        ``evaluated``.

    Raises:
        CorruptFileError: If the file is damaged, or is not a result; a `MissingFileError`, which is
            a FileNotFoundError too, if nothing is there.
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

    The shard that finishes last does this by itself; `merge` is for those that could not, and to
    learn what is missing.

    Args:
        path: The result that the shards were computed for (their ``out``).

    Returns:
        The result. If all points are there, it has been written to ``path`` and the journals are
        deleted; else it has holes, a warning says how many and whose they are, and the journals
        stay.

    Raises:
        CorruptFileError: If there is neither a journal nor a result, or one is damaged.
        ResumeMismatchError: If the journals belong to different runs.
        OutputError: If the result cannot be written.
    """
    surface = join(path)
    if not surface.complete:
        warn(f"{missing_points(surface, path)} Their journals stay; merge again later.")
    return surface


def missing_points(surface: Surface, path: str | os.PathLike[str]) -> str:
    """How much a run lacks, and in which of its parts, as a sentence.

    Args:
        surface: A partial result.
        path: Where it is.

    Returns:
        One line.
    """
    missing = int((~surface.evaluated).sum())
    whose = say_missing(path, surface.evaluated.ravel())
    said = f"{missing} of {surface.loss.size} points of {path} are still missing"
    return f"{said}: {whose}." if whose else f"{said}."


def header_of(surface: Surface) -> RunHeader:
    """The run that a result is of.

    Args:
        surface: A result.

    Returns:
        Its header, to be compared with others.
    """
    provenance = surface.provenance
    return RunHeader(
        surface.kind,
        surface.axes,
        surface.columns,
        provenance.get("fingerprint", {}),
        provenance.get("recorded", {}),
        provenance,
    )


def join(path: str | os.PathLike[str]) -> Surface:
    """Write the result of a run if all of its points are in journals; several may try at once.

    Args:
        path: The result, or a journal of it.

    Returns:
        The result, or what there is of it.

    Raises:
        CorruptFileError: If there is neither a journal nor a result, or one is damaged.
        ResumeMismatchError: If the journals belong to different runs.
        OutputError: If the result cannot be written.
    """
    result = store.result_path(store.check_path(path))
    found = _gather(result, path)
    if found is not None and _can_be_joined(result, *found):
        with _exclusive(result):
            found = _gather(result, path)  # others may have joined them, or begun anew, meanwhile
            if found is not None and _can_be_joined(result, *found):
                header, surface = found
                if surface.complete:
                    surface.save(result)
                store.remove_journals(result, header)
                found = None
    return open(result) if found is None else found[1]


def put_away(surface: Surface, path: str | os.PathLike[str], header: RunHeader) -> Surface:
    """Write a finished result and delete the journals of its run, while nobody else does.

    Args:
        surface: The result.
        path: Where to.
        header: Of its run.

    Returns:
        What is there now.

    Raises:
        OutputError: If the result cannot be written.
    """
    with _exclusive(store.check_path(path)):
        surface.save(path)
        store.remove_journals(path, header)
    return open(path)


def _gather(result: Path, path: str | os.PathLike[str]) -> tuple[RunHeader, Surface] | None:
    """The run whose journals are there, and its points; None if there are none any more."""
    for _ in range(3):
        if not store.find_journals(result):
            break
        try:
            header, done, values = store.read_journals(result)
        except CorruptFileError as error:
            if error.errno != errno.ENOENT:
                raise
            continue  # somebody else is joining them
        return header, Surface.from_run(header, done, values, path=path)
    return None


def _can_be_joined(result: Path, header: RunHeader, surface: Surface) -> bool:
    """Whether all points of a run are there, or have been joined, and its journals be deleted."""
    return surface.complete or _is_finished(result, header)


@contextlib.contextmanager
def _exclusive(result: Path) -> Iterator[None]:
    """Wait for others who write the same result; it takes them a moment."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            lock = FileLock(result.with_name(f"{result.name}.lock"), result)
        except OutputError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            break
    try:
        yield
    finally:
        lock.release()


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
    return there.complete and not differences(header_of(there), header)
