"""Curvature operators: weights, blocks, memory, and the model that stays as it is."""

from __future__ import annotations

import copy
import gc
import random
import re
import threading
import time
import weakref
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from curvature_reference import dense_empirical_fisher, dense_ggn, dense_hessian
from torch import nn
from torch.nn import functional as F

import landscapex as lx
from landscapex.curvature.lanczos import eigenpairs
from landscapex.curvature.linear import SymmetricOperator
from landscapex.curvature.operators import KINDS, hessian, linearize
from landscapex.curvature.trace import trace
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    EmptyDataError,
    LandscapexWarning,
    LossError,
    ModelChangedError,
    NondeterministicLossError,
    ParameterMismatchError,
)


def classifier(samples: int = 10):
    """A small network, data in float64."""
    model = models.mlp(4, 5, 3, act=nn.Tanh).double()
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 4, generator=rng, dtype=torch.float64)
    return model, x, torch.randint(3, (samples,), generator=rng)


def split(x, y, sizes):
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def cross_entropy(call, batch):
    return F.cross_entropy(call(batch[0]), batch[1]), len(batch[1])


def close(a, b, rtol=1e-10):
    assert float((a.double() - b.double()).norm()) <= rtol * float(b.double().norm())


def probe(operator):
    rng = torch.Generator().manual_seed(7)
    return torch.randn(operator.size, generator=rng, dtype=operator.dtype)


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


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher"])
def test_training_goes_on_without_the_operator(kind, memory):
    """Parameters, buffers and frozen layers of the model move, in place and by replacement."""
    model = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3).requires_grad_(False)
    ).double()
    _, x, y = classifier()
    operator = hessian(model, split(x, y, [8, 2]), "cross_entropy", kind=kind, memory=memory)
    v = probe(operator)
    before = operator @ v
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        model[3].weight.normal_()
    model[0].weight = nn.Parameter(torch.randn(5, 4).double())
    trained = copy.deepcopy(model.state_dict())
    assert torch.equal(operator @ v, before)
    assert all(torch.equal(t, trained[n]) for n, t in model.state_dict().items())
    assert model.training


def test_another_structure_is_refused_where_the_model_is_needed():
    model, x, y = classifier()
    operator = hessian(model, [(x, y)], "cross_entropy", memory=0)
    model[1] = nn.ReLU()
    model[2] = nn.Linear(5, 3).double()
    with pytest.raises(ModelChangedError, match="the model must have the modules and parameters"):
        _ = operator @ probe(operator)


# --- Memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_batches_that_do_not_fit_are_linearised_anew_with_the_same_bits(kind):
    model, x, y = classifier(30)
    batches = split(x, y, [8, 8, 8, 6])
    kept = hessian(model, batches, "cross_entropy", kind=kind, seed=2)
    assert "kept for 4 of 4" in kept.provenance["method"]
    v = probe(kept)
    for memory in (0, 4_000):
        anew = hessian(model, batches, "cross_entropy", kind=kind, seed=2, memory=memory)
        count = int(re.search(r"kept for (\d) of 4", anew.provenance["method"])[1])
        assert count == 0 if memory == 0 else 0 < count < 4
        assert torch.equal(anew @ v, kept @ v)
        assert torch.equal(anew.gradient, kept.gradient)


def test_data_that_are_read_again_at_every_product():
    model, x, y = classifier()
    batches = split(x, y, [8, 2])
    objective = lx.Objective(model, batches, "cross_entropy", cache="none")
    v = probe(kept := hessian(objective))
    close(hessian(objective, memory=0) @ v, kept @ v, 1e-15)


def resident() -> int:
    """Bytes of this process in main memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_trap_29_memory_does_not_grow_with_products(kind, memory):
    """A graph that is not freed takes 1 MB here; 50 of them would show."""
    model = models.mlp(64, 128, 10)
    x, y = torch.randn(500, 64), torch.randint(10, (500,))
    operator = hessian(model, [(x, y)], "cross_entropy", kind=kind, memory=memory)
    v = probe(operator)
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            operator.apply(v)
        start = resident()
        for _ in range(50):
            operator.apply(v)
        grown = resident() - start
    finally:
        gc.enable()
    assert grown < 10e6


@pytest.mark.parametrize("memory", [None, 0])
def test_trap_29_the_graph_goes_with_the_operator(memory):
    """At once, not when cycles are collected; nothing of it stays in the model."""
    model, x, y = classifier()
    gc.collect()
    gc.disable()
    try:
        operator = hessian(model, [(x, y)], "cross_entropy", memory=memory)
        operator.apply(probe(operator))
        block = operator.restrict("0.*")
        leaf = weakref.ref(operator._linearization._standing.leaves[0])
        del operator
        assert leaf() is not None  # the block needs it
        del block
        assert leaf() is None
    finally:
        gc.enable()
    assert all(p.grad is None for p in model.parameters())


# --- The user's model ----------------------------------------------------------------------------


class Everything(nn.Module):
    """Batch norm, dropout, a recurrent layer, attention, a counter, a hook."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.seen = []
        self.head.register_forward_hook(lambda m, args, out: self.seen.append(1))

    def forward(self, x):
        self.calls += 1
        x = self.lstm(self.drop(self.norm(x))[:, None].repeat(1, 2, 1))[0]
        return self.head(self.attention(x, x, x)[0].mean(1))


def state_of(model):
    return {
        "parameters": [(n, p, p.detach().clone(), p._version) for n, p in model.named_parameters()],
        "grads": [p.grad for p in model.parameters()],
        "requires": [p.requires_grad for p in model.parameters()],
        "buffers": [(n, b, b.clone()) for n, b in model.named_buffers()],
        "modes": [m.training for m in model.modules()],
        "flat": [id(w) for w in model.lstm._flat_weights],
        "rng": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()),  # noqa: NPY002
    }


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_trap_21_the_model_and_the_generators_stay_bit_for_bit(kind, memory):
    model = models.seeded(Everything).train()
    model.drop.eval()
    model.head.bias.requires_grad_(False)
    x, y = torch.randn(10, 4), torch.randint(3, (10,))
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = state_of(model)
    operator = hessian(model, split(x, y, [8, 2]), "cross_entropy", kind=kind, memory=memory)
    assert bool(torch.isfinite(operator @ probe(operator)).all())
    after = state_of(model)
    for (n, p, value, _), (_, q, now, _) in zip(
        before["parameters"], after["parameters"], strict=True
    ):
        assert p is q, n
        assert torch.equal(value, now), n
    for (n, b, value), (_, c, now) in zip(before["buffers"], after["buffers"], strict=True):
        assert b is c, n
        assert torch.equal(value, now), n
    assert all(a is b for a, b in zip(before["grads"], after["grads"], strict=True))
    assert bool((model.head.weight.grad == 1).all())
    for part in ("requires", "modes", "flat"):
        assert before[part] == after[part]
    assert torch.equal(before["rng"][0], after["rng"][0])
    assert before["rng"][1:] == after["rng"][1:]
    assert torch.equal(model(x), model(x))  # and its recurrent layer works


@pytest.mark.parametrize("memory", [None, 0])
def test_trap_21_the_model_is_put_back_after_an_error(memory):
    model, x, y = classifier()
    own = list(model.parameters())
    state = copy.deepcopy(model.state_dict())
    calls = []

    def loss(m, batch):
        calls.append(1)
        if len(calls) > (3 if memory is None else 4):
            raise ValueError("enough")
        return F.cross_entropy(m(batch[0]), batch[1])

    with pytest.raises(ValueError, match="enough"):
        _ = hessian(model, split(x, y, [8, 2]), loss, memory=memory) @ torch.ones(43).double()
    assert all(p is q for p, q in zip(own, model.parameters(), strict=True))
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


def test_trap_17_dropout_is_off_and_running_statistics_stay():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    model = model.double().train()
    _, x, y = classifier()
    before = copy.deepcopy(model.state_dict())
    operator = hessian(model, [(x, y)], "cross_entropy")
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert model.training
    close(operator.dense(), dense_hessian(model.eval(), [(x, y)], cross_entropy))


def test_trap_24_products_in_two_threads():
    """They share one model; without a lock each would use what the other has put into it."""
    model, x, y = classifier(40)
    batches = split(x, y, [20, 20])

    def loss(m, batch):
        time.sleep(0.001)  # the other thread's turn
        return F.cross_entropy(m(batch[0]), batch[1])

    operators = [
        hessian(model, batches, loss, memory=0, center=center)
        for center in (None, models.mlp(4, 5, 3, act=nn.Tanh, seed=4).double())
    ]
    v = probe(operators[0])
    expected = [operator @ v for operator in operators]
    wrong = []

    def work(k):
        for _ in range(8):
            if not torch.equal(operators[k].apply(v), expected[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_trap_24_a_product_in_another_thread_waits_for_the_session():
    """The session is open, but not in that thread."""
    model, x, y = classifier(40)
    objective = lx.Objective(model, split(x, y, [20, 20]), "cross_entropy")
    order = []
    with objective.session() as session:
        operator = linearize(session, memory=0)
        v = probe(operator)
        expected = operator.apply(v)

        def work():
            order.append("product" if torch.equal(operator.apply(v), expected) else "wrong")

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.2)
        order.append("session")
    thread.join()
    assert order == ["session", "product"]


def test_products_inside_and_after_a_session():
    """The session holds the model's lock; the operator stands where the model stood."""
    model, x, y = classifier()
    objective = lx.Objective(model, split(x, y, [8, 2]), "cross_entropy")
    directions = lx.directions.random(objective, 1)
    point = directions.vectors[0] * 0.5 + torch.cat([p.reshape(-1) for p in model.parameters()])
    expected = hessian(objective, center=point.detach())
    v = probe(expected)
    with objective.session() as session:
        here = session.values()
        session.snapshot.move(session.center, directions.vectors, [0.5])
        made = [linearize(session, memory=memory) for memory in (None, 0)]
        session.snapshot.move(session.center, directions.vectors, [0.0])
        assert all(torch.equal(operator @ v, expected @ v) for operator in made)
        assert session.values() == here
    assert all(torch.equal(operator @ v, expected @ v) for operator in made)


def test_statistics_are_recomputed_where_a_session_has_moved_the_model():
    _, x, y = classifier()
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    objective = lx.Objective(model, [(x, y)], "cross_entropy", bn="recompute")
    start = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    away = torch.ones_like(start)[None]
    expected = hessian(objective, center=start + away[0])
    with objective.session() as session:
        session.snapshot.move(session.center, away, [1.0])
        found = linearize(session)
    v = probe(found)
    close(found @ v, expected @ v, 1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_global_generators_are_neither_read_nor_moved(kind, generators_untouched):
    model, x, y = classifier()
    hessian(model, [(x, y)], "cross_entropy", kind=kind, memory=0) @ torch.ones(43).double()


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
        block = found[:, i, :, i]
        off = -(p[i, 0] * p[i, 1])
        error = (abs(float(off)) / 4000) ** 0.5
        assert abs(float(block[0, 1] - off)) < 4 * error + 1e-12
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


# --- What is said --------------------------------------------------------------------------------


def test_a_model_that_keeps_a_state_starts_anew_for_every_batch():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.register_buffer("state", torch.ones(()))

        def forward(self, x):
            self.state.mul_(1.5)
            return self.layer(x) * self.state

    _, x, y = classifier()
    model = Counting().double()
    operator = hessian(model, split(x, y, [8, 2]), "cross_entropy")
    anew = hessian(model, split(x, y, [8, 2]), "cross_entropy", memory=0)
    fresh = nn.Sequential(copy.deepcopy(model.layer), Scale(1.5))
    expected = dense_hessian(fresh, [(x, y)], cross_entropy)
    for made in (operator, anew, operator):
        close(made.dense(), expected)
    assert model.state == 1


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_provenance_and_repr():
    model, x, y = classifier()
    operator = hessian(model, split(x, y, [8, 2]), "cross_entropy", params="2.*")
    assert repr(operator).startswith("Curvature(hessian, P=18 in 2 tensors, float64, cpu, loss ")
    found = operator.provenance
    assert found["kind"] == "hessian"
    assert found["parameters"] == ["2.weight", "2.bias"]
    assert found["batch_norm"] == "no batch norm"
    assert found["seed"] is None
    assert found["asymmetry"] < 1e-14
    assert found["data"]["data"]["samples"] == 10
    assert len(found["fingerprint"]["parameters"]) == 64
    assert isinstance(operator, SymmetricOperator)


NAMES = {
    "hessian": "Hessian",
    "ggn": "Gauss-Newton matrix",
    "fisher": "Fisher matrix",
    "empirical_fisher": "empirical Fisher matrix",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_result_says_of_what_matrix_it_is(kind):
    model, x, y = classifier()
    operator = hessian(model, split(x, y, [8, 2]), "cross_entropy", kind=kind)
    name = NAMES[kind]
    assert operator.name == operator.provenance["matrix"] == name
    graph = "the gradient" if kind == "hessian" else "the output and its Jacobian"
    words = f"{name}: the graph of {graph}, kept for 2 of 2 batches"
    assert operator.provenance["method"].startswith(words)
    pairs, density = operator.eigenvalues(2), operator.spectral_density(probes=1, steps=5)
    results = {
        "Eigenpairs": pairs,
        "SpectralDensity": density,
        "TraceEstimate": operator.trace(products=12),
        "DiagonalEstimate": operator.diagonal(products=12),
        "Estimate": density.outliers(0.1),
    }
    for start, found in results.items():
        assert found.matrix == name
        assert repr(found).startswith(f"{start}({name}, ")
    assert operator.trace(products=99).effective_rank.matrix == name
    assert operator.diagonal(products=99).trace.matrix == name
    of = "" if kind == "hessian" else f" of the {name}"
    assert pairs.directions(operator).axes[1].label.startswith(f"eigenvector 2{of} (")
    block = operator.restrict("0.*")
    assert block.eigenvalues(1).matrix == block.name == name
    titles = [figure.axes[0].get_title("left") for figure in (pairs.plot(), density.plot())]
    assert titles[0].split() == f"2 eigenvalues of the {name} (LA)".split()
    assert titles[1].split() == f"Spectral density of 43 eigenvalues of the {name}".split()


def test_parts_of_a_matrix_say_which():
    model, x, y = classifier()
    found = hessian(model, [(x, y)], "cross_entropy", kind="ggn").class_decomposition()
    for part, operator in found.parts.items():
        assert operator.name == f"part {part!r} of the Gauss-Newton matrix"
    assert found.traces(products=12)["cross"].matrix == found.parts["cross"].name
    assert found.directions(1).axes[0].label.startswith("between classes 1 of the Gauss-Newton m")


def test_products_by_the_models_own_tensors_say_so():
    model, x, y = classifier()
    held = model[0].weight
    objective = lx.Objective(
        model, [(x, y)], lambda m, b: F.cross_entropy(m(b[0]), b[1]) + held.square().sum()
    )
    method = hessian(objective).provenance["method"]
    assert method.startswith("Hessian: the gradient of every batch anew at each product, by the mo")


def test_warnings_point_at_the_line_that_asked():
    model, x, y = classifier()
    operator = hessian(model, [(x, y)], "cross_entropy")
    asked = [
        lambda: operator.eigenvalues(3, max_products=8),
        lambda: eigenpairs(operator, 3, max_products=8),
        lambda: operator.trace(products=12, tol=1e-9),
        lambda: trace(operator, products=12, tol=1e-9),
    ]
    for ask in asked:
        with pytest.warns(LandscapexWarning, match="products") as caught:
            ask()
        assert [w.filename for w in caught] == [__file__]
        assert caught[0].lineno == ask.__code__.co_firstlineno


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


class Half(torch.autograd.Function):
    """Its backward pass computes where torch does not see it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, grad):
        return torch.from_numpy(2 * ctx.saved_tensors[0].numpy(force=True) * grad.numpy(force=True))


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_a_backward_pass_that_hides_from_torch_is_refused(kind):
    """Everything below it is a constant to torch: part of the matrix, and not symmetric."""

    class Squared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.b(Half.apply(self.a(x)))

    _, x, y = classifier()
    with pytest.raises(LossError, match=r"must be symmetric, got a relative difference .*Half"):
        hessian(Squared(), [(x.float(), y)], "cross_entropy", kind=kind)


def test_inference_mode_is_refused():
    model, x, y = classifier()
    with (
        torch.inference_mode(),
        pytest.raises(ArgumentError, match=r"outside torch.inference_mode"),
    ):
        hessian(model, [(x, y)], "cross_entropy")


def test_no_grad_around_it_does_not_matter():
    model, x, y = classifier()
    with torch.no_grad():
        operator = hessian(model, [(x, y)], "cross_entropy", memory=0)
        inside = operator @ probe(operator)
    assert torch.equal(inside, hessian(model, [(x, y)], "cross_entropy") @ probe(operator))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"kind": "gauss"}, ArgumentError, "`kind` must be one of hessian, ggn, fisher, empirical"),
        ({"kind": "fisher", "samples": 0}, ArgumentError, "`samples` must be at least 1, got 0"),
        ({"memory": -1}, ArgumentError, "`memory` must be at least 0, got -1"),
        ({"memory": 0.5}, ArgumentTypeError, "`memory` must be a whole number, got 0.5"),
        ({"seed": 1.5}, ArgumentTypeError, "`seed` must be a whole number, got 1.5"),
        ({"params": "9.*"}, ParameterMismatchError, r"`params` must name parameters .* '9\.\*'"),
        (
            {"kind": "ggn", "loss": lambda m, b: m(b[0]).sum()},
            LossError,
            "kind='ggn' must see the output of the model and the loss apart: `loss` must be a name",
        ),
        (
            {"kind": "ggn", "loss": "kl_div"},
            LossError,
            "the loss must be convex in the output of the model for kind='ggn': one of .* kl_div",
        ),
        (
            {"kind": "fisher", "loss": "smooth_l1_loss"},
            LossError,
            "the negative logarithm of a probability of labels for kind='fisher'",
        ),
        (
            {"kind": "ggn", "loss": "nll_loss"},
            LossError,
            "`nll_loss` must get logarithms of probabilities, which sum to 1, got a sum of",
        ),
    ],
)
def test_errors_say_what_must_hold(options, error, match):
    model, x, y = classifier()
    options = {"loss": "cross_entropy", **options}
    loss = options.pop("loss")
    with pytest.raises(error, match=match):
        hessian(model, [(x, y)], loss, **options)


def test_parameters_outside_the_objective_are_refused():
    model, x, y = classifier()
    objective = lx.Objective(model, [(x, y)], "cross_entropy", params="2.*")
    with pytest.raises(ParameterMismatchError, match=r"`params` must choose among the 2 .*0\.bias"):
        hessian(objective, params="*.bias")


def test_targets_of_another_shape_are_refused():
    model = nn.Linear(4, 1)
    with pytest.raises(
        LossError, match="the target must have the shape of the output for mse_loss"
    ):
        hessian(model, [(torch.randn(5, 4), torch.randn(5))], "mse_loss", kind="empirical_fisher")


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
