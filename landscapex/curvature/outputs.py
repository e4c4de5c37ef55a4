"""Matrices on the outputs of a model: what stands between the Jacobians of a curvature matrix.

A loss of torch is a mean ``sum_t s_t l_t / sum_t s_t`` over labels t with weights s. The
generalised Gauss-Newton matrix puts its Hessian by the outputs between the Jacobians of the model,
the Fisher matrices ``sum_n r_n r_n^T / sum_t s_t``, where ``r_n`` sums ``sqrt(s_t) dl_t`` over the
labels of sample n (a row of the output): a weight enters the mean once, and the Fisher matrix of
the model's own labels has the Gauss-Newton matrix as its expectation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from landscapex._batch import describe
from landscapex._draws import gaussian_
from landscapex.errors import LossError
from landscapex.losses.measure import Measure
from landscapex.losses.reductions import TORCH_LOSSES

_CLASSES = ("cross_entropy", "nll_loss")
# convex in the output, with one number or one distribution per label
_CONVEX = (
    *_CLASSES, "mse_loss", "binary_cross_entropy_with_logits", "binary_cross_entropy",
    "smooth_l1_loss", "huber_loss", "poisson_nll_loss", "soft_margin_loss",
)  # fmt: skip
_LIKELIHOODS = (*_CLASSES, "mse_loss", "binary_cross_entropy_with_logits")
_NORMALIZED = 1e-3  # how far the probabilities of a row may be from summing to 1


def check_loss(kind: str, measure: Measure) -> None:
    """Refuse a loss that a kind of curvature is not defined for.

    Args:
        kind: Of the curvature.
        measure: The loss.

    Raises:
        LossError: If output and loss cannot be told apart, or the loss is not of the right kind.
    """
    if kind == "hessian":
        return
    if measure.functional is None:
        raise LossError(
            f"kind={kind!r} must see the output of the model and the loss apart: `loss` must be a "
            f"name from torch.nn.functional or a criterion of torch.nn, got {measure.name}."
        )
    known = _LIKELIHOODS if kind == "fisher" else _CONVEX
    if measure.functional not in known:
        what = (
            "the negative logarithm of a probability of labels"
            if kind == "fisher"
            else "convex in the output of the model"
        )
        raise LossError(
            f"the loss must be {what} for kind={kind!r}: one of {', '.join(known)}, got "
            f"{measure.functional}."
        )


class OutputLoss:
    """The loss of one batch as a function of what the model returned.

    Args:
        measure: A loss of torch.
        output: Of the model.
        targets: Of the batch.

    Attributes:
        output: Without its graph.
        weight: What the mean is divided by.

    Raises:
        LossError: If ``nll_loss`` gets anything else than logarithms of probabilities.
    """

    def __init__(self, measure: Measure, output: Tensor, targets: tuple[Tensor, ...]) -> None:
        assert measure.functional is not None
        self.name = measure.functional
        self.output, self.targets = output.detach(), targets
        self._loss = TORCH_LOSSES[self.name]
        self._options = dict(measure.options)
        self.weight = float(self._loss.count((self.output,), targets, self._options))
        self.axis = min(1, self.output.ndim - 1)  # of classes, where there are any
        if self.name == "nll_loss" and self.output.numel():
            excess = float(self.output.logsumexp(self.axis).abs().max())
            if excess > _NORMALIZED:
                raise LossError(
                    "`nll_loss` must get logarithms of probabilities, which sum to 1, got a sum of "
                    f"{math.exp(excess):.4g}: end the model with log_softmax, or use cross_entropy."
                )
        self._graph: tuple[Tensor, Tensor] | None = None

    @property
    def classes(self) -> bool:
        """Whether labels are classes, scored along `axis`."""
        return self.name in _CLASSES

    @property
    def gradient(self) -> Tensor:
        """Of the mean by the output."""
        return self._differentiated()[1].detach()

    def hessian(self, moved: Tensor) -> Tensor:
        """The Hessian of the mean by the output, times a tensor like the output."""
        z, gradient = self._differentiated()
        if not gradient.requires_grad:  # piecewise linear
            return torch.zeros_like(moved)
        (product,) = torch.autograd.grad(
            gradient, z, moved, retain_graph=True, materialize_grads=True
        )
        return product

    def label_weights(self) -> Tensor:
        """s: how much each label counts in the mean, shaped like the losses without reduction.

        Class weights, ignored labels, smoothing, ``weight`` and ``pos_weight``: whatever scales the
        Hessian of a label by the output.

        Returns:
            Numbers of at least 0.
        """
        z, target, options = self.output, self.targets[0], self._options
        if self.classes:
            return self._class_weights(z, target)
        weight = options.get("weight")
        ones = torch.ones_like(z) if weight is None else weight.to(z.dtype).expand_as(z)
        positive = options.get("pos_weight")
        return ones if positive is None else ones * (positive * target + 1 - target)

    def _class_weights(self, z: Tensor, target: Tensor) -> Tensor:
        classes = z.shape[self.axis]
        weight = self._options.get("weight")
        weight = z.new_ones(classes) if weight is None else weight.to(z.dtype)
        smoothing = self._options.get("label_smoothing") or 0.0
        spread = smoothing * weight.mean()
        if target.is_floating_point():  # probabilities of classes
            shape = [1] * z.ndim
            shape[self.axis] = classes
            return (1 - smoothing) * (target * weight.view(shape)).sum(self.axis) + spread
        ignored = self._options.get("ignore_index")
        valid = target != (-100 if ignored is None else ignored)
        own = weight[torch.where(valid, target, 0).long()]  # bytes would be a mask
        return ((1 - smoothing) * own + spread) * valid

    def given_scores(self) -> Tensor:
        """Derivatives of losses by the output, by which the Fisher matrices are made: r above."""
        z = self.output.clone().requires_grad_()
        with torch.enable_grad():
            losses = self._call(z, "none")
            weights = self.label_weights()
            if losses.shape != weights.shape:
                raise LossError(
                    f"the target must have the shape of the output for {self.name}, got "
                    f"{describe(self.targets[0])} for {describe(self.output)}."
                )
            counts = weights > 0
            roots = torch.where(counts, weights, 1).sqrt()
            total = torch.where(counts, losses / roots, 0).sum()
            (scores,) = torch.autograd.grad(total, z)
        return scores

    def drawn_scores(self, normal: Tensor) -> Tensor:
        """What `given_scores` gives, for labels drawn from the model's own distribution.

        Cross entropy draws classes from the softmax, binary cross entropy labels from the sigmoid,
        the squared error numbers around the output with variance 1/2: the distribution of which it
        is the negative logarithm.

        Args:
            normal: A standard normal number for each label, counting or not.

        Returns:
            The scores.
        """
        z = self.output
        weights = self.label_weights()
        normal = normal.view(weights.shape)
        if self.name == "mse_loss":
            return (math.sqrt(2) * normal).to(z.dtype) * weights.sqrt()
        uniform = torch.special.ndtr(normal)
        if not self.classes:
            p = z.double().sigmoid()
            return ((p - (uniform < p).double()) * weights.double().sqrt()).to(z.dtype)
        p = z.double().softmax(self.axis)
        below = p.cumsum(self.axis) < uniform.unsqueeze(self.axis)
        drawn = below.sum(self.axis).clamp(max=z.shape[self.axis] - 1)
        scores = p - indicator(drawn, p, self.axis)
        return (scores * weights.double().sqrt().unsqueeze(self.axis)).to(z.dtype)

    def samples(self, like_output: Tensor) -> Tensor:
        """A tensor like the output as ``(N, ...)``: one row per sample."""
        alone = self.output.ndim < (2 if self.classes else 1)
        return like_output.reshape(1 if alone else len(like_output), -1)

    def _differentiated(self) -> tuple[Tensor, Tensor]:
        if self._graph is None:
            with torch.enable_grad():
                z = self.output.clone().requires_grad_()
                (gradient,) = torch.autograd.grad(self._call(z, "mean"), z, create_graph=True)
            self._graph = z, gradient
        return self._graph

    def _call(self, z: Tensor, reduction: str) -> Tensor:
        # the same numbers, and a Hessian like that of the scores before the logarithm
        z = F.log_softmax(z, self.axis) if self.name == "nll_loss" else z
        options: dict[str, Any] = {**self._options, "reduction": reduction}
        return self._loss.function(*self._loss.arguments((z,), self.targets), **options)


class OuterProducts:
    """``sum_n r_n r_n^T / (M W)`` over samples and draws, as a matrix on the outputs of a batch.

    Args:
        scores: M tensors like the output.
    """

    def __init__(self, scores: list[Tensor]) -> None:
        self._scores = scores

    def __call__(self, loss: OutputLoss, moved: Tensor) -> Tensor:
        """The product with a tensor like the output."""
        rows = loss.samples(moved)
        total = torch.zeros_like(rows)
        for scores in self._scores:
            r = loss.samples(scores)
            total += (r * rows).sum(1, keepdim=True) * r
        return (total / (len(self._scores) * loss.weight)).view_as(moved)


def matrix_of(
    kind: str, loss: OutputLoss, *, seed: int, samples: int, start: int
) -> Callable[[OutputLoss, Tensor], Tensor]:
    """The matrix between the Jacobians for one batch.

    Args:
        kind: ``"ggn"``, ``"fisher"`` or ``"empirical_fisher"``.
        loss: Of the batch.
        seed: Of drawn labels.
        samples: How many are drawn for each sample.
        start: How many labels the batches before have.

    Returns:
        A function of the loss and a tensor like the output.
    """
    if kind == "ggn":
        return OutputLoss.hessian
    if kind == "empirical_fisher":
        return OuterProducts([loss.given_scores()])

    labels = loss.label_weights().numel()
    normal = torch.empty(labels * samples, dtype=torch.float64, device=loss.output.device)
    # numbers of a stream by place of the label: the same for any batches
    gaussian_(normal, f"{seed}/labels of the model", start * samples)
    drawn = normal.view(labels, samples).unbind(1)
    return OuterProducts([loss.drawn_scores(part.contiguous()) for part in drawn])


def indicator(labels: Tensor, like: Tensor, axis: int) -> Tensor:
    """1 at the class of each label along an axis, 0 elsewhere.

    Args:
        labels: Whole numbers.
        like: Of the shape of the scores.
        axis: Of classes.

    Returns:
        A tensor like the scores.
    """
    return torch.zeros_like(like).scatter_(axis, labels.long().unsqueeze(axis), 1)
