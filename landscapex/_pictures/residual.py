"""Residual over projection: what a run does away from the line to its solution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from landscapex._pictures.curves import COLORS
from landscapex._pictures.interpolation import names_of
from landscapex._pictures.layout import Picture, add_header
from landscapex._pictures.panel import GREEK
from landscapex._pictures.scale import number_text
from landscapex.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from landscapex.studies.residuals import ResidualCoordinates

_MARKED = 40  # checkpoints that are drawn as dots, so that a reader sees how many there are
_GREY = "0.45"
_ABOVE = 1.15  # the highest residual: as far as the random walk is drawn


def residuals(
    *runs: ResidualCoordinates, labels: Sequence[str] | None = None, title: str = ""
) -> Figure:
    """Draw residual over projection, and how large the residual is beside the parameters.

    Args:
        *runs: At least one.
        labels: One name per run; None for their own.
        title: Above all; may be empty.

    Returns:
        The figure.

    Raises:
        ArgumentError: If there is no run, or ``labels`` do not fit.
    """
    if not runs:
        raise ArgumentError("`residuals` needs at least one run, got none.")
    if labels is None:
        labels = [run.label or f"run {k + 1}" for k, run in enumerate(runs)]
    names = names_of(runs, labels)
    figure = Picture(figsize=(10.4, 4.6))
    left, right = figure.subplots(1, 2)
    handles = _draw_walk(left, runs)
    for k, (run, name) in enumerate(zip(runs, names, strict=True)):
        color = COLORS[k % len(COLORS)]
        x, y = run.alpha / run.length, run.beta / run.length
        dots = "o" if len(run) <= _MARKED else ""
        left.plot(x, y, color=color, linewidth=1.6, marker=dots, markersize=3)
        left.plot(x[:1], y[:1], color=color, marker="s", markersize=6, markeredgecolor="black")
        if run.solution is not None:
            at = run.solution
            left.plot(
                x[at], y[at], color=color, marker="*", markersize=13, markeredgecolor="black",
                linestyle="none", clip_on=False, zorder=4,
            )  # fmt: skip
        handles.append(Line2D([], [], color=color, linewidth=1.6, label=name))
    left.set_aspect("equal", adjustable="datalim")
    left.set_xlabel(f"projection {GREEK['alpha']} / distance to the solution")
    left.set_ylabel("residual β / distance to the solution")
    left.grid(True, color="0.9", linewidth=0.6)
    left.set_axisbelow(True)
    add_header(left, title, [*_marks(runs), *handles], width=50)
    _draw_sizes(right, runs)
    return figure


def _draw_walk(ax: Axes, runs: Sequence[ResidualCoordinates]) -> list[Artist]:
    """The walk that goes on for longest after its solution, but no higher than the runs."""
    alpha, beta = max((run.random_walk() for run in runs), key=lambda shape: float(shape[1].max()))
    most = max(float(np.nanmax(run.beta)) / run.length for run in runs)
    beta = np.where(beta <= max(most, 0.5) * _ABOVE, beta, np.nan)
    ax.plot(alpha, beta, color=_GREY, linewidth=1.2, linestyle="dashed", zorder=1)
    label = "a random walk of as many steps, n → ∞"
    return [Line2D([], [], color=_GREY, linewidth=1.2, linestyle="dashed", label=label)]


def _marks(runs: Sequence[ResidualCoordinates]) -> list[Artist]:
    style: dict[str, Any] = {"color": "white", "markeredgecolor": "black", "linestyle": "none"}
    handles: list[Artist] = [Line2D([], [], marker="s", markersize=6, label="start", **style)]
    if any(run.solution is not None for run in runs):
        handles.append(Line2D([], [], marker="*", markersize=11, label="solution", **style))
    return handles


def _draw_sizes(ax: Axes, runs: Sequence[ResidualCoordinates]) -> None:
    """What a picture of the shape alone leaves out."""
    handles: list[Artist] = []
    if len(runs) == 1:
        handles = _draw_lengths(ax, runs[0])
    else:
        for k, run in enumerate(runs):
            progress = (run.steps - run.steps[0]) / max(run.steps[-1] - run.steps[0], 1)
            ax.plot(progress, run.relative_residual, color=COLORS[k % len(COLORS)], linewidth=1.6)
        ax.set_xlabel("step / last step")
        ax.set_ylabel("residual β / length of the parameters ‖θ‖")
    ax.set_ylim(bottom=0)
    ax.grid(True, color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
    add_header(ax, "", handles)


def _draw_lengths(ax: Axes, run: ResidualCoordinates) -> list[Artist]:
    """Residual and parameters in their own unit."""
    color = COLORS[0]
    ax.plot(run.steps, run.norm, color=color, linewidth=1.2, linestyle="dashed", label="‖θ‖")
    ax.plot(run.steps, run.beta, color=color, linewidth=1.6, label="residual β")
    ax.set_xlabel("step")
    ax.set_ylabel("length, in the unit of the parameters")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    handles = list(ax.get_legend_handles_labels()[0])
    share = np.where(np.isfinite(run.relative_residual), run.relative_residual, -np.inf)
    at = int(np.argmax(share))
    if np.isfinite(share[at]):
        text = f"at most {number_text(100 * float(share[at]), 3)} % of ‖θ‖, at step {run.steps[at]}"
        handles.append(Line2D([], [], linestyle="none", label=text))
    return handles
