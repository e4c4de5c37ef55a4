"""Gauss quadrature by the Lanczos recurrence: nodes and weights of what one vector sees."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from landscapex._arrays import Array
from landscapex.curvature.basis import BREAKDOWN, Basis
from landscapex.curvature.estimates import Products, dot
from landscapex.errors import LandscapexError

_MASS = 1e-12  # how far the weights may be from 1 in sum, per step


@dataclass(frozen=True)
class Recurrence:
    """The tridiagonal matrix that a vector leads to.

    Attributes:
        alphas: Its diagonal, ``m`` numbers.
        betas: What is beside it, ``m - 1`` numbers above 0.
        moments: ``<v, A v>`` and ``|A v|^2`` of the unit start, from the first product.
        complete: Whether the space is invariant: a further step would find nothing.
    """

    alphas: list[float]
    betas: list[float]
    moments: tuple[float, float]
    complete: bool


def recurrence(product: Products, start: Tensor, steps: int, basis: Basis | None) -> Recurrence:
    """The Lanczos three-term recurrence in Paige's stable order, inner products in float64.

    Args:
        product: The products with the matrix.
        start: ``(P,)``, of any length but 0.
        steps: Where it ends at the latest.
        basis: Empty, for as many rows: every vector is made orthogonal to all before. None keeps
            three vectors.

    Returns:
        The tridiagonal matrix.
    """
    q = start / math.sqrt(dot(start, start))
    if basis is not None:
        basis.extend(q)
    previous, beta, scale = torch.zeros_like(q), 0.0, 0.0
    alphas: list[float] = []
    betas: list[float] = []
    moments = (0.0, 0.0)
    small = BREAKDOWN * torch.finfo(q.dtype).eps
    while True:
        w = product(q)
        if not alphas:
            moments = (dot(q, w), dot(w, w))
        w = w - beta * previous
        alpha = dot(q, w)
        w -= alpha * q
        alphas.append(alpha)
        scale = max(scale, abs(alpha) + beta)
        beta = math.sqrt(dot(w, w)) if basis is None else basis.project(w)[1]
        # A residual of the size of rounding: the space is invariant, T holds all its eigenvalues.
        complete = beta <= small * scale or (basis is not None and len(alphas) == q.numel())
        if complete or len(alphas) == steps:
            return Recurrence(alphas, betas, moments, complete)
        betas.append(beta)
        previous, q = q, w / beta
        if basis is not None:
            basis.append(beta)
            q = basis.rows[-1]


def quadrature(alphas: list[float], betas: list[float]) -> tuple[Array, Array]:
    """The Gauss quadrature of a tridiagonal matrix (Golub and Welsch 1969).

    Args:
        alphas: ``m`` diagonal entries.
        betas: ``m - 1`` entries beside it.

    Returns:
        ``m`` nodes, ascending: its eigenvalues; and weights: the squares of the *first row* of the
        matrix of its eigenvectors.

    Raises:
        LandscapexError: If the weights do not sum to 1.

    Example:
        >>> nodes, weights = quadrature([0.0, 0.0], [2.0])
        >>> nodes.round(12), weights.round(12)
        (array([-2.,  2.]), array([0.5, 0.5]))
    """
    if len(alphas) == 1:
        return np.array(alphas), np.ones(1)
    nodes, vectors = eigh_tridiagonal(np.array(alphas), np.array(betas), lapack_driver="stev")
    weights = vectors[0] ** 2
    if not abs(float(weights.sum()) - 1) <= _MASS * len(alphas):
        raise LandscapexError(f"the weights of a quadrature must sum to 1, got {weights.sum()!r}.")
    return nodes, weights
