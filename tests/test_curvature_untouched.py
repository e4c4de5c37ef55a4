"""An operator beside the user's model: training, memory, errors, threads and sessions."""

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
from curvature_cases import classifier, close, cross_entropy, probe, split
from curvature_reference import dense_hessian
from torch import nn
from torch.nn import functional as F

import landscapex as lx
from landscapex.curvature.operators import KINDS, hessian, linearize
from landscapex.errors import ModelChangedError

# --- Training goes on ----------------------------------------------------------------------------


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


@pytest.mark.parametrize("kind", KINDS)
def test_global_generators_are_neither_read_nor_moved(kind, generators_untouched):
    model, x, y = classifier()
    hessian(model, [(x, y)], "cross_entropy", kind=kind, memory=0) @ torch.ones(43).double()


# --- Threads and sessions ------------------------------------------------------------------------


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
    right = [0, 0]

    def work(k):
        for _ in range(8):
            right[k] += torch.equal(operators[k].apply(v), expected[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [8, 8]


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


def test_products_are_in_evaluation_mode_where_a_session_has_moved_the_model():
    _, x, y = classifier()
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    objective = lx.Objective(model.train(), [(x, y)], "cross_entropy")
    start = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    away = torch.ones_like(start)[None]
    expected = hessian(objective, center=start + away[0])
    with objective.session() as session:
        session.snapshot.move(session.center, away, [1.0])
        found = linearize(session)
    v = probe(found)
    close(found @ v, expected @ v, 1e-13)
