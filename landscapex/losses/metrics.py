"""Metrics: sums and counts per batch, so that their total does not depend on the batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from landscapex._batch import Batch, describe
from landscapex._names import did_you_mean
from landscapex.errors import ArgumentError, ArgumentTypeError, LossError
from landscapex.losses.identity import JSON, of_callable
from landscapex.losses.reductions import Count, IdentityCache, as_exact, output_tensors, sum_exactly

Metrics: TypeAlias = str | Mapping[str, Callable[..., Any]] | Sequence[Any]

BUILT_IN = ("accuracy", "error", "top5")
RESERVED = ("loss", "evaluated", "alpha", "beta", "gamma")  # names inside a result
_TOP_K = 5


@dataclass(frozen=True)
class Rule:
    """How a built-in metric counts.

    Attributes:
        name: ``"accuracy"``, ``"error"`` or ``"top5"``.
        decision: How outputs become decisions; see `resolve_metrics`.
        ignore_index: Targets that do not count.
        shifted: Whether the target of position t is predicted at position t - 1.
    """

    name: str
    decision: str
    ignore_index: int
    shifted: bool


@dataclass(frozen=True)
class Metric:
    """One column of a result beside the loss.

    Attributes:
        name: Name of the column.
        compute: From (output, target, batch) to (sum, count), both 0-d.
        identity: What the fingerprint of a run hashes.
        rule: How it counts, if it is one of ours.
    """

    name: str
    compute: Callable[[Any, Any, Batch], tuple[Tensor, Count]]
    identity: JSON
    rule: Rule | None = None

    @property
    def built_in(self) -> bool:
        """Whether it is one of ours."""
        return self.rule is not None


def resolve_metrics(
    metrics: Metrics, *, decision: str | None, ignore_index: int = -100, shifted: bool = False
) -> tuple[Metric, ...]:
    """Turn names and functions into metrics.

    Args:
        metrics: ``"accuracy"``, ``"error"``, ``"top5"``, ``{name: f(output, batch)}``, or a
            sequence of these. ``f`` returns per-sample values, or a pair (sum, count).
        decision: How outputs become decisions: ``"class"``, ``"logit"``, ``"probability"``,
            ``"sign"``; ``"any"`` finds out from the shapes; None if the loss has no decisions.
        ignore_index: Targets that do not count.
        shifted: Whether the target of position t is predicted at position t - 1 (causal models).

    Returns:
        One metric per name, in order.

    Raises:
        ArgumentError: If a name is unknown, reserved or used twice, or the loss has no decisions.
        ArgumentTypeError: If `metrics` is none of the above.
    """
    given = [metrics] if isinstance(metrics, (str, Mapping)) else metrics
    if not isinstance(given, Sequence):
        given = [given]
    found: list[Metric] = []
    for item in given:
        if isinstance(item, str):
            found.append(_built_in(item, decision, ignore_index, shifted))
        elif isinstance(item, Mapping):
            found += [_custom(name, function) for name, function in item.items()]
        else:
            raise ArgumentTypeError(
                "`metrics` must be a name, a mapping {name: f(output, batch)} or a sequence of "
                f"these, got {type(item).__name__}."
            )
    names = [metric.name for metric in found]
    for name in names:
        check_name(name)
        if names.count(name) > 1:
            raise ArgumentError(f"`metrics` must have distinct names, got {name!r} twice.")
    return tuple(found)


def check_name(name: Any) -> None:
    """Refuse names that a result needs for itself.

    Args:
        name: Name of a metric.

    Raises:
        ArgumentError: If it cannot be the name of a column.
    """
    if not isinstance(name, str) or not name or name in RESERVED:
        reserved = ", ".join(map(repr, RESERVED))
        raise ArgumentError(
            f"The name of a metric must be a string other than {reserved}, got {name!r}."
        )


def _custom(name: str, function: Any) -> Metric:
    if not callable(function):
        raise ArgumentTypeError(
            f"Metric {name!r} must be a function f(output, batch), got {type(function).__name__}."
        )

    def compute(output: Any, target: Any, batch: Batch) -> tuple[Tensor, Count]:
        return _sum_and_count(name, function(output, batch))

    return Metric(name, compute, of_callable(function))


def _sum_and_count(name: str, value: Any) -> tuple[Tensor, Count]:
    if isinstance(value, Tensor) and value.ndim and not value.is_complex():
        return sum_exactly(value.detach()), value.numel()
    if isinstance(value, tuple) and len(value) == 2 and all(map(is_scalar, value)):
        total, count = value
        return as_exact(total), count
    raise LossError(
        f"Metric {name!r} must return one value per sample (a tensor of at least one dimension) or "
        f"a pair (sum, count) of numbers, got {describe(value)}."
    )


def is_scalar(value: Any) -> bool:
    """Tell whether a value is a real number or a 0-d tensor of one.

    Args:
        value: Anything.

    Returns:
        True for int, float (not bool) and real 0-d tensors.
    """
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_complex()
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# --- Accuracy -----------------------------------------------------------------------------------


def _built_in(name: str, decision: str | None, ignore_index: int, shifted: bool) -> Metric:
    if name not in BUILT_IN:
        names = ", ".join(map(repr, BUILT_IN))
        raise ArgumentError(
            f"`metrics` must be one of {names} or a mapping {{name: f(output, batch)}}, "
            f"got {name!r}{did_you_mean(name, BUILT_IN) or '.'}"
        )
    if decision is None or (name == "top5" and decision not in ("class", "any")):
        raise ArgumentError(
            f"Metric {name!r} must go with a loss that compares class scores with classes; "
            "pass {name: f(output, batch)} to define it for this one."
        )
    kept = IdentityCache()

    def compute(output: Any, target: Any, batch: Batch) -> tuple[Tensor, Count]:
        scores = output_tensors(output)[0].detach()
        if not isinstance(target, Tensor):
            raise LossError(f"Metric {name!r} needs a tensor of targets, got {describe(target)}.")
        shift = shifted and target.ndim > 1
        scores = scores[:, :-1] if shift else scores
        labels, valid, count = kept.get(target, lambda: _labels(target, ignore_index, shift))
        correct = _correct(name, scores, labels, valid, decision)
        right = sum_exactly(correct)
        count = correct.numel() if count is None else count
        return (count - right if name == "error" else right), count

    return Metric(name, compute, name, Rule(name, decision, ignore_index, shifted))


def _labels(
    target: Tensor, ignore_index: int, shift: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return labels (ignored ones are no class, -1), which of them count, and how many."""
    labels = target[:, 1:] if shift else target
    if labels.is_floating_point() or labels.dtype == torch.bool:
        return labels, None, None
    valid = labels != ignore_index
    return labels.long().masked_fill(~valid, -1), valid, sum_exactly(valid)


def _correct(
    name: str, scores: Tensor, labels: Tensor, valid: Tensor | None, decision: str | None
) -> Tensor:
    """Tell where the decision equals the label; a NaN is never right."""
    axis = _class_axis(scores, labels)
    if decision == "any":
        one_column = axis is not None and scores.shape[axis] == 1
        scores = scores.squeeze(axis) if one_column and axis is not None else scores
        binary = scores.shape == labels.shape and not labels.is_floating_point()
        decision = "logit" if one_column or binary else "class"
    same = scores.shape == labels.shape
    if decision == "class":
        if same and labels.is_floating_point() and labels.ndim:  # class probabilities
            axis = min(1, labels.ndim - 1)
            labels = labels.argmax(axis)
        if axis is not None:
            return _in_top(scores, labels, axis, _TOP_K if name == "top5" else 1)
    elif name != "top5" and same:
        threshold = 0.5 if decision == "probability" else 0.0
        positive = labels > (0.0 if decision == "sign" else 0.5)
        correct = ((scores > threshold) == positive) & ~scores.isnan()
        return correct if valid is None else correct & valid
    raise LossError(
        f"Metric {name!r} must compare scores (N, C, ...) or (N, ..., C) with classes (N, ...), "
        f"got {describe(scores)} and {describe(labels)}."
    )


def _class_axis(scores: Tensor, labels: Tensor) -> int | None:
    """Axis 1 if that fits, as in torch's losses, else the last one; None if neither does."""
    if scores.ndim != labels.ndim + 1:
        return None
    if labels.ndim == 0:
        return 0
    if scores.shape[:1] + scores.shape[2:] == labels.shape:
        return 1
    return scores.ndim - 1 if scores.shape[:-1] == labels.shape else None


def _in_top(scores: Tensor, labels: Tensor, axis: int, k: int) -> Tensor:
    if k == 1:
        best, chosen = scores.max(axis)
        return (chosen == labels) > best.isnan()
    best, chosen = scores.topk(min(k, scores.shape[axis]), axis)
    return ((chosen == labels.unsqueeze(axis)) > best.isnan()).any(axis)
