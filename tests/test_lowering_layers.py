"""Pools, reductions, norms, attention, recurrent nets, lookups and losses as grid programs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lowered
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscapex.engine.capture import capture
from landscapex.engine.lowering.lanes import Lowered
from landscapex.engine.lowering.lower import lower
from landscapex.engine.plan import NotCapturedError
from landscapex.engine.program import Grid
from landscapex.engine.steps import CrossEntropy, MatMul, Reduce, Softmax
from landscapex.losses.binding import resolve
from landscapex.losses.metrics import resolve_metrics

SAMPLES = 6


class Scaled(nn.Module):
    """A function behind a factor that moves, so that what it gets is live (and affine)."""

    def __init__(self, function: Callable[..., Any], shape: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.factor = nn.Parameter(torch.rand(shape, generator=generator) + 0.5)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * self.factor)


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(classes: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def check(function: Callable[..., Any], *shape: int, **options: Any) -> Lowered:
    """Compare a function of live values ``[samples, *shape]`` with torch."""
    model, x = Scaled(function, shape), randn(SAMPLES, *shape)
    y = randn(*model(x).shape, seed=3)
    return lowered.check(model, (x, y), "mse_loss", **options)


def check_each(functions: dict[str, Callable[..., Any]], *shape: int, tolerance: float) -> None:
    """Compare functions of live values with torch, in one graph: exports are slow."""

    def together(x: Tensor) -> Tensor:
        return torch.cat([function(x).flatten(1) for function in functions.values()], 1)

    model, x = Scaled(together, shape), randn(SAMPLES, *shape)
    plan = lowered.plan_of(model, (x, torch.zeros_like(model(x))), "mse_loss")
    found, deltas = lower(plan, simplify=False), lowered.moved(plan, 0)
    batch = x, torch.zeros_like(model(x))
    env = lowered.environment(plan, batch, deltas)
    torch_output = lowered.evaluate_part(plan, plan.outputs[1:2], env)[plan.outputs[1]]
    sizes = [function(x).flatten(1).shape[1] for function in functions.values()]
    for shared in (False, True):
        (output,) = lowered.result_of(found, plan, batch, deltas, shared=shared).outputs
        starts = np.cumsum(sizes)[:-1]
        parts = np.split(output, starts, 1), np.split(torch_output.numpy(), starts, 1)
        for name, got, want in zip(functions, *parts, strict=True):
            np.testing.assert_allclose(got, want, tolerance, tolerance, err_msg=name)


def refused(function: Callable[..., Any], *shape: int, match: str) -> None:
    model, x = Scaled(function, shape), randn(SAMPLES, *shape)
    with pytest.raises(NotCapturedError, match=match):
        lower(lowered.plan_of(model, (x, randn(*model(x).shape)), "mse_loss"), simplify=False)


# --- Pools ----------------------------------------------------------------------------------------

POOLS = {
    "max": lambda x: F.max_pool2d(x, 2),
    "max, overlapping, padded": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max, oblong": lambda x: F.max_pool2d(x, (3, 2), (2, 1), (1, 0)),
    "max, dilated": lambda x: F.max_pool2d(x, 2, 1, 0, dilation=(2, 3)),
    "max, ceil": lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
    "max, 1-d": lambda x: F.max_pool1d(x.flatten(2), 4, 3, 1),
    "max, with indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "max, without channels": lambda x: F.max_pool2d(x[:, 0], 2),
    "average": lambda x: F.avg_pool2d(x, 2),
    "average, padded": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average, padding left out": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average, ceil": lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True),
    "average, ceil, padded": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average, divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "average, 1-d": lambda x: F.avg_pool1d(x.flatten(2), 4, 3, 1),
    "average, 1-d, padding left out": lambda x: F.avg_pool1d(
        x.flatten(2), 4, 3, 2, True, count_include_pad=False
    ),
    "average, 3-d": lambda x: F.avg_pool3d(x[:, None], 2),
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive average, to one": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive average, 1-d": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 4),
    "adaptive max": lambda x: F.adaptive_max_pool2d(x, (2, 4)),
    "adaptive max, 1-d": lambda x: F.adaptive_max_pool1d(x.flatten(2), 4),
}


def test_pools() -> None:
    check_each(POOLS, 2, 7, 5, tolerance=1e-7)  # coefficients are float32


def test_sums_of_an_affine_value_are_affine_and_maxima_are_not() -> None:
    def grids(function: Callable[[Tensor], Tensor]) -> list[Grid]:
        model = nn.Sequential(nn.Linear(128, 12), Function(lambda x: function(x[:, None])))
        batch = randn(SAMPLES, 128), randn(*model(randn(SAMPLES, 128)).shape)
        program = lowered.check(model, batch, "mse_loss", tolerance=1e-7).program
        return [program.buffers[s.out].grid for s in program.steps if isinstance(s, Reduce)]

    assert grids(lambda x: F.avg_pool1d(x, 2)) == [Grid.AFFINE]
    assert grids(lambda x: x.mean(-1)) == [Grid.AFFINE]
    assert grids(lambda x: F.max_pool1d(x, 2)) == [Grid.FULL]
    assert grids(lambda x: x.amin(-1)) == [Grid.FULL]


# --- Interpolation --------------------------------------------------------------------------------

UPSAMPLING = {
    "bilinear, size": lambda x: F.interpolate(x, (9, 8), mode="bilinear"),
    "bilinear, corners": lambda x: F.interpolate(x, (9, 8), mode="bilinear", align_corners=True),
    "bilinear, factor": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "bilinear, odd factor": lambda x: F.interpolate(x, scale_factor=(1.7, 2.3), mode="bilinear"),
    "bilinear, down": lambda x: F.interpolate(x, (3, 2), mode="bilinear"),
    "bilinear, to one": lambda x: F.interpolate(x, (1, 1), mode="bilinear", align_corners=True),
    "bicubic": lambda x: F.interpolate(x, (9, 8), mode="bicubic"),
    "linear": lambda x: F.interpolate(x.flatten(2), 50, mode="linear"),
    "linear, corners": lambda x: F.interpolate(x.flatten(2), 50, mode="linear", align_corners=True),
    "trilinear": lambda x: F.interpolate(x[:, None], (3, 9, 7), mode="trilinear"),
}


def test_interpolation() -> None:
    check_each(UPSAMPLING, 2, 7, 5, tolerance=1e-6)


# --- Reductions -----------------------------------------------------------------------------------

REDUCTIONS = {
    "mean": lambda x: x.mean(1),
    "mean, two axes": lambda x: x.mean((1, 3)),
    "mean, kept": lambda x: x.mean((-1, -2), keepdim=True),
    "sum": lambda x: x.sum(2),
    "sum, kept": lambda x: x.sum((1, 2), keepdim=True),
    "largest": lambda x: x.amax((1, 2)),
    "smallest": lambda x: x.amin(-1, keepdim=True),
    "max": lambda x: x.max(2)[0],
    "min": lambda x: x.min(1, keepdim=True).values,
    "prod": lambda x: x.prod(2),
    "var": lambda x: x.var((1, 2)),
    "var, biased": lambda x: x.var(2, unbiased=False, keepdim=True),
    "var, correction": lambda x: torch.var(x, (1, 3), correction=2),
    "std": lambda x: x.std(-1),
    "norm": lambda x: x.norm(dim=2),
    "norm 1": lambda x: torch.linalg.vector_norm(x, 1, dim=(1, 2)),
    "norm inf": lambda x: torch.linalg.vector_norm(x, math.inf, dim=1, keepdim=True),
    "normalised": lambda x: F.normalize(x, dim=1),
    "logsumexp": lambda x: x.logsumexp(1),
    "logsumexp, two axes, kept": lambda x: (300 * x).logsumexp((1, 3), keepdim=True),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: F.log_softmax(10 * x, -1),
    "softmin": lambda x: F.softmin(x, 2),
    "of what is cut out": lambda x: x[:, 1:, ::2].transpose(1, 2).mean(1),
    "of padding": lambda x: F.pad(x, (1, 2), value=0.5).prod(-1),
}


def test_reductions() -> None:
    check_each(REDUCTIONS, 3, 4, 5, tolerance=1e-9)


def test_logsumexp_of_infinities_is_that_of_torch() -> None:
    low = torch.tensor([-math.inf, -math.inf, -math.inf, 1.0, math.inf])
    check(lambda x: torch.where(low > 2, x.abs(), low).view(-1, 1, 5)[:, :, :3].logsumexp(2), 5)
    check(lambda x: (x + torch.where(low == math.inf, low, 0.0)).view(-1, 1, 5).logsumexp(2), 5)


MIXING = {
    "mean": (lambda x: x.mean(0, keepdim=True).expand_as(x), r"mean.dim"),
    "amax": (lambda x: x - x.amax((0, 1), keepdim=True), r"amax"),
    "softmax": (lambda x: x.softmax(0), r"softmax.int"),
    "product": (lambda x: (x @ x.t()).sum(1), r"matmul"),
    "layer norm": (lambda x: F.layer_norm(x.t()[None], (4, x.shape[0]))[0].t(), r"layer_norm"),
    "group norm": (lambda x: F.group_norm(x.t()[None], 2)[0].t(), r"group_norm"),
    "attention": (
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None])[0],
        r"scaled_dot_product_attention",
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_operators_along_the_samples_are_refused(name: str) -> None:
    function, operator = MIXING[name]
    refused(function, 4, match=f"{operator}.* mixes samples")


REFUSED = {
    "norm 3": (lambda x: x.norm(3, dim=1), "norm of order 3"),
    "running statistics": (
        lambda x: F.instance_norm(x, torch.zeros(3), torch.ones(3), use_input_stats=False),
        "running statistics",
    ),
    "wide": (lambda x: x.sum(1, dtype=torch.float64).float(), "float64"),
    "dropout": (
        lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
        "dropout|random",
    ),
    "empty window": (lambda x: F.max_pool1d(x, 2, 1, 1, dilation=6), "nothing but padding"),
    "lone variance": (lambda x: x[:, :1].var(1), "degrees of freedom"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_kernel_is_refused(name: str) -> None:
    function, match = REFUSED[name]
    refused(function, 3, 5, match=match)


# --- Norms ----------------------------------------------------------------------------------------


def _with_parameters(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator) - 0.3
    return module


NORMS = {
    "layer": lambda: nn.LayerNorm(6),
    "layer, two axes": lambda: nn.LayerNorm((4, 6), eps=1e-3),
    "layer, plain": lambda: nn.LayerNorm(6, elementwise_affine=False),
    "layer, no bias": lambda: nn.LayerNorm(6, bias=False),
    "group": lambda: nn.GroupNorm(2, 4),
    "group, plain": lambda: nn.GroupNorm(2, 4, affine=False),
    "instance": lambda: nn.InstanceNorm1d(4, affine=True),
    "instance, plain": lambda: nn.InstanceNorm1d(4),
    "rms": lambda: nn.RMSNorm(6),
    "rms, plain": lambda: nn.RMSNorm((4, 6), eps=0.1, elementwise_affine=False),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    model = nn.Sequential(Scaled(lambda x: x, (4, 6)), _with_parameters(NORMS[name]()))
    batch = randn(SAMPLES, 4, 6), randn(SAMPLES, 4, 6, seed=2)
    lowered.check(model, batch, "mse_loss", tolerance=1e-6 if name == "rms" else 1e-9)


def test_norms_of_transposed_values() -> None:
    check(lambda x: F.layer_norm(x.transpose(1, 2), (3,)), 3, 5)
    check(lambda x: F.group_norm(x.movedim(-1, 1), 2), 3, 5, 4)


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
    [nn.LSTMCell(5, 4), nn.GRUCell(5, 4), nn.RNNCell(5, 4), nn.GRUCell(5, 4, bias=False),
     nn.RNNCell(5, 4, nonlinearity="relu"), nn.LSTMCell(5, 4, bias=False)],
    ids=str,
)  # fmt: skip
def test_single_cells(cell: nn.Module) -> None:
    model, x = Cells(cell), randn(SAMPLES, 3, 5)
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


# --- Losses ---------------------------------------------------------------------------------------


def loss_is_that_of_torch(model: nn.Module, batch: Any, loss: Any) -> Lowered:
    plan = lowered.plan_of(model, batch, loss)
    found = lower(plan, simplify=False)
    deltas = lowered.moved(plan, 0)
    env = lowered.environment(plan, batch, deltas)
    expected = float(lowered.evaluate_part(plan, plan.outputs[:1], env)[plan.outputs[0]])
    got = lowered.result_of(found, plan, batch, deltas).loss
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)
    return found


WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.25])
IGNORED = torch.tensor([0, -100, 3, 2, -100, 1])

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


# --- Decisions ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    name: str = "accuracy"
    decision: str = "any"
    ignore_index: int = -100
    shifted: bool = False


EQUAL = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]] * 3)
DECISIONS: dict[str, tuple[Tensor, Tensor, Rule]] = {
    "classes": (randn(SAMPLES, 4), labels(4, SAMPLES), Rule()),
    "classes, error": (randn(SAMPLES, 4), labels(4, SAMPLES), Rule("error", "class")),
    "classes, ignored": (randn(SAMPLES, 4), IGNORED, Rule(decision="class")),
    "classes, equal scores": (EQUAL, torch.tensor([0, 0, 1, 1, 2, 2]), Rule(decision="class")),
    "top 5": (randn(SAMPLES, 9), labels(9, SAMPLES), Rule("top5", "class")),
    "top 5 of 3": (randn(SAMPLES, 3), labels(3, SAMPLES), Rule("top5")),
    "positions, class axis 1": (randn(SAMPLES, 4, 5), labels(4, SAMPLES, 5), Rule()),
    "positions, class axis last": (randn(SAMPLES, 5, 4), labels(4, SAMPLES, 5), Rule()),
    "shifted": (randn(SAMPLES, 5, 4), labels(4, SAMPLES, 5), Rule(shifted=True)),
    "column": (randn(SAMPLES, 1), labels(2, SAMPLES), Rule()),
    "logits": (randn(SAMPLES, 3), labels(2, SAMPLES, 3), Rule()),
    "logits of floats": (randn(SAMPLES, 3), labels(2, SAMPLES, 3).float(), Rule(decision="logit")),
    "logits, ignored": (randn(SAMPLES), labels(3, SAMPLES), Rule(decision="logit", ignore_index=2)),
    "probabilities": (
        randn(SAMPLES, 3).sigmoid(), labels(2, SAMPLES, 3).float(), Rule(decision="probability")
    ),
    "signs": (
        randn(SAMPLES, 3), 2 * labels(2, SAMPLES, 3).float() - 1, Rule(decision="sign")
    ),
    "booleans": (randn(SAMPLES, 3), labels(2, SAMPLES, 3) == 1, Rule(decision="logit")),
}  # fmt: skip


def _hits(scores: Tensor, target: Tensor, rule: Rule) -> tuple[float, float]:
    """What the program counts, and the metric itself."""
    model = Scaled(lambda x: x, tuple(scores.shape[1:]))
    model.factor.data = torch.ones_like(model.factor)

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        return model(batch[0]).abs().mean()

    measure = resolve(loss, model=model)
    measure.captured = lambda model, batch: (  # type: ignore[method-assign]
        loss(model, batch), (model(batch[0]),), (batch[1],)
    )  # fmt: skip
    batch = scores, target
    plan = capture(model, measure, batch, moving=["factor"])
    found = lower(plan, metrics=[rule], simplify=False)
    still = [np.zeros(s.shape) for s in plan.slots]
    count = lowered.result_of(found, plan, batch, still).metrics[rule.name]
    options = {"ignore_index": rule.ignore_index, "shifted": rule.shifted}
    (metric,) = resolve_metrics(rule.name, decision=rule.decision, **options)
    right, valid = metric.compute(scores, target, batch)
    return count, float(valid - right if rule.name == "error" else right)


@pytest.mark.parametrize("name", DECISIONS)
def test_decisions_are_counted_as_by_the_metrics(name: str) -> None:
    count, expected = _hits(*DECISIONS[name])
    assert count == expected


@pytest.mark.parametrize(
    ("scores", "target"),
    [
        (randn(SAMPLES, 4), randn(SAMPLES, 4).softmax(1)),
        (randn(SAMPLES, 4), labels(4, SAMPLES, 2)),
        (randn(SAMPLES, 4), randn(SAMPLES)),
    ],
    ids=["class probabilities", "other positions", "classes as floats"],
)
def test_decisions_without_kernel_are_refused(scores: Tensor, target: Tensor) -> None:
    with pytest.raises(NotCapturedError, match="accuracy of such scores and labels"):
        _hits(scores, target, Rule(decision="class"))
