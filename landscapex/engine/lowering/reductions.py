"""Sums, means, extremes and softmax: each result from some of the elements of a sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from landscapex.engine.lowering.lanes import Lanes, Scalar, flat
from landscapex.engine.lowering.losses import total
from landscapex.engine.lowering.registry import handles
from landscapex.engine.lowering.values import separate
from landscapex.engine.lowering.walk import Lowering
from landscapex.engine.plan import NotCapturedError
from landscapex.engine.program import Grid
from landscapex.engine.sharing import operator_name
from landscapex.engine.steps import NONE, Activation, Reduce, Softmax, table

_LARGEST = float(np.finfo(np.float32).max)


def summed_grid(x: Lanes) -> Grid:
    """How a sum of entries depends on the grid: as the entries, if those are live.

    Args:
        x: What is summed.

    Returns:
        AFFINE or FULL.
    """
    return Grid.AFFINE if x.grid is Grid.AFFINE else Grid.FULL


def _axes(axes: int | Sequence[int] | None, ndim: int) -> list[int]:
    """Axes from 0 on; all of them if none is given."""
    axes = [axes] if isinstance(axes, int) else list(axes or [])
    return sorted(axis % ndim for axis in axes) if axes else list(range(ndim))


def _rows(index: Tensor, axes: Sequence[int]) -> Tensor:
    """``[kept, reduced]``: the given axes become one, the last."""
    kept = [axis for axis in range(index.ndim) if axis not in axes]
    shape = math.prod(index.shape[axis] for axis in kept), -1
    return index.permute(*kept, *axes).reshape(shape)


def _float32(dtype: torch.dtype | None) -> None:
    if dtype not in (None, torch.float32):
        raise NotCapturedError(f"a sum in {dtype}")


def _reduce(
    low: Lowering,
    op: str,
    x: Lanes,
    axes: Sequence[int],
    shape: Sequence[int],
    *,
    scale: float = 1.0,
    activation: Activation = NONE,
    name: str = "",
) -> Lanes:
    """Reduce over axes; the result has the given shape."""
    rows = _rows(x.index, axes)
    affine = op == "sum" and activation is NONE
    out = low.new(shape, summed_grid(x) if affine else Grid.FULL, name)
    step = Reduce(
        op=op,
        input=x.buffer,
        offsets=table(np.arange(len(rows) + 1) * rows.shape[1]),
        sources=flat(rows),
        out=out.buffer,
        to=flat(out.index),
        scale=scale,
        activation=activation,
    )
    low.emit(step)
    return out


def _reduction(
    low: Lowering,
    node: fx.Node,
    op: str,
    x: Any,
    dim: int | Sequence[int] | None,
    *,
    mean: bool = False,
    activation: Activation = NONE,
) -> Lanes:
    """What most operators here are: one `Reduce`."""
    x = low.lanes(x)
    axes = _axes(dim, len(x.shape))
    separate(low, node, axes)
    scale = 1.0 / math.prod(x.shape[axis] for axis in axes) if mean else 1.0
    return _reduce(
        low, op, x, axes, low.shape(node), scale=scale, activation=activation, name=node.name
    )


# --- Sums and means -------------------------------------------------------------------------------


@handles("mean", "sum")
def _of_all(low: Lowering, node: fx.Node, x: Any, dtype: Any = None) -> Scalar:
    _float32(dtype)
    if isinstance(x, Scalar):
        return x
    return total(low, x, mean=operator_name(node) == "mean")


@handles("mean.dim", "sum.dim_IntList")
def _along(
    low: Lowering, node: fx.Node, x: Any, dim: Any, keepdim: bool, dtype: Any
) -> Lanes | Scalar:
    mean = operator_name(node) == "mean.dim"
    if isinstance(x, Scalar) or (not keepdim and _whole(low, node, dim)):
        return _of_all(low, node, x, dtype) if isinstance(x, Scalar) else total(low, x, mean=mean)
    _float32(dtype)
    return _reduction(low, node, "sum", x, dim, mean=mean)


def _whole(low: Lowering, node: fx.Node, dim: Any) -> bool:
    """Whether all axes of a live value are reduced, that of the batch among them."""
    ndim = len(low.shape(node.args[0]))
    return len(_axes(dim, ndim)) == ndim and bool(low.batch_axes(node.args[0]))


@handles("amax", "amin")
def _extreme(low: Lowering, node: fx.Node, x: Any, dim: Any, keepdim: bool) -> Lanes:
    return _reduction(low, node, operator_name(node)[1:], x, dim)


@handles("max.dim", "min.dim")
def _extreme_along(
    low: Lowering, node: fx.Node, x: Any, dim: int, keepdim: bool
) -> tuple[Lanes, None]:
    return _reduction(low, node, operator_name(node)[:3], x, dim), None


@handles("prod.dim_int")
def _product(low: Lowering, node: fx.Node, x: Any, dim: int, keepdim: bool, dtype: Any) -> Lanes:
    _float32(dtype)
    return _reduction(low, node, "prod", x, dim)


def _kept(shape: Sequence[int], axes: Sequence[int]) -> list[int]:
    """The shape with the given axes of size 1."""
    return [1 if axis in axes else size for axis, size in enumerate(shape)]


@handles("var.dim", "var.correction", "std.dim", "std.correction")
def _variance(low: Lowering, node: fx.Node, x: Any, dim: Any, given: Any, keepdim: bool) -> Lanes:
    x = low.lanes(x)
    axes = _axes(dim, len(x.shape))
    separate(low, node, axes)
    count = math.prod(x.shape[axis] for axis in axes)
    correction = 1.0 if given is None else float(given)  # `unbiased` is one, too
    if count <= correction:
        raise NotCapturedError("a variance without degrees of freedom")
    mean = _reduce(low, "sum", x, axes, _kept(x.shape, axes), scale=1.0 / count)
    square = low.elementwise("sub", x.shape, x, mean, activation=Activation("square"))
    root = Activation("sqrt") if operator_name(node).startswith("std") else NONE
    scale = 1.0 / (count - correction)
    return _reduce(
        low, "sum", square, axes, low.shape(node), scale=scale, activation=root, name=node.name
    )


@handles("linalg_vector_norm")
def _vector_norm(
    low: Lowering, node: fx.Node, x: Any, order: float, dim: Any, keepdim: bool, dtype: Any
) -> Lanes:
    _float32(dtype)
    x = low.lanes(x)
    axes = _axes(dim, len(x.shape))
    separate(low, node, axes)
    kinds: dict[float, tuple[str, str, Activation]] = {
        1.0: ("abs", "sum", NONE),
        2.0: ("square", "sum", Activation("sqrt")),
        math.inf: ("abs", "max", NONE),
        -math.inf: ("abs", "min", NONE),
    }
    if order not in kinds:
        raise NotCapturedError(f"the norm of order {order} has no kernel")
    each, op, last = kinds[order]
    powers = low.elementwise("copy", x.shape, x, activation=Activation(each))
    return _reduce(low, op, powers, axes, low.shape(node), activation=last, name=node.name)


@handles("logsumexp")
def _logsumexp(low: Lowering, node: fx.Node, x: Any, dim: Any, keepdim: bool) -> Lanes:
    x = low.lanes(x)
    axes = _axes(dim, len(x.shape))
    separate(low, node, axes)
    shape = _kept(x.shape, axes)
    finite = Activation("clamp", -_LARGEST, _LARGEST)
    peak = _reduce(low, "max", x, axes, shape, activation=finite)
    powers = low.elementwise("sub", x.shape, x, peak, activation=Activation("exp"))
    logarithm = _reduce(low, "sum", powers, axes, shape, activation=Activation("log"))
    result = low.elementwise("add", shape, logarithm, peak)
    return Lanes(result.buffer, result.index.reshape(low.shape(node)), result.grid)


# --- Softmax --------------------------------------------------------------------------------------


@handles("softmax.int", "_softmax", "log_softmax.int", "_log_softmax", "_safe_softmax")
def _softmax(low: Lowering, node: fx.Node, x: Any, dim: int, dtype: Any) -> Lanes:
    _float32(dtype or None)  # or `half_to_float`
    x = low.full(x)
    axis = dim % len(x.shape)
    separate(low, node, [axis])
    name = operator_name(node)
    return softmax(low, x, axis, log="log" in name, safe="safe" in name, name=node.name)


def softmax(
    low: Lowering, x: Lanes, axis: int, *, log: bool = False, safe: bool = False, name: str = ""
) -> Lanes:
    """Add a `Softmax` along one axis.

    Args:
        low: The lowering.
        x: FULL or NONE.
        axis: From 0 on.
        log: Whether the logarithm is wanted.
        safe: Zeros for rows of nothing but -inf.
        name: Of the result.

    Returns:
        The value.
    """
    out = low.new(x.shape, name=name)
    rows = (table(_rows(value.index, [axis]).numpy()) for value in (x, out))
    low.emit(Softmax(x.buffer, next(rows), out.buffer, next(rows), log, safe))
    return out
