"""What the values of a graph are during lowering, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from landscapex.engine.plan import Slot
from landscapex.engine.program import Grid, Program
from landscapex.engine.steps import Table, table


@dataclass(frozen=True, eq=False)
class Lanes:
    """A live value, or one that comes with the batch.

    Attributes:
        buffer: Where it lies.
        index: int64 element numbers, in the shape of the value at batch size 1; -1 for `fill`.
        grid: As of the buffer.
        fill: What -1 stands for.
    """

    buffer: int
    index: Tensor
    grid: Grid
    fill: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """At batch size 1."""
        return tuple(self.index.shape)


@dataclass(frozen=True, eq=False)
class Entries:
    """A value without data that depends on the grid: entries of a slot.

    Attributes:
        slot: Position among the slots of the lowering.
        index: int64, entries of the flattened slot, in the shape of the value.
    """

    slot: int
    index: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the value."""
        return tuple(self.index.shape)


class Several:
    """What an operator without data computes, if that is several tensors: see the getitem nodes."""


@dataclass(frozen=True)
class FromBatch:
    """A value that depends on the batch only: torch computes it once per batch."""

    node: str


@dataclass(frozen=True)
class Denominator:
    """What a sum over a batch is divided by to become its mean.

    Attributes:
        per_sample: Entries per sample; the divisor is this times the number of samples.
        labels: Node of labels; then the divisor is the sum of the weights of those that count.
        ignore_index: Label that does not count.
        class_weight: Weights by label, or None.
    """

    per_sample: int = 1
    labels: str | None = None
    ignore_index: int = -100
    class_weight: Tensor | None = None


@dataclass(frozen=True)
class Part:
    """``coefficient * sums[term] / denominator`` (the sum itself if the denominator is None)."""

    coefficient: float
    term: int
    denominator: Denominator | None


@dataclass(frozen=True)
class Scalar:
    """A number per batch: a linear combination of means, plus a constant."""

    parts: tuple[Part, ...]
    constant: float = 0.0

    def times(self, factor: float) -> Scalar:
        """This number times a factor."""
        parts = (Part(p.coefficient * factor, p.term, p.denominator) for p in self.parts)
        return Scalar(tuple(parts), self.constant * factor)

    def plus(self, other: Scalar | float) -> Scalar:
        """The sum of two numbers."""
        if isinstance(other, Scalar):
            return Scalar(self.parts + other.parts, self.constant + other.constant)
        return Scalar(self.parts, self.constant + other)


@dataclass(frozen=True)
class Input:
    """What torch computes once per batch and the engine packs into lanes.

    Attributes:
        buffer: Its number.
        node: Of the graph.
        kind: ``"input"`` (float32) or ``"index"`` (int32).
        at: For each element of the buffer the entry that lies there, of the value of one sample
            flattened; -1 for the buffer's fill. None: the entries in order.
    """

    buffer: int
    node: str
    kind: str
    at: Table | None = None


@dataclass(frozen=True)
class Lowered:
    """A program and what it needs from outside.

    Attributes:
        program: To be run.
        inputs: From the batch.
        slots: Of the plan, then constants and derived ones.
        derived: Position of a slot to the node that computes it, once per point.
        loss: How sums become the mean loss of a batch.
        metrics: Name to the term that counts its hits.
    """

    program: Program
    inputs: tuple[Input, ...]
    slots: tuple[Slot, ...]
    derived: dict[int, str]
    loss: Scalar
    metrics: dict[str, int]


def flat(index: Tensor) -> Table:
    """A table of all entries, in order.

    Args:
        index: Element numbers.

    Returns:
        int32 ``[n]``.
    """
    return table(index.reshape(-1).numpy())
