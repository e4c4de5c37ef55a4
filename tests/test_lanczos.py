"""Eigenpairs by thick-restart Lanczos against dense linear algebra and SciPy, in float64."""

from __future__ import annotations

import math
import sys
import time

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from spectra import DOUBLE, goe, operator_of, rotated
from torch import Tensor

from landscapex.curvature.eigenpairs import Eigenpairs
from landscapex.curvature.lanczos import eigenpairs
from landscapex.curvature.linear import SymmetricOperator
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    LandscapexWarning,
    NonFiniteProductError,
)

BULK = np.random.default_rng(1).uniform(-1, 1, 395)
MATRICES = {
    "goe": lambda: goe(300),
    "outliers": lambda: rotated(np.r_[10, 9, 8, 7, 6, BULK]),
    "clustered": lambda: rotated(np.r_[3 + 1e-4 * np.arange(5), BULK[:195]]),
    "both signs": lambda: rotated(np.r_[5, -5, BULK[:98]]),
    "positive definite": lambda: rotated(2 + BULK[:120]),
    "negative definite": lambda: rotated(-2 - BULK[:120]),
    "tiny numbers": lambda: rotated(1e-12 * BULK[:100]),
    "rank one": lambda: rotated(np.r_[5.0, np.zeros(79)]),
    "two values": lambda: rotated(np.r_[np.ones(30), np.full(30, 5.0)]),
    "identity": lambda: torch.eye(50, dtype=DOUBLE),
    "zero": lambda: torch.zeros(50, 50, dtype=DOUBLE),
}


def wanted(matrix: Tensor, k: int, which: str) -> np.ndarray:
    """In the order that `Eigenpairs` documents."""
    values = np.linalg.eigvalsh(matrix.numpy())
    if which == "LM":
        return values[np.argsort(-np.abs(values), kind="stable")][:k]
    if which == "BE":
        return np.r_[values[: k // 2], values[len(values) - (k - k // 2) :]]
    return values[::-1][:k] if which == "LA" else values[:k]


def true_residuals(matrix: Tensor, found: Eigenpairs) -> np.ndarray:
    v = found.vectors.double().numpy()
    return np.linalg.norm(matrix.numpy() @ v.T - v.T * found.values, axis=0)


def check_pairs(matrix: Tensor, found: Eigenpairs) -> None:
    """Unit vectors, orthogonal, whose residuals are what is reported."""
    v = found.vectors.double().numpy()
    np.testing.assert_allclose(v @ v.T, np.eye(len(v)), atol=1e-12)
    np.testing.assert_allclose(
        true_residuals(matrix, found), found.residuals, rtol=1e-4, atol=1e-14 * max(found.scale, 1)
    )
    largest = np.take_along_axis(v, np.abs(v).argmax(1)[:, None], 1)
    assert (largest > 0).all()


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("name", MATRICES)
def test_values_are_those_of_dense_linear_algebra(name, which):
    """Traps 31 and 34: among them identity, zero and rank one; positive and negative definite."""
    matrix = MATRICES[name]()
    found = eigenpairs(operator_of(matrix), 5, which)
    want, scale = wanted(matrix, 5, which), float(matrix.abs().max())
    got = found.values
    if which == "LM":  # of a value and its negative, either may come first
        got, want = np.sort(np.abs(got)), np.sort(np.abs(want))
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-12 * scale)
    assert found.converged.all()
    assert (found.residuals <= 1e-8 * found.scale).all()
    check_pairs(matrix, found)


def test_small_values_beside_a_large_one_need_only_a_smaller_tolerance():
    """The tolerance is relative to the largest."""
    matrix = rotated(np.r_[1e6, BULK[:99]])
    found = eigenpairs(operator_of(matrix), 3, "SA", tol=1e-13)
    np.testing.assert_allclose(found.values, wanted(matrix, 3, "SA"), rtol=1e-8)
    assert found.scale == pytest.approx(1e6)


@pytest.mark.parametrize("block", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 30])
def test_every_k_up_to_all_of_a_small_matrix(size, block):
    """P below the basis, k = P, P = 1."""
    if block > size:
        pytest.skip("a block has at most P vectors")
    matrix = goe(size, seed=size)
    for k in {1, size // 2 + 1, size}:
        for which in ("LA", "BE", "LM"):
            found = eigenpairs(operator_of(matrix), k, which, block=block)
            np.testing.assert_allclose(found.values, wanted(matrix, k, which), atol=1e-10)
            check_pairs(matrix, found)


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_values_are_those_of_scipy(which):
    matrix = goe(400, seed=3)
    found = eigenpairs(operator_of(matrix), 6, which)
    want = eigsh(matrix.numpy(), 6, which=which, return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(found.values), np.sort(want), rtol=1e-8)


def test_trap_30_outliers_come_once_each_after_120_steps():
    """Without full reorthogonalisation, the top ten were seven copies of 10."""
    matrix = rotated(np.r_[10, 9, 8, 7, 6, BULK])
    found = eigenpairs(operator_of(matrix), 10, basis=120, tol=1e-13, max_products=130)
    np.testing.assert_allclose(found.values[:5], [10, 9, 8, 7, 6], rtol=1e-12)
    assert (found.values[5:] <= 1).all()
    assert len(np.unique(found.values.round(6))) == 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_trap_30_vectors_stay_orthogonal_over_many_restarts(dtype):
    matrix = goe(250, seed=5)
    found = eigenpairs(operator_of(matrix, dtype), 4, "SA", basis=8, max_products=3000)
    assert found.restarts > 10
    assert found.converged.all()
    products = (found.vectors.double() @ found.vectors.double().T).numpy()
    np.testing.assert_allclose(products, np.eye(4), atol=200 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_trap_31_a_closed_space_is_left_by_a_random_vector(dtype, scale):
    """The identity: the first product is all rounding, whatever its scale; NaN in other tools."""
    operator = SymmetricOperator(lambda v: scale * v, 20, dtype)
    found = eigenpairs(operator, 4)
    np.testing.assert_allclose(found.values / scale, np.ones(4), rtol=1e-6)
    # one more vector than pairs, to see that nothing else comes; then each pair is measured
    assert found.products == operator.products == 4 + 1 + 4
    v = found.vectors.double()
    torch.testing.assert_close(v @ v.T, torch.eye(4, dtype=DOUBLE), atol=1e-5, rtol=0)


@pytest.mark.parametrize("block", [2, 3])
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_trap_31_a_block_whose_products_add_nothing(value, block):
    """Zero and the identity: the first product is none or all in the span; the others wait."""
    matrix = value * torch.eye(20, dtype=DOUBLE)
    found = eigenpairs(operator_of(matrix), 4, block=block)
    np.testing.assert_allclose(found.values, value, rtol=1e-13)
    assert found.converged.all()
    check_pairs(matrix, found)


def test_trap_31_a_closed_space_is_not_taken_for_the_whole():
    """From one start vector the space of (10, 10, 10, 1, ..., 1) closes after two steps."""
    matrix = rotated(np.r_[10, 10, 10, np.ones(57)])
    found = eigenpairs(operator_of(matrix), 4)
    np.testing.assert_allclose(found.values, [10, 10, 10, 1], rtol=1e-10)


def test_trap_31_nor_is_a_space_that_rounding_keeps_from_closing():
    """Eight values, five times each: the space of a random start all but closes at eight steps."""
    matrix = rotated(np.repeat(np.arange(10.0, 2.0, -1.0), 5))
    found = eigenpairs(operator_of(matrix), 4)
    np.testing.assert_allclose(found.values, [10, 10, 10, 10], rtol=1e-8)


def test_trap_31_a_random_vector_of_the_complement_is_given_time():
    """Six values, six times each: when it has just come in, all other residuals are zero."""
    matrix = torch.diag(torch.from_numpy(np.repeat(np.arange(6.0, 0.0, -1.0), 6)))
    np.testing.assert_allclose(eigenpairs(operator_of(matrix), 3).values, [6, 6, 6], rtol=1e-10)


def test_trap_33_a_value_and_its_negative_are_both_found():
    """Power iteration ends between them."""
    matrix = rotated(np.r_[5, -5, BULK[:98]])
    np.testing.assert_allclose(
        np.sort(eigenpairs(operator_of(matrix), 2, "LM").values), [-5, 5], rtol=1e-10
    )
    alone = eigenpairs(operator_of(matrix), 1, "LM").values[0]
    assert abs(alone) == pytest.approx(5, rel=1e-10)


def test_trap_33_a_converged_value_waits_for_what_may_still_outgrow_it():
    """The start is all but the vector of 5; that of -5.1 shows late, out of a wide bulk."""
    matrix = rotated(np.r_[5, -5.1, np.linspace(-4.95, 4.95, 300)])
    vector = torch.from_numpy(np.linalg.eigh(matrix.numpy())[1][:, -1].copy())
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(302)) / math.sqrt(302)
    found = eigenpairs(operator_of(matrix), 1, "LM", tol=1e-3, start=vector + 1e-4 * noise)
    assert found.values[0] == pytest.approx(-5.1, abs=1e-3)


@pytest.mark.parametrize("shift", [2.0, -2.0, 0.0])
def test_trap_34_both_ends_come_from_one_run(shift):
    """A shifted power iteration returned the largest value for the smallest."""
    matrix = rotated(shift + BULK[:150])
    operator = operator_of(matrix)
    found = eigenpairs(operator, 2, "BE")
    values = np.linalg.eigvalsh(matrix.numpy())
    np.testing.assert_allclose(found.values, values[[0, -1]], rtol=1e-8)
    alone = eigenpairs(operator_of(matrix), 1, "SA"), eigenpairs(operator_of(matrix), 1, "LA")
    assert found.products == operator.products < alone[0].products + alone[1].products


@pytest.mark.parametrize("which", ["LA", "BE"])
def test_a_block_finds_every_copy_of_a_value(which):
    values = np.r_[4, 4, 4, 3.5, BULK[:196], -6, -6]
    found = eigenpairs(operator_of(rotated(values)), 6, which, block=3)
    want = {"LA": np.r_[4, 4, 4, 3.5, np.sort(BULK[:196])[:-3:-1]], "BE": None}[which]
    if want is None:
        want = np.r_[-6, -6, BULK[:196].min(), 4, 4, 4]
    np.testing.assert_allclose(found.values, want, rtol=1e-8)


def test_dependent_start_vectors_shrink_the_block():
    matrix = goe(40, seed=8)
    start = torch.ones(3, 40, dtype=DOUBLE) * torch.tensor([[1.0], [-2.0], [1e-3]])
    found = eigenpairs(operator_of(matrix), 3, block=3, start=start)
    np.testing.assert_allclose(found.values, wanted(matrix, 3, "LA"), rtol=1e-8)


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_float32_gives_four_digits(which):
    matrix = goe(300, seed=2)
    found = eigenpairs(operator_of(matrix, torch.float32), 5, which)
    assert found.vectors.dtype == torch.float32
    assert found.values.dtype == np.float64
    assert found.converged.all()
    assert found.tol == 1e-4
    limit = 1e-4 * found.scale
    assert (true_residuals(matrix, found) <= limit).all()
    np.testing.assert_allclose(found.values, wanted(matrix, 5, which), atol=limit)


def test_float32_values_are_better_than_their_residuals():
    """The error of a Rayleigh quotient is of the second order."""
    matrix = rotated(np.r_[10, 9, 8, 7, 6, BULK])
    found = eigenpairs(operator_of(matrix, torch.float32), 5)
    np.testing.assert_allclose(found.values, [10, 9, 8, 7, 6], rtol=1e-6)


def test_products_are_counted_one_by_one():
    matrix, calls = goe(150), []

    def product(v: Tensor) -> Tensor:
        calls.append(v.clone())
        return matrix @ v

    operator = SymmetricOperator(product, 150, DOUBLE)
    operator.products = 17  # somebody took products before
    found = eigenpairs(operator, 3)
    assert found.products == len(calls) == operator.products - 17
    confirmed = torch.stack(calls[-3:])  # the last products are with the vectors that are returned
    torch.testing.assert_close(
        (confirmed @ found.vectors.T).abs(), torch.eye(3, dtype=DOUBLE), atol=1e-12, rtol=0
    )


def test_a_product_may_be_the_vector_itself_and_the_operator_sees_unit_vectors():
    seen = []

    def product(v: Tensor) -> Tensor:
        seen.append(float(v.norm()))
        return v

    found = eigenpairs(SymmetricOperator(product, 30, DOUBLE), 3)
    np.testing.assert_allclose(found.values, 1, rtol=1e-14)
    np.testing.assert_allclose(seen, 1, rtol=1e-14)


def test_the_same_seed_gives_the_same_bits_and_another_seed_the_same_values(generators_untouched):
    matrix = goe(200, seed=4)
    first, second, other = (eigenpairs(operator_of(matrix), 4, seed=s) for s in (3, 3, 4))
    assert torch.equal(first.vectors, second.vectors)
    assert first.values.tobytes() == second.values.tobytes()
    assert first.products == second.products
    assert not torch.equal(first.vectors, other.vectors)
    np.testing.assert_allclose(first.values, other.values, rtol=1e-8)
    torch.testing.assert_close(first.vectors, other.vectors, atol=1e-6, rtol=0)  # signs, too


def test_a_start_near_the_answer_saves_products():
    matrix = goe(300, seed=6)
    cold = eigenpairs(operator_of(matrix), 2, "BE")
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(300)) / math.sqrt(300)
    start = cold.vectors.sum(0) + 1e-4 * noise
    warm = eigenpairs(operator_of(matrix), 2, "BE", start=start)
    np.testing.assert_allclose(warm.values, cold.values, rtol=1e-8)
    assert warm.products < 0.7 * cold.products
    assert warm.steps == 0
    assert warm.failure_probability(0.5) == 1.0


def test_a_start_that_is_an_eigenvector_is_not_believed_to_be_the_right_one():
    """Its space closes at once, around a value that is not the largest."""
    matrix = rotated(np.r_[10, 9, BULK[:98]])
    v = np.linalg.eigh(matrix.numpy())[1][:, -2]
    found = eigenpairs(operator_of(matrix), 1, start=torch.from_numpy(v.copy()))
    assert found.values[0] == pytest.approx(10, rel=1e-10)


def test_what_did_not_converge_is_flagged_and_warned_of():
    matrix = goe(300)
    with pytest.warns(LandscapexWarning, match=r"eigenpairs: \d of 5 pairs did not reach .* 30"):
        found = eigenpairs(operator_of(matrix), 5, max_products=30)
    assert found.products == 30
    assert not found.converged.all()
    np.testing.assert_array_equal(found.converged, found.residuals <= found.tol * found.scale)
    np.testing.assert_allclose(true_residuals(matrix, found), found.residuals, rtol=1e-6)
    # a residual bounds the distance to some eigenvalue, converged or not
    values = np.linalg.eigvalsh(matrix.numpy())
    distance = np.abs(values[:, None] - found.values).min(0)
    assert (distance <= found.residuals).all()
    assert "not converged" in repr(found)


def test_a_tolerance_below_rounding_is_given_up_and_flagged():
    operator = operator_of(goe(100), torch.float32)
    with pytest.warns(LandscapexWarning, match="did not reach a residual"):
        found = eigenpairs(operator, 2, tol=1e-12)
    assert not found.converged.any()
    assert found.products == operator.products < 500
    np.testing.assert_allclose(found.values, wanted(goe(100), 2, "LA"), rtol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_product_that_is_not_finite_is_named(value):
    matrix, calls = goe(50), []

    def product(v: Tensor) -> Tensor:
        calls.append(1)
        return torch.full_like(v, value) if len(calls) == 4 else matrix @ v

    with pytest.raises(NonFiniteProductError, match=r"finite products, got NaN .* in product 4"):
        eigenpairs(SymmetricOperator(product, 50, DOUBLE), 2)


def test_a_confirming_product_that_is_not_finite_is_named():
    calls = []

    def product(v: Tensor) -> Tensor:
        calls.append(1)
        return v if len(calls) < 4 else v * math.nan

    with pytest.raises(NonFiniteProductError, match="product 4"):
        eigenpairs(SymmetricOperator(product, 2, DOUBLE), 2)


def test_noise_in_products_is_reported_not_hidden():
    """Products that differ from call to call: the fresh residual shows it."""
    matrix, rng = goe(100), torch.Generator().manual_seed(0)

    def product(v: Tensor) -> Tensor:
        return matrix @ v + 1e-6 * torch.randn(100, generator=rng, dtype=DOUBLE)

    with pytest.warns(LandscapexWarning, match="did not reach"):
        found = eigenpairs(SymmetricOperator(product, 100, DOUBLE), 2, max_products=400)
    assert (found.residuals > 1e-6).all()
    np.testing.assert_allclose(found.values, wanted(matrix, 2, "LA"), atol=1e-5)


def test_values_come_in_the_order_that_is_documented():
    matrix = rotated(np.r_[10, 9, -9.5, -8, BULK[:96]])
    operator = operator_of(matrix)
    for which, want in {
        "LA": [10, 9, BULK[:96].max()],
        "SA": [-9.5, -8, BULK[:96].min()],
        "LM": [10, -9.5, 9],
        "BE": [-9.5, 9, 10],
    }.items():
        np.testing.assert_allclose(eigenpairs(operator, 3, which).values, want, rtol=1e-8)
    assert eigenpairs(operator, 1, "BE").values == pytest.approx([10])


ERRORS = [
    ({"k": 0}, "`k` must be from 1 to P = 10, got 0"),
    ({"k": 11}, "`k` must be from 1 to P = 10, got 11"),
    ({"which": "LI"}, "`which` must be one of LA, SA, LM, BE, got 'LI'"),
    ({"tol": 0.0}, "`tol` must be a finite number above 0, got 0.0"),
    ({"tol": math.nan}, "`tol` must be a finite number above 0, got nan"),
    ({"tol": "fine"}, "`tol` must be a finite number above 0, got 'fine'"),
    ({"block": 0}, "`block` must be from 1 to P = 10, got 0"),
    ({"block": 11}, "`block` must be from 1 to P = 10, got 11"),
    ({"basis": 3}, "`basis` must be at least 4 for k = 3, got 3"),
    ({"max_products": 5}, "`max_products` must be at least 2 k = 6, got 5"),
    ({"start": torch.ones(9)}, r"`start` must have shape .* P = 10 .* got \(9,\)"),
    ({"start": torch.ones(2, 10)}, r"`start` must have .* j <= block = 1, got \(2, 10\)"),
    ({"start": torch.zeros(10)}, "`start` must be finite and not zero, got a row of length 0.0"),
    ({"start": torch.full((10,), math.nan)}, "`start` must be finite .* length nan"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        eigenpairs(operator_of(goe(10)), **{"k": 3, **arguments})


def test_bad_types_are_named():
    with pytest.raises(ArgumentTypeError, match="`operator` must be a SymmetricOperator, got Te"):
        eigenpairs(goe(3), 1)
    for name, value in (("k", 2.0), ("block", True), ("basis", "9"), ("max_products", 8.5)):
        with pytest.raises(
            ArgumentTypeError, match=f"`{name}` must be a whole number, got {value!r}"
        ):
            eigenpairs(operator_of(goe(9)), **{"k": 2, name: value})
    with pytest.raises(ArgumentTypeError, match=r"`seed` must be a whole number, got 0\.5"):
        eigenpairs(operator_of(goe(3)), 1, seed=0.5)
    with pytest.raises(ArgumentTypeError, match="`start` must be a tensor or None, got list"):
        eigenpairs(operator_of(goe(3)), 1, start=[1.0, 0.0, 0.0])
    with pytest.raises(ArgumentError, match=r"float32 or float64, got torch.float16"):
        eigenpairs(SymmetricOperator(lambda v: v, 3, torch.float16), 1)


def test_progress_of_long_work_goes_to_standard_error(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    matrix = goe(60)

    def slow(vector):
        time.sleep(0.02)
        return matrix @ vector

    operator = SymmetricOperator(slow, 60, matrix.dtype)
    eigenpairs(operator, 1, progress=True)
    shown = capsys.readouterr()
    assert "products" in shown.err
    assert shown.out == ""
    eigenpairs(operator, 1, max_products=40, quiet=True)
    assert capsys.readouterr().err == ""
    eigenpairs(operator_of(matrix), 2, progress=True)  # is over at once
    assert capsys.readouterr().err == ""
