"""Writing files that are there, whole, after a crash: checks up front, atomic replacement.

Trouble is reported as `OutputError`, with the path and what to do about it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
import zlib
from pathlib import Path
from typing import Final, NoReturn

from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    CorruptFileError,
    MissingFileError,
    OutputError,
)

# What writes the formats that results are exported to.
_EXPORTS: Final = {
    **dict.fromkeys((".png", ".svg", ".pdf"), "to_picture"),
    **dict.fromkeys((".jpg", ".jpeg"), "landscapex.plot.save"),
    **dict.fromkeys((".html", ".htm"), "to_html"),
    **dict.fromkeys((".h5", ".hdf5"), "to_h5"),
    ".csv": "to_csv",
    ".vts": "to_vts",
}
_SEALED: Final = re.compile(rb'\{"crc32":"([0-9a-f]{8})",')


def fail(
    message: str, code: int | None = None, kind: type[OutputError | CorruptFileError] = OutputError
) -> NoReturn:
    """Raise an error that carries an errno, so that callers can tell a full disk from the rest.

    Args:
        message: The whole text; an errno given to `OSError` itself would be printed before it.
        code: A value of the `errno` module, or None.
        kind: What to raise.

    Raises:
        OutputError: Always, or ``kind``; a `MissingFileError` of what is to be read.
    """
    if kind is CorruptFileError and code == errno.ENOENT:
        kind = MissingFileError
    error: OutputError | CorruptFileError = kind(message)
    error.errno = code
    raise error


def check_path(path: str | os.PathLike[str]) -> Path:
    """Turn ``path`` into an absolute one with all symbolic links followed.

    Two names of one file must lead to one lock, and replacing a file must not replace a link to it.

    Args:
        path: A path; the file need not exist.

    Returns:
        The absolute path.

    Raises:
        ArgumentTypeError: If ``path`` is not a path.
        OutputError: If no file can have this name.
    """
    if not isinstance(path, (str, os.PathLike)) or isinstance(os.fspath(path), bytes):
        raise ArgumentTypeError(f"`path` must be a string or a Path, got {type(path).__name__}.")
    text = os.fspath(path)
    if not text or "\0" in text or not _can_be_encoded(text):
        fail(f"`path` must be the name of a file, got {text!r}.", errno.EINVAL)
    return Path(os.path.realpath(text))


def _can_be_encoded(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def check_output(out: str | os.PathLike[str], name: str = "out") -> Path:
    """Find out now, not after hours of computing, whether a result can be written to ``out``.

    Args:
        out: Where the result shall be; an existing file will be replaced.
        name: Of the argument, for messages.

    Returns:
        The absolute path, links followed.

    Raises:
        OutputError: If ``out`` is a folder or a device, if its folder does not exist or cannot be
            written, or if the path cannot be followed (a loop of links, a long name).
    """
    path = check_path(out)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except OSError as error:
        fail(f"`{name}` must lead to a file, got {path}: {error.strerror}.", error.errno)
    if stat.S_ISDIR(mode):
        fail(f"`{name}` must be a file, got the folder {path}.", errno.EISDIR)
    if not stat.S_ISREG(mode):
        fail(f"`{name}` must be a regular file, got {path}.", errno.EINVAL)
    if not path.parent.is_dir():
        fail(
            f"`{name}` must be in a folder that exists, got {path}: create {path.parent} first.",
            errno.ENOENT,
        )
    effective = os.access in os.supports_effective_ids
    if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=effective):
        fail(
            f"`{name}` must be in a folder that can be written, got {path}: no permission to write "
            f"in {path.parent}.",
            errno.EACCES,
        )
    return path


def check_result_name(path: str | os.PathLike[str], name: str = "out") -> None:
    """Refuse to write a result, which is NetCDF, under the name of another format.

    Args:
        path: Where the result shall be.
        name: Of the argument, for messages.

    Raises:
        ArgumentError: If the name ends like a file that a result is exported to.
    """
    suffix = Path(path).suffix.lower()
    if suffix in _EXPORTS:
        raise ArgumentError(
            f"`{name}` must be the name of a NetCDF file, say {Path(path).stem}.nc; {suffix} is "
            f"written from a result by `{_EXPORTS[suffix]}` or `landscapex export`, "
            f"got {os.fspath(path)!r}."
        )


def check_replaceable(path: Path, marks: tuple[bytes, ...], what: str) -> None:
    """Refuse to replace what somebody else made, perhaps in hours: a checkpoint, say.

    Args:
        path: Where something will be written.
        marks: What files of ours begin with.
        what: What is wrong with others, for the message.

    Raises:
        OutputError: If something else is there.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(max(map(len, marks)))
    except FileNotFoundError:
        return
    except OSError as error:
        fail(f"{path} could not be read: {error.strerror}.", error.errno)
    if begin and not begin.startswith(marks):
        fail(f"{path} must not be replaced: {what}.", errno.EEXIST)


def check_space(path: Path, needed: int) -> None:
    """Refuse to start what the file system has no room for.

    Args:
        path: A file to be written; its folder exists.
        needed: Bytes that will be written.

    Raises:
        OutputError: If fewer bytes than ``needed`` are free.
    """
    try:
        status = os.statvfs(path.parent)
    except OSError:
        return
    free = status.f_bavail * status.f_frsize
    if status.f_blocks and free < needed:  # some network file systems report 0 blocks: unknown
        fail(
            f"{path} needs about {needed:,} bytes, but only {free:,} are free in {path.parent}.",
            errno.ENOSPC,
        )


def read_file(path: Path, *, line: bool = False) -> bytes:
    """Read a whole file.

    Args:
        path: The file.
        line: Stop behind the first line break.

    Returns:
        Its bytes.

    Raises:
        CorruptFileError: If it cannot be read, or is not a file: a pipe might never end; a
            `MissingFileError` if it is not there.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CorruptFileError(f"{path} must be a regular file.")
        with path.open("rb") as file:
            return file.readline() if line else file.read()
    except CorruptFileError:
        raise
    except OSError as error:
        fail(f"{path} could not be read: {error.strerror}.", error.errno, CorruptFileError)


def seal(members: str, seed: int) -> bytes:
    """A line of a file of lines, which can be told from a damaged or a torn one.

    Args:
        members: Of a JSON object, from the first quotation mark to the closing brace.
        seed: Where the CRC begins, so that a line at another place is damage there.

    Returns:
        The object with its CRC-32 as first member, and a line break.
    """
    data = members.encode()
    return b'{"crc32":"%08x",%s\n' % (zlib.crc32(data, seed), data)


def unseal(line: bytes, seed: int) -> int | None:
    """The CRC of a line that `seal` made.

    Args:
        line: Without its line break.
        seed: As it was for `seal`.

    Returns:
        The number, which may be the seed of the next line; None if the line is not whole.
    """
    match = _SEALED.match(line)
    if match is None or int(match[1], 16) != zlib.crc32(line[match.end() :], seed):
        return None
    return int(match[1], 16)


def sync_data(descriptor: int) -> None:
    """Wait until the bytes written to ``descriptor`` are on the disk."""
    getattr(os, "fdatasync", os.fsync)(descriptor)  # macOS has no fdatasync


def sync_folder(folder: Path) -> None:
    """Make renames and removals in ``folder`` survive a power cut.

    Args:
        folder: An existing folder.

    Raises:
        OSError: If the disk reports an error; file systems that cannot sync folders do not.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            raise
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``: one write(2) unless the disk is nearly full."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def replace_file(path: Path, data: bytes) -> None:
    """Make ``path`` hold ``data``, all or nothing, also if the process or the machine dies.

    Args:
        path: An absolute path, links followed (see `check_path`).
        data: The new contents.

    Raises:
        OutputError: If the data cannot be written; ``path`` is then what it was before.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            fail(
                f"{path} could not be written: {error.strerror}; {len(data):,} bytes are needed.",
                error.errno,
            )
        raise
