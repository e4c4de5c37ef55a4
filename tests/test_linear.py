"""Symmetric operators that are known by their products."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from landscapex.curvature.linear import SymmetricOperator
from landscapex.errors import ArgumentError, ArgumentTypeError


def operator_of(matrix: torch.Tensor) -> SymmetricOperator:
    return SymmetricOperator(lambda v: matrix @ v, len(matrix), matrix.dtype)


@pytest.fixture
def matrix() -> torch.Tensor:
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return root + root.T


def test_products_with_vectors_and_columns_keep_their_kind(matrix):
    operator = operator_of(matrix)
    vector, columns = torch.randn(6, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(operator @ vector, matrix @ vector)
    torch.testing.assert_close(operator @ columns, matrix @ columns)
    assert operator.products == 4
    single = operator @ columns.float()
    assert single.dtype == torch.float32
    assert (operator @ columns[:, :0]).shape == (6, 0)
    made = operator @ columns.numpy()
    assert isinstance(made, np.ndarray)
    np.testing.assert_allclose(made, (matrix @ columns).numpy())


def test_the_dense_matrix_is_the_matrix(matrix):
    assert torch.equal(operator_of(matrix).dense(), matrix)


def test_scipy_finds_the_eigenvalues(matrix):
    found = scipy.sparse.linalg.eigsh(operator_of(matrix).to_scipy(), k=2, which="LA")[0]
    np.testing.assert_allclose(np.sort(found), np.linalg.eigvalsh(matrix.numpy())[-2:], rtol=1e-10)


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (torch.ones(5), ArgumentError, r"must have shape \(6,\) or \(6, k\), got \(5,\)"),
        (torch.ones(6, 1, 1), ArgumentError, r"got \(6, 1, 1\)"),
        (torch.full((6,), torch.nan), ArgumentError, "finite real numbers"),
        (
            torch.ones(6, dtype=torch.int64),
            ArgumentError,
            "floating-point numbers, got torch.int64",
        ),
        ([1.0] * 6, ArgumentTypeError, "must be a tensor or an array, got list"),
    ],
)
def test_other_factors_are_refused(matrix, other, error, message):
    with pytest.raises(error, match=message):
        operator_of(matrix) @ other


def test_a_large_dense_matrix_is_refused():
    operator = SymmetricOperator(lambda v: v, 20_001, torch.float32)
    with pytest.raises(ArgumentError, match="at most 20,000 columns, got 20,001"):
        operator.dense()
