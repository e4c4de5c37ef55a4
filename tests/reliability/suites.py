"""Runs tests in a process of their own, and counts what became of them."""

from __future__ import annotations

import base64
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
_STATISTICS = "hypothesis-statistics-"
_WHERE = "import importlib.util as u; print(u.find_spec('landscapex').origin)"


@dataclass(frozen=True)
class Suite:
    """What became of the tests of a process.

    Attributes:
        passed: Names of tests that passed.
        failed: Names of tests that failed, or could not be set up.
        skipped: Names of tests that were skipped, each with the reason.
        examples: Inputs that hypothesis drew for each of its tests and that went well, by name.
        seconds: That the process took.
    """

    passed: tuple[str, ...]
    failed: tuple[str, ...]
    skipped: Mapping[str, str]
    examples: Mapping[str, int]
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether tests ran, and none failed or was skipped."""
        return bool(self.passed) and not self.failed and not self.skipped

    def __str__(self) -> str:
        named = f" ({', '.join(self.failed[:3])})" if self.failed else ""
        why = f" ({'; '.join(sorted(set(self.skipped.values())))})" if self.skipped else ""
        return (
            f"{len(self.passed)} passed, {len(self.failed)} failed{named}, "
            f"{len(self.skipped)} skipped{why}"
        )


def run_tests(*arguments: str) -> Suite:
    """Run pytest in the root of the checkout, on the landscapex of this process.

    Args:
        arguments: Of pytest: files, ``-k``, ``-m``.

    Returns:
        What became of the tests.

    Raises:
        RuntimeError: If the process would import another landscapex, or did not get to its tests.
    """
    # -P: the checkout's folder is on the path only where PYTHONPATH says so, as in this process
    python = [sys.executable, "-P"]
    found = subprocess.run([*python, "-c", _WHERE], cwd=ROOT, capture_output=True, text=True)
    here = importlib.util.find_spec("landscapex")
    if here is None or found.stdout.strip() != here.origin:
        raise RuntimeError(
            f"tests must be of {here and here.origin}, got {found.stdout.strip()}; "
            "run with `python -P` or PYTHONSAFEPATH=1."
        )
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report}", "-o", "junit_family=xunit1", *arguments]
        began = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
        seconds = time.monotonic() - began
        # 0: all passed; 1: some did not. A process that crashed leaves no report.
        if done.returncode not in (0, 1) or not report.exists():
            said = (done.stdout + done.stderr)[-3000:]
            raise RuntimeError(f"pytest ended with exit status {done.returncode}:\n{said}")
        return _read(ElementTree.parse(report).getroot(), seconds)


def _read(report: ElementTree.Element, seconds: float) -> Suite:
    passed, failed, skipped = [], [], {}
    for case in report.iter("testcase"):
        name = case.get("name", "")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif (skip := case.find("skipped")) is not None:
            skipped[f"{case.get('classname')}.{name}"] = skip.get("message", "")
        else:
            passed.append(name)
    examples = {
        name.removeprefix(_STATISTICS): _passing(base64.b64decode(made.get("value", "")).decode())
        for made in report.iter("property")
        if (name := made.get("name", "")).startswith(_STATISTICS)
    }
    return Suite(tuple(passed), tuple(failed), skipped, examples, seconds)


def _passing(statistics: str) -> int:
    """Examples that went well, in all phases, by the words of hypothesis."""
    return sum(map(int, re.findall(r"(\d+) passing\b", statistics)))
