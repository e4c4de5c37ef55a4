"""R9: of defects that are planted by hand, how many the tests find that are there for them.

They are the mistakes of other tools, the faults, and what the engine, curvature, exports and
studies could get wrong. `make check` plants one of each name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from planted.table import TABLE
from reliability.figure import Figure
from reliability.suites import ROOT, run_tests

TESTS = ROOT / "tests/planted/test_planted.py"
FOUND = "test_a_planted_defect_is_found"


def measure(share: float) -> Iterator[Figure]:
    """The figure of all defects.

    Args:
        share: Of the defects.

    Yields:
        One.
    """
    planted = TABLE[: max(1, round(share * len(TABLE)))]
    names = [f"{TESTS}::test_without_a_defect_the_tests_pass"] if share == 1 else []
    names += [f"{TESTS}::{FOUND}[{p.name}]" for p in planted]
    tests = run_tests(*names, "-n", str(len(os.sched_getaffinity(0))), "-o", "timeout=3600")
    found = sum(name.startswith(FOUND) for name in tests.passed)
    yield Figure(
        "defects planted by hand",
        f"{len(planted)} defects",
        f"{found} found" if tests.clean else f"{found} found; {tests}",
        tests.clean and found == len(planted),
    )
