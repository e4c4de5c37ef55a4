"""A process that has imported everything but the package, and forks a child for each run of pytest.

It is run as a script. Each line of its input is a request in JSON: pytest's arguments and a time
limit in seconds. The answer is a line too: the exit status, or null if the time was not enough, and
what pytest said.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from importlib.metadata import entry_points
from pathlib import Path
from typing import NoReturn

IMPORTED = (
    "torch._dynamo",
    "torch.export",
    "scipy.linalg",
    "scipy.sparse.linalg",
    "scipy.stats",
    "matplotlib.pyplot",
    "h5netcdf",
    "hypothesis.strategies",
    "pytest",
    "safetensors.torch",
    "tqdm.auto",
    "typer",
    "xarray",
)
BETWEEN = 0.005  # seconds from one look at a child to the next


def serve() -> None:
    """Answer requests until the input ends."""
    for name in IMPORTED:
        importlib.import_module(name)
    for plugin in entry_points(group="pytest11"):
        plugin.load()
    gc.freeze()  # what is there now is no garbage: children need not look at it
    threads = Path("/proc/self/task")
    if threads.is_dir() and len(list(threads.iterdir())) > 1:
        raise RuntimeError("a process with threads must not fork")
    for line in sys.stdin:
        arguments, seconds = json.loads(line)
        with tempfile.TemporaryFile() as output:
            status = _child(arguments, seconds, output.fileno())
            output.seek(0)
            said = output.read().decode(errors="replace")
        print(json.dumps([status, said]), flush=True)


def _child(arguments: list[str], seconds: float, output: int) -> int | None:
    """The exit status of a child that runs pytest, None if the time was not enough."""
    pid = os.fork()
    if pid == 0:
        _run(arguments, output)
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(BETWEEN)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # with all that it started
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _run(arguments: list[str], output: int) -> NoReturn:
    """Become a process like ``python -m pytest ARGUMENTS``, and end as it does."""
    import pytest

    code = 70
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["pytest", *arguments]
        code = int(pytest.main(arguments))
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # whatever threads a defect has left behind


if __name__ == "__main__":
    serve()
