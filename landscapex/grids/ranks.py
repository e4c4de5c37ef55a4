"""The processes of ``torchrun``: which one this is, and which GPU is its own.

This is the one place that reads environment variables: they are how torchrun, and everything that
starts processes like it, tells them apart.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from landscapex.errors import ArgumentError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rank:
    """One of several processes that were started together.

    Attributes:
        number: From 0, over all machines.
        size: How many there are.
        local: Number on this machine.
        local_size: How many are on this machine.

    Example:
        >>> this_rank({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"})
        Rank(number=5, size=8, local=1, local_size=4)
    """

    number: int
    size: int
    local: int
    local_size: int


def this_rank(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """Which of several processes this one is.

    Args:
        environment: Variables by name.

    Returns:
        The rank; None if the process was started alone.

    Raises:
        ArgumentError: If the variables contradict each other.

    References:
        torchrun's variables: https://docs.pytorch.org/docs/stable/elastic/run.html
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    number, size = _whole(environment, "RANK"), _whole(environment, "WORLD_SIZE")
    if not 0 <= number < size:
        raise ArgumentError(
            f"the environment variables must have 0 <= RANK < WORLD_SIZE, got {number} and {size}."
        )
    local = _whole(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else number
    there = "LOCAL_WORLD_SIZE" in environment
    return Rank(number, size, local, _whole(environment, "LOCAL_WORLD_SIZE") if there else size)


def claim_device(rank: Rank) -> torch.device | None:
    """Make the GPU of a rank the current one, so that ``"cuda"`` means it from now on.

    Args:
        rank: Of this process.

    Returns:
        The device; None on a machine with fewer than two, where there is nothing to choose.
    """
    import torch  # `--help` does without

    count = torch.cuda.device_count()
    if count < 2:
        return None
    device = torch.device("cuda", rank.local % count)
    torch.cuda.set_device(device)
    return device


def _whole(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise ArgumentError(
            f"the environment variable {name} must be a whole number, got {environment[name]!r}."
        ) from None
