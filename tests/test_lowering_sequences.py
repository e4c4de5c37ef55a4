"""Attention, recurrent nets and lookups as grid programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lowered
import models
import pytest
import torch
from lowering_cases import Function, randn
from lowering_layer_cases import SAMPLES, Scaled, check, check_each, labels, loss_is_that_of_torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscapex.engine.lowering.lower import lower
from landscapex.engine.program import Grid
from landscapex.engine.steps import MatMul, Softmax

# --- Attention ------------------------------------------------------------------------------------

MASK = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4, [True, True, False, True]])

ADDED, QUERY = randn(2, 4, 4), randn(1, 2, 3, 3)

ATTENTION = {
    "plain": lambda q: F.scaled_dot_product_attention(q, q * 2, q + 1),
    "causal": lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True),
    "causal, oblong": lambda q: F.scaled_dot_product_attention(q[:, :, 1:], q, q, is_causal=True),
    "scale": lambda q: F.scaled_dot_product_attention(q, q, q, scale=0.3),
    "boolean mask": lambda q: F.scaled_dot_product_attention(q, q, q, attn_mask=MASK),
    "additive mask": lambda q: F.scaled_dot_product_attention(q, q, q, attn_mask=ADDED),
    "fewer keys": lambda q: F.scaled_dot_product_attention(q, q[:, :1], q[:, :1], enable_gqa=True),
    "learnt query": lambda q: F.scaled_dot_product_attention(
        QUERY.expand(q.shape[0], -1, -1, -1), q, q
    ),
    "by hand": lambda q: (q @ q.transpose(-1, -2)).softmax(-1) @ q,
    "by hand, flat": lambda q: torch.bmm(
        q.flatten(0, 1), q.flatten(0, 1).transpose(1, 2)
    ).unflatten(0, (-1, 2)),
    "broadcast": lambda q: q @ q[:, :1].transpose(-1, -2),
    "added": lambda q: torch.baddbmm(q[:, 0, :, :1], q[:, 0], q[:, 1].mT, beta=0.5, alpha=2.0),
}


def test_attention() -> None:
    check_each(ATTENTION, 2, 4, 3, tolerance=1e-9)


def test_attention_masks_come_with_the_batch() -> None:
    class Masked(nn.Module):
        def __init__(self, *, additive: bool) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.additive = additive

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            blocked = torch.arange(x.shape[1]) >= lengths[:, None]
            if self.additive:
                blocked = blocked.float() * -1e4
            return self.attention(x, x, x, key_padding_mask=blocked, need_weights=False)[0]

    for additive in (False, True):
        batch = {"x": randn(SAMPLES, 4, 6), "lengths": torch.tensor([1, 2, 3, 4, 4, 2])}
        model = Masked(additive=additive)
        loss_is_that_of_torch(model, batch, lambda m, b: (m(b["x"], b["lengths"]) ** 2).mean())


def test_attention_is_two_products_and_a_softmax() -> None:
    steps = check(ATTENTION["plain"], 2, 4, 3).program.steps
    kinds = [type(s) for s in steps if isinstance(s, MatMul | Softmax)]
    assert kinds == [MatMul, Softmax, MatMul]


# --- Recurrent nets -------------------------------------------------------------------------------

RECURRENT = {
    "lstm": lambda: nn.LSTM(5, 4, batch_first=True),
    "lstm, time first": lambda: nn.LSTM(5, 4),
    "lstm, deep": lambda: nn.LSTM(5, 4, 2, batch_first=True),
    "lstm, both ways": lambda: nn.LSTM(5, 4, 2, bidirectional=True, batch_first=True),
    "lstm, no bias": lambda: nn.LSTM(5, 4, bias=False, batch_first=True),
    "lstm, projected": lambda: nn.LSTM(5, 4, 2, proj_size=3, bidirectional=True, batch_first=True),
    "lstm, projected, no bias": lambda: nn.LSTM(5, 4, proj_size=3, bias=False),
    "lstm, shared": lambda: nn.LSTM(16, 4, batch_first=True),
    "gru": lambda: nn.GRU(5, 4, batch_first=True),
    "gru, both ways, deep": lambda: nn.GRU(5, 4, 2, bidirectional=True),
    "gru, no bias": lambda: nn.GRU(5, 4, bias=False, batch_first=True),
    "gru, shared": lambda: nn.GRU(16, 4, batch_first=True),
    "tanh": lambda: nn.RNN(5, 4, 2, batch_first=True),
    "relu": lambda: nn.RNN(16, 4, nonlinearity="relu", bidirectional=True),
}


class Recurrent(nn.Module):
    """A recurrent net that also returns its last states."""

    def __init__(self, net: nn.Module, *, given: bool, live: bool = False) -> None:
        super().__init__()
        self.net, self.given, self.live = net, given, live
        width = net.proj_size or net.hidden_size
        directions = (1 + net.bidirectional) * net.num_layers
        sizes = [width, net.hidden_size] if isinstance(net, nn.LSTM) else [width]
        self.states = nn.ParameterList(randn(directions, 1, size, seed=9) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        first = 0 if self.net.batch_first else 1
        x = x if first == 0 else x.transpose(0, 1)
        states = [s.expand(-1, x.shape[first], -1).contiguous() for s in self.states]
        if self.live:
            states = [s * x.mean((1 - first, 2))[:, None] for s in states]
        state = tuple(states) if len(states) > 1 else states[0]
        output, last = self.net(x, state if self.given or self.live else None)
        output = output if first == 0 else output.transpose(0, 1)
        last = last if isinstance(last, tuple) else (last,)
        return torch.cat([output.flatten(1), *(s.transpose(0, 1).flatten(1) for s in last)], 1)


@pytest.mark.parametrize(
    ("name", "given"),
    [*((name, False) for name in RECURRENT), ("lstm, projected", True), ("tanh", True)],
)
def test_recurrent_nets(name: str, given: bool) -> None:
    net = RECURRENT[name]()
    model, x = Recurrent(net, given=given), randn(SAMPLES, 3, net.input_size)
    found = lowered.check(model, (x, randn(*model(x).shape, seed=4)), "mse_loss")
    affine = any(b.grid is Grid.AFFINE for b in found.program.buffers)
    assert affine == (net.input_size >= 16)


@pytest.mark.parametrize("name", ["lstm, both ways", "gru"])
def test_recurrent_nets_from_live_states_and_inputs(name: str) -> None:
    net = RECURRENT[name]()
    model = nn.Sequential(Scaled(lambda x: x, (3, 5)), Recurrent(net, given=True, live=True))
    x = randn(SAMPLES, 3, 5)
    lowered.check(model, (x, randn(*model(x).shape, seed=4)), "mse_loss")


def test_recurrent_weights_are_packed_once_however_many_steps_there_are() -> None:
    def count(steps: int) -> int:
        model = Recurrent(nn.LSTM(5, 4, batch_first=True), given=False)
        x = randn(SAMPLES, steps, 5)
        plan = lowered.plan_of(model, (x, randn(*model(x).shape)), "mse_loss")
        return len(lower(plan, simplify=False).program.weights)

    assert count(2) == count(9) == 3  # of the input, its bias, and of the state


def test_recurrent_sequences_that_are_rows_of_a_sample() -> None:
    net = nn.GRU(5, 4, batch_first=True)
    model = nn.Sequential(
        Function(lambda x: x.flatten(0, 1)), net, Function(lambda s: s[0].unflatten(0, (-1, 2)))
    )
    batch = randn(SAMPLES, 2, 3, 5), randn(SAMPLES, 2, 3, 4, seed=1)
    lowered.check(model, batch, "mse_loss")


class Cells(nn.Module):
    """Single cells, called one after the other."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return torch.cat(state, 1) if isinstance(state, tuple) else state


@pytest.mark.parametrize(
    "cell",
    [
        lambda: nn.LSTMCell(5, 4),
        lambda: nn.GRUCell(5, 4),
        lambda: nn.RNNCell(5, 4),
        lambda: nn.GRUCell(5, 4, bias=False),
        lambda: nn.RNNCell(5, 4, nonlinearity="relu"),
        lambda: nn.LSTMCell(5, 4, bias=False),
    ],
    ids=["lstm", "gru", "tanh", "gru without bias", "relu", "lstm without bias"],
)
def test_single_cells(cell: Callable[[], nn.Module]) -> None:
    model, x = Cells(models.seeded(cell)), randn(SAMPLES, 3, 5)
    lowered.check(model, (x, randn(*model(x).shape, seed=4)), "mse_loss")


# --- Lookups --------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [None, 0])
def test_embeddings(padding: int | None) -> None:
    model = nn.Sequential(nn.Embedding(9, 4, padding_idx=padding), nn.Flatten(), nn.Linear(12, 3))
    lowered.check(model, (labels(9, SAMPLES, 3), labels(3, SAMPLES)))


def test_an_embedding_that_is_also_the_output_layer() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 4)
            self.position = nn.Embedding(5, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embedding(tokens) + self.position(torch.arange(tokens.shape[1]))
            return F.linear(x.tanh(), self.embedding.weight).transpose(1, 2)

    lowered.check(Tied(), (labels(9, SAMPLES, 5), labels(9, SAMPLES, 5, seed=1)))
