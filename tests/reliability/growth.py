"""R4: resident memory over many evaluations."""

from __future__ import annotations

from collections.abc import Iterator

from reliability.figure import Figure
from reliability.memory import GROWTH, WAYS, growth

EVALUATIONS = 100_000
_LEAST = 2500  # in fewer, one page more would be a violation


def measure(share: float) -> Iterator[Figure]:
    """The figures of memory that evaluations might keep.

    Args:
        share: Of `EVALUATIONS`.

    Yields:
        One for the loss of an objective and one for each engine.
    """
    asked = max(_LEAST, round(share * EVALUATIONS))
    for way in WAYS:
        what = "`Objective.loss`" if way == "loss" else f"surfaces, {way} engine"
        try:
            made, grown = growth(asked, way)
        except RuntimeError as error:
            yield Figure(what, f"{asked:,} evaluations", str(error).splitlines()[-1], False)
            continue
        found = f"resident memory grew by {grown:.2%}"
        yield Figure(what, f"{made:,} evaluations", found, made >= asked and grown < GROWTH)
