"""The lines of a journal: how points become text, and how damaged text is told from good.

The first line holds the header of the run, every other line one chunk of consecutive points,
values as hexadecimal floats::

    {"crc32":"5d0c…","landscapex journal":1,"shard":null,"header":{…}}
    {"crc32":"9a41…","start":0,"values":[["0x1.2p+1","0x1.8p-1"],["inf","nan"]]}

``crc32`` is that of the bytes behind its comma; for chunks it continues the number of the header,
so that a line of one journal is damage in another. A NaN other than the usual one is written with
its bits, ``"nan:fff8000000000000"``.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from landscapex._arrays import same_bits
from landscapex.errors import CorruptFileError
from landscapex.storage.files import seal, unseal
from landscapex.storage.header import RunHeader

VERSION: Final = 1
VALUE_BYTES: Final = 27  # the longest value: "-0x1.fffffffffffffp+1023",
LINE_BYTES: Final = 64  # a line without its values

_NAN_BITS: Final = 0x7FF8_0000_0000_0000


@dataclass(frozen=True)
class Contents:
    """A journal as it was read.

    Attributes:
        header: Of the run.
        shard: ``[i, n]`` or None.
        seed: Where the CRC of chunks begins.
        done: ``(G,)`` bool.
        values: ``(G, M)`` float64.
        damaged: Numbers, from 1, of bad lines before the last good one.
        end: Offset behind the last good line.
        tail: What follows there: empty, a line that is being written or never was finished, or
            damage.
    """

    header: RunHeader
    shard: list[int] | None
    seed: int
    done: np.ndarray
    values: np.ndarray
    damaged: tuple[int, ...]
    end: int
    tail: bytes


def is_empty(data: bytes) -> bool:
    """Whether a power cut left nothing of a journal; some file systems put zeros in its place."""
    return not data.strip(b"\0")


def parse(data: bytes, path: Path) -> Contents:
    """Take a journal apart; a line that is not whole counts for nothing.

    Args:
        data: The bytes of the journal.
        path: Where they come from, for messages.

    Returns:
        What the good lines say.

    Raises:
        CorruptFileError: If the header is not whole, or whole lines contradict each other.
    """
    lines = data.split(b"\n")
    lines.pop()  # what follows the last line break is no line yet
    seed = unseal(lines[0], 0) if lines else None
    if seed is None:
        raise CorruptFileError(
            f"{path} must begin with the header of a journal, got {data[:40]!r}: it is damaged or "
            "not a journal. Delete it, or pass resume=False, to start over."
        )
    header, shard = _parse_header(lines[0], path)
    size, columns = header.num_points, len(header.columns)
    done, values = np.zeros(size, dtype=bool), np.full((size, columns), np.nan)
    good, end, offset = 0, len(lines[0]) + 1, len(lines[0]) + 1
    bad = []
    for number, line in enumerate(lines[1:], start=1):
        offset += len(line) + 1
        if unseal(line, seed) is None:
            bad.append(number)
            continue
        _put(line, path, done, values)
        good, end = number, offset
    damaged = tuple(number + 1 for number in bad if number < good)
    return Contents(header, shard, seed, done, values, damaged, end, data[end:])


def _parse_header(line: bytes, path: Path) -> tuple[RunHeader, list[int] | None]:
    try:
        first = json.loads(line)
        if first["landscapex journal"] != VERSION:
            raise CorruptFileError(
                f"{path} must be a journal of version {VERSION}, got "
                f"{first['landscapex journal']!r}: another release of landscapex wrote it."
            )
        return RunHeader.from_json(json.dumps(first["header"])), first["shard"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"{path} must begin with a header: {error}") from error


def _put(line: bytes, path: Path, done: np.ndarray, values: np.ndarray) -> None:
    """Enter the points of one good line."""
    try:
        chunk = json.loads(line)
        start, rows = chunk["start"], _decode(chunk["values"])
        stop = start + len(rows)
        if not 0 <= start < stop <= len(done) or rows.shape[1:] != values.shape[1:]:
            raise ValueError(f"points {start} to {stop - 1} are not on the grid")
        again = done[start:stop]
        if not same_bits(values[start:stop][again], rows[again]):
            raise ValueError(f"points {start} to {stop - 1} were written twice and differ")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"{path} holds a line that makes no sense: {error}") from error
    values[start:stop] = rows
    done[start:stop] = True


def first_line(header: RunHeader, shard: tuple[int, int] | None) -> bytes:
    """The line that begins a journal.

    Args:
        header: Of the run.
        shard: Part and number of parts, None if the run is not split.

    Returns:
        The line with its line break.
    """
    part = json.dumps(None if shard is None else list(shard))
    return seal(f'"landscapex journal":{VERSION},"shard":{part},"header":{header.to_json()}}}', 0)


def chunk_line(start: int, values: np.ndarray, seed: int) -> bytes:
    """The line of some points, ready to be appended.

    Args:
        start: Number of the first point.
        values: ``(n, M)`` float64, C order.
        seed: `Contents.seed` of the journal.

    Returns:
        The line with its line break.
    """
    return seal(f'"start":{start},"values":{_encode(values)}}}', seed)


def _encode(values: np.ndarray) -> str:
    """Rows of hexadecimal floats as JSON."""

    def text(value: float, bits: int) -> str:
        return value.hex() if value == value or bits == _NAN_BITS else f"nan:{bits:016x}"

    rows = zip(values.tolist(), values.view(np.uint64).tolist(), strict=True)
    cells = (",".join(f'"{text(*cell)}"' for cell in zip(*row, strict=True)) for row in rows)
    return f"[[{'],['.join(cells)}]]"


def _decode(rows: Any) -> np.ndarray:
    """The inverse of `_encode`."""

    def value(text: str) -> float:
        if text.startswith("nan:"):
            return float(struct.unpack(">d", bytes.fromhex(text[4:]))[0])
        return float.fromhex(text)

    try:
        return np.array([[value(text) for text in row] for row in rows], dtype=np.float64)
    except (struct.error, AttributeError, OverflowError) as error:
        raise ValueError(str(error)) from error
