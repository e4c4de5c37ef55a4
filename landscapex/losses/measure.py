"""What a loss is bound to: a mean over a batch, what that mean was divided by, and metrics."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from landscapex._batch import Batch, describe
from landscapex.errors import LandscapexError
from landscapex.losses.identity import JSON
from landscapex.losses.metrics import Metric
from landscapex.losses.reductions import Count, Options
from landscapex.losses.totals import Terms

Loss: TypeAlias = str | nn.Module | Callable[..., Any] | None
Parts: TypeAlias = tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]


class Measure:
    """A loss bound to its weighting and metrics; ``measure(model, batch)`` gives `Terms`.

    Attributes:
        name: The loss in a word.
        rule: In words, what batches are weighted by.
        metrics: The metrics that are computed from the output of the model.
        functional: The function of `torch.nn.functional` that is called, if it is one.
        options: The keywords it is called with.
        regroupable: Whether samples may be regrouped into batches of another size.
    """

    name: str
    rule: str
    _hint: str = ""  # to what a loss that raises may have expected
    metrics: tuple[Metric, ...] = ()
    functional: str | None = None
    options: Options = MappingProxyType({})
    regroupable: bool = False

    def __call__(self, model: nn.Module, batch: Batch) -> Terms:
        """Evaluate the loss and the metrics of one batch.

        Args:
            model: The model.
            batch: One batch, on the model's device.

        Returns:
            Differentiable terms; nothing here waits for the device.

        Raises:
            DataError: If the batch has no target.
            LossError: If the loss or a metric returns something that is neither.
            LandscapexError: Any other error of ours; errors of torch or of the user's code pass
                through with a note.
        """
        try:
            return self._terms(model, batch)
        except LandscapexError:
            raise
        except Exception as error:
            error.add_note(f"In the loss {self.name}, for the batch {describe(batch)}.{self._hint}")
            raise

    def captured(self, model: nn.Module, batch: Batch) -> Parts:
        """Compute the mean loss of one batch by tensor operations alone, for `torch.export`.

        Args:
            model: The model.
            batch: One batch.

        Returns:
            The 0-d mean; what the model returned and the target it was compared with, as tuples
            of tensors, which are empty where the measure cannot tell.

        Raises:
            LossError: If there is no such mean: another reduction, metrics from the loss itself.
        """
        raise NotImplementedError

    @property
    def identity(self) -> dict[str, JSON]:
        """What the fingerprint of a run hashes: class, constants, tensors, source, metrics."""
        return {**self._identity(), "metrics": [metric.identity for metric in self.metrics]}

    def to(self, device: torch.device) -> Measure:
        """Return this measure with its own tensors (class weights, ...) on `device`.

        Args:
            device: Where batches will be.

        Returns:
            The measure itself if it holds no tensors that would move; never changes the user's
            criterion.
        """
        return self

    def _terms(self, model: nn.Module, batch: Batch) -> Terms:
        raise NotImplementedError

    def _identity(self) -> dict[str, JSON]:
        raise NotImplementedError

    def _measured(self, output: Any, target: Any, batch: Batch) -> dict[str, tuple[Tensor, Count]]:
        return {metric.name: metric.compute(output, target, batch) for metric in self.metrics}
