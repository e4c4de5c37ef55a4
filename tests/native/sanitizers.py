"""Tests with a module of the package built for a sanitizer, in a process that preloads it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from native.harness import COMPILER, ROOT

LIBRARIES = {"address": ["libasan.so", "libubsan.so"], "thread": ["libtsan.so"]}
REPORTS = ("AddressSanitizer", "ThreadSanitizer", "runtime error: ")
PLUGIN = """
import importlib.util, sys
import landscapex

spec = importlib.util.spec_from_file_location("landscapex.{name}", {library!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules["landscapex.{name}"] = landscapex.{name} = module
"""


def run(
    kind: str, name: str, library: Path, folder: Path, tests: Sequence[str], *choice: str
) -> tuple[int, str]:
    """Run tests under a sanitizer.

    Args:
        kind: Of sanitizer: a key of `LIBRARIES`.
        name: Of the module that is replaced.
        library: What replaces it.
        folder: For files of the run.
        tests: Files below tests/, or tests in them.
        choice: More arguments of pytest.

    Returns:
        Exit status, and what was printed.
    """
    assert COMPILER is not None
    (folder / "sanitized.py").write_text(PLUGIN.format(name=name, library=str(library)))
    preloaded = [
        subprocess.check_output([COMPILER, f"-print-file-name={file}"], text=True).strip()
        for file in LIBRARIES[kind]
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(preloaded),
        # Python keeps what it needs to the end; threads of the emulation change stacks
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        # torch and Python were not built for it
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 exitcode=66 report_thread_leaks=0",
        "OMP_NUM_THREADS": "1",
        # an empty entry would be the checkout, which has no libraries
        "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "pytest", "-p", "sanitized", "-x", "-q", "-m", "not slow"]
    command += ["--capture", "no"]  # a process that a sanitizer ends prints nothing later
    if setarch := shutil.which("setarch"):
        command = [setarch, "-R", *command]  # the race detector dislikes random addresses
    paths = [str(ROOT / "tests" / test) for test in tests]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", *choice, *paths],
        capture_output=True, text=True, errors="replace", env=environment, cwd=ROOT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def check(status: int, printed: str) -> None:
    """Fail unless tests ran and nothing was reported.

    Args:
        status: Of `run`.
        printed: Likewise.
    """
    assert status == 0, printed[-4000:]
    assert " passed" in printed
    assert "could not import" not in printed  # tests that skip find nothing either
    assert not any(report in printed for report in REPORTS)
