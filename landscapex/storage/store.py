"""Results on disk: NetCDF files that are whole or refused.

A result is a NetCDF-4 file that any HDF5 or netCDF reader opens. Its first 512 bytes, a user block
that HDF5 leaves to the application, hold the SHA-256 of all the rest, and `read_dataset` checks it
before HDF5 parses a byte: damaged HDF5 files often load, with other numbers.

The journal of a run that is still going is in `landscapex.storage.journal`.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Final

import h5netcdf
import xarray as xr
from xarray.backends import H5NetCDFStore

from landscapex.errors import CorruptFileError
from landscapex.storage import files
from landscapex.storage.files import (
    check_output,
    check_path,
    check_result_name,
    check_space,
    read_file,
    replace_file,
)
from landscapex.storage.header import AxisInfo, RunHeader
from landscapex.storage.journal import Journal, fail_missing, journal_path, result_path
from landscapex.storage.parts import find_journals, read_journals, remove_journals

__all__ = [
    "AxisInfo",
    "Journal",
    "RunHeader",
    "check_path",
    "fail_missing",
    "find_journals",
    "journal_path",
    "read_dataset",
    "read_journals",
    "remove_journals",
    "result_path",
    "write_dataset",
]

USER_BLOCK: Final = 512  # bytes, the smallest that HDF5 knows
MAGIC: Final = b"landscapex result 1; the rest is HDF5 (NetCDF-4)\n"
_CHUNK_ENTRIES: Final = 1 << 20


def write_dataset(dataset: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a dataset so that ``path`` holds either all of it or what it held before.

    Args:
        dataset: Any dataset that NetCDF can hold; NaN is written as it is, with its bits.
        path: Where to; an existing file is replaced.

    Returns:
        The absolute path, links followed.

    Raises:
        ArgumentError: If the name ends like a file of another format.
        OutputError: If ``path`` cannot be written, there is no room, or a file of something else
            is there.
    """
    target = check_output(path, "path")
    check_result_name(path, "path")
    check_replaceable(target)
    data = _to_bytes(dataset)
    check_space(target, len(data))
    replace_file(target, data)
    return target


def check_replaceable(path: Path) -> None:
    """Refuse to replace a file that is not a result.

    Args:
        path: Where a result will be written.

    Raises:
        OutputError: If something else is there.
    """
    files.check_replaceable(path, (MAGIC,), "it is not a landscapex result")


def read_dataset(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a dataset that `write_dataset` wrote.

    Args:
        path: The file.

    Returns:
        The dataset, in memory.

    Raises:
        CorruptFileError: If the file does not exist, is not one of ours, or has changed by as
            much as one bit.
    """
    source = check_path(path)
    data = read_file(source)
    if not data.startswith(MAGIC):
        what = "an empty file" if not data else f"one that begins with {data[:16]!r}"
        raise CorruptFileError(f"{source} must be a result of landscapex, got {what}.")
    if data[:USER_BLOCK] != _user_block(data[USER_BLOCK:]):
        raise CorruptFileError(
            f"{source} is damaged: its {len(data):,} bytes do not have the SHA-256 that was "
            "written with them."
        )
    try:
        with h5netcdf.File(io.BytesIO(data), "r", decode_vlen_strings=True) as file:
            return xr.load_dataset(H5NetCDFStore(file))
    except Exception as error:  # whatever HDF5 makes of a file that has our hash but is not ours
        raise CorruptFileError(f"{source} is not a result of landscapex: {error}") from error


def _to_bytes(dataset: xr.Dataset) -> bytes:
    """The file as bytes: results are small, and one write(2) is easier to get right than many."""
    prepared = dataset.copy()
    for name, variable in prepared.variables.items():
        encoding: dict[str, object] = {"_FillValue": None}  # NaN is a result, not a hole
        if variable.size and variable.ndim and variable.dtype.kind in "fiub":
            encoding.update(fletcher32=True, chunksizes=_chunks(variable.shape))
        prepared[name].encoding = encoding
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w", userblock_size=USER_BLOCK, track_order=True) as file:
        prepared.dump_to_store(H5NetCDFStore(file))
    data = buffer.getvalue()[USER_BLOCK:]
    return _user_block(data) + data


def _user_block(data: bytes) -> bytes:
    text = MAGIC + b"SHA-256 of the bytes from %d on: " % USER_BLOCK
    return (text + hashlib.sha256(data).hexdigest().encode() + b"\n").ljust(USER_BLOCK, b"\0")


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Checksums need chunks: one for all if it is not too large, else slabs of the first axis."""
    rest = 1
    for length in shape[1:]:
        rest *= length
    return (max(1, min(shape[0], _CHUNK_ENTRIES // rest)), *shape[1:])
