"""What the loss does on the way from one model to another, in a few numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from landscapex._arrays import Array
from landscapex.errors import ArgumentError

_NOISE = 1e-6  # relative: what a mean in float32 may be off
_ROUNDING = 1e-12  # of the coordinates 0 and 1


@dataclass(frozen=True)
class LineMeasures:
    """A curve ``J`` on [0, 1], at coordinates ``a_0 = 0 < ... < a_K = 1`` of a grid.

    All are NaN, and `monotone` is False, if a value on [0, 1] is NaN or was not evaluated.

    Attributes:
        barrier: ``max_k J_k - ((1 - a_k) J_0 + a_k J_K)``: the height over the chord; at least 0.
        monotone: Whether `bump` is at most 1e-6 of the largest ``|J|``, the noise of a mean that
            was computed in float32.
        monotone_violation: ``sum_k max(0, J_{k+1} - J_k)``: all that is climbed on the way.
        convexity_defect: ``max_k J_k - (the chord between its two neighbours)``, at least 0, in
            units of ``|J_0 - J_K|``; infinite if that is 0 and the curve is not convex.
        bump: ``max_{j < k} J_k - J_j``, at least 0: the highest climb above an earlier point.

    References:
        Barrier: Entezari, Sedghi, Saukh, Neyshabur, "The Role of Permutation Invariance in Linear
        Mode Connectivity of Neural Networks", ICLR 2022. Bump: Lucas, Bae, Zhang, Fort, Zemel,
        Grosse, "Analyzing Monotonic Linear Interpolation in Neural Network Loss Landscapes", ICML
        2021.
    """

    barrier: float
    monotone: bool
    monotone_violation: float
    convexity_defect: float
    bump: float


def measure_line(alpha: Array, values: Array) -> LineMeasures:
    """Measure a curve between the coordinates 0 and 1.

    Args:
        alpha: ``(G,)`` increasing coordinates, 0 and 1 among them.
        values: ``(G,)``; NaN where not evaluated.

    Returns:
        The measures.

    Raises:
        ArgumentError: If 0 or 1 is not a grid point.

    Example:
        >>> alpha = np.array([0.0, 0.25, 0.5, 1.0])
        >>> measure_line(alpha, np.array([4.0, 5.0, 3.0, 0.0])).bump
        1.0
    """
    first, last = (np.flatnonzero(np.abs(alpha - end) <= _ROUNDING) for end in (0.0, 1.0))
    if not first.size or not last.size:
        raise ArgumentError(
            "a curve between two models must have the coordinates 0 and 1 among its points, got "
            f"{alpha.size} points from {alpha[0]:g} to {alpha[-1]:g}."
        )
    inside = slice(int(first[0]), int(last[0]) + 1)
    a, j = alpha[inside], np.asarray(values[inside], dtype=np.float64)
    if np.isnan(j).any():
        return LineMeasures(np.nan, False, np.nan, np.nan, np.nan)
    with np.errstate(invalid="ignore"):  # infinite values
        over = float(np.max(j - ((1 - a) * j[0] + a * j[-1])))
        lowest = np.minimum.accumulate(j)
        bump = float(np.max(np.where(j > lowest, j - lowest, 0.0)))
        steps = np.where(j[1:] > j[:-1], j[1:] - j[:-1], 0.0)
        defect = _convexity_defect(a, j)
    barrier = max(over, 0.0) if over == over else np.nan  # the ends are 0 but for rounding
    monotone = bump <= _NOISE * float(np.max(np.abs(j[np.isfinite(j)]), initial=0.0))
    return LineMeasures(barrier, monotone, float(steps.sum()), defect, bump)


def _convexity_defect(a: Array, j: Array) -> float:
    if j.size < 3:
        return 0.0
    share = (a[1:-1] - a[:-2]) / (a[2:] - a[:-2])
    above = float(np.max(j[1:-1] - ((1 - share) * j[:-2] + share * j[2:])))
    if above <= 0:
        return 0.0
    drop = abs(float(j[0] - j[-1]))
    return above / drop if drop > 0 else float(above * np.inf)
