"""R6: what must hold for all inputs, on many more drawn inputs than every day."""

from __future__ import annotations

import re
from collections.abc import Iterator

from reliability.figure import Figure
from reliability.suites import ROOT, run_tests

TIMES = 10  # as many examples as every day, at full count
LEAST = 20  # properties that were promised


def measure(share: float) -> Iterator[Figure]:
    """The figures of all tests that hypothesis drives.

    Args:
        share: Of `TIMES`.

    Yields:
        One for each file, and one for all.
    """
    times = max(1, round(TIMES * share))
    properties, examples, kept = 0, 0, True
    for path in sorted(ROOT.glob("tests/test_*.py")):
        if not re.search(r"^@given\b", path.read_text(), re.MULTILINE):
            continue
        # the usual limit of time is for as many examples as every day
        options = "-m", "property and not gpu", "-o", "timeout=3600", f"--examples={times}"
        try:
            found = run_tests(str(path), *options)
        except RuntimeError as error:
            yield Figure(path.name, "-", str(error).splitlines()[0], False)
            kept = False
            continue
        drawn = sum(found.examples.values())
        well = found.clean and all(found.examples.values())
        properties, examples = properties + len(found.examples), examples + drawn
        kept &= well
        count = f"{len(found.examples)} properties, {drawn:,} examples"
        yield Figure(path.name, count, str(found), well)
    yield Figure(
        "all properties",
        f"{properties} properties, {examples:,} examples",
        "all held" if kept else "not all held",
        kept and properties >= LEAST,
    )
