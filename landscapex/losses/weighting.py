"""Weights of batches for losses that are not torch's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from landscapex._batch import Batch, describe, describe_keys, sample_count
from landscapex.errors import DataError, LossError
from landscapex.losses.identity import JSON, of_callable
from landscapex.losses.metrics import is_scalar
from landscapex.losses.reductions import Count, IdentityCache, sum_exactly

CountRule: TypeAlias = Callable[[Batch], Any] | str | None

IGNORED = -100  # the label that torch and Hugging Face leave out by default


class Weighting:
    """Weights of batches for losses that are not torch's: `count`, or labels, or samples.

    Losses per sample or per label (``reduction="none"``) are divided by as many as there are; if
    there is one per label, ignored labels do not count.

    Args:
        count: ``f(batch)``, a key of the batch, or None for labels or samples.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        shifted: Whether the model compares each label with what comes before it.
    """

    def __init__(self, count: CountRule, reduction: str, shifted: bool) -> None:
        self.count, self.reduction, self.shifted = count, reduction, shifted
        self._counts = IdentityCache()

    @property
    def rule(self) -> str:
        """What batches are weighted by, in words."""
        if self.count is not None:
            named = isinstance(self.count, str)
            by = f"batch[{self.count!r}]" if named else "the function given as `count`"
        elif self.shifted:
            by = f"the number of labels other than {IGNORED} from the second position on"
        else:
            by = f"the number of labels other than {IGNORED}, or of samples without integer labels"
        how = "weighted" if self.reduction == "mean" else "its sum over all data divided"
        return f"reduction={self.reduction!r}, {how} by {by}"

    @property
    def identity(self) -> dict[str, JSON]:
        """What the fingerprint hashes."""
        described = of_callable(self.count) if callable(self.count) else self.count
        return {"count": described, "reduction": self.reduction, "shifted": self.shifted}

    def mean(self, value: Any, batch: Batch, labels: Any, name: str) -> tuple[Tensor, Count]:
        """Return the mean loss of a batch and its weight.

        Args:
            value: What the loss returned.
            batch: The batch.
            labels: Its labels, if it has any.
            name: Of the loss, for errors.

        Returns:
            The 0-d mean, and what it was divided by.

        Raises:
            LossError: If the loss returned something else than it should, or `count` did.
        """
        per_sample = self.reduction == "none"
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise LossError(f"{name} must return a floating-point tensor, got {got(value)}.")
        if per_sample and not value.ndim:
            raise LossError(
                f'{name} must return one loss per sample with reduction="none", got {got(value)}.'
            )
        if value.ndim and not per_sample:
            raise LossError(
                f"{name} must return a 0-d tensor, got {got(value)}; losses per sample need "
                f'reduction="none".'
            )
        count = self._weight(batch, labels, value.numel() if per_sample else None)
        return (value if self.reduction == "mean" else divided(value, count)), count

    def _weight(self, batch: Batch, labels: Any, num_losses: int | None) -> Count:
        """Weigh a batch; `num_losses` is how many losses it gave, if not reduced to one."""
        if self.count is not None:
            return self._given(batch)
        if isinstance(labels, Tensor) and _is_integer(labels):
            counted = labels[..., 1:] if self.shifted and labels.ndim > 1 else labels
            if num_losses is None or num_losses == counted.numel():
                return self._counts.get(labels, lambda: sum_exactly(counted != IGNORED))
        return sample_count(batch) if num_losses is None else num_losses

    def _given(self, batch: Batch) -> Count:
        if callable(self.count):
            count = self.count(batch)
        elif isinstance(batch, Mapping) and self.count in batch:
            count = batch[self.count]
            count = sum_exactly(count) if isinstance(count, Tensor) else count
        else:
            raise DataError(
                f"`count` must be a key of the batch, got {self.count!r} for "
                f"{describe_keys(batch)}."
            )
        if not is_scalar(count):
            raise LossError(f"`count` must give a number or a 0-d tensor, got {got(count)}.")
        return count


def divided(value: Tensor, count: Count) -> Tensor:
    """Make a mean of a sum, or of losses per sample; NaN if nothing counts.

    Args:
        value: 0-d, or one loss per sample or label.
        count: What to divide by.

    Returns:
        0-d.
    """
    total = value.sum() if value.ndim else value
    if isinstance(count, Tensor):
        return total / count.to(total.dtype)
    return total / count if count else total * math.nan


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def got(value: Any) -> str:
    """What arrived in place of a loss, for an error.

    Args:
        value: Anything.

    Returns:
        Its type, and its structure or the beginning of its text.
    """
    if isinstance(value, Tensor):
        return describe(value)
    inside = isinstance(value, (tuple, list, Mapping))
    return f"{type(value).__name__} {describe(value) if inside else format(repr(value), '.40')}"
