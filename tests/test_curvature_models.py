"""Curvature of networks of every kind against whole matrices in float64."""

from __future__ import annotations

import copy
import warnings

import models
import pytest
import torch
from curvature_cases import classifier, cross_entropy
from curvature_networks import CLASSIFIERS, Reshaped, Unused, batches_of, compare, made
from curvature_reference import dense_empirical_fisher, dense_ggn, dense_hessian, flat_leaves
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import landscapex as lx
from landscapex.curvature.operators import hessian
from landscapex.errors import ArgumentError

# --- Every kind of network -----------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_hessian_equals_the_matrix_of_second_derivatives(name):
    model, x, y = made(name)
    batches = batches_of(x, y)
    expected = dense_hessian(copy.deepcopy(model).eval(), batches, cross_entropy)
    compare(hessian(model, batches, "cross_entropy"), expected)


@pytest.mark.parametrize("name", [n for n in CLASSIFIERS if n != "lstm both ways"])
def test_gauss_newton_equals_jacobians_around_the_hessian_of_the_loss(name):
    model, x, y = made(name)
    expected = dense_ggn(copy.deepcopy(model).eval(), x, "cross_entropy", y)
    operator = hessian(model, batches_of(x, y), "cross_entropy", kind="ggn")
    compare(operator, expected)
    v = torch.randn(operator.size, dtype=torch.float64)
    assert float(v @ (operator @ v)) >= 0


@pytest.mark.parametrize("name", [n for n in CLASSIFIERS if n != "lstm both ways"])
def test_empirical_fisher_equals_outer_products_of_gradients(name):
    model, x, y = made(name)
    expected = dense_empirical_fisher(copy.deepcopy(model).eval(), x, "cross_entropy", y)
    compare(hessian(model, batches_of(x, y), "cross_entropy", kind="empirical_fisher"), expected)


@pytest.mark.parametrize("name", ["relu", "conv", "lstm", "encoder"])
def test_fisher_tends_to_gauss_newton_with_the_number_of_drawn_labels(name):
    """The average over seeds lies where its own scatter says."""
    model, x, y = made(name)
    batches = batches_of(x, y)
    expected = dense_ggn(copy.deepcopy(model).eval(), x, "cross_entropy", y)
    v = torch.randn(len(expected), dtype=torch.float64)
    v = v / v.norm()
    quadratic = torch.tensor(
        [
            float(
                v
                @ (hessian(model, batches, "cross_entropy", kind="fisher", seed=s, samples=40) @ v)
            )
            for s in range(8)
        ]
    )
    error = quadratic.std() / len(quadratic) ** 0.5
    assert 0 < error < 0.2 * float(v @ expected @ v)
    assert abs(float(quadratic.mean()) - float(v @ expected @ v)) < 4 * error


@pytest.mark.parametrize("name", ["relu", "conv", "norms", "lstm", "gru", "sdpa", "encoder"])
@pytest.mark.parametrize("kind", ["hessian", "ggn", "empirical_fisher"])
def test_float32_agrees_with_float64(name, kind):
    """Also where float32 has fused kernels of its own: recurrent layers, attention."""
    model, x, y = made(name)
    operator = hessian(
        copy.deepcopy(model).float(), batches_of(x.float(), y), "cross_entropy", kind=kind
    )
    assert operator.dtype == torch.float32
    exact = hessian(model, batches_of(x, y), "cross_entropy", kind=kind)
    v = torch.randn(exact.size)
    expected = exact @ v.double()
    assert float(((operator @ v).double() - expected).norm()) <= 2e-5 * float(expected.norm())


@pytest.mark.parametrize("name", ["encoder", "sdpa"])
def test_trap_28_attention_has_second_derivatives(name):
    """Its fast paths have none, and every published tool fails on a stock encoder layer."""
    model, x, y = made(name, torch.float32)
    fast = torch.backends.mha.get_fastpath_enabled()
    flash = torch.backends.cuda.flash_sdp_enabled()
    operator = hessian(model, batches_of(x, y), "cross_entropy")
    assert bool(torch.isfinite(operator @ torch.ones(operator.size)).all())
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert torch.backends.cuda.flash_sdp_enabled() == flash


class ExplicitlyNormed(nn.Module):
    """Weight norm by its formula, with parameters in the order of torch's."""

    def __init__(self, normed: nn.Sequential) -> None:
        super().__init__()
        for name, p in normed.named_parameters():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(p.detach().clone()))

    def forward(self, x: Tensor) -> Tensor:
        bias, g, v, weight, out = self.parameters()
        return F.linear(F.silu(F.linear(x, g * v / v.norm(dim=1, keepdim=True), bias)), weight, out)


@pytest.mark.parametrize("form", ["parametrization", "hooks"])
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_weight_norm_is_differentiated_through_its_norm(form, kind):
    """Torch's own backward pass takes the norm for a constant when differentiated again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        norm = parametrizations.weight_norm if form == "parametrization" else nn.utils.weight_norm
        model = nn.Sequential(norm(nn.Linear(4, 5)), nn.SiLU(), nn.Linear(5, 3)).double()
    x, y = torch.randn(12, 4).double(), torch.randint(3, (12,))
    plain = ExplicitlyNormed(model)
    expected = (
        dense_hessian(plain, [(x, y)], cross_entropy)
        if kind == "hessian"
        else dense_ggn(plain, x, "cross_entropy", y)
    )
    compare(hessian(model, batches_of(x, y), "cross_entropy", kind=kind), expected)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.mix(self.embedding(ids).mean(1)).tanh())


def test_trap_22_tied_weights_count_once():
    model = models.seeded(Tied).double()
    ids, y = torch.randint(7, (12, 3)), torch.randint(7, (12,))
    batches = batches_of(ids, y)
    operator = hessian(model, batches, "cross_entropy")
    assert operator.size == 7 * 4 + 20
    assert "kept for 3 of 3" in operator.provenance["method"]  # by copies, tied like the model
    compare(operator, dense_hessian(model, batches, cross_entropy))
    compare(
        hessian(model, batches, "cross_entropy", kind="ggn"),
        dense_ggn(model, ids, "cross_entropy", y),
    )


def test_two_parameters_that_view_the_same_memory_are_one():
    model = models.mlp(3, 3, 3).double()
    model[2].weight = nn.Parameter(model[0].weight.data)
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.randint(3, (12,))
    tied = copy.deepcopy(model)
    tied[2].weight = tied[0].weight
    expected = dense_hessian(tied, [(x, y)], cross_entropy)
    compare(hessian(model, [(x, y)], "cross_entropy"), expected)


def test_trap_23_unused_parameters_are_zero_and_frozen_ones_left_out():
    model, x, y = made("unused and frozen")
    operator = hessian(model, batches_of(x, y), "cross_entropy")
    assert [name for name, _ in operator.layout] == [
        "first.weight", "first.bias", "never.weight", "never.bias",
    ]  # fmt: skip
    v = torch.randn(operator.size, dtype=torch.float64)
    product = operator @ v
    assert not product[25:].any()
    assert product[:25].all()


def test_reference_differentiates_what_requires_gradients():
    assert list(flat_leaves(Unused())) == [
        "first.weight", "first.bias", "never.weight", "never.bias",
    ]  # fmt: skip


# --- Batch norm ----------------------------------------------------------------------------------


def test_batch_norm_by_running_statistics_also_in_training_mode():
    """Dropout is off, and the statistics are those that the model has."""
    model, x, y = made("norms")
    before = copy.deepcopy(model.state_dict())
    operator = hessian(model, batches_of(x, y), "cross_entropy")
    compare(operator, dense_hessian(copy.deepcopy(model).eval(), [(x, y)], cross_entropy))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert operator.provenance["batch_norm"] == "running statistics, as constants"


QUIET = {"points": 3, "progress": False}
WITH_CURVATURE = {
    "hessian": hessian,
    "gauss_newton": lambda o: hessian(o, kind="ggn"),
    "directions": lambda o: lx.directions.hessian(o, 1),
    "line": lambda o: lx.line(o, directions="hessian", **QUIET),
    "map": lambda o: lx.curvature_map(o, **QUIET),
}


@pytest.mark.parametrize("ask", WITH_CURVATURE.values(), ids=WITH_CURVATURE)
def test_batch_norm_by_recomputed_statistics_is_refused(ask):
    """Its derivatives at constant statistics are not those of the loss that is drawn."""
    model, x, y = made("norms")
    objective = lx.Objective(model, batches_of(x, y), "cross_entropy", bn="recompute")
    before = copy.deepcopy(model.state_dict())
    message = "`bn` must be 'eval' or 'batch' for curvature, got 'recompute'"
    with pytest.raises(ArgumentError, match=message):
        ask(objective)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("bn", ["eval", "batch"])
def test_curvature_is_that_of_the_loss_whatever_the_statistics(bn):
    """Second differences of the loss that a surface draws; and first ones for the gradient."""
    model, x, y = made("norms")
    objective = lx.Objective(model, batches_of(x, y), "cross_entropy", bn=bn)
    operator = hessian(objective)
    v = operator.eigenvalues(1).vectors[0]
    here, step = objective.space.gather(), 1e-5
    up, down = (objective.loss(here + sign * step * v) for sign in (1, -1))
    assert float(operator.gradient @ v) == pytest.approx((up - down) / (2 * step), rel=1e-5)
    bend = (up - 2 * objective.loss() + down) / step**2
    assert float(v @ (operator @ v)) == pytest.approx(bend, rel=1e-4)


def test_recomputed_statistics_are_no_matter_without_batch_norm():
    model, x, y = classifier()
    found = hessian(lx.Objective(model, [(x, y)], "cross_entropy", bn="recompute"))
    assert found.provenance["batch_norm"] == "no batch norm"


def test_batch_norm_by_each_batch_is_differentiated():
    model, x, y = made("norms")
    batches = batches_of(x, y)
    objective = lx.Objective(model, batches, "cross_entropy", bn="batch")
    trained = copy.deepcopy(model).eval()
    trained[1].train()
    before = copy.deepcopy(model.state_dict())
    operator = hessian(objective)
    compare(operator, dense_hessian(trained, batches, cross_entropy))
    operator_anew = hessian(objective, memory=0)
    v = torch.randn(operator.size, dtype=torch.float64)
    assert torch.equal(operator @ v, operator_anew @ v)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


# --- Numbers of other kinds ----------------------------------------------------------------------


def test_trap_26_complex_parameters_count_by_real_and_imaginary_parts():
    class Wave(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Parameter(torch.randn(3, 2, dtype=torch.complex128))
            self.scale = nn.Parameter(torch.ones(2).double())

        def forward(self, x):
            return (x.to(torch.complex128) @ self.c).abs().square() * self.scale

    class Real(nn.Module):
        def __init__(self, wave):
            super().__init__()
            self.c = nn.Parameter(torch.view_as_real(wave.c.detach()).clone())
            self.scale = nn.Parameter(wave.scale.detach().clone())

        def forward(self, x):
            real, imaginary = x @ self.c[..., 0], x @ self.c[..., 1]
            return (real**2 + imaginary**2) * self.scale

    model = models.seeded(Wave)
    x, y = torch.randn(12, 3).double(), torch.randn(12, 2).double()

    def term(call, batch):
        return F.mse_loss(call(batch[0]), batch[1]), batch[1].numel()

    batches = batches_of(x, y)
    compare(hessian(model, batches, "mse_loss"), dense_hessian(Real(model), batches, term))
    compare(
        hessian(model, batches, "mse_loss", kind="ggn"), dense_ggn(Real(model), x, "mse_loss", y)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_parameters_of_16_bits_are_widened(dtype, kind):
    model, x, y = made("norms", dtype)
    before = copy.deepcopy(model.state_dict())
    operator = hessian(model, batches_of(x, y), "cross_entropy", kind=kind)
    assert operator.dtype == torch.float32
    wide = copy.deepcopy(model).double()
    exact = hessian(wide, batches_of(x.double(), y), "cross_entropy", kind=kind)
    v = torch.randn(operator.size)
    expected = exact @ v.double()
    assert float(((operator @ v).double() - expected).norm()) <= 1e-4 * float(expected.norm())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_autocast_is_off():
    model, x, y = made("relu", torch.float32)
    plain = hessian(model, [(x, y)], "cross_entropy")
    v = torch.randn(plain.size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = hessian(model, [(x, y)], "cross_entropy", memory=0)
        products = inside @ v, plain @ v  # formed anew, and by a graph that is kept
    for product in products:
        assert torch.equal(product, plain @ v)


def test_parameters_of_different_precision():
    model = nn.Sequential(
        nn.Linear(4, 3), Reshaped(lambda x: x.double().tanh()), nn.Linear(3, 3).double()
    )
    wide = copy.deepcopy(model)
    wide[0].double()
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    found = hessian(model, [(x, y)], "cross_entropy").dense()
    assert found.dtype == torch.float64
    expected = dense_hessian(wide, [(x.double(), y)], cross_entropy)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
