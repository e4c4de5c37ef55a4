"""`orthogonalize_`, for each instruction set and in plain PyTorch, against its specification."""

from __future__ import annotations

import math

import pytest
import torch
from native import operator_reference as reference
from native.implementations import native
from native.implementations import ops as ops
from native.operator_cases import MASTER, ROUNDING, bits, orthogonalize_case

SHAPES = [(0, 5), (1, 1), (1, 33), (3, 31), (4, 2047), (5, 2048), (9, 2049), (7, 4500), (3, 0)]


@pytest.mark.parametrize("dtype", MASTER, ids=str)
@pytest.mark.parametrize(("rows", "size"), SHAPES)
def test_it_agrees_with_the_reference(ops, rows, size, dtype):
    """And what is computed does not rest on rows that are orthonormal."""
    for orthonormal in (True, False)[size < rows :]:
        w, basis, found = orthogonalize_case(rows, size, dtype, orthonormal=orthonormal)
        numbers, coefficients = reference.orthogonalize(w, basis)
        want = torch.tensor(numbers, dtype=torch.float64)
        before = bits(basis)
        ops.orthogonalize_(w, basis, found)
        assert bits(basis) == before
        wanted = torch.tensor(coefficients, dtype=torch.float64)
        largest = 1 + (float(want.abs().max()) if size else 0.0)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13 * largest)
        # where the last bits of a coefficient differ, an entry may be rounded the other way
        rounding = 4 * ROUNDING[dtype]
        torch.testing.assert_close(w.double(), want, rtol=rounding, atol=1e-14 * largest)


@pytest.mark.parametrize("dtype", MASTER, ids=str)
@pytest.mark.parametrize(("rows", "size"), [(1, 100), (9, 2049), (40, 5000)])
def test_what_is_left_is_orthogonal_and_nothing_is_lost(ops, rows, size, dtype):
    w, basis, found = orthogonalize_case(rows, size, dtype)
    before = w.double().clone()
    ops.orthogonalize_(w, basis, found)
    rounding = torch.finfo(dtype).eps
    assert (basis.double() @ w.double()).abs().max() < 2 * rounding * float(w.norm())
    whole = w.double() + found @ basis.double()
    torch.testing.assert_close(whole, before, atol=4 * rounding * float(before.abs().max()), rtol=0)


@pytest.mark.parametrize(("dtype", "tiny"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_once_would_not_be_enough(ops, dtype, tiny):
    """A vector nearly in the span: one pass leaves a part of the span as large as the rest."""
    w, basis, found = orthogonalize_case(6, 3000, dtype)
    w = (basis.sum(0).double() + tiny * w.double() / w.norm()).to(dtype)
    once = w.double() - (basis.double() @ w.double()) @ basis.double()
    once = once.to(dtype)
    ops.orthogonalize_(w, basis, found)

    def overlap(v: torch.Tensor) -> float:
        return float((basis.double() @ v.double()).abs().max() / v.double().norm())

    limit = 3 * torch.finfo(dtype).eps
    assert overlap(w) < limit < overlap(once)


def test_inner_products_of_float32_are_summed_in_float64(ops):
    """Large terms that cancel, and a small one that float32 sums would lose."""
    size = 4096
    w = torch.full((size,), 1e4)
    w[1::2] *= -1
    w[-1] += 1.0
    basis = torch.full((1, size), 1 / 64)
    found = torch.empty(1, dtype=torch.float64)
    # 1/64 in each pass: so small a change of w is lost in its rounding
    assert reference.orthogonalize(w, basis)[1] == [1 / 32]
    ops.orthogonalize_(w, basis, found)
    assert found.item() == 1 / 32


def test_entries_lose_the_rows_in_float64_and_are_rounded_once(ops):
    """One entry, two rows: the first takes it far away, the second brings it back."""
    w = torch.tensor([1 + 2.0**-23, 0.0])
    basis = torch.tensor([[2.0**-25, 1.0], [0.0, 0.0]])
    found = torch.empty(2, dtype=torch.float64)
    want, coefficients = reference.orthogonalize(w, basis)
    ops.orthogonalize_(w, basis, found)
    assert w.tolist() == want
    assert found.tolist() == coefficients


def test_nan_and_infinity_pass_through(ops):
    for value in (math.nan, math.inf):
        w, basis, found = orthogonalize_case(2, 70, torch.float32)
        w[40] = value
        ops.orthogonalize_(w, basis, found)
        assert not w.isfinite().all()
        assert not found.isfinite().any()


def test_autograd_knows_that_the_vector_changed(ops):
    w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    loss = (w * w).sum()
    found = torch.empty(1, dtype=torch.float64)
    ops.orthogonalize_(w, torch.tensor([[1.0, 0.0]]), found)
    assert w.tolist() == [0.0, 4.0]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_rows_of_one_tensor_serve_as_vector_and_basis(ops):
    """As the basis of a Krylov space is kept: the vector is the row after the basis."""
    _, basis, found = orthogonalize_case(3, 3000, torch.float64)
    whole = torch.cat((basis, torch.ones(1, 3000, dtype=torch.float64)))
    ops.orthogonalize_(whole[3], whole[:3], found)
    assert float((whole[:3] @ whole[3]).abs().max()) < 1e-14
    assert torch.equal(whole[:3], basis)


@native
@pytest.mark.parametrize("dtype", MASTER, ids=str)
def test_bits_do_not_depend_on_threads_or_instruction_set(ops, dtype, request):
    if request.node.callspec.params["ops"] == "fallback":
        pytest.skip("the fallback does not promise it")
    threads, got = torch.get_num_threads(), []
    start, basis, found = orthogonalize_case(6, 50_000, dtype)

    def run() -> tuple[list[int], list[int]]:
        w = start.clone()
        ops.orthogonalize_(w, basis, found)
        return bits(w), bits(found)

    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            got.append(run())
    finally:
        torch.set_num_threads(threads)
    torch.ops.landscapex.set_isa("baseline")
    want = run()
    assert all(g == want for g in got)


W = torch.ones(3)
Q = torch.eye(2, 3)
C = torch.zeros(2, dtype=torch.float64)

ERRORS = [
    ("w", torch.ones(3, 1), r"w must be .* \[P\] tensor, got float32 of shape \[3, 1\]"),
    ("w", torch.ones(3).half(), r"w must be a contiguous float32 or float64 .* float16"),
    ("w", torch.ones(6)[::2], r"w must be .* \[3\], not contiguous, on cpu"),
    ("basis", torch.eye(2, 4), r"basis must be .* P = 3, got float32 of shape \[2, 4\]"),
    ("basis", torch.ones(3), r"basis must be .* \[K, P\] .* got float32 of shape \[3\]"),
    ("basis", Q.double(), r"basis must be .* dtype and device of w and P = 3, got float64"),
    ("basis", torch.ones(3, 2).t(), "basis must be .* not contiguous"),
    (
        "coefficients",
        C[:1],
        r"coefficients must be .* tensor on cpu with K = 2, got .* \[1\]",
    ),
    ("coefficients", C.float(), "coefficients must be a contiguous float64 .* got float32"),
    ("coefficients", C[:, None], r"coefficients must be .* got float64 of shape \[2, 1\]"),
    ("coefficients", torch.zeros(4).double()[::2], "coefficients must be .* not contiguous"),
]


@pytest.mark.parametrize(("name", "value", "message"), ERRORS)
def test_a_bad_argument_is_named(ops, name, value, message):
    good = {"w": W.clone(), "basis": Q, "coefficients": C.clone()}
    with pytest.raises(RuntimeError, match=r"^orthogonalize_: " + message):
        ops.orthogonalize_(**{**good, name: value})


def test_shared_memory_is_refused(ops):
    message = "orthogonalize_: w, basis and coefficients must not share memory"
    rows = torch.eye(3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=message):
        ops.orthogonalize_(rows[1], rows[:2], C.clone())
    with pytest.raises(RuntimeError, match=message):
        ops.orthogonalize_(rows[2], rows[:2], rows[2, :2])
    with pytest.raises(RuntimeError, match=message):
        ops.orthogonalize_(rows[2], rows[:2], rows[0, :2])
