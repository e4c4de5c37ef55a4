"""Loss, gradient and the curvature along it over a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from landscapex._pictures.curves import COLORS
from landscapex._pictures.layout import Picture, add_header
from landscapex._pictures.scale import number_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from landscapex.criticality.history import GradientHistory

_WIDE = 30.0  # a curvature whose middle is this much smaller than its largest needs a symlog scale

_NARROW = 1e3  # a range that needs marks between the powers of ten


def draw_gradients(history: GradientHistory) -> Figure:
    """Draw the loss, the length of the gradient and the curvature along it, below each other.

    Args:
        history: What to draw.

    Returns:
        The figure.
    """
    figure = Picture(figsize=(6.8, 6.8))
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    _draw(top, history.steps, history.loss, "loss", COLORS[0])
    _draw(middle, history.steps, history.gradient_norm, "length of the gradient", COLORS[1])
    for ax, values in ((top, history.loss), (middle, history.gradient_norm)):
        if np.nanmin(values) > 0:
            ax.set_yscale("log")
            narrow = np.nanmax(values) < _NARROW * np.nanmin(values)
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
            _plain_ticks(ax)
    _draw(bottom, history.steps, history.curvature, "curvature along the gradient", COLORS[2])
    bottom.axhline(0, color="0.55", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    sizes = np.abs(history.curvature[np.isfinite(history.curvature)])
    half = float(np.median(sizes)) if sizes.size else 0.0
    if half > 0 and sizes.max() > _WIDE * half:
        bottom.set_yscale("symlog", linthresh=half)
        _plain_ticks(bottom)
    bottom.set_xlabel("step")
    add_header(top, "Does the gradient vanish as the loss falls?", [])
    return figure


def _draw(
    ax: Axes, steps: NDArray[np.float64], values: NDArray[np.float64], label: str, color: str
) -> None:
    ax.plot(steps, values, color=color, linewidth=1.8, marker="o", markersize=3, zorder=3)
    ax.set_ylabel(label)
    ax.grid(True, color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)


def _plain_ticks(ax: Axes) -> None:
    """Without powers, which matplotlib's parser of formulas would typeset."""
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number_text(value)))
    ax.yaxis.set_minor_formatter(NullFormatter())
