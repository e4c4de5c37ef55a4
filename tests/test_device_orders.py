"""Every step case on the emulated device has the same bits, however it is run.

test_device_steps.py does a part of this every day.
"""

from __future__ import annotations

import emulated_device
import numpy as np
import pytest
from step_cases import CASES
from test_device_steps import BLOCK_BYTES, NAMES, run_case

from landscapex.engine.steps import Winograd

module = pytest.importorskip("landscapex._program_emulated")
ALL = [n for n in CASES if not any(isinstance(s, Winograd) for s in CASES[n](1).program.steps)]
EVERYDAY = ALL[::15]


def names(chosen: list[str]) -> list[object]:
    return [pytest.param(n, marks=[] if n in EVERYDAY else pytest.mark.slow) for n in chosen]


@pytest.mark.parametrize("name", names(ALL))
def test_chunks_of_one_cell_have_the_same_bits(name):
    np.testing.assert_array_equal(run_case(name, cache_bytes=1), run_case(name))


@pytest.mark.parametrize("name", names([n for n in ALL if n not in NAMES]))
def test_any_order_of_threads_and_whole_cells_have_the_same_bits(name):
    expected = run_case(name)
    for number in emulated_device.ORDERS.values():
        module.set_order(number, 3)
        try:
            found = run_case(name), run_case(name, block_bytes=BLOCK_BYTES)
        finally:
            module.set_order(0)
        for sums in found:
            np.testing.assert_array_equal(sums, expected)
