"""Memory of a process: half of what a run wants is enough, and no evaluation keeps any of it."""

from __future__ import annotations

import sys

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="address space is that of Linux"),
    pytest.mark.timeout(300),
]
memory = pytest.importorskip("reliability.memory")


def test_fault_20_a_run_with_half_the_memory_it_wants_says_its_batch_and_gives_the_same():
    """The system refuses memory, not a stand-in: address space has a limit."""
    run = memory.halved("eager")
    assert run.wanted > 2**24  # else the limit would be no limit
    assert run.batch is not None
    assert 1 <= run.batch < memory.SAMPLES
    assert run.noted
    assert run.difference <= memory.TOLERANCE


@pytest.mark.parametrize("way", ["loss", "eager"])
def test_memory_does_not_grow_with_evaluations(way):
    """The measurement R4 takes many more of them."""
    evaluations, grown = memory.growth(2500, way)
    assert evaluations >= 2500
    assert grown < memory.GROWTH
