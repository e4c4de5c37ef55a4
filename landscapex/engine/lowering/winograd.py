"""Which contractions are 3 x 3 convolutions that Winograd's algorithm computes faster."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from landscapex.engine.lowering.editor import Editor
from landscapex.engine.program import Grid, Term, Weight
from landscapex.engine.steps import Contract, Table, Winograd
from landscapex.engine.weight_order import contract_order

_LEAST_INPUTS = 32  # fewer do not repay the transforms, and the loss of digits


def use_winograd(editor: Editor) -> None:
    """Turn every contraction that can be into a `Winograd` step.

    Args:
        editor: Of the program.
    """
    for i, step in enumerate(editor.steps):
        if isinstance(step, Contract):
            found = _winograd(editor, step)
            if found is not None:
                editor.replace(i, found)


def _winograd(editor: Editor, step: Contract) -> Winograd | None:
    groups, outputs = step.channels.shape
    inputs, rest = divmod(len(step.taps), 9)
    if groups != 1 or rest or inputs < _LEAST_INPUTS or inputs % 8 or outputs % 8:
        return None
    if editor.buffers[step.out].grid is not Grid.FULL:
        return None
    if step.residual >= 0 and editor.buffers[step.residual].grid is Grid.AFFINE:
        return None
    taps = step.taps.reshape(inputs, 3, 3)
    channel, row = int(taps[1, 0, 0] - taps[0, 0, 0]), int(taps[0, 1, 0] - taps[0, 0, 0])
    if (taps - taps[0, 0, 0] != _grid((inputs, channel), (3, row), (3, 1))).any():
        return None
    image = _image(step.at, step.to)
    if image is None:
        return None
    height, width = image
    if height % 4 or width % 4 or _rows(step.at, image) != row:
        return None
    out_row, out_channel = _rows(step.to, image), _stride(step.channels[0])
    if out_row is None or out_channel is None:
        return None
    found = Winograd(
        input=step.input,
        input_at=int(step.at[0] + step.group[0] + taps[0, 0, 0]),
        input_channel=channel,
        input_row=row,
        inputs=inputs,
        out=step.out,
        out_at=int(step.to[0] + step.channels[0, 0]),
        out_channel=out_channel,
        out_row=out_row,
        outputs=outputs,
        height=height,
        width=width,
        weight=-1,
        bias=step.bias,
        scale=step.scale,
        shift=step.shift,
        activation=step.activation,
    )
    if step.residual >= 0:
        residual_row, residual_channel = (
            _rows(step.residual_at, image),
            _stride(step.residual_channels[0]),
        )
        if residual_row is None or residual_channel is None:
            return None
        found = replace(
            found,
            residual=step.residual,
            residual_at=int(step.residual_at[0] + step.residual_channels[0, 0]),
            residual_channel=residual_channel,
            residual_row=residual_row,
        )
    packed = editor.weights[step.weight]
    return replace(found, weight=editor.weight(_filters(packed, outputs, inputs)))


def _grid(*axes: tuple[int, int]) -> np.ndarray:
    """Element numbers of a block: one axis for each (size, stride)."""
    return sum(
        (
            (np.arange(n) * stride).reshape([-1 if i == k else 1 for i in range(len(axes))])
            for k, (n, stride) in enumerate(axes)
        ),
        start=np.zeros((), np.int64),
    )


def _image(at: Table, to: Table) -> tuple[int, int] | None:
    """Height and width of the positions: rows end where the input makes a larger step."""
    steps = np.diff(at)
    ends = np.flatnonzero(steps != 1)
    if not len(ends) or len(at) % (ends[0] + 1):
        return None
    width = int(ends[0]) + 1
    return len(at) // width, width


def _rows(at: Table, image: tuple[int, int]) -> int | None:
    """The stride of rows of unit stride, if that is what a table describes."""
    rows = at.reshape(image)
    stride = int(rows[1, 0] - rows[0, 0])
    uniform = (rows - rows[0, 0] == _grid((image[0], stride), (image[1], 1))).all()
    return stride if uniform else None


def _stride(channels: Table) -> int | None:
    stride = int(channels[1] - channels[0])
    uniform = (channels - channels[0] == np.arange(len(channels)) * stride).all()
    return stride if uniform else None


def _filters(packed: Weight, outputs: int, inputs: int) -> Weight:
    """Packed weights of a contraction as filters ``[M][C][9]`` to be transformed."""
    order = np.argsort(contract_order(1, outputs, inputs * 9))
    terms = tuple(
        Term(t.slot, t.index[order], None if t.scale is None else t.scale[order])
        for t in packed.terms
    )
    offset = None if packed.offset is None else packed.offset[order]
    return Weight(outputs * inputs * 36, terms, offset, (outputs, inputs))
