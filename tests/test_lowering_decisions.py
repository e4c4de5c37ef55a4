"""Decisions are counted by grid programs as the metrics count them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lowered
import numpy as np
import pytest
import torch
from lowering_cases import randn
from lowering_layer_cases import IGNORED, SAMPLES, Scaled, labels
from torch import Tensor, nn

from landscapex.engine.capture import capture
from landscapex.engine.lowering.lower import lower
from landscapex.engine.plan import NotCapturedError
from landscapex.losses.binding import resolve
from landscapex.losses.metrics import resolve_metrics


@dataclass(frozen=True)
class Rule:
    name: str = "accuracy"
    decision: str = "any"
    ignore_index: int = -100
    shifted: bool = False


EQUAL = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]] * 3)
DECISIONS: dict[str, tuple[Tensor, Tensor, Rule]] = {
    "classes": (randn(SAMPLES, 4), labels(4, SAMPLES), Rule()),
    "classes, error": (randn(SAMPLES, 4), labels(4, SAMPLES), Rule("error", "class")),
    "classes, ignored": (randn(SAMPLES, 4), IGNORED, Rule(decision="class")),
    "classes, equal scores": (EQUAL, torch.tensor([0, 0, 1, 1, 2, 2]), Rule(decision="class")),
    "top 5": (randn(SAMPLES, 9), labels(9, SAMPLES), Rule("top5", "class")),
    "top 5 of 3": (randn(SAMPLES, 3), labels(3, SAMPLES), Rule("top5")),
    "positions, class axis 1": (randn(SAMPLES, 4, 5), labels(4, SAMPLES, 5), Rule()),
    "positions, class axis last": (randn(SAMPLES, 5, 4), labels(4, SAMPLES, 5), Rule()),
    "shifted": (randn(SAMPLES, 5, 4), labels(4, SAMPLES, 5), Rule(shifted=True)),
    "column": (randn(SAMPLES, 1), labels(2, SAMPLES), Rule()),
    "logits": (randn(SAMPLES, 3), labels(2, SAMPLES, 3), Rule()),
    "logits of floats": (randn(SAMPLES, 3), labels(2, SAMPLES, 3).float(), Rule(decision="logit")),
    "logits, ignored": (randn(SAMPLES), labels(3, SAMPLES), Rule(decision="logit", ignore_index=2)),
    "probabilities": (
        randn(SAMPLES, 3).sigmoid(), labels(2, SAMPLES, 3).float(), Rule(decision="probability")
    ),
    "signs": (
        randn(SAMPLES, 3), 2 * labels(2, SAMPLES, 3).float() - 1, Rule(decision="sign")
    ),
    "booleans": (randn(SAMPLES, 3), labels(2, SAMPLES, 3) == 1, Rule(decision="logit")),
}  # fmt: skip


def _hits(scores: Tensor, target: Tensor, rule: Rule) -> tuple[float, float]:
    """What the program counts, and the metric itself."""
    model = Scaled(lambda x: x, tuple(scores.shape[1:]))
    model.factor.data = torch.ones_like(model.factor)

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        return model(batch[0]).abs().mean()

    measure = resolve(loss, model=model)
    measure.captured = lambda model, batch: (  # type: ignore[method-assign]
        loss(model, batch), (model(batch[0]),), (batch[1],)
    )  # fmt: skip
    batch = scores, target
    plan = capture(model, measure, batch, moving=["factor"])
    found = lower(plan, metrics=[rule], simplify=False)
    still = [np.zeros(s.shape) for s in plan.slots]
    count = lowered.result_of(found, plan, batch, still).metrics[rule.name]
    options = {"ignore_index": rule.ignore_index, "shifted": rule.shifted}
    (metric,) = resolve_metrics(rule.name, decision=rule.decision, **options)
    right, valid = metric.compute(scores, target, batch)
    return count, float(valid - right if rule.name == "error" else right)


@pytest.mark.parametrize("name", DECISIONS)
def test_decisions_are_counted_as_by_the_metrics(name: str) -> None:
    count, expected = _hits(*DECISIONS[name])
    assert count == expected


@pytest.mark.parametrize(
    ("scores", "target"),
    [
        (randn(SAMPLES, 4), randn(SAMPLES, 4).softmax(1)),
        (randn(SAMPLES, 4), labels(4, SAMPLES, 2)),
        (randn(SAMPLES, 4), randn(SAMPLES)),
    ],
    ids=["class probabilities", "other positions", "classes as floats"],
)
def test_decisions_without_kernel_are_refused(scores: Tensor, target: Tensor) -> None:
    with pytest.raises(NotCapturedError, match="accuracy of such scores and labels"):
        _hits(scores, target, Rule(decision="class"))
