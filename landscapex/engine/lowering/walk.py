"""The walk over a graph: every node becomes a value, at batch size 1.

Operators that only move data are run by torch itself on tables of element numbers, and cost
nothing. Operators that compute add a step; `registry` knows how.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx

from landscapex.engine.lowering.builder import Builder
from landscapex.engine.lowering.lanes import Entries, FromBatch, Lanes, Scalar, Several
from landscapex.engine.lowering.registry import handler_of, lowers_weights
from landscapex.engine.plan import NotCapturedError, Plan, Slot
from landscapex.engine.sharing import operator_name

SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)


class Lowering(Builder):
    """The state of one walk over a graph.

    Args:
        plan: What was captured.
        share: Whether products that do not depend on the point may be shared among points.

    Raises:
        NotCapturedError: If an operator on live values works along the axis of samples.
    """

    def __init__(self, plan: Plan, *, share: bool = True) -> None:
        super().__init__(plan)
        self.share = share
        self.derived: dict[int, str] = {}
        self._values: dict[fx.Node, Any] = {}

    def run(self) -> None:
        """Lower every node.

        Raises:
            NotCapturedError: If an operator on live values is not known.
        """
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
        if kind == "weight" and not lowers_weights(name):
            return self.derive(node)
        if not _depends(args) and not _depends(kwargs):
            return node.target(*args, **kwargs)  # type: ignore[operator]
        handler = handler_of(name)
        if handler is None:
            raise NotCapturedError(f"the operator {name} has no kernel")
        result = handler(self, node, *self._arguments(node, args, kwargs))
        if isinstance(result, Lanes) and not self.batch_axes(node):
            raise NotCapturedError(f"{name} mixes samples: its result has no axis of samples")
        return result

    def _size(self, node: Any, axis: Any) -> int:
        return self.shape(node)[axis]

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


def _depends(arguments: Any) -> bool:
    """Whether there is a value among them that depends on the batch or the point."""
    if isinstance(arguments, list | tuple):
        return any(_depends(a) for a in arguments)
    if isinstance(arguments, dict):
        return any(_depends(a) for a in arguments.values())
    return isinstance(arguments, Lanes | FromBatch | Entries | Scalar)
