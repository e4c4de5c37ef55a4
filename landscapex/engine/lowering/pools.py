"""Pools and interpolation: every output from a window of the input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from landscapex.engine.lowering.lanes import Lanes, flat
from landscapex.engine.lowering.reductions import summed_grid
from landscapex.engine.lowering.registry import handles
from landscapex.engine.lowering.values import separate
from landscapex.engine.lowering.walk import Lowering
from landscapex.engine.plan import NotCapturedError
from landscapex.engine.program import Grid
from landscapex.engine.sharing import operator_name
from landscapex.engine.steps import Reduce, table


def _windowed(
    low: Lowering,
    node: fx.Node,
    op: str,
    x: Any,
    positions: Sequence[Tensor],
    factors: Sequence[Tensor] | None = None,
    divisor: Tensor | None = None,
) -> Lanes:
    """Reduce windows over the last axes: products of one window for each axis.

    Args:
        low: The lowering.
        node: Whose value it is.
        op: Of the `Reduce`.
        x: The input.
        positions: For each of the axes, ``[outputs, window]`` positions; -1 for none.
        factors: Likewise, what the entries are multiplied by; None for 1.
        divisor: Of each output's sum, ``[outputs, ...]``, or None.

    Returns:
        The value.

    Raises:
        NotCapturedError: If a window is empty.
    """
    x, axes = low.lanes(x), len(positions)
    separate(low, node, range(len(x.shape) - axes, len(x.shape)))
    sizes = [p.shape for p in positions]
    source = x.index.flatten(0, -axes - 1) if len(x.shape) > axes else x.index[None]
    inside = torch.ones((), dtype=torch.bool)
    factor = torch.ones((), dtype=torch.float64)
    for axis, position in enumerate(positions):
        # axes of a window follow those of the outputs
        shape = [1] * (2 * axes)
        shape[axis], shape[axes + axis] = sizes[axis]
        inside = inside & (position >= 0).view(shape)
        if factors is not None:
            factor = factor * factors[axis].view(shape)
    outputs, window = [s[0] for s in sizes], [s[1] for s in sizes]
    grid = torch.meshgrid(*(p.clamp(min=0).reshape(-1) for p in positions), indexing="ij")
    taken = source[(slice(None), *grid)]
    split = taken.view(-1, *(size for pair in sizes for size in pair))
    order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2)]
    taken = split.permute(order).reshape(-1, math.prod(outputs), math.prod(window))
    inside = inside.expand(*outputs, *window).reshape(math.prod(outputs), -1)
    if not bool(inside.any(1).all()):
        raise NotCapturedError("a window that holds nothing but padding")
    if divisor is not None:
        factor = factor / divisor.view(*outputs, *[1] * axes)
    factor = factor.expand(*outputs, *window).reshape(inside.shape)
    return _reduced(low, node, op, x, taken, inside, factor)


def _reduced(
    low: Lowering,
    node: fx.Node,
    op: str,
    x: Lanes,
    taken: Tensor,
    inside: Tensor,
    factor: Tensor,
) -> Lanes:
    """Emit the step for windows ``taken [leading, outputs, window]``."""
    leading = taken.shape[0]
    counts = inside.sum(1).repeat(leading).numpy()
    mask = inside.expand(taken.shape)
    same = bool((factor == factor[0, 0]).all())
    out = low.new(low.shape(node), summed_grid(x) if op == "sum" else Grid.FULL, node.name)
    step = Reduce(
        op=op,
        input=x.buffer,
        offsets=table(np.concatenate([[0], np.cumsum(counts)])),
        sources=flat(taken[mask]),
        out=out.buffer,
        to=flat(out.index),
        coefficients=None if same else factor.expand(taken.shape)[mask].float().numpy(),
        scale=float(factor[0, 0]) if same else 1.0,
    )
    low.emit(step)
    return out


def _positions(
    size: int, outputs: int, window: int, stride: int, padding: int, dilation: int = 1
) -> Tensor:
    """Of the windows of a pool, ``[outputs, window]``; -1 in the padding."""
    start = torch.arange(outputs) * stride - padding
    position = start[:, None] + torch.arange(window) * dilation
    return torch.where((position >= 0) & (position < size), position, -1)


def _numbers(option: int | list[int], axes: int) -> list[int]:
    """One number for each axis."""
    option = [option] if isinstance(option, int) else list(option)
    return option * axes if len(option) == 1 else option


@handles("max_pool1d", "max_pool2d", "max_pool3d")
def _max_pool(
    low: Lowering,
    node: fx.Node,
    x: Any,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> Lanes:
    axes = int(operator_name(node)[8])
    options = (_numbers(o, axes) for o in (kernel, stride or kernel, padding, dilation))
    sizes, outputs = low.lanes(x).shape[-axes:], low.shape(node)[-axes:]
    positions = [_positions(*one) for one in zip(sizes, outputs, *options, strict=True)]
    return _windowed(low, node, "max", x, positions)


@handles("max_pool2d_with_indices", "max_pool3d_with_indices")
def _max_pool_with_indices(
    low: Lowering, node: fx.Node, x: Any, *options: Any
) -> tuple[Lanes, None]:
    return _max_pool(low, node, x, *options), None


@handles("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _avg_pool(
    low: Lowering,
    node: fx.Node,
    x: Any,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None = None,
) -> Lanes:
    axes = int(operator_name(node)[8])
    windows, steps, margins = (_numbers(o, axes) for o in (kernel, stride or kernel, padding))
    sizes, outputs = low.lanes(x).shape[-axes:], low.shape(node)[-axes:]
    positions = [
        _positions(*one) for one in zip(sizes, outputs, windows, steps, margins, strict=True)
    ]
    counts = []
    for size, position, step, window, margin in zip(
        sizes, positions, steps, windows, margins, strict=True
    ):
        if count_include_pad:  # but not what lies beyond the padding (ceil_mode)
            start = torch.arange(len(position)) * step - margin
            counts.append((start + window).clamp(max=size + margin) - start)
        else:
            counts.append((position >= 0).sum(1))
    divisor = _outer(counts)
    if divisor_override:
        divisor = torch.full_like(divisor, float(divisor_override))
    return _windowed(low, node, "sum", x, positions, divisor=divisor)


def _outer(counts: Sequence[Tensor]) -> Tensor:
    """Products of one number for each axis, ``[outputs, ...]``, float64."""
    product = torch.ones((), dtype=torch.float64)
    for count in counts:
        product = product[..., None] * count
    return product


# --- Adaptive pools -------------------------------------------------------------------------------


def _adaptive(size: int, outputs: int) -> Tensor:
    """Windows ``floor(i size / outputs)`` to ``ceil((i + 1) size / outputs)``."""
    i = torch.arange(outputs)
    start, end = i * size // outputs, -(-(i + 1) * size // outputs)
    position = start[:, None] + torch.arange(int((end - start).max()))
    return torch.where(position < end[:, None], position, -1)


def _adaptive_positions(low: Lowering, node: fx.Node, x: Any, axes: int) -> list[Tensor]:
    sizes, outputs = low.lanes(x).shape[-axes:], low.shape(node)[-axes:]
    return [_adaptive(size, output) for size, output in zip(sizes, outputs, strict=True)]


@handles("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
@handles("_adaptive_avg_pool2d", "_adaptive_avg_pool3d")
def _adaptive_avg_pool(low: Lowering, node: fx.Node, x: Any, size: Any) -> Lanes:
    axes = int(operator_name(node).lstrip("_")[17])
    positions = _adaptive_positions(low, node, x, axes)
    divisor = _outer([(p >= 0).sum(1) for p in positions])
    return _windowed(low, node, "sum", x, positions, divisor=divisor)


@handles("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def _adaptive_max_pool(low: Lowering, node: fx.Node, x: Any, size: Any) -> tuple[Lanes, None]:
    axes = int(operator_name(node)[17])
    return _windowed(low, node, "max", x, _adaptive_positions(low, node, x, axes)), None


# --- Interpolation --------------------------------------------------------------------------------


@handles("upsample_linear1d.vec", "upsample_bilinear2d.vec", "upsample_trilinear3d.vec")
@handles("upsample_bicubic2d.vec")
def _upsample(
    low: Lowering,
    node: fx.Node,
    x: Any,
    output_size: Any,
    align_corners: bool,
    scale_factors: Any,
) -> Lanes:
    axes = len(low.shape(node)) - 2
    sizes, outputs = low.lanes(x).shape[-axes:], low.shape(node)[-axes:]
    positions, factors = [], []
    for axis in range(axes):
        # torch interpolates the columns of the identity along this axis: they hold the factors
        shape, target = [1] * axes, [1] * axes
        shape[axis], target[axis] = sizes[axis], outputs[axis]
        columns = torch.eye(sizes[axis], dtype=torch.float64).view(1, sizes[axis], *shape)
        scale = None
        if scale_factors is not None:
            scale, target_size = [1.0] * axes, None
            scale[axis] = scale_factors[axis]
        else:
            target_size = target
        matrix = node.target(columns, target_size, align_corners, scale)  # type: ignore[operator]
        position, factor = _sparse(matrix.reshape(sizes[axis], -1).t())
        positions.append(position)
        factors.append(factor)
    return _windowed(low, node, "sum", x, positions, factors)


def _sparse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and values of the non-zero entries of each row; -1 where there are fewer."""
    used = matrix != 0
    width = int(used.sum(1).max())
    position = used.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
    factor = matrix.gather(1, position).double()
    return torch.where(used.gather(1, position), position, -1), factor
