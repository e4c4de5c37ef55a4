"""Asking a tool: in a process of its own that is stopped when its time is over."""

from __future__ import annotations

import contextlib
import multiprocessing
import subprocess
import sys
import warnings
from collections.abc import Callable
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from compare_cases import TOOLS, Case, Raised, answer, raised

PINS = Path(__file__).parents[1] / ".ci" / "oracles.txt"


def pins() -> dict[str, str]:
    """Versions by distribution, in lower case."""
    lines = [line.strip() for line in PINS.read_text().splitlines()]
    return dict(line.lower().split("==") for line in lines if "==" in line)


def install(folder: Path) -> dict[str, str]:
    """Install the pinned tools without their dependencies, each into a folder of its own.

    Returns:
        Why those are missing that could not be installed.
    """
    missing = {}
    for tool, distribution in TOOLS.items():
        target = folder / distribution
        pin = f"{distribution}=={pins()[distribution]}"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        if not target.exists():
            run = subprocess.run([*command, target, pin], capture_output=True, text=True)
            if run.returncode:
                missing[tool] = (run.stderr.strip().splitlines() or ["pip failed"])[-1]
                continue
        sys.path.insert(1, str(target))  # before what may be installed already
    return missing


class Stopped(Exception):
    """Its time was over, or its process ended without an answer."""


def ask(question: Callable[[], Any], seconds: float) -> Any:
    """Call in a child process.

    The parent has imported torch but computed nothing, so that children may be forked.

    Returns:
        What the function returns, or `Raised`.

    Raises:
        Stopped: There was no answer in time, or the process died.
    """
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    process = fork.Process(target=_send, args=(question, there))
    process.start()
    there.close()
    try:
        if not here.poll(seconds):
            raise Stopped(f"stopped after {seconds:g} s")
        return here.recv()
    except EOFError:
        process.join()
        raise Stopped(f"its process ended with {process.exitcode}") from None
    finally:
        process.kill()
        process.join()


def _send(question: Callable[[], Any], there: Connection) -> None:
    import matplotlib
    import torch

    torch.set_num_threads(1)
    matplotlib.use("Agg")
    warnings.simplefilter("ignore")
    try:
        with contextlib.redirect_stdout(StringIO()), contextlib.redirect_stderr(StringIO()):
            made = question()
    except BaseException as error:  # with pytest's Skipped, which is no Exception
        made = raised(error)
    there.send(made)


def answers(case: Case, missing: dict[str, str]) -> dict[str, Any]:
    """What everyone answers, by label; ``"true"`` is the truth.

    An answer has a value or `Raised` for each column, or is one `Raised`.
    """
    found: dict[str, Any] = {"true": ask(case.true, case.seconds)}
    for entry in case.entries:
        if entry.tool in missing:
            continue
        try:
            found[entry.label] = ask(lambda entry=entry: answer(entry), case.seconds)
        except Stopped as reason:
            found[entry.label] = Raised(str(reason))
    return found
