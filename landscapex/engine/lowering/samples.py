"""Where the samples of a batch lie in the values of a graph, and that no operator mixes them.

The lowering looks at one sample. That is right for all batches if every live value has one axis of
samples (perhaps merged with others, as in ``[batch * time, width]``) and no operator works along
it. The capture has found the axes by their sizes; here the order of merged axes is followed.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from torch import fx

from landscapex.engine.plan import NotCapturedError, Plan, Value
from landscapex.engine.sharing import operator_name

_VIEWS = {"view", "_unsafe_view", "reshape", "flatten.using_ints", "unflatten.int", "unsqueeze",
          "squeeze", "squeeze.dim", "squeeze.dims", "view_as", "reshape_as"}  # fmt: skip
# Which argument says along which axis these work.
_ALONG = {
    "select.int": 1, "slice.Tensor": 1, "flip": 1, "roll": 2, "split.Tensor": 2, "chunk": 2,
    "split_with_sizes": 2, "unbind.int": 1, "narrow": 1, "index_select": 1, "unfold": 1, "cat": 1,
    "softmax.int": 1, "_softmax": 1, "log_softmax.int": 1, "_log_softmax": 1, "cumsum": 1,
    "max.dim": 1, "min.dim": 1, "glu": 1,
}  # fmt: skip


def outer_rows(plan: Plan) -> dict[str, int]:
    """Follow the axis of samples through a graph.

    Args:
        plan: What was captured.

    Returns:
        By node, for values whose axis of samples is merged: how many of its entries lie in front of
        the batch: 1 in ``[batch * time]``, ``time`` in ``[time * batch]``; 0 where that is unknown
        (values that torch computes once per batch may do what they like).

    Raises:
        NotCapturedError: If an operator on live values works along the axis of samples.
    """
    outer: dict[str, int] = {}
    for node in plan.graph.nodes:
        value = _value(plan, node)
        if value is None or not value.rows:
            continue
        try:
            outer[node.name] = _outer(plan, node, value, outer)
        except NotCapturedError:
            if value.kind == "live":
                raise
            outer[node.name] = 0
    return outer


def _value(plan: Plan, node: Any) -> Value | None:
    if not isinstance(node, fx.Node):
        return None
    return plan.values.get(node.name) or plan.values.get(f"{node.name}.0")


def _outer(plan: Plan, node: fx.Node, value: Value, outer: dict[str, int]) -> int:
    """How many rows lie in front of the batch in the axis of samples of a node."""
    sources = [n for n in node.all_input_nodes if (v := _value(plan, n)) and v.rows]
    if node.op != "call_function" or not sources:
        return 1
    name, source = operator_name(node), sources[0]
    if node.target is operator.getitem:
        return outer[source.name]
    found = {outer[n.name] for n in sources}
    if len(found) > 1:
        raise NotCapturedError(f"{name} mixes samples: they are in different orders")
    _check_axis(plan, node, name, value)
    before = _value(plan, source)
    assert before is not None
    if name in _VIEWS:
        return _viewed(name, before, value, found.pop())
    if before.rows != value.rows and (found != {1} or name == "repeat"):
        raise NotCapturedError(f"{name} mixes samples: it changes their order")
    return found.pop()


def _viewed(name: str, before: Value, after: Value, outer: int) -> int:
    """A view keeps how many entries lie in front of the batch, all axes counted."""
    in_front = outer * _in_front(before)
    outer, rest = divmod(in_front, _in_front(after))
    if rest or not outer or after.rows[0] % outer:
        raise NotCapturedError(f"{name} mixes samples: their axis is cut")
    return outer


def _in_front(value: Value) -> int:
    sizes = value.shape[: value.shape.index(None)]
    return math.prod(size for size in sizes if size is not None)


def _check_axis(plan: Plan, node: fx.Node, name: str, value: Value) -> None:
    """Operators with an axis must not be given that of the samples."""
    position = _ALONG.get(name)
    if position is None:
        return
    first = node.args[0][0] if name == "cat" else node.args[0]  # type: ignore[index]
    source = _value(plan, first)
    if source is None or not source.rows:
        return
    given: Any = node.args[position] if len(node.args) > position else _default(node, position)
    if name == "slice.Tensor" and _is_whole(node):
        return
    axes = given if isinstance(given, list | tuple) else [given]
    mine = source.shape.index(None)
    if not axes or mine in [a % len(source.shape) for a in axes if isinstance(a, int)]:
        raise NotCapturedError(f"{name} mixes samples: it works along their axis")


def _default(node: fx.Node, position: int) -> Any:
    return node.target._schema.arguments[position].default_value  # type: ignore[union-attr]


def _is_whole(node: fx.Node) -> bool:
    start, end, step = (node.args[i] if len(node.args) > i else None for i in (2, 3, 4))
    endless = end is None or (isinstance(end, int) and end >= 2**62)
    return start in (0, None) and endless and step in (1, None)
