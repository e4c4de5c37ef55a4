"""What tests of estimates share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def covered(intervals: Sequence[tuple[float, float]], truth: float) -> float:
    """The share of intervals that contain the truth."""
    ends = np.array(intervals)
    return float(np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])))
