"""Which elements a step reads and writes, and the same step on other elements.

Every table of a step is seen as an outer sum: elements of a contraction's input are ``at[p] +
group[g] + taps[r]``, those of most other steps a single table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

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
    Normalize,
    Reduce,
    Softmax,
    Step,
    Table,
    Winograd,
    table,
)

_Fields = tuple[tuple[str, tuple[str, ...]], ...]
_READS: dict[type, _Fields] = {
    Contract: (
        ("input", ("at", "group", "taps")),
        ("residual", ("residual_at", "residual_channels")),
    ),
    Reduce: (("input", ("sources",)),),
    Normalize: (("input", ("sources",)),),
    Softmax: (("input", ("sources",)),),
    MatMul: (("x", ("x_at",)), ("y", ("y_at",))),
    LstmCell: (("gates", ("gates_at",)), ("cell", ("cell_at",))),
    GruCell: (("x", ("x_at",)), ("h", ("h_at",)), ("hidden", ("hidden_at",))),
    Embedding: (("index", ("at",)),),
    CrossEntropy: (("input", ("sources",)), ("target", ("target_at",))),
    ElementLoss: (("input", ("at",)), ("target", ("target_at",))),
    Hits: (("input", ("sources",)), ("target", ("target_at",))),
}
_WRITES: dict[type, _Fields] = {
    Contract: (("out", ("to", "channels")),),
    Map: (("out", ("to",)),),
    Reduce: (("out", ("to",)),),
    Normalize: (("out", ("to",)),),
    Softmax: (("out", ("to",)),),
    MatMul: (("out", ("to",)),),
    LstmCell: (("cell_out", ("cell_to",)), ("out", ("to",))),
    GruCell: (("out", ("to",)),),
    Embedding: (("out", ("to",)),),
}
WEIGHTS: dict[type, tuple[str, ...]] = {
    Contract: ("weight", "bias", "scale", "shift"),
    Winograd: ("weight", "bias", "scale", "shift"),
    Normalize: ("gamma", "beta"),
    Embedding: ("weight",),
}
"""Fields that number weights; a `Map` numbers its own in its operands."""


@dataclass(frozen=True, eq=False)
class Access:
    """Elements of one buffer that a step reads or writes.

    Attributes:
        buffer: Its number.
        parts: Tables, flattened; the elements are their outer sum.
    """

    buffer: int
    parts: tuple[Table, ...]

    def elements(self) -> np.ndarray:
        """Element numbers.

        Returns:
            int32, one axis per part.
        """
        return reduce(np.add.outer, self.parts)

    def mark(self, marks: np.ndarray) -> None:
        """Set the marks of these elements.

        Args:
            marks: bool ``[elements of the buffer]``, changed.
        """
        marks[self.elements()] = True


def reads(step: Step) -> tuple[Access, ...]:
    """What a step reads.

    Args:
        step: Any.

    Returns:
        One access per buffer operand.
    """
    if isinstance(step, Map):
        return tuple(
            Access(o.id, (o.at,)) for o in step.operands if o.kind == "buffer" and o.at is not None
        )
    if isinstance(step, Winograd):
        return tuple(_winograd_reads(step))
    return _accesses(step, _READS[type(step)])


def writes(step: Step) -> tuple[Access, ...]:
    """What a step writes.

    Args:
        step: Any.

    Returns:
        One access per output; none for steps that add to a term.
    """
    if isinstance(step, Winograd):
        rows, columns = np.arange(step.height), np.arange(step.width)
        at = step.out_at + np.add.outer(rows * step.out_row, columns)
        channels = np.arange(step.outputs) * step.out_channel
        return (Access(step.out, (table(at.reshape(-1)), table(channels))),)
    return _accesses(step, _WRITES.get(type(step), ()))


def buffers_read(step: Step) -> set[int]:
    """Numbers of the buffers that a step reads.

    Args:
        step: Any.

    Returns:
        Without elements, hence fast.
    """
    if isinstance(step, Map):
        return {o.id for o in step.operands if o.kind == "buffer"}
    if isinstance(step, Winograd):
        return {step.input, step.residual} - {-1}
    return {getattr(step, field) for field, _ in _READS[type(step)]} - {-1}


def buffers_written(step: Step) -> set[int]:
    """Numbers of the buffers that a step writes.

    Args:
        step: Any.

    Returns:
        Without elements, hence fast.
    """
    if isinstance(step, Winograd):
        return {step.out}
    return {getattr(step, field) for field, _ in _WRITES.get(type(step), ())}


def renumbered(step: Step, buffers: dict[int, int], weights: dict[int, int]) -> Step:
    """The same step with other numbers for buffers and weights.

    Args:
        step: Any.
        buffers: Old number to new.
        weights: Old number to new.

    Returns:
        A new step.
    """
    if isinstance(step, Map):
        numbers = {"buffer": buffers, "weight": weights, "number": {-1: -1}}
        operands = tuple(replace(o, id=numbers[o.kind][o.id]) for o in step.operands)
        return replace(step, operands=operands, out=buffers[step.out])
    if isinstance(step, Winograd):
        fields = ["input", "residual", "out"]
    else:
        pairs = _READS[type(step)] + _WRITES.get(type(step), ())
        fields = [field for field, _ in pairs]
    changes = {f: buffers.get(getattr(step, f), -1) for f in fields}
    changes |= {f: weights.get(getattr(step, f), -1) for f in WEIGHTS.get(type(step), ())}
    return replace(step, **changes)  # type: ignore[arg-type]


def with_reads(
    step: Step, old: int, new: int, where: np.ndarray, free: np.ndarray | None = None
) -> Step | None:
    """The same step, reading a value where it lies now.

    Args:
        step: Any but `Winograd`.
        old: Buffer it reads.
        new: Buffer to read instead.
        where: int ``[elements of old]``: element of `new`, or -1 for "any of `free`".
        free: bool ``[elements of new]``: those that hold what unplaced elements of `old` hold.

    Returns:
        A new step; None if its tables cannot say it.
    """
    if isinstance(step, Map):
        operands = []
        for o in step.operands:
            if o.kind == "buffer" and o.id == old and o.at is not None:
                parts = separated(where[o.at], free)
                if parts is None:
                    return None
                o = replace(o, id=new, at=parts[0])
            operands.append(o)
        return replace(step, operands=tuple(operands))
    return _redirected(step, _READS.get(type(step)), old, new, where, free)


def with_writes(step: Step, old: int, new: int, where: np.ndarray) -> Step | None:
    """The same step, writing a value elsewhere.

    Args:
        step: Any but `Winograd`.
        old: Buffer it writes.
        new: Buffer to write instead.
        where: int ``[elements of old]``: element of `new`.

    Returns:
        A new step; None if its tables cannot say it.
    """
    return _redirected(step, _WRITES.get(type(step)), old, new, where, None)


def separated(
    elements: np.ndarray, free: np.ndarray | None = None
) -> tuple[np.ndarray, ...] | None:
    """Tables whose outer sum is given.

    Args:
        elements: One axis per table; -1 where any free element will do.
        free: bool ``[elements of the buffer]``; None if -1 is not allowed.

    Returns:
        One table per axis, or None if there are none.

    Example:
        >>> separated(np.array([[3, 4], [13, 14]]))
        (array([ 3, 13], dtype=int32), array([0, 1], dtype=int32))
    """
    known = elements >= 0
    complete = bool(known.all())
    if not complete and (free is None or not free.any()):
        return None
    if elements.ndim == 1 or elements.size == 0:
        if not complete:
            assert free is not None
            elements = np.where(known, elements, np.argmax(free))
        if elements.ndim == 1:
            return (table(elements),)
        return tuple(np.zeros(n, np.int32) for n in elements.shape)
    return _outer(elements, known, None if complete else free)


def _outer(
    elements: np.ndarray, known: np.ndarray, free: np.ndarray | None
) -> tuple[np.ndarray, ...] | None:
    flat, known = elements.reshape(len(elements), -1), known.reshape(len(elements), -1)
    whole = known.all(1)
    if not whole.any() or not known.any(1).all():
        return None
    row = flat[np.argmax(whole)]
    rest = row - row[0]
    first = np.argmax(known, 1)
    at = np.take_along_axis(flat, first[:, None], 1)[:, 0] - rest[first]
    landing = np.add.outer(at, rest)
    if not (landing[known] == flat[known]).all():
        return None
    if free is not None:
        loose = landing[~known]
        if loose.min() < 0 or loose.max() >= free.size or not free[loose].all():
            return None
    shape = elements.shape[1:]
    if len(shape) == 1:
        return table(at), table(rest)
    # differences to the first entry may be negative: lift them while they are taken apart
    inner = _outer((rest - rest.min()).reshape(shape), np.ones(shape, bool), None)
    if inner is None:
        return None
    return (table(at + rest.min()), *inner)


def _redirected(
    step: Any,
    fields: _Fields | None,
    old: int,
    new: int,
    where: np.ndarray,
    free: np.ndarray | None,
) -> Any:
    if fields is None:
        return None
    for field, names in fields:
        if getattr(step, field) != old:
            continue
        shapes = [getattr(step, name).shape for name in names]
        (access,) = _accesses(step, ((field, names),))
        parts = separated(where[access.elements()], free)
        if parts is None:
            return None
        shaped = {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        step = replace(step, **{field: new}, **shaped)
    return step


def _accesses(step: Any, fields: _Fields) -> tuple[Access, ...]:
    return tuple(
        Access(getattr(step, field), tuple(getattr(step, name).reshape(-1) for name in names))
        for field, names in fields
        if getattr(step, field) >= 0
    )


def _winograd_reads(step: Winograd) -> Iterator[Access]:
    rows, columns = np.arange(step.height), np.arange(step.width)
    with_halo = np.add.outer(np.arange(step.height + 2) * step.input_row, np.arange(step.width + 2))
    inputs = np.arange(step.inputs) * step.input_channel
    yield Access(step.input, (table(step.input_at + with_halo.reshape(-1)), table(inputs)))
    if step.residual >= 0:
        at = step.residual_at + np.add.outer(rows * step.residual_row, columns)
        channels = np.arange(step.outputs) * step.residual_channel
        yield Access(step.residual, (table(at.reshape(-1)), table(channels)))
