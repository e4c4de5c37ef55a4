"""Lock files: one writer per file, for processes on any machine that sees the file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

from landscapex.storage.files import fail, write_all

_PAUSE: Final = 0.01  # seconds
_PATIENCE: Final = 2.0  # seconds; making or removing a lock file takes microseconds


class FileLock:
    """A file that says "somebody is writing here", for processes on any machine that sees it.

    The file is made with ``O_EXCL``, which also works on network file systems, and holds pid, host
    and start of the process. The lock of a process that has died on this machine is stale and taken
    over. Where its number says nothing, because it belongs to another container of this machine or
    to the time before its last start, the advisory lock decides that a process keeps on the file
    as long as it lives. Locks of other machines are never judged.

    Args:
        path: The lock file.
        purpose: What is locked, for the message.

    Raises:
        OutputError: If a living process, or one on another machine, holds the lock.
    """

    def __init__(self, path: Path, purpose: Path) -> None:
        self.path = path
        self._purpose = purpose
        self._owner = os.getpid()
        self._mine = json.dumps(_describe_me()).encode()
        self._descriptor = -1
        self._acquire()
        self._held = True

    def release(self) -> None:
        """Remove the lock file, if it is still ours; a forked child leaves it alone."""
        if not self._held or os.getpid() != self._owner:
            return
        with contextlib.suppress(OSError):
            if self.path.read_bytes() == self._mine:  # inode numbers are used again at once
                os.unlink(self.path)
        os.close(self._descriptor)
        self._held = False

    def _acquire(self) -> None:
        for _ in range(100):
            with contextlib.suppress(FileExistsError):
                if self._create():
                    return
            remove_stale_lock(self.path)
            if (holder := _read_holder(self.path)) is not None:
                _refuse(self.path, self._purpose, holder)
        _refuse(self.path, self._purpose, {})

    def _create(self) -> bool:
        """Make the lock file; False if somebody took it for an abandoned one meanwhile."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            raise
        except OSError as error:
            fail(f"{self._purpose} cannot be written: {error.strerror} ({self.path}).", error.errno)
        try:
            _exclude_others(descriptor)
            write_all(descriptor, self._mine)
            if _same_file(self.path, descriptor):
                self._descriptor = descriptor
                return True
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            fail(f"{self._purpose} cannot be written: {error.strerror} ({self.path}).", error.errno)
        finally:
            if self._descriptor != descriptor:
                os.close(descriptor)
        return False


def check_free(path: Path, purpose: Path) -> None:
    """Refuse to go on while somebody writes what a lock is for; a stale lock is removed.

    Args:
        path: The lock file; it need not exist.
        purpose: What is locked, for the message.

    Raises:
        OutputError: If a living process, or one on another machine, holds the lock.
    """
    remove_stale_lock(path)
    if (holder := _read_holder(path)) is not None:
        _refuse(path, purpose, holder)


def remove_stale_lock(path: Path) -> None:
    """Remove a lock whose process has died on this machine; leave every other lock alone.

    Args:
        path: The lock file; it need not exist.
    """
    for late in _looks():
        try:
            descriptor = os.open(path, os.O_RDWR)
        except OSError:
            return
        try:
            holder = _parse_holder(os.pread(descriptor, 4096, 0))
            if holder is not None and not _is_stale(holder, alone=True):
                return
            # Of several processes that find the same stale lock only one may remove it: the second
            # would remove the lock that the first has made in its place.
            alone = _lock_others_out(descriptor)
            if not _same_file(path, descriptor):
                return
            holder = _parse_holder(os.pread(descriptor, 4096, 0))
            if late or (holder is not None and alone is not False):
                # An empty lock is being written at this moment, or its process died doing so.
                if alone is not False if holder is None else _is_stale(holder, alone=alone):
                    os.unlink(path)
                return
        except OSError:
            return
        finally:
            os.close(descriptor)


def _refuse(path: Path, purpose: Path, holder: dict[str, Any]) -> NoReturn:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    if holder.get("pid") == os.getpid() and holder.get("host") == socket.gethostname():
        who = "this very process"
    fail(
        f"{purpose} must not be written by two runs at once: {who} has been writing it since "
        f"{holder.get('since', '?')}. Use another `out`, or, if that run is gone, delete {path}.",
        errno.EBUSY,
    )


def _describe_me() -> dict[str, object]:
    pid = os.getpid()
    return {
        "pid": pid,
        "host": socket.gethostname(),
        "start": process_start(pid),
        "boot": _boot(),
        "space": _process_space(),
        "since": time.ctime(),
        "ticks": time.monotonic_ns(),  # tells two locks of one process apart
    }


def _is_stale(holder: dict[str, Any], *, alone: bool | None) -> bool:
    """Whether the process that made a lock is known to be dead.

    Args:
        holder: What the lock says.
        alone: Whether nobody else has the advisory lock of its file; None where there are none.

    Returns:
        False as well where nobody can tell.
    """
    if holder["host"] != socket.gethostname():
        return False
    if _differs(holder["boot"], _boot()):  # before the last start, or on a machine of that name
        return alone is not False
    if _differs(holder["space"], _process_space()):  # another container: other numbers
        return alone is True
    # here a child that it forked may live on, and have the advisory lock
    start = process_start(holder["pid"])
    return start is None or bool(start and holder["start"] and start != holder["start"])


def _read_holder(path: Path) -> dict[str, Any] | None:
    try:
        return _parse_holder(path.read_bytes())
    except OSError:
        return None


def _parse_holder(text: bytes) -> dict[str, Any] | None:
    """What a lock file says; None if it says nothing (yet)."""
    with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):
        holder = json.loads(text)
        return {
            "pid": int(holder["pid"]),
            "host": str(holder["host"]),
            "start": str(holder["start"] or ""),
            "boot": str(holder.get("boot") or ""),
            "space": str(holder.get("space") or ""),
            "since": str(holder["since"]),
        }
    return None


def _same_file(path: Path, descriptor: int) -> bool:
    """Whether ``path`` still is the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _exclude_others(descriptor: int) -> None:
    """Take the advisory lock of a file that was just made.

    Raises:
        BlockingIOError: If somebody else keeps it for longer than it takes to look at the file.
    """
    for late in _looks():
        if _lock_others_out(descriptor) is not False:
            return
        if late:
            raise BlockingIOError(errno.EWOULDBLOCK, "somebody else keeps the lock file locked")


def _looks() -> Iterator[bool]:
    """Look again and again, with a pause between; counted, as who was stopped has not waited.

    Yields:
        Whether this is the last time.
    """
    count = round(_PATIENCE / _PAUSE)
    for _ in range(count):
        yield False
        time.sleep(_PAUSE)
    yield True


def _lock_others_out(descriptor: int) -> bool | None:
    """Take an advisory lock until ``descriptor``, and what was forked from it, is closed.

    NFS and Lustre may have none; then two processes that find the same stale lock in the same
    microseconds are not told apart.

    Args:
        descriptor: An open file.

    Returns:
        False if somebody else has it, None where there are none.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _differs(theirs: str, mine: str) -> bool:
    """Whether both are known, and not the same."""
    return bool(theirs and mine and theirs != mine)


def _boot() -> str:
    """Which start of which machine this is; "" where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _process_space() -> str:
    """Among which processes numbers mean something: containers have their own; "" if unknown."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def process_start(pid: int) -> str | None:
    """When process ``pid`` of this machine started.

    A process number is used again after its process has ended; number and start together are not.

    Args:
        pid: A process number.

    Returns:
        A text that stays the same while the process lives; ``""`` if it lives but the system does
        not tell; None if there is no such process, or only a zombie that does no more work.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass  # it lives, but belongs to somebody else
    state, start = _stat_of_proc(pid) or _stat_of_ps(pid) or ("", "")
    return None if state[:1] in ("Z", "X") else start


def _stat_of_proc(pid: int) -> tuple[str, str] | None:
    """State and start of a process in Linux' words; None where /proc does not show them."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return fields[0], fields[19]


def _stat_of_ps(pid: int) -> tuple[str, str] | None:
    """The same from ps(1), for macOS."""
    command = ["ps", "-o", "state=,lstart=", "-p", str(pid)]
    fixed = {**os.environ, "LC_ALL": "C", "TZ": "UTC0"}
    try:
        shown = subprocess.run(command, capture_output=True, text=True, env=fixed, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    state, _, start = shown.stdout.strip().partition(" ")
    return (state, " ".join(start.split())) if state else None
