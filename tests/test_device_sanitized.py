"""The grid program for devices under sanitizers, on the emulation.

No access beside a buffer, nothing undefined, no race between CUDA threads; and what is planted is
found, so that silence means something.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from native.device_module import DeviceModule
from native.harness import COMPILER, ROOT

pytest.importorskip("landscapex._program_emulated")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
]
LIBRARIES = {"address": ["libasan.so", "libubsan.so"], "thread": ["libtsan.so"]}
REPORTS = ("AddressSanitizer", "ThreadSanitizer", "runtime error: ")
PLUGIN = """
import importlib.util, sys
import landscapex

spec = importlib.util.spec_from_file_location("landscapex._program_emulated", {module!r})
emulated = importlib.util.module_from_spec(spec)
spec.loader.exec_module(emulated)
sys.modules["landscapex._program_emulated"] = landscapex._program_emulated = emulated
"""
KERNELS, LOSSES = "test_program_kernels.py", "test_program_losses.py"
STEPS, DRIVER = "test_device_steps.py", "test_device_driver.py"
FLOAT64 = f"{DRIVER}::test_a_program_is_that_of_float64_at_every_point"
WAIT = f"{STEPS}::test_steps_of_a_block_wait_for_each_other"
# the order of threads changes no address, and a race is one in any order
CASES = "(emulated and computes_what_torch) or whole_cell or long_rows or many_positions"
CHOSEN = {
    "address": ([KERNELS, LOSSES, STEPS, DRIVER], "not order and (emulated or device)"),
    "thread": (
        [KERNELS, STEPS, DRIVER],
        f"(({CASES}) and not order and not 48) or (driver and not bf16 and not tf32)",
    ),
}


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return DeviceModule(tmp_path_factory.mktemp("sanitized"))


def run(
    kind: str, library: Path, folder: Path, tests: Sequence[str], *choice: str
) -> tuple[int, str]:
    """Tests with this library of the emulated device: exit status, and what was printed."""
    (folder / "sanitized.py").write_text(PLUGIN.format(module=str(library)))
    preloaded = [
        subprocess.check_output([COMPILER, f"-print-file-name={name}"], text=True).strip()
        for name in LIBRARIES[kind]
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(preloaded),
        # Python keeps what it needs to the end; threads of the emulation change stacks
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 exitcode=66 report_thread_leaks=0",
        "OMP_NUM_THREADS": "1",
        # an empty entry would be the checkout, which has no libraries
        "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "pytest", "-p", "sanitized", "-x", "-q", "-m", "not slow"]
    command += ["--capture", "no"]  # a process that a sanitizer ends prints nothing later
    if setarch := shutil.which("setarch"):
        command = [setarch, "-R", *command]  # the race detector dislikes random addresses
    paths = [str(ROOT / "tests" / name) for name in tests]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", *choice, *paths],
        capture_output=True, text=True, errors="replace", env=environment, cwd=ROOT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("kind", LIBRARIES)
def test_sanitizers_find_nothing(kind, module, tmp_path):
    tests, choice = CHOSEN[kind]
    status, printed = run(kind, module.build(kind), tmp_path, tests, "-k", choice)
    assert status == 0, printed[-4000:]
    assert " passed" in printed
    assert "could not import" not in printed  # tests that skip find nothing either
    assert not any(report in printed for report in REPORTS)


PLANTED = {
    "an output past the last": (
        "address", "program/form.cu", "i < args.count * args.lanes", "i <= args.count * args.lanes",
        "", f"{FLOAT64}[fp32]", "index 512 out of bounds",
    ),
    "sums past the last": (
        "address", "program/form.cu", "  if (i >= of_tile) return;\n", "", "", f"{FLOAT64}[fp32]",
        "heap-buffer-overflow",
    ),
    "no barrier between the steps of a block": (
        "thread", "program/network.cu", "network.cells, cell);\n    __syncthreads();",
        "network.cells, cell);", "", f"{WAIT}[forward]", "data race",
    ),
    "no barrier before sums are added": (
        "thread", "program/loss.cuh", "    sums[slot] = sum;\n  }\n  __syncthreads();\n",
        "    sums[slot] = sum;\n  }\n", "loss.cu", f"{FLOAT64}[fp32]", "data race",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_sanitizer_finds_what_is_planted(name, module, tmp_path):
    kind, file, old, new, unit, test, says = PLANTED[name]
    status, printed = run(kind, module.plant(file, old, new, unit, kind), tmp_path, [test])
    assert status != 0
    assert says in printed, printed[-4000:]
