"""One batch, linearised once: products of its curvature at the cost of two backward passes.

The graph of the gradient is kept, and every product is one more backward pass through it: as many
operations as the tangents of `torch.func.linearize`, for every model that torch differentiates
twice, traceable or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from landscapex._batch import Batch
from landscapex.curvature.outputs import OutputLoss, matrix_of
from landscapex.curvature.standing import explained
from landscapex.errors import LossError
from landscapex.losses.measure import Measure

Parts = list[Tensor | None]  # one per chosen leaf; None is zero
Matrix = Callable[[OutputLoss, Tensor], Tensor]  # on the outputs of a batch


class Linearized(Protocol):
    """What one batch adds to a curvature matrix."""

    def gradient(self) -> Parts:
        """Of the mean loss over the batch, by every leaf."""

    def product(self, parts: Sequence[Tensor], chosen: Sequence[int]) -> Parts:
        """The matrix of the batch times a vector, both over the chosen leaves."""

    def graph(self) -> Parts:
        """What a product is pulled back through."""


class LinearizedGradient:
    """The gradient of one batch, with the graph that it was computed by.

    Args:
        loss: 0-d mean over the batch.
        leaves: What it is differentiated by.
    """

    def __init__(self, loss: Tensor, leaves: Sequence[Tensor]) -> None:
        self._leaves = leaves
        self._gradient: Parts = [None] * len(leaves)
        if loss.requires_grad:  # or it uses none of the leaves
            with explained():
                self._gradient = list(
                    torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
                )

    def gradient(self) -> Parts:
        """Of the mean loss over the batch, by every leaf."""
        return [None if g is None else g.detach() for g in self._gradient]

    def graph(self) -> Parts:
        """What a product is pulled back through."""
        return self._gradient

    def product(self, parts: Sequence[Tensor], chosen: Sequence[int]) -> Parts:
        """The Hessian of the batch times a vector, both over the chosen leaves."""
        pairs = [
            (g, part)
            for i, part in zip(chosen, parts, strict=True)
            if (g := self._gradient[i]) is not None and g.requires_grad
        ]
        return _pulled([g for g, _ in pairs], [part for _, part in pairs], self._leaves, chosen)


class LinearizedOutput:
    """The output of a model on one batch, for products ``J^T S J v`` with a matrix S of outputs.

    J v is the derivative of ``J^T u`` by u in the direction v: two backward passes in all, and
    no forward pass.

    Args:
        output: Of the model, with its graph.
        leaves: What it is differentiated by.
        loss: As a function of the output.
        matrix: S.
    """

    def __init__(
        self, output: Tensor, leaves: Sequence[Tensor], loss: OutputLoss, matrix: Matrix
    ) -> None:
        self._leaves = leaves
        self._output = output
        self.loss, self._matrix = loss, matrix
        self._cotangent = torch.zeros_like(output, requires_grad=True)
        self._pulled: Parts = [None] * len(leaves)
        if output.requires_grad:
            with explained():
                self._pulled = list(
                    torch.autograd.grad(
                        output, leaves, self._cotangent, create_graph=True, allow_unused=True
                    )
                )

    def gradient(self) -> Parts:
        """Of the mean loss over the batch, by every leaf."""
        return self.pull(self.loss.gradient, range(len(self._leaves)))

    def graph(self) -> Parts:
        """What a product is pulled back through."""
        return self._pulled

    def push(self, parts: Sequence[Tensor], chosen: Sequence[int]) -> Tensor:
        """J v: how the output moves with the chosen leaves."""
        pairs = [
            (g, part)
            for i, part in zip(chosen, parts, strict=True)
            if (g := self._pulled[i]) is not None and g.requires_grad
        ]
        moved = _pulled([g for g, _ in pairs], [p for _, p in pairs], [self._cotangent], [0])[0]
        return torch.zeros_like(self._cotangent) if moved is None else moved

    def pull(self, cotangent: Tensor, chosen: Sequence[int]) -> Parts:
        """J^T u, over the chosen leaves."""
        outputs = [self._output] if self._output.requires_grad else []
        return _pulled(outputs, [cotangent] * len(outputs), self._leaves, chosen)

    def product(
        self, parts: Sequence[Tensor], chosen: Sequence[int], matrix: Matrix | None = None
    ) -> Parts:
        """``J^T S J v``, both over the chosen leaves; S may be given."""
        moved = self.push(parts, chosen)
        return self.pull((matrix or self._matrix)(self.loss, moved), chosen)


@dataclass(frozen=True)
class Built:
    """One batch, linearised.

    Attributes:
        term: The linearisation; None if nothing in the batch counts.
        loss: The mean.
        weight: What it was divided by.
        labels: How many there are, counting or not.
    """

    term: Linearized | None
    loss: float
    weight: float
    labels: int = 0


class Builder(Protocol):
    """Linearises one batch."""

    def __call__(self, model: nn.Module, batch: Batch, leaves: list[Tensor], start: int) -> Built:
        """Of a model on a batch that ``start`` labels come before."""


@dataclass(frozen=True)
class HessianBuilder:
    """Second derivatives of any loss."""

    measure: Measure

    def __call__(self, model: nn.Module, batch: Batch, leaves: list[Tensor], start: int) -> Built:
        """Linearise the gradient."""
        terms = self.measure(model, batch)
        weight = _checked_weight(float(terms.weight))
        term = LinearizedGradient(terms.loss, leaves) if weight else None
        return Built(term, float(terms.loss.detach()), weight)


@dataclass(frozen=True)
class OutputBuilder:
    """``J^T S J`` for losses that are known as functions of the output."""

    measure: Measure
    kind: str
    seed: int
    samples: int

    def __call__(self, model: nn.Module, batch: Batch, leaves: list[Tensor], start: int) -> Built:
        """Linearise the output."""
        mean, outputs, targets = self.measure.captured(model, batch)
        if len(outputs) != 1:
            raise LossError(
                f"the model must return one tensor for kind={self.kind!r}, got {len(outputs)}."
            )
        loss = OutputLoss(self.measure, outputs[0], targets)
        weight = _checked_weight(loss.weight)
        labels = loss.label_weights().numel()
        if not weight:
            return Built(None, float(mean.detach()), 0.0, labels)
        matrix = matrix_of(self.kind, loss, seed=self.seed, samples=self.samples, start=start)
        term = LinearizedOutput(outputs[0], leaves, loss, matrix)
        return Built(term, float(mean.detach()), weight, labels)


def _checked_weight(weight: float) -> float:
    if not weight >= 0:
        raise LossError(f"The weight of a batch must be at least 0, got {weight}.")
    return weight


def _pulled(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    leaves: Sequence[Tensor],
    chosen: Sequence[int],
) -> Parts:
    """Pull cotangents back to the chosen leaves; the graph stays."""
    if not outputs:
        return [None] * len(chosen)
    with explained():
        return list(
            torch.autograd.grad(
                outputs,
                [leaves[i] for i in chosen],
                cotangents,
                retain_graph=True,
                allow_unused=True,
            )
        )
