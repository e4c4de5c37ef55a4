"""Curvature operators: the matrix of all samples, its blocks, and what is drawn for it."""

from __future__ import annotations

import models
import numpy as np
import pytest
import torch
from curvature_cases import classifier, close, cross_entropy, probe, split
from curvature_reference import dense_empirical_fisher, dense_ggn, dense_hessian
from torch import nn
from torch.nn import functional as F

import landscapex as lx
from landscapex.curvature.operators import KINDS, hessian
from landscapex.errors import EmptyDataError, NondeterministicLossError, ParameterMismatchError

# --- The matrix ----------------------------------------------------------------------------------


class Quadratic(nn.Module):
    def __init__(self, matrix):
        super().__init__()
        self.point = nn.Parameter(torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64))
        self.register_buffer("matrix", matrix)

    def forward(self):
        return 0.5 * self.point @ self.matrix @ self.point


def test_hessian_of_a_quadratic_function_is_its_matrix():
    model = Quadratic(torch.diag(torch.tensor([1.0, 2.0, 3.0])).double())
    operator = hessian(lx.Objective(model, None, lambda m, _: m()))
    product = operator @ torch.tensor([0.2, 0.5, -1.2], dtype=torch.float64)
    assert product.tolist() == pytest.approx([0.2, 1.0, -3.6], rel=1e-15)
    assert operator.gradient.tolist() == pytest.approx([0.3, -4.0, 3.0], rel=1e-15)
    assert operator.loss == pytest.approx(0.5 * (0.09 + 8 + 3), rel=1e-15)
    assert operator.products == 1


@pytest.mark.parametrize("sizes", [[8, 2], [3, 3, 3, 1], [1] * 10])
@pytest.mark.parametrize("kind", KINDS)
def test_trap_18_ragged_batches_give_the_matrix_of_all_samples(sizes, kind):
    """An unweighted mean of batch means is off by 33-41 % on an 8 + 2 split."""
    model, x, y = classifier()
    whole = hessian(model, [(x, y)], "cross_entropy", kind=kind, seed=5)
    parts = hessian(model, split(x, y, sizes), "cross_entropy", kind=kind, seed=5)
    v = probe(whole)
    close(parts @ v, whole @ v, 1e-12)
    close(parts.gradient, whole.gradient, 1e-12)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-13)


def test_trap_18_the_square_of_a_linear_model_on_8_and_2_samples():
    x = torch.randn(10, 3, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    operator = hessian(model, split(x, torch.zeros(10, 1).double(), [8, 2]), "mse_loss")
    close(operator.dense(), 2 / 10 * x.T @ x, 1e-12)


def test_trap_18_batches_weigh_what_torch_divides_by():
    """Class weights and ignored labels: the weight of a batch is not its size."""
    model, x, y = classifier()
    y[[0, 1, 8]] = -100
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1]).double())
    for kind in KINDS:
        whole = hessian(model, [(x, y)], loss, kind=kind)
        parts = hessian(model, split(x, y, [8, 2]), loss, kind=kind)
        v = probe(whole)
        close(parts @ v, whole @ v, 1e-12)


def test_hessian_of_a_mean_over_128_and_80_samples():
    model, x, y = classifier(208)
    operator = hessian(model, split(x, y, [128, 80]), "cross_entropy")
    singles = dense_hessian(model, split(x, y, 1), cross_entropy)
    close(operator.dense(), singles, 1e-12)


def test_batches_in_which_nothing_counts_have_no_part():
    model, x, y = classifier()
    ignored = torch.full((3,), -100)
    for kind in KINDS:
        plain = hessian(model, [(x, y)], "cross_entropy", kind=kind)
        more = hessian(model, [(x[:3], ignored), (x, y)], "cross_entropy", kind=kind)
        v = probe(plain)
        if kind != "fisher":  # labels that do not count take their draws along
            close(more @ v, plain @ v, 1e-13)
        assert bool(torch.isfinite(more @ v).all())
    with pytest.raises(EmptyDataError, match="At least one sample or label must count, got none"):
        hessian(model, [(x[:3], ignored)], "cross_entropy")


def test_trap_20_every_batch_counts():
    model, x, y = classifier(12)
    batches = split(x, y, 3)
    v = probe(full := hessian(model, batches, "cross_entropy"))
    for k in range(4):
        fewer = hessian(model, batches[:k] + batches[k + 1 :], "cross_entropy")
        assert not torch.allclose(full @ v, fewer @ v)


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_linear_and_symmetric(kind):
    model, (x, y), loss = lx.examples.digits()
    operator = hessian(model.double(), [(x[:100].double(), y[:100])], loss, kind=kind)
    rng = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, operator.size, generator=rng, dtype=torch.float64)
    hu, hv = operator @ u, operator @ v
    assert float(u @ hv) == pytest.approx(float(v @ hu), rel=1e-10)
    close(operator @ (2 * u - 3 * v), 2 * hu - 3 * hv, 1e-12)


def test_weight_decay_is_part_of_hessian_and_gauss_newton_but_not_of_fisher_matrices():
    model, x, y = classifier()
    for kind in KINDS:
        plain = hessian(lx.Objective(model, [(x, y)], "cross_entropy"), kind=kind)
        decayed = hessian(
            lx.Objective(model, [(x, y)], "cross_entropy", weight_decay=0.3), kind=kind
        )
        v = probe(plain)
        more = 0.3 * v if kind in ("hessian", "ggn") else 0 * v
        close(decayed @ v, (plain @ v) + more, 1e-13)
        theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        close(decayed.gradient, plain.gradient + 0.3 * theta, 1e-13)
        assert decayed.loss == pytest.approx(plain.loss + 0.15 * float(theta @ theta), rel=1e-12)
    assert decayed.provenance["weight_decay"] == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_the_objective(kind):
    model, x, y = classifier()
    objective = lx.Objective(model, split(x, y, [8, 2]), "cross_entropy", weight_decay=0.1)
    close(hessian(objective, kind=kind).gradient, objective.gradient(), 1e-12)


def test_one_sample_alone():
    model, x, y = classifier(1)
    close(
        hessian(model, [(x, y)], "cross_entropy").dense(),
        dense_hessian(model, [(x, y)], cross_entropy),
    )


def test_eigenvalues_density_trace_and_diagonal_are_those_of_the_matrix():
    model, x, y = classifier()
    operator = hessian(model, split(x, y, [8, 2]), "cross_entropy")
    matrix = dense_hessian(model, [(x, y)], cross_entropy).numpy()
    values = np.linalg.eigvalsh(matrix)
    pairs = operator.eigenvalues(k=3, which="LA")
    assert pairs.values == pytest.approx(values[::-1][:3], rel=1e-8)
    assert operator.trace(products=operator.size).value == pytest.approx(
        np.trace(matrix), rel=1e-10
    )
    exact = operator.diagonal(products=operator.size).values
    assert exact == pytest.approx(np.diag(matrix), rel=1e-9, abs=1e-12)
    density = operator.spectral_density(probes=2, steps=20)
    assert density.mass == pytest.approx(1.0)
    from scipy.sparse.linalg import eigsh

    assert eigsh(operator.to_scipy(), k=2, which="LA")[0][::-1] == pytest.approx(
        values[::-1][:2], rel=1e-10
    )
    assert pairs.directions(operator.layout).layout == operator.layout


def test_derivatives_that_are_not_finite_by_a_parameter_that_is_held():
    """The copies of a linearisation know nothing of it; theirs would be zero."""
    for held in (True, False):
        model = nn.Linear(3, 1, bias=False).double()
        model.weight.data.zero_()
        own = model.weight

        def loss(m, batch, own=own, held=held):
            return (own if held else m.weight).abs().sqrt().sum()

        operator = hessian(lx.Objective(model, None, loss))
        assert not torch.isfinite(operator.gradient).any()
        assert not torch.isfinite(operator @ torch.ones(3)).any()
        assert ("own tensors" in operator.provenance["method"]) == held
        assert np.isnan(operator.provenance["asymmetry"])
        assert not operator.plan.known


@pytest.mark.parametrize("kind", ["ggn", "empirical_fisher"])
def test_references_agree_on_one_sample_of_a_linear_model(kind):
    """The references of these tests, by hand: x x^T (x) (diag(p) - p p^T), or residuals."""
    model = nn.Linear(2, 2, bias=False).double()
    x, y = torch.tensor([[1.0, 2.0]]).double(), torch.tensor([1])
    p = model(x).softmax(1)[0].detach()
    r = p - torch.tensor([0.0, 1.0])
    middle = torch.diag(p) - torch.outer(p, p) if kind == "ggn" else torch.outer(r, r)
    reference = dense_ggn if kind == "ggn" else dense_empirical_fisher
    expected = torch.kron(middle, x.T @ x)
    assert torch.allclose(reference(model, x, "cross_entropy", y), expected, rtol=1e-12)


# --- Which parameters, where ---------------------------------------------------------------------


def test_a_block_of_the_matrix_by_choosing_parameters():
    model, x, y = classifier()
    whole = hessian(model, split(x, y, [8, 2]), "cross_entropy").dense()
    for params, rows in [("0.*", slice(0, 25)), (["2.weight", "2.bias"], slice(25, 43))]:
        block = hessian(model, split(x, y, [8, 2]), "cross_entropy", params=params)
        close(block.dense(), whole[rows, rows], 1e-12)
    objective = lx.Objective(model, [(x, y)], "cross_entropy", params="2.*")
    assert hessian(objective).size == 18


@pytest.mark.parametrize("kind", KINDS)
def test_restriction_shares_the_linearisation(kind):
    model, x, y = classifier()
    objective = lx.Objective(model, [(x, y)], "cross_entropy", weight_decay=0.2)
    whole = hessian(objective, kind=kind)
    with torch.no_grad():
        model[0].weight.add_(1)  # nothing is computed anew
    block = whole.restrict(lambda name, p: name.endswith("bias"))
    assert [name for name, _ in block.layout] == ["0.bias", "2.bias"]
    rows = [*range(20, 25), *range(40, 43)]
    close(block.dense(), whole.dense()[rows][:, rows], 1e-13)
    assert torch.equal(block.gradient, whole.gradient[rows])
    last = block.restrict("2.bias")
    close(last.dense(), whole.dense()[40:, 40:], 1e-13)
    with pytest.raises(ParameterMismatchError, match=r"among the 2 parameters .* got 0\.weight"):
        block.restrict("0.*")


def test_the_operator_stands_at_the_centre_that_was_asked_for():
    model, x, y = classifier()
    other = models.mlp(4, 5, 3, act=nn.Tanh, seed=9).double()
    expected = dense_hessian(other, [(x, y)], cross_entropy)
    flat = torch.cat([p.detach().reshape(-1) for p in other.parameters()])
    for center in (other, other.state_dict(), flat):
        close(hessian(model, [(x, y)], "cross_entropy", center=center).dense(), expected)


# --- Drawn labels and drawn losses ---------------------------------------------------------------


def test_drawn_labels_depend_on_the_seed_alone():
    model, x, y = classifier()

    def fisher(**options):
        return hessian(model, [(x, y)], "cross_entropy", kind="fisher", **options)

    v = probe(fisher())
    torch.manual_seed(99)
    assert torch.equal(fisher(seed=1) @ v, fisher(seed=1) @ v)
    assert not torch.allclose(fisher(seed=1) @ v, fisher(seed=2) @ v)
    assert fisher(seed=4, samples=3).provenance["samples"] == 3
    assert fisher(seed=4).provenance["seed"] == 4


def test_labels_are_drawn_with_the_probabilities_of_the_model():
    """Of 3 samples with fixed scores, 4,000 draws each: frequencies within 4 standard errors."""
    scores = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-30.0, 30.0, 0.0]]).double()
    model = nn.Linear(3, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(scores.T)
    data = [(torch.eye(3).double(), torch.zeros(3).long())]
    ggn = hessian(model, data, "cross_entropy", kind="ggn")
    fisher = hessian(model, data, "cross_entropy", kind="fisher", samples=4000)
    p = scores.softmax(1)
    # block of sample i: sum_c f_c (p - e_c) (p - e_c)^T / 3 with frequencies f
    found = 3 * fisher.dense().view(3, 3, 3, 3)  # class, sample, class, sample
    for i in range(3):
        diagonal = found[:, i, :, i].diagonal()
        frequencies = (diagonal - p[i] ** 2) / (1 - 2 * p[i])
        error = (p[i] * (1 - p[i]) / 4000).sqrt()
        assert ((frequencies - p[i]).abs() < 4 * error + 1e-12).all()
    assert float((fisher.dense() - ggn.dense()).abs().max()) < 0.02


def test_a_loss_that_draws_numbers_sees_the_same_at_every_product():
    model, x, y = classifier()

    def noisy(m, batch):
        return F.cross_entropy(m(batch[0] + torch.randn_like(batch[0])), batch[1])

    objective = lx.Objective(model, split(x, y, [8, 2]), noisy, check=False)
    kept = hessian(objective)
    assert "kept for 2 of 2" in kept.provenance["method"]
    some = int(9 * kept._linearization.plan.bytes_per_sample)  # enough for the first batch
    v = probe(kept)
    first = kept @ v
    for operator in (hessian(objective, memory=0), hessian(objective, memory=some), kept):
        for _ in range(2):
            torch.rand(3)
            assert torch.equal(operator @ v, first)
    with pytest.raises(NondeterministicLossError, match="the loss at the centre must be the same"):
        hessian(model, [(x, y)], noisy)
