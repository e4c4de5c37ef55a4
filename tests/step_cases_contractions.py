"""Cases for contractions, convolutions and products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from step_builder import Array, Builder, Shape, StepCase, case, padded, rows, steps_from
from torch import Tensor
from torch.nn import functional as F

from landscapex.engine.program import Grid
from landscapex.engine.steps import Activation, Contract, Map, MatMul, Operand, Winograd, table


@case((1,), (7,), (8,), (9,), (20,))
def linear(b: Builder, outputs: int) -> StepCase:
    """A linear layer with bias and ReLU."""
    x = b.input(b.normal(b.samples, 11))
    w, weight = b.filters(1, outputs, 11)
    bias, at_bias = b.weight(outputs)
    out = b.live(outputs)
    step = Contract(
        x, steps_from(11), table([0]), table([0]), out, table([0]), steps_from(outputs)[None],
        w, bias, activation=Activation("relu"),
    )  # fmt: skip
    return b.done(step, out=out, expected=F.relu(F.linear(rows(b, x), weight, at_bias)))


@case()
def linear_of_wild_numbers(b: Builder) -> StepCase:
    x = b.input(b.wild(12))
    w, weight = b.filters(1, 3, 2)
    out = b.live(18)
    # six positions of two inputs; outputs lie position by position
    step = Contract(
        x, steps_from(2), table(np.arange(0, 12, 2)), table([0]), out,
        table(np.arange(0, 18, 3)), steps_from(3)[None], w,
    )  # fmt: skip
    expected = F.linear(rows(b, x).view(b.samples, 6, 2), weight)
    return b.done(step, out=out, expected=expected)


CONVOLUTIONS = {
    "pointwise": Shape(5, 12, (4, 3), (1, 1)),
    "3x3": Shape(3, 10, (6, 5), padding=1),
    "5x5_stride_2": Shape(2, 4, (9, 8), (5, 5), stride=2, padding=2),
    "dilated": Shape(2, 3, (8, 8), padding=2, dilation=2),
    "grouped": Shape(6, 20, (5, 5), padding=1, groups=2),
    "depthwise": Shape(5, 5, (5, 4), padding=1, groups=5),
    "1d": Shape(3, 6, (1, 12), (1, 4), stride=2),
}


@case(*CONVOLUTIONS.items(), name="convolution")
def convolution(b: Builder, _: str, shape: Shape) -> StepCase:
    x = b.input(b.normal(b.samples, shape.inputs * shape.size[0] * shape.size[1]))
    source, before = padded(b, x, shape)
    per_group = shape.outputs // shape.groups
    w, weight = b.filters(shape.groups, per_group, shape.inputs // shape.groups, *shape.kernel)
    bias, at_bias = b.weight(shape.outputs)
    expected = shape.of(rows(b, x), weight, at_bias)
    out = b.live(expected[0].numel())
    return b.done(
        *before, shape.contract(source, out, w, bias=bias), out=out, expected=expected
    )  # fmt: skip


EPILOGUES = ("bias scale shift residual", "bias", "scale", "shift", "residual", "shift residual")


def epilogue(
    b: Builder, parts: str, y: Tensor, residual: int, at: Array
) -> tuple[dict[str, int], Tensor]:
    """Random weights for some of the parts, and what they make of ``y [samples, channels, n]``.

    The residual of an output lies at ``at[channel, n]`` of a buffer.
    """
    channels = y.shape[1]
    numbers: dict[str, int] = {}
    values = {"bias": torch.zeros(channels), "scale": torch.ones(channels)}
    values["shift"] = values["bias"]
    for part in parts.split() if parts != "plain" else ():
        if part == "residual":
            numbers[part] = residual
        else:
            numbers[part], values[part] = b.weight(channels)
    y = values["scale"][:, None] * (y + values["bias"][:, None]) + values["shift"][:, None]
    return numbers, y + rows(b, residual)[:, at] if "residual" in parts else y


@case((EPILOGUES[0], "grouped"), name="grouped_epilogue")
@case(*((parts, "3x3") for parts in EPILOGUES), name="epilogue")
def convolution_with_epilogue(b: Builder, parts: str, kind: str) -> StepCase:
    """Bias, scale, shift, a residual that lies elsewhere, in any selection; then GELU."""
    shape = CONVOLUTIONS[kind]
    x = b.input(b.normal(b.samples, shape.inputs * shape.size[0] * shape.size[1]))
    source, before = padded(b, x, shape)
    per_group = shape.outputs // shape.groups
    w, weight = b.filters(shape.groups, per_group, shape.inputs // shape.groups, *shape.kernel)
    y = shape.of(rows(b, x), weight).flatten(2)
    positions = y.shape[2]
    residual = b.input(b.normal(b.samples, positions, shape.outputs))
    # the residual holds positions backwards, channels fastest
    backwards = table(np.arange(positions)[::-1] * shape.outputs)
    channels = steps_from(shape.outputs).reshape(shape.groups, per_group)
    at = channels.reshape(-1, 1) + backwards
    rest: dict[str, Any]
    rest, y = epilogue(b, parts, y, residual, at)
    if "residual" in rest:
        rest |= {"residual_at": backwards, "residual_channels": channels}
    out = b.live(positions * shape.outputs)
    step = shape.contract(source, out, w, **rest, activation=Activation("gelu"))
    return b.done(*before, step, out=out, expected=F.gelu(y))


@case((1,), (2,), (3,))
def shared_product(b: Builder, directions: int) -> StepCase:
    """A convolution of the input shared among points, then ReLU; then used as a residual."""
    b.directions = directions
    shape = CONVOLUTIONS["pointwise"]
    x = b.input(b.normal(b.samples, 5 * 12))
    w, weight = b.filters(1, 12, 5, 1, 1)
    bias, at_bias = b.weight(12)
    first = shape.of(rows(b, x), weight, at_bias).flatten(1)
    affine = b.live(first.shape[1], Grid.AFFINE)
    active = b.live(first.shape[1])
    read = Operand("buffer", affine, steps_from(first.shape[1]))
    activated = Map("copy", (read,), active, read.at, Activation("relu"))
    mixed, mix = b.filters(1, 12, 12, 1, 1)
    again = Shape(12, 12, shape.size, (1, 1))
    expected = again.of(F.relu(first), mix).flatten(1) + first
    out = b.live(first.shape[1])
    last = again.contract(
        active, out, mixed, residual=affine, residual_at=steps_from(12),
        residual_channels=table(np.arange(12)[None] * 12),
    )  # fmt: skip
    return b.done(
        shape.contract(x, affine, w, bias=bias), activated, last, out=out, expected=expected
    )  # fmt: skip


@case(("plain", 8, 8), *((parts, 4, 12) for parts in EPILOGUES), name="winograd")
def winograd(b: Builder, parts: str, height: int, width: int) -> StepCase:
    """Outputs go into a buffer with a halo of its own."""
    inputs, outputs = 8, 16
    shape = Shape(inputs, outputs, (height, width), padding=1)
    x = b.input(b.normal(b.samples, inputs * height * width))
    source, before = padded(b, x, shape)
    w, weight = b.winograd(outputs, inputs)
    area = height * width
    residual = b.input(b.normal(b.samples, outputs * area))
    at = np.arange(outputs * area).reshape(outputs, area)
    rest: dict[str, Any]
    rest, y = epilogue(b, parts, shape.of(rows(b, x), weight).flatten(2), residual, at)
    if "residual" in rest:
        rest |= {"residual_channel": area, "residual_row": width}
    expected = F.pad(F.relu(y).unflatten(2, (height, width)), (1, 1, 1, 1))
    channel = (height + 2) * (width + 2)
    out = b.live(outputs * channel)
    step = Winograd(
        source, 0, channel, width + 2, inputs, out, width + 3, channel, width + 2,
        outputs, height, width, w, **rest, activation=Activation("relu"),
    )  # fmt: skip
    return b.done(*before, step, out=out, expected=expected)


@case((1, 1, 1, 1), (2, 5, 3, 4), (3, 7, 9, 6))
def matmul(b: Builder, batch: int, i: int, k: int, j: int) -> StepCase:
    """Products of live matrices; the second one is stored transposed."""
    x, y = b.input(b.normal(b.samples, batch, i, k)), b.input(b.normal(b.samples, batch, j, k))
    left = rows(b, x).view(-1, batch, i, k)
    right = rows(b, y).view(-1, batch, j, k)
    out = b.live(batch * i * j)
    step = MatMul(
        x, steps_from(batch * i * k).reshape(batch, i, k),
        y, table(np.arange(batch * j * k).reshape(batch, j, k).swapaxes(1, 2)),
        out, steps_from(batch * i * j).reshape(batch, i, j), 0.25,
    )  # fmt: skip
    return b.done(step, out=out, expected=0.25 * left @ right.mT)
