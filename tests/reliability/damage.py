"""Damaged files of every format that is read (R3): errors of ours, or the right numbers.

`damaged(files, number)` gives the same file again for the same number.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from reliability.figure import Figure
from reliability.formats import FORMATS, Format
from reliability.scratch import scratch
from reliability.workers import (
    CRASH,
    FOREIGN,
    HANG,
    OTHER,
    REFUSED,
    SAME,
    SECONDS,
    Read,
    serve,
)
from storage import mutate

FILES = 10_000  # per format
SEED = 3

Mutation = Callable[[bytearray, bytes, np.random.Generator], bytes | bytearray]

_LARGE = [0, 1, -1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, -(2**63)]
_WORDS = [b"0", b"-1", b"2", b"1e999", b"9" * 30, b"1" + b"0" * 400, b"9" * 5000, b"NaN", b"null"]
_WORDS += [b"[" * 50_000, b"-Infinity", b"{}", b'"', b"18446744073709551615", b"1.5", b"\0"]


def measure(share: float) -> Iterator[Figure]:
    """Read damaged files of every format."""
    torch.set_num_threads(1)
    count = max(20, round(FILES * share))
    for name, make in FORMATS.items():
        with scratch() as folder:
            yield figure(name, make(folder), count)


def figure(name: str, form: Format, count: int) -> Figure:
    """What became of so many damaged files of a format."""
    reads = read_damaged(form, count)
    final, note = list(reads.values()), ""
    if form.through is not None:
        # The library that may crash is asked in a process of its own: here, it was the worker's.
        ended = [r.number for r in final if r.what in (CRASH, HANG)]
        counts = Counter(r.what for r in final)
        final = list({**reads, **read_damaged(form, ended, form.through)}.values())
        note = (
            f"; the HDF5 library crashed on {counts[CRASH]:,} and hung on {counts[HANG]:,}, in the "
            "process that is there for it"
        )
    counts = Counter(r.what for r in final)
    for read in final:
        if read.what in (FOREIGN, CRASH, HANG) or (read.what == OTHER and not form.plain):
            print(f"{name}: {read}", file=sys.stderr)
    slowest = max(r.seconds for r in final)
    wrong = counts[FOREIGN] + counts[CRASH] + counts[HANG] + (counts[OTHER] and not form.plain)
    return Figure(
        f"damaged {name}",
        f"{len(final):,} files",
        f"{counts[REFUSED]:,} refused, {counts[SAME]:,} read right, {counts[OTHER]:,} with "
        f"other {form.unit}{' (nothing in this format tells)' if form.plain else ''}, "
        f"{counts[FOREIGN]:,} errors of others, {counts[CRASH]:,} crashes, {counts[HANG]:,} hangs; "
        f"the slowest took {slowest:.2f} s{note}",
        kept=not wrong and len(final) == count and slowest < SECONDS and counts[SAME] < 0.9 * count,
    )


def read_damaged(
    form: Format, numbers: int | Sequence[int], check: Callable[[Path], bool] | None = None
) -> dict[int, Read]:
    """Read damaged files.

    Args:
        form: Their format.
        numbers: How many, or which.
        check: How, if not as the format says.

    Returns:
        What became of each, by number.
    """
    check = check or form.check

    def work(number: int) -> bool:
        form.path.write_bytes(damaged(form.files, number, lines=form.lines))
        return check(form.path)

    wanted = range(numbers) if isinstance(numbers, int) else numbers
    return {read.number: read for read in serve(work, wanted)}


def damaged(files: Sequence[bytes], number: int, *, lines: bool) -> bytes:
    """The first of some files, with damage that depends on the number alone.

    Args:
        files: Valid ones; parts of the others may come into the first.
        number: Which damage.
        lines: Whether lines are what the format is made of.

    Returns:
        None of the files.
    """
    rng = np.random.default_rng([SEED, number])
    kinds = _KINDS + _OF_LINES * lines
    while True:
        data = files[0]
        other = files[int(rng.integers(len(files)))]
        for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
            kind = kinds[int(rng.integers(len(kinds)))]
            # spliced later, it may be the other file but for damage where it does not matter
            if data and (kind is not _splice or data == files[0]):
                data = bytes(kind(bytearray(data), other, rng))
        if data not in files:
            return data


# --- kinds of damage; all may change the array that they are given


def _any(data: bytearray, other: bytes, rng: np.random.Generator) -> bytes:
    return mutate(bytes(data), rng)


def _flip_one(data: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    """A bit of a byte that is not 0: files have much padding."""
    data[_used(data, rng)] ^= 1 << int(rng.integers(8))
    return data


def _byte(data: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    data[_used(data, rng)] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))]))
    return data


def _extend(data: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    size = int(rng.integers(1, 5000))
    return data + [rng.bytes(size), bytes(size), data[:size], bytearray(other)][rng.integers(4)]


def _swap(data: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    size = int(rng.choice([1, 2, 4, 8, 64, 512]))
    a, b = (int(k) * size for k in rng.integers(len(data) // size + 1, size=2))
    first, second = data[a : a + size], data[b : b + size]
    data[a : a + size], data[b : b + size] = second, first
    return data


def _repeat(data: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    size = int(rng.choice([1, 8, 64, 512, 4096]))
    at = int(rng.integers(len(data)))
    data[at:at] = data[at : at + size]
    return data


def _large(data: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    """A number where a length, an offset or a count may be."""
    size = int(rng.choice([1, 2, 4, 8]))
    at = _used(data, rng) // size * size
    value = int(rng.choice([*map(float, _LARGE), len(data), len(data) + 1, at]))
    order = "little" if rng.integers(2) else "big"
    data[at : at + size] = (value % 256**size).to_bytes(size, order)
    return data


def _word(data: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    """Another number in a text, or something that is none."""
    found = [m.span() for m in re.finditer(rb"-?\d+(\.\d+)?", data)]
    if found:
        start, stop = found[int(rng.integers(len(found)))]
        data[start:stop] = _WORDS[int(rng.integers(len(_WORDS)))]
    return data


def _splice(data: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    """The beginning of one file and the end of another, each with something of its own."""
    if bytes(data) == other:
        return data
    first = next((k for k, (a, b) in enumerate(zip(data, other, strict=False)) if a != b), 0)
    at = int(rng.integers(first, len(data))) + 1
    return data[:at] + other[at if rng.integers(2) else int(rng.integers(len(other))) :]


def _lines(data: bytearray, other: bytes, rng: np.random.Generator) -> bytes:
    """Lines lost, repeated, moved, or come from elsewhere."""
    own, theirs = bytes(data).splitlines(keepends=True), other.splitlines(keepends=True)
    at, to = (int(k) for k in rng.integers(len(own), size=2))
    match int(rng.integers(5)):
        case 0:
            del own[at]
        case 1:
            own.insert(to, own[at])
        case 2:
            own[at], own[to] = own[to], own[at]
        case 3:
            own.insert(to, theirs[int(rng.integers(len(theirs)))])
        case 4:
            own.append(rng.bytes(int(rng.integers(1, 99))) + b"\n" * int(rng.integers(2)))
    return b"".join(own)


_KINDS: list[Mutation] = [_any, _any, _flip_one, _byte, _extend, _swap, _repeat, _large, _word]
_KINDS += [_splice]
_OF_LINES: list[Mutation] = [_lines, _lines]


def _used(data: bytearray, rng: np.random.Generator) -> int:
    """A place that is not padding, every other time near the beginning."""
    used = np.flatnonzero(np.frombuffer(bytes(data), np.uint8))
    if not used.size:
        return int(rng.integers(len(data)))
    return int(rng.choice(used[:200] if rng.integers(2) else used))
