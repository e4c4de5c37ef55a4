"""How the values of a captured graph depend on the batch and on the grid.

A value that is the same at all grid points (NONE), or affine in the coordinates (AFFINE), is
computed once for all of them instead of once for each. `RULES` says which operators keep a value
affine; everything that it does not name makes one value per point (FULL) of an input that moves.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from landscapex.engine.plan import NotCapturedError, Value
from landscapex.engine.program import Grid

# What live values may be; whatever else only depends on the batch is torch's to compute.
_DTYPES = (
    torch.float32, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_READS_VALUES = ("item", "_local_scalar_dense", "_assert_async", "_assert_async.msg")


@dataclass(frozen=True)
class Rule:
    """When an operator keeps what it computes affine; all its other arguments must not move.

    Attributes:
        factors: Arguments of which one may be AFFINE: the result is linear in each of them.
        addends: Arguments that may all be AFFINE besides.
    """

    factors: frozenset[str] = frozenset()
    addends: frozenset[str] = frozenset()


def _rules(names: str, *, factors: str = "", addends: str = "") -> dict[str, Rule]:
    rule = Rule(frozenset(factors.split()), frozenset(addends.split()))
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    # operators that only move data, and linear maps with fixed coefficients
    **_rules(
        "view _unsafe_view reshape flatten.using_ints unflatten.int unsqueeze squeeze squeeze.dim "
        "squeeze.dims transpose.int permute t select.int slice.Tensor narrow split.Tensor "
        "split_with_sizes chunk unbind.int expand repeat flip roll pad constant_pad_nd "
        "pixel_shuffle pixel_unshuffle clone alias detach contiguous lift_fresh lift_fresh_copy "
        "mean mean.dim sum sum.dim_IntList avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
        "adaptive_avg_pool2d adaptive_avg_pool3d index.Tensor index_select gather neg "
        "_to_copy to.dtype add.Scalar sub.Scalar rsub.Scalar mul.Scalar div.Scalar div.Tensor",
        addends="self",
    ),
    **_rules(
        "upsample_nearest1d.vec upsample_nearest2d.vec upsample_linear1d.vec "
        "upsample_bilinear2d.vec dropout",  # dropout in evaluation mode
        addends="input",
    ),
    **_rules("cat stack broadcast_tensors", addends="tensors"),
    **_rules("add.Tensor sub.Tensor where.self", addends="self other"),
    **_rules("where.ScalarSelf", addends="other"),
    **_rules("where.ScalarOther", addends="self"),
    **_rules("masked_fill.Scalar masked_fill.Tensor", addends="self value"),
    # products
    **_rules("mul.Tensor matmul", factors="self other"),
    **_rules("mm bmm", factors="self mat2"),
    **_rules("addmm", factors="mat1 mat2", addends="self"),
    **_rules("baddbmm", factors="batch1 batch2", addends="self"),
    **_rules(
        "linear conv1d conv2d conv3d conv1d.padding conv2d.padding conv3d.padding "
        "conv_transpose1d conv_transpose2d.input conv_transpose3d.input "
        "_native_batch_norm_legit_no_training",
        factors="input weight",
        addends="bias",
    ),
    **_rules("bilinear", factors="input1 input2 weight", addends="bias"),
    **_rules("embedding", addends="weight"),
}
"""Operators (name, and overload unless it is the default one) that can keep a value affine."""


def operator_name(node: fx.Node) -> str:
    """Name the operator of a node.

    Args:
        node: A ``call_function`` node.

    Returns:
        ``"linear"``, ``"mul.Tensor"``, ``"getitem"``; with its namespace unless that is aten.
    """
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__name__", str(target))
    name = target._schema.name.removeprefix("aten::")
    return f"{name}.{target._overloadname}" if target._overloadname != "default" else name


def arguments(node: fx.Node) -> dict[str, Any]:
    """Bind the arguments of a node to the names of its operator's schema.

    Args:
        node: A ``call_function`` node of a torch operator.

    Returns:
        Values by name; defaults where the node gives none.
    """
    bound: dict[str, Any] = {}
    for i, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if i < len(node.args):
            bound[argument.name] = node.args[i]
        elif argument.name in node.kwargs or argument.has_default_value():
            bound[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return bound


def grid_of(node: fx.Node, values: Mapping[str, Value]) -> Grid:
    """Apply `RULES` to one node.

    Args:
        node: A ``call_function`` node of a torch operator.
        values: Those of the nodes before it.

    Returns:
        How what it computes depends on the grid.
    """
    moving = [n for n in node.all_input_nodes if _grid(n, values) != Grid.NONE]
    if not moving:
        return Grid.NONE
    rule = RULES.get(operator_name(node))
    if rule is None or any(_grid(n, values) == Grid.FULL for n in moving):
        return Grid.FULL
    affine = [
        name
        for name, argument in arguments(node).items()
        if any(_grid(n, values) != Grid.NONE for n in _nodes(argument))
    ]
    if not set(affine) <= rule.factors | rule.addends or len(rule.factors & set(affine)) > 1:
        return Grid.FULL
    first = next(_tensors(node.meta["val"]))[1]
    return Grid.AFFINE if first.dtype in (torch.float32, torch.float64) else Grid.FULL


def label(graph: fx.Graph, moves: Mapping[str, bool], inputs: Collection[str]) -> dict[str, Value]:
    """Say of every value of a graph what shape it has and what it depends on.

    A size that depends on the batch makes a value depend on it, also of zeros.

    Args:
        graph: As exported, with one symbol for the size of the batch.
        moves: Whether it moves, for each placeholder of a slot.
        inputs: The placeholders of the batch's tensors.

    Returns:
        Values by the names that `Plan.values` describes.

    Raises:
        NotCapturedError: If a value cannot be computed sample by sample, or in float32, or is
            random, or decides what is computed.
    """
    symbol = _batch_symbol(graph, inputs)
    values: dict[str, Value] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            grid = Grid.AFFINE if moves.get(node.name) else Grid.NONE
            _add(values, node, symbol, data=node.name in inputs, grid=grid)
        elif node.op == "get_attr":
            raise NotCapturedError(f"the graph has parts of its own ({node.target})")
        elif node.target is operator.getitem and node.args[0].name not in values:
            element = values.get(f"{node.args[0].name}.{node.args[1]}")
            if element is not None:
                values[node.name] = element
        elif node.op == "call_function":
            _refuse_operator(node)
            if isinstance(node.meta["val"], _SYMBOLS):
                _multiple(node.meta["val"], symbol, whole=False)
            elif any(_tensors(node.meta["val"])):
                _refuse_mixing(node, values)
                data = any(_depends_on_data(n, values) for n in node.all_input_nodes)
                _add(values, node, symbol, data=data, grid=grid_of(node, values))
                _refuse_size_as_number(node, values)
    return values


def _add(values: dict[str, Value], node: fx.Node, symbol: Any, *, data: bool, grid: Grid) -> None:
    for suffix, tensor in _tensors(node.meta["val"]):
        shape = tuple(n if isinstance(n, int) else None for n in tensor.shape)
        rows = tuple(_multiple(n, symbol) for n in tensor.shape if not isinstance(n, int))
        if len(rows) > 1:
            raise NotCapturedError(
                f"{node.name} mixes samples: {len(rows)} of its sizes depend on the batch's"
            )
        if grid and tensor.dtype not in _DTYPES:
            raise NotCapturedError(
                f"{node.name} is {str(tensor.dtype).removeprefix('torch.')}: what moves with the "
                "grid must be float32"
            )
        values[node.name + suffix] = Value(shape, rows, tensor.dtype, data, grid)


def _tensors(computed: Any) -> Any:
    """Yield (suffix of the name, tensor) for what a node computes: one tensor or several."""
    if isinstance(computed, Tensor):
        yield "", computed
    elif isinstance(computed, (tuple, list)):
        for i, element in enumerate(computed):
            if isinstance(element, Tensor):
                yield f".{i}", element


def _first(node: fx.Node, values: Mapping[str, Value]) -> Value | None:
    """The value of a node; for several tensors, that of the first: they depend on the same."""
    if node.name in values or not any(_tensors(node.meta.get("val"))):
        return values.get(node.name)
    return values[node.name + next(_tensors(node.meta["val"]))[0]]


def _grid(node: fx.Node, values: Mapping[str, Value]) -> Grid:
    value = _first(node, values)
    return Grid.NONE if value is None else value.grid


def _depends_on_data(node: fx.Node, values: Mapping[str, Value]) -> bool:
    value = _first(node, values)
    return isinstance(node.meta.get("val"), _SYMBOLS) if value is None else value.data


def _nodes(argument: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(argument, found.append)
    return found


def _batch_symbol(graph: fx.Graph, inputs: Collection[str]) -> Any:
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in inputs:
            for size in node.meta["val"].shape:
                if not isinstance(size, int):
                    return size.node.expr
    raise NotCapturedError("no tensor of the batch has an axis of samples")


def _multiple(size: Any, symbol: Any, *, whole: bool = True) -> int:
    """How often a size holds that of the batch; `whole` refuses what is not a multiple of it."""
    expression = size.node.expr
    if not expression.free_symbols <= {symbol}:
        raise NotCapturedError("a shape or a number depends on the values of the batch")
    ratio = expression / symbol
    if whole and not ratio.is_Integer:
        raise NotCapturedError(f"a size is {expression} of a batch of {symbol} samples")
    return int(ratio) if whole else 0


def _refuse_operator(node: fx.Node) -> None:
    name = operator_name(node)
    if name in _READS_VALUES:
        raise NotCapturedError(f"Python reads a value of a tensor ({name})")
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        raise NotCapturedError(f"the graph has parts of its own ({name})")
    if "batch_norm" in name and name != "_native_batch_norm_legit_no_training":
        raise NotCapturedError("a batch norm takes its statistics from the batch")
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and _draws(node):
        raise NotCapturedError(f"it draws random numbers ({name})")


def _draws(node: fx.Node) -> bool:
    """Whether an operator that may draw random numbers does."""
    given = arguments(node)
    switches = [given[key] for key in ("train", "training", "dropout_p") if key in given]
    return not switches or any(switches)


def _refuse_mixing(node: fx.Node, values: Mapping[str, Value]) -> None:
    """A number for the whole batch (a mean over it) must not go back into single samples."""
    found = [(n.name, v) for n in node.all_input_nodes if (v := _first(n, values)) and v.data]
    if not any(value.rows for _, value in found):
        return
    for name, value in found:
        if not value.rows:
            raise NotCapturedError(
                f"{name} mixes samples: it has no axis of samples, but {node.name} "
                f"({operator_name(node)}) joins it to a value that has one"
            )


def _refuse_size_as_number(node: fx.Node, values: Mapping[str, Value]) -> None:
    """Arithmetic on samples with the size of their batch would change when a batch is cut."""
    if torch.Tag.pointwise not in getattr(node.target, "tags", ()):
        return
    sizes = any(isinstance(n.meta.get("val"), _SYMBOLS) for n in node.all_input_nodes)
    value = _first(node, values)
    if sizes and value is not None and value.rows:
        raise NotCapturedError(f"{node.name} mixes samples: it counts with the batch's size")
