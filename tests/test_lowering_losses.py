"""Losses as grid programs: of classes, elementwise, written out, and combined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lowered
import pytest
import torch
from lowering_cases import batch_of, randn
from lowering_layer_cases import IGNORED, SAMPLES, Scaled, labels, loss_is_that_of_torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscapex.engine.lowering.lower import lower
from landscapex.engine.plan import NotCapturedError
from landscapex.engine.program import Grid
from landscapex.engine.steps import CrossEntropy

# --- Losses of classes ----------------------------------------------------------------------------


WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.25])


CLASS_LOSSES = {
    "plain": (nn.CrossEntropyLoss(), labels(4, SAMPLES)),
    "weights": (nn.CrossEntropyLoss(weight=WEIGHT), labels(4, SAMPLES)),
    "smoothing": (nn.CrossEntropyLoss(label_smoothing=0.2), labels(4, SAMPLES)),
    "ignored": (nn.CrossEntropyLoss(), IGNORED),
    "another ignored": (nn.CrossEntropyLoss(ignore_index=2), labels(4, SAMPLES)),
    "all": (nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1), IGNORED),
    "probabilities": (nn.CrossEntropyLoss(), randn(SAMPLES, 4, seed=5).softmax(1)),
    "probabilities, all": (
        nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1),
        randn(SAMPLES, 4, seed=5).softmax(1),
    ),
}


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_class_losses(name: str) -> None:
    loss, target = CLASS_LOSSES[name]
    lowered.check(Scaled(lambda x: x, (4,)), (randn(SAMPLES, 4), target), loss)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_likelihoods_of_log_probabilities(weight: Tensor | None) -> None:
    model = Scaled(lambda x: F.log_softmax(x, 1), (4, 3))
    batch = randn(SAMPLES, 4, 3), labels(4, SAMPLES, 3)
    lowered.check(model, batch, nn.NLLLoss(weight=weight, ignore_index=1))


def test_class_losses_of_many_positions() -> None:
    lowered.check(
        Scaled(lambda x: x, (4, 3, 2)), (randn(SAMPLES, 4, 3, 2), labels(4, SAMPLES, 3, 2))
    )
    target = randn(SAMPLES, 4, 3, seed=5).softmax(1)
    lowered.check(Scaled(lambda x: x, (4, 3)), (randn(SAMPLES, 4, 3), target))
    loss_is_that_of_torch(
        Scaled(lambda x: x, (3, 4)),
        (randn(SAMPLES, 3, 4), labels(4, SAMPLES, 3)),
        lambda m, b: F.cross_entropy(m(b[0]).flatten(0, 1), b[1].flatten(), ignore_index=2),
    )


def test_an_affine_value_goes_into_the_loss_as_it_is() -> None:
    found = lowered.check(nn.Linear(128, 4), (randn(SAMPLES, 128), labels(4, SAMPLES)))
    (step,) = (s for s in found.program.steps if isinstance(s, CrossEntropy))
    assert found.program.buffers[step.input].grid is Grid.AFFINE


ELEMENT_LOSSES = {
    "mse": (F.mse_loss, randn(SAMPLES, 4, seed=1)),
    "l1": (F.l1_loss, randn(SAMPLES, 4, seed=1)),
    "smooth l1": (F.smooth_l1_loss, randn(SAMPLES, 4, seed=1)),
    "smooth l1, narrow": (
        lambda x, y, **o: F.smooth_l1_loss(x, y, beta=0.3, **o), randn(SAMPLES, 4, seed=1)
    ),
    "smooth l1, edge 0": (
        lambda x, y, **o: F.smooth_l1_loss(x, y, beta=0.0, **o), randn(SAMPLES, 4, seed=1)
    ),
    "huber": (lambda x, y, **o: F.huber_loss(x, y, delta=0.4, **o), randn(SAMPLES, 4, seed=1)),
    "bce, logits": (F.binary_cross_entropy_with_logits, labels(2, SAMPLES, 4).float()),
}  # fmt: skip

MEAN_LOSSES = {
    **ELEMENT_LOSSES,
    "bce": (
        lambda x, y, **o: F.binary_cross_entropy((60 * x).sigmoid(), y, weight=WEIGHT, **o),
        randn(SAMPLES, 4, seed=1).sigmoid(),
    ),
    "bce, weights": (
        lambda x, y, **o: F.binary_cross_entropy_with_logits(
            x, y, weight=WEIGHT, pos_weight=torch.tensor(3.0), **o
        ),
        labels(2, SAMPLES, 4).float(),
    ),
    "bce, positive weights": (
        lambda x, y, **o: F.binary_cross_entropy_with_logits(
            x, y, weight=WEIGHT, pos_weight=WEIGHT.flip(0) + 1, **o
        ),
        labels(2, SAMPLES, 4).float(),
    ),
    "kl": (
        lambda x, y, **o: F.kl_div(F.log_softmax(x, 1), y, **o), randn(SAMPLES, 4).softmax(1)
    ),
    "kl, log": (
        lambda x, y, **o: F.kl_div(F.log_softmax(x, 1), y, log_target=True, **o),
        randn(SAMPLES, 4).log_softmax(1),
    ),
    "poisson": (F.poisson_nll_loss, labels(5, SAMPLES, 4).float()),
    "poisson, no logarithm": (
        lambda x, y, **o: F.poisson_nll_loss(x.exp(), y, log_input=False, eps=1e-3, **o),
        labels(5, SAMPLES, 4).float(),
    ),
    "soft margin": (F.soft_margin_loss, labels(2, SAMPLES, 4).float() * 2 - 1),
    "integers": (F.mse_loss, labels(5, SAMPLES, 4)),
    "broadcast": (F.mse_loss, randn(SAMPLES, 1, seed=1)),
}  # fmt: skip


@pytest.mark.parametrize("name", MEAN_LOSSES)
def test_elementwise_losses(name: str) -> None:
    function, target = MEAN_LOSSES[name]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x = model(batch[0])
        total = function(x.roll(1, 1), batch[1], reduction="sum")
        return total - 3 * function(x, batch[1], reduction="mean")

    loss_is_that_of_torch(Scaled(lambda x: x, (4,)), (randn(SAMPLES, 4), target), loss)


@pytest.mark.parametrize("name", [name for name in ELEMENT_LOSSES if "edge 0" not in name])
def test_losses_per_element_are_values(name: str) -> None:
    function, target = ELEMENT_LOSSES[name]
    factor = randn(SAMPLES, seed=6)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        each = function(model(batch[0]), batch[1], reduction="none")
        return (each.sum(1) * batch[2]).mean()

    batch = randn(SAMPLES, 4), target, factor
    loss_is_that_of_torch(Scaled(lambda x: x, (4,)), batch, loss)


LOSSES = {
    "mean of sums": lambda x, y: ((x - y) ** 2).sum(1).mean(),
    "mean over all axes": lambda x, y: (x * y).abs().mean((0, 1)),
    "sum over the last axis left": lambda x, y: (x * y).sum(1).sum(0),
    "against the model itself": lambda x, y: F.mse_loss(x, (x * y).relu()),
    "against a constant": lambda x, y: F.l1_loss(x, torch.tensor([0.25, 0, 1, -1]).expand_as(x)),
    "with a penalty": lambda x, y: F.mse_loss(x, y) * 2 + 0.1 * x.abs().sum(1).mean() - 3,
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_written_out(name: str) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return LOSSES[name](model(batch[0]), batch[1])

    batch = randn(SAMPLES, 4), randn(SAMPLES, 4, seed=1)
    loss_is_that_of_torch(Scaled(lambda x: x, (4,)), batch, loss)


REFUSED_LOSSES = {
    "per sample": (
        lambda x, y: F.cross_entropy(x, y, reduction="none").mean(), "per sample of classes"
    ),
    "moving weights": (
        lambda x, y: F.cross_entropy(x, (x * 2).softmax(1)), "do not come with the batch"
    ),
    "Stirling": (lambda x, y: F.poisson_nll_loss(x, x, full=True), "Stirling"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_LOSSES)
def test_losses_without_kernel_are_refused(name: str) -> None:
    function, match = REFUSED_LOSSES[name]
    batch = randn(SAMPLES, 4), labels(4, SAMPLES)
    plan = lowered.plan_of(Scaled(lambda x: x, (4,)), batch, lambda m, b: function(m(b[0]), b[1]))
    with pytest.raises(NotCapturedError, match=match):
        lower(plan, simplify=False)


# --- losses as numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [
        lambda m, b: F.mse_loss(m(b[0]), b[1]) * 2 + 0.5 * F.l1_loss(m(b[0]), b[1]),
        lambda m, b: 1 - F.mse_loss(m(b[0]), b[1]) / 4,
        lambda m, b: -(m(b[0]) * b[1]).mean() - 3.0,
        lambda m, b: torch.add(F.mse_loss(m(b[0]), b[1]), F.l1_loss(m(b[0]), b[1]), alpha=0.5),
    ],
)
def test_losses_are_combined(loss: Callable[..., Tensor]) -> None:
    model = nn.Linear(4, 3)
    batch = batch_of(model, randn(SAMPLES, 4))
    plan = lowered.plan_of(model, batch, loss)
    deltas = lowered.moved(plan, 0)
    env = lowered.environment(plan, batch, deltas)
    expected = lowered.evaluate_part(plan, plan.outputs[:1], env)[plan.outputs[0]]
    assert lowered.result_of(lower(plan), plan, batch, deltas).loss == pytest.approx(
        float(expected), rel=1e-9
    )
