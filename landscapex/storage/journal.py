"""The journal of a run: finished points, appended line by line, safe against any kind of death.

A journal lies beside the result while the run goes on. Its format: `storage.journal_lines`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
import weakref
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn, Self

import numpy as np

from landscapex._arrays import read_only
from landscapex._warnings import warn
from landscapex.errors import (
    ArgumentError,
    CorruptFileError,
    LandscapexError,
    OutputError,
    ResumeMismatchError,
)
from landscapex.storage.files import (
    check_output,
    check_space,
    fail,
    read_file,
    replace_file,
    sync_data,
    write_all,
)
from landscapex.storage.header import RunHeader, differences, recorded_differences
from landscapex.storage.journal_lines import (
    LINE_BYTES,
    VALUE_BYTES,
    Contents,
    chunk_line,
    first_line,
    is_empty,
    parse,
)
from landscapex.storage.lock import FileLock

SYNC_SECONDS: Final = 1.0  # nothing appended stays off the disk for longer

_NAME: Final = re.compile(r"\.journal(\.shard(\d+)of(\d+))?$")


class Journal:
    """Finished points of one run, or of one shard of it, on disk; made by `Journal.open`.

    Use it as a context manager, or call `close`. Methods may be called from several threads.
    """

    def __init__(
        self,
        path: Path,
        header: RunHeader,
        lock: FileLock,
        state: Contents,
        notes: tuple[str, ...],
    ) -> None:
        self.path = path
        self.header = header
        self.notes = notes
        self._seed, self._done, self._values = state.seed, state.done, state.values
        self._mutex = threading.RLock()  # guards the fields; held for a write at most
        self._syncing = threading.RLock()  # held while the disk works; taken before `_mutex`
        self._timer: threading.Timer | None = None
        self._unsynced = False
        self._failure: OSError | None = None
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._abandon = weakref.finalize(self, _abandon, self._descriptor, lock)

    @classmethod
    def open(
        cls,
        out: str | os.PathLike[str],
        header: RunHeader,
        *,
        shard: tuple[int, int] | None = None,
        resume: bool = True,
    ) -> Journal:
        """Begin the journal of a run, or go on with the one that is there.

        Args:
            out: Where the result will be; the journal is the file beside it with ``.journal``
                (or ``.journal.shard0of4``) appended to its name.
            header: What this run computes.
            shard: ``(i, n)``: this is part i, counted from 0, of n. None: the run is not split.
            resume: True keeps the points of an earlier run with the same header; False starts
                over.

        Returns:
            An open journal. Its ``header`` is the one on disk when points were kept.

        Raises:
            ArgumentError: If ``shard`` is not a part of a whole.
            OutputError: If ``out`` cannot be written, there is no room, or another process is
                writing this journal.
            ResumeMismatchError: If the journal on disk belongs to another run.
            CorruptFileError: If the journal on disk cannot be read.
        """
        result = check_output(out)
        if result_path(result) != result:
            fail(f"`out` must name the result, not its journal, got {out}.")
        path = journal_path(result, shard)
        lock = FileLock(path.with_name(f"{path.name}.lock"), path)
        try:
            try:
                return cls._opened(path, header, shard, lock, resume=resume)
            except FileNotFoundError:  # somebody joined it to the result just now
                return cls._opened(path, header, shard, lock, resume=False)
        except BaseException as error:
            lock.release()
            if isinstance(error, OSError) and not isinstance(error, LandscapexError):
                message = f"{path} cannot be written: {error.strerror}."
                fail(message, error.errno)
            raise

    @classmethod
    def _opened(
        cls,
        path: Path,
        header: RunHeader,
        shard: tuple[int, int] | None,
        lock: FileLock,
        *,
        resume: bool,
    ) -> Journal:
        """Begin or go on, with the lock in our hands."""
        contents = _read_for_resume(path) if resume else None
        notes: tuple[str, ...] = ()
        if contents is None:
            done = np.zeros(header.num_points, dtype=bool)
            _check_room(path, header, done)
            replace_file(path, first_line(header, shard))
            contents = parse(path.read_bytes(), path)
        else:
            _check_same_run(path, contents, header, shard)
            _check_room(path, contents.header, contents.done)
            os.truncate(path, contents.end)
            notes = recorded_differences(contents.header, header)
        return cls(path, contents.header, lock, contents, notes)

    @property
    def done(self) -> np.ndarray:
        """Which points are in the journal, ``(G,)`` bool, read-only."""
        return read_only(self._done)

    @property
    def values(self) -> np.ndarray:
        """Their values, ``(G, M)`` float64, read-only; NaN for points that are not done."""
        return read_only(self._values)

    def append(self, start: int, values: np.ndarray) -> None:
        """Record the points ``start .. start + n - 1``.

        When this returns the points survive the death of the process; a second later at the
        latest, a power cut as well.

        Args:
            start: Number of the first point.
            values: ``(n, M)``, columns in the order of the header.

        Raises:
            ArgumentError: If the values do not fit the grid, or a point is there already.
            OutputError: If the disk is full or fails. The journal then ends with the last line
                that fitted, and can be resumed.
        """
        array = np.ascontiguousarray(values, dtype=np.float64)
        size, columns = self._values.shape
        if array.ndim != 2 or array.shape[1] != columns or not len(array):
            raise ArgumentError(f"`values` must have shape (n, {columns}), got {array.shape}.")
        stop = start + len(array)
        if not 0 <= start < stop <= size:
            raise ArgumentError(f"`start` must be 0 to {size - len(array)}, got {start}.")
        with self._mutex:
            self._check_open()
            if self._done[start:stop].any():
                raise ArgumentError(f"`start` must lead to new points, got {start}: done before.")
            self._write(chunk_line(start, array, self._seed), start)
            self._values[start:stop] = array
            self._done[start:stop] = True
            self._unsynced = True
            if self._timer is None:
                self._timer = threading.Timer(SYNC_SECONDS, self._sync)
                self._timer.daemon = True
                self._timer.start()

    def sync(self) -> None:
        """Return when every appended point would survive a power cut.

        Raises:
            OutputError: If the disk is full or fails.
        """
        self._sync()
        self._check_open()

    def close(self) -> None:
        """Sync, give the lock back and close the file; a second call does nothing.

        Raises:
            OutputError: If the disk is full or fails; the journal is closed all the same.
        """
        with self._syncing, self._mutex:
            if not self._abandon.alive:
                return
            self._sync()
            self._abandon()
            if self._failure is not None:
                self._fail(self._failure)

    def __enter__(self) -> Self:
        """Give the journal itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the journal; an error on the way out does not hide the one that led here."""
        if error is None:
            self.close()
        else:
            with contextlib.suppress(OutputError):
                self.close()

    def _write(self, line: bytes, start: int) -> None:
        """Append one line, or nothing."""
        end = os.fstat(self._descriptor).st_size
        try:
            write_all(self._descriptor, line)
        except BaseException as error:
            try:
                os.ftruncate(self._descriptor, end)
            except OSError as failure:  # the next line would continue the torn one
                self._failure = failure
            if isinstance(error, OSError):
                self._fail(error, start)
            raise

    def _sync(self) -> None:
        """Bring what was appended to the disk; a failure is kept for the next call."""
        with self._syncing:
            with self._mutex:
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
                if not self._unsynced or not self._abandon.alive:
                    return
                self._unsynced = False
            try:
                sync_data(self._descriptor)
            except OSError as error:
                self._failure = error

    def _check_open(self) -> None:
        if not self._abandon.alive:
            fail(f"{self.path} must be open, but it was closed.", errno.EBADF)
        if self._failure is not None:
            self._fail(self._failure)

    def _fail(self, error: OSError, start: int | None = None) -> NoReturn:
        where = "" if start is None else f" at point {start}"
        kept = int(self._done.sum())
        fail(
            f"{self.path} could not be written{where}: {error.strerror}. About "
            f"{_bytes_needed(self.header, self._done):,} bytes are needed for the rest of the run; "
            f"the {kept} of {len(self._done)} points written so far are kept.",
            error.errno,
        )


def journal_path(out: Path, shard: tuple[int, int] | None = None) -> Path:
    """The journal of the result ``out``, or of one shard of it.

    Args:
        out: The result.
        shard: ``(i, n)``, or None.

    Returns:
        ``out`` with ``.journal`` or ``.journal.shard{i}of{n}`` appended.

    Raises:
        ArgumentError: If ``shard`` is not a part of a whole.

    Example:
        >>> journal_path(Path("s.nc"), (0, 4)).name
        's.nc.journal.shard0of4'
    """
    if shard is None:
        return out.with_name(f"{out.name}.journal")
    part, parts = shard
    if not 0 <= part < parts:
        raise ArgumentError(f"`shard` must be (i, n) with 0 <= i < n, got {tuple(shard)}.")
    return out.with_name(f"{out.name}.journal.shard{part}of{parts}")


def result_path(path: Path) -> Path:
    """The result that a journal belongs to; any other path stays what it is."""
    return path.with_name(_NAME.sub("", path.name)) if _NAME.search(path.name) else path


def shard_of(path: Path) -> tuple[int, int] | None:
    """The shard whose journal a file is by its name; None for the journal of a whole run."""
    match = _NAME.search(path.name)
    return (int(match[2]), int(match[3])) if match and match[1] else None


def fail_missing(path: Path) -> NoReturn:
    """Say that of a result there is nothing, not even a journal.

    Args:
        path: What was looked for.

    Raises:
        MissingFileError: Always, with ``errno.ENOENT``.
    """
    message = f"{path} does not exist, and there is no journal of it."
    fail(message, errno.ENOENT, CorruptFileError)


def _read_for_resume(path: Path) -> Contents | None:
    """What an earlier run left, with warnings about a torn tail; None if it left nothing."""
    try:
        data = read_file(path)
    except CorruptFileError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    if is_empty(data):
        warn(f"{path} was empty, as a power cut may leave it: the run starts over.")
        return None
    contents = parse(data, path)
    warn_of_damage(path, contents, live=False)
    return contents


def warn_of_damage(path: Path, contents: Contents, *, live: bool) -> None:
    """Say what of a journal could not be used.

    Args:
        path: The journal.
        contents: As it was read.
        live: Whether it may be written at this moment.
    """
    if contents.damaged:
        warn(
            f"{path} is damaged in line {', '.join(map(str, contents.damaged[:10]))}: the points "
            "there count as not evaluated."
        )
    torn = b"\0" not in contents.tail and b"\n" not in contents.tail
    if contents.tail and not (live and torn):  # the writer of a living journal may be at this line
        warn(
            f"{path} ended in {len(contents.tail)} bytes that are no whole line, as a killed run "
            f"or a power cut leaves them; {int(contents.done.sum())} of {len(contents.done)} "
            "points are kept."
        )


def refuse_run(path: Path, found: list[str], advice: str) -> NoReturn:
    """Refuse to mix runs.

    Args:
        path: The journal of the other one.
        found: What differs, a line each.
        advice: What to do.

    Raises:
        ResumeMismatchError: Always.
    """
    lines = "".join(f"\n  {line}" for line in found)
    raise ResumeMismatchError(f"{path} belongs to another run; these differ:{lines}\n{advice}")


def _check_same_run(
    path: Path, contents: Contents, header: RunHeader, shard: tuple[int, int] | None
) -> None:
    found = differences(contents.header, header)
    if contents.shard != (None if shard is None else list(shard)):
        found.insert(0, f"shard: {contents.shard} -> {shard}")
    if found:
        advice = "Use another `out`, delete the journal, or pass resume=False to start over."
        refuse_run(path, found, advice)


def _check_room(path: Path, header: RunHeader, done: np.ndarray) -> None:
    check_space(path, _bytes_needed(header, done))


def _bytes_needed(header: RunHeader, done: np.ndarray) -> int:
    """Upper bound of what the rest of the run writes, journal and result."""
    columns = len(header.columns)
    left = int(len(done) - done.sum()) * (VALUE_BYTES * columns + LINE_BYTES)
    result = len(done) * (8 * columns + 1)
    return left + result + 2 * len(header.to_json()) + 65_536  # HDF5 spends some 20 kB on a file


def _abandon(descriptor: int, lock: FileLock) -> None:
    """Close what a journal holds; also called for journals that nobody closed."""
    with contextlib.suppress(OSError):
        os.close(descriptor)
    lock.release()
