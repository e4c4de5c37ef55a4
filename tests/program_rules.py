"""What every grid program must keep to, as `landscapex.engine.steps` says, and what steps touch."""

from __future__ import annotations

import math

import numpy as np

from landscapex.engine.program import Grid, Program
from landscapex.engine.steps import (
    Contract,
    CrossEntropy,
    ElementLoss,
    Embedding,
    GruCell,
    Hits,
    LstmCell,
    Map,
    MatMul,
    Reduce,
    Step,
    Winograd,
)

Touched = list[tuple[int, np.ndarray]]


def block(at: int, channel: int, row: int, channels: int, height: int, width: int) -> np.ndarray:
    """Element numbers ``[channels, height, width]``."""
    c, y, x = np.ogrid[:channels, :height, :width]
    return at + c * channel + y * row + x


def _product(at: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """``at[p] + inner[g, ...]``, flat."""
    return (at[:, None] + inner.reshape(1, -1)).reshape(-1)


def reads(step: Step) -> Touched:
    """Buffers and elements that a step reads."""
    match step:
        case Contract():
            found = [(step.input, _product(step.at, step.group[:, None] + step.taps))]
            if step.residual >= 0:
                at = _product(step.residual_at, step.residual_channels)
                found.append((step.residual, at))
        case Winograd():
            height, width = step.height + 2, step.width + 2
            at = (step.input_at, step.input_channel, step.input_row)
            found = [(step.input, block(*at, step.inputs, height, width))]
            if step.residual >= 0:
                at = (step.residual_at, step.residual_channel, step.residual_row)
                place = block(*at, step.outputs, step.height, step.width)
                found.append((step.residual, place))
        case Map():
            found = [(o.id, o.at) for o in step.operands if o.kind == "buffer"]
        case MatMul():
            found = [(step.x, step.x_at), (step.y, step.y_at)]
        case LstmCell():
            found = [(step.gates, step.gates_at), (step.cell, step.cell_at)]
        case GruCell():
            found = [(step.x, step.x_at), (step.h, step.h_at), (step.hidden, step.hidden_at)]
        case Embedding():
            found = [(step.index, step.at)]
        case CrossEntropy() | Hits():
            found = [(step.input, step.sources), (step.target, step.target_at)]
        case ElementLoss():
            found = [(step.input, step.at), (step.target, step.target_at)]
        case _:
            found = [(step.input, step.sources)]
    return [(b, at) for b, at in found if b >= 0]


def writes(step: Step) -> Touched:
    """Buffers and elements that a step writes."""
    match step:
        case CrossEntropy() | ElementLoss() | Hits():
            return []
        case Contract():
            return [(step.out, _product(step.to, step.channels))]
        case Winograd():
            at = (step.out_at, step.out_channel, step.out_row)
            return [(step.out, block(*at, step.outputs, step.height, step.width))]
        case LstmCell():
            return [(step.cell_out, step.cell_to), (step.out, step.to)]
        case _:
            return [(step.out, step.to)]


def is_shared(program: Program, step: Step) -> bool:
    """Whether a step runs once per chunk of points: it writes an AFFINE buffer."""
    return any(program.buffers[b].grid is Grid.AFFINE for b, _ in writes(step))


def check(program: Program) -> None:
    """Assert what `landscapex.engine.steps` says of every program."""
    for i, step in enumerate(program.steps):
        where = f"step {i}, {type(step).__name__}"
        for value in vars(step).values():
            if isinstance(value, np.ndarray) and value.dtype.kind == "i":
                assert value.dtype == np.int32, where
                assert value.flags.c_contiguous, where
        for buffer, at in reads(step) + writes(step):
            assert at is not None, where
            assert at.size == 0 or at.min() >= 0, where
            assert at.size == 0 or at.max() < program.buffers[buffer].elements, where
        for buffer, to in writes(step):
            assert program.buffers[buffer].kind == "live", where
            assert program.buffers[buffer].grid is not Grid.NONE, where
            assert len(np.unique(to)) == to.size, where
            for other, at in reads(step):
                in_place = isinstance(step, Map) and np.array_equal(at, to)
                if other == buffer and not in_place:
                    assert not np.intersect1d(at, to).size, f"{where} overwrites what it reads"
        _check_grids(program, step, where)
        term = getattr(step, "term", -1)
        assert term < program.terms, where
    for weight in program.weights:
        size = weight.size if weight.winograd is None else math.prod(weight.winograd) * 9
        if weight.winograd is not None:
            assert weight.size == math.prod(weight.winograd) * 36
        assert weight.offset is None or weight.offset.shape == (size,)
        for term in weight.terms:
            assert term.index.shape == (size,)
            assert term.index.dtype == np.int64
            assert term.scale is None or term.scale.shape == (size,)


def _check_grids(program: Program, step: Step, where: str) -> None:
    """AFFINE values are only read and written by the steps that may."""

    def grid(i: int) -> Grid:
        return program.buffers[i].grid

    into_affine = is_shared(program, step)
    for position, (buffer, _) in enumerate(reads(step)):
        if grid(buffer) is Grid.AFFINE:
            first = position == 0
            combines = isinstance(step, Map | Reduce | CrossEntropy | ElementLoss | Hits)
            residual = isinstance(step, Contract) and not first
            input_part = isinstance(step, GruCell) and first
            assert combines or residual or input_part, f"{where} reads an AFFINE buffer"
        elif into_affine:
            fixed = isinstance(step, Contract) and grid(buffer) is Grid.NONE
            assert fixed, f"{where} makes an AFFINE value of another"
    if into_affine:
        assert isinstance(step, Contract | Map | Reduce), f"{where} cannot be AFFINE"
        assert step.activation.name == "none", f"{where} cannot be AFFINE"
        if isinstance(step, Contract):
            assert step.residual < 0, f"{where} cannot be AFFINE"
            assert step.scale < 0, f"{where} cannot be AFFINE"
            assert step.shift < 0, f"{where} cannot be AFFINE"
        else:
            assert step.op in ("copy", "sum"), f"{where} cannot be AFFINE"
