"""A program that is being rewritten: who reads and writes each buffer is always known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from landscapex.engine.lowering.accesses import (
    WEIGHTS,
    buffers_read,
    buffers_written,
    reads,
    renumbered,
    separated,
    with_reads,
    with_writes,
    writes,
)
from landscapex.engine.lowering.lanes import Input, Lowered
from landscapex.engine.plan import Slot
from landscapex.engine.program import Program, Term, Weight
from landscapex.engine.steps import Map, Step, Table

OUTSIDE = -1
"""Reads the outputs of a program, as if it were its last step."""


class Editor:
    """The state of one optimisation.

    Every element of a buffer is written at most once, before it is read; rewriting keeps it so.

    Args:
        lowered: What to start from; it stays as it is.
    """

    def __init__(self, lowered: Lowered) -> None:
        program = lowered.program
        self.lowered = lowered
        self.slots: Sequence[Slot] = lowered.slots
        self.buffers = list(program.buffers)
        self.weights = list(program.weights)
        self.steps: list[Step | None] = list(program.steps)
        self.outputs = list(program.outputs)
        self._readers: list[set[int]] = [set() for _ in self.buffers]
        self._writers: list[set[int]] = [set() for _ in self.buffers]
        for i, step in enumerate(program.steps):
            self._note(i, step)
        for buffer, _ in self.outputs:
            self._readers[buffer].add(OUTSIDE)

    def _note(self, i: int, step: Step) -> None:
        for buffer in buffers_read(step):
            self._readers[buffer].add(i)
        for buffer in buffers_written(step):
            self._writers[buffer].add(i)

    def replace(self, i: int, step: Step | None) -> None:
        """Put another step in the place of one, or none.

        Args:
            i: Which.
            step: The new one.
        """
        old = self.steps[i]
        if old is not None:
            for buffer in buffers_read(old):
                self._readers[buffer].discard(i)
            for buffer in buffers_written(old):
                self._writers[buffer].discard(i)
        self.steps[i] = step
        if step is not None:
            self._note(i, step)

    def readers(self, buffer: int) -> list[int]:
        """Positions of the steps that read a buffer, in order; `OUTSIDE` if it is an output."""
        return sorted(self._readers[buffer])

    def writers(self, buffer: int) -> list[int]:
        """Positions of the steps that write a buffer, in order."""
        return sorted(self._writers[buffer])

    def at(self, i: int) -> Step:
        """The step at a position where there is one."""
        step = self.steps[i]
        assert step is not None
        return step

    def written(self, buffer: int) -> np.ndarray:
        """Which elements hold something other than the fill.

        Args:
            buffer: Its number.

        Returns:
            bool ``[elements]``.
        """
        marks = np.zeros(self.buffers[buffer].elements, bool)
        if self.buffers[buffer].kind != "live":
            return ~marks
        for i in self._writers[buffer]:
            for access in writes(self.at(i)):
                if access.buffer == buffer:
                    access.mark(marks)
        return marks

    def read(self, buffer: int) -> np.ndarray:
        """Which elements are read by a step or by whoever wants the outputs.

        Args:
            buffer: Its number.

        Returns:
            bool ``[elements]``.
        """
        marks = np.zeros(self.buffers[buffer].elements, bool)
        for i in self._readers[buffer] - {OUTSIDE}:
            for access in reads(self.at(i)):
                if access.buffer == buffer:
                    access.mark(marks)
        for other, table in self.outputs:
            if other == buffer:
                marks[table] = True
        return marks

    def move(
        self, old: int, new: int, where: np.ndarray, free: np.ndarray, *, but: int, written: bool
    ) -> bool:
        """Let everyone read a value in another buffer, and perhaps write it there.

        Args:
            old: Buffer where it lies.
            new: Buffer where it is to lie.
            where: int ``[elements of old]``: element of `new`, -1 where any of `free` will do.
            free: bool ``[elements of new]``.
            but: Position of the copy that becomes superfluous; it is removed.
            written: Whether those who write it move too.

        Returns:
            Whether all of them can; if not, nothing has changed.
        """
        changed: dict[int, Step] = {}
        outputs = list(self.outputs)
        touched = set(self._readers[old])
        if written:
            touched |= self._writers[old]
        for i in sorted(touched - {but}):
            if i == OUTSIDE:
                moved = [_output(o, old, new, where, free) for o in outputs]
                if any(o is None for o in moved):
                    return False
                outputs = [o for o in moved if o is not None]
                continue
            step = with_reads(self.at(i), old, new, where, free)
            if step is not None and written and i in self._writers[old]:
                step = with_writes(step, old, new, where)
            if step is None:
                return False
            changed[i] = step
        for i, step in changed.items():
            self.replace(i, step)
        self.replace(but, None)
        self.outputs = outputs
        if OUTSIDE in self._readers[old]:
            self._readers[old].discard(OUTSIDE)
            self._readers[new].add(OUTSIDE)
        return True

    # --- weights ----------------------------------------------------------------------------------

    def weight(self, weight: Weight) -> int:
        """A new weight.

        Args:
            weight: What it is.

        Returns:
            Its number.
        """
        self.weights.append(weight)
        return len(self.weights) - 1

    def fixed(self, weight: Weight) -> np.ndarray | None:
        """The numbers of a weight that no direction moves.

        Args:
            weight: Any without `winograd`.

        Returns:
            float64 ``[size]``; None if it moves.
        """
        values = np.zeros(weight.size) if weight.offset is None else weight.offset.copy()
        for term in weight.terms:
            slot = self.slots[term.slot]
            if slot.moves or slot.tensor is None:
                return None
            flat = slot.tensor.detach().reshape(-1).double().cpu().numpy()
            numbers = np.where(term.index >= 0, flat[term.index], 0.0)
            values += numbers if term.scale is None else numbers * term.scale
        return values

    # --- the end ----------------------------------------------------------------------------------

    def prune(self) -> None:
        """Remove steps whose results nobody wants."""
        for i in reversed(range(len(self.steps))):
            step = self.steps[i]
            if step is None:
                continue
            out = buffers_written(step)
            if out and not any(self._readers[b] for b in out):
                self.replace(i, None)

    def result(self) -> Lowered:
        """The program as it is now, without what nothing needs.

        Returns:
            Buffers, weights and inputs are numbered anew, in the old order.
        """
        steps = [s for s in self.steps if s is not None]
        wanted = {b for b, _ in self.outputs}
        weights: set[int] = set()
        for step in steps:
            wanted |= buffers_read(step) | buffers_written(step)
            weights |= _weights(step)
        buffer_of = {old: new for new, old in enumerate(sorted(wanted))}
        weight_of = {old: new for new, old in enumerate(sorted(weights))}
        program = Program(
            buffers=tuple(self.buffers[b] for b in buffer_of),
            weights=tuple(self.weights[w] for w in weight_of),
            steps=tuple(renumbered(s, buffer_of, weight_of) for s in steps),
            terms=self.lowered.program.terms,
            outputs=tuple((buffer_of[b], t) for b, t in self.outputs),
        )
        inputs = tuple(self._inputs(buffer_of))
        return replace(self.lowered, program=program, inputs=inputs)

    def _inputs(self, buffer_of: dict[int, int]) -> list[Input]:
        kept = [i for i in self.lowered.inputs if i.buffer in buffer_of]
        return [replace(i, buffer=buffer_of[i.buffer]) for i in kept]


def _output(
    output: tuple[int, Table], old: int, new: int, where: np.ndarray, free: np.ndarray
) -> tuple[int, Table] | None:
    buffer, table = output
    if buffer != old:
        return output
    parts = separated(where[table.reshape(-1)], free)
    return None if parts is None else (new, parts[0].reshape(table.shape))


def _weights(step: Step) -> set[int]:
    if isinstance(step, Map):
        return {o.id for o in step.operands if o.kind == "weight"}
    return {getattr(step, f) for f in WEIGHTS.get(type(step), ())} - {-1}


def chosen(weight: Weight, entries: np.ndarray) -> Weight:
    """Some entries of a weight, in any order.

    Args:
        weight: Without `winograd`.
        entries: Which.

    Returns:
        A weight of their number.
    """
    terms = (
        Term(t.slot, t.index[entries], None if t.scale is None else t.scale[entries])
        for t in weight.terms
    )
    offset = None if weight.offset is None else weight.offset[entries]
    return Weight(len(entries), tuple(terms), offset)


def scaled(weight: Weight, factors: np.ndarray | float) -> Weight:
    """A weight times fixed factors.

    Args:
        weight: Without `winograd`.
        factors: float64, one for each entry or one for all.

    Returns:
        A weight of the same size.
    """
    factors = np.broadcast_to(np.asarray(factors, np.float64), (weight.size,))
    terms = (
        Term(t.slot, t.index, factors.copy() if t.scale is None else t.scale * factors)
        for t in weight.terms
    )
    offset = None if weight.offset is None else weight.offset * factors
    return Weight(weight.size, tuple(terms), offset)


def summed(first: Weight, second: Weight) -> Weight:
    """The sum of two weights of the same size.

    Args:
        first: Without `winograd`.
        second: Likewise.

    Returns:
        A weight with the terms of both.
    """
    offsets = [w.offset for w in (first, second) if w.offset is not None]
    offset = None if not offsets else np.sum(offsets, axis=0)
    return Weight(first.size, first.terms + second.terms, offset)
