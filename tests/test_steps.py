"""The literal executor of grid programs agrees with torch, step by step; so do tables and weights.

The cases serve the kernels too; a kernel is compared with the numbers that are checked here.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import program_reference
import program_rules
import pytest
import torch
from step_builder import Builder
from step_cases import CASES, StepCase
from step_cases_contractions import CONVOLUTIONS
from torch.nn import functional as F

from landscapex.engine.program import Buffer, Grid, Program, Term, Weight
from landscapex.engine.steps import (
    ACTIVATIONS,
    ELEMENT_LOSSES,
    MAP_OPS,
    Activation,
    Contract,
    CrossEntropy,
    ElementLoss,
    Hits,
    Map,
    Operand,
    Reduce,
    Step,
    table,
)
from landscapex.engine.weight_order import ROWS, contract_order, row_blocks


def assert_expected(case: StepCase, terms: np.ndarray, buffers: dict[int, np.ndarray]) -> None:
    """NaN and infinities in the same places, everything else to 1e-12."""
    found = program_reference.outputs(case.program, buffers)
    for value, expected in zip(found, case.outputs, strict=True):
        np.testing.assert_allclose(
            value.reshape(expected.shape), expected, rtol=1e-12, atol=1e-12
        )  # fmt: skip
    np.testing.assert_allclose(terms, case.terms, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("samples", [1, 7, 17])
@pytest.mark.parametrize("name", CASES)
def test_a_step_computes_what_torch_computes(name: str, samples: int) -> None:
    case = CASES[name](samples)
    program_rules.check(case.program)
    weights = program_reference.weights_at(case.program, case.slots)
    assert_expected(case, *program_reference.run(case.program, case.inputs, weights))


AFFINE = [
    name for name in CASES if any(b.grid is Grid.AFFINE for b in CASES[name](1).program.buffers)
]


@pytest.mark.parametrize("name", AFFINE)
def test_shared_products_give_the_same_values(name: str) -> None:
    case = CASES[name](5)
    sets = [
        program_reference.weights_at(case.program, slots, offset=k == 0)
        for k, slots in enumerate(case.sets)
    ]
    nothing = [np.full_like(w, np.nan) for w in sets[0]]
    own = program_reference.weights_at(case.program, case.slots)
    used = {s.weight for s in case.program.steps if program_rules.is_shared(case.program, s)
            and isinstance(s, Contract)}  # fmt: skip
    # weights of shared steps come from the sets alone
    weights = [nothing[i] if i in used else w for i, w in enumerate(own)]
    result = program_reference.run(
        case.program, case.inputs, weights, sets=sets, coefficients=case.coefficients
    )
    assert_expected(case, *result)


def test_every_kind_of_step_and_function_has_a_case() -> None:
    steps: list[Step] = [s for make in CASES.values() for s in make(1).program.steps]
    assert {type(s) for s in steps} == set(Step.__args__)
    assert {s.activation.name for s in steps if hasattr(s, "activation")} >= set(ACTIVATIONS)
    assert {s.op for s in steps if isinstance(s, Map)} == set(MAP_OPS)
    assert {s.op for s in steps if isinstance(s, Reduce)} == {"sum", "max", "min", "prod"}
    assert {s.kind for s in steps if isinstance(s, ElementLoss)} == set(ELEMENT_LOSSES)
    assert {s.decision for s in steps if isinstance(s, Hits)} == {"class", "threshold"}
    kinds = {(s.log_input, s.probabilities) for s in steps if isinstance(s, CrossEntropy)}
    assert kinds == {(False, False), (True, False), (False, True)}


def test_cases_are_the_same_every_time_and_of_float32_numbers() -> None:
    for name, make in CASES.items():
        first, second = make(3), make(3)
        for i, values in first.inputs.items():
            np.testing.assert_array_equal(values, second.inputs[i], err_msg=name)
            if first.program.buffers[i].kind == "input":
                rounded = values.astype(np.float32).astype(np.float64)
                np.testing.assert_array_equal(rounded, values, err_msg=name)


# --- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 7, 8, 9, 10, 16, 17, 100])
def test_blocks_of_rows_are_few_small_and_alike(outputs: int) -> None:
    blocks = row_blocks(outputs)
    assert sum(blocks) == outputs
    assert len(blocks) == -(-outputs // ROWS)
    assert max(blocks) <= ROWS
    assert max(blocks) - min(blocks) <= 1
    assert blocks == sorted(blocks, reverse=True)


@pytest.mark.parametrize(("groups", "outputs", "taps"), [(1, 2, 3), (1, 19, 4), (3, 9, 5)])
def test_packed_weights_are_unpacked_to_what_they_were(
    groups: int, outputs: int, taps: int
) -> None:
    order = contract_order(groups, outputs, taps)
    assert sorted(order) == list(range(groups * outputs * taps))
    entries = np.arange(order.size) * 1.0
    weights = entries.reshape(groups, outputs, taps)
    found = program_reference.unpacked(entries[order], groups, outputs, taps)
    np.testing.assert_array_equal(found, weights)


def test_taps_of_a_block_of_outputs_lie_together() -> None:
    """What a kernel relies on: for each tap the outputs of a block, one after the other."""
    order = contract_order(1, 10, 3)
    assert order[:5].tolist() == [0, 3, 6, 9, 12]
    assert order[5:10].tolist() == [1, 4, 7, 10, 13]
    assert order[15:20].tolist() == [15, 18, 21, 24, 27]


# --- weights --------------------------------------------------------------------------------------


def _with_weight(weight: Weight) -> Program:
    return Program((), (weight,), (), 0)


def test_a_weight_is_a_sum_of_scaled_entries_and_an_offset() -> None:
    first = Term(0, np.array([2, -1, 0]), np.array([1.0, np.nan, 3.0]))
    second = Term(1, np.array([0, 1, -1]))
    program = _with_weight(Weight(3, (first, second), np.array([100.0, 200.0, 300.0])))
    slots = [np.array([[1.0, 2.0, 4.0]]), np.array([10.0, 20.0])]
    (value,) = program_reference.weights_at(program, slots)
    assert value.tolist() == [114.0, 220.0, 303.0]
    (direction,) = program_reference.weights_at(program, slots, offset=False)
    assert direction.tolist() == [14.0, 20.0, 3.0]


def test_transformed_filters_convolve_as_winograd_says() -> None:
    """``A^T [(G g G^T) * (B^T d B)] A``, Lavin and Gray 2016, equation 13 and section 4.3."""
    b = Builder(1, 0)
    number, filters = b.winograd(16, 8)
    program = Program((), tuple(b.weights), (), 0)
    weights = program_reference.weights_at(program, [s[0] for s in b.slots])
    (u,) = program_reference.packed(program, weights)
    u = u.reshape(6, 6, 2, 8, 8)  # blocks of 8 outputs; inputs; outputs of the block
    bt = np.array(
        [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
         [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
    )  # fmt: skip
    at = np.array(
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
    )
    d = b.normal(8, 6, 6)
    v = np.einsum("ai,cij,bj->abc", bt, d, bt)
    m = np.einsum("abncm,abc->nmab", u, v).reshape(16, 6, 6)
    y = np.einsum("ia,mab,jb->mij", at, m, at)
    expected = F.conv2d(torch.from_numpy(d)[None], filters)[0]
    assert number == 0
    np.testing.assert_allclose(y, expected.numpy(), atol=1e-12)


# --- the executor refuses what has no meaning -----------------------------------------------------


def _copies(to: list[int], at: list[int], *, elements: int = 3, storage: tuple[int, ...] = ()):
    """A copy from an input of three elements to a buffer, and from there to another one."""
    buffers = (
        Buffer(3, Grid.NONE, "input"),
        Buffer(elements, Grid.FULL, fill=9.0),
        Buffer(3, Grid.FULL),
    )
    first = Map("copy", (Operand("buffer", 0, table(at)),), 1, table(to))
    second = Map("copy", (Operand("buffer", 1, table([0, 1, 2])),), 2, table([0, 1, 2]))
    return Program(buffers, (), (first, second), 0, ((2, table([0, 1, 2])),), storage)


X = {0: np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])}


def test_elements_that_no_step_writes_hold_the_fill() -> None:
    _, buffers = program_reference.run(_copies([0, 2], [1, 0]), X, [])
    assert buffers[2].tolist() == [[2.0, 9.0, 1.0], [5.0, 9.0, 4.0]]


@pytest.mark.parametrize(
    ("to", "at", "message"),
    [
        ([0, 0], [1, 2], "written twice"),
        ([0, 3], [1, 2], "written out of range"),
        ([0, -1], [1, 2], "written out of range"),
        ([0, 1], [1, 3], "read out of range"),
        ([0, 1], [1, -1], "read out of range"),
    ],
)
def test_tables_that_leave_their_buffer_are_refused(
    to: list[int], at: list[int], message: str
) -> None:
    program = _copies(to, at)
    with pytest.raises(AssertionError, match=message):
        program_reference.run(program, X, [])
    with pytest.raises(AssertionError, match="step 0, Map"):
        program_rules.check(program)


def test_shared_storage_holds_what_an_earlier_tile_left() -> None:
    """A halo must not lie in memory that others write."""
    separate = _copies([0, 2], [1, 0], storage=(0, 1, 2))
    _, buffers = program_reference.run(separate, X, [], storage=True)
    assert buffers[2][0].tolist() == [2.0, 9.0, 1.0]
    # the halo of buffer 1 is where buffer 2 lies
    together = Map("copy", (Operand("number", value=7.0),), 3, table([0, 1, 2]))
    program = _copies([0, 2], [1, 0])
    program = dataclasses.replace(
        program,
        buffers=(*program.buffers, Buffer(3, Grid.FULL)),
        steps=(*program.steps, together),
        storage=(0, 1, 2, 1),
    )
    _, buffers = program_reference.run(program, X, [], storage=True)
    assert buffers[2][0].tolist() == [2.0, 7.0, 1.0]


def test_a_step_that_overwrites_what_it_reads_breaks_the_rules() -> None:
    program = _copies([0, 1, 2], [0, 1, 2])
    shifted = Map("copy", (Operand("buffer", 1, table([0, 1])),), 1, table([1, 2]))
    with pytest.raises(AssertionError, match="overwrites what it reads"):
        program_rules.check(dataclasses.replace(program, steps=(shifted,)))
    same = Map("copy", (Operand("buffer", 1, table([0, 1])),), 1, table([0, 1]))
    program_rules.check(dataclasses.replace(program, steps=(same,)))


def _affine_contract(**change: object) -> Program:
    shape = CONVOLUTIONS["pointwise"]
    buffers = (Buffer(60, Grid.NONE, "input"), Buffer(144, Grid.AFFINE), Buffer(144, Grid.FULL))
    weights = tuple(Weight(n, (Term(0, np.arange(n)),)) for n in (60, 12))
    step = shape.contract(0, 1, 0, bias=1)
    return Program(buffers, weights, (dataclasses.replace(step, **change),), 0)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 1},
        {"shift": 1},
        {"activation": Activation("relu")},
        {"residual": 2, "residual_at": table(np.arange(12)),
         "residual_channels": table(np.arange(12)[None] * 12)},
    ],
)  # fmt: skip
def test_a_shared_product_is_bias_and_sum_alone(change: dict[str, object]) -> None:
    program_rules.check(_affine_contract())
    with pytest.raises(AssertionError, match="step 0, Contract"):
        program_rules.check(_affine_contract(**change))


def test_a_product_of_an_affine_value_breaks_the_rules() -> None:
    program = _affine_contract()
    shape = dataclasses.replace(CONVOLUTIONS["pointwise"], inputs=12)
    weights = (*program.weights, Weight(144, (Term(0, np.arange(144)),)))
    again = shape.contract(1, 2, 2)
    program = dataclasses.replace(program, steps=(*program.steps, again), weights=weights)
    with pytest.raises(AssertionError, match="step 1, Contract reads an AFFINE buffer"):
        program_rules.check(program)
