"""`filter_normalize_`, for each instruction set and in plain PyTorch, against a slow reference."""

from __future__ import annotations

import pytest
import torch
from native import operator_reference as reference
from native.implementations import ops as ops
from native.operator_cases import GROUPS, HALF_TO_DOUBLE, ROUNDING, RUNS, SIZE, bits, filter_case


@pytest.mark.parametrize("dtype", HALF_TO_DOUBLE, ids=str)
@pytest.mark.parametrize(("k", "elementwise"), [(0, False), (1, False), (3, False), (2, True)])
def test_filter_normalize_matches_the_reference(ops, dtype, k, elementwise):
    directions, center, norms = filter_case(k, k, dtype)
    before, before_center = directions.clone(), center.clone()
    want, want_norms = reference.filter_normalize(directions, center, RUNS, GROUPS, elementwise)
    ops.filter_normalize_(directions, center, RUNS, GROUPS, norms, elementwise=elementwise)
    torch.testing.assert_close(norms, want_norms, rtol=1e-14, atol=0)
    atol = torch.finfo(dtype).smallest_normal
    torch.testing.assert_close(directions.double(), want, rtol=1.01 * ROUNDING[dtype], atol=atol)
    outside = torch.ones(SIZE, dtype=torch.bool)
    outside[[i for run in RUNS.tolist() for i in reference.entries(run)]] = False
    assert outside.sum() > 100
    assert bits(directions[:, outside]) == bits(before[:, outside])
    assert bits(center) == bits(before_center)


@pytest.mark.parametrize("dtype", HALF_TO_DOUBLE, ids=str)
def test_filter_normalize_gives_exact_zeros_where_a_length_is_zero(ops, dtype):
    directions = torch.tensor([[-1.0, 2.0, -0.0, 0.0], [0.0, -0.0, 3.0, -4.0]]).to(dtype)
    center = torch.tensor([0.0, -0.0, 3.0, 4.0]).to(dtype)
    norms = torch.empty(3, 2, dtype=torch.float64)
    runs, groups = torch.tensor([[0, 1, 0, 2], [2, 1, 0, 2]]), torch.tensor([0, 1, 2])
    ops.filter_normalize_(directions, center, runs, groups, norms)
    zero = bits(torch.zeros(1, dtype=dtype))
    assert bits(directions[0]) == zero * 4
    assert bits(directions[1, :2]) == zero * 2
    assert directions[1, 2:].tolist() == [3.0, -4.0]


@pytest.mark.parametrize("scale", [2.0**-80, 2.0**80])
def test_filter_normalize_forgets_the_length_of_a_direction(ops, scale):
    """Squares of such numbers are 0 or infinity in float32, and neither in float64."""
    directions, center, norms = filter_case(3, 2, torch.float32)
    longer = directions * scale
    for d in (directions, longer):
        ops.filter_normalize_(d, center, RUNS, GROUPS, norms)
    at = [i for run in RUNS.tolist() for i in reference.entries(run)]
    assert bits(longer[:, at]) == bits(directions[:, at])


def test_filter_normalize_twice_changes_nothing_more(ops):
    directions, center, norms = filter_case(4, 1, torch.float64)
    ops.filter_normalize_(directions, center, RUNS, GROUPS, norms)
    once = directions.clone()
    ops.filter_normalize_(directions, center, RUNS, GROUPS, norms)
    torch.testing.assert_close(directions, once, rtol=1e-14, atol=0)
    torch.testing.assert_close(norms[0, 3:], norms[1, 3:], rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("rows", "size", "offset"), [(1, 2**31 + 100, 2**31 + 7), (3, 2**30 + 100, 2**30 + 7)]
)
def test_filter_normalize_reaches_beyond_2_to_the_31(ops, rows, size, offset):
    """Memory that is not touched is not taken: only the run is."""
    directions = torch.empty(rows, size, dtype=torch.bfloat16)
    center = torch.empty(size, dtype=torch.bfloat16)
    at = slice(offset, offset + 64)
    directions[:, at], center[at] = 3.0, 6.0
    norms = torch.empty(rows + 1, 1, dtype=torch.float64)
    runs, groups = torch.tensor([[offset, 2, 40, 20]]), torch.tensor([0, 1])
    ops.filter_normalize_(directions, center, runs, groups, norms)
    want = torch.tensor([6.0] * 20 + [3.0] * 20 + [6.0] * 20 + [3.0] * 4)
    assert directions[:, at].float().tolist() == [want.tolist()] * rows
    assert norms[-1].item() == pytest.approx(6 * 40**0.5)


P3 = torch.zeros(3)
D3 = torch.zeros(2, 3)
COUNT = torch.tensor([0, 1])
RUN = torch.tensor([[0, 1, 0, 3]])
NORMS = torch.zeros(3, 1, dtype=torch.float64)


NORMALIZE_ERRORS = [
    ("directions", torch.zeros(3), r"directions must be .* floating \[K, P\] tensor, got .* \[3\]"),
    ("directions", D3.long(), "directions must be .* floating .* got int64"),
    ("center", torch.zeros(4), r"center must be .* P = 3, got float32 of shape \[4\]"),
    ("center", P3.double(), "center must be .* the dtype and device of directions .* got float64"),
    ("runs", torch.zeros(1, 3).long(), r"runs must be .* \[R, 4\] tensor on cpu, got .* \[1, 3\]"),
    ("runs", RUN.int(), "runs must be a contiguous int64 .* got int32"),
    ("groups", torch.zeros(0).long(), r"groups must be .* \[F \+ 1\] tensor on cpu, got .* \[0\]"),
    ("norms", torch.zeros(2, 1).double(), r"norms must be .* K \+ 1 = 3 and F = 1, got float64"),
    ("norms", NORMS.float(), "norms must be a contiguous float64 .* got float32"),
    ("runs", torch.tensor([[1, 1, 0, 3]]), r"runs must be .* P = 3 .* got \(1, 1, 0, 3\) in row 0"),
    ("runs", torch.tensor([[-1, 1, 0, 1]]), r"runs must be rows .* got \(-1, 1, 0, 1\)"),
    ("runs", torch.tensor([[0, 2, 1, 2]]), "runs must be rows .* stride >= inner"),
    ("runs", torch.tensor([[0, 2**32 + 1, 2**32, 1]]), r"runs must be rows .* in row 0"),
    ("runs", torch.tensor([[4, 0, 0, 0]]), r"runs must be rows .* got \(4, 0, 0, 0\)"),
    ("groups", torch.tensor([0, 2]), "groups must rise from 0 to R = 1, got a table from 0 to 2"),
    ("groups", torch.tensor([1, 1]), "groups must rise from 0 to R = 1, got a table from 1 to 1"),
]


@pytest.mark.parametrize(("name", "value", "message"), NORMALIZE_ERRORS)
def test_filter_normalize_names_the_bad_argument(ops, name, value, message):
    good = {"directions": D3.clone(), "center": P3, "runs": RUN, "groups": COUNT, "norms": NORMS}
    with pytest.raises(RuntimeError, match=r"^filter_normalize_: " + message):
        ops.filter_normalize_(**{**good, name: value})


def test_filter_normalize_refuses_groups_that_fall(ops):
    groups = torch.tensor([0, 2, 1, 2])
    runs, norms = RUN.repeat(2, 1), torch.zeros(3, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"groups must rise .* that falls in between"):
        ops.filter_normalize_(D3.clone(), P3, runs, groups, norms)
