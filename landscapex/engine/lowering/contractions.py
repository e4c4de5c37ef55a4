"""Sums of products with a weight: linear layers and matrix products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from landscapex.engine.lowering.lanes import Entries, Lanes, flat
from landscapex.engine.lowering.registry import handles
from landscapex.engine.lowering.walk import Lowering
from landscapex.engine.plan import NotCapturedError
from landscapex.engine.program import Grid, Term
from landscapex.engine.steps import Contract
from landscapex.engine.weight_order import contract_order

_CACHE_BYTES = 1.2e6


def pays(taps: int, outputs: int) -> bool:
    """Whether the products of an input with a weight are shared among the points of a grid.

    Shared, K + 1 results are computed once and every point combines them: K + 1 reads for an
    output in place of `taps` products. That pays if there are many taps, or some and the results
    for the 16 samples of a tile stay in the cache (with K = 2).

    Args:
        taps: R, products per output.
        outputs: Numbers per sample.

    Returns:
        Whether the output is to be AFFINE.

    Example:
        >>> pays(784, outputs=300), pays(27, outputs=65536), pays(9, outputs=10)
        (True, False, False)
    """
    return taps >= 128 or (taps >= 16 and 3 * outputs * 64 <= _CACHE_BYTES)


@dataclass(frozen=True)
class Reads:
    """Elements that a contraction reads: ``at[p] + group[g] + taps[r]``."""

    at: Tensor
    group: Tensor
    taps: Tensor


def contract(
    low: Lowering,
    x: Lanes,
    reads: Reads,
    weight: Entries,
    bias: Entries | None,
    out: Lanes,
    to: tuple[Tensor, Tensor],
    *,
    scale: float = 1.0,
) -> None:
    """Add a `Contract`.

    Args:
        low: The lowering.
        x: The input, NONE or FULL.
        reads: Which elements of it.
        weight: Entries ``[groups, M, R]``; -1 for zeros.
        bias: Entries of ``groups * M`` numbers, or None.
        out: The output.
        to: Its elements: ``to [P]`` and ``channels [groups, M]``.
        scale: Factor of the weight.
    """
    order = contract_order(*weight.shape)
    index = weight.index.reshape(-1).numpy()[order]
    factors = None if scale == 1.0 else np.full(index.size, scale)
    step = Contract(
        input=x.buffer,
        taps=flat(reads.taps),
        at=flat(reads.at),
        group=flat(reads.group),
        out=out.buffer,
        to=flat(to[0]),
        channels=flat(to[1]).reshape(weight.shape[:2]),
        weight=low.weight(index.size, Term(weight.slot, index, factors)),
        bias=-1 if bias is None else low.weight(bias.index.numel(), low.term_of(bias)),
    )
    low.emit(step)


def grid_of(low: Lowering, x: Lanes, taps: int, outputs: int) -> Grid:
    """How the product of a value with a moving weight is kept.

    Args:
        low: The lowering.
        x: The value, NONE or FULL.
        taps: R.
        outputs: Numbers per sample.

    Returns:
        AFFINE or FULL.
    """
    # weights that torch computes for each point are no sum over directions
    linear = low.share and not low.derived
    shared = linear and x.grid is Grid.NONE and pays(taps, outputs)
    return Grid.AFFINE if shared else Grid.FULL


def times(
    low: Lowering,
    name: str,
    x: Any,
    weight: Entries,
    bias: Entries | None = None,
    *,
    scale: float = 1.0,
    from_left: bool = False,
) -> Lanes:
    """``x @ weight`` as `torch.matmul` broadcasts it.

    Args:
        low: The lowering.
        name: Of the result.
        x: Live or batch value ``[..., P, R]``.
        weight: ``[..., R, M]``; its leading axes are groups.
        bias: ``[M]``, or None.
        scale: Factor of the weight.
        from_left: Store the result transposed: ``weight.T @ x.T``.

    Returns:
        The value ``[..., P, M]``, or ``[..., M, P]``.
    """
    x = low.full(x)
    batch = torch.broadcast_shapes(x.shape[:-2], weight.shape[:-2])
    w = weight.index.expand(*(1,) * (len(batch) + 2 - weight.index.ndim), *weight.shape)
    grouped = [i for i, size in enumerate(w.shape[:-2]) if size > 1]
    single = [i for i in range(len(batch)) if i not in grouped]
    rows, columns = len(batch), len(batch) + 1
    groups = math.prod(batch[i] for i in grouped)

    def arranged(index: Tensor) -> Tensor:
        """``[groups, P, R]``."""
        order = [*grouped, *single, rows, columns]
        return index.permute(order).reshape(groups, -1, index.shape[-1])

    source = arranged(x.index.expand(*batch, *x.shape[-2:]))
    if not _separable(source):
        x = low.contiguous(x)
        source = arranged(x.index.expand(*batch, *x.shape[-2:]))
    first = source[0, 0, 0]
    reads = Reads(source[0, :, 0], source[:, 0, 0] - first, source[0, 0] - first)
    shape = (*batch, x.shape[-2], w.shape[-1])
    stored = (*batch, shape[-1], shape[-2]) if from_left else shape
    grid = grid_of(low, x, w.shape[-2], math.prod(shape))
    out = low.new(stored, grid, name)
    index = arranged(out.index.transpose(-1, -2) if from_left else out.index)
    filters = w.permute([*single, *grouped, columns, rows]).reshape(groups, w.shape[-1], -1)
    if bias is not None:
        bias = Entries(bias.slot, bias.index.reshape(-1).repeat(groups))
    to = (index[0, :, 0], index[:, 0] - index[0, 0, 0])
    contract(low, x, reads, Entries(weight.slot, filters), bias, out, to, scale=scale)
    return out


def _separable(source: Tensor) -> bool:
    at, group, taps = source[0, :, 0], source[:, 0, 0] - source[0, 0, 0], source[0, 0]
    parts = at[:, None] + group[:, None, None] + (taps - source[0, 0, 0])
    return bool((source == parts).all())


def is_weight(x: Any) -> bool:
    """Whether a factor is known without data.

    Args:
        x: A value of the lowering.

    Returns:
        Whether `weighted` can take it.
    """
    return isinstance(x, Entries | Tensor)


def weighted(low: Lowering, node: fx.Node, x: Any, y: Any, *, scale: float = 1.0) -> Lanes:
    """``x @ y`` where one factor is known without data, as `torch.matmul` has it.

    Args:
        low: The lowering.
        node: Whose value it is.
        x: A factor.
        y: A factor.
        scale: Of the product.

    Returns:
        The product.
    """
    if is_weight(y):
        w = low.entries(y)
        matrix = w if w.index.ndim > 1 else Entries(w.slot, w.index[:, None])
        x = low.live(x)
        out = times(low, node.name, x, matrix, scale=scale)
        return out if w.index.ndim > 1 else low.moved(out, out.index[..., 0])
    w, y = low.entries(x), low.live(y)
    matrix = Entries(w.slot, (w.index if w.index.ndim > 1 else w.index[None]).transpose(-1, -2))
    turned = low.moved(y, y.index.transpose(-1, -2))
    out = times(low, node.name, turned, matrix, scale=scale, from_left=True)
    return out if w.index.ndim > 1 else low.moved(out, out.index[..., 0, :])


@handles("linear")
def _linear(low: Lowering, node: fx.Node, x: Any, weight: Any, bias: Any) -> Lanes:
    w = low.entries(weight)
    b = None if bias is None else low.entries(bias)
    x = low.live(x)
    rows = low.moved(x, x.index.reshape(-1, x.shape[-1]))
    out = times(low, node.name, rows, Entries(w.slot, w.index.t()), b)
    return low.moved(out, out.index.view(low.shape(node)))


@handles("addmm")
def _addmm(
    low: Lowering, node: fx.Node, bias: Any, x: Any, y: Any, beta: float, alpha: float
) -> Lanes:
    in_step = is_weight(bias) and is_weight(y) and beta == 1 and len(bias.shape) == 1
    if in_step:
        return times(low, node.name, x, low.entries(y), low.entries(bias), scale=alpha)
    if not (is_weight(x) or is_weight(y)):
        raise NotCapturedError("the operator addmm has no kernel for two live factors")
    out = weighted(low, node, x, y, scale=alpha)
    return low.map("scale_shift", node, bias, beta, out)


@handles("bilinear")
def _bilinear(low: Lowering, node: fx.Node, x: Any, y: Any, weight: Any, bias: Any) -> Lanes:
    """``x_i w[o, i, j] y_j``: the products ``x_i y_j`` are contracted with w."""
    x, y, w = low.lanes(x), low.lanes(y), low.entries(weight)
    rows = math.prod(x.shape[:-1])
    left = low.moved(x, x.index.reshape(rows, -1, 1))
    right = low.moved(y, y.index.reshape(rows, 1, -1))
    pairs = low.elementwise("mul", (rows, *w.shape[1:]), left, right, name=node.name)
    pairs = low.moved(pairs, pairs.index.view(rows, -1))
    matrix = Entries(w.slot, w.index.flatten(1).t())
    out = times(low, node.name, pairs, matrix, None if bias is None else low.entries(bias))
    return low.moved(out, out.index.view(low.shape(node)))
