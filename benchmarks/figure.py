"""The figure of the benchmarks: one panel per workload, one bar per contender."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_COLUMNS = 2
_COLORS = ("#0072b2", "#e69f00")  # apart for every kind of colour vision
_BAR = 0.38


def plot(entries: Mapping[int, Mapping[str, Any]], ours: str) -> Figure:
    """Ratios to `ours`: CPU time with one thread, wall time with all.

    Args:
        entries: Threads -> workload -> its entry.
        ours: The contender that is 1.
    """
    counts = sorted(entries)
    names = list(entries[counts[0]])
    rows = -(-(len(names) + 1) // _COLUMNS)
    with mpl.rc_context({"font.size": 9}):
        picture = Figure(figsize=(10, 3.1 * rows), layout="constrained")
        axes = list(picture.subplots(rows, _COLUMNS, squeeze=False).flat)
        for name, ax in zip(names, axes, strict=False):
            _panel(ax, {n: entries[n][name] for n in counts if name in entries[n]}, ours)
        rest = axes[len(names) :]
        for ax in rest:
            ax.set_axis_off()
        legends = (ax.get_legend_handles_labels() for ax in axes)
        handles, labels = max(legends, key=lambda found: len(found[1]))
        note = f"Times as long as {ours} (1, the line).\nLonger bars: slower than {ours}."
        rest[0].text(0.0, 0.95, note, transform=rest[0].transAxes, va="top", fontsize=11)
        rest[0].legend(handles, labels, loc="upper left", bbox_to_anchor=(0.0, 0.7), frameon=False)
    return picture


def _panel(ax: Axes, entries: Mapping[int, Any], ours: str) -> None:
    first = next(iter(entries.values()))
    names = [n for n in first.contenders if n != ours]
    ax.axvline(1, color="black", linewidth=1, zorder=0.5)
    for k, (threads, entry) in enumerate(entries.items()):
        clock, label = ("cpu", "one thread, CPU time")
        if threads > 1:
            clock, label = ("wall", f"{threads} threads, wall time")
        shift = (k - (len(entries) - 1) / 2) * _BAR
        found = {
            i + shift: entry.contenders[n][f"{clock} ratio"]
            for i, n in enumerate(names)
            if n in entry.contenders
        }
        color = _COLORS[threads > 1]
        bars = ax.barh(list(found), list(found.values()), _BAR, color=color, label=label)
        texts = [f"{v:.2g}" if v < 10 else f"{v:.0f}" for v in found.values()]
        ax.bar_label(bars, texts, padding=3, fontsize=7)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlim(0, ax.get_xlim()[1] * 1.1)
    ax.set_title(f"{first.workload}: {first.title}", loc="left")
    ax.spines[["top", "right"]].set_visible(False)
