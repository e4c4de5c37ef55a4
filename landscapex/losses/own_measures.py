"""Losses that are not torch's own: criteria, functions of model and batch, models with a loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from landscapex._batch import Batch, call_model, describe, labels_of, predict
from landscapex.errors import LossError
from landscapex.losses.identity import JSON, of_callable, of_module
from landscapex.losses.measure import Measure, Parts
from landscapex.losses.metrics import Metric, check_name, is_scalar
from landscapex.losses.reductions import as_exact, unwrap_logits
from landscapex.losses.totals import Terms
from landscapex.losses.weighting import Weighting, got


class _WeightedMeasure(Measure):
    """A loss that is not torch's own."""

    def __init__(self, name: str, weighting: Weighting, metrics: tuple[Metric, ...] = ()) -> None:
        self.name = name
        self.metrics = metrics
        self.rule = f"{name}: {weighting.rule}"
        self._weighting = weighting

    def _finish(self, value: Any, batch: Batch, labels: Any, measured: Any) -> Terms:
        """Take a loss, or (loss, {name: value}), and weight both."""
        values: Mapping[str, Any] = {}
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping):
            value, values = value
        loss, count = self._weighting.mean(value, batch, labels, self.name)
        metrics = dict(measured)
        for name, number in values.items():
            check_name(name)
            if not is_scalar(number) or name in metrics:
                rule = "be a number or a 0-d tensor" if name not in metrics else "be new"
                raise LossError(f"Metric {name!r} of {self.name} must {rule}, got {got(number)}.")
            metrics[name] = (as_exact(number) * count, count)
        return Terms(loss, count, metrics)

    def _parts(self, value: Any, output: Any = None, target: Any = None) -> Parts:
        """Take a 0-d mean, and the output and target if each is one tensor."""
        if self._weighting.reduction != "mean":
            raise LossError(
                f'{self.name} must have reduction="mean", got {self._weighting.reduction!r}.'
            )
        if not isinstance(value, Tensor) or value.ndim:
            raise LossError(f"{self.name} must return nothing but a 0-d tensor, got {got(value)}.")
        if isinstance(output, Tensor) and isinstance(target, Tensor):
            return value, (output,), (target,)
        return value, (), ()


class CriterionMeasure(_WeightedMeasure):
    """A criterion module of the user's own: ``criterion(model(*inputs), target)``."""

    def __init__(
        self,
        criterion: nn.Module,
        weighting: Weighting,
        metrics: tuple[Metric, ...],
        shared: tuple[nn.Module, ...],
    ) -> None:
        super().__init__(type(criterion).__name__, weighting, metrics)
        self._criterion, self._shared = criterion, shared

    def to(self, device: torch.device) -> Measure:
        """See `Measure.to`."""
        tensors = [*self._criterion.parameters(), *self._criterion.buffers()]
        if all(tensor.device == device for tensor in tensors):
            return self
        # A criterion that holds the model must go on seeing that very model.
        keep = {id(module): module for module in self._shared}
        criterion = copy.deepcopy(self._criterion, keep).to(device)
        return CriterionMeasure(criterion, self._weighting, self.metrics, self._shared)

    def _terms(self, model: nn.Module, batch: Batch) -> Terms:
        output, target = predict(model, batch, self.name)
        value = self._criterion(unwrap_logits(output), target)
        return self._finish(value, batch, target, self._measured(output, target, batch))

    def captured(self, model: nn.Module, batch: Batch) -> Parts:
        """See `Measure.captured`."""
        output, target = predict(model, batch, self.name)
        logits = unwrap_logits(output)
        return self._parts(self._criterion(logits, target), logits, target)

    def _identity(self) -> dict[str, JSON]:
        described = of_module(self._criterion, self._shared)
        return {"criterion": described, **self._weighting.identity}


class FunctionMeasure(_WeightedMeasure):
    """``f(model, batch)``."""

    _hint = " It is called as f(model, batch)."

    def __init__(self, function: Callable[..., Any], weighting: Weighting) -> None:
        super().__init__(getattr(function, "__name__", type(function).__name__), weighting)
        self._function = function

    def _terms(self, model: nn.Module, batch: Batch) -> Terms:
        return self._finish(self._function(model, batch), batch, labels_of(batch), {})

    def captured(self, model: nn.Module, batch: Batch) -> Parts:
        """See `Measure.captured`."""
        return self._parts(self._function(model, batch))

    def _identity(self) -> dict[str, JSON]:
        return {"function": of_callable(self._function), **self._weighting.identity}


class ModelMeasure(_WeightedMeasure):
    """The loss that the model's own output carries."""

    _hint = " Without `loss`, the model gets the whole batch and returns `.loss`."

    def __init__(self, weighting: Weighting, metrics: tuple[Metric, ...]) -> None:
        super().__init__("the model's .loss", weighting, metrics)

    def _terms(self, model: nn.Module, batch: Batch) -> Terms:
        output, loss = self._called(model, batch)
        labels = labels_of(batch)
        measured = self._measured(output, labels, batch) if self.metrics else {}
        return self._finish(loss, batch, labels, measured)

    def captured(self, model: nn.Module, batch: Batch) -> Parts:
        """See `Measure.captured`."""
        output, loss = self._called(model, batch)
        return self._parts(loss, unwrap_logits(output), labels_of(batch))

    def _called(self, model: nn.Module, batch: Batch) -> tuple[Any, Any]:
        """Call the model; return its output, and the loss that the output carries."""
        output = call_model(model, batch)
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if loss is None:
            raise LossError(
                "With `loss=None` the model must return an object with `.loss`, got "
                f"{got(output)} for the batch {describe(batch)}; are labels missing?"
            )
        return output, loss

    def _identity(self) -> dict[str, JSON]:
        return {"model": "loss", **self._weighting.identity}
