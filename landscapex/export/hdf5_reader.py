"""Reads the arrays and texts of an HDF5 file, in a process of its own.

The HDF5 library crashes on some damaged files, and hangs on others: what happens here happens to
nobody else. A script that `landscapex.export.hdf5` runs; it imports nothing of landscapex, so that
it starts at once.

A file cannot make it look at another file (external links and storage), nor allocate more than
its bytes can stand for.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import IO, Any, Final

import h5py
import numpy as np

SECONDS: Final = 3.0  # for any file, and one more for every so many bytes
BYTES_PER_SECOND: Final = 10_000_000
_DEFLATED: Final = 1100  # bytes that one byte of a file can stand for, at most


def collect(file: h5py.File, budget: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What is in a file and in its groups.

    Args:
        file: An open file.
        budget: Bytes that all arrays and texts may have.

    Returns:
        Arrays of numbers and texts by path, such as "xdirection/0", in the order of the file.

    Raises:
        ValueError: If there is more than the budget, or a damaged type: an exponent, say, that is
            counted from somewhere else.
    """
    arrays: dict[str, np.ndarray] = {}
    texts: dict[str, str] = {}
    for path, found in _datasets(file):
        is_text = found.dtype.kind in "SO" and found.size == 1
        if found.dtype.kind not in "fiu" and not is_text:
            continue
        budget -= found.size * found.dtype.itemsize
        if budget < 0:
            raise ValueError(f"{path!r} is larger than the file")
        if not is_text and not found.id.get_type().equal(h5py.h5t.py_create(found.dtype)):
            raise ValueError(f"{path!r} holds numbers of no common type")
        if is_text:
            value = np.asarray(found[()]).item()
            if isinstance(value, bytes | str):
                texts[path] = value if isinstance(value, str) else value.decode(errors="replace")
        else:
            arrays[path] = np.asarray(found[()])
    return arrays, texts


def _datasets(file: h5py.File) -> list[tuple[str, h5py.Dataset]]:
    """Datasets of the file and of its groups whose values are in the file itself."""
    found = []
    for name in file:
        item = _own(file, name)
        if isinstance(item, h5py.Group):
            found += [(f"{name}/{inner}", _own(item, inner)) for inner in item]
        else:
            found.append((name, item))
    return [
        (path, item)
        for path, item in found
        if isinstance(item, h5py.Dataset)
        and item.shape is not None
        and not item.external
        and not item.is_virtual
    ]


def _own(group: h5py.Group, name: str) -> object:
    """What has this name, unless it is a link to elsewhere."""
    return group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None


def write(arrays: dict[str, np.ndarray], texts: dict[str, str], out: IO[bytes]) -> None:
    """Hand on what was found, in a format that Python reads without running anything.

    Args:
        arrays: By path.
        texts: By path.
        out: A binary file.
    """
    names = json.dumps({"arrays": list(arrays), "texts": texts}).encode()
    numbered: dict[str, Any] = {f"a{k}": values for k, values in enumerate(arrays.values())}
    np.savez(out, names=np.frombuffer(names, np.uint8), **numbered)


def main() -> None:
    """Read the file that is named on the command line, write what is in it to standard output."""
    size = os.path.getsize(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Not caught: the default action ends the process also inside a loop of the library.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, SECONDS + size / BYTES_PER_SECOND)
    try:
        with h5py.File(sys.argv[1], "r", locking=False) as file:
            arrays, texts = collect(file, _DEFLATED * size)
    except Exception as error:  # the errors of HDF5 are of many kinds
        sys.stderr.write(" ".join(f"{error}".split()))
        sys.exit(1)
    write(arrays, texts, sys.stdout.buffer)


if __name__ == "__main__":
    main()
