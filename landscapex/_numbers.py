"""Checks of numbers that users pass."""

from __future__ import annotations

import math
from numbers import Real

import numpy as np

from landscapex.errors import ArgumentError, ArgumentTypeError


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


def check_count(
    name: str, value: object, least: int, most: int | None = None, *, where: str | None = None
) -> int:
    """Refuse what is not a whole number, or one that is too small or too large.

    Args:
        name: Of the argument.
        value: What was given.
        least: The smallest that can be used.
        most: The largest; None for any.
        where: The limits in words; None for their numbers.

    Returns:
        `value`.

    Raises:
        ArgumentTypeError: If it is not a whole number.
        ArgumentError: If it is not within the limits.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise ArgumentTypeError(f"`{name}` must be a whole number, got {value!r}.")
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ArgumentError(f"`{name}` must be {where or limits}, got {value}.")
    return int(value)
