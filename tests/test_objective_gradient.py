"""The gradient of the loss at a point."""

from __future__ import annotations

import models
import pytest
import torch
from objective_cases import flat
from torch import nn

import landscapex as lx
from landscapex.errors import ArgumentError, EmptyDataError


def widened(t):
    return t.double() if t.is_floating_point() else t


@pytest.mark.parametrize("name", models.CASES)
def test_the_gradient_is_that_of_the_mean_over_all_samples(name):
    case = models.case(name)
    case.model.double()
    batches = [b if isinstance(b, dict) else tuple(map(widened, b)) for b in case.batches]
    objective = lx.Objective(case.model, batches, case.loss)
    gradient, point = objective.gradient(), flat(case.model)
    d = torch.randn(len(point), dtype=torch.float64)
    h = 1e-8
    slope = (objective.loss(point + h * d) - objective.loss(point - h * d)) / (2 * h)
    assert (gradient @ d).item() == pytest.approx(slope, rel=2e-5, abs=1e-7)


def test_trap_23_parameters_that_the_loss_does_not_use_have_gradient_zero():
    """Unused and frozen parameters crash other tools."""
    model = models.mlp(3, 4, 1)
    model.unused = nn.Linear(5, 2)
    model[0].weight.requires_grad_(False)
    x = torch.linspace(-1, 1, 12).view(4, 3)

    def loss(m, batch):
        return m[2](m[1](m[0](batch))).square().mean()

    objective = lx.Objective(model, [x], loss, params="*")
    parts = objective.space.unflatten(objective.gradient())
    assert not parts["unused.weight"].any()
    assert not parts["unused.bias"].any()
    assert parts["0.weight"].any()
    frozen = lx.Objective(model, [x], loss, params="0.weight")
    assert torch.equal(frozen.gradient(), parts["0.weight"].flatten())


def test_trap_26_the_gradient_of_a_complex_parameter():
    model = nn.Module()
    model.z = nn.Parameter(torch.tensor([1 + 2j, -3j], dtype=torch.complex128))
    objective = lx.Objective(model, None, lambda m, b: m.z.abs().square().sum(), weight_decay=0.5)
    assert objective.loss() == pytest.approx(1.25 * (1 + 4 + 9))
    expected = torch.tensor([1.0, 2.0, 0.0, -3.0], dtype=torch.float64)
    torch.testing.assert_close(objective.gradient(), 2.5 * expected)


def test_a_loss_that_differentiates_gets_gradients():
    """Gradient penalties and physics-informed losses."""
    model = models.mlp(3, 4, 1, act=nn.Tanh).double()
    x = torch.linspace(-1, 1, 12).view(4, 3).double()

    def loss(m, batch):
        batch = batch.clone().requires_grad_()
        (slope,) = torch.autograd.grad(m(batch).sum(), batch, create_graph=True)
        return slope.square().mean()

    objective = lx.Objective(model, [x], loss)
    assert objective.loss() == pytest.approx(loss(model, x).item(), rel=1e-12)
    assert lx.line(objective, points=3, progress=False).loss[1] == objective.loss()


def test_a_gradient_needs_statistics_that_stay():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    objective = lx.Objective(
        model, (torch.randn(6, 3), torch.arange(6) % 2), "cross_entropy", bn="recompute"
    )
    with pytest.raises(ArgumentError, match="`bn` must be 'eval' or 'batch' for a gradient"):
        objective.gradient()
    with torch.inference_mode(), pytest.raises(ArgumentError, match="inference_mode"):
        objective.gradient()


def test_a_gradient_of_nothing_is_an_error_and_of_a_constant_zero():
    model, x = models.mlp(3, 2), torch.randn(6, 3)
    nothing = lx.Objective(model, (x, torch.full((6,), -100)), "cross_entropy")
    with pytest.raises(EmptyDataError, match="must count"):
        nothing.gradient()
    constant = lx.Objective(model, [x], lambda m, batch: batch.square().mean())
    assert constant.gradient().abs().max() == 0
