"""LSTM, GRU and plain recurrent nets, unrolled over time.

The input's part of all time steps is one contraction; that of the hidden state follows step by
step, on top of it. Weights are packed once per layer and direction, however many steps there are.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from landscapex.engine.lowering.contractions import grid_of
from landscapex.engine.lowering.lanes import Entries, Lanes, flat
from landscapex.engine.lowering.registry import handles
from landscapex.engine.lowering.values import as_lanes, separate
from landscapex.engine.lowering.walk import Lowering
from landscapex.engine.plan import NotCapturedError
from landscapex.engine.program import Grid, Term
from landscapex.engine.sharing import operator_name
from landscapex.engine.steps import (
    NONE,
    Activation,
    Contract,
    GruCell,
    LstmCell,
    Map,
    Operand,
    table,
)
from landscapex.engine.weight_order import contract_order

_NO_TABLE = table([])


@dataclass(frozen=True)
class _Matrix:
    """Packed weights of a contraction: ``[M, R]``, and its bias (-1 for none)."""

    weight: int
    bias: int
    outputs: int
    taps: int


def _matrix(low: Lowering, weight: Entries, biases: Sequence[Entries] = ()) -> _Matrix:
    outputs, taps = weight.shape
    order = contract_order(1, outputs, taps)
    packed = low.weight(order.size, Term(weight.slot, weight.index.reshape(-1).numpy()[order]))
    bias = low.weight(outputs, *(low.term_of(b) for b in biases)) if biases else -1
    return _Matrix(packed, bias, outputs, taps)


def _contract(
    low: Lowering,
    x: Lanes,
    matrix: _Matrix,
    out: Lanes,
    residual: Lanes | None = None,
    activation: Activation = NONE,
) -> None:
    """``out [P, M] = act(x [P, R] @ matrix.T + bias + residual [P, M])``; all separable."""
    step = Contract(
        input=x.buffer,
        taps=flat(x.index[0] - x.index[0, 0]),
        at=flat(x.index[:, 0]),
        group=table([0]),
        out=out.buffer,
        to=flat(out.index[:, 0]),
        channels=table((out.index[:1] - out.index[0, 0]).numpy()),
        weight=matrix.weight,
        bias=matrix.bias,
        residual=-1 if residual is None else residual.buffer,
        residual_at=_NO_TABLE if residual is None else flat(residual.index[:, 0]),
        residual_channels=_NO_TABLE
        if residual is None
        else table((residual.index[:1] - residual.index[0, 0]).numpy()),
        activation=activation,
    )
    low.emit(step)


def _write(low: Lowering, operand: Operand, out: Lanes, activation: Activation = NONE) -> None:
    low.emit(Map("copy", (operand,), out.buffer, flat(out.index), activation))


def _separable(x: Lanes) -> bool:
    """Whether ``[P, R]`` elements are ``at[p] + taps[r]``."""
    return bool((x.index == x.index[:, :1] + (x.index[:1] - x.index[0, 0])).all())


def _readable(low: Lowering, x: Lanes) -> Lanes:
    return x if _separable(x) else low.contiguous(x)


# --- Cells ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _State:
    """What a cell remembers: h ``[N, H]`` and, for an LSTM, c; None for zeros."""

    h: Lanes | None
    c: Lanes | None = None


@dataclass(frozen=True)
class _Cell:
    """One layer in one direction.

    Attributes:
        name: ``"lstm"``, ``"gru"``, ``"tanh"`` or ``"relu"``.
        of_input: Weights of the input's part.
        of_state: Weights of the hidden state's part.
        projection: Of h, or None.
    """

    name: str
    of_input: _Matrix
    of_state: _Matrix
    projection: _Matrix | None = None

    @property
    def width(self) -> int:
        """Of h, as the next step reads it."""
        return self.of_state.taps


def _cell(low: Lowering, name: str, params: Sequence[Any], *, biases: bool) -> _Cell:
    """From the tensors of one layer and direction, in torch's order."""
    w = [low.entries(p) for p in params]
    b = w[2:4] if biases else []
    projection = _matrix(low, w[-1]) if len(w) in (3, 5) else None
    if name == "gru":  # the reset gate is applied to the state's part, bias included
        return _Cell(name, _matrix(low, w[0], b[:1]), _matrix(low, w[1], b[1:]), projection)
    return _Cell(name, _matrix(low, w[0], b), _matrix(low, w[1]), projection)


def _inputs_grid(low: Lowering, cell: _Cell, x: Lanes) -> Grid:
    """What the inputs' part of ``x [T, N, R]`` depends on."""
    return grid_of(low, x, cell.of_input.taps, x.shape[0] * x.shape[1] * cell.of_input.outputs)


def _inputs_part(low: Lowering, cell: _Cell, x: Lanes) -> Lanes:
    """``[T, N, M]`` for all time steps ``x [T, N, R]`` at once."""
    steps, rows, _ = x.shape
    grid = _inputs_grid(low, cell, x)
    x = _readable(low, low.moved(x, x.index.reshape(steps * rows, -1)))
    outputs = cell.of_input.outputs
    out = low.new((steps * rows, outputs), grid, "gates")
    _contract(low, x, cell.of_input, out)
    return low.moved(out, out.index.view(steps, rows, outputs))


def _step(low: Lowering, cell: _Cell, part: Lanes, state: _State, out: Lanes) -> _State:
    """Add one time step.

    Args:
        low: The lowering.
        cell: The layer.
        part: The input's part, ``[N, M]``.
        state: Before.
        out: Where h' goes, ``[N, width]``.

    Returns:
        The state after.
    """
    if cell.name == "lstm":
        return _lstm_step(low, cell, part, state, out)
    if cell.name == "gru":
        return _gru_step(low, cell, part, state, out)
    activation = Activation(cell.name)
    if state.h is None:
        _write(low, Operand("buffer", part.buffer, flat(part.index)), out, activation)
    else:
        _contract(low, state.h, cell.of_state, out, part, activation)
    return _State(out)


def _lstm_step(low: Lowering, cell: _Cell, part: Lanes, state: _State, out: Lanes) -> _State:
    rows = len(part.index)
    if state.h is not None:
        gates = low.new(part.shape, name="gates")
        _contract(low, state.h, cell.of_state, gates, part)
    else:
        gates = low.full(part)
    width = gates.shape[1] // 4
    c = low.new((rows, width), name="cell")
    h = out if cell.projection is None else low.new((rows, width), name="hidden")
    low.emit(
        LstmCell(
            gates=gates.buffer,
            gates_at=_by_gate(gates, 4),
            cell=-1 if state.c is None else state.c.buffer,
            cell_at=_NO_TABLE if state.c is None else flat(state.c.index),
            cell_out=c.buffer,
            cell_to=flat(c.index),
            out=h.buffer,
            to=flat(h.index),
        )
    )
    if cell.projection is not None:
        _contract(low, h, cell.projection, out)
    return _State(out, c)


def _gru_step(low: Lowering, cell: _Cell, part: Lanes, state: _State, out: Lanes) -> _State:
    hidden = low.new(part.shape, name="gates")
    if state.h is not None:
        _contract(low, state.h, cell.of_state, hidden)
    else:  # nothing but the bias
        entries = flat(torch.arange(part.shape[1]).expand(part.shape))
        bias = cell.of_state.bias
        _write(low, Operand("number") if bias < 0 else Operand("weight", bias, entries), hidden)
    low.emit(
        GruCell(
            x=part.buffer,
            x_at=_by_gate(part, 3),
            h=hidden.buffer,
            h_at=_by_gate(hidden, 3),
            hidden=-1 if state.h is None else state.h.buffer,
            hidden_at=_NO_TABLE if state.h is None else flat(state.h.index),
            out=out.buffer,
            to=flat(out.index),
        )
    )
    return _State(out)


def _by_gate(gates: Lanes, count: int) -> Any:
    """``[gates, N * H]`` from ``[N, gates * H]``."""
    rows = gates.shape[0]
    return table(gates.index.view(rows, count, -1).movedim(1, 0).reshape(count, -1).numpy())


# --- Layers ---------------------------------------------------------------------------------------


def _unrolled(
    low: Lowering, cell: _Cell, x: Lanes, state: _State, out: Lanes, *, backward: bool
) -> _State:
    """All time steps ``x [T, N, R]`` of one layer and direction, into ``out [T, N, width]``."""
    # what every point computes anew stays in the cache if it is computed step by step
    together = _inputs_grid(low, cell, x) is not Grid.FULL
    part = _inputs_part(low, cell, x) if together else None
    times = range(x.shape[0])
    for t in reversed(times) if backward else times:
        if part is not None:
            here = low.moved(part, part.index[t])
        else:
            alone = _inputs_part(low, cell, low.moved(x, x.index[t : t + 1]))
            here = low.moved(alone, alone.index[0])
        state = _step(low, cell, here, state, low.moved(out, out.index[t]))
    return state


def _given(low: Lowering, state: Any) -> Lanes | None:
    """A given state as lanes; zeros cost nothing."""
    if isinstance(state, Tensor) and not bool(state.any()):
        return None
    return as_lanes(low, state)


def _of_layer(low: Lowering, states: Sequence[Lanes | None], layer: int) -> _State:
    """The given states of one layer and direction."""
    return _State(
        *(s if s is None else _readable(low, low.moved(s, s.index[layer])) for s in states)
    )


def _recurrent(
    low: Lowering,
    node: fx.Node,
    x: Any,
    states: Sequence[Any],
    params: Sequence[Any],
    biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Any, ...]:
    """A recurrent net over time; returns its output and its last states."""
    if train and dropout:
        raise NotCapturedError("dropout between recurrent layers")
    x = low.full(x)
    if len(x.shape) != 3:
        raise NotCapturedError("a recurrent net without batch axis")
    separate(low, node, [1 if batch_first else 0, 2])
    x = low.moved(x, x.index.transpose(0, 1)) if batch_first else x
    name, directions = operator_name(node).split(".")[0].removeprefix("rnn_"), 1 + bidirectional
    each = len(params) // (layers * directions)
    given = [_given(low, state) for state in states]
    ends: list[_State] = []
    for layer in range(layers):
        first = layer * directions
        cells = [
            _cell(low, name, params[i * each : (i + 1) * each], biases=biases)
            for i in range(first, first + directions)
        ]
        width = cells[0].width
        out = low.new((*x.shape[:2], directions * width), name=node.name)
        for d, cell in enumerate(cells):
            here = low.moved(out, out.index[..., d * width : (d + 1) * width])
            state = _of_layer(low, given, first + d)
            ends.append(_unrolled(low, cell, x, state, here, backward=d == 1))
        x = out
    output = low.moved(x, x.index.transpose(0, 1)) if batch_first else x
    last = [[end.h for end in ends]]
    if name == "lstm":
        last.append([end.c for end in ends])
    return output, *(_stacked(low, node, i + 1, parts) for i, parts in enumerate(last))


def _stacked(
    low: Lowering, node: fx.Node, position: int, parts: Sequence[Lanes | None]
) -> Lanes | None:
    """Last states of all layers, side by side; None if nobody asks for them."""
    asked = any(user.target is operator.getitem and user.args[1] == position for user in node.users)
    lanes = [part for part in parts if part is not None]
    if not asked or not lanes:
        return None
    if len({part.buffer for part in lanes}) == 1:
        return low.moved(lanes[0], torch.stack([part.index for part in lanes]))
    out = low.new((len(lanes), *lanes[0].shape), name=node.name)
    for i, part in enumerate(lanes):
        _write(low, Operand("buffer", part.buffer, flat(part.index)), low.moved(out, out.index[i]))
    return out


@handles("lstm.input")
def _lstm(low: Lowering, node: fx.Node, x: Any, states: Sequence[Any], *rest: Any) -> Any:
    return _recurrent(low, node, x, states, *rest)


@handles("gru.input", "rnn_tanh.input", "rnn_relu.input")
def _one_state(low: Lowering, node: fx.Node, x: Any, state: Any, *rest: Any) -> Any:
    return _recurrent(low, node, x, [state], *rest)


# --- Single cells ---------------------------------------------------------------------------------


def _single(low: Lowering, node: fx.Node, x: Any, states: Sequence[Any], params: Any) -> _State:
    """One step of a cell that stands by itself."""
    separate(low, node, [1])
    name = operator_name(node).removesuffix("_cell").removeprefix("rnn_")
    tensors = [p for p in params if p is not None]
    cell = _cell(low, name, tensors, biases=len(tensors) > 2)
    x = low.full(x)
    part = _inputs_part(low, cell, low.moved(x, x.index[None]))
    found = (_given(low, state) for state in states)
    state = _State(*(s if s is None else _readable(low, s) for s in found))
    out = low.new((x.shape[0], cell.width), name=node.name)
    return _step(low, cell, low.moved(part, part.index[0]), state, out)


@handles("lstm_cell")
def _lstm_cell(
    low: Lowering, node: fx.Node, x: Any, states: Sequence[Any], *params: Any
) -> tuple[Lanes | None, Lanes | None]:
    end = _single(low, node, x, states, params)
    return end.h, end.c


@handles("gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _one_state_cell(low: Lowering, node: fx.Node, x: Any, state: Any, *params: Any) -> Any:
    return _single(low, node, x, [state], params).h
