"""Losses of `torch.nn.functional`, which are weighted by what torch divides by."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from landscapex._batch import Batch, describe, predict, to_device
from landscapex.errors import ArgumentError, LossError
from landscapex.losses.identity import JSON, of_constant, of_module
from landscapex.losses.measure import Loss, Measure, Parts
from landscapex.losses.metrics import Metrics, resolve_metrics
from landscapex.losses.reductions import (
    TORCH_LOSSES,
    IdentityCache,
    Options,
    TorchLoss,
    of_criterion,
    of_function,
    output_tensors,
    scores_in_columns,
)
from landscapex.losses.totals import Terms
from landscapex.losses.weighting import IGNORED, CountRule, divided


class TorchMeasure(Measure):
    """A loss of `torch.nn.functional`, called as a function or as a criterion.

    Args:
        loss: What is known about it.
        options: The keywords it is called with.
        criterion: The module that is called in its place, if one was given.
        metrics: As of `metrics.resolve_metrics`.
    """

    def __init__(
        self, loss: TorchLoss, options: Options, criterion: nn.Module | None, metrics: Metrics
    ) -> None:
        self.name = loss.name if criterion is None else type(criterion).__name__
        self.functional = loss.name
        self.options = dict(options)
        self.metrics = resolve_metrics(
            metrics, decision=loss.decision, ignore_index=_ignore_index(options)
        )
        reduction = options.get("reduction", "mean")
        self._averaged = reduction in ("mean", "batchmean")
        self.rule = f"{self.name} (reduction={reduction!r}), " + (
            f"weighted by the number of {loss.rule}"
            if self._averaged
            else f"its sum over all data divided by the number of {loss.rule}"
        )
        self.regroupable = loss.per_sample(options) and all(m.built_in for m in self.metrics)
        self._loss, self._criterion, self._given_metrics = loss, criterion, metrics
        self._counts = IdentityCache()

    def to(self, device: torch.device) -> Measure:
        """See `Measure.to`."""
        tensors = [value for value in self.options.values() if isinstance(value, Tensor)]
        if self._criterion is not None:
            tensors += [*self._criterion.parameters(), *self._criterion.buffers()]
        if all(tensor.device == device for tensor in tensors):
            return self
        criterion = copy.deepcopy(self._criterion)
        criterion = criterion.to(device) if criterion is not None else None
        options = to_device(self.options, device)
        return TorchMeasure(self._loss, options, criterion, self._given_metrics)

    def _terms(self, model: nn.Module, batch: Batch) -> Terms:
        output, target = predict(model, batch, self.name)
        outputs, targets = self._checked(output_tensors(output), target)
        arguments = self._loss.arguments(outputs, targets)
        if self._loss.name == "cross_entropy" and not _is_hooked(self._criterion):
            arguments = scores_in_columns(*arguments)
        try:
            if self._criterion is None:
                value = self._loss.function(*arguments, **self.options)
            else:
                value = self._criterion(*arguments)
        except Exception as error:
            error.add_note(
                f"The model returned {describe(output)}, the target is {describe(target)}."
            )
            raise
        if self._loss.counts_values:
            weight = self.options.get("weight")
            count = self._counts.get(
                targets[0], lambda: self._loss.count(outputs, targets, self.options), weight
            )
        else:
            count = self._loss.count(outputs, targets, self.options)
        loss = value if self._averaged else divided(value, count)
        return Terms(loss, count, self._measured(output, target, batch) if self.metrics else {})

    def captured(self, model: nn.Module, batch: Batch) -> Parts:
        """See `Measure.captured`."""
        if _is_hooked(self._criterion):
            raise LossError(f"{self.name} must have no hooks, which may change the loss.")
        output, target = predict(model, batch, self.name)
        outputs, targets = self._checked(output_tensors(output), target)
        # sums are divided by this measure's own counts, so any reduction may be taken as the mean
        options = {**self.options, "reduction": "mean"}
        loss = self._loss.function(*self._loss.arguments(outputs, targets), **options)
        if self.options.get("reduction") == "batchmean":
            loss = loss * math.prod(outputs[0].shape[1:])
        return loss, outputs, targets

    def _checked(self, outputs: tuple[Any, ...], target: Any) -> tuple[Any, Any]:
        """Refuse numbers of tensors that torch would take for options: a silently wrong loss."""
        targets = tuple(target) if isinstance(target, (tuple, list)) else (target,)
        loss = self._loss
        if len(outputs) != loss.outputs or len(targets) != loss.targets:
            raise LossError(
                f"{self.name} must get {loss.outputs} tensor(s) from the model and {loss.targets} "
                f"from the batch, got {describe(outputs)} and {describe(targets)}; otherwise pass "
                f"`f(model, batch)` as the loss."
            )
        if not isinstance(targets[0], Tensor):
            raise LossError(f"{self.name} must get a tensor as target, got {describe(target)}.")
        return outputs, targets

    def _identity(self) -> dict[str, JSON]:
        described: dict[str, JSON] = {"functional": self.functional}
        if self._criterion is None:
            return {**described, "options": of_constant(self.options)}
        return {**described, "criterion": of_module(self._criterion, ())}


def torch_measure(
    loss: Loss, count: CountRule, reduction: str | None, metrics: Metrics
) -> TorchMeasure | None:
    """Return the measure if this is a loss of torch's own.

    Args:
        loss: As of `losses.resolve`.
        count: Must be None: torch's losses know their weights.
        reduction: What the loss does, or None for its own setting.
        metrics: As of `metrics.resolve_metrics`.

    Returns:
        The measure; None if it is another loss.

    Raises:
        ArgumentError: If an argument does not go with this loss.
    """
    criterion = loss if isinstance(loss, nn.Module) else None
    if criterion is not None:
        found = of_criterion(criterion)
    else:
        found = (TORCH_LOSSES[loss], {}) if isinstance(loss, str) else of_function(loss)
    if found is None:
        return None
    torch_loss, options = found
    if count is not None:
        raise ArgumentError(
            f"`count` must be None for {torch_loss.name}, which is weighted by what torch divides "
            f"by, got {count!r}."
        )
    if options.get("size_average") is not None or options.get("reduce") is not None:
        raise ArgumentError("`size_average` and `reduce` must be replaced by `reduction`.")
    if reduction is not None:
        if criterion is not None and options.get("reduction") != reduction:
            raise ArgumentError(
                f"`reduction` must be that of the criterion, {options.get('reduction')!r}, or "
                f"None, got {reduction!r}."
            )
        options = {**options, "reduction": reduction}
    return TorchMeasure(torch_loss, options, criterion, metrics)


def _is_hooked(criterion: nn.Module | None) -> bool:
    """Whether somebody sees what a criterion is called with."""
    return criterion is not None and bool(criterion._forward_hooks or criterion._forward_pre_hooks)


def _ignore_index(options: Options) -> int:
    ignored = options.get("ignore_index")
    return IGNORED if ignored is None else ignored
