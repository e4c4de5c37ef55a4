"""Factors, shifts, residuals and activations join the steps beside them, or must not."""

from __future__ import annotations

import dataclasses

import pytest
from optimize_cases import EVERY, MIDDLE, kinds, only, same, start
from random_programs import RELU, Builder

from landscapex.engine.program import Grid
from landscapex.engine.steps import Activation, Contract, Map, MatMul, Reduce, table

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
