"""Layer, group, instance and RMS norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from landscapex.engine.lowering.lanes import Lanes
from landscapex.engine.lowering.registry import handles
from landscapex.engine.lowering.values import separate
from landscapex.engine.lowering.walk import Lowering
from landscapex.engine.plan import NotCapturedError
from landscapex.engine.steps import Normalize, table


def _normalize(
    low: Lowering,
    node: fx.Node,
    x: Lanes,
    rows: int,
    entries: Tensor,
    gamma: Any,
    beta: Any,
    eps: float,
    *,
    rms: bool = False,
) -> Lanes:
    """Normalise each of `rows` groups; ``gamma[entries]``, broadcast, scales."""
    out = low.new(x.shape, name=node.name)
    at = table(entries.expand(x.shape).reshape(rows, -1).numpy())
    none = np.zeros(0, np.int32)
    step = Normalize(
        input=x.buffer,
        sources=table(x.index.reshape(rows, -1).numpy()),
        out=out.buffer,
        to=table(out.index.reshape(rows, -1).numpy()),
        gamma=-1 if gamma is None else low.weight(math.prod(gamma.shape), low.term_of(gamma)),
        gamma_at=none if gamma is None else at,
        beta=-1 if beta is None else low.weight(math.prod(beta.shape), low.term_of(beta)),
        beta_at=none if beta is None else at,
        eps=eps,
        rms=rms,
    )
    low.emit(step)
    return out


def _layer_norm_of(
    low: Lowering,
    node: fx.Node,
    x: Any,
    normalized: Sequence[int],
    gamma: Any,
    beta: Any,
    eps: float,
    *,
    rms: bool = False,
) -> Lanes:
    x, axes = low.full(x), len(normalized)
    separate(low, node, range(len(x.shape) - axes, len(x.shape)))
    count = math.prod(normalized)
    entries = torch.arange(count).view(tuple(normalized))
    rows = x.index.numel() // count
    return _normalize(low, node, x, rows, entries, gamma, beta, eps, rms=rms)


@handles("layer_norm")
def _layer_norm(
    low: Lowering,
    node: fx.Node,
    x: Any,
    normalized: list[int],
    gamma: Any,
    beta: Any,
    eps: float,
    cudnn: bool,
) -> Lanes:
    return _layer_norm_of(low, node, x, normalized, gamma, beta, eps)


@handles("native_layer_norm")
def _native_layer_norm(
    low: Lowering, node: fx.Node, x: Any, normalized: list[int], gamma: Any, beta: Any, eps: float
) -> tuple[Lanes, None, None]:
    return _layer_norm_of(low, node, x, normalized, gamma, beta, eps), None, None


@handles("rms_norm")
def _rms_norm(
    low: Lowering, node: fx.Node, x: Any, normalized: list[int], gamma: Any, eps: float | None
) -> Lanes:
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    return _layer_norm_of(low, node, x, normalized, gamma, None, eps, rms=True)


@handles("_fused_rms_norm")
def _fused_rms_norm(
    low: Lowering, node: fx.Node, x: Any, normalized: list[int], gamma: Any, eps: float | None
) -> tuple[Lanes, None]:
    return _rms_norm(low, node, x, normalized, gamma, eps), None


def _channel_norm(
    low: Lowering, node: fx.Node, x: Any, groups: int | None, gamma: Any, beta: Any, eps: float
) -> Lanes:
    """Group norm; instance norm if there are as many groups as channels (None)."""
    x = low.full(x)
    separate(low, node, range(1, len(x.shape)))
    samples, channels = x.shape[:2]
    entries = torch.arange(channels).view(-1, *[1] * (len(x.shape) - 2))
    rows = samples * (channels if groups is None else groups)
    return _normalize(low, node, x, rows, entries, gamma, beta, eps)


@handles("group_norm")
def _group_norm(
    low: Lowering,
    node: fx.Node,
    x: Any,
    groups: int,
    gamma: Any,
    beta: Any,
    eps: float,
    cudnn: bool,
) -> Lanes:
    return _channel_norm(low, node, x, groups, gamma, beta, eps)


@handles("native_group_norm")
def _native_group_norm(
    low: Lowering,
    node: fx.Node,
    x: Any,
    gamma: Any,
    beta: Any,
    samples: int,
    channels: int,
    positions: int,
    groups: int,
    eps: float,
) -> tuple[Lanes, None, None]:
    return _channel_norm(low, node, x, groups, gamma, beta, eps), None, None


@handles("instance_norm")
def _instance_norm(
    low: Lowering,
    node: fx.Node,
    x: Any,
    gamma: Any,
    beta: Any,
    mean: Any,
    variance: Any,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> Lanes:
    if not use_input_stats or mean is not None or variance is not None:
        raise NotCapturedError("instance norm with running statistics has no kernel")
    return _channel_norm(low, node, x, None, gamma, beta, eps)
