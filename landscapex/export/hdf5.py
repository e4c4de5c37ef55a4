"""HDF5 files that are shared with other programs: written whole, read whatever they hold.

Reading is left to a process of its own, `landscapex.export.hdf5_reader`: every damage of a file is
an error of ours, where the library would take Python down with it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from landscapex.errors import CorruptFileError
from landscapex.export import hdf5_reader
from landscapex.storage.files import check_path, fail

T = TypeVar("T")
Numbers = NDArray[Any]

SUFFIXES: Final = (".h5", ".hdf5")
MARK: Final = b"landscapex export; the rest is HDF5\n"
ABOUT: Final = "landscapex"  # dataset with what the formats have no place for, as JSON
_USER_BLOCK: Final = 512


def write_bytes(fill: Callable[[h5py.File], None]) -> bytes:
    """An HDF5 file as bytes; the same contents give the same bytes.

    Args:
        fill: Called with the open file.

    Returns:
        The contents; a user block in front, which HDF5 skips, says who wrote them.
    """
    buffer = io.BytesIO()
    # Since HDF5 1.8 most of what describes the arrays has checksums, too; not where they are.
    version = ("v108", "v108")
    with h5py.File(
        buffer, "w", userblock_size=_USER_BLOCK, track_order=True, libver=version
    ) as file:
        fill(file)
    return MARK.ljust(_USER_BLOCK, b"\0") + buffer.getvalue()[_USER_BLOCK:]


def put(group: h5py.Group, name: str, values: Numbers) -> None:
    """Add an array with checksums, so that damage is an error when it is read.

    Args:
        group: Where to.
        name: Of the array.
        values: Of any shape.
    """
    if not values.ndim or not values.size:  # checksums are of chunks, which these have not
        group.create_dataset(name, data=values)
    else:
        group.create_dataset(name, data=values, fletcher32=True)


def put_about(file: h5py.File, about: Mapping[str, Any]) -> None:
    """Add what `Contents.about` will find.

    Args:
        file: Where to.
        about: Made of JSON values.
    """
    put(file, ABOUT, np.array([json.dumps(about).encode()]))


def digest(arrays: Mapping[str, Numbers]) -> str:
    """What tells whether numbers are those that were written.

    The checksums of HDF5 do not: it takes an array for zeros whose place in the file is damaged.

    Args:
        arrays: By name, in any order.

    Returns:
        SHA-256 of names, shapes, types and values, in hexadecimal.
    """
    total = hashlib.sha256()
    for name in sorted(arrays):
        values = arrays[name]
        total.update(repr((name, values.shape, values.dtype.str)).encode())
        total.update(values.tobytes())
    return total.hexdigest()


@dataclass(frozen=True)
class Contents:
    """What a file and its groups hold.

    Attributes:
        arrays: Numbers, by path ("xdirection/0"), in the order of the file.
        texts: By path.
        ours: Whether landscapex wrote the file; others may have added to it.
    """

    arrays: dict[str, Numbers]
    texts: dict[str, str]
    ours: bool

    @property
    def about(self) -> dict[str, Any]:
        """What `put_about` wrote; nothing if the file is not of landscapex.

        Raises:
            CorruptFileError: If it is, and has nothing to say.
        """
        about = dict(json.loads(self.texts.get(ABOUT) or "{}"))
        if self.ours and not about:
            raise CorruptFileError(f"it must hold the text {ABOUT!r}")
        return about

    def array(self, path: str) -> Numbers:
        """Numbers that have to be there.

        Args:
            path: Of the dataset.

        Returns:
            Its values.

        Raises:
            CorruptFileError: If there are none.
        """
        if path not in self.arrays:
            raise CorruptFileError(f"it must hold the numbers {path!r}")
        return self.arrays[path]

    def group(self, name: str) -> dict[str, Numbers]:
        """The arrays of a group.

        Args:
            name: Of the group.

        Returns:
            Its arrays by name; empty if there is no such group.
        """
        start = f"{name}/"
        return {p.removeprefix(start): a for p, a in self.arrays.items() if p.startswith(start)}


def read(path: str | os.PathLike[str], what: str, make: Callable[[Contents], T]) -> T:
    """Read a file.

    Args:
        path: The file.
        what: What it should be.
        make: From its contents to the result; whatever it raises means a damaged file.

    Returns:
        What ``make`` returned.

    Raises:
        CorruptFileError: If the file is damaged, or something else; a `MissingFileError` if it is
            missing.
    """
    source = check_path(path)
    if not source.is_file():
        code = None if source.exists() else errno.ENOENT
        fail(f"{source} must be a regular file, and exist.", code, CorruptFileError)
    try:
        return make(_contents(source))
    except Exception as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise CorruptFileError(f"{source} is not {what}, or damaged: {reason}.") from error


def _contents(source: Path) -> Contents:
    """What the process that reads the file found in it."""
    with source.open("rb") as file:
        ours = file.read(len(MARK)) == MARK
    command = [sys.executable, "-P", hdf5_reader.__file__, str(source)]
    # It has to find the same packages, wherever this process has them from.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryFile() as out:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE,
            env=environment, check=False,
        )  # fmt: skip
        if done.returncode == -signal.SIGALRM:
            raise CorruptFileError("reading it takes for ever")
        if done.returncode < 0:
            raise CorruptFileError(f"the HDF5 library crashes on it (signal {-done.returncode})")
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise CorruptFileError(lines[-1])
        out.seek(0)
        with np.load(out, allow_pickle=False) as found:
            names = json.loads(found["names"].tobytes())
            arrays = {path: found[f"a{k}"] for k, path in enumerate(names["arrays"])}
    return Contents(arrays, names["texts"], ours)
