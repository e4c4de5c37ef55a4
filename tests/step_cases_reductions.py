"""Cases for pooling, norms and softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from step_builder import Array, Builder, Shape, StepCase, case, rows, steps_from
from torch import Tensor
from torch.nn import functional as F

from landscapex.engine.program import Grid
from landscapex.engine.steps import (
    Activation,
    Map,
    Normalize,
    Operand,
    Reduce,
    Softmax,
    Step,
    table,
)


def windows(size: tuple[int, int], kernel: int, stride: int, padding: int) -> list[Array]:
    """Element numbers of each window of a pooling layer, inside one channel."""
    height, width = size
    found = []
    for y in range(0, height + 2 * padding - kernel + 1, stride):
        for x in range(0, width + 2 * padding - kernel + 1, stride):
            inside = [
                i * width + j
                for i in range(max(y - padding, 0), min(y - padding + kernel, height))
                for j in range(max(x - padding, 0), min(x - padding + kernel, width))
            ]
            found.append(np.array(inside))
    return found


def ragged(groups: Sequence[Array]) -> tuple[Array, Array]:
    """Offsets and sources."""
    offsets = np.cumsum([0, *(len(g) for g in groups)])
    return table(offsets), table(np.concatenate(groups))


Pool = Callable[[Tensor], Tensor]
POOLS: dict[str, tuple[str, tuple[int, int], tuple[int, int, int], Pool]] = {
    "max_2x2": ("max", (6, 4), (2, 2, 0), lambda x: F.max_pool2d(x, 2)),
    "max_3x3_padded": ("max", (7, 5), (3, 2, 1), lambda x: F.max_pool2d(x, 3, 2, 1)),
    "min": ("min", (6, 6), (3, 3, 0), lambda x: -F.max_pool2d(-x, 3)),
    "sum": ("sum", (4, 4), (2, 2, 0), lambda x: 4 * F.avg_pool2d(x, 2)),
    "prod": ("prod", (4, 4), (2, 2, 0), lambda x: F.unfold(x, 2, stride=2).unflatten(
        1, (x.shape[1], 4)).prod(2)),
}  # fmt: skip


@case(*POOLS.items(), name="pool")
def pool(b: Builder, _: str, row: tuple[str, tuple[int, int], tuple[int, int, int], Pool]) -> Any:
    op, size, (kernel, stride, padding), function = row
    area = size[0] * size[1]
    x = b.input(b.normal(b.samples, 3 * area))
    b.inputs[x][:, [0, 5, 9]] = [np.nan, np.inf, -np.inf]
    inside = windows(size, kernel, stride, padding)
    offsets, sources = ragged([g + c * area for c in range(3) for g in inside])
    expected = function(rows(b, x).view(-1, 3, *size))
    out = b.live(len(offsets) - 1)
    step = Reduce(op, x, offsets, sources, out, steps_from(len(offsets) - 1))
    return b.done(step, out=out, expected=expected)


@case()
def average_pool_that_leaves_out_padding(b: Builder) -> StepCase:
    """Coefficients by window, a factor, an activation."""
    x = b.input(b.normal(b.samples, 2 * 30))
    inside = windows((6, 5), 3, 2, 1)
    offsets, sources = ragged([g + c * 30 for c in range(2) for g in inside])
    lengths = np.diff(offsets)
    coefficients = np.repeat(1 / lengths, lengths).astype(np.float32)
    # coefficients are rounded to float32
    factor = torch.from_numpy(np.add.reduceat(coefficients.astype(np.float64), offsets[:-1]))
    assert (factor - 1).abs().max() < 1e-6
    out = b.live(len(lengths))
    mean = F.avg_pool2d(rows(b, x).view(-1, 2, 6, 5), 3, 2, 1, count_include_pad=False)
    step = Reduce(
        "sum", x, offsets, sources, out, steps_from(len(lengths)), coefficients, -2.0,
        Activation("tanh"),
    )  # fmt: skip
    return b.done(step, out=out, expected=torch.tanh(-2 * factor * mean.flatten(1)))


@case()
def reduction_of_nothing(b: Builder) -> StepCase:
    """An empty window gives the neutral element."""
    x = b.input(b.normal(b.samples, 4))
    out = b.live(3)
    step = Reduce("sum", x, table([0, 2, 2, 4]), steps_from(4), out, steps_from(3), scale=0.5)
    pairs = 0.5 * rows(b, x).view(-1, 2, 2).sum(2)
    expected = torch.stack([pairs[:, 0], torch.zeros(b.samples), pairs[:, 1]], 1)
    return b.done(step, out=out, expected=expected)


@case(("sum",), ("max",))
def pool_of_shared_products(b: Builder, op: str) -> StepCase:
    """AFFINE into a pool: a sum stays AFFINE and is then moved; a maximum combines on the fly."""
    b.directions = 2
    shape = Shape(2, 3, (6, 6))
    x = b.input(b.normal(b.samples, 72))
    w, weight = b.filters(1, 3, 2, 3, 3)
    y = shape.of(rows(b, x), weight)
    affine = b.live(48, Grid.AFFINE)
    offsets, sources = ragged([g + c * 16 for c in range(3) for g in windows((4, 4), 2, 2, 0)])
    pooled = b.live(12, Grid.AFFINE if op == "sum" else Grid.FULL)
    steps: list[Step] = [
        shape.contract(x, affine, w),
        Reduce(op, affine, offsets, sources, pooled, steps_from(12), scale=0.25),
    ]
    expected = F.max_pool2d(y, 2).flatten(1)
    out = pooled
    if op == "sum":
        moved, out = b.live(13, Grid.AFFINE, fill=3.0), b.live(13)
        back = table(np.arange(12)[::-1])
        steps.append(Map("copy", (Operand("buffer", pooled, back),), moved, steps_from(12)))
        read = (Operand("buffer", moved, steps_from(13)), Operand("number", value=2.0))
        steps.append(Map("mul", read, out, steps_from(13)))
        expected = 2 * F.pad(F.avg_pool2d(y, 2).flatten(1).flip(1), (0, 1), value=3.0)
    return b.done(*steps, out=out, expected=expected)


NORMS: dict[str, tuple[int, bool, Callable[..., Tensor]]] = {
    # groups of 4 channels of 6 positions; weights are by channel
    "group": (2, False, lambda x, g, h: F.group_norm(x, 2, g, h, 1e-3)),
    "instance": (4, False, lambda x, g, h: F.instance_norm(x, None, None, g, h, eps=1e-3)),
    "all": (1, False, lambda x, g, h: F.group_norm(x, 1, g, h, 1e-3)),
}


@case(*NORMS.items(), name="norm")
def norm(b: Builder, _: str, row: tuple[int, bool, Callable[..., Tensor]]) -> StepCase:
    groups, rms, function = row
    x = b.input(b.normal(b.samples, 24, scale=3.0))
    (gamma, at_gamma), (beta, at_beta) = b.weight(4), b.weight(4)
    index = steps_from(24).reshape(groups, -1)
    by_channel = table(np.repeat(np.arange(4), 6).reshape(groups, -1))
    out = b.live(24)
    step = Normalize(
        x, index, out, table(index[:, ::-1]), gamma, by_channel, beta, by_channel, 1e-3, rms,
        Activation("sigmoid"),
    )  # fmt: skip
    y = torch.sigmoid(function(rows(b, x).view(-1, 4, 6), at_gamma, at_beta))
    return b.done(step, out=out, to=index[:, ::-1], expected=y)


@case(("layer",), ("rms",), ("plain",), ("wild",), name="row_norm")
def row_norm(b: Builder, kind: str) -> StepCase:
    """Each of 3 rows of 7 by itself; a constant and a large offset among them."""
    values = b.wild(21)
    if kind != "wild":
        values = b.normal(b.samples, 21)
        values[:, :7] += 100
        values[0, 7:14] = 2.0
    x = b.input(values)
    out = b.live(21)
    index = steps_from(21).reshape(3, 7)
    rest: dict[str, Any] = {"eps": 1e-5, "rms": kind == "rms"}
    gamma = beta = None
    at = table(np.tile(np.arange(7), (3, 1)))
    if kind in ("layer", "rms"):
        rest["gamma"], gamma = b.weight(7)
        rest["gamma_at"] = at
    if kind == "layer":
        rest["beta"], beta = b.weight(7)
        rest["beta_at"] = at
    y = rows(b, x).view(-1, 3, 7)
    normed = F.rms_norm(y, (7,), gamma, 1e-5)
    expected = normed if kind == "rms" else F.layer_norm(y, (7,), gamma, beta, 1e-5)
    return b.done(Normalize(x, index, out, index, **rest), out=out, expected=expected)


@case(("plain",), ("log",), ("masked",), ("wild",), ("large",), name="softmax")
def softmax(b: Builder, kind: str) -> StepCase:
    values = b.wild(20) if kind == "wild" else b.normal(b.samples, 20)
    values = values * 100 if kind == "large" else values
    if kind == "masked":
        values[:, [1, 2]] = -np.inf
        values[0, 5:10] = -np.inf  # nothing is left of this row
    x = b.input(values)
    out = b.live(20)
    index = steps_from(20).reshape(4, 5)
    y = rows(b, x).view(-1, 4, 5)
    expected = F.log_softmax(y, -1) if kind == "log" else F.softmax(y, -1)
    expected = torch.nan_to_num(expected) if kind == "masked" else expected
    step = Softmax(x, index, out, index, log=kind == "log", safe=kind == "masked")
    return b.done(step, out=out, expected=expected)
