"""A spectral density: how many eigenvalues lie where, on a logarithmic scale, and their sum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike

from landscapex._arrays import Array
from landscapex._pictures.curves import COLORS
from landscapex._pictures.layout import Picture, add_header
from landscapex._pictures.panel import wrapped
from landscapex._pictures.scale import Scale, number_text
from landscapex.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from landscapex.curvature.density import SpectralDensity


_AXES = ("auto", "linear", "symlog")
_WIDE = 30.0  # half of the eigenvalues within a thirtieth of the range: a linear axis hides them
_BLUR = 0.1  # standard deviation on a symlog axis, where a decade has the length 1
_PLACES = 2000  # of the drawn curve, beside those around each node
_AROUND = np.linspace(-4, 4, 17)  # standard deviations around a node at which a curve is drawn
_LINES = 30  # eigenvalues drawn at most
_APART = 0.024  # of the width of the axes between texts of eigenvalues
_TICKS = 0.08  # and between ticks


def draw_spectrum(
    density: SpectralDensity,
    eigenpairs: Any = None,
    *,
    axis: str = "auto",
    sigma: float | None = None,
    confidence: float = 0.95,
    title: str | None = None,
) -> Figure:
    """Draw the density over the eigenvalues, and below it the cumulative distribution.

    The density is drawn down to a tenth of the height that a single eigenvalue has. On a symlog
    axis it is a density per unit of that axis: per decade, outside its linear part.

    Args:
        density: What to draw.
        eigenpairs: Eigenvalues to mark: a result with ``.values``, or the values.
        axis: Of the eigenvalues: "linear"; "symlog", linear only where nodes are no denser; or
            "auto", the second where half of the eigenvalues lie within a thirtieth of the range.
        sigma: Standard deviation to smooth with on a linear axis; None for that of the result, and
            for a tenth of a decade on a symlog axis.
        confidence: Of the band of the cumulative distribution.
        title: Above the picture; None for a default, "" for none.

    Returns:
        The figure.

    Raises:
        ArgumentError: If `axis` is unknown, or another argument has no usable value.
        ArgumentTypeError: If the eigenvalues are no numbers.
    """
    from landscapex.curvature.density import smoothed  # takes SciPy, which other pictures do not

    if axis not in _AXES:
        raise ArgumentError(f"`axis` must be one of {', '.join(_AXES)}, got {axis!r}.")
    if axis == "symlog" and sigma is not None:
        raise ArgumentError(f"`sigma` must be None on a symlog axis, got {sigma}.")
    values = _values(eigenpairs)
    scale = _scale(density, axis if sigma is None else "linear")
    width = _BLUR if scale.kind == "symlog" else density.sigma if sigma is None else sigma
    nodes, marks = scale.forward(density.nodes), scale.forward(values)
    x = _places(nodes, marks, width)
    curve = smoothed(nodes, density.weights, x, width)
    figure = Picture(figsize=(7.4, 6.2))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1.35, 1.0))
    handles = _draw_density(top, x, curve, 1 / (density.size * width * math.sqrt(2 * math.pi)))
    handles += _draw_marks(top, bottom, marks)
    below = _draw_cumulative(bottom, density, x, scale.inverse(x), confidence)
    _set_axis(bottom, scale, x)
    _name_marks(top, values, marks)
    _caption(bottom, density, scale, width, float(np.trapezoid(curve, x)))
    of = f" of the {density.matrix}" if density.matrix else ""
    shown = f"Spectral density of {density.size:,} eigenvalues{of}" if title is None else title
    add_header(top, shown, handles)
    add_header(bottom, "", below)
    return figure


def _values(eigenpairs: Any) -> Array:
    found: ArrayLike = () if eigenpairs is None else getattr(eigenpairs, "values", eigenpairs)
    try:
        values = np.asarray(found, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise ArgumentTypeError(
            f"`eigenpairs` must have values or be numbers, got {eigenpairs!r}."
        ) from None
    values = values[np.isfinite(values)]
    return np.sort(values[np.argsort(-np.abs(values), kind="stable")[:_LINES]])


def _scale(density: SpectralDensity, axis: str) -> Scale:
    """The map from eigenvalues to the horizontal axis."""
    sizes, weights = np.abs(density.nodes).ravel(), density.weights.ravel()
    largest = float(sizes.max())
    if axis == "auto":
        wide = largest > _WIDE * _weighted_median(sizes, weights) and largest > 0
        axis = "symlog" if wide else "linear"
    low, high = density.smallest, density.largest
    if axis == "linear":
        return Scale("linear", low, high)
    gaps = np.diff(density.nodes, axis=1).ravel()
    beside = np.minimum(density.weights[:, :-1], density.weights[:, 1:]).ravel()
    gap = _weighted_median(gaps, beside) if gaps.size else 0.0
    wanted = min(max(gap, 1e-6 * largest), 0.1 * largest) or 1.0
    return Scale("symlog", low, high, threshold=10.0 ** math.ceil(math.log10(wanted)))


def _weighted_median(values: Array, weights: Array) -> float:
    order = np.argsort(values)
    shares = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(shares, 0.5 * shares[-1])])


def _places(nodes: Array, marks: Array, width: float) -> Array:
    """Where the curve is drawn: evenly over the axis, and close around each node."""
    ends = np.concatenate([[nodes.min(), nodes.max()], marks])
    room = max(6 * width, 0.03 * float(np.ptp(ends)))
    first, last = float(ends.min()) - room, float(ends.max()) + room
    around = (np.unique(nodes)[:, None] + width * _AROUND).ravel()
    return np.unique(np.concatenate([np.linspace(first, last, _PLACES), around]))


def _draw_density(ax: Axes, x: Array, curve: Array, one: float) -> list[Artist]:
    floor = 0.1 * one
    shown = np.maximum(curve, floor)
    (line,) = ax.plot(x, np.where(curve > floor, curve, np.nan), color=COLORS[0], label="density")
    ax.fill_between(x, floor, shown, color=COLORS[0], alpha=0.2, linewidth=0)
    level = ax.axhline(
        one, color="0.5", linestyle=(0, (1, 2)), linewidth=1.0, label="height of one eigenvalue"
    )
    ax.set_yscale("log")
    ax.set_ylim(floor, 3 * max(float(curve.max()), one))
    ax.yaxis.set_major_locator(LogLocator(numticks=8))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number_text(value)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(True, color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
    return [line, level]


def _draw_marks(top: Axes, bottom: Axes, marks: Array) -> list[Artist]:
    if not marks.size:
        return []
    for ax in (top, bottom):
        for x in marks:
            line = ax.axvline(float(x), color=COLORS[1], linewidth=0.9, alpha=0.8, zorder=1.5)
    line.set_label("eigenvalues" if len(marks) > 1 else "eigenvalue")
    return [line]


def _name_marks(ax: Axes, values: Array, marks: Array) -> None:
    """The number beside each line, left out where it would cover its neighbour."""
    first, last = ax.get_xlim()
    taken = math.inf
    for value, x in zip(values[::-1], marks[::-1], strict=True):
        place = (x - first) / (last - first)
        if taken - place < _APART:
            continue
        taken = place
        ax.text(
            place, 0.97, number_text(float(value), 3), transform=ax.transAxes, rotation=90,
            ha="right", va="top", fontsize=8, color=COLORS[1], parse_math=False,
        )  # fmt: skip


def _draw_cumulative(
    ax: Axes, density: SpectralDensity, x: Array, places: Array, confidence: float
) -> list[Artist]:
    band = density.band(places, confidence)
    fill = ax.fill_between(
        x, band.lower, band.upper, color=COLORS[0], alpha=0.25, linewidth=0,
        label=f"{100 * confidence:g} % band (probes and steps)",
    )  # fmt: skip
    (line,) = ax.plot(x, band.value, color=COLORS[0], label="share of eigenvalues below")
    ax.set_ylim(-0.03, 1.03)
    ax.set_ylabel("cumulative share")
    ax.grid(True, color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
    return [line, fill]


def _set_axis(ax: Axes, scale: Scale, x: Array) -> None:
    ax.set_xlim(x[0], x[-1])
    if scale.kind == "symlog":
        powers = scale.threshold * 10.0 ** np.arange(math.ceil(np.abs(x[[0, -1]]).max()))
        ticks = [0.0]
        for place in scale.forward(np.concatenate([powers, -powers])):
            if x[0] < place < x[-1] and min(abs(place - t) for t in ticks) > _TICKS * np.ptp(x):
                ticks.append(float(place))
        ax.set_xticks(ticks, labels=scale.texts(ticks))


def _caption(ax: Axes, density: SpectralDensity, scale: Scale, width: float, mass: float) -> None:
    """Below the picture: the scale, and everything that was chosen or lost."""
    probes, steps = density.nodes.shape
    kind = "Gaussian" if density.distribution == "gaussian" else "sign"
    if scale.kind == "symlog":
        axis = f"symlog scale, linear within ±{number_text(scale.threshold)}"
        blur = f"{number_text(width)} decades"
    else:
        axis, blur = "linear scale", number_text(width, 3)
    text = (
        f"{probes} {kind} probes, {steps} steps, {density.products:,} products; smoothed with a "
        f"standard deviation of {blur}; mass of the drawn curve {mass:.4f}; smallest node "
        f"{number_text(density.smallest)}, largest {number_text(density.largest)}, resolution "
        f"{number_text(density.resolution, 2)}"
    )
    ax.set_xlabel(f"eigenvalue ({axis})\n" + wrapped(text, 96), parse_math=False)
    unit = "density per decade" if scale.kind == "symlog" else "density"
    ax.figure.axes[0].set_ylabel(f"{unit} (log scale)")
