"""Forked processes that read file after file, and are replaced when they die or hang."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import select
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from storage import fork, wait

from landscapex.errors import LandscapexError

SECONDS = 5.0  # that nothing may take
_ROOM = 4 << 30  # bytes of address space that a process may take beyond what it has

SAME, OTHER, REFUSED, FOREIGN, CRASH, HANG = "same", "other", "refused", "foreign", "crash", "hang"


@dataclass(frozen=True)
class Read:
    """What became of one file.

    Attributes:
        number: Of the file.
        what: `SAME` if it gave the right numbers, `OTHER` if not; `REFUSED` with an error of
            landscapex, `FOREIGN` with any other; `CRASH` or `HANG` of the process.
        seconds: That it took.
        said: The error.
    """

    number: int
    what: str
    seconds: float
    said: str = ""


def serve(work: Callable[[int], bool], numbers: Iterable[int]) -> Iterator[Read]:
    """Call ``work`` with every number, in a process that is not this one.

    Args:
        work: Makes a file, and reads it: whether its numbers are right.
        numbers: Of the files.

    Yields:
        What became of each, in order.
    """
    left = deque(numbers)
    while left:
        read, write = os.pipe()
        pid = fork(lambda end=write: _serve(work, left, end))
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            yield from _told(pipe.fileno(), left, pid)


def _told(pipe: int, left: deque[int], pid: int) -> Iterator[Read]:
    """What a process tells, until it ends, dies or hangs."""
    began, text = time.monotonic(), b""
    while True:
        patience = began + SECONDS - time.monotonic()
        ready, _, _ = select.select([pipe], [], [], max(patience, 0))
        if not ready:
            os.kill(pid, signal.SIGKILL)
            wait(pid)
            yield Read(left.popleft(), HANG, time.monotonic() - began)
            return
        if not (more := os.read(pipe, 1 << 16)):
            break
        *lines, text = (text + more).split(b"\n")
        for line in lines:
            left.popleft()
            yield Read(**json.loads(line))
        began = time.monotonic()
    status = wait(pid)
    if left:
        number = left.popleft()
        yield Read(number, CRASH, time.monotonic() - began, f"exit status {status}")


def _serve(work: Callable[[int], bool], numbers: Iterable[int], pipe: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("ignore")
    faulthandler.disable()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # what libraries say before they crash
    for number in numbers:
        began, said = time.monotonic(), ""
        try:
            what = SAME if work(number) else OTHER
        except LandscapexError as error:
            what, said = REFUSED, f"{type(error).__name__}: {error}"
        except BaseException as error:
            what, said = FOREIGN, f"{type(error).__name__}: {error}"
        told = {
            "number": number, "what": what, "seconds": time.monotonic() - began, "said": said[:300]
        }  # fmt: skip
        os.write(pipe, json.dumps(told).encode() + b"\n")
