"""What has no program: operators and losses that mix samples, and what has no kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lowered
import pytest
import torch
from lowering_cases import SAMPLES, Function, batch_of, randn
from torch import Tensor, nn
from torch.nn import functional as F

from landscapex.engine.lowering.lower import lower
from landscapex.engine.plan import NotCapturedError
from landscapex.losses.metrics import Rule


def refused(model: nn.Module, *inputs: Tensor, match: str, loss: Any = "mse_loss") -> None:
    with pytest.raises(NotCapturedError, match=match):
        lower(lowered.plan_of(model, batch_of(model, *inputs), loss))


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda x, w: (x * w).cumsum(1), "the operator cumsum has no kernel"),
        (lambda x, w: x * w + (x * w).mean(0), "mixes samples"),
        (lambda x, w: (x * w).flip(0), "flip mixes samples: it works along their axis"),
        (lambda x, w: (x * w).roll(1, 0), "roll mixes samples: it works along their axis"),
        (lambda x, w: (x * w).softmax(0), "softmax.int mixes samples"),
        (lambda x, w: torch.cat([x * w, x], 0).unflatten(0, (2, -1)).sum(0), "cat mixes samples"),
        (lambda x, w: (x * w).repeat(2, 1).unflatten(0, (-1, 2))[:, 0], "repeat mixes samples"),
        (
            lambda x, w: (x * w).flatten().unflatten(0, (2, -1)).exp().flatten().view(-1, 4),
            "view mixes samples: their axis is cut",
        ),
        (
            lambda x, w: (x * w).t().contiguous().view(4 * x.shape[0]).view(x.shape[0], 4),
            "view mixes samples: their axis is cut",
        ),
        (
            lambda x, w: ((x * w).t().contiguous().view(4 * x.shape[0]) + (x * w).view(-1)).view(
                -1, 4
            ),
            "mixes samples: they are in different orders",
        ),
        (
            lambda x, w: (x * w)[torch.zeros(x.shape[0], dtype=torch.long)],
            "index.Tensor mixes samples",
        ),
        (lambda x, w: torch.where(x * w > math.inf, x, w), "a comparison with infinity"),
    ],
)
def test_what_cannot_be_lowered_is_refused(function: Callable[..., Any], match: str) -> None:
    refused(Function(function, (4,)), randn(SAMPLES, 4), match=match)


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (lambda m, b: F.mse_loss(m(b[0]), b[1]).sqrt(), "sqrt of a loss"),
        (lambda m, b: F.mse_loss(m(b[0]), b[1]) * F.l1_loss(m(b[0]), b[1]), "a product of losses"),
        (lambda m, b: 1 / F.mse_loss(m(b[0]), b[1]), "a quotient of losses|reciprocal of a loss"),
        (lambda m, b: F.mse_loss(m(b[0]), b[1]) + m.weight.square().sum(), "a penalty beside"),
    ],
)
def test_losses_that_are_no_sum_over_samples_are_refused(
    loss: Callable[..., Tensor], match: str
) -> None:
    refused(nn.Linear(4, 3), randn(SAMPLES, 4), loss=loss, match=match)


def test_moving_statistics_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    plan = lowered.plan_of(
        model, batch_of(model, randn(SAMPLES, 4)), "mse_loss", ["1.running_mean"]
    )
    with pytest.raises(NotCapturedError, match="running statistics that move"):
        lower(plan)


def test_metrics_need_one_output_and_its_target() -> None:
    model = nn.Linear(4, 3)
    batch = randn(SAMPLES, 4), torch.zeros(SAMPLES, 3)
    plan = lowered.plan_of(model, batch, lambda m, b: F.mse_loss(m(b[0]), b[1]))
    with pytest.raises(NotCapturedError, match="metrics without one output and its target"):
        lower(plan, metrics=[Rule("accuracy", "class", -100, False)])
