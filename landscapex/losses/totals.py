"""Means over batches: what one batch gives, and the exact sum over all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from landscapex.errors import EmptyDataError, LossError
from landscapex.losses.reductions import Count


@dataclass(frozen=True, slots=True)
class Terms:
    """What one batch adds to the totals.

    Attributes:
        loss: 0-d mean over the batch, differentiable.
        weight: What the mean was divided by; 0 if nothing in the batch counts.
        metrics: Name to (sum, count).
    """

    loss: Tensor
    weight: Count
    metrics: Mapping[str, tuple[Tensor, Count]] = field(default_factory=dict)


class Totals:
    """Sums over batches, kept on a device until they are asked for, and read at once elsewhere.

    Args:
        replayed: Whether the 0-d tensors that are added will be written again, by a graph that is
            replayed: they are read each time.

    Attributes:
        columns: Names of the values: ``"loss"`` first, then metrics.

    Example:
        >>> totals = Totals()
        >>> totals.add(Terms(torch.tensor(1.0), 3))
        >>> totals.add(Terms(torch.tensor(5.0), 1))
        >>> totals.values()
        [2.0]
    """

    def __init__(self, *, replayed: bool = False) -> None:
        self._replayed = replayed
        self.columns: tuple[str, ...] = ("loss",)
        self._names: tuple[str, ...] | None = None
        self._numerators: list[Any] = []  # [batches * M]: the mean loss, then sums of metrics
        self._weights: list[Any] = []  # [batches * M]

    def add(self, terms: Terms) -> None:
        """Note what one batch gave, without waiting for the device.

        Args:
            terms: Of one batch.

        Raises:
            LossError: If the metrics are not those of the batches before.
        """
        names = tuple(terms.metrics)
        if self._names is None:
            self._names = names
            self.columns = ("loss", *names)
        elif names != self._names:
            raise LossError(
                f"The loss must return the same metrics for every batch, got {list(names)} after "
                f"{list(self._names)}."
            )
        self._keep(terms.loss.detach(), terms.weight)
        for total, count in terms.metrics.values():
            self._keep(total, count)

    def _keep(self, numerator: Any, weight: Any) -> None:
        # Keeping 0-d tensors of a device costs no kernel launch; `values` stacks them. In main
        # memory they would lie between the activations that are freed, which find no place then:
        # a convolution of single samples took 200 KB more for each of them.
        self._numerators.append(numerator if self._replayed else _read(numerator))
        self._weights.append(weight if self._replayed else _read(weight))

    def weights(self) -> list[list[float]]:
        """Return what each batch counts: ``[batches][columns]``, as in `columns`."""
        width = len(self.columns)
        flat = _to_host(self._weights)
        return [flat[i : i + width] for i in range(0, len(flat), width)]

    def values(self) -> list[float]:
        """Return the means, one per column; the one place that waits for the device.

        Returns:
            Exactly rounded float64 sums of weighted means, divided by the sums of the weights; a
            batch of weight 0 has no part in them. A metric of which nothing was counted is NaN.

        Raises:
            EmptyDataError: If nothing was added, or if no batch has a weight.
            LossError: If weights are negative or NaN.
        """
        if not self._numerators:
            raise EmptyDataError("There must be at least one batch to average the loss over.")
        if len(self._numerators) == 1 and float(self._weights[0]) > 0:
            return [float(self._numerators[0])]
        width = len(self.columns)
        numerators, weights = _to_host(self._numerators), _to_host(self._weights)
        means = []
        for m in range(width):
            counts, found = weights[m::width], numerators[m::width]
            for count in counts:
                if not count >= 0:
                    raise LossError(f"The weight of a batch must be at least 0, got {count}.")
            # the loss is a mean over its weight, a metric is a sum already
            terms = [x * n if m == 0 else x for x, n in zip(found, counts, strict=True) if n]
            total = _exact_sum(terms)
            weight = _exact_sum(counts)
            if m == 0 and not weight:
                raise EmptyDataError(
                    "At least one sample or label must count, got a total weight of 0: every batch "
                    "is empty or every label is ignored."
                )
            means.append(total / weight if weight else math.nan)
        return means


def _read(value: Any) -> Any:
    """A number in place of a tensor that is there to be read."""
    return float(value) if isinstance(value, Tensor) and value.is_cpu else value


def _to_host(values: list[Any]) -> list[float]:
    """Numbers and 0-d tensors as floats, in one transfer per dtype from other devices."""
    away = {i: v for i, v in enumerate(values) if isinstance(v, Tensor) and not v.is_cpu}
    host = [0.0 if i in away else float(v) for i, v in enumerate(values)]
    groups: dict[Any, list[tuple[int, Tensor]]] = {}
    for i, value in away.items():
        groups.setdefault((value.dtype, value.device), []).append((i, value))
    for group in groups.values():
        with torch.no_grad():
            stacked = torch.stack([value for _, value in group]).cpu().double().tolist()
        for (i, _), number in zip(group, stacked, strict=True):
            host[i] = number
    return host


def _exact_sum(values: list[float]) -> float:
    """Sum rounded once, so that the order of batches does not matter."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # beyond the range of float64; inf - inf
        return sum(values)
