"""What landscapex promises, and the page that shows how it was kept."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from reliability.figure import Figure

import landscapex as lx


@dataclass(frozen=True)
class Promise:
    """Something that users may rely on.

    Attributes:
        title: In a word or two.
        text: What is promised.
        modules: Of this package, which measure it: ``measure(share)`` yields figures.
    """

    title: str
    text: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """The figures of a promise.

    Attributes:
        promise: Its id.
        figures: At full count.
        seconds: That it took.
        date: Of the measurement.
    """

    promise: str
    figures: tuple[Figure, ...]
    seconds: float
    date: str


PROMISES = {
    "R1": Promise(
        "Crashes",
        "A run that is killed loses no point that it has acknowledged, leaves nothing unreadable, "
        "and goes on to the same bits.",
        ("kills",),
    ),
    "R2": Promise(
        "Exceptions",
        "Whatever is raised, and wherever, no bit of the model is different afterwards.",
        ("exceptions",),
    ),
    "R3": Promise(
        "Damaged files",
        "A damaged file gives an error of ours: no crash, no hang over 5 s, no other number.",
        ("damage", "fuzz"),
    ),
    "R4": Promise(
        "Memory",
        "Kernels keep to their memory and to their turn, on the CPU and on an emulated device; "
        "evaluations keep none of it.",
        ("growth", "sanitizers"),
    ),
    "R5": Promise(
        "Operators",
        "Every operator is known to torch with its shapes and dtypes, and may be compiled.",
        ("operators",),
    ),
    "R6": Promise("Properties", "What must hold for all inputs holds for drawn ones.", ("laws",)),
    "R7": Promise("Threads", "Threads may share an objective.", ("threads",)),
    "R8": Promise(
        "Short memory",
        "With half of the memory that it wants, a run finishes with the same numbers and says "
        "which batch it chose.",
        ("halved",),
    ),
    "R9": Promise(
        "Tests that bite",
        "At least 85 % of small changes to directions, grids and storage make a test fail, and all "
        "defects that are planted by hand.",
        ("mutants", "defects"),
    ),
    "R10": Promise(
        "Documentation",
        "Every block of code in the README and on these pages runs.",
        ("documentation",),
    ),
}

HEAD = """\
# Reliability in figures

Written by `make reliability` with landscapex {version}, torch {torch} and Python {python} on
{system}, {processor}; nothing here ran on a GPU. It took {minutes:.0f} minutes.
[Why these numbers can be trusted](trust.md) says what stands behind each promise.
"""

PART = """
## {id}: {title}

{text} Measured on {date}, in {seconds}.

| what | how often | found | |
|---|---|---|---|
{rows}
"""

MISSING = """
## {0}: {1.title}

{1.text} **Not measured** for this page.
"""


def page(measured: Sequence[Measured]) -> str:
    """The page, in Markdown, of what was measured."""
    head = HEAD.format(
        version=lx.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        minutes=sum(m.seconds for m in measured) / 60,
    )
    found = {m.promise: m for m in measured}
    parts = [_part(found[i]) if i in found else MISSING.format(i, PROMISES[i]) for i in PROMISES]
    return head + "".join(parts)


def _part(measured: Measured) -> str:
    promise = PROMISES[measured.promise]
    return PART.format(
        id=measured.promise,
        title=promise.title,
        text=promise.text,
        date=measured.date,
        seconds=_duration(measured.seconds),
        rows="\n".join(map(_row, measured.figures)),
    )


def _row(figure: Figure) -> str:
    cells = figure.what, figure.count, figure.found, "kept" if figure.kept else "**not kept**"
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _processor() -> str:
    """The name that Linux gives; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
