"""The page docs/compared.md, of what everyone answered."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from compare_cases import OURS, TOOLS, Case, Column, Entry, Raised, Value

HEAD = """# Compared with other tools

landscapex and seven other packages, on the same small cases whose answers are known. Every entry
ran in a process of its own, on one thread of a CPU, as its documentation shows and with its default
options; an option that helps has a row of its own. **Bold** is wrong by more than the case allows.
True values are closed forms in float64 or, where it says so, central differences.

This page is made by `make compared` and shows only what ran. Made again, it has the same text but
for the times near its end.

"""
FOOT = """## What is not compared

Some of these tools do what landscapex does not: curvlinops has Kronecker-factored approximations
and inverses of curvature matrices, landscaper merge trees and other topology of a surface,
loss-landscapes metrics of reinforcement-learning agents. None of that was run. The tools were
installed without their dependencies; what they import for features that nothing here calls is
replaced by empty modules. The scripts of Li et al. (tomgoldstein/loss-landscape) are not among the
tools: they are run from a checkout, which this command does not fetch. Nothing ran on a GPU.
"""
TIMES = """## Times

Only this section differs from run to run. CPU milliseconds on one thread, and how many times as
long as landscapex took in the same round: medians and extremes of rounds in which all ran in turn
in one process. First everyone's numbers were compared with float64. Points are of a surface of the
bundled network, all of whose samples are one batch: whole calls are timed, with all that they
prepare; losscape without the picture that it always draws, loss-landscape-3d with a copied state.
Products are with the Hessian of that network over 512 samples in four batches. {processor}.

"""


@dataclass(frozen=True)
class Results:
    """Everything that is on the page.

    Attributes:
        answers: By the name of the case and the label of the entry; ``"true"`` is the truth.
        missing: Tools that could not be installed, and why.
        versions: By name, of tools, Python and torch.
        kernels: What landscapex ran on.
        times: By what was timed and contender, or why there are none.
        processor: That the times were taken on.
    """

    answers: Mapping[str, Mapping[str, Any]]
    missing: Mapping[str, str]
    versions: Mapping[str, str]
    kernels: str
    times: Mapping[str, Mapping[str, Mapping[str, float]]] | Raised
    processor: str


def page(cases: Sequence[Case], results: Results) -> str:
    """Markdown."""
    parts = [HEAD, _versions(results), _summary(cases, results)]
    parts += [_section(case, results.answers[case.name]) for case in cases]
    parts += [_times(results), FOOT]
    return "".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines) + "\n"


def _versions(results: Results) -> str:
    named = [f"{name} {version}" for name, version in results.versions.items()]
    text = f"Versions: {', '.join(named)}. landscapex ran on {results.kernels}.\n\n"
    for tool, reason in results.missing.items():
        text += f"{tool} was not run: it could not be installed (`{reason}`).\n\n"
    return text


# --- Verdicts ------------------------------------------------------------------------------------


def verdict(case: Case, given: Any, true: Mapping[str, Value]) -> str:
    """How many of the columns are right."""
    judged = [c for c in case.columns if c.judged]
    right = sum(_is_right(c, given, true) for c in judged)
    return "right" if right == len(judged) else f"{right} of {len(judged)}"


def _is_right(column: Column, given: Any, true: Mapping[str, Value]) -> bool:
    value = given if isinstance(given, Raised) else given[column.title]
    return not isinstance(value, Raised) and column.right(value, true[column.title])


def _summary(cases: Sequence[Case], results: Results) -> str:
    names = [OURS, *TOOLS]
    rows = []
    for case in cases:
        answers = results.answers[case.name]
        row = [_verdicts(case, tool, answers) for tool in names]
        rows.append([case.title, *row])
    return (
        "How many of the quantities of each case a tool has right, as it is called first; in "
        "brackets, with an option. A dash: it does not offer this.\n\n" + table(["", *names], rows)
    )


def _verdicts(case: Case, tool: str, answers: Mapping[str, Any]) -> str:
    entries = [e for e in case.entries if e.tool == tool and e.label in answers]
    if not entries:
        return "-" if not any(e.tool == tool for e in case.entries) else "not run"
    found = [verdict(case, answers[e.label], answers["true"]) for e in entries]
    first = found[0] if found[0] == "right" else f"**{found[0]}**"
    return f"{first} (right)" if "right" in found[1:] and found[0] != "right" else first


# --- One case ------------------------------------------------------------------------------------


def _section(case: Case, answers: Mapping[str, Any]) -> str:
    true = answers["true"]
    ran = [e for e in case.entries if e.label in answers]
    head = ["", *(c.title for c in case.columns)]
    rows = [["*true*", *(_true(c, true[c.title]) for c in case.columns)]]
    rows += [[e.label, *_cells(case, answers[e.label], true)] for e in ran]
    notes = "".join(f"* {line}\n" for e in ran for line in _lines(case, e, answers[e.label]))
    absent = f"{case.absent}\n\n" if case.absent else ""
    return f"## {case.title}\n\n{case.about}\n\n{table(head, rows)}{absent}{notes}\n"


def _true(column: Column, value: Value) -> str:
    return number(value, column.digits) if column.judged else ""


def _cells(case: Case, given: Any, true: Mapping[str, Value]) -> Iterator[str]:
    for column in case.columns:
        value = given if isinstance(given, Raised) else given[column.title]
        if isinstance(value, Raised):
            yield f"**{value.message.partition(':')[0]}**"
            continue
        exact = true[column.title]
        text = number(_without_rounding(value, exact, column), column.digits)
        yield text if column.right(value, exact) else f"**{text}**"


def _without_rounding(value: Value, true: Value, column: Column) -> Value:
    """Zeros in place of what is as good as 0, whose digits would be rounding errors."""
    if isinstance(true, str) or isinstance(value, str):
        return value
    limit = min(column.allowed(true), 1e-4 * (float(np.abs(true).max()) or 1.0))
    return [0.0 if abs(v) < limit else v for v in np.atleast_1d(value).tolist()]


def number(value: Value, digits: int) -> str:
    """Words as they are, numbers to some digits."""
    if isinstance(value, str):
        return value.replace("|", "\\|")
    return ", ".join(f"{v:.{digits}g}" for v in np.atleast_1d(value))


def _lines(case: Case, entry: Entry, given: Any) -> Iterator[str]:
    """The call, what was raised, and what lies behind it."""
    first = next(e for e in case.entries if e.tool == entry.tool)
    note = case.notes.get(entry.tool, "") if entry is first else ""
    yield f"{entry.label}: {code(entry.call)}." + (f" {note}" if note else "")
    if isinstance(given, Raised):
        yield f"{entry.label}: {code(given.message)}"
        return
    errors = [(title, v.message) for title, v in given.items() if isinstance(v, Raised)]
    for message, group in itertools.groupby(errors, key=lambda pair: pair[1]):
        yield f"{entry.label}, {', '.join(title for title, _ in group)}: {code(message)}"


def code(text: str) -> str:
    """Also of text with backticks."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


# --- Times ---------------------------------------------------------------------------------------


def _times(results: Results) -> str:
    text = TIMES.format(processor=results.processor)
    if isinstance(results.times, Raised):
        return f"{text}Not measured: {code(results.times.message)}\n\n"
    rows = []
    for what, contenders in results.times.items():
        for name, row in contenders.items():
            ratio = "{:.2f} ({:.2f}-{:.2f})".format(
                *(row[f"cpu ratio{which}"] for which in ("", " min", " max"))
            )
            rows.append([what, name, f"{row['cpu ms']:.3g}", ratio])
    return text + table(["", "", "CPU ms", "times landscapex"], rows)
