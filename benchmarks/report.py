"""Makes RESULTS.md and results.png of what the benchmarks wrote.

python benchmarks/report.py benchmarks/out/benchmarks.json
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import figure

HERE = Path(__file__).parent
OURS, BF16 = "landscapex", "landscapex, bf16"
PLANE = 51 * 51

# How many times as long as ours another contender should take, in CPU time of one thread.
# workload -> ours -> (other, at least, aim)
TARGETS: dict[str, dict[str, tuple[tuple[str, float, float], ...]]] = {
    "W1": {
        OURS: (
            ("loss-landscape style", 6.5, 8.5),
            ("loss-landscapes", 5.2, 6.8),
            ("landscaper", 4.8, 6.3),
            ("PyTorch in place", 4.8, 6.2),
            ("PyTorch in place, oneDNN", 2.2, 2.9),
        ),
        BF16: (("loss-landscape style", 9, 15), ("PyTorch in place, bf16", 2.4, 3.3)),
    },
    "W2": {
        OURS: (
            ("loss-landscape style", 8.5, 15),
            ("loss-landscapes", 13, 22),
            ("landscaper", 13, 22),
            ("PyTorch in place", 5.5, 9),
            ("torch.compile", 4.8, 8),
        )
    },
    "W3": {
        OURS: (
            ("loss-landscape style", 2, 3.5),
            ("loss-landscapes", 3.4, 5.5),
            ("landscaper", 2.7, 4.5),
            ("PyTorch in place", 1.4, 2.5),
            ("torch.compile", 1.3, 2.2),
        )
    },
    "W4": {
        OURS: (
            ("loss-landscape style", 2.1, 3.5),
            ("loss-landscapes", 3.4, 5.5),
            ("landscaper", 2.3, 4),
            ("PyTorch in place", 1.3, 2.2),
        )
    },
    "W6": {
        OURS: (
            ("loss-landscape style", 1.2, 2),
            ("loss-landscapes", 2.2, 3.5),
            ("PyTorch in place", 1.1, 1.7),
        )
    },
}
EFFICIENCY = (0.95, 1.0)  # CPU time of one thread / that of two

METHOD = """\
Each contender computes losses of the same model on the same data at points of a plane through its
weights, along two filter-normalised random directions (landscaper rescales directions and gets a
plane of its own). First every result is compared with float64, then all contenders run in turn,
round by round, in one process. Times are medians of five rounds, per grid point. The ratio is that
of the same round: how many times as long as landscapex. A loop costs the same at every point, so
it gets few; landscapex shares work among points and gets more, and is timed between its first and
its last report of finished points: what a call does once is the subject of the last section. Batch
size and layout of "in place" are the fastest of a search with the same number of threads.

*loss-landscape style*: weights set tensor by tensor, a DataLoader of 128, as
tomgoldstein/loss-landscape. *loss-landscapes* 3.0.6 and *landscaper* 1.3.1: as published, all data
in one batch. *in place*: weights written in place, data preloaded; *oneDNN* replaces the BLAS of
linear layers, *bf16* is autocast. *torch.compile*: in place, model and loss compiled. *vmap*:
functional_call over eight points. The difference is the largest relative one from float64 at what
was asked for: loss-landscapes evaluates odd rows one step off and landscaper adds noise to the
maximum; apart from that they are exact to rounding.
"""


GPU_WORKLOADS = ("W1", "W2", "W3", "W4")
GPU_METHOD = """\
Per grid point, by events of the device, which is idle when they are read; medians of five rounds in
which all run in turn. Data and weights are resident. *in place*: weights written in place, losses
added up on the device, one synchronisation per point; batch size and layout are the fastest of a
search. Every contender first gave the plane of the float64 reference on the processor.
"""


@dataclass(frozen=True)
class Entry:
    """One workload with one number of threads."""

    workload: str
    title: str
    data: str
    threads: int
    contenders: Mapping[str, Mapping[str, Any]]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class GpuEntry:
    """One workload on a GPU."""

    gpu_workload: str
    gpu: str
    samples: int
    contenders: Mapping[str, Mapping[str, Any]]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class Results:
    """What a run of the benchmarks found."""

    date: str
    machine: Mapping[str, str]
    entries: Sequence[Entry]
    first_point: Mapping[str, Mapping[str, Any]]
    gpu: Sequence[GpuEntry] = ()

    @property
    def threads(self) -> list[int]:
        return sorted({e.threads for e in self.entries})

    def of(self, threads: int) -> dict[str, Entry]:
        return {e.workload: e for e in self.entries if e.threads == threads}


def read(path: Path) -> Results:
    """What pytest-benchmark wrote; other benchmarks in the file are left alone.

    Raises:
        ValueError: If no workload is among them.
    """
    found = json.loads(path.read_text())
    extras = [b["extra_info"] for b in found["benchmarks"]]
    fields = Entry.__dataclass_fields__
    entries = [Entry(**{f: e[f] for f in fields}) for e in extras if "workload" in e]
    if not entries:
        raise ValueError(f"`{path.name}` must hold results of bench_workloads.py, got none.")
    machine = next(e["machine"] for e in extras if "workload" in e)
    first = next((e["first_point"] for e in extras if "first_point" in e), {})
    on_gpu = [
        GpuEntry(**{f: e[f] for f in GpuEntry.__dataclass_fields__})
        for e in extras
        if "gpu_workload" in e
    ]
    return Results(found["datetime"][:10], machine, entries, first, on_gpu)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> str:
    """A Markdown table with columns to the left or right: ``"llr"``."""
    rule = ["---:" if side == "r" else "---" for side in sides]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def number(x: float) -> str:
    """Three digits."""
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def times(entries: Mapping[str, Entry]) -> str:
    rows = []
    for name, entry in entries.items():
        for contender, row in entry.contenders.items():
            strong = "**" if contender == OURS else ""
            rows.append(
                [
                    name,
                    f"{strong}{contender}{strong}",
                    number(row["cpu ms"]),
                    number(row["wall ms"]),
                    _with_extremes(row, "cpu ratio"),
                    f"{row['wall ratio']:.2f}",
                    f"{row['difference']:.0e}",
                    f"{row['about']}, {row['points']} points",
                ]
            )
        rows += [
            [name, contender, *["-"] * 5, f"not run: {reason}"]
            for contender, reason in entry.skipped.items()
        ]
    head = ["", "", "CPU ms", "wall ms", "CPU ratio (extremes)", "wall ratio"]
    return table([*head, "difference", "how"], rows, "ll" + "r" * 5 + "l")


def _with_extremes(row: Mapping[str, Any], what: str) -> str:
    return f"{row[what]:.2f} ({row[f'{what} min']:.2f}-{row[f'{what} max']:.2f})"


def ratio(entry: Entry, ours: str, other: str) -> float | None:
    """CPU time of another over ours; None if one of them did not run."""
    rows = entry.contenders
    if ours not in rows or other not in rows:
        return None
    if ours == OURS:
        return rows[other]["cpu ratio"]
    return rows[other]["cpu ms"] / rows[ours]["cpu ms"]


def targets(entries: Mapping[str, Entry]) -> str:
    rows = []
    for name, entry in entries.items():
        for ours, others in TARGETS[name].items():
            for other, least, aim in others:
                found = ratio(entry, ours, other)
                rows.append(
                    [name, ours, other, f"{least:g}", f"{aim:g}", *_verdict(found, least, aim)]
                )
    head = ["", "", "against", "at least", "aim", "measured", ""]
    return table(head, rows, "lllrrrl")


def _verdict(found: float | None, least: float, aim: float) -> tuple[str, str]:
    if found is None:
        return "-", "not run"
    word = "aim" if found >= aim else "reached" if found >= least else "missed"
    return f"{found:.2f}", word


def efficiency(one: Mapping[str, Entry], more: Mapping[str, Entry]) -> str:
    """CPU time of one thread over that of all, and how much sooner all finish."""
    rows = []
    for name in one.keys() & more.keys():
        for contender, row in one[name].contenders.items():
            other = more[name].contenders.get(contender)
            if other is not None:
                spent, taken = (row[f"{c} ms"] / other[f"{c} ms"] for c in ("cpu", "wall"))
                rows.append([name, contender, f"{spent:.2f}", f"{taken:.2f}"])
    order = list(one)
    rows.sort(key=lambda row: order.index(row[0]))
    return table(["", "", "CPU-time efficiency", "speed-up (wall)"], rows, "llrr")


def break_even(entries: Mapping[str, Entry]) -> str:
    """From how many points on a call is faster than the loop in place, with the same threads."""
    rows = []
    for name, entry in entries.items():
        ours, loop = entry.contenders[OURS], entry.contenders["PyTorch in place"]
        mine, theirs = ours["wall ms"], loop["wall ms"]
        once = ours["once seconds"] * 1e3
        plane = (number((once * k + PLANE * ms) / 1e3) for k, ms in ((1, mine), (0, theirs)))
        points = _break_even(once, mine, theirs)
        rows.append([name, number(once), number(mine), number(theirs), points, *plane])
    head = ["", "once, ms", "each point, ms", "in place, ms", "break-even, points"]
    return table([*head, "51 x 51, s", "in place, s"], rows, "lrrrrrr")


def _break_even(once: float, mine: float, other: float) -> str:
    """The least number of points n for which ``once + n mine < n other``."""
    if mine >= other:
        return "none"
    return f"{max(1, math.floor(once / (other - mine)) + 1):,}"


def first_points(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            f"`engine={name!r}`: {row['engine']}",
            *(number(row[k] * 1e3) for k in ("cold", "warm", "per point")),
        ]
        for name, row in found.items()
    ]
    head = ["", "once in a new process, ms", "once later, ms", "each point, ms"]
    auto, eager = found["auto"], found["eager"]
    new, later = (
        _break_even(auto[k] - eager[k], auto["per point"], eager["per point"])
        for k in ("cold", "warm")
    )
    return (
        f"{table(head, rows, 'lrrr')}\n\nBreak-even of the two, in points: {new} in a new process, "
        f"{later} later."
    )


def gpu_table(entries: Sequence[GpuEntry]) -> str:
    """Times by the events of the device; without one, what would stand there."""
    if not entries:
        rows = [[name, "not measured: no GPU", *["-"] * 5] for name in GPU_WORKLOADS]
    else:
        rows = []
    for entry in entries:
        name = f"{entry.gpu_workload}, {entry.samples:,} samples"
        for contender, row in entry.contenders.items():
            strong = "**" if contender == OURS else ""
            rows.append(
                [
                    name,
                    f"{strong}{contender}{strong}",
                    number(row["device ms"]),
                    number(row["wall ms"]),
                    _with_extremes(row, "device ratio"),
                    f"{row['difference']:.0e}",
                    f"{row['about']}, {row['points']} points",
                ]
            )
        rows += [
            [name, contender, *["-"] * 4, f"not run: {reason}"]
            for contender, reason in entry.skipped.items()
        ]
    head = ["", "", "device ms", "wall ms", "device ratio (extremes)", "difference", "how"]
    return table(head, rows, "llrrrrl")


def gpu_section(entries: Sequence[GpuEntry]) -> list[str]:
    """The part of the page about GPUs."""
    names = ", ".join(sorted({e.gpu for e in entries}))
    return [
        "## On a GPU",
        f"Measured on {names}." if entries else "Not measured: there was no GPU.",
        GPU_METHOD.strip(),
        gpu_table(entries),
    ]


def markdown(results: Results, picture: str) -> str:
    """The page."""
    one, *rest = (results.of(n) for n in results.threads)
    facts = "\n".join(f"| {k} | {v} |" for k, v in results.machine.items())
    data = "\n".join(f"| {e.workload} | {e.title} | {e.data} |" for e in one.values())
    parts = [
        "# Results of the benchmarks",
        f"Written by `make bench` on {results.date}. Ratios hold for this machine: the BLAS of"
        " torch is faster on some processors (MKL on those of Intel) than on others.",
        "| | |\n|---|---|\n" + facts,
        f"![How many times as long as landscapex]({picture})",
        "## Method",
        METHOD.strip(),
        "| | model | weights and data |\n|---|---|---|\n" + data,
    ]
    for n in results.threads:
        parts += [f"## {_threads(n)}", times(results.of(n))]
    parts += ["## Targets", "CPU time of one thread.", targets(one)]
    if rest:
        least, aim = EFFICIENCY
        parts += [
            f"## {_threads(results.threads[-1])} against one",
            f"Efficiency: CPU time of one thread over that of all; at least {least:g}, aim"
            f" {aim:g}.",
            efficiency(one, rest[-1]),
        ]
    parts += [
        "## What a call does once",
        "One thread, wall time. A call reads the data and checks the centre before its first point;"
        " the first one with an Objective also captures the model and compares the plan with it."
        " Break-even: from so many points on, the call takes less time than the loop in place,"
        " whose own preparation is left out.",
        break_even(one),
    ]
    if results.first_point:
        parts += ["A small network (1,437 images of 8 x 8):", first_points(results.first_point)]
    parts += gpu_section(results.gpu)
    return "\n\n".join(parts) + "\n"


def _threads(n: int) -> str:
    return "One thread" if n == 1 else f"{n} threads"


def main(path: Path, folder: Path = HERE) -> None:
    results = read(path)
    picture = folder / "results.png"
    entries = {n: results.of(n) for n in results.threads}
    figure.plot(entries, OURS).savefig(picture, dpi=110)
    (folder / "RESULTS.md").write_text(markdown(results, picture.name))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
