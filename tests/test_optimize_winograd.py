"""Which convolutions use Winograd, and that they compute the same."""

from __future__ import annotations

import dataclasses

import pytest
from optimize_cases import EVERY, kinds, only, same, start
from random_programs import RELU, Builder, Image

from landscapex.engine.program import Grid
from landscapex.engine.steps import Contract, Winograd, table


def test_three_by_three_convolutions_use_winograd():
    b, x = start(32, 4)
    residual = b.softmax(b.conv(x, 8, 1))
    y = b.norm(b.conv(b.padded(x, 1), 8), moves=True)
    y = b.map("copy", b.map("add", y, residual), act=RELU)
    program = same(b.lowered(b.conv(b.padded(y, 1), 2)))
    (step,) = only(program, Winograd)
    assert (step.inputs, step.outputs, step.height, step.width) == (32, 8, 4, 4)
    assert (step.out_row, step.out_channel) == (6, 36)
    assert min(step.bias, step.scale, step.shift, step.residual) >= 0
    assert program.weights[step.weight].winograd == (8, 32)
    assert program.weights[step.weight].size == 8 * 32 * 36


@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "stride", "groups"),
    [
        (24, 8, 3, 1, 1),
        (36, 8, 3, 1, 1),
        (32, 6, 3, 1, 1),
        (32, 8, 3, 2, 1),
        (32, 8, 3, (2, 1), 1),
        (288, 8, 1, 1, 1),
        (290, 8, 1, 1, 1),
        (64, 8, 3, 1, 2),
    ],
    ids=["few", "odd inputs", "odd outputs", "stride", "stride down", "1 x 1", "not 9", "groups"],
)
def test_other_convolutions_do_not(inputs, outputs, kernel, stride, groups):
    b, x = start(inputs, 8)
    y = b.padded(x, kernel // 2) if kernel > 1 else x
    y = b.conv(y, outputs, kernel, stride=stride, groups=groups)
    assert not only(same(b.lowered(y)), Winograd)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (4, 8)])
def test_winograd_needs_multiples_of_four(shape):
    b, x = start(32, 10)
    y = b.conv(x.part(EVERY, slice(0, shape[0] + 2), slice(0, shape[1] + 2)), 8)
    program = same(b.lowered(y))
    assert len(only(program, Winograd)) == (shape == (4, 8))


def test_winograd_needs_a_whole_image_in_place():
    b, x = start(32, 8)
    wide = b.padded(x, 1)
    turned = b.conv(Image(wide.buffer, wide.index.transpose(0, 2, 1)), 8)
    mirrored = b.conv(wide.part(EVERY, EVERY, slice(None, None, -1)), 8)
    residual = b.map("add", b.conv(wide, 8), mirrored.part(EVERY, EVERY, slice(None, None, -1)))
    channels, columns = b.image(8, 8, 8), b.image(8, 8, 8)
    b.copy(b.conv(wide, 8), channels.part([1, 0, 2, 3, 4, 5, 6, 7]))
    b.copy(b.conv(wide, 8), columns.part(EVERY, EVERY, [0, 2, 1, 3, 4, 5, 6, 7]))
    part = b.conv(wide, 8)
    step = b.steps[-1]
    assert isinstance(step, Contract)
    b.steps[-1] = dataclasses.replace(step, at=step.at[:34].copy(), to=step.to[:34].copy())
    program = same(b.lowered(turned, residual, channels, columns, part))
    assert kinds(program) == {"Contract": 7}


def test_winograd_needs_adjacent_taps():
    b, x = start(32, 12)
    y = b.conv(x.part(EVERY, slice(0, 10), slice(0, 10)), 8)
    step = b.steps[-1]
    assert isinstance(step, Contract)
    spread = x.index[:, 0:3, 0:5:2].reshape(-1)
    b.steps[-1] = dataclasses.replace(step, taps=table(spread))
    assert not only(same(b.lowered(y)), Winograd)


def test_winograd_finds_the_first_element():
    b, x = start(32, 4)
    residual = b.softmax(x.part(slice(0, 8)))
    y = b.conv(b.padded(x, 1), 8)
    step = b.steps[-1]
    assert isinstance(step, Contract)
    b.steps[-1] = dataclasses.replace(
        step,
        at=step.at + 1,
        group=step.group - 1,
        to=step.to + 2,
        channels=step.channels - 2,
        residual=residual.buffer,
        residual_at=table(residual.index[0].reshape(-1) + 3),
        residual_channels=table(residual.index[:, 0, 0] - 3).reshape(1, 8),
    )
    assert kinds(same(b.lowered(y)))["Winograd"] == 1


def test_shared_convolutions_do_not_use_winograd():
    b = Builder()
    assert not only(same(b.lowered(b.conv(b.input(32, 6, 6), 8, grid=Grid.AFFINE))), Winograd)


def test_winograd_reads_no_shared_residual():
    b, x = start(32, 4)
    shared = b.conv(b.input(2, 4, 4), 8, 1, grid=Grid.AFFINE)
    program = same(b.lowered(b.map("add", b.conv(b.padded(x, 1), 8), shared)))
    assert kinds(program) == {"Contract": 3}
