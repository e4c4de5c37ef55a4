"""Operators that only move data: torch runs them on tables of element numbers, at no cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from landscapex.engine.lowering.lanes import Entries, FromBatch, Lanes, Scalar
from landscapex.engine.lowering.registry import handles
from landscapex.engine.lowering.walk import Lowering
from landscapex.engine.plan import NotCapturedError
from landscapex.engine.program import Grid
from landscapex.engine.sharing import operator_name

_NEAREST = ("upsample_nearest1d.vec", "upsample_nearest2d.vec", "upsample_nearest3d.vec")


@handles(
    "view", "_unsafe_view", "reshape", "permute", "transpose.int", "t", "numpy_T", "unsqueeze",
    "squeeze", "squeeze.dim", "squeeze.dims", "select.int", "slice.Tensor", "expand",
    "flatten.using_ints", "unflatten.int", "flip", "repeat", "roll", "movedim.int",
    "split.Tensor", "split_with_sizes", "chunk", "unbind.int", "clone", "alias", "detach",
    "contiguous", "lift_fresh_copy", "narrow", "tile", "diagonal", "index_select", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "expand_as", "view_as", "broadcast_to", "unfold",
    "rot90", "swapaxes", "swapdims", "reshape_as", "index.Tensor", *_NEAREST, weights=True,
)  # fmt: skip
def _move(low: Lowering, node: fx.Node, *arguments: Any) -> Any:
    """Run by torch on the table of its input."""
    source = arguments[0]
    if isinstance(source, Scalar):
        return source
    if not isinstance(source, Lanes | Entries):  # a constant, indexed by something that is not
        raise NotCapturedError("indices that depend on the batch or the parameters")
    if operator_name(node) == "index.Tensor":
        arguments = (source, _own_samples(low, node, arguments[1]))
    # torch interpolates floating point only
    floating = operator_name(node) in _NEAREST
    args = [_table(a, floating=floating) for a in arguments]
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    named = {a.name: v for a, v in zip(schema, args, strict=True) if a.kwarg_only}
    # a table may have other strides than the tensor that it stands for
    views = operator_name(node) in ("view", "_unsafe_view")
    target: Any = torch.ops.aten.reshape.default if views else node.target
    result = target(*args[: len(args) - len(named)], **named)
    if isinstance(result, Tensor):
        return _placed(source, result)
    return tuple(_placed(source, r) for r in result)


def _table(argument: Any, *, floating: bool = False) -> Any:
    if isinstance(argument, Lanes | Entries):
        return argument.index.double() if floating else argument.index
    if isinstance(argument, FromBatch):
        raise NotCapturedError("indices that depend on the batch")
    return [_table(a) for a in argument] if isinstance(argument, list | tuple) else argument


def _placed(source: Lanes | Entries, index: Tensor) -> Lanes | Entries:
    index = index.round().long() if index.is_floating_point() else index
    if isinstance(source, Entries):
        return Entries(source.slot, index)
    return Lanes(source.buffer, index, source.grid, source.fill)


def _own_samples(low: Lowering, node: fx.Node, indices: Sequence[Any]) -> list[Any]:
    """Samples may be picked by their own numbers only, as in ``x[torch.arange(n), last]``."""
    indices = list(indices)
    for axis in low.batch_axes(node.args[0]):
        if axis >= len(indices) or indices[axis] is None:
            continue
        given: Any = node.args[1][axis]  # type: ignore[index]
        shape = low.shape(given)
        while operator_name(given) in ("view", "unsqueeze"):
            given = given.args[0]
        if not operator_name(given).startswith("arange"):
            raise NotCapturedError("index.Tensor mixes samples: it picks some of them")
        indices[axis] = torch.arange(math.prod(shape)).view(shape)
    return indices


@handles("broadcast_tensors")
def _broadcast(low: Lowering, node: fx.Node, tensors: Sequence[Any]) -> tuple[Any, ...]:
    shape = low.shape(node)
    return tuple(_expanded(low, tensor, shape) for tensor in tensors)


def _expanded(low: Lowering, x: Any, shape: tuple[int, ...]) -> Any:
    if isinstance(x, Tensor):
        return x.expand(shape)
    if isinstance(x, FromBatch):
        if low.shape_of(low.plan.values[x.node]) == shape:
            return x
        x = low.live(x)
    return _placed(x, x.index.expand(shape))


@handles("_to_copy", "to.dtype", "to.dtype_layout", weights=True)
def _cast(low: Lowering, node: fx.Node, x: Any, *arguments: Any) -> Any:
    """Live values are float32 whatever the width that torch gives them."""
    dtypes = [a for a in arguments if isinstance(a, torch.dtype)]
    if isinstance(x, Entries):
        return low.derive(node)
    if any(d not in (torch.float32, torch.float64) for d in dtypes):
        raise NotCapturedError(f"a cast of live values to {dtypes[0]}")
    return x


@handles("zeros_like", "new_zeros")
def _zeros(low: Lowering, node: fx.Node, *arguments: Any) -> Tensor:
    return torch.zeros(low.shape(node))


@handles("ones_like", "new_ones")
def _ones(low: Lowering, node: fx.Node, *arguments: Any) -> Tensor:
    return torch.ones(low.shape(node))


@handles("full_like")
def _filled(low: Lowering, node: fx.Node, x: Any, value: float, *arguments: Any) -> Tensor:
    return torch.full(low.shape(node), float(value))


@handles("new_full")
def _new_filled(
    low: Lowering, node: fx.Node, x: Any, size: Any, value: float, *arguments: Any
) -> Tensor:
    return torch.full(low.shape(node), float(value))


# --- padding and joining --------------------------------------------------------------------------


def padded(low: Lowering, x: Lanes, pad: Sequence[int], fill: float = 0.0) -> Lanes:
    """A constant around a value; costs nothing until somebody needs it dense.

    Args:
        low: The lowering.
        x: A value.
        pad: As of `torch.nn.functional.pad`.
        fill: The constant.

    Returns:
        The value, with -1 for the constant.
    """
    x = low.dense(x) if x.fill != fill else x
    index = torch.nn.functional.pad(x.index, list(pad), value=-1)
    return Lanes(x.buffer, index, x.grid, fill)


@handles("pad")
def _pad(
    low: Lowering, node: fx.Node, x: Any, pad: Sequence[int], mode: str, value: float | None
) -> Lanes:
    if mode == "constant":
        return _constant_pad(low, node, x, pad, value or 0.0)
    x = low.live(x)
    index = torch.nn.functional.pad(x.index.double(), list(pad), mode=mode)
    return low.moved(x, index.round().long())


@handles("constant_pad_nd")
def _constant_pad(low: Lowering, node: fx.Node, x: Any, pad: Sequence[int], value: float) -> Lanes:
    return padded(low, low.live(x), pad, float(value))


@handles("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def _edge_pad(low: Lowering, node: fx.Node, x: Any, pad: Sequence[int]) -> Lanes:
    x = low.live(x)
    index = node.target(x.index.double(), list(pad))  # type: ignore[operator]
    return low.moved(x, index.round().long())


@handles("cat", "stack")
def _join(low: Lowering, node: fx.Node, tensors: Sequence[Any], dim: int) -> Lanes:
    """Parts of one buffer stay there; others are copied next to each other."""
    empty = [isinstance(t, Tensor) and t.shape == (0,) for t in tensors]
    parts = [
        t if isinstance(t, Tensor | Entries) else low.live(t)
        for t, nothing in zip(tensors, empty, strict=True)
        if not nothing
    ]
    join = torch.stack if operator_name(node) == "stack" else torch.cat
    lanes = [p for p in parts if isinstance(p, Lanes)]
    if len(lanes) == len(parts) and len({(p.buffer, p.fill) for p in lanes}) == 1:
        return low.moved(lanes[0], join([p.index for p in lanes], dim))
    affine = len(lanes) == len(parts) and all(p.grid is Grid.AFFINE for p in lanes)
    out = low.new(low.shape(node), Grid.AFFINE if affine else Grid.FULL, node.name)
    owner = join([torch.full(tuple(p.shape), i) for i, p in enumerate(parts)], dim)
    for i, p in enumerate(parts):
        low.copy(p, out.buffer, out.index[owner == i])  # parts keep the order of their entries
    return out
