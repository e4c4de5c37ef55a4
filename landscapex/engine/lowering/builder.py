"""A grid program in the making: its buffers, weights and steps, and the values that lie in them.

Every live value is a table of element numbers: where each entry of its tensor lies in a buffer, for
one sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from landscapex.engine.lowering.lanes import Entries, FromBatch, Input, Lanes, flat
from landscapex.engine.lowering.samples import outer_rows
from landscapex.engine.plan import NotCapturedError, Plan, Slot, Value
from landscapex.engine.program import Buffer, Grid, Term, Weight
from landscapex.engine.steps import NONE, Activation, Map, Operand, Step, table


class Builder:
    """What handlers of operators write a program with.

    Args:
        plan: What was captured.

    Raises:
        NotCapturedError: If an operator on live values works along the axis of samples.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.slots: list[Slot] = list(plan.slots)
        self.buffers: list[Buffer] = []
        self.weights: list[Weight] = []
        self.steps: list[Step] = []
        self.inputs: list[Input] = []
        self.terms = 0
        self._outer = outer_rows(plan)
        self._input_of: dict[tuple[str, str], Lanes] = {}

    def shape(self, node: Any) -> tuple[int, ...]:
        """The shape of a node's value at batch size 1.

        Args:
            node: Of the graph.

        Returns:
            Sizes.
        """
        return self.shape_of(self._value_of(node))

    @staticmethod
    def shape_of(value: Value) -> tuple[int, ...]:
        """The shape of a value at batch size 1.

        Args:
            value: Of the plan.

        Returns:
            Sizes.
        """
        rows = iter(value.rows)
        return tuple(next(rows) if size is None else size for size in value.shape)

    def batch_axes(self, node: Any) -> tuple[int, ...]:
        """Axes along which the samples of a batch lie.

        Args:
            node: Of the graph.

        Returns:
            At most one axis.
        """
        return tuple(i for i, size in enumerate(self._value_of(node).shape) if size is None)

    def _value_of(self, node: fx.Node) -> Value:
        values = self.plan.values
        return values[node.name] if node.name in values else values[f"{node.name}.0"]

    def new(self, shape: Sequence[int], grid: Grid = Grid.FULL, name: str = "") -> Lanes:
        """A new buffer, filled in order by a value of this shape.

        Args:
            shape: At batch size 1.
            grid: FULL or AFFINE.
            name: For people.

        Returns:
            The value to be.
        """
        n = math.prod(shape)
        self.buffers.append(Buffer(n, grid, name=name))
        return Lanes(len(self.buffers) - 1, torch.arange(n).view(tuple(shape)), grid)

    def emit(self, step: Step) -> None:
        """Add a step."""
        self.steps.append(step)

    def term(self) -> int:
        """A new sum for loss steps to add to."""
        self.terms += 1
        return self.terms - 1

    def weight(self, size: int, *terms: Term, offset: np.ndarray | None = None) -> int:
        """A new weight.

        Args:
            size: Entries.
            terms: What it is made of.
            offset: float64, added at the centre.

        Returns:
            Its number.
        """
        self.weights.append(Weight(size, terms, offset))
        return len(self.weights) - 1

    def map(self, op: str, node: fx.Node, *operands: Any, activation: Activation = NONE) -> Lanes:
        """Add an elementwise step whose operands are broadcast to the shape of a node.

        Args:
            op: One of `steps.MAP_OPS`.
            node: Whose value it computes.
            operands: As of `elementwise`.
            activation: Applied last.

        Returns:
            The value.
        """
        shape = self.shape(node)
        return self.elementwise(op, shape, *operands, name=node.name, activation=activation)

    def elementwise(
        self,
        op: str,
        shape: Sequence[int],
        *operands: Any,
        name: str = "",
        activation: Activation = NONE,
    ) -> Lanes:
        """Add an elementwise step whose operands are broadcast to a shape.

        Args:
            op: One of `steps.MAP_OPS`.
            shape: Of the result, at batch size 1.
            operands: `Lanes`, `FromBatch`, `Entries`, Tensors, numbers or ready operands.
            name: For people.
            activation: Applied last.

        Returns:
            The value.
        """
        read = tuple(x if isinstance(x, Operand) else self.operand(x, shape) for x in operands)
        out = self.new(shape, name=name)
        self.emit(Map(op, read, out.buffer, table(out.index.reshape(-1).numpy()), activation))
        return out

    def copy(self, x: Lanes | Entries | Tensor, buffer: int, to: Tensor) -> None:
        """Copy a value into elements of a buffer.

        Args:
            x: Live or not.
            buffer: Number of the buffer.
            to: Element for each entry.
        """
        self.emit(Map("copy", (self.operand(x, tuple(x.shape)),), buffer, flat(to)))

    def live(self, x: Any) -> Lanes:
        """A value as float32 lanes, perhaps with -1 in its index.

        Args:
            x: `Lanes`, `FromBatch`, or what is the same for all samples: `Entries` or a Tensor.

        Returns:
            The value.

        Raises:
            NotCapturedError: If it is something else.
        """
        if isinstance(x, FromBatch):
            return self._input(x.node, "input")
        if isinstance(x, Entries | Tensor):  # queries that are parameters, for example
            return self.elementwise("copy", x.shape, x)
        if not isinstance(x, Lanes):
            raise NotCapturedError(f"a live value is expected, got {type(x).__name__}")
        return x

    def lanes(self, x: Any) -> Lanes:
        """A value as float32 lanes, AFFINE or not.

        Args:
            x: As of `live`.

        Returns:
            Dense (without -1).
        """
        return self.dense(self.live(x))

    def full(self, x: Any) -> Lanes:
        """Like `lanes`, and FULL or NONE: the sets of an AFFINE value are combined.

        Args:
            x: As of `live`.

        Returns:
            Dense.
        """
        x = self.live(x)
        if x.grid is not Grid.AFFINE:
            return self.dense(x)
        return self._materialised(x, Grid.FULL)

    def index(self, x: Any) -> Lanes:
        """A batch value as int32 lanes: labels, tokens.

        Args:
            x: `FromBatch`.

        Returns:
            On an index buffer.

        Raises:
            NotCapturedError: If it is not known before the run.
        """
        if not isinstance(x, FromBatch):
            raise NotCapturedError("indices that depend on the parameters")
        return self._input(x.node, "index")

    def dense(self, x: Lanes) -> Lanes:
        """The same value without -1: copied into a buffer that holds the fill elsewhere.

        Args:
            x: A value.

        Returns:
            Itself if there are none.
        """
        if not bool((x.index < 0).any()):
            return x
        return self._materialised(x, Grid.AFFINE if x.grid is Grid.AFFINE else Grid.FULL)

    def contiguous(self, x: Lanes) -> Lanes:
        """The same value, copied into a buffer in the order of its entries.

        Args:
            x: A value.

        Returns:
            Dense.
        """
        return self._materialised(x, x.grid)

    @staticmethod
    def moved(x: Lanes, index: Tensor) -> Lanes:
        """The same buffer, read in another order.

        Args:
            x: A value.
            index: Element numbers of its buffer.

        Returns:
            The value there.
        """
        return Lanes(x.buffer, index, x.grid, x.fill)

    def _materialised(self, x: Lanes, grid: Grid) -> Lanes:
        if x.grid is Grid.NONE:
            return self._repacked(x)
        out = self.new(x.shape, grid)
        self.buffers[-1] = Buffer(out.index.numel(), grid, fill=x.fill, name="copy")
        there = x.index >= 0
        source = Lanes(x.buffer, x.index[there], x.grid)
        self.copy(source, out.buffer, out.index[there])
        return out

    def _repacked(self, x: Lanes) -> Lanes:
        """Entries of an input as an input of their own: torch arranges them, once per batch."""
        source = next(i for i in self.inputs if i.buffer == x.buffer)
        at = x.index.reshape(-1)
        if source.at is not None:
            at = torch.where(at < 0, -1, torch.from_numpy(source.at).long()[at.clamp(min=0)])
        out = self.new(x.shape, Grid.NONE, source.node)
        self.buffers[-1] = Buffer(at.numel(), Grid.NONE, source.kind, x.fill, source.node)
        self.inputs.append(Input(out.buffer, source.node, source.kind, flat(at)))
        return out

    def _input(self, node: str, kind: str) -> Lanes:
        known = self._input_of.get((node, kind))
        if known is None:
            value = self.plan.values[node]
            shape = self.shape_of(value)
            if None not in value.shape:
                raise NotCapturedError(f"{node} has no axis of samples")
            if self._outer.get(node, 1) != 1:
                raise NotCapturedError(f"the samples of {node} do not lie one behind the other")
            n = math.prod(shape)
            self.buffers.append(Buffer(n, Grid.NONE, kind, name=node))
            known = Lanes(len(self.buffers) - 1, torch.arange(n).view(shape), Grid.NONE)
            self.inputs.append(Input(known.buffer, node, kind))
            self._input_of[node, kind] = known
        return known

    def operand(self, x: Any, shape: Sequence[int]) -> Operand:
        """What a `Map` reads for a value broadcast to a shape.

        Args:
            x: `Lanes`, `FromBatch`, `Entries`, Tensor or number.
            shape: Of the output at batch size 1.

        Returns:
            The operand.
        """
        if isinstance(x, int | float | bool):
            return Operand("number", value=float(x))
        if isinstance(x, Tensor) and x.numel() == 1:
            return Operand("number", value=float(x))
        if isinstance(x, Tensor | Entries):
            index = x.index if isinstance(x, Entries) else torch.arange(x.numel()).view(x.shape)
            size = math.prod(x.shape)
            local = torch.arange(size).view(x.shape).expand(tuple(shape))
            term = self._entries(x, index.reshape(-1))
            return Operand("weight", self.weight(size, term), table(local.reshape(-1).numpy()))
        x = self.lanes(x)
        at = table(x.index.expand(tuple(shape)).reshape(-1).numpy())
        return Operand("buffer", x.buffer, at)

    def term_of(self, x: Entries | Tensor, scale: np.ndarray | None = None) -> Term:
        """All entries of a value without data, in order, as a term of a weight.

        Args:
            x: Entries of a slot, or a constant.
            scale: float64 factors, or None.

        Returns:
            The term.
        """
        index = x.index if isinstance(x, Entries) else torch.arange(x.numel())
        return self._entries(x, index.reshape(-1), scale)

    def entries(self, x: Any) -> Entries:
        """A value without data; constants get a slot.

        Args:
            x: `Entries` or a Tensor.

        Returns:
            Its entries.

        Raises:
            NotCapturedError: If it depends on the data.
        """
        if isinstance(x, Tensor):
            return Entries(self._constant(x), torch.arange(x.numel()).view(x.shape))
        if not isinstance(x, Entries):
            raise NotCapturedError("a weight that depends on the data")
        return x

    def _entries(self, x: Entries | Tensor, index: Tensor, scale: np.ndarray | None = None) -> Term:
        slot = x.slot if isinstance(x, Entries) else self._constant(x)
        return Term(slot, index.numpy().astype(np.int64), scale)

    def _constant(self, tensor: Tensor) -> int:
        """The slot of a constant tensor; parameters that do not move have one already."""
        for position, slot in enumerate(self.slots):
            if slot.tensor is not None and not slot.moves and _same_memory(slot.tensor, tensor):
                return position
        tensor = tensor.detach().contiguous()
        self.slots.append(
            Slot("constant", (), "constant", tuple(tensor.shape), tensor.dtype, False, tensor)
        )
        return len(self.slots) - 1


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return (
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.numel() > 0
        and a.dtype == b.dtype
    )
