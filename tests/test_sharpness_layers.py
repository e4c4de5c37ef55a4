"""Relative flatness and the Fisher-Rao norm: against their definitions."""

from __future__ import annotations

import math

import models
import pytest
import torch
from intervals import covered
from sharpness_cases import (
    classification,
    gradient_of,
    relu_net,
    whole,
)
from torch import nn

import landscapex as lx
from landscapex import sharpness
from landscapex.curvature.linear import SymmetricOperator
from landscapex.curvature.operators import hessian
from landscapex.curvature.trace import trace
from landscapex.errors import ArgumentError
from landscapex.sharpness import flatness, layers

# --- Relative flatness ---------------------------------------------------------------------------


def flatness_by_definition(objective, name):
    """sum_{s,s'} <w_s, w_s'> Tr(H_{s,s'}) from the whole Hessian of the layer."""
    _, _, loss = whole(objective)
    space = objective.space
    e = space.entries[space.names[name]]
    w = space.gather()
    h = torch.func.hessian(loss)(w) + objective.weight_decay * torch.eye(space.size).double()
    h = h[e.offset : e.end, e.offset : e.end]
    rows = w[e.offset : e.end].view(e.shape[0], -1)
    h = h.view(*rows.shape, *rows.shape)
    return float(torch.einsum("sj,tj,sktk->", rows, rows, h).item())


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("bias", [False, True])
def test_relative_flatness_equals_its_definition(bias, decay):
    objective = classification(relu_net(bias=bias, sizes=(10, 6, 3)), weight_decay=decay)
    for layer, method in (("2", "closed form"), ("2", "trace"), ("0", "trace")):
        expected = flatness_by_definition(objective, f"{layer}.weight")
        found = sharpness.relative_flatness(objective, layer, method=method, products=100)
        assert found.value == pytest.approx(expected, rel=1e-10)
        assert found.standard_error is None
        assert found.settings["method"] == method
    chosen = {k: sharpness.relative_flatness(objective, k).settings["method"] for k in ("0", "2")}
    assert chosen == {"0": "trace", "2": "closed form"}


def test_relative_flatness_of_a_convolution_takes_filters_as_rows():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
    x, y = torch.randn(7, 1, 3, 3).double(), torch.arange(7) % 3
    objective = lx.Objective(model, (x, y), "cross_entropy")
    found = sharpness.relative_flatness(objective, "0")
    assert found.value == pytest.approx(flatness_by_definition(objective, "0.weight"), rel=1e-10)


def test_the_closed_form_counts_labels_as_the_loss_does():
    model = relu_net(sizes=(10, 6, 3))
    x, y = torch.randn(9, 10).double(), torch.arange(9) % 3
    y[[1, 2, 7]] = -100
    for loss in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.2)):
        objective = lx.Objective(model, [(x[:4], y[:4]), (x[4:], y[4:])], loss)
        exact = sharpness.relative_flatness(objective, "2", method="closed form")
        by_products = sharpness.relative_flatness(objective, "2", method="trace")
        assert exact.value == pytest.approx(by_products.value, rel=1e-9)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double())
    objective = lx.Objective(model, (x, y), weighted)
    assert sharpness.relative_flatness(objective, "2").settings["method"] == "trace"


class TwoHeads(nn.Module):
    """A linear layer whose output is not yet that of the model."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()

    def forward(self, x):
        return self.a(x) + self.b(x) ** 2


class Twice(nn.Module):
    """One layer that is used twice."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4).double()

    def forward(self, x):
        return self.a(self.a(x))


@pytest.mark.parametrize("build", [TwoHeads, Twice])
def test_a_layer_that_is_not_the_last_one_alone_has_no_closed_form(build):
    objective = lx.Objective(
        models.seeded(build), (torch.randn(6, 4).double(), torch.arange(6) % 3), "cross_entropy"
    )
    found = sharpness.relative_flatness(objective, "a")
    assert found.settings["method"] == "trace"
    assert found.value == pytest.approx(flatness_by_definition(objective, "a.weight"), rel=1e-9)
    with pytest.raises(ArgumentError, match="`method` must be 'trace' unless the layer is the"):
        sharpness.relative_flatness(objective, "a", method="closed form")


def test_coverage_of_the_error_of_an_estimated_relative_flatness():
    objective = classification(relu_net(sizes=(10, 6, 3)))
    true = sharpness.relative_flatness(objective, "0", method="trace", products=100).value
    curvature = hessian(objective, params=["0.weight"])
    operator = flatness.weighted(curvature, objective.model[0].weight.detach())
    matrix = operator.dense()
    same = SymmetricOperator(lambda v: matrix @ v, operator.size, operator.dtype)
    found = [trace(same, products=16, seed=seed) for seed in range(200)]
    assert 0.82 <= covered([f.interval(0.9) for f in found], true) <= 0.98
    estimate = sharpness.relative_flatness(objective, "0", products=16, seed=3)
    assert estimate.value == pytest.approx(found[3].value, rel=1e-9)
    assert estimate.standard_error == pytest.approx(found[3].standard_error, rel=1e-6)
    assert estimate.interval(0.9) == pytest.approx(found[3].interval(0.9), rel=1e-6)
    assert estimate.products == found[3].products


# --- Fisher-Rao ----------------------------------------------------------------------------------


def fisher_rao_by_definition(objective):
    """The mean over the samples of <gradient, parameters> squared, one backward pass each."""
    x, _, loss = whole(objective)
    w = objective.space.gather()
    terms = [float(gradient_of(loss, w, slice(i, i + 1)) @ w) ** 2 for i in range(len(x))]
    return math.fsum(terms) / len(terms)


@pytest.mark.parametrize("sizes", [(10, 3), (10, 12, 3), (10, 8, 6, 3)])
def test_check_f5_fisher_rao_equals_l_squared_times_the_output_products(sizes):
    """L counts layers of weights; (L + 1)^2 of a public snippet is off by one."""
    objective = classification(relu_net(sizes=sizes))
    expected = fisher_rao_by_definition(objective)
    found = {m: sharpness.fisher_rao(objective, method=m) for m in ("closed form", "definition")}
    for method, result in found.items():
        assert result.value == pytest.approx(expected, rel=1e-10)
        assert result.settings["method"] == method
    assert found["closed form"].settings["layers"] == len(sizes) - 1
    assert sharpness.fisher_rao(objective).settings["method"] == "closed form"


def test_with_biases_fisher_rao_goes_by_its_definition():
    objective = classification(relu_net(bias=True))
    found = sharpness.fisher_rao(objective)
    assert found.settings == {"method": "definition"}
    assert found.value == pytest.approx(fisher_rao_by_definition(objective), rel=1e-10)
    with pytest.raises(ArgumentError, match="`method` must be 'definition' unless the model is a"):
        sharpness.fisher_rao(objective, method="closed form")


def test_fisher_rao_leaves_weight_decay_out_and_ignored_labels_to_the_definition():
    plain = sharpness.fisher_rao(classification(relu_net()))
    decayed = sharpness.fisher_rao(classification(relu_net(), weight_decay=0.5))
    assert decayed.value == plain.value
    x, y = torch.randn(6, 10).double(), torch.tensor([0, 1, -100, 2, 0, -100])
    ignoring = sharpness.fisher_rao(lx.Objective(relu_net(), (x, y), "cross_entropy"))
    assert ignoring.settings["method"] == "definition"
    kept = sharpness.fisher_rao(lx.Objective(relu_net(), (x[y >= 0], y[y >= 0]), "cross_entropy"))
    assert kept.settings["method"] == "closed form"
    assert ignoring.value == pytest.approx(kept.value, rel=1e-10)


def test_fisher_rao_of_a_regression_with_one_output():
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 1, bias=False))
    x, y = torch.randn(9, 4).double(), torch.randn(9, 1).double()
    objective = lx.Objective(model.double(), (x, y), "mse_loss", batch_size=4)
    exact, literal = (
        sharpness.fisher_rao(objective, method=m) for m in ("closed form", "definition")
    )
    f = model(x).detach()
    assert exact.value == pytest.approx(4 * float(((2 * (f - y) * f) ** 2).mean()), rel=1e-10)
    assert literal.value == pytest.approx(exact.value, rel=1e-10)


def test_only_chains_of_layers_without_biases_are_homogeneous():
    def count(model, params=None):
        return layers.homogeneous_layers(
            lx.Objective(model, None, lambda m, b: 0, params=params).space
        )

    linear = nn.Linear(4, 4, bias=False)
    pooled = nn.Sequential(
        nn.Conv2d(1, 2, 2, bias=False), nn.LeakyReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Sequential(nn.Dropout(), nn.Linear(2, 3, bias=False)),
    )  # fmt: skip
    assert count(pooled) == 2
    image = torch.randn(5, 1, 3, 3)
    with torch.no_grad():
        before = pooled.eval()(image)
        for p in pooled.parameters():
            p *= 1.5
        torch.testing.assert_close(pooled(image), 1.5**2 * before)
    assert count(nn.Sequential(linear, nn.ReLU(), linear)) == 2  # used twice: of degree two
    assert count(linear) == 1
    for other in (
        nn.Sequential(linear, nn.Tanh()),
        nn.Sequential(linear, nn.BatchNorm1d(4)),
        nn.Sequential(linear, nn.Linear(4, 4)),
        TwoHeads(),
    ):
        assert count(other) is None
    assert count(relu_net(), ["0.weight"]) is None
    hooked = relu_net()
    hooked[1].register_forward_hook(lambda m, args, out: out + 1)
    assert count(hooked) is None
