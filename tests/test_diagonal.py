"""Diagonals: against their definitions and dense matrices; what errors of entries promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from intervals import covered
from spectra import operator_of, rotated

from landscapex.curvature import draws
from landscapex.curvature.diagonal import diagonal
from landscapex.curvature.linear import SymmetricOperator
from landscapex.errors import ArgumentError, ArgumentTypeError, NonFiniteProductError

METHODS = ["hutchinson", "diag++"]
VALUES = np.concatenate([np.linspace(-1, 1, 55), [4.0, 5.0, 6.0, 8.0, 12.0]])


def test_hutchinson_is_the_mean_of_signs_times_products():
    matrix = rotated(VALUES)
    operator = operator_of(matrix)
    found = diagonal(operator, products=9, seed=3)
    v = torch.stack([draws.signs(operator, 3, "diagonal", k) for k in range(9)])
    samples = v * (v @ matrix)
    assert found.values == pytest.approx(samples.mean(0).numpy(), rel=1e-12)
    expected = (samples.std(0) / 3).numpy()
    assert found.standard_error == pytest.approx(expected, rel=1e-10)
    total = samples.sum(1)
    assert found.trace.value == pytest.approx(float(total.mean()), rel=1e-12)
    assert found.trace.standard_error == pytest.approx(float(total.std() / 3), rel=1e-10)
    assert found.products == operator.products == found.samples == 9


def test_diag_plus_plus_is_the_diagonal_on_a_sketch_and_hutchinson_on_the_rest():
    matrix = rotated(VALUES)
    operator = operator_of(matrix)
    found = diagonal(operator, products=18, seed=5, method="diag++")
    a = matrix.numpy()
    s, v = (
        np.stack([draws.signs(operator, 5, purpose, k).numpy() for k in range(6)], axis=1)
        for purpose in ("diagonal sketch", "diagonal")
    )
    q, _ = np.linalg.qr(a @ s)
    away = np.eye(len(a)) - q @ q.T
    rest = away @ a @ away
    samples = np.diag(a - rest)[:, None] + v * (rest @ v)
    assert found.values == pytest.approx(samples.mean(1), rel=1e-10)
    expected = samples.std(1, ddof=1) / math.sqrt(6)
    assert found.standard_error == pytest.approx(expected, rel=1e-8)
    assert found.trace.value == pytest.approx(samples.sum(0).mean(), rel=1e-10)
    assert found.products == operator.products == 18


@pytest.mark.parametrize("method", METHODS)
def test_trap_35_the_error_of_each_entry_has_the_coverage_it_promises(method):
    """200 seeds: Student's t contains each entry in 68 % and 95 % of them, and their sum."""
    matrix = rotated(VALUES, seed=1)
    truth = matrix.diagonal().numpy()
    found = [diagonal(operator_of(matrix), products=18, seed=s, method=method) for s in range(200)]
    for confidence, low, high in ((0.6827, 0.55, 0.80), (0.95, 0.89, 1.0)):
        ends = [f.interval(confidence) for f in found]
        hits = np.array([(lower <= truth) & (truth <= upper) for lower, upper in ends]).mean(0)
        assert hits.mean() == pytest.approx(confidence, abs=0.025)
        assert low <= hits.min() <= hits.max() <= high
    assert covered([f.trace.interval(0.95) for f in found], truth.sum()) >= 0.9
    z = np.stack([(f.values - truth) / f.standard_error for f in found])
    assert np.abs(z.mean(0)).max() < 0.5


def test_a_sketch_pays_where_few_eigenvalues_dominate():
    matrix = rotated(0.5 ** np.arange(60.0), seed=2)
    truth = matrix.diagonal().numpy()
    one, two = (diagonal(operator_of(matrix), products=30, method=method) for method in METHODS)
    assert np.linalg.norm(two.values - truth) < 0.05 * np.linalg.norm(one.values - truth)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_budget_of_p_products_gives_the_diagonal_itself(method, dtype):
    matrix = rotated(VALUES, seed=3)
    operator = operator_of(matrix, dtype)
    found = diagonal(operator, products=60, method=method)
    assert np.array_equal(found.values, matrix.to(dtype).diagonal().double().numpy())
    assert (found.exact, found.samples, found.products) == (True, 0, 60)
    assert not found.standard_error.any()
    assert found.trace.exact
    assert found.trace.value == pytest.approx(VALUES.sum(), rel=1e-5)
    assert not diagonal(operator, products=59, method=method).exact


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_errors_include_rounding_where_nothing_else_is_left(method, dtype):
    """Signs are exact on diagonal matrices, and a sketch on those of low rank."""
    if method == "hutchinson":
        matrix = torch.diag(torch.linspace(-3, 5, 40, dtype=torch.float64))
    else:
        matrix = rotated([5.0, -3.0, 2.0] + [0.0] * 37)
    truth = matrix.to(dtype).diagonal().double().numpy()
    found = diagonal(operator_of(matrix, dtype), products=18, method=method)
    eps = torch.finfo(dtype).eps
    assert np.abs(found.values - truth).max() < 50 * eps
    assert (found.standard_error > 0).all()
    assert (found.standard_error < 300 * eps).all()
    assert (np.abs(found.values - truth) <= 5 * found.standard_error).all()


@pytest.mark.parametrize("method", METHODS)
def test_degenerate_matrices(method):
    found = diagonal(operator_of(torch.eye(30)), products=12, method=method)
    assert (np.abs(found.values - 1) <= 6 * found.standard_error).all()
    if method == "hutchinson":
        assert found.values == pytest.approx(1)
    zero = diagonal(operator_of(torch.zeros(30, 30)), products=12, method=method)
    assert not zero.values.any()
    assert not zero.standard_error.any()
    one = diagonal(SymmetricOperator(lambda v: -3 * v, 1, torch.float32), products=1, method=method)
    assert one.values.tolist() == [-3.0]


def test_the_same_seed_gives_the_same_bits_in_read_only_arrays(generators_untouched):
    matrix = rotated(VALUES)
    for method in METHODS:
        one, two, other = (
            diagonal(operator_of(matrix), products=9, seed=s, method=method) for s in (1, 1, 2)
        )
        assert np.array_equal(one.values, two.values)
        assert not np.array_equal(one.values, other.values)
        for array in (one.values, one.standard_error):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "x"}, ArgumentError, r"must be one of hutchinson, diag\+\+, got 'x'"),
        ({"products": 1}, ArgumentError, r"`products` must be at least 2, got 1\."),
        (
            {"products": 3, "method": "diag++"},
            ArgumentError,
            "`products` must be at least 4, got 3",
        ),
        ({"products": None}, ArgumentTypeError, "`products` must be a whole number, got None"),
        ({"seed": 0.5}, ArgumentTypeError, r"`seed` must be a whole number, got 0\.5"),
    ],
)
def test_bad_arguments_are_refused_before_any_product(arguments, error, message):
    operator = operator_of(torch.eye(100))
    with pytest.raises(error, match=message):
        diagonal(operator, **arguments)
    assert operator.products == 0


def test_products_that_are_not_finite_are_an_error():
    operator = SymmetricOperator(lambda v: v * math.nan, 100, torch.float32)
    with pytest.raises(NonFiniteProductError, match="must give finite products, got NaN"):
        diagonal(operator)


def test_the_text_says_what_it_is():
    matrix = rotated(VALUES)
    assert "± " in repr(diagonal(operator_of(matrix), products=10))
    assert "10 products" in repr(diagonal(operator_of(matrix), products=10))
    assert "exact" in repr(diagonal(operator_of(matrix), products=60))
