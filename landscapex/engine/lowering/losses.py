"""torch's losses as steps that add to sums, and how many decisions are right."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from landscapex.engine.lowering.lanes import Denominator, FromBatch, Lanes, Part, Scalar, flat
from landscapex.engine.lowering.registry import handles
from landscapex.engine.lowering.values import as_lanes, shape_of
from landscapex.engine.lowering.walk import Lowering
from landscapex.engine.plan import NotCapturedError
from landscapex.engine.steps import (
    Activation,
    CrossEntropy,
    ElementLoss,
    Hits,
    table,
)
from landscapex.losses.metrics import Rule

_MEAN = 1  # of torch's codes for reductions: 0 none, 1 mean, 2 sum
_TOP = 5


def total(low: Lowering, x: Any, *, mean: bool) -> Scalar:
    """The sum, or the mean, of all entries of a live value over a batch.

    Args:
        low: The lowering.
        x: The value.
        mean: Whether the mean is wanted.

    Returns:
        One number per batch.
    """
    x = low.lanes(x)
    return _element_loss(low, "identity", x, None, mean=mean)


def _scalar(term: int, denominator: Denominator | None) -> Scalar:
    return Scalar((Part(1.0, term, denominator),))


def _constant(tensor: Any, what: str) -> Tensor | None:
    """A tensor that is known before the run and the same for all batches."""
    if tensor is None or isinstance(tensor, Tensor):
        return tensor
    raise NotCapturedError(f"{what} that depend on the batch or the parameters")


# --- Classes --------------------------------------------------------------------------------------


@handles("cross_entropy_loss")
def _cross_entropy(
    low: Lowering,
    node: fx.Node,
    x: Any,
    target: Any,
    weight: Any,
    reduction: int,
    ignore_index: int,
    smoothing: float,
) -> Scalar:
    return _class_loss(low, node, x, target, weight, reduction, ignore_index, smoothing=smoothing)


@handles("nll_loss_nd", "nll_loss", "nll_loss2d")
def _nll(
    low: Lowering,
    node: fx.Node,
    x: Any,
    target: Any,
    weight: Any,
    reduction: int,
    ignore_index: int,
) -> Scalar:
    return _class_loss(low, node, x, target, weight, reduction, ignore_index, log_input=True)


@handles("nll_loss_forward", "nll_loss2d_forward")
def _nll_forward(low: Lowering, node: fx.Node, *arguments: Any) -> tuple[Scalar, None]:
    return _nll(low, node, *arguments), None


def _class_loss(
    low: Lowering,
    node: fx.Node,
    x: Any,
    target: Any,
    weight: Any,
    reduction: int,
    ignore_index: int,
    *,
    smoothing: float = 0.0,
    log_input: bool = False,
) -> Scalar:
    if reduction == 0:
        raise NotCapturedError("losses per sample of classes")
    x = low.lanes(x)
    if not isinstance(target, FromBatch):
        raise NotCapturedError("labels that do not come with the batch")
    if len(x.shape) < 2 or low.batch_axes(node.args[0]) != (0,):
        raise NotCapturedError("a class loss without batch axis")
    class_weight = _constant(weight, "class weights")
    value = low.plan.values[target.node]
    probabilities = value.dtype.is_floating_point and len(value.shape) == len(x.shape)
    labels = low.lanes(target) if probabilities else low.index(target)
    classes = x.shape[1]
    step = CrossEntropy(
        input=x.buffer,
        sources=table(x.index.movedim(1, -1).reshape(-1, classes).numpy()),
        target=labels.buffer,
        target_at=table(
            labels.index.movedim(1, -1).reshape(-1, classes).numpy()
            if probabilities
            else labels.index.reshape(-1).numpy()
        ),
        term=low.term(),
        class_weight=None if class_weight is None else _float32(class_weight),
        ignore_index=ignore_index,
        smoothing=smoothing,
        log_input=log_input,
        probabilities=probabilities,
    )
    low.emit(step)
    if reduction != _MEAN:
        return _scalar(step.term, None)
    if probabilities:
        return _scalar(step.term, Denominator(per_sample=len(step.sources)))
    counted = Denominator(1, target.node, ignore_index, class_weight)
    return _scalar(step.term, counted)


def _float32(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())


# --- Elements -------------------------------------------------------------------------------------


def _element_loss(
    low: Lowering,
    kind: str,
    x: Lanes,
    target: Lanes | None,
    *,
    mean: bool,
    a: float = 0.0,
    weight: Tensor | None = None,
) -> Scalar:
    shape = x.shape if target is None else torch.broadcast_shapes(x.shape, target.shape)
    factors = None if weight is None else _float32(weight.expand(shape)).reshape(-1)
    step = ElementLoss(
        kind=kind,
        input=x.buffer,
        at=flat(x.index.expand(shape)),
        target=-1 if target is None else target.buffer,
        target_at=table([]) if target is None else flat(target.index.expand(shape)),
        term=low.term(),
        a=a,
        weight=factors,
    )
    low.emit(step)
    return _scalar(step.term, Denominator(math.prod(shape)) if mean else None)


def _compared(
    low: Lowering,
    node: fx.Node,
    kind: str,
    x: Any,
    target: Any,
    reduction: int,
    *,
    a: float = 0.0,
    weight: Any = None,
) -> Scalar:
    if reduction == 0:
        raise NotCapturedError(f"{kind} losses per element")
    shape = torch.broadcast_shapes(shape_of(low, x), shape_of(low, target))
    return _element_loss(
        low,
        kind,
        low.lanes(x) if isinstance(x, Lanes) else as_lanes(low, x, shape),
        as_lanes(low, target, shape),
        mean=reduction == _MEAN,
        a=a,
        weight=weight,
    )


@handles("mse_loss")
def _mse(low: Lowering, node: fx.Node, x: Any, target: Any, reduction: int) -> Any:
    if reduction == 0:
        return low.map("sub", node, x, target, activation=Activation("square"))
    return _compared(low, node, "mse", x, target, reduction)


@handles("l1_loss")
def _l1(low: Lowering, node: fx.Node, x: Any, target: Any, reduction: int) -> Any:
    if reduction == 0:
        return low.map("sub", node, x, target, activation=Activation("abs"))
    return _compared(low, node, "l1", x, target, reduction)


def _rounded(low: Lowering, node: fx.Node, x: Any, target: Any, edge: float) -> Lanes:
    """Losses per element that are quadratic up to an edge: ``m (d - m / 2), m = min(d, edge)``."""
    distance = low.map("sub", node, x, target, activation=Activation("abs"))
    near = low.map("minimum", node, distance, edge)
    half = low.map("mul", node, near, 0.5)
    return low.map("mul", node, near, low.map("sub", node, distance, half))


@handles("smooth_l1_loss")
def _smooth_l1(
    low: Lowering, node: fx.Node, x: Any, target: Any, reduction: int, beta: float
) -> Any:
    if reduction or not beta:
        kind = "smooth_l1" if beta else "l1"
        return _compared(low, node, kind, x, target, reduction, a=beta)
    return low.map("div", node, _rounded(low, node, x, target, beta), beta)


@handles("huber_loss")
def _huber(low: Lowering, node: fx.Node, x: Any, target: Any, reduction: int, delta: float) -> Any:
    if reduction:
        return _compared(low, node, "huber", x, target, reduction, a=delta)
    return _rounded(low, node, x, target, delta)


@handles("binary_cross_entropy")
def _bce(low: Lowering, node: fx.Node, x: Any, target: Any, weight: Any, reduction: int) -> Any:
    if reduction and (weight is None or isinstance(weight, Tensor)):
        return _compared(low, node, "bce", x, target, reduction, weight=weight)
    shape = shape_of(low, x)
    minus = low.elementwise("sub", shape, 1.0, x)
    yes, no = (low.elementwise("copy", shape, v, activation=Activation("log")) for v in (x, minus))
    yes, no = (low.elementwise("maximum", shape, v, -100.0) for v in (yes, no))  # as torch does
    each = low.elementwise("mul", shape, target, low.elementwise("sub", shape, no, yes))
    return _weighted(low, low.elementwise("sub", shape, each, no), weight, reduction)


@handles("binary_cross_entropy_with_logits")
def _bce_logits(
    low: Lowering,
    node: fx.Node,
    x: Any,
    target: Any,
    weight: Any,
    positive: Any,
    reduction: int,
) -> Any:
    one = positive is None or (isinstance(positive, Tensor) and positive.numel() == 1)
    if reduction and one and (weight is None or isinstance(weight, Tensor)):
        a = 1.0 if positive is None else float(positive)
        return _compared(low, node, "bce_logits", x, target, reduction, a=a, weight=weight)
    shape = shape_of(low, x)
    # (1 - t) x + (1 + (p - 1) t) log(1 + exp(-x))
    negative = low.elementwise("mul", shape, x, low.elementwise("sub", shape, 1.0, target))
    minus = low.elementwise("copy", shape, x, activation=Activation("neg"))
    each = low.elementwise("copy", shape, minus, activation=Activation("softplus", 1.0, 50.0))
    if positive is not None:
        more = low.elementwise("sub", shape, positive, 1.0)
        each = low.elementwise(
            "mul", shape, each, low.elementwise("scale_shift", shape, more, target, 1.0)
        )
    return _weighted(low, low.elementwise("add", shape, negative, each), weight, reduction)


def _weighted(low: Lowering, each: Lanes, weight: Any, reduction: int) -> Lanes | Scalar:
    """Losses per element times weights, then reduced."""
    if weight is not None:
        each = low.elementwise("mul", each.shape, each, weight)
    return total(low, each, mean=reduction == _MEAN) if reduction else each


@handles("kl_div")
def _kl(
    low: Lowering, node: fx.Node, x: Any, target: Any, reduction: int, log_target: bool
) -> Scalar:
    return _compared(low, node, "kl_log" if log_target else "kl", x, target, reduction)


@handles("poisson_nll_loss")
def _poisson(
    low: Lowering,
    node: fx.Node,
    x: Any,
    target: Any,
    log_input: bool,
    full: bool,
    eps: float,
    reduction: int,
) -> Scalar:
    if full:
        raise NotCapturedError("the Stirling term of poisson_nll_loss has no kernel")
    kind = "poisson_log" if log_input else "poisson"
    return _compared(low, node, kind, x, target, reduction, a=0.0 if log_input else eps)


@handles("soft_margin_loss")
def _soft_margin(low: Lowering, node: fx.Node, x: Any, target: Any, reduction: int) -> Scalar:
    return _compared(low, node, "soft_margin", x, target, reduction)


# --- Decisions ------------------------------------------------------------------------------------


def hits(low: Lowering, scores: Any, target: Any, rule: Rule) -> int:
    """Count right decisions, as `landscapex.losses.metrics` does.

    Args:
        low: The lowering, walked.
        scores: What the model returns, as lowered.
        target: As lowered.
        rule: Of the metric.

    Returns:
        The term that holds the count (of right decisions, for ``"error"`` too).

    Raises:
        NotCapturedError: If the metric does not fit the values, or has no kernel.
    """
    if not isinstance(target, FromBatch) or not isinstance(scores, Lanes | FromBatch):
        raise NotCapturedError("a metric of values that are not in the graph")
    if low.plan.values[target.node].shape[:1] != (None,):
        raise NotCapturedError("labels whose first axis is not the batch")
    real = low.plan.values[target.node].dtype.is_floating_point
    labels = low.lanes(target) if real else low.index(target)
    values = low.full(scores)
    x, y = values.index, labels.index
    if rule.shifted and y.ndim > 1:
        x, y = x[:, :-1], y[:, 1:]
    axis = _class_axis(x, y)
    decision = rule.decision
    if decision == "any":
        column = axis is not None and x.shape[axis] == 1
        x = x.squeeze(axis) if column and axis is not None else x
        binary = x.shape == y.shape and not real
        decision = "logit" if column or binary else "class"
    by_class = decision == "class" and axis is not None and not real
    if not by_class and (decision == "class" or rule.name == "top5" or x.shape != y.shape):
        raise NotCapturedError(f"{rule.name} of such scores and labels has no kernel")
    x = x.movedim(axis, -1) if by_class and axis is not None else x.unsqueeze(-1)
    step = Hits(
        decision="class" if by_class else "threshold",
        input=values.buffer,
        sources=table(x.reshape(-1, x.shape[-1]).numpy()),
        target=labels.buffer,
        target_at=flat(y),
        term=low.term(),
        top=min(_TOP, x.shape[-1]) if rule.name == "top5" else 1,
        ignore_index=rule.ignore_index,
        threshold=0.5 if decision == "probability" else 0.0,
        target_threshold=0.0 if decision == "sign" else 0.5,
    )
    low.emit(step)
    return step.term


def _class_axis(scores: Tensor, labels: Tensor) -> int | None:
    """Axis 1 if that fits, as in torch's losses, else the last one; None if neither does."""
    if scores.ndim != labels.ndim + 1:
        return None
    if scores.shape[:1] + scores.shape[2:] == labels.shape:
        return 1
    return scores.ndim - 1 if scores.shape[:-1] == labels.shape else None
