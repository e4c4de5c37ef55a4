"""What a grid program means: every step carried out literally, in float64.

Written from the docstrings of `landscapex.engine.steps`, not from any kernel. `run` takes the
weights of one grid point and treats AFFINE values like all others, as what they are at that point;
given the weights of the centre and of each direction it shares them as an engine does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from program_functions import LOSSES, activate, sigmoid
from program_rules import block, is_shared

from landscapex.engine.program import Grid, Program, Weight
from landscapex.engine.steps import (
    MAP_OPS,
    Contract,
    CrossEntropy,
    ElementLoss,
    Embedding,
    GruCell,
    Hits,
    LstmCell,
    Map,
    MatMul,
    Normalize,
    Reduce,
    Softmax,
    Step,
    Winograd,
)
from landscapex.engine.weight_order import ROWS

Array = np.ndarray
Buffers = dict[int, Array]

# Winograd's transformation of a filter for F(4, 3): Lavin and Gray 2016, section 4.3
_G = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)


def run(
    program: Program,
    inputs: Mapping[int, Array],
    weights: Sequence[Array],
    *,
    sets: Sequence[Sequence[Array]] | None = None,
    coefficients: Sequence[float] = (1.0,),
    storage: bool = False,
) -> tuple[Array, Buffers]:
    """Carry out a program for all samples at one grid point.

    Args:
        program: What to do.
        inputs: By id, ``[samples, elements]`` for each input and index buffer.
        weights: Of this point, by id, as `weights_at` gives them.
        sets: Weights of the centre and of each direction: AFFINE values are then computed from
            these, once each, and combined. None: computed from `weights` like all others.
        coefficients: ``[K + 1]``, the first is 1; used with `sets`.
        storage: Let buffers lie in the memory that ``program.storage`` says, which holds what an
            earlier tile left there.

    Returns:
        The sums of the loss steps, and all buffers ``[samples, elements]`` as they are at the end.
    """
    samples = len(next(iter(inputs.values())))
    tile = _Tile(program, inputs, weights, samples, storage=storage)
    shared: list[Step] = []
    if sets is not None:
        shared = [s for s in program.steps if is_shared(program, s)]
        parts = [
            _Tile(program, inputs, w, samples, set_number=k).run(shared) for k, w in enumerate(sets)
        ]
        for i, buffer in enumerate(program.buffers):
            if buffer.grid is Grid.AFFINE:
                values = [p.buffers[i] for p in parts]
                tile.buffers[i] = values[0] + sum(
                    c * v for c, v in zip(coefficients[1:], values[1:], strict=True) if c
                )
    own = [s for s in program.steps if not any(s is other for other in shared)]
    with np.errstate(all="ignore"):
        if storage:
            tile.run(own)
            tile.terms[:] = 0
        tile.run(own)
    return tile.terms, tile.buffers


def weights_at(program: Program, slots: Sequence[Array], *, offset: bool = True) -> list[Array]:
    """The numbers of every weight at one point; filters of a `Winograd` step untransformed.

    Args:
        program: Whose weights.
        slots: Of the plan, flattened, at this point (or of one direction).
        offset: Whether to add offsets; not for directions.

    Returns:
        By id: ``[size]``, or ``[M * C * 9]`` for Winograd.
    """
    return [_entries(w, slots, offset) for w in program.weights]


def packed(program: Program, weights: Sequence[Array]) -> list[Array]:
    """The same weights as kernels take them: filters of `Winograd` steps are transformed.

    Args:
        program: Whose weights.
        weights: As from `weights_at`.

    Returns:
        By id: ``[size]``.
    """
    result = []
    for weight, entries in zip(program.weights, weights, strict=True):
        if weight.winograd is not None:
            outputs, inputs = weight.winograd
            filters = entries.reshape(outputs, inputs, 3, 3)
            u = np.einsum("ai,mcij,bj->abmc", _G, filters, _G)  # G g G^T
            blocks = u.reshape(36, outputs // 8, 8, inputs)
            entries = blocks.transpose(0, 1, 3, 2).reshape(-1)
        assert entries.shape == (weight.size,)
        result.append(entries)
    return result


def outputs(program: Program, buffers: Buffers) -> list[Array]:
    """What the model returns, read from the buffers.

    Args:
        program: That was run.
        buffers: As from `run`.

    Returns:
        ``[samples, *shape at batch size 1]`` each.
    """
    return [_take(buffers[i], at) for i, at in program.outputs]


def _entries(weight: Weight, slots: Sequence[Array], offset: bool) -> Array:
    size = weight.size if weight.winograd is None else math.prod(weight.winograd) * 9
    total = np.zeros(size)
    for term in weight.terms:
        there = term.index >= 0
        values = np.zeros(size)
        values[there] = np.asarray(slots[term.slot], np.float64).reshape(-1)[term.index[there]]
        # a factor belongs to an entry, and means nothing where there is none
        total += values if term.scale is None else np.where(there, term.scale * values, 0.0)
    if offset and weight.offset is not None:
        total += weight.offset
    return total


class _Tile:
    """The memory of one run."""

    def __init__(
        self,
        program: Program,
        inputs: Mapping[int, Array],
        weights: Sequence[Array],
        samples: int,
        *,
        storage: bool = False,
        set_number: int = 0,
    ) -> None:
        self.program, self.weights, self.samples = program, weights, samples
        self.terms = np.zeros(program.terms)
        self.buffers: Buffers = {}
        memory = self._memory(storage and bool(program.storage))
        for i, buffer in enumerate(program.buffers):
            if buffer.kind == "live":
                # the fill of an affine value belongs to the centre
                self.buffers[i] = memory[i] if set_number == 0 else np.zeros_like(memory[i])
            else:
                dtype = np.int64 if buffer.kind == "index" else np.float64
                self.buffers[i] = np.array(inputs[i], dtype)
                assert self.buffers[i].shape == (samples, buffer.elements), buffer

    def _memory(self, shared: bool) -> list[Array]:
        buffers = self.program.buffers
        if not shared:
            return [np.full((self.samples, b.elements), b.fill) for b in buffers]
        storage: dict[int, Array] = {}
        for s in set(self.program.storage):
            those = [b for b, t in zip(buffers, self.program.storage, strict=True) if t == s]
            alike = len({(b.elements, b.fill) for b in those}) == 1
            fill = those[0].fill if alike else np.nan
            storage[s] = np.full((self.samples, max(b.elements for b in those)), fill)
        return [
            storage[s][:, : b.elements] for b, s in zip(buffers, self.program.storage, strict=True)
        ]

    def run(self, steps: Sequence[Step]) -> _Tile:
        with np.errstate(all="ignore"):
            for step in steps:
                _EXECUTORS[type(step)](self, step)
        return self

    def take(self, buffer: int, at: Array) -> Array:
        """``[samples, *at.shape]``."""
        return _take(self.buffers[buffer], at)

    def put(self, buffer: int, to: Array, values: Array) -> None:
        elements = self.program.buffers[buffer].elements
        assert self.program.buffers[buffer].kind == "live", "inputs are not written"
        assert to.size == 0 or (to.min() >= 0 and to.max() < elements), "written out of range"
        assert len(np.unique(to)) == to.size, "an element is written twice"
        self.buffers[buffer][:, to.reshape(-1)] = values.reshape(self.samples, -1)

    def weight(self, i: int, shape: tuple[int, ...], default: float) -> Array:
        if i < 0:
            return np.full(shape, default)
        assert self.weights[i].size == math.prod(shape), "a weight does not fit its step"
        return self.weights[i].reshape(shape)


def _take(buffer: Array, at: Array) -> Array:
    assert at.size == 0 or (at.min() >= 0 and at.max() < buffer.shape[1]), "read out of range"
    return buffer[:, at]


# --- contractions ---------------------------------------------------------------------------------


def unpacked(entries: Array, groups: int, outputs: int, taps: int) -> Array:
    """The weights of a `Contract` as ``[groups, M, R]``, from blocks of at most `ROWS` outputs."""
    count = -(-outputs // ROWS)
    result = np.empty((groups, outputs, taps))
    position = 0
    for g in range(groups):
        start = 0
        for i in range(count):
            rows = outputs // count + (i < outputs % count)
            part = entries[position : position + rows * taps].reshape(taps, rows)
            result[g, start : start + rows] = part.T
            start, position = start + rows, position + rows * taps
    assert position == entries.size, "a weight does not fit its step"
    return result


def _contract(tile: _Tile, step: Contract) -> None:
    groups, rows = step.channels.shape
    shape = (groups, rows)
    w = unpacked(tile.weights[step.weight], *shape, len(step.taps))
    bias = tile.weight(step.bias, shape, 0.0)
    scale, shift = tile.weight(step.scale, shape, 1.0), tile.weight(step.shift, shape, 0.0)
    for g in range(groups):
        x = tile.take(step.input, step.at[:, None] + step.group[g] + step.taps)
        y = scale[g] * (bias[g] + x @ w[g].T) + shift[g]
        if step.residual >= 0:
            at = step.residual_at[:, None] + step.residual_channels[g]
            y = y + tile.take(step.residual, at)
        tile.put(step.out, step.to[:, None] + step.channels[g], activate(step.activation, y))


def _winograd(tile: _Tile, step: Winograd) -> None:
    """As the convolution that it is."""
    assert step.height % 4 == 0
    assert step.width % 4 == 0
    assert step.inputs % 8 == 0
    assert step.outputs % 8 == 0
    assert tile.program.weights[step.weight].winograd == (step.outputs, step.inputs)
    size = (step.height, step.width)
    w = tile.weights[step.weight].reshape(step.outputs, step.inputs, 3, 3)
    x = tile.take(
        step.input,
        block(
            step.input_at,
            step.input_channel,
            step.input_row,
            step.inputs,
            step.height + 2,
            step.width + 2,
        ),
    )
    y = np.zeros((tile.samples, step.outputs, *size))
    for i in range(3):
        for j in range(3):
            window = x[:, :, i : i + step.height, j : j + step.width]
            y += np.einsum("mc,scyx->smyx", w[:, :, i, j], window)
    column = (step.outputs, 1, 1)
    y = y + tile.weight(step.bias, column, 0.0)
    y = tile.weight(step.scale, column, 1.0) * y + tile.weight(step.shift, column, 0.0)
    if step.residual >= 0:
        at = block(step.residual_at, step.residual_channel, step.residual_row, step.outputs, *size)
        y = y + tile.take(step.residual, at)
    to = block(step.out_at, step.out_channel, step.out_row, step.outputs, *size)
    tile.put(step.out, to, activate(step.activation, y))


def _matmul(tile: _Tile, step: MatMul) -> None:
    product = tile.take(step.x, step.x_at) @ tile.take(step.y, step.y_at)
    tile.put(step.out, step.to, step.scale * product)


# --- elementwise, reductions ----------------------------------------------------------------------

_OPS: dict[str, Callable[..., Array]] = {
    "copy": lambda a: a,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "pow": np.power,
    "scale_shift": lambda a, b, c: a * b + c,
    "where": lambda a, b, c: np.where(a != 0, b, c),
}
assert tuple(_OPS) == MAP_OPS


def _map(tile: _Tile, step: Map) -> None:
    shape = (tile.samples, step.to.size)
    values = []
    for operand in step.operands:
        if operand.kind == "number":
            values.append(np.full(shape, operand.value))
            continue
        assert operand.at is not None
        assert operand.at.shape == step.to.shape
        if operand.kind == "weight":
            values.append(np.broadcast_to(tile.weights[operand.id][operand.at], shape))
        else:
            assert operand.kind == "buffer"
            values.append(tile.take(operand.id, operand.at).astype(np.float64))
    tile.put(step.out, step.to, activate(step.activation, _OPS[step.op](*values)))


_REDUCTIONS: dict[str, tuple[np.ufunc, float]] = {
    "sum": (np.add, 0.0),
    "max": (np.maximum, -np.inf),
    "min": (np.minimum, np.inf),
    "prod": (np.multiply, 1.0),
}


def _reduce(tile: _Tile, step: Reduce) -> None:
    function, empty = _REDUCTIONS[step.op]
    assert step.offsets[0] == 0
    assert step.offsets[-1] == step.sources.size
    x = tile.take(step.input, step.sources)
    if step.coefficients is not None:
        assert step.op == "sum"
        x = x * step.coefficients.astype(np.float64)
    y = np.full((tile.samples, step.to.size), empty)
    some = np.diff(step.offsets) > 0
    if some.any():
        y[:, some] = function.reduceat(x, step.offsets[:-1][some], axis=1)
    y = step.scale * y if step.op == "sum" else y
    tile.put(step.out, step.to, activate(step.activation, y))


def _normalize(tile: _Tile, step: Normalize) -> None:
    x = tile.take(step.input, step.sources)
    mean = 0.0 if step.rms else x.mean(-1, keepdims=True)
    variance = np.square(x - mean).mean(-1, keepdims=True)
    y = (x - mean) / np.sqrt(variance + step.eps)
    if step.gamma >= 0:
        y = y * tile.weights[step.gamma][step.gamma_at]
    if step.beta >= 0:
        y = y + tile.weights[step.beta][step.beta_at]
    tile.put(step.out, step.to, activate(step.activation, y))


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _softmax(tile: _Tile, step: Softmax) -> None:
    x = tile.take(step.input, step.sources)
    y = _log_softmax(x)
    y = y if step.log else np.exp(y)
    if step.safe:
        y = np.where((x == -np.inf).all(-1, keepdims=True), 0.0, y)
    tile.put(step.out, step.to, y)


# --- recurrent cells, embedding -------------------------------------------------------------------


def _lstm_cell(tile: _Tile, step: LstmCell) -> None:
    i, f, g, o = (tile.take(step.gates, at) for at in step.gates_at)
    old = tile.take(step.cell, step.cell_at) if step.cell >= 0 else np.zeros_like(f)
    cell = sigmoid(f) * old + sigmoid(i) * np.tanh(g)
    tile.put(step.cell_out, step.cell_to, cell)
    tile.put(step.out, step.to, sigmoid(o) * np.tanh(cell))


def _gru_cell(tile: _Tile, step: GruCell) -> None:
    x, h = (tile.take(b, at) for b, at in ((step.x, step.x_at), (step.h, step.h_at)))
    r, z = sigmoid(x[:, 0] + h[:, 0]), sigmoid(x[:, 1] + h[:, 1])
    n = np.tanh(x[:, 2] + r * h[:, 2])
    old = tile.take(step.hidden, step.hidden_at) if step.hidden >= 0 else np.zeros_like(n)
    tile.put(step.out, step.to, (1 - z) * n + z * old)


def _embedding(tile: _Tile, step: Embedding) -> None:
    width = step.to.shape[1]
    rows = tile.weights[step.weight].reshape(-1, width)
    index = tile.take(step.index, step.at)
    assert index.min() >= 0
    assert index.max() < len(rows)
    tile.put(step.out, step.to, rows[index])


# --- losses ---------------------------------------------------------------------------------------


def _cross_entropy(tile: _Tile, step: CrossEntropy) -> None:
    x = tile.take(step.input, step.sources)
    classes = x.shape[-1]
    loss = -(x if step.log_input else _log_softmax(x))
    weight = np.ones(classes) if step.class_weight is None else step.class_weight.astype(float)
    target = tile.take(step.target, step.target_at)
    if step.probabilities:
        q = (1 - step.smoothing) * target + step.smoothing / classes
        tile.terms[step.term] += (weight * q * loss).sum()
        return
    counts = target != step.ignore_index
    label = np.where(counts, target, 0)
    assert label.min() >= 0
    assert label.max() < classes
    value = weight[label] * np.take_along_axis(loss, label[..., None], -1)[..., 0]
    if step.smoothing:
        spread = step.smoothing / classes * (weight * loss).sum(-1)
        value = (1 - step.smoothing) * value + spread
    tile.terms[step.term] += value[counts].sum()


def _element_loss(tile: _Tile, step: ElementLoss) -> None:
    x = tile.take(step.input, step.at)
    t = tile.take(step.target, step.target_at) if step.target >= 0 else np.zeros_like(x)
    value = LOSSES[step.kind](x, t, step.a)
    if step.weight is not None:
        value = value * step.weight.astype(np.float64)
    tile.terms[step.term] += value.sum()


def _hits(tile: _Tile, step: Hits) -> None:
    x = tile.take(step.input, step.sources)
    target = tile.take(step.target, step.target_at)
    is_label = tile.program.buffers[step.target].kind == "index"
    counts = target != step.ignore_index if is_label else np.ones(target.shape, bool)
    if step.decision == "threshold":
        x = x[..., 0]
        right = ((x > step.threshold) == (target > step.target_threshold)) & ~np.isnan(x)
    else:
        assert step.decision == "class"
        label = np.where(counts, target, 0)[..., None]
        own = np.take_along_axis(x, label, -1)
        first = np.arange(x.shape[-1]) < label
        # a NaN counts as larger than any number, and is never right itself
        larger = (x > own) | np.isnan(x) | ((x == own) & first)
        right = (larger.sum(-1) < step.top) & ~np.isnan(own[..., 0])
    tile.terms[step.term] += (right & counts).sum()


_EXECUTORS: dict[type, Callable[[_Tile, Any], None]] = {
    Contract: _contract,
    Winograd: _winograd,
    Map: _map,
    Reduce: _reduce,
    Normalize: _normalize,
    Softmax: _softmax,
    MatMul: _matmul,
    LstmCell: _lstm_cell,
    GruCell: _gru_cell,
    Embedding: _embedding,
    CrossEntropy: _cross_entropy,
    ElementLoss: _element_loss,
    Hits: _hits,
}
