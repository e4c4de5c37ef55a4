"""Eigenvalues in their order, with residuals as error bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from landscapex._pictures.layout import Picture, add_header
from landscapex._pictures.scale import number_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from landscapex.curvature.eigenpairs import Eigenpairs

_COLOR, _DOUBTFUL = "#0072B2", "#D55E00"


def eigenvalues(found: Eigenpairs, *, title: str = "") -> Figure:
    """Draw eigenvalues from the largest down, each with its residual as a bar.

    Args:
        found: What to draw.
        title: Above all; may be empty.

    Returns:
        The figure.
    """
    order = np.argsort(found.values)[::-1]
    values, residuals = found.values[order], found.residuals[order]
    good = found.converged[order]
    figure = Picture(figsize=(6.4, 3.8))
    ax = figure.subplots()
    places = np.arange(1, len(order) + 1)
    handles = []
    for chosen, color, face, word in (
        (good, _COLOR, _COLOR, "converged"),
        (~good, _DOUBTFUL, "white", "not converged"),
    ):
        if not chosen.any():
            continue
        ax.errorbar(
            places[chosen], values[chosen], residuals[chosen], fmt="o", color=color,
            markerfacecolor=face, capsize=3,
        )  # fmt: skip
        handles.append(Line2D([], [], marker="o", ls="", color=color, mfc=face, label=word))
    if values.min() < 0 < values.max():
        ax.axhline(0, color="0.6", lw=0.8, zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(
        f"rank among those found (bars: residuals, at most {number_text(float(residuals.max()))}; "
        f"{found.products} products)"
    )
    ax.set_ylabel("eigenvalue")
    ax.grid(alpha=0.3)
    of = f" of the {found.matrix}" if found.matrix else ""
    add_header(ax, title or f"{len(order)} eigenvalues{of} ({found.which})", handles, rows=1)
    return figure
