"""Batch norm and instance norm at a point: kept, recomputed, or of each batch."""

from __future__ import annotations

import copy

import models
import pytest
import reference
import torch
from objective_cases import flat
from torch import nn
from torch.nn import functional as F

import landscapex as lx


def batch_norm_model():
    model = models.case("conv").model
    with torch.no_grad():
        model.bn.running_mean.normal_()
        model.bn.running_var.uniform_(0.5, 2)
    return model.double()


def own_loss(model, batches):
    return reference.mean_loss(
        model, batches, lambda m, b: (F.cross_entropy(m(b[0]), b[1]), len(b[1]))
    )


def conv_batches():
    return [(x.double(), y) for x, y in models.case("conv").batches]


@pytest.mark.parametrize("training", [False, True])
def test_trap_17_batch_norm_uses_running_statistics_by_default(training):
    model = batch_norm_model()
    expected = own_loss(model, conv_batches())
    model.train(training)
    assert lx.Objective(model, conv_batches(), "cross_entropy").loss() == pytest.approx(
        expected, rel=1e-12
    )


def test_batch_norm_recomputed_at_each_point():
    """Plain averages over the batches of their means and unbiased variances."""
    model = batch_norm_model()
    objective = lx.Objective(model, conv_batches(), "cross_entropy", bn="recompute")
    twin = copy.deepcopy(model).eval()
    point = 1.3 * flat(model)
    nn.utils.vector_to_parameters(point, twin.parameters())
    with torch.no_grad():
        activations = [twin.conv(x) for x, _ in conv_batches()]
    mean, variance = reference.running_statistics(activations)
    twin.bn.running_mean.copy_(mean)
    twin.bn.running_var.copy_(variance)
    assert objective.loss(point) == pytest.approx(own_loss(twin, conv_batches()), rel=1e-10)
    assert objective.loss() != objective.loss(point)


def test_batch_norm_by_batch():
    model = batch_norm_model()
    objective = lx.Objective(model, conv_batches(), "cross_entropy", bn="batch")
    twin = copy.deepcopy(model).eval()

    def normalised(m, batch):
        x = m.conv(batch[0])
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        x = (x - mean) / (var + m.bn.eps).sqrt()
        x = x * m.bn.weight[:, None, None] + m.bn.bias[:, None, None]
        out = m.head(m.up(x.relu()).relu().mean((2, 3)))
        return F.cross_entropy(out, batch[1]), len(batch[1])

    expected = reference.mean_loss(twin, conv_batches(), normalised)
    assert objective.loss() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("bn", ["recompute", "batch"])
def test_dropout_stays_off_whatever_batch_norm_does(bn):
    model = batch_norm_model().train()
    objective = lx.Objective(model, conv_batches(), "cross_entropy", bn=bn, check=False)
    assert len({objective.loss() for _ in range(3)}) == 1
    model.drop.p = 0.0
    without = lx.Objective(model, conv_batches(), "cross_entropy", bn=bn)
    assert objective.loss() == without.loss()


def test_instance_norms_are_recomputed_too():
    """To them, unlike to batch norms, a momentum of None is 0."""
    torch.manual_seed(0)
    norm = nn.InstanceNorm1d(2, track_running_stats=True)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(10, 2)).eval()
    batches = [(3 * torch.randn(4, 2, 5) + 1, torch.arange(4) % 2) for _ in range(3)]
    found = lx.Objective(model, batches, "cross_entropy", bn="recompute").loss()
    means = torch.stack([x.mean((0, 2)) for x, _ in batches]).mean(0)
    variances = torch.stack([x.var(2).mean(0) for x, _ in batches]).mean(0)
    norm.running_mean.copy_(means)
    norm.running_var.copy_(variances)
    assert found == pytest.approx(lx.Objective(model, batches, "cross_entropy").loss(), rel=1e-6)
