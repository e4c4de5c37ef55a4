"""Cases for elementwise steps, recurrent cells and the embedding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from step_builder import EMPTY, Builder, StepCase, case, rows, steps_from
from torch import Tensor
from torch.nn import functional as F

from landscapex.engine.program import Grid
from landscapex.engine.steps import (
    NONE,
    Activation,
    Contract,
    Embedding,
    GruCell,
    LstmCell,
    Map,
    Operand,
    table,
)

SELU = Activation("elu", 1.6732632423543772, 1.0507009873554805)
ACTIVATED: dict[str, tuple[Activation, Callable[[Tensor], Tensor]]] = {
    "none": (NONE, lambda x: x),
    "relu": (Activation("relu"), F.relu),
    "leaky_relu": (Activation("leaky_relu", 0.125), lambda x: F.leaky_relu(x, 0.125)),
    "elu": (Activation("elu", 1.25, 1.0), lambda x: F.elu(x, 1.25)),
    "selu": (SELU, F.selu),
    "gelu": (Activation("gelu"), F.gelu),
    "gelu_tanh": (Activation("gelu_tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "silu": (Activation("silu"), F.silu),
    "mish": (Activation("mish"), F.mish),
    "softplus": (Activation("softplus", 2.0, 5.0), lambda x: F.softplus(x, 2.0, 5.0)),
    "sigmoid": (Activation("sigmoid"), torch.sigmoid),
    "tanh": (Activation("tanh"), torch.tanh),
    "clamp": (Activation("clamp", -0.25, 1.5), lambda x: F.hardtanh(x, -0.25, 1.5)),
    "hardswish": (Activation("hardswish"), F.hardswish),
    "hardsigmoid": (Activation("hardsigmoid"), F.hardsigmoid),
    "hardshrink": (Activation("hardshrink", 0.5), F.hardshrink),
    "softshrink": (Activation("softshrink", 0.25), lambda x: F.softshrink(x, 0.25)),
    "softsign": (Activation("softsign"), F.softsign),
    "logsigmoid": (Activation("logsigmoid"), F.logsigmoid),
    "exp": (Activation("exp"), torch.exp),
    "log": (Activation("log"), torch.log),
    "log1p": (Activation("log1p"), torch.log1p),
    "sqrt": (Activation("sqrt"), torch.sqrt),
    "rsqrt": (Activation("rsqrt"), torch.rsqrt),
    "square": (Activation("square"), torch.square),
    "reciprocal": (Activation("reciprocal"), torch.reciprocal),
    "abs": (Activation("abs"), torch.abs),
    "neg": (Activation("neg"), torch.neg),
    "sin": (Activation("sin"), torch.sin),
    "cos": (Activation("cos"), torch.cos),
    "erf": (Activation("erf"), torch.erf),
    "scale": (Activation("scale", -1.5), lambda x: -1.5 * x),
    "shift": (Activation("shift", 2.5), lambda x: x + 2.5),
    "power": (Activation("power", 1.5), lambda x: x**1.5),
    "threshold": (Activation("threshold", 0.5, -7.0), lambda x: F.threshold(x, 0.5, -7.0)),
}


@case(*((name,) for name in ACTIVATED))
def activation(b: Builder, name: str) -> StepCase:
    applied, function = ACTIVATED[name]
    x = b.input(b.wild(29, 3.0))
    out = b.live(29)
    read = Operand("buffer", x, steps_from(29))
    return b.done(
        Map("copy", (read,), out, read.at, applied), out=out, expected=function(rows(b, x))
    )  # fmt: skip


BINARY: dict[str, Callable[..., Tensor]] = {
    "copy": lambda a: a,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "pow": torch.pow,
    "scale_shift": lambda a, b, c: a * b + c,
    "where": lambda a, b, c: torch.where(a.bool(), b, c),
}
ARITY = {"copy": 1, "scale_shift": 3, "where": 3}


@case(*((op, "bwn") for op in BINARY), name="map")
@case(*((op, "wnb") for op in BINARY), name="map_weight_first")
@case(*((op, "nbw") for op in BINARY), name="map_number_first")
@case(*((op, "bbb") for op in BINARY), name="map_buffers")
def elementwise(b: Builder, op: str, kinds: str) -> StepCase:
    """Operands of several kinds, read in different orders; the output has gaps."""
    count = 16
    operands, values = [], []
    for kind in kinds[: ARITY.get(op, 2)]:
        at = table(b.rng.permutation(count))
        if kind == "b":
            wild = b.wild(count, 2.0)
            if op == "pow":  # float32 holds the powers
                wild = np.where(np.abs(wild) == 30, 3.0, wild)
            x = b.input(wild)
            operands.append(Operand("buffer", x, at))
            values.append(rows(b, x)[:, at])
        elif kind == "w":
            number, value = b.weight(count)
            operands.append(Operand("weight", number, at))
            values.append(value[at].expand(b.samples, count))
        else:
            operands.append(Operand("number", value=-1.5))
            values.append(torch.full((b.samples, count), -1.5, dtype=torch.float64))
    out = b.live(3 * count, fill=5.0)
    to = table(np.arange(count)[::-1] * 3)
    expected = torch.full((b.samples, 3 * count), 5.0, dtype=torch.float64)
    expected[:, to] = BINARY[op](*values)
    return b.done(Map(op, tuple(operands), out, to), out=out, expected=expected)


@case((True,), (False,), name="lstm_cell_with_state")
def lstm_cell(b: Builder, given: bool) -> StepCase:
    """Against torch's cell, whose products are the identity here."""
    width = 5
    cell = torch.nn.LSTMCell(4 * width, width, bias=False, dtype=torch.float64)
    with torch.no_grad():
        cell.weight_ih.copy_(torch.eye(4 * width))
        cell.weight_hh.zero_()
    gates = b.input(b.normal(b.samples, 4 * width, scale=2.0))
    old = b.input(b.normal(b.samples, width))
    zeros = torch.zeros(b.samples, width, dtype=torch.float64)
    with torch.no_grad():
        h, c = cell(rows(b, gates), (zeros, rows(b, old) if given else zeros))
    out = b.live(2 * width)
    step = LstmCell(
        gates, steps_from(4 * width).reshape(4, width), old if given else -1,
        steps_from(width) if given else EMPTY, out, steps_from(width), out,
        steps_from(width, width),
    )  # fmt: skip
    return b.done(step, out=out, expected=torch.cat([c, h], 1))


@case((True,), (False,), name="gru_cell_with_state")
def gru_cell(b: Builder, given: bool) -> StepCase:
    width = 5
    cell = torch.nn.GRUCell(3 * width, width, dtype=torch.float64)
    x = b.input(b.normal(b.samples, 3 * width, scale=2.0))
    old = b.input(b.coarse(b.samples, width))
    state = rows(b, old) if given else torch.zeros(b.samples, width, dtype=torch.float64)
    with torch.no_grad():
        for p in cell.parameters():
            p.copy_(torch.from_numpy(b.coarse(*p.shape)))
        cell.weight_ih.copy_(torch.eye(3 * width))
        cell.bias_ih.zero_()
        expected = cell(rows(b, x), state)
        h = b.input(F.linear(state, cell.weight_hh, cell.bias_hh).numpy())
    out = b.live(width)
    gates = steps_from(3 * width).reshape(3, width)
    step = GruCell(
        x, gates, h, gates, old if given else -1, steps_from(width) if given else EMPTY, out,
        steps_from(width),
    )  # fmt: skip
    return b.done(step, out=out, expected=expected)


@case()
def gru_cell_of_shared_products(b: Builder) -> StepCase:
    """The input's part of the gates is AFFINE."""
    b.directions, width = 2, 3
    cell = torch.nn.GRUCell(4, width, dtype=torch.float64)
    x = b.input(b.normal(b.samples, 4))
    w, weight = b.filters(1, 9, 4)
    bias, at_bias = b.weight(9)
    with torch.no_grad():
        cell.weight_hh.zero_()
        cell.bias_hh.zero_()
        cell.weight_ih.copy_(weight)
        cell.bias_ih.copy_(at_bias)
        expected = cell(rows(b, x))
    affine, h, out = b.live(9, Grid.AFFINE), b.live(9), b.live(width)
    product = Contract(
        x, steps_from(4), table([0]), table([0]), affine, table([0]), steps_from(9)[None], w, bias
    )
    gates = steps_from(9).reshape(3, width)
    step = GruCell(affine, gates, h, gates, -1, EMPTY, out, steps_from(width))
    return b.done(product, step, out=out, expected=expected)


@case()
def embedding(b: Builder) -> StepCase:
    """Four tokens of a sequence of six, in another order, transposed."""
    tokens = b.input(b.rng.integers(0, 9, (b.samples, 6)))
    number, weight = b.weight(9, 5)
    at, to = table([4, 0, 1, 5]), table(np.arange(20).reshape(5, 4).T)
    out = b.live(20)
    index = torch.from_numpy(b.inputs[tokens][:, at])
    expected = F.embedding(index, weight)
    return b.done(Embedding(tokens, at, number, out, to), out=out, to=to, expected=expected)
