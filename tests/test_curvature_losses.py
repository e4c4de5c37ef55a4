"""Curvature of every loss: weights, ignored labels, drawn labels, targets of other shapes."""

from __future__ import annotations

import copy

import models
import pytest
import torch
from curvature_networks import batches_of, compare, made
from curvature_reference import dense_empirical_fisher, dense_ggn, dense_hessian
from torch import Tensor, nn
from torch.nn import functional as F

from landscapex.curvature.operators import hessian


def regression(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    model = models.mlp(4, 5, 2, act=nn.Tanh).double()
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(12, 4, generator=rng, dtype=torch.float64)
    y = torch.rand(12, 2, generator=rng, dtype=torch.float64)
    return model, x, y.round() if "binary" in name else y


@pytest.mark.parametrize("loss", ["mse_loss", "binary_cross_entropy_with_logits"])
@pytest.mark.parametrize("kind", ["hessian", "ggn", "empirical_fisher"])
def test_losses_of_several_numbers_per_sample(loss, kind):
    model, x, y = regression(loss)

    def term(call, batch):
        return getattr(F, loss)(call(batch[0]), batch[1]), batch[1].numel()

    expected = {
        "hessian": lambda: dense_hessian(model, batches_of(x, y), term),
        "ggn": lambda: dense_ggn(model, x, loss, y),
        "empirical_fisher": lambda: dense_empirical_fisher(model, x, loss, y),
    }[kind]()
    compare(hessian(model, batches_of(x, y), loss, kind=kind), expected)


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(),
        nn.BCEWithLogitsLoss(),
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0, 0.5]).double()),
        nn.BCEWithLogitsLoss(weight=torch.tensor([3.0, 0.5]).double()),
    ],
    ids=["mse", "bce", "bce with pos_weight", "bce with weight"],
)
def test_fisher_of_regression_and_binary_labels_tends_to_gauss_newton(loss):
    """The squared error of torch is the negative logarithm of a normal density, variance 1/2."""
    model, x, y = regression("binary")
    ggn = hessian(model, [(x, y)], loss, kind="ggn")
    v = torch.randn(ggn.size, dtype=torch.float64)
    expected = float(v @ (ggn @ v))
    fishers = [hessian(model, [(x, y)], loss, kind="fisher", samples=40, seed=s) for s in range(8)]
    found = torch.tensor([float(v @ (f @ v)) for f in fishers])
    error = float(found.std()) / len(found) ** 0.5
    assert 0 < error < 0.1 * expected
    assert abs(float(found.mean()) - expected) < 4 * error


CRITERIA = {
    "plain": nn.CrossEntropyLoss(),
    "class weights": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 4.0, 0.2]).double()),
    "ignored": nn.CrossEntropyLoss(ignore_index=1),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.3),
    "weights and smoothing": nn.CrossEntropyLoss(
        weight=torch.tensor([1.0, 4.0, 0.2]).double(), label_smoothing=0.3
    ),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_gauss_newton_of_a_linear_model_is_its_hessian(name):
    """Outputs linear in the parameters have no second derivatives of their own."""
    model, x, y = made("linear")
    batches = batches_of(x, y)
    h = hessian(model, batches, CRITERIA[name])
    compare(hessian(model, batches, CRITERIA[name], kind="ggn"), h.dense())


@pytest.mark.parametrize("name", ["class weights", "ignored", "weights and smoothing"])
def test_fisher_has_gauss_newton_as_expectation_for_every_weighting(name):
    """Over all labels instead of drawn ones: sum_c p_c (p - e_c) (p - e_c)^T = diag(p) - p p^T."""
    model, x, y = made("linear")
    batches = batches_of(x, y)
    ggn = hessian(model, batches, CRITERIA[name], kind="ggn")
    v = torch.randn(ggn.size, dtype=torch.float64)
    fishers = [
        hessian(model, batches, CRITERIA[name], kind="fisher", samples=40, seed=s) for s in range(8)
    ]
    found = torch.tensor([float(v @ (f @ v)) for f in fishers])
    error = float(found.std()) / len(found) ** 0.5
    assert 0 < error < 0.1 * float(v @ (ggn @ v))
    assert abs(float(found.mean()) - float(v @ (ggn @ v))) < 4 * error


@pytest.mark.parametrize("kind", ["ggn", "fisher", "empirical_fisher"])
def test_nll_loss_of_log_probabilities_is_cross_entropy(kind):
    model, x, y = made("relu")
    with_softmax = nn.Sequential(model, nn.LogSoftmax(1))
    a = hessian(model, batches_of(x, y), "cross_entropy", kind=kind)
    b = hessian(with_softmax, batches_of(x, y), "nll_loss", kind=kind)
    compare(b, a.dense())
    assert torch.allclose(a.gradient, b.gradient, rtol=1e-12)


def test_probabilities_as_targets():
    model, x, _ = made("relu")
    target = torch.rand(len(x), 3, dtype=torch.float64).softmax(1)
    expected = dense_ggn(model, x, "cross_entropy", target)
    compare(hessian(model, batches_of(x, target), "cross_entropy", kind="ggn"), expected)


def test_labels_at_many_positions():
    """An image of labels: the mean is over positions, a sample is an image."""
    model = models.seeded(lambda: nn.Conv2d(1, 3, 3, padding=1)).double()
    x, y = torch.randn(6, 1, 2, 2, dtype=torch.float64), torch.randint(3, (6, 2, 2))
    compare(hessian(model, [(x, y)], "cross_entropy", kind="ggn"), hessian(
        model, [(x, y)], "cross_entropy").dense())  # fmt: skip
    expected = dense_empirical_fisher(model, x, "cross_entropy", y)
    compare(hessian(model, [(x, y)], "cross_entropy", kind="empirical_fisher"), expected)


def test_models_with_a_loss_of_their_own():
    case = models.case("transformer")
    model = copy.deepcopy(case.model).double()
    small = copy.deepcopy(case.batches[-1])

    def term(call, batch):
        return call(**batch).loss, len(batch["labels"])

    names = ("head.weight", "head.bias", "encoder.layers.1.norm2.weight")
    expected = dense_hessian(model.eval(), [small, small], term, names)
    compare(hessian(model, [small, small], None, params=names), expected)
