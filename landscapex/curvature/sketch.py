"""Sketches: the range of a matrix from random products, and what is left outside."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from landscapex._arrays import Array
from landscapex._directions import gram
from landscapex.curvature.basis import Basis
from landscapex.curvature.estimates import Products, dot

_PARALLEL = 1e-10  # squared sine of directions between which rounding does not tell


class Sketch:
    """An orthonormal basis Q of the range of a matrix on random vectors, and the matrix on it.

    Args:
        product: The products.
        most: How many vectors there may be; memory is ``2 most P``.

    Attributes:
        basis: The rows of ``Q^T``.
    """

    def __init__(self, product: Products, most: int) -> None:
        like = product.operator
        self.product, self.basis = product, Basis(like, most)
        self._images = torch.empty((most, like.size), dtype=like.dtype, device=like.device)
        self._multiplied = 0
        self._columns: list[Array] = []

    @property
    def count(self) -> int:
        """How many vectors were added."""
        return len(self._columns)

    @property
    def images(self) -> Tensor:
        """``(A Q)^T``, ``(r, P)``; the products with rows that are new are taken now."""
        for k in range(self._multiplied, self.basis.count):
            self._images[k] = self.product(self.basis.rows[k])
        self._multiplied = self.basis.count
        return self._images[: self.basis.count]

    def add(self, omega: Tensor) -> None:
        """Extend the basis by what the product with `omega` adds to it."""
        column, left = self.basis.project(self.product(omega))
        if left > self.basis.rounding * math.hypot(*column, left):
            self.basis.append(left)
            column = np.append(column, left)
        self._columns.append(column)

    def without(self, vector: Tensor) -> Tensor:
        """What is left of a vector without its part in the span of Q; a new one."""
        self.basis.project(vector)
        return self.basis.vectors[self.basis.count].clone()

    def triangle(self) -> Array:
        """R with ``A Omega = Q R``, ``(r, k)``."""
        made = np.zeros((self.basis.count, self.count))
        for k, column in enumerate(self._columns):
            made[: len(column), k] = column
        return made

    def inner(self, vector: Tensor) -> Array:
        """``Q^T v``, ``(r,)``."""
        return gram(self.basis.rows, vector[None])[:, 0].numpy()

    def small(self) -> tuple[Array, Array]:
        """``H = Q^T A Q``, made symmetric, and ``G = (A Q)^T A Q``; both ``(r, r)``."""
        h = gram(self.basis.rows, self.images).numpy()
        return 0.5 * (h + h.T), gram(self.images).numpy()

    def inside(self) -> tuple[float, float]:
        """The trace and the squared Frobenius norm of ``A Q Q^T``."""
        pairs = [(dot(q, z), dot(z, z)) for q, z in zip(self.basis.rows, self.images, strict=True)]
        return math.fsum(a for a, _ in pairs), math.fsum(b for _, b in pairs)


def leave_one_out(
    size: int, w: Array, r: Array, h: Array, g: Array, eps: float
) -> tuple[Array, Array]:
    """The estimates of XTrace from its small matrices.

    Args:
        size: P.
        w: ``(r, k)``: ``Q^T Omega``.
        r: ``(r, k)``: ``Q^T A Omega``, with r below k only if the matrix has so low a rank.
        h: ``(r, r)``: ``Q^T A Q``.
        g: ``(r, r)``: ``(A Q)^T A Q``.
        eps: Relative rounding of the products.

    Returns:
        ``(k, k)`` estimates of the trace, and of the squared Frobenius norm: entry ``[i, j]`` from
        vector j and a sketch without i and j, so that the diagonal holds those of XTrace.
    """
    count = r.shape[1]
    if not r.any():
        return np.zeros((count, count)), np.zeros((count, count))
    u, sizes, v = np.linalg.svd(r, full_matrices=False)
    keep = sizes > eps * count * sizes[0]
    u, sizes, v = u[:, keep], sizes[keep], v[keep]
    w, r, h, g = u.T @ w, sizes[:, None] * v, u.T @ h @ u, u.T @ g @ u
    if len(sizes) < count:  # the others span the same space without any one or two of them
        left = _Left(size - len(sizes), w, np.zeros_like(w))
    else:
        left = _Left(size - count, w, v / sizes[:, None])
    return left.estimates(h, r, _columns(w, r)), left.estimates(g, h @ r, _columns(r, r))


class _Left:
    """What is left of each vector outside the sketch of the others, one more of them left out.

    Entry ``[i, j]`` of all matrices here belongs to ``x = W_j - p s_i - q s_j``, the part of
    omega_j in the space without s_i and s_j; on the diagonal, without s_j.

    Args:
        outside: P less the dimension of the whole sketch.
        w: ``(r, k)``: ``Q^T Omega``.
        s: ``(r, k)``: columns along the s_i, of any length; zero if nothing can be left out.
    """

    def __init__(self, outside: int, w: Array, s: Array) -> None:
        self.w, self.s = w, s / np.maximum(np.linalg.norm(s, axis=0), np.finfo(np.float64).tiny)
        own = np.eye(w.shape[1], dtype=bool)
        self.cosine = np.where(own, 0.0, self.s.T @ self.s)
        sine2 = 1 - self.cosine**2
        self.blurred = sine2 < _PARALLEL
        self.sine2 = np.where(self.blurred, 1.0, sine2)
        others = self.s.T @ w
        mine = np.diag(others)[None, :]
        self.p = np.where(own, 0.0, (others - self.cosine * mine) / self.sine2)
        self.q = (mine - np.where(own, 0.0, self.cosine * others)) / self.sine2
        length = _columns(w, w) - self.p * others - self.q * mine
        removed = 0 if not s.any() else np.where(own, 1, 2)
        self.scale = (outside + removed) / np.maximum(outside + w.shape[0] - length, 1.0)

    def estimates(self, kernel: Array, cross: Array, square: Array) -> Array:
        """Traces of a form on the sketch, and of what the vectors say of it outside.

        Args:
            kernel: ``(r, r)``: the form on the sketch, ``Q^T M Q``.
            cross: ``(r, k)``: ``Q^T M Omega``.
            square: ``(k,)``: the form of each vector.

        Returns:
            ``(k, k)``.
        """
        w, s, p, q = self.w, self.s, self.p, self.q
        between, mixed = s.T @ kernel @ s, s.T @ kernel @ w
        d, own = np.diag(between), np.eye(len(square), dtype=bool)
        both = (d[:, None] + d - 2 * self.cosine * between) / self.sine2
        crossed = s.T @ cross
        linear = _columns(w, cross) - p * crossed - q * np.diag(crossed)
        quadratic = (
            _columns(w, kernel @ w) - 2 * p * mixed - 2 * q * np.diag(mixed)
            + p**2 * d[:, None] + q**2 * d + 2 * p * q * between
        )  # fmt: skip
        inside = np.trace(kernel) - np.where(own, d, both)
        made = inside + self.scale * (square - 2 * linear + quadratic)
        return np.where(self.blurred, np.diag(made), made)


def _columns(a: Array, b: Array) -> Array:
    """Inner products of columns with columns."""
    return np.einsum("ij,ij->j", a, b)
