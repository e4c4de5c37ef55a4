"""Float arrays whose bits matter."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two float64 arrays hold the same numbers bit by bit; every NaN equals every NaN.

    Args:
        a: Any shape.
        b: Any shape.

    Returns:
        True if shapes and numbers are equal; 0.0 and -0.0 are not.
    """
    if a.shape != b.shape:
        return False
    bits = [np.ascontiguousarray(array, dtype=np.float64).view(np.uint64) for array in (a, b)]
    return bool(np.all((bits[0] == bits[1]) | (np.isnan(a) & np.isnan(b))))


def read_only(array: np.ndarray) -> np.ndarray:
    """A view of ``array`` that cannot be written through."""
    view = array.view()
    view.flags.writeable = False
    return view
