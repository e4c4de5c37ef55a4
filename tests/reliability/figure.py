"""What a promise comes down to, in figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line of the table of promises.

    Attributes:
        what: Was done, and to what: "SIGKILL, eager engine, four processes".
        count: How often, with its unit: "250 kills".
        found: What was seen, in numbers, whether it is good or bad.
        kept: Whether that is what was promised.
    """

    what: str
    count: str
    found: str
    kept: bool
