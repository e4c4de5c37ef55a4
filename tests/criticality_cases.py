"""Quadratic models: curvature and gradient from a seed, whole or by products."""

from __future__ import annotations

import numpy as np
import torch

from landscapex.curvature.linear import SymmetricOperator


def symmetric(size, seed, values=None):
    """A random symmetric matrix, rotated; eigenvalues of both signs unless given."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((size, size)))
    values = rng.standard_normal(size) if values is None else np.asarray(values, float)
    return (q * values) @ q.T


def gradient_of(size, seed):
    return np.random.default_rng(1000 + seed).standard_normal(size)


def operator_of(matrix, dtype=torch.float64):
    m = torch.from_numpy(matrix).to(dtype)
    return SymmetricOperator(lambda v: m @ v, len(matrix), dtype)
