"""Symmetric operators with known eigenvalues."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from landscapex.curvature.linear import SymmetricOperator

DOUBLE = torch.float64


def operator_of(matrix: Tensor, dtype: torch.dtype = DOUBLE) -> SymmetricOperator:
    matrix = matrix.to(dtype)
    return SymmetricOperator(lambda v: matrix @ v, len(matrix), dtype)


def rotated(values: np.ndarray, seed: int = 0) -> Tensor:
    """A dense symmetric matrix with these eigenvalues."""
    gaussian = np.random.default_rng(seed).standard_normal((len(values), len(values)))
    q = np.linalg.qr(gaussian)[0]
    a = q * np.asarray(values) @ q.T
    return torch.from_numpy((a + a.T) / 2)


def goe(n: int, seed: int = 0) -> Tensor:
    a = np.random.default_rng(seed).standard_normal((n, n))
    return torch.from_numpy((a + a.T) / math.sqrt(2 * n))
