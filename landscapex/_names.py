"""What a name that nobody knows was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of an error about an unknown name.

    Args:
        name: What was given.
        known: What there is.

    Returns:
        A question with the nearest name, whatever the case of its letters; empty if none is near.

    Example:
        >>> did_you_mean("CrossEntropy", ["mse_loss", "cross_entropy"])
        "; did you mean 'cross_entropy'?"
    """
    if not isinstance(name, str):
        return ""
    lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return f"; did you mean {lower[near[0]]!r}?" if near else ""
