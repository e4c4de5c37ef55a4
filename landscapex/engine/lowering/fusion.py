"""Elementwise steps become part of the step that computes what they read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from landscapex.engine.lowering.accesses import separated, writes
from landscapex.engine.lowering.editor import Editor, chosen, scaled, summed
from landscapex.engine.program import Grid, Weight
from landscapex.engine.steps import (
    NONE,
    Activation,
    Contract,
    Map,
    MatMul,
    Normalize,
    Operand,
    Reduce,
    Step,
    table,
)
from landscapex.engine.weight_order import contract_order

_RISING = ("relu", "leaky_relu", "clamp", "sigmoid", "tanh", "hardsigmoid")
_DELAYED_READS = 1.0  # per element of an AFFINE value: more would combine its sets again


@dataclass(frozen=True)
class _Linear:
    """What a `Map` makes of its operand x: ``act(factor * x * scale + sign * shift + residual)``.

    Attributes:
        factor: A number.
        scale: Weight or number, or None for 1.
        shift: Weight or number, or None for 0.
        sign: Of the shift.
        residual: Buffer, or None for 0.
        activation: Applied last.
    """

    factor: float = 1.0
    scale: Operand | None = None
    shift: Operand | None = None
    sign: float = 1.0
    residual: Operand | None = None
    activation: Activation = NONE

    @property
    def is_factor(self) -> bool:
        """Whether it is ``act(factor * x)``."""
        return self.scale is None and self.shift is None and self.residual is None


def fuse_maps(editor: Editor) -> bool:
    """Let the steps that compute the operand of a `Map` do its work as well.

    Args:
        editor: Of the program.

    Returns:
        Whether anything changed.
    """
    changed = False
    for i, step in enumerate(editor.steps):
        if isinstance(step, Map):
            operands = [j for j, o in enumerate(step.operands) if o.kind == "buffer"]
            # what was computed last comes first: the other operand is there when that step runs
            operands.sort(key=lambda j: -max(editor.writers(step.operands[j].id), default=-1))
            changed |= any(_fuse(editor, i, step, j) for j in operands)
    return changed


def _fuse(editor: Editor, i: int, step: Map, j: int) -> bool:
    """Fuse a `Map` into all steps that write its operand j, if nothing else reads that."""
    buffer = step.operands[j].id
    writers, linear = editor.writers(buffer), _linear(step, j)
    others = [o.id for k, o in enumerate(step.operands) if k != j and o.kind == "buffer"]
    if linear is None or not writers or editor.readers(buffer) != [i] or buffer in others:
        return False
    orders = [_order(editor, w, step, j) for w in writers]
    if any(o is None for o in orders) or sum(o.size for o in orders if o is not None) < len(
        step.to
    ):
        return False
    if editor.buffers[buffer].grid is Grid.AFFINE:
        return len(writers) == 1 and _fold_shared(editor, i, step, j, linear, orders[0])
    late = any(w > writers[0] for b in others for w in editor.writers(b))
    if late and len(writers) > 1:
        return False
    fused = [_fused(editor, w, step, linear, o) for w, o in zip(writers, orders, strict=True)]
    if any(f is None for f in fused):
        return False
    editor.replace(i, None)
    for w, f in zip(writers, fused, strict=True):
        editor.replace(w, None if late else f)
    if late:  # where the map was, everything that the step reads is there
        editor.replace(i, fused[0])
    return True


def _order(editor: Editor, writer: int, step: Map, j: int) -> np.ndarray | None:
    """Which output of the `Map` is made of each output of a writer; one axis per table."""
    operand = step.operands[j]
    place = np.full(editor.buffers[operand.id].elements, -1, np.int32)
    place[operand.at] = np.arange(len(step.to), dtype=np.int32)
    mine = [a for a in writes(editor.at(writer)) if a.buffer == operand.id]
    if len(mine) != 1:
        return None
    order = place[mine[0].elements()]
    return None if (order < 0).any() else order


def _linear(step: Map, j: int) -> _Linear | None:
    """A `Map` as a linear function of its operand j and an activation, if it is one."""
    act, others = step.activation, [o for k, o in enumerate(step.operands) if k != j]
    if step.op == "copy":
        if act.name == "scale":
            return _Linear(factor=act.a)
        return _Linear(activation=act)
    if step.op == "scale_shift":
        if j != 0 or any(o.kind == "buffer" for o in others):
            return None
        return _Linear(scale=others[0], shift=others[1], activation=act)
    if step.op in ("add", "sub"):
        sign = -1.0 if step.op == "sub" and j == 0 else 1.0
        factor = -1.0 if step.op == "sub" and j == 1 else 1.0
        if others[0].kind != "buffer":
            return _Linear(factor=factor, shift=others[0], sign=sign, activation=act)
        if sign < 0:
            return None
        return _Linear(factor=factor, residual=others[0], activation=act)
    if step.op == "mul" and others[0].kind == "weight":
        return _Linear(scale=others[0], activation=act)
    if step.op == "mul" and others[0].kind == "number":
        return _Linear(factor=others[0].value, activation=act)
    if step.op == "div" and j == 0 and others[0].kind == "number" and others[0].value != 0.0:
        return _Linear(factor=1.0 / others[0].value, activation=act)
    return None


def _fused(
    editor: Editor, writer: int, step: Map, linear: _Linear, order: np.ndarray | None
) -> Step | None:
    """A writer that does the work of a `Map` for its outputs as well; None if it cannot."""
    made = editor.at(writer)
    assert order is not None
    to = separated(step.to[order])
    if to is None:
        return None
    if isinstance(made, Contract):
        moved = replace(made, out=step.out, to=to[0], channels=to[1].reshape(made.channels.shape))
        return _with_epilogue(editor, moved, linear, order)
    if not linear.is_factor or not isinstance(made, Map | Reduce | Normalize | MatMul):
        return None
    place = to[0].reshape(made.to.shape)
    act, factor = linear.activation, linear.factor
    if isinstance(made, MatMul):
        if act != NONE:
            return None
        return replace(made, out=step.out, to=place, scale=made.scale * factor)
    if made.activation != NONE:
        return None
    if isinstance(made, Reduce) and made.op == "sum":
        return replace(made, out=step.out, to=place, scale=made.scale * factor, activation=act)
    if factor != 1.0:
        if act != NONE:
            return None
        act = Activation("scale", factor)
    return replace(made, out=step.out, to=place, activation=act)


def _with_epilogue(
    editor: Editor, step: Contract, linear: _Linear, order: np.ndarray
) -> Contract | None:
    """A contraction followed by a linear function; `order` is ``[P, groups * M]``."""
    if step.activation != NONE:
        return None
    scale = _by_channel(editor, linear.scale, order)
    shift = _by_channel(editor, linear.shift, order)
    if (linear.scale and not scale) or (linear.shift and not shift):
        return None
    if linear.factor != 1.0:
        ones = Weight(step.channels.size, (), np.ones(step.channels.size))
        scale = scaled(scale or ones, linear.factor)
    result: Contract | None = step
    if scale is not None:
        result = _times(editor, step, scale)
    if result is not None and shift is not None:
        result = _plus(editor, result, scaled(shift, linear.sign))
    if result is not None and linear.residual is not None:
        result = _plus_buffer(editor, result, linear.residual, order)
    return None if result is None else replace(result, activation=linear.activation)


def _by_channel(editor: Editor, operand: Operand | None, order: np.ndarray) -> Weight | None:
    """An operand that is the same at all positions, as a weight with one entry per channel."""
    if operand is None:
        return None
    if operand.kind == "number":
        return Weight(order.shape[1], (), np.full(order.shape[1], operand.value))
    assert operand.at is not None
    entries = operand.at[order]
    if (entries != entries[0]).any():
        return None
    return chosen(editor.weights[operand.id], entries[0])


def _times(editor: Editor, step: Contract, scale: Weight) -> Contract | None:
    """Fixed factors go into the weights, those that move into the scale."""
    if step.residual >= 0:
        return None
    factors = editor.fixed(scale)
    if factors is None:
        if step.scale >= 0 or step.shift >= 0:
            return None
        return replace(step, scale=editor.weight(scale))

    def times(i: int, f: np.ndarray) -> int:
        return -1 if i < 0 else editor.weight(scaled(editor.weights[i], f))

    if step.scale >= 0:
        return replace(step, scale=times(step.scale, factors), shift=times(step.shift, factors))
    (groups, outputs), taps = step.channels.shape, len(step.taps)
    packed = np.repeat(factors, taps)[contract_order(groups, outputs, taps)]
    return replace(step, weight=times(step.weight, packed), bias=times(step.bias, factors))


def _plus(editor: Editor, step: Contract, shift: Weight) -> Contract:
    old = step.bias if step.scale < 0 else step.shift
    total = editor.weight(shift if old < 0 else summed(editor.weights[old], shift))
    return replace(step, bias=total) if step.scale < 0 else replace(step, shift=total)


def _plus_buffer(
    editor: Editor, step: Contract, operand: Operand, order: np.ndarray
) -> Contract | None:
    if step.residual >= 0 or operand.at is None:
        return None
    at = separated(operand.at[order])
    if at is None:
        return None
    channels = at[1].reshape(step.channels.shape)
    return replace(step, residual=operand.id, residual_at=at[0], residual_channels=channels)


def _fold_shared(
    editor: Editor, i: int, step: Map, j: int, linear: _Linear, order: np.ndarray | None
) -> bool:
    """Take fixed factors and shifts into a shared contraction: the `Map` becomes a copy."""
    # the result stays affine in the coordinates: its sets are combined, and that is all
    (writer,) = editor.writers(step.operands[j].id)
    made = editor.at(writer)
    assert order is not None
    if not isinstance(made, Contract) or linear.residual is not None:
        return False
    if step.op == "copy" and linear.factor == 1.0:
        return False
    folded = _with_epilogue(editor, made, replace(linear, activation=NONE), order)
    if folded is None or folded.scale >= 0:
        return False
    editor.replace(writer, folded)
    editor.replace(i, Map("copy", (step.operands[j],), step.out, step.to, linear.activation))
    return True


def delay_activations(editor: Editor) -> bool:
    """Apply rising functions to maxima rather than to everything that these are taken of.

    ``max(relu(x)) = relu(max(x))``: there are fewer of them, and a `Reduce` combines the sets of an
    AFFINE value by itself.

    Args:
        editor: Of the program.

    Returns:
        Whether anything changed.
    """
    changed = False
    for r, pool in enumerate(editor.steps):
        if not isinstance(pool, Reduce) or pool.op not in ("max", "min"):
            continue
        writers = editor.writers(pool.input)
        if len(writers) != 1 or editor.readers(pool.input) != [r] or pool.activation != NONE:
            continue
        step = editor.at(writers[0])
        if not isinstance(step, Map) or step.op != "copy" or not _rises(step.activation):
            continue
        read = step.operands[0]
        affine = read.kind == "buffer" and editor.buffers[read.id].grid is Grid.AFFINE
        if read.at is None or (affine and pool.sources.size > _DELAYED_READS * len(step.to)):
            continue
        where = np.full(editor.buffers[pool.input].elements, -1, np.int32)
        where[step.to] = read.at
        sources = where[pool.sources]
        if read.kind == "buffer" and (sources >= 0).all():
            act = step.activation
            editor.replace(r, replace(pool, input=read.id, sources=table(sources), activation=act))
            editor.replace(writers[0], None)
            changed = True
    return changed


def _rises(act: Activation) -> bool:
    return act.name in _RISING and (act.name != "leaky_relu" or act.a >= 0)
