"""`perturb_`, for each instruction set and in plain PyTorch, against a slow reference."""

from __future__ import annotations

import pytest
import torch
from native import operator_reference as reference
from native.implementations import ops as ops
from native.operator_cases import HALF_TO_DOUBLE, MASTER, bits, perturb_case


@pytest.mark.parametrize("k", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("dtype", MASTER, ids=str)
def test_perturb_matches_the_reference_bit_for_bit(ops, k, dtype):
    params, center, directions, coordinates = perturb_case(k, k, dtype, long=1000)
    want = reference.perturb(
        [p.dtype for p in params], [p.numel() for p in params], center, directions, coordinates
    )
    before = bits(center), bits(directions)
    ops.perturb_(params, center, directions, coordinates)
    for param, values in zip(params, want, strict=True):
        assert bits(param) == bits(torch.tensor(values, dtype=torch.float64).to(param.dtype))
    assert (bits(center), bits(directions)) == before


@pytest.mark.parametrize("dtype", HALF_TO_DOUBLE, ids=str)
def test_perturb_keeps_the_bits_of_entries_that_nothing_moves(ops, dtype):
    master = torch.float64 if dtype == torch.float64 else torch.float32
    special = [-0.0, 0.0, 1.0, -3.5, torch.finfo(dtype).smallest_normal / 4]
    center = torch.tensor(special * 5, dtype=dtype).to(master)
    still = torch.zeros(3, 25, dtype=master)
    still[1] = -0.0
    for directions, coordinates in ((still, [2.0, 1.0, -3.0]), (still + 1, [0.0, -0.0, 0.0])):
        param = torch.empty(25, dtype=dtype)
        ops.perturb_([param], center, directions, coordinates)
        assert bits(param) == bits(center.to(dtype))


@pytest.mark.parametrize(
    ("dtype", "value", "want"),
    [
        # just above the middle of two float16 numbers: by way of float32 it would be the middle
        (torch.float16, 1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-10),
        (torch.float16, -(1 + 2.0**-11 + 2.0**-40), -(1 + 2.0**-10)),
        (torch.float16, 65519.99999999999, 65504.0),
        (torch.float16, 65520.0, float("inf")),
        (torch.float16, 2.0**-25, 0.0),
        (torch.float16, -(2.0**-25 + 2.0**-70), -(2.0**-24)),
        (torch.bfloat16, 1 + 2.0**-8 + 2.0**-50, 1 + 2.0**-7),
        (torch.bfloat16, 1 + 2.0**-8 - 2.0**-50, 1.0),
        (torch.bfloat16, 1e300, float("inf")),
        (torch.bfloat16, -1e-300, -0.0),
        (torch.bfloat16, 3 * 2.0**-134 + 2.0**-180, 2 * 2.0**-133),
        (torch.float32, 1 + 2.0**-24 + 2.0**-50, 1 + 2.0**-23),
    ],
)
def test_perturb_rounds_float64_once(ops, dtype, value, want):
    param = torch.empty(40, dtype=dtype)
    center = torch.full((40,), value, dtype=torch.float64)
    ops.perturb_([param], center, torch.empty(0, 40, dtype=torch.float64), [])
    assert bits(param) == bits(torch.full((40,), want, dtype=torch.float64).to(dtype))


@pytest.mark.parametrize("dtype", HALF_TO_DOUBLE, ids=str)
def test_perturb_keeps_nan_whatever_its_bits(ops, dtype):
    """Rounding up the pattern of a NaN to bfloat16 would carry into the sign: -0.0."""
    patterns = [0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000] * 10
    center = torch.tensor(patterns, dtype=torch.int32).view(torch.float32)
    param = torch.empty(40, dtype=dtype)
    ops.perturb_([param], center, torch.empty(0, 40), [])
    assert param.isnan().all()


def test_perturb_adds_products_in_float64(ops):
    """One part in 2^30 survives a sum that float32 would lose it in."""
    center = torch.tensor([1.0])
    directions = torch.tensor([[2.0**30], [2.0**30]])
    param = torch.empty(1)
    ops.perturb_([param], center, directions, [1.0, -1.0])
    assert param.item() == 1.0
    ops.perturb_([param], center, directions, [0.1, -0.1 + 2.0**-40])
    assert param.item() == torch.tensor(1 + 0.1 * 2.0**30 + (-0.1 + 2.0**-40) * 2.0**30).item()


def test_perturb_reaches_thousands_of_tensors(ops):
    params = [torch.empty(t % 4, dtype=HALF_TO_DOUBLE[t % 4]) for t in range(2500)]
    size = sum(p.numel() for p in params)
    center = torch.arange(size, dtype=torch.float32) % 128
    ops.perturb_(params, center, torch.ones(1, size), [1.0])
    assert torch.equal(torch.cat([p.float() for p in params]), center + 1)


def test_perturb_writes_parameters_that_require_gradients_and_records_nothing(ops):
    weight = torch.nn.Parameter(torch.zeros(4))
    loss = (weight * weight).sum()
    ops.perturb_([weight], torch.ones(4), torch.zeros(0, 4), [])
    assert weight.is_leaf
    assert weight.grad_fn is None
    assert weight.tolist() == [1.0] * 4
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # the values that it saved are gone, and autograd knows


PERTURB_ERRORS = [
    ("center", torch.zeros(3, 1), r"center must be .* \[P\] tensor, got float32 of shape \[3, 1\]"),
    ("center", torch.zeros(3).half(), r"center must be a contiguous float32 or float64 .* float16"),
    ("center", torch.zeros(6)[::2], r"center must be .* \[3\], not contiguous, on cpu"),
    (
        "directions",
        torch.zeros(2, 4),
        r"directions must be .* P = 3, got float32 of shape \[2, 4\]",
    ),
    (
        "directions",
        torch.zeros(2, 3).double(),
        "directions must be .* the dtype and device of center .* float64",
    ),
    ("directions", torch.zeros(3, 2).t(), "directions must be .* not contiguous"),
    ("coordinates", [1.0], "coordinates must be K = 2 numbers, got 1"),
    ("coordinates", [1.0, float("nan")], "coordinates must be finite, got nan"),
    ("coordinates", [float("-inf"), 0.0], "coordinates must be finite, got -inf"),
    ("params", [torch.zeros(2)], "params must have P = 3 entries in all, got 2"),
    ("params", [torch.zeros(3), torch.zeros(1)], "params must have P = 3 entries in all, got 4"),
    (
        "params",
        [torch.zeros(3, dtype=torch.int64)],
        "params must be contiguous floating tensors .* int64 .* 0",
    ),
    (
        "params",
        [torch.zeros(1), torch.zeros(2, 2)[:, 0]],
        "params must be .* not contiguous, on cpu at position 1",
    ),
    ("params", "center", "params must not share memory with center or directions, .* position 0"),
    ("params", "directions", "params must not share memory with center or directions"),
]


@pytest.mark.parametrize(("name", "value", "message"), PERTURB_ERRORS)
def test_perturb_names_the_bad_argument(ops, name, value, message):
    good = {"center": torch.zeros(3), "directions": torch.zeros(2, 3), "coordinates": [1.0, 2.0]}
    if isinstance(value, str):
        value = [good[value].view(-1)[:3]]
    arguments = {"params": [torch.zeros(3)], **good, name: value}
    with pytest.raises(RuntimeError, match=r"^perturb_: " + message):
        ops.perturb_(**arguments)
