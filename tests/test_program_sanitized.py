"""The grid program under sanitizers: no access beside a buffer, no race between threads.

The module is built for the baseline instruction set: sizes, tables and threads are the same in all.
Its twin for devices has tests of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from native import sanitizers
from native.harness import COMPILER, ROOT, marks

KERNELS = ["test_program_kernels.py", "test_program_losses.py", "test_bf16.py"]
# `make check` runs the cases of every step; "all" adds shapes, numbers and the losses' own tests.
CHOSEN = {
    ("address", "checked"): "computes_what_torch and 17-48 and not cuda",
    ("thread", "checked"): "threads and not cuda",
    ("address", "all"): "not cuda",
}


@pytest.mark.timeout(900)
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("kind", "what"), [pytest.param(*key, marks=marks(key[1] == "checked")) for key in CHOSEN]
)
def test_kernels_are_clean(tmp_path: Path, kind: str, what: str) -> None:
    build = tmp_path / "build"
    options = [f"-DLANDSCAPEX_SANITIZE={kind}", "-DLANDSCAPEX_CUDA=OFF"]
    options += [f"-DPython_EXECUTABLE={sys.executable}"]
    make("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *options)
    make("cmake", "--build", str(build), "--target", "_program")
    (library,) = build.glob("_program*.so")
    choice = ["-k", CHOSEN[kind, what]]
    sanitizers.check(*sanitizers.run(kind, "_program", library, tmp_path, KERNELS, *choice))


def make(*command: str) -> None:
    """Run a tool of the environment."""
    tools = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, env=tools, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
