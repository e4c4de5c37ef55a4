"""Optimised programs compute what they did: each rule with what it must do and must not do."""

from __future__ import annotations

import dataclasses
from collections import Counter

import lowered as lowering_checks
import models
import numpy as np
import pytest
import torch
from random_programs import RELU, Builder, Image, evaluate, random_program
from torch import nn
from torch.nn import functional as F

from landscapex.engine.lowering import fusion
from landscapex.engine.lowering.lanes import Lowered
from landscapex.engine.lowering.optimize import optimize
from landscapex.engine.program import Grid, Program
from landscapex.engine.steps import (
    Activation,
    Contract,
    LstmCell,
    Map,
    MatMul,
    Reduce,
    Winograd,
    table,
)

EVERY = slice(None)
MIDDLE = slice(1, -1)


def same(lowered: Lowered) -> Program:
    """Assert that the optimised program computes the same; return it."""
    before = evaluate(lowered)
    better = optimize(lowered)
    for shared in (False, True):
        after = evaluate(better, shared=shared)
        np.testing.assert_allclose(after[0], before[0], rtol=1e-9, atol=1e-9)
        for x, y in zip(before[1], after[1], strict=True):
            np.testing.assert_allclose(y, x, rtol=1e-9, atol=1e-9)
    return better.program


def kinds(program: Program) -> Counter[str]:
    """How many steps of each kind there are, beside the loss."""
    found = Counter(type(s).__name__ for s in program.steps)
    del found["ElementLoss"]
    return found


def only(program: Program, kind: type) -> list:
    """The steps of one kind."""
    return [s for s in program.steps if isinstance(s, kind)]


def start(channels: int = 4, size: int = 6, *, seed: int = 0) -> tuple[Builder, Image]:
    """A builder and a FULL image that a first convolution computed."""
    b = Builder(seed)
    return b, b.conv(b.input(2, size, size), channels, 1)


# --- any program ----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", range(10))
@pytest.mark.filterwarnings("ignore")
def test_random_programs_compute_the_same(block):
    for seed in range(30 * block, 30 * block + 30):
        same(random_program(seed))


def test_random_programs_get_smaller():
    before, after = Counter(), Counter()
    for seed in range(40):
        lowered = random_program(seed)
        before += kinds(lowered.program)
        after += kinds(optimize(lowered).program)
    assert after["Map"] < 0.6 * before["Map"]


def test_a_wrong_fusion_is_noticed(monkeypatch):
    monkeypatch.setattr(fusion, "_plus", lambda editor, step, shift: step)
    b, x = start()
    with pytest.raises(AssertionError, match="Not equal"):
        same(b.lowered(b.norm(x)))


def test_optimising_is_deterministic_and_leaves_its_argument_alone():
    lowered = random_program(3)
    before = repr(lowered)
    assert repr(optimize(lowered)) == repr(optimize(lowered))
    assert repr(lowered) == before


def test_what_nobody_reads_goes():
    b, x = start()
    unread = b.input(3, 2, 2)
    b.pool(b.softmax(x))
    b.norm(unread)
    better = optimize(b.lowered(x))
    assert kinds(better.program) == {"Contract": 1}
    assert len(better.program.buffers) == 2
    assert len(better.program.weights) == 2
    assert [i.node for i in better.inputs] == ["x0"]


# --- copies ---------------------------------------------------------------------------------------


def test_a_halo_is_written_around_the_value_at_once():
    b, x = start()
    program = same(b.lowered(b.conv(b.padded(x, 1), 3)))
    assert kinds(program) == {"Contract": 2}
    assert sorted(buffer.elements for buffer in program.buffers) == [72, 108, 256]


def test_parts_of_a_joined_value_are_written_beside_each_other():
    b, x = start()
    y, z = b.conv(x, 3, 1), b.conv(x, 2, 1)
    program = same(b.lowered(b.conv(b.padded(b.cat(x, y, z), 1), 3)))
    assert kinds(program) == {"Contract": 4}


def test_a_narrow_halo_lies_in_a_wide_one():
    b, x = start()
    y, z = b.conv(b.padded(x, 1), 3, 3), b.conv(b.padded(x, 2), 3, 5)
    program = same(b.lowered(b.cat(y, z)))
    assert kinds(program) == {"Contract": 3}


def test_a_halo_does_not_wrap_around_rows():
    b, x = start()
    tall = b.image(4, 10, 6)
    b.copy(x, tall.part(EVERY, slice(2, -2)))
    program = same(b.lowered(b.cat(b.conv(tall, 2, 1)), b.conv(b.padded(x, 1), 3, 3)))
    assert kinds(program)["Map"] == 1


def test_values_in_rows_and_in_reverse_take_tables_apart():
    b, x = start()
    turned = b.padded(x.part(slice(None, None, -1), slice(None, None, -1)), 1)
    y, z = b.conv(turned, 2, 3, groups=2), b.conv(x, 2, 3, groups=2)
    assert kinds(same(b.lowered(z, y))) == {"Contract": 3}


def test_a_copy_stays_where_its_readers_cannot_say_what_they_read():
    b, x = start()
    rolled = Image(x.buffer, np.roll(x.index.reshape(-1), 5).reshape(x.index.shape))
    arranged = b.image(*x.index.shape)
    b.copy(rolled, arranged)
    assert kinds(same(b.lowered(b.conv(arranged, 2), b.conv(x, 2)))) == {"Contract": 3, "Map": 1}


def test_a_copy_stays_where_a_value_lies_twice():
    b, x = start(size=4)
    twice = b.padded(Image(x.buffer, np.repeat(x.index, 2, 2)), 1)
    assert kinds(same(b.lowered(b.conv(twice, 2)))) == {"Contract": 2, "Map": 1}


def test_a_copy_of_a_part_stays_where_others_read_the_rest():
    b, x = start()
    part = b.padded(x.part(EVERY, slice(0, 4), slice(0, 4)), 1)
    assert kinds(same(b.lowered(b.conv(x, 2), b.conv(part, 2)))) == {"Contract": 3, "Map": 1}


def test_fills_of_different_values_are_not_confused():
    b, x = start()
    zeros = b.padded(x, 1, 0.0)
    ones = b.padded(x, 1, 1.0)
    program = same(b.lowered(b.conv(zeros, 2), b.conv(ones, 3)))
    assert kinds(program) == {"Contract": 3, "Map": 1}


def test_a_filled_part_of_a_source_keeps_its_fill():
    b, x = start()
    source = b.image(4, 6, 12, fill=2.0)
    b.copy(x, source.part(EVERY, EVERY, slice(0, 6)))
    target = b.image(4, 6, 14, fill=3.0)
    b.copy(source, target.part(EVERY, EVERY, MIDDLE))
    same(b.lowered(b.conv(target, 2)))


def test_a_target_with_two_writers_is_not_read_from_one_source():
    b, x = start()
    y = b.softmax(x)
    both = b.cat(x, y)
    same(b.lowered(x, y, b.conv(both, 2, 1)))


def test_outputs_follow_their_values():
    b, x = start()
    y = b.conv(b.padded(x, 1), 2)
    b.norm(x)
    program = same(b.lowered(x.part(EVERY, slice(None, None, 2)), y))
    assert program.outputs[0][1].shape == (4, 3, 6)
    assert kinds(program) == {"Contract": 2}


def test_an_output_that_moved_is_not_fused_away():
    b, x = start()
    y = b.conv(b.input(2, 6, 6), 2, 1)
    z = b.norm(b.cat(x, y))
    assert kinds(same(b.lowered(x, z))) == {"Contract": 2, "Map": 1}


def test_cells_do_not_read_inputs():
    b = Builder()
    gates = b.conv(b.input(2, 1, 1), 8, 1)
    given = b.input(2, 1, 1)
    cell, h, c = b.image(2, 1, 1), b.image(2, 1, 1), b.image(2, 1, 1)
    b.copy(given, cell)
    at = table(gates.index.reshape(4, 2))
    b.steps.append(
        LstmCell(gates.buffer, at, cell.buffer, cell.flat, c.buffer, c.flat, h.buffer, h.flat)
    )
    assert kinds(same(b.lowered(h))) == {"Contract": 1, "Map": 1, "LstmCell": 1}


# --- epilogues ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [False, True], ids=["fixed", "moves"])
def test_norm_residual_and_activation_join_the_convolution(gamma):
    b, x = start()
    y = b.conv(b.padded(x, 1), 4)
    y = b.map("copy", b.map("add", x, b.norm(y, moves=gamma)), act=RELU)
    program = same(b.lowered(b.conv(b.padded(y, 1), 2)))
    assert kinds(program) == {"Contract": 3}
    middle = only(program, Contract)[1]
    assert middle.residual >= 0
    assert middle.activation == RELU
    assert (middle.scale >= 0) == gamma
    assert (middle.shift >= 0) == gamma


def test_fixed_factors_go_into_weight_and_bias():
    b, x = start()
    y = b.conv(x, 3, groups=2)
    y = b.map("mul", b.map("add", b.map("div", y, 4.0), b.by_channel(y)), -2.0)
    program = same(b.lowered(b.map("copy", b.norm(y), act=Activation("scale", 0.5))))
    step = only(program, Contract)[1]
    assert kinds(program) == {"Contract": 2}
    assert (step.scale, step.shift) == (-1, -1)


def test_fixed_factors_after_a_moving_scale_reach_scale_and_shift():
    b, x = start()
    y = b.map("mul", b.norm(b.conv(x, 3), moves=True), 3.0)
    program = same(b.lowered(y))
    assert kinds(program) == {"Contract": 2}


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda b, y: b.map("add", y, b.by_element(y)), id="weight by element"),
        pytest.param(lambda b, y: b.map("mul", y, y), id="its own square"),
        pytest.param(lambda b, y: b.map("scale_shift", 2.0, 3.0, y), id="as a shift"),
        pytest.param(
            lambda b, y: b.map("mul", b.map("add", y, b.softmax(b.conv(y, 3, 1))), 2.0),
            id="read twice",
        ),
    ],
)
def test_what_is_no_epilogue_stays_a_step(spoil):
    b, x = start()
    y = b.conv(x, 3, 1)
    assert kinds(same(b.lowered(spoil(b, y))))["Map"] >= 1


def test_nothing_is_scaled_after_a_residual_or_an_activation():
    b, x = start()
    y = b.map("mul", b.map("add", b.conv(x, 4, 1), x), 2.0)
    z = b.map("mul", b.map("copy", b.conv(x, 4, 1), act=RELU), 2.0)
    program = same(b.lowered(b.cat(y, z)))
    assert kinds(program) == {"Contract": 3, "Map": 2}


def test_a_shift_after_a_residual_is_a_shift():
    b, x = start()
    y = b.map("add", b.conv(x, 4, 1), x)
    assert kinds(same(b.lowered(b.map("add", b.by_channel(y), y)))) == {"Contract": 2}


def test_two_residuals_do_not_fit():
    b, x = start()
    y = b.map("add", b.map("add", b.conv(x, 4, 1), x), b.softmax(x))
    assert kinds(same(b.lowered(y)))["Map"] == 1


def test_two_scales_that_move_do_not_fit():
    b, x = start()
    y = b.norm(b.norm(b.conv(x, 4, 1), moves=True), moves=True)
    assert kinds(same(b.lowered(y)))["Map"] == 1


def test_a_difference_takes_the_right_sign():
    b, x = start()
    y = b.map("sub", x, b.conv(x, 4, 1))
    z = b.map("sub", b.conv(x, 4, 1), x)
    u = b.map("sub", 3.0, b.conv(x, 4, 1))
    v = b.map("sub", b.conv(x, 4, 1), 3.0)
    program = same(b.lowered(b.cat(y, z, u, v)))
    assert kinds(program) == {"Contract": 5, "Map": 1}


def test_a_contraction_waits_for_its_residual():
    b, x = start()
    early = b.conv(x, 4, 1)
    late = b.softmax(x)
    program = same(b.lowered(b.map("add", early, late)))
    assert [type(s).__name__ for s in program.steps[:3]] == ["Contract", "Softmax", "Contract"]


def test_parts_of_a_value_that_is_computed_in_phases_share_its_epilogue():
    b, x = start(size=4)
    parts = [b.conv(x, 2, 1) for _ in range(2)]
    whole = b.image(2, 4, 8)
    for k, part in enumerate(parts):
        b.copy(part, whole.part(EVERY, EVERY, slice(k, None, 2)))
    program = same(b.lowered(b.norm(whole, act=RELU)))
    assert kinds(program) == {"Contract": 3}
    assert all(s.activation == RELU for s in only(program, Contract)[1:])


def test_phases_do_not_read_a_residual_that_comes_later():
    b, x = start(size=4)
    first, second = b.conv(x, 2, 1), b.conv(x, 2, 1)
    whole = b.cat(first, second)
    program = same(b.lowered(b.map("add", whole, b.softmax(b.conv(x, 4, 1)))))
    assert kinds(program) == {"Contract": 4, "Softmax": 1, "Map": 1}


def test_activations_join_whatever_step_comes_before():
    b, x = start()
    y = b.map("copy", b.pool(x, "sum"), act=Activation("tanh"))
    z = b.map("copy", b.map("mul", y, y), act=Activation("scale", 3.0))
    program = same(b.lowered(b.map("copy", z, act=Activation("tanh"))))
    assert kinds(program) == {"Contract": 1, "Reduce": 1, "Map": 2}


def test_a_factor_and_an_activation_do_not_both_fit():
    b, x = start()
    y = b.map("mul", b.map("mul", x, x), 2.0, act=RELU)
    assert kinds(same(b.lowered(y))) == {"Contract": 1, "Map": 2}


def test_factors_join_sums_and_products_of_matrices():
    b, x = start(4, 4)
    pooled = b.map("mul", b.pool(x, "sum"), 0.3)
    rows = table(x.index.reshape(1, 16, 4))
    out = b.image(1, 16, 16)
    b.steps.append(
        MatMul(x.buffer, rows, x.buffer, table(x.index.reshape(1, 4, 16)), out.buffer,
               table(out.index), 2.0)
    )  # fmt: skip
    program = same(b.lowered(pooled, b.map("div", out, 4.0)))
    assert kinds(program) == {"Contract": 1, "Reduce": 1, "MatMul": 1}
    assert only(program, MatMul)[0].scale == 0.5


# --- rising functions and maxima ------------------------------------------------------------------


def test_relu_waits_for_the_maximum():
    b = Builder()
    x = b.conv(b.input(2, 4, 4), 3, 1, grid=Grid.AFFINE)
    program = same(b.lowered(b.pool(b.norm(x, act=RELU))))
    assert kinds(program) == {"Contract": 1, "Reduce": 1}
    assert only(program, Reduce)[0].activation == RELU


@pytest.mark.parametrize(
    ("act", "waits"),
    [
        (Activation("leaky_relu", 0.1), True),
        (Activation("leaky_relu", -0.1), False),
        (Activation("square"), False),
        (Activation("sin"), False),
    ],
    ids=["rises", "falls on the left", "square", "sine"],
)
def test_only_rising_functions_wait_for_the_maximum(act, waits):
    b = Builder()
    x = b.conv(b.input(2, 4, 4), 3, 1, grid=Grid.AFFINE)
    program = same(b.lowered(b.pool(b.map("copy", x, act=act), "min")))
    assert (only(program, Reduce)[0].activation == act) == waits


def test_functions_do_not_wait_if_others_read_them_too():
    b, x = start()
    y = b.map("copy", b.softmax(x), act=RELU)
    program = same(b.lowered(b.conv(y, 2), b.pool(y)))
    assert kinds(program) == {"Contract": 2, "Softmax": 1, "Map": 1, "Reduce": 1}


def test_functions_do_not_wait_for_overlapping_maxima_of_shared_values():
    b = Builder()
    x = b.conv(b.input(2, 4, 4), 3, 1, grid=Grid.AFFINE)
    program = same(b.lowered(b.pool(b.map("copy", x, act=RELU), size=3, stride=1)))
    assert kinds(program) == {"Contract": 1, "Map": 1, "Reduce": 1}


def test_functions_do_not_wait_for_maxima_over_halos_or_with_a_function_of_their_own():
    b, x = start()
    y = b.softmax(x)
    wide = b.image(4, 8, 8, fill=0.5)
    b.copy(y, wide.part(EVERY, MIDDLE, MIDDLE), RELU)
    first = b.pool(wide)
    second = b.pool(b.map("copy", y, act=Activation("tanh")))
    last = b.steps[-1]
    assert isinstance(last, Reduce)
    b.steps[-1] = dataclasses.replace(last, activation=Activation("square"))
    program = same(b.lowered(first, second))
    assert kinds(program)["Map"] == 2


# --- shared values --------------------------------------------------------------------------------


def test_fixed_norms_of_shared_values_go_into_the_weights():
    b = Builder()
    x = b.conv(b.input(2, 4, 4), 3, 1, grid=Grid.AFFINE)
    program = same(b.lowered(b.norm(x, act=RELU)))
    (step,) = only(program, Map)
    assert (step.op, step.activation) == ("copy", RELU)
    assert program.buffers[only(program, Contract)[0].out].grid is Grid.AFFINE


def test_moving_norms_and_residuals_of_shared_values_stay():
    b = Builder()
    given = b.input(2, 4, 4)
    x = b.conv(given, 3, 1, grid=Grid.AFFINE)
    y = b.conv(given, 3, 1, grid=Grid.AFFINE)
    z = b.map("add", b.norm(x, moves=True), y)
    assert kinds(same(b.lowered(z))) == {"Contract": 2, "Map": 2}


def test_a_shared_residual_is_read_as_it_is():
    b = Builder()
    given = b.input(2, 4, 4)
    x, y = b.conv(given, 3, 1, grid=Grid.AFFINE), b.conv(given, 3, 1)
    program = same(b.lowered(b.map("add", x, y)))
    assert kinds(program) == {"Contract": 2}
    assert program.buffers[only(program, Contract)[1].residual].grid is Grid.AFFINE


# --- Winograd -------------------------------------------------------------------------------------


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


# --- memory ---------------------------------------------------------------------------------------


def test_a_chain_of_equal_layers_needs_two_places():
    b, x = start()
    for _ in range(6):
        x = b.softmax(x)
    storage = same(b.lowered(b.conv(x, 2, 1))).storage
    assert len(set(storage)) == 4  # the input, two in turn, and the output


def test_halos_of_one_kind_share_and_keep_their_fill():
    b, x = start()
    for _ in range(5):
        x = b.conv(b.padded(x, 1), 4)
    program = same(b.lowered(b.conv(b.padded(x, 1, 1.0), 4)))
    wide = [i for i, buffer in enumerate(program.buffers) if buffer.elements == 256]
    assert len(wide) == 6
    assert len({program.storage[i] for i in wide}) == 3  # two in turn; the other fill has its own


def test_inputs_shared_values_and_outputs_lie_alone():
    b = Builder()
    x = b.conv(b.input(2, 4, 4), 3, 1, grid=Grid.AFFINE)
    y = b.softmax(b.map("copy", x, act=RELU))
    z = b.softmax(b.softmax(b.conv(y, 3, 1)))
    program = same(b.lowered(y, z))
    alone = [i for i, buffer in enumerate(program.buffers) if buffer.grid is not Grid.FULL]
    alone += [buffer for buffer, _ in program.outputs]
    for i in alone:
        assert program.storage.count(program.storage[i]) == 1
    assert len(alone) == 4


# --- whole networks -------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block that subsamples, with a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.short = nn.Conv2d(3, 8, 1, 2)
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return self.linear((y + self.short(x)).relu().mean((2, 3)))


class Joined(nn.Module):
    """An encoder, a transposed convolution and a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, 1, 1)
        self.low = nn.Conv2d(4, 6, 3, 1, 1)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(8, 3, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.down(x).relu()
        b = self.low(F.max_pool2d(a, 2)).relu()
        joined = torch.cat([self.norm(self.up(b)).relu(), a], 1)
        return self.last(joined).mean((2, 3))


def _rested(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                assert tensor is not None
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            assert module.running_var is not None
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model.eval()


NETWORKS = {
    "block": (Block, (3, 8, 8), {"Contract": 4, "Reduce": 1, "CrossEntropy": 1}),
    "joined": (Joined, (2, 8, 8), {"Contract": 7, "Reduce": 2, "CrossEntropy": 1}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_contractions_and_pools(name):
    build, shape, expected = NETWORKS[name]
    model = _rested(models.seeded(build))
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5, *shape, generator=generator)
    y = torch.randint(0, 3, (5,), generator=generator)
    moving = [n for n, p in model.named_parameters() if p.ndim > 1]
    done = lowering_checks.check(model, (x, y), moving=moving, share=False, simplify=True)
    assert Counter(type(s).__name__ for s in done.program.steps) == expected


@pytest.mark.parametrize("name", models.CASES)
def test_models_of_the_other_tests_compute_what_torch_does(name):
    case = models.case(name)
    lowering_checks.check(case.model, case.batches[0], case.loss, simplify=True)
