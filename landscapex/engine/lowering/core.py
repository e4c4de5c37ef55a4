"""From a plan to a grid program: the graph is walked once, at batch size 1.

Every live value is a table of element numbers: where each entry of its tensor lies in a buffer, for
one sample. Operators that only move data are run by torch itself on that table, and cost nothing.
Operators that compute add a step; `handles` registers how.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from landscapex.engine.lowering.lanes import (
    Denominator,
    Entries,
    FromBatch,
    Input,
    Lanes,
    Lowered,
    Part,
    Scalar,
    Several,
)
from landscapex.engine.lowering.samples import outer_rows
from landscapex.engine.plan import NotCapturedError, Plan, Slot, Value
from landscapex.engine.sharing import operator_name
from landscapex.engine.steps import (
    NONE,
    Activation,
    Buffer,
    Grid,
    Map,
    Operand,
    Step,
    Table,
    Term,
    Weight,
    table,
)

__all__ = [
    "Denominator", "Entries", "FromBatch", "Input", "Lanes", "Lowered", "Lowering", "Part",
    "Scalar", "flat", "handles",
]  # fmt: skip

Handler = Callable[..., Any]
_HANDLERS: dict[str, Handler] = {}
_ON_WEIGHTS: set[str] = set()


def handles(*names: str, weights: bool = False) -> Callable[[Handler], Handler]:
    """Register a function ``f(lowering, node, *arguments)`` for operators on live values.

    Args:
        names: As `operator_name` writes them.
        weights: Whether it is also for `Entries`; torch computes others once per grid point.

    Returns:
        The decorator. Arguments come in the order of the operator's schema, defaults filled in;
        tensors as `Lanes` (live), `FromBatch`, `Entries` or Tensor (constants).
    """

    def register(handler: Handler) -> Handler:
        for name in names:
            _HANDLERS[name] = handler
            if weights:
                _ON_WEIGHTS.add(name)
        return handler

    return register


SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)


class Lowering:
    """The state of one walk over a graph.

    Args:
        plan: What was captured.
        share: Whether products that do not depend on the point may be shared among points.
    """

    def __init__(self, plan: Plan, *, share: bool = True) -> None:
        self.plan, self.share = plan, share
        self.slots: list[Slot] = list(plan.slots)
        self.derived: dict[int, str] = {}
        self.buffers: list[Buffer] = []
        self.weights: list[Weight] = []
        self.steps: list[Step] = []
        self.inputs: list[Input] = []
        self.terms = 0
        self._values: dict[fx.Node, Any] = {}
        self._outer: dict[str, int] = {}
        self._input_of: dict[tuple[str, str], Lanes] = {}
        self._slot_of_constant: dict[int, int] = {}

    # --- the walk ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Lower every node.

        Raises:
            NotCapturedError: If an operator on live values is not known.
        """
        self._outer = outer_rows(self.plan)
        for node in self.plan.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = self._placeholder(node)
            elif node.op == "call_function":
                self._values[node] = self._call(node)

    def value(self, node: fx.Node) -> Any:
        """What was made of a node.

        Args:
            node: Before the current one.

        Returns:
            `Lanes`, `FromBatch`, `Entries`, a Tensor, a number, a `Scalar`, or a tuple of these.
        """
        return self._values[node]

    def output(self, name: str) -> Any:
        """What was made of the node of this name.

        Args:
            name: Of a node, perhaps one of ``plan.outputs``.

        Returns:
            As `value`.
        """
        return next(v for n, v in self._values.items() if n.name == name)

    def _placeholder(self, node: fx.Node) -> Any:
        position = self.plan.slot_of.get(node.name)
        if position is None:
            return FromBatch(node.name)
        slot = self.slots[position]
        if slot.moves:
            return Entries(position, torch.arange(math.prod(slot.shape)).view(slot.shape))
        assert slot.tensor is not None
        return slot.tensor.detach()

    def _call(self, node: fx.Node) -> Any:
        name, meta = operator_name(node), node.meta.get("val")
        if name == "sym_size.int":
            return self._size(*node.args)
        if name == "_assert_tensor_metadata":
            return None
        args: Any
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.value)
        if meta is not None and isinstance(meta, SYMBOLIC):
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.target is operator.getitem and not isinstance(args[0], FromBatch | Several):
            return args[0][args[1]]
        kind = self._value_of(node).kind
        if kind == "constant":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if kind == "batch":
            return FromBatch(node.name)
        if kind == "weight" and name not in _ON_WEIGHTS:
            return self.derive(node)
        if not _depends(args) and not _depends(kwargs):
            return node.target(*args, **kwargs)  # type: ignore[operator]
        handler = _HANDLERS.get(name)
        if handler is None:
            raise NotCapturedError(f"the operator {name} has no kernel")
        result = handler(self, node, *self._arguments(node, args, kwargs))
        if isinstance(result, Lanes) and not self.batch_axes(node):
            raise NotCapturedError(f"{name} mixes samples: its result has no axis of samples")
        return result

    def _size(self, node: Any, axis: Any) -> int:
        return self.shape(node)[axis]

    def _value_of(self, node: fx.Node) -> Value:
        values = self.plan.values
        return values[node.name] if node.name in values else values[f"{node.name}.0"]

    @staticmethod
    def _arguments(node: fx.Node, args: Any, kwargs: Any) -> list[Any]:
        """In the order of the schema, defaults filled in."""
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        given = list(args)
        for argument in schema[len(given) :]:
            given.append(kwargs.get(argument.name, argument.default_value))
        return given

    def derive(self, node: fx.Node) -> Entries | Several:
        """A value without data that torch computes once per grid point.

        Args:
            node: Of the graph.

        Returns:
            Entries of a slot of its own.
        """
        value = self.plan.values.get(node.name)
        if value is None:
            return Several()
        shape = self.shape_of(value)
        self.slots.append(Slot(node.name, (), "derived", shape, value.dtype, True, None))
        self.derived[len(self.slots) - 1] = node.name
        return Entries(len(self.slots) - 1, torch.arange(math.prod(shape)).view(shape))

    # --- for handlers -----------------------------------------------------------------------------

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
            flat = self._entries(x, index.reshape(-1))
            return Operand("weight", self.weight(size, flat), table(local.reshape(-1).numpy()))
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

    def contiguous(self, x: Lanes) -> Lanes:
        """The same value, copied into a buffer in the order of its entries.

        Args:
            x: A value.

        Returns:
            Dense.
        """
        return self._materialised(x, x.grid)

    def _entries(self, x: Entries | Tensor, index: Tensor, scale: np.ndarray | None = None) -> Term:
        slot = x.slot if isinstance(x, Entries) else self._constant(x)
        return Term(slot, index.numpy().astype(np.int64), scale)

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

    def copy(self, x: Lanes | Entries | Tensor, buffer: int, to: Tensor) -> None:
        """Copy a value into elements of a buffer.

        Args:
            x: Live or not.
            buffer: Number of the buffer.
            to: Element for each entry.
        """
        self.emit(Map("copy", (self.operand(x, tuple(x.shape)),), buffer, flat(to)))


def _depends(arguments: Any) -> bool:
    """Whether there is a value among them that depends on the batch or the point."""
    if isinstance(arguments, list | tuple):
        return any(_depends(a) for a in arguments)
    if isinstance(arguments, dict):
        return any(_depends(a) for a in arguments.values())
    return isinstance(arguments, Lanes | FromBatch | Entries | Scalar)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return (
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.numel() > 0
        and a.dtype == b.dtype
    )


def flat(index: Tensor) -> Table:
    """A table of all entries, in order.

    Args:
        index: Element numbers.

    Returns:
        int32 ``[n]``.
    """
    return table(index.reshape(-1).numpy())
