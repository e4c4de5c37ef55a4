"""What is compared: questions whose answers are known, and the calls that everyone answers with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

OURS = "landscapex"
# Name in tables -> distribution, whose pinned version is in .ci/oracles.txt.
TOOLS = {
    "loss-landscapes": "loss-landscapes",
    "landscaper": "landscaper",
    "losscape": "losscape",
    "loss-landscape-3d": "loss-landscape-3d",
    "PyHessian": "pyhessian",
    "curvlinops": "curvlinops-for-pytorch",
    "hessian-eigenthings": "hessian-eigenthings",
}

Value = float | str | list[float]
Cells = Mapping[str, Value]


@dataclass(frozen=True)
class Raised:
    """What a tool raised in place of a value, in one line."""

    message: str


@dataclass(frozen=True)
class Column:
    """A quantity that is asked for.

    Attributes:
        title: In the table, and the key of its values.
        within: How far a right number may lie from the true one: relative to the largest true one,
            absolute where that is 0. Words must be equal.
        digits: Significant ones in the table.
        judged: Or only shown.
    """

    title: str
    within: float = 0.0
    digits: int = 4
    judged: bool = True

    def right(self, value: Value, true: Value) -> bool:
        """Whether a value is the true one."""
        if not self.judged:
            return True
        if isinstance(true, str) or isinstance(value, str):
            return value == true
        found, exact = np.atleast_1d(value), np.atleast_1d(true)
        if found.shape != exact.shape:
            return False
        return bool(np.all(np.abs(found - exact) <= self.allowed(true)))  # not so for NaN

    def allowed(self, true: float | list[float]) -> float:
        """The largest error of a right number."""
        return self.within * (float(np.abs(true).max()) or 1.0)


@dataclass(frozen=True)
class Entry:
    """One way in which one tool answers.

    Attributes:
        tool: Its name in the table.
        call: What is called, as its user would write it.
        run: Gives a value, or a function that gives one, for each column. What the function raises
            is the answer for its column alone.
        option: What tells it from the tool's other entries.
    """

    tool: str
    call: str
    run: Callable[[], Mapping[str, Value | Callable[[], Value]]]
    option: str = ""

    @property
    def label(self) -> str:
        return f"{self.tool}, {self.option}" if self.option else self.tool


@dataclass(frozen=True)
class Case:
    """A question to several tools.

    Attributes:
        name: Short, for the command line.
        title: A heading.
        about: What is asked and what is true, in Markdown.
        columns: The quantities.
        true: Their values, in float64.
        entries: landscapex first.
        notes: What lies behind a wrong answer, by tool.
        absent: Why other tools are not in the table.
        varying: Columns in which rounding decides about a tool's answer, by label: it is another
            on another processor.
        seconds: After which an entry is stopped.
    """

    name: str
    title: str
    about: str
    columns: Sequence[Column]
    true: Callable[[], Cells]
    entries: Sequence[Entry]
    notes: Mapping[str, str] = field(default_factory=dict)
    absent: str = ""
    varying: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seconds: float = 300.0

    def entry(self, label: str) -> Entry:
        return next(e for e in self.entries if e.label == label)

    def __post_init__(self) -> None:
        labels = [e.label for e in self.entries]
        assert labels[0] == OURS
        assert len(set(labels)) == len(labels)
        assert set(self.notes) <= set(TOOLS)
        assert set(self.varying) <= set(labels)


def answer(entry: Entry) -> dict[str, Value | Raised]:
    """Run an entry: the values, and what was raised in place of some of them."""
    return {title: _attempt(given) for title, given in entry.run().items()}


def raised(error: BaseException) -> Raised:
    """The first line of an error."""
    lines = str(error).strip().splitlines() or [""]
    return Raised(f"{type(error).__name__}: {lines[0]}".rstrip(": "))


def _attempt(given: Value | Callable[[], Value]) -> Value | Raised:
    try:
        made = given() if callable(given) else given
    except Exception as error:  # whatever a tool raises is its answer
        return raised(error)
    return made if isinstance(made, str) else np.asarray(made, dtype=float).tolist()
