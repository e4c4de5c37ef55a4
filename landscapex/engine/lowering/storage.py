"""Buffers that are never needed at the same time lie in the same memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from landscapex.engine.lowering.accesses import reads, writes
from landscapex.engine.program import Grid, Program


@dataclass
class _Life:
    """When a buffer is needed, and which of its elements are.

    Attributes:
        first: Step that writes it first.
        last: Step that reads or writes it last.
        written: bool ``[elements]``.
        halo: Whether elements are read that no step writes.
    """

    first: int
    last: int
    written: np.ndarray
    halo: bool = False


@dataclass
class _Memory:
    """One storage: what lies in it, and from when to when."""

    number: int
    key: tuple[int, float, bytes] | None
    spans: list[tuple[int, int]] = field(default_factory=list)

    def is_free(self, first: int, last: int) -> bool:
        return all(last < a or b < first for a, b in self.spans)


def assign_storage(program: Program) -> Program:
    """Say which memory each buffer lies in.

    A buffer is needed from the first step that writes it to the last that reads it; a step never
    writes to memory that it reads as another buffer. Inputs, AFFINE buffers and outputs have their
    own. Elements that are read and never written (halos) must keep their fill: such buffers share
    memory only with those of the same elements, fill and written elements.

    Args:
        program: With `storage` or without.

    Returns:
        With `storage`.
    """
    lives = _lives(program)
    memories: list[_Memory] = []
    storage = [-1] * len(program.buffers)
    shared = [i for i, life in enumerate(lives) if life is not None]
    shared.sort(key=lambda i: (-program.buffers[i].elements, i))
    for i in shared:
        life, buffer = lives[i], program.buffers[i]
        assert life is not None
        key = None
        if life.halo:
            key = (buffer.elements, buffer.fill, life.written.tobytes())
        memory = _place(memories, key, life)
        memory.spans.append((life.first, life.last))
        storage[i] = memory.number
    number = len(memories)
    for i, taken in enumerate(storage):
        if taken < 0:
            storage[i], number = number, number + 1
    return replace(program, storage=tuple(storage))


def _place(memories: list[_Memory], key: tuple[int, float, bytes] | None, life: _Life) -> _Memory:
    """A memory that is free while a buffer is needed; a new one if there is none."""
    for memory in memories:
        if memory.key == key and memory.is_free(life.first, life.last):
            return memory
    memories.append(_Memory(len(memories), key))
    return memories[-1]


def _lives(program: Program) -> list[_Life | None]:
    """Of each buffer that may share its memory; None for all others."""
    own = {b for b, _ in program.outputs}
    lives: list[_Life | None] = [
        _Life(len(program.steps), -1, np.zeros(b.elements, bool))
        if b.kind == "live" and b.grid is Grid.FULL and i not in own
        else None
        for i, b in enumerate(program.buffers)
    ]
    for i, step in enumerate(program.steps):
        for access in writes(step):
            life = lives[access.buffer]
            if life is not None:
                access.mark(life.written)
                life.first, life.last = min(life.first, i), max(life.last, i)
    for i, step in enumerate(program.steps):
        for access in reads(step):
            life = lives[access.buffer]
            if life is not None:
                life.first, life.last = min(life.first, i), max(life.last, i)
                life.halo |= not life.written[access.elements()].all()
    return lives
