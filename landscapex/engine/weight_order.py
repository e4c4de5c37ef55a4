"""The order in which contractions read their weights: blocks of outputs, tap by tap."""

from __future__ import annotations

import numpy as np

ROWS = 8  # outputs of a contraction that are computed together, at most


def row_blocks(outputs: int) -> list[int]:
    """How outputs are grouped for a contraction: sizes of at most `ROWS`, as equal as can be.

    Args:
        outputs: M.

    Returns:
        Sizes that sum to M, larger ones first.

    Example:
        >>> row_blocks(10)
        [5, 5]
    """
    count = -(-outputs // ROWS)
    small, larger = divmod(outputs, count)
    return [small + 1] * larger + [small] * (count - larger)


def contract_order(groups: int, outputs: int, taps: int) -> np.ndarray:
    """Where each packed weight of a `Contract` comes from, in ``[groups, M, R]`` row-major.

    Blocks of outputs follow each other; inside, for every tap, the outputs of the block.

    Args:
        groups: Number of groups.
        outputs: M, per group.
        taps: R.

    Returns:
        int64 ``[groups * M * R]``.

    Example:
        >>> contract_order(1, 2, 3).tolist()
        [0, 3, 1, 4, 2, 5]
    """
    parts = []
    start = 0
    for rows in row_blocks(outputs):
        block = np.arange(start, start + rows)[None, :] * taps + np.arange(taps)[:, None]
        parts.append(block.reshape(-1))
        start += rows
    one = np.concatenate(parts).astype(np.int64)
    return (np.arange(groups)[:, None] * (outputs * taps) + one[None, :]).reshape(-1)
