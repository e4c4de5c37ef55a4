"""Convolutions, transposed convolutions, and the batch norm behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx

from landscapex.engine.lowering.contractions import Reads, contract, grid_of
from landscapex.engine.lowering.lanes import Entries, Lanes
from landscapex.engine.lowering.moves import padded
from landscapex.engine.lowering.registry import handles
from landscapex.engine.lowering.walk import Lowering
from landscapex.engine.plan import NotCapturedError
from landscapex.engine.steps import Operand, table


@handles("conv1d", "conv2d", "conv3d")
def _conv(
    low: Lowering,
    node: fx.Node,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Lanes:
    w = low.entries(weight)
    dims = w.index.ndim - 2
    stride, padding, dilation = (_each(v, dims) for v in (stride, padding, dilation))
    image = _image(low, node, x, [(p, p) for p in padding])
    return _convolved(low, node, image, w, bias, stride, dilation, groups)


@handles("conv1d.padding", "conv2d.padding", "conv3d.padding")
def _conv_named(
    low: Lowering,
    node: fx.Node,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: str,
    dilation: Sequence[int],
    groups: int,
) -> Lanes:
    w = low.entries(weight)
    dims = w.index.ndim - 2
    stride, dilation = _each(stride, dims), _each(dilation, dims)
    same = padding == "same"
    missing = [d * (k - 1) if same else 0 for d, k in zip(dilation, w.shape[2:], strict=True)]
    image = _image(low, node, x, [(m // 2, m - m // 2) for m in missing])
    return _convolved(low, node, image, w, bias, stride, dilation, groups)


def _convolved(
    low: Lowering,
    node: fx.Node,
    x: Lanes,
    w: Entries,
    bias: Any,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Lanes:
    """The convolution of an image that has its padding."""
    shape, size = low.shape(node), w.shape[1]
    first, steps = _strides(x.index)
    at = [_walk(a * s, n) for a, s, n in zip(steps[2:], stride, shape[2:], strict=True)]
    taps = [_walk(a * d, n) for a, d, n in zip(steps[2:], dilation, w.shape[2:], strict=True)]
    reads = Reads(
        first + _sums(_walk(steps[0], shape[0]), *at),
        _walk(size * steps[1], groups),
        _sums(_walk(steps[1], size), *taps),
    )
    out = low.new(shape, grid_of(low, x, math.prod(w.shape[1:]), math.prod(shape)), node.name)
    filters = Entries(w.slot, w.index.reshape(groups, shape[1] // groups, -1))
    b = None if bias is None else low.entries(bias)
    contract(low, x, reads, filters, b, out, _stores(out.index))
    return out


@handles("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input")
def _conv_transpose(
    low: Lowering,
    node: fx.Node,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Lanes:
    """One step for each phase (output coordinates modulo the stride): each has its own taps."""
    w, shape = low.entries(weight), low.shape(node)
    dims, size = w.index.ndim - 2, w.shape[0] // groups
    stride, padding, dilation = (_each(v, dims) for v in (stride, padding, dilation))
    axes = [
        _phases(*sizes)
        for sizes in zip(shape[2:], w.shape[2:], stride, padding, dilation, strict=True)
    ]
    pads = [_reach(p, n) for p, n in zip(axes, low.live(x).shape[2:], strict=True)]
    image = _image(low, node, x, pads)
    out = low.new(
        shape, grid_of(low, image, size * math.prod(w.shape[2:]), math.prod(shape)), node.name
    )
    b = None if bias is None else low.entries(bias)
    filters = w.index.view(groups, size, *w.shape[1:]).transpose(1, 2)  # [groups, M, size, *kernel]
    first, steps = _strides(image.index)
    for phases in product(*axes):
        each = list(zip(steps[2:], phases, pads, strict=True))
        reads = Reads(
            first + _sums(_walk(steps[0], shape[0]), *(_walk(a, p.count) for a, p, _ in each)),
            _walk(size * steps[1], groups),
            _sums(
                _walk(steps[1], size),
                *((torch.tensor(p.offsets) + pad[0]) * a for a, p, pad in each),
            ),
        )
        part, mine = out.index, filters
        for axis, p in enumerate(phases):
            part = part.narrow(2 + axis, p.first, part.shape[2 + axis] - p.first)
            part = part[(slice(None),) * (2 + axis) + (slice(None, None, stride[axis]),)]
            mine = mine.index_select(3 + axis, torch.tensor(p.taps))
        if any(p.empty for p in phases):
            mine = torch.full_like(mine, -1)
        index = mine.reshape(groups, w.shape[1], -1)
        contract(low, image, reads, Entries(w.slot, index), b, out, _stores(part))
    return out


@dataclass(frozen=True)
class _Phase:
    """Outputs ``first + q * stride``: each takes tap ``taps[j]`` of input ``q + offsets[j]``."""

    first: int
    count: int
    taps: tuple[int, ...]
    offsets: tuple[int, ...]
    empty: bool


def _phases(outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> list[_Phase]:
    """Output y takes tap k of input i where ``y + padding = i * stride + k * dilation``."""
    phases = []
    for first in range(min(stride, outputs)):
        reach = [first + padding - k * dilation for k in range(kernel)]
        taps = tuple(k for k in range(kernel) if reach[k] % stride == 0)
        offsets = tuple(reach[k] // stride for k in taps)
        count = len(range(first, outputs, stride))
        # the kernel is smaller than the stride: one tap that counts nothing
        phases.append(_Phase(first, count, taps or (0,), offsets or (0,), not taps))
    return phases


def _reach(phases: Sequence[_Phase], size: int) -> tuple[int, int]:
    """How much padding an axis needs so that all phases read inside."""
    low = min(min(p.offsets) for p in phases)
    high = max(p.count - 1 + max(p.offsets) for p in phases)
    return max(0, -low), max(0, high - size + 1)


def _each(value: Sequence[int], dims: int) -> list[int]:
    """One number for each axis: torch takes lists of length 1 for all of them."""
    return list(value) * dims if len(value) == 1 else list(value)


def _walk(step: int, count: int) -> Tensor:
    return torch.arange(count) * step


def _sums(*axes: Tensor) -> Tensor:
    """All sums of one number from each axis, the last axis fastest."""
    total = axes[0]
    for axis in axes[1:]:
        total = (total[:, None] + axis).reshape(-1)
    return total


def _stores(index: Tensor) -> tuple[Tensor, Tensor]:
    """``to [P]`` and ``channels [groups * M]`` of the outputs ``[N, channels, *positions]``."""
    return index[:, 0].reshape(-1), index[0].flatten(1)[:, 0] - index[0].reshape(-1)[0]


def _image(low: Lowering, node: fx.Node, x: Any, pads: Sequence[tuple[int, int]]) -> Lanes:
    """What a convolution reads: with zeros around, at equal steps along every axis."""
    if low.batch_axes(node.args[0]) != (0,):
        raise NotCapturedError("a convolution of an image without batch axis")
    x = low.live(x)
    around = [n for pad in reversed(pads) for n in pad]
    x = low.full(padded(low, x, around) if any(around) else x)
    return x if _strides(x.index)[0] >= 0 else low.contiguous(x)


def _strides(index: Tensor) -> tuple[int, list[int]]:
    """First element number and step along each axis; -1 if the steps are not equal."""
    first = int(index.reshape(-1)[0])
    steps = [
        int(index.select(axis, 1).reshape(-1)[0]) - first if size > 1 else 0
        for axis, size in enumerate(index.shape)
    ]
    regular = first + _sums(*(_walk(a, n) for a, n in zip(steps, index.shape, strict=True)))
    return (first if torch.equal(regular, index.reshape(-1)) else -1), steps


@handles("_native_batch_norm_legit_no_training", "_batch_norm_no_update")
def _batch_norm(
    low: Lowering,
    node: fx.Node,
    x: Any,
    gamma: Any,
    beta: Any,
    mean: Any,
    variance: Any,
    momentum: float,
    eps: float,
) -> tuple[Any, ...]:
    """``x * scale + shift`` per channel, by statistics that do not move."""
    if not (isinstance(mean, Tensor) and isinstance(variance, Tensor)):
        raise NotCapturedError("running statistics that move")
    if low.batch_axes(node.args[0]) != (0,):
        raise NotCapturedError("batch norm over an axis of samples")
    factor = (variance.double() + eps).rsqrt().cpu().numpy()
    offset = -mean.double().cpu().numpy() * factor
    size = factor.size
    if gamma is None:
        scale = low.weight(size, offset=factor)
        shift_terms = []
        shift_offset = offset
    else:
        g = low.entries(gamma)
        scale = low.weight(size, low.term_of(g, factor))
        shift_terms = [low.term_of(g, offset)]
        shift_offset = None
    if beta is not None:
        shift_terms.append(low.term_of(low.entries(beta)))
    shift = low.weight(size, *shift_terms, offset=shift_offset)
    shape = low.shape(node.args[0])
    channel = torch.arange(size).view(1, -1, *(1,) * (len(shape) - 2)).expand(shape)
    at = table(channel.reshape(-1).numpy())
    operands = [Operand("weight", w, at) for w in (scale, shift)]
    return low.elementwise("scale_shift", shape, x, *operands, name=node.name), None, None
