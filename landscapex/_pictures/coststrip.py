"""A cost strip in three dimensions: columns in the order of time, and the run on top of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.art3d import Poly3DCollection  # type: ignore[import-untyped]

from landscapex._pictures.contours import colors_for, hole_handles
from landscapex._pictures.gallery import RELIEF, name_heights
from landscapex._pictures.layout import Picture, add_colorbar, add_header
from landscapex._pictures.panel import GREEK, hole_texts
from landscapex._pictures.relief import BOX, brightness, polygons
from landscapex._pictures.scale import choose

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

    from landscapex.studies.coststrip import CostStrip

_RUN = "#D55E00"  # stands out from viridis, also for the colour-blind
_LEVELS = 7


def cost_strip(strip: CostStrip, *, scale: str = "auto", title: str = "") -> Figure:
    """Draw the loss over progress and offset, with the run as a curve.

    Args:
        strip: What to draw.
        scale: "auto", "linear", "log" or "symlog".
        title: Above all; may be empty.

    Returns:
        The figure.

    Raises:
        ArgumentError: If the scale cannot be used.
    """
    fitted = choose([strip.loss, strip.true_loss], scale)
    figure = Picture(figsize=(7.8, 6.0))
    ax = figure.add_subplot(**RELIEF)
    along = strip.coordinates
    heights = fitted.forward(strip.loss)
    cmap, norm = colors_for(fitted)
    shapes, middle = polygons(along.alpha, strip.offsets, heights)
    if shapes:
        # Opaque and lit: through a fold that lies over another neither could be read.
        colors = np.asarray(ScalarMappable(norm, cmap).to_rgba(middle))
        colors[:, :3] *= brightness(shapes, along.alpha, strip.offsets, fitted)[:, None]
        ax.add_collection3d(
            Poly3DCollection(
                shapes, facecolors=colors, edgecolors=(0, 0, 0, 0.25), linewidths=0.3, zorder=2
            )
        )
    first, last = fitted.limits()
    finite = along.alpha[np.isfinite(along.alpha)]
    ax.set(
        xlim=(finite.min(), finite.max()),
        ylim=(strip.offsets.min(), strip.offsets.max()),
        zlim=(first, last),
    )
    true = fitted.forward(strip.true_loss)
    run: dict[str, Any] = {"color": _RUN, "linewidth": 2.2, "zorder": 5}
    ax.plot(along.alpha, along.beta, true, **run)
    ax.plot(along.alpha[:1], along.beta[:1], true[:1], color=_RUN, marker="s", zorder=6)
    handles: list[Artist] = [
        Line2D([], [], color=_RUN, linewidth=2.2, marker="s", markevery=[0], label="the run")
    ]
    if along.solution is not None:
        at = slice(along.solution, along.solution + 1)
        style: dict[str, Any] = {
            "color": _RUN,
            "marker": "*",
            "markeredgecolor": "black",
            "markersize": 13,
        }
        ax.plot(along.alpha[at], along.beta[at], true[at], linestyle="none", zorder=7, **style)
        handles.append(Line2D([], [], linestyle="none", label="solution", **style))
    handles += _remarks(strip)
    handles += hole_handles(hole_texts(strip.loss, strip.evaluated, fitted))
    lines = fitted.levels(_LEVELS)
    ax.set_box_aspect(BOX, zoom=1.1)
    ax.view_init(elev=28, azim=-62)
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_pane_color((1.0, 1.0, 1.0, 0.0))
    ax.grid(False)
    ax.xaxis.set_major_locator(MaxNLocator(4, prune="upper"))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.tick_params(labelsize=8, pad=0)
    name_heights(ax, "loss", lines, fitted.texts(lines))
    ax.set_xlabel(
        f"{GREEK['alpha']}, progress to the solution\nin the unit of the parameters", labelpad=14
    )
    ax.set_ylabel("along the residual v(t)\nof each checkpoint", labelpad=14)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set_fontsize(9)
    add_header(ax, title, handles, rows=len(handles))
    if not fitted.empty:
        add_colorbar(figure, "loss", fitted, lines, "neither", ax=[ax], shrink=0.62, pad=0.09)
    return figure


def _remarks(strip: CostStrip) -> list[Artist]:
    """What the picture is not, and where progress went backwards."""
    texts = ["columns in the order of time; no plane: v(t) turns"]
    none = int((strip.coordinates.beta == 0).sum())
    if none:
        texts.append(
            f"{none} {'column has' if none == 1 else 'columns have'} no residual: v(t) is random"
        )
    back = int((np.diff(strip.coordinates.alpha) < 0).sum())
    if back:
        times = "time" if back == 1 else "times"
        texts.append(f"{GREEK['alpha']} goes back {back} {times}: the strip folds over")
    return [Line2D([], [], linestyle="none", label=text) for text in texts]
