"""Products of two live matrices, and attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from landscapex.engine.lowering.contractions import is_weight, weighted
from landscapex.engine.lowering.lanes import Lanes
from landscapex.engine.lowering.reductions import softmax
from landscapex.engine.lowering.registry import handles
from landscapex.engine.lowering.values import as_lanes
from landscapex.engine.lowering.walk import Lowering
from landscapex.engine.plan import NotCapturedError
from landscapex.engine.sharing import operator_name
from landscapex.engine.steps import MatMul, table


def product(low: Lowering, x: Lanes, y: Lanes, *, scale: float = 1.0, name: str = "") -> Lanes:
    """``x @ y`` of two live values, as `torch.matmul` has it for at least two axes.

    Args:
        low: The lowering.
        x: ``[..., I, K]``, FULL or NONE.
        y: ``[..., K, J]``, FULL or NONE.
        scale: Factor.
        name: Of the result.

    Returns:
        ``[..., I, J]``.
    """
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    out = low.new((*batch, x.shape[-2], y.shape[-1]), name=name)
    tables = [
        table(v.index.expand(*batch, *v.shape[-2:]).reshape(-1, *v.shape[-2:]).numpy())
        for v in (x, y, out)
    ]
    low.emit(MatMul(x.buffer, tables[0], y.buffer, tables[1], out.buffer, tables[2], scale))
    return out


def _apart(low: Lowering, node: fx.Node, factors: int) -> None:
    """Refuse products over or between samples: those lie along the axes before the last two."""
    for argument in node.args[:factors]:
        if any(axis >= len(low.shape(argument)) - 2 for axis in low.batch_axes(argument)):
            raise NotCapturedError(f"{operator_name(node)} mixes samples")


@handles("matmul", "mm", "bmm")
def _matmul(low: Lowering, node: fx.Node, x: Any, y: Any) -> Lanes:
    if is_weight(x) or is_weight(y):
        return weighted(low, node, x, y)
    _apart(low, node, 2)
    return product(low, low.full(x), low.full(y), name=node.name)


@handles("baddbmm")
def _baddbmm(
    low: Lowering, node: fx.Node, added: Any, x: Any, y: Any, beta: float, alpha: float
) -> Lanes:
    if is_weight(x) or is_weight(y):
        result = weighted(low, node, x, y, scale=alpha)
    else:
        _apart(low, node, 3)
        result = product(low, low.full(x), low.full(y), scale=alpha)
    return low.map("scale_shift", node, added, beta, result)


@handles("scaled_dot_product_attention")
def _attention(
    low: Lowering,
    node: fx.Node,
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    dropout: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Lanes:
    if dropout:
        raise NotCapturedError("dropout inside attention")
    _apart(low, node, 3)
    q, k, v = (as_lanes(low, x) for x in (query, key, value))
    if enable_gqa:
        repeats = q.shape[-3] // k.shape[-3]
        k = low.moved(k, k.index.repeat_interleave(repeats, -3))
        v = low.moved(v, v.index.repeat_interleave(repeats, -3))
    factor = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = product(low, q, low.moved(k, k.index.transpose(-1, -2)), scale=factor)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = _masked(low, scores, mask, boolean=is_causal or _is_boolean(low, node))
    weights = softmax(low, scores, len(scores.shape) - 1, safe=True)
    return product(low, weights, v, name=node.name)


def _is_boolean(low: Lowering, node: fx.Node) -> bool:
    mask = node.kwargs.get("attn_mask", node.args[3] if len(node.args) > 3 else None)
    assert isinstance(mask, fx.Node)
    return bool(low.plan.values[mask.name].dtype == torch.bool)


def _masked(low: Lowering, scores: Lanes, mask: Any, *, boolean: bool) -> Lanes:
    if not boolean:
        return low.elementwise("add", scores.shape, scores, mask)
    if isinstance(mask, Tensor):
        mask = mask.float()
    return low.elementwise("where", scores.shape, mask, scores, -math.inf)
