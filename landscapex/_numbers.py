"""Checks of numbers that users pass."""

from __future__ import annotations

import math
from numbers import Real

from landscapex.errors import ArgumentError


def check_positive(name: str, value: object) -> float:
    """Take a number above 0.

    Args:
        name: Of the argument.
        value: What was given.

    Returns:
        The number.

    Raises:
        ArgumentError: If it is none.
    """
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < float(value) < math.inf:
        raise ArgumentError(f"`{name}` must be a finite number above 0, got {value!r}.")
    return float(value)
