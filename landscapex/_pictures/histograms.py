"""Histograms of weights on shared bins, and norms over a training run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from landscapex._pictures.curves import COLORS
from landscapex._pictures.layout import Picture, add_header

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from landscapex.studies.histograms import WeightHistograms

_WIDE = 24  # characters below the right panel
_NAMED = 5  # checkpoints with a colour and a name each; more are coloured by their steps
_LAYERS = 6  # with a line each in the panel of norms


def histograms(found: WeightHistograms, *, log: bool = False, title: str = "") -> Figure:
    """Draw the histograms over each other, and the norms over the steps.

    Args:
        found: What to draw.
        log: Whether densities are drawn on a logarithmic scale.
        title: Above all; may be empty.

    Returns:
        The figure.
    """
    figure = Picture(figsize=(10.4, 4.4))
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    handles: list[Artist] = []
    several = len(found) > _NAMED
    norm = Normalize(float(found.steps[0]), float(max(found.steps[-1], found.steps[0] + 1)))
    palette = colormaps["viridis"]
    for t in range(len(found)):
        color = palette(norm(found.steps[t])) if several else COLORS[t % len(COLORS)]
        left.stairs(found.density[t], found.edges, color=color, linewidth=1.3, baseline=None)
        if not several:
            left.stairs(found.density[t], found.edges, color=color, fill=True, alpha=0.12)
            handles.append(Line2D([], [], color=color, linewidth=1.3, label=found.labels[t]))
    if found.outside.any():
        text = f"up to {found.outside.max():,} weights lie outside the bins or are not finite"
        handles.append(Line2D([], [], linestyle="none", label=text))
    if several:
        figure.colorbar(ScalarMappable(norm, palette), ax=[left], label="step")
    if log:
        left.set_yscale("log")
    else:
        left.set_ylim(bottom=0)
    left.set_xlabel("weight")
    left.set_ylabel("density")
    add_header(left, title, handles)
    _draw_norms(right, found)
    return figure


def _draw_norms(ax: Axes, found: WeightHistograms) -> None:
    """The whole, and the layers if they are few."""
    style: dict[str, Any] = {"marker": "o" if len(found) <= 40 else "", "markersize": 3}
    x = found.steps if len(found) > 1 else np.arange(len(found))
    ax.plot(x, found.weight_norms, color="black", linewidth=1.8, label="all weights", **style)
    if len(found.layers) <= _LAYERS:
        for k, name in enumerate(found.layers):
            color = COLORS[k % len(COLORS)]
            ax.plot(x, found.layer_norms[:, k], color=color, linewidth=1.1, label=name, **style)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if len(found) <= _NAMED:  # named models have no order that a line could follow
        for line in ax.lines:
            line.set(linestyle="none", marker="o", markersize=5)
        long = max(map(len, found.labels)) * len(found) > _WIDE
        turned: dict[str, Any] = (
            {"rotation": 25, "ha": "right", "rotation_mode": "anchor"} if long else {}
        )
        ax.set_xticks(x, found.labels, **turned)
        ax.margins(x=0.2)
    else:
        ax.set_xlabel("step")
    ax.set_ylabel("length of the weights, ‖w‖")
    ax.grid(True, color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
    add_header(ax, "", ax.get_legend_handles_labels()[0])
