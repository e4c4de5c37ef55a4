"""The grid program under sanitizers: no access beside a buffer, no race between threads.

The module is built for the baseline instruction set: sizes, tables and threads are the same in all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGIN = """
import importlib.util, sys
import landscapex

spec = importlib.util.spec_from_file_location("landscapex._program", {module!r})
program = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)
sys.modules["landscapex._program"] = landscapex._program = program
"""
KERNELS = ["test_program_kernels.py", "test_program_losses.py", "test_bf16.py"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("sanitizer", "libraries", "choice"),
    [
        ("address", ["libasan.so", "libubsan.so"], []),
        ("thread", ["libtsan.so"], ["-k", "threads"]),
    ],
)
def test_kernels_are_clean(
    tmp_path: Path, sanitizer: str, libraries: list[str], choice: list[str]
) -> None:
    build = tmp_path / "build"
    options = [f"-DLANDSCAPEX_SANITIZE={sanitizer}", "-DLANDSCAPEX_CUDA=OFF"]
    python = f"-DPython_EXECUTABLE={sys.executable}"
    tools = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    run(["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *options, python], tools)
    run(["cmake", "--build", str(build), "--target", "_program"], tools)

    (module,) = build.glob("_program*.so")
    (tmp_path / "sanitized.py").write_text(PLUGIN.format(module=str(module)))
    preloaded = [run(["gcc", f"-print-file-name={name}"], tools).strip() for name in libraries]
    environment = {
        **tools,
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps what it needs to the end
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 exitcode=66",  # torch, Python
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
    }
    tests = [str(ROOT / "tests" / name) for name in KERNELS]
    command = [sys.executable, "-m", "pytest", "-p", "sanitized", "-x", "-q", "-m", "not slow"]
    printed = run([*command, "-p", "no:cacheprovider", *choice, *tests], environment)
    assert " passed" in printed
    assert "WARNING: ThreadSanitizer" not in printed


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr
