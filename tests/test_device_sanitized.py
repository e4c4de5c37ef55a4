"""The grid program for devices under sanitizers, on the emulation.

No access beside a buffer, nothing undefined, no race between CUDA threads; and what is planted is
found, so that silence means something.
"""

from __future__ import annotations

import pytest
from native import sanitizers
from native.device_module import DeviceModule
from native.harness import COMPILER, marks, whole

pytest.importorskip("landscapex._program_emulated")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
]
MODULE = "_program_emulated"
KERNELS, LOSSES = "test_program_kernels.py", "test_program_losses.py"
STEPS, DRIVER = "test_device_steps.py", "test_device_driver.py"
FLOAT64 = f"{DRIVER}::test_a_program_is_that_of_float64_at_every_point"
WAIT = f"{STEPS}::test_steps_of_a_block_wait_for_each_other"
FILES = [KERNELS, LOSSES, STEPS, DRIVER]
# What `make check` runs: every kernel with all its shapes, in steps and in blocks, and the driver.
CASES = "(emulated and computes_what_torch and 17-48) or whole_cell or long_rows or many_positions"
CHECKED = f"(({CASES}) and not order) or (at_every_point and not tf32)"
# The order of threads changes no address, and a race is one in any order.
RACES = "(emulated and computes_what_torch) or whole_cell or long_rows or many_positions"
CHOSEN = {
    ("address", "checked"): (FILES, CHECKED),
    ("thread", "checked"): (FILES, f"({CHECKED}) and not bf16"),
    ("address", "all"): (FILES, "not order and (emulated or device)"),
    ("thread", "all"): (FILES, f"(({RACES}) and not order) or (driver and not bf16 and not tf32)"),
}


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return DeviceModule(tmp_path_factory)


@pytest.mark.parametrize(
    ("kind", "what"), [pytest.param(*key, marks=marks(key[1] == "checked")) for key in CHOSEN]
)
def test_sanitizers_find_nothing(kind, what, module, tmp_path):
    tests, choice = CHOSEN[kind, what]
    library = module.build(kind)
    sanitizers.check(*sanitizers.run(kind, MODULE, library, tmp_path, tests, "-k", choice))


PLANTED = {
    "an output past the last": (
        "undefined", "program/form.cu", "i < args.count * args.lanes",
        "i <= args.count * args.lanes", "", f"{FLOAT64}[fp32]", "index 512 out of bounds",
    ),
    "sums past the last": (
        "memory", "program/form.cu", "  if (i >= of_tile) return;\n", "", "", f"{FLOAT64}[fp32]",
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
    library = module.plant(file, old, new, unit, kind)
    status, printed = sanitizers.run(whole(kind), MODULE, library, tmp_path, [test])
    assert status != 0
    assert says in printed, printed[-4000:]
