"""Random numbers by name: the same on every device, in any order, in every version of torch."""

from __future__ import annotations

import hashlib

from torch import Tensor

from landscapex import _ops


def gaussian_(out: Tensor, name: str, start: int = 0) -> None:
    """Fill a tensor with independent standard normal numbers.

    Philox 4x32-10 with the SHA-256 of the name as its key.

    Args:
        out: Contiguous, float32 or float64.
        name: Of the draw, seed included; other names give other numbers.
        start: Place of the first of them in the draw.

    References:
        Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    digest = hashlib.sha256(name.encode()).digest()
    key, stream = (int.from_bytes(digest[i : i + 8], "little", signed=True) for i in (0, 8))
    _ops.gaussian_(out, key, stream, start)
