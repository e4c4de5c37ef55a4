"""Random vectors of estimators: the same for a seed on every device, in any order."""

from __future__ import annotations

import torch
from torch import Tensor

from landscapex._draws import gaussian_
from landscapex.curvature.linear import SymmetricOperator
from landscapex.errors import ArgumentTypeError


def check_seed(seed: object) -> None:
    """Refuse what is no seed.

    Args:
        seed: Any whole number.

    Raises:
        ArgumentTypeError: If it is none.
    """
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ArgumentTypeError(f"`seed` must be a whole number, got {seed!r}.")


def gaussian(operator: SymmetricOperator, seed: int, purpose: str, number: int = 0) -> Tensor:
    """Independent standard normal entries.

    Args:
        operator: Gives size, dtype and device.
        seed: Of the user.
        purpose: What they are for; other purposes have other numbers.
        number: Which of several vectors.

    Returns:
        ``(P,)``.
    """
    vector = torch.empty(operator.size, dtype=operator.dtype, device=operator.device)
    gaussian_(vector, f"{seed}/{purpose}/{number}")
    return vector


def signs(operator: SymmetricOperator, seed: int, purpose: str, number: int = 0) -> Tensor:
    """Independent entries of -1 and 1 (Rademacher).

    Args:
        operator: Gives size, dtype and device.
        seed: Of the user.
        purpose: What they are for.
        number: Which of several vectors.

    Returns:
        ``(P,)``.
    """
    drawn = gaussian(operator, seed, purpose, number)
    return torch.where(drawn < 0, -1.0, 1.0).to(drawn.dtype)
