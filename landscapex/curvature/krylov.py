"""Krylov spaces: an operator as a growing orthonormal basis sees it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from landscapex.curvature.basis import Basis
from landscapex.curvature.draws import gaussian
from landscapex.curvature.linear import SymmetricOperator
from landscapex.errors import NonFiniteProductError


@dataclass(frozen=True)
class Ritz:
    """Eigenvalues of the operator as the basis sees it, rising; vectors are columns of `mixing`.

    `residuals` are what couples each vector to the rows that wait: the true ones, but for rounding.
    """

    values: np.ndarray
    mixing: np.ndarray
    residuals: np.ndarray


class Krylov:
    """A growing orthonormal basis, and the operator as it sees it.

    The first `done` rows were multiplied; the others wait their turn. Each product adds what is
    new in it as one more row: from one start vector that is the method of Lanczos, from several
    the band Lanczos method, which needs no special case where vectors of a block become dependent.

    Args:
        operator: ``A``.
        most: Rows that are multiplied before the basis must be condensed.
        block: Rows that wait at the start.
        seed: Of random rows.
        start: At most ``block`` vectors; random ones fill up.

    Attributes:
        matrix: ``q_i^T A q_j`` of the rows; 0 where neither ``i`` nor ``j`` is done.
        longest: Length of the longest product.
        largest: The largest ``|Ritz value|`` seen.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        *,
        most: int,
        block: int,
        seed: int,
        start: Sequence[Tensor],
    ) -> None:
        self.operator, self.seed = operator, seed
        self.most = min(most, operator.size)
        rows = min(self.most + block, operator.size)
        self.basis = Basis(operator, rows)
        self.matrix = np.zeros((rows, rows))
        self.done = self.products = self.draws = 0
        self.longest = self.largest = 0.0
        for vector in start:
            self.basis.extend(vector)
        while self.basis.count < block:
            self.add_random()

    @property
    def closed(self) -> bool:
        """Whether products with the basis stay in its span."""
        return self.done == self.basis.count

    @property
    def full(self) -> bool:
        """Whether it is time to condense the basis."""
        return self.done == self.most

    def add_random(self) -> None:
        """Append a random row; nothing is known of its coupling to the others but by products."""
        added = False
        while not added:
            vector = gaussian(self.operator, self.seed, "lanczos", self.draws)
            added = self.basis.extend(vector)
            self.draws += 1

    def step(self) -> float:
        """Multiply the first row that waits.

        Returns:
            How strongly the space is coupled to what is outside, relative to the longest product:
            0 if it has closed; infinity if other rows wait.
        """
        j, n = self.done, self.basis.count
        coefficients, left = self.basis.project(self._product(j))
        length = self._require_finite(math.hypot(*coefficients, left))
        self.longest = max(self.longest, length)
        self.matrix[:n, j] = self.matrix[j, :n] = coefficients
        # relative to the operator, never to a fixed number: less is rounding, not a direction
        if n < self.operator.size and left > self.basis.rounding * self.longest:
            self.basis.append(left)
            self.matrix[n, j] = self.matrix[j, n] = left
        self.done += 1
        if n > self.done:  # whether or not this product has added a row
            return math.inf
        return 0.0 if self.closed else left / self.longest

    def ritz(self) -> Ritz:
        """The eigenvalues of the operator between the rows that are done, and their residuals."""
        n, m = self.done, self.basis.count
        values, mixing = np.linalg.eigh(self.matrix[:n, :n])
        self.largest = max(self.largest, float(np.abs(values).max()))
        return Ritz(values, mixing, np.linalg.norm(self.matrix[n:m, :n] @ mixing, axis=0))

    def restart(self, ritz: Ritz, kept: np.ndarray) -> None:
        """Condense the rows that are done to some Ritz vectors, in this order."""
        n, m, p = self.done, self.basis.count, len(kept)
        mixing = ritz.mixing[:, kept]
        coupling = self.matrix[n:m, :n] @ mixing
        self.basis.rotate(mixing)
        self.matrix[:] = 0
        self.matrix[np.arange(p), np.arange(p)] = ritz.values[kept]
        waiting = slice(p, p + m - n)
        self.matrix[waiting, :p] = coupling
        self.matrix[:p, waiting] = coupling.T
        self.done = p

    def check(self, i: int) -> tuple[float, float]:
        """Rayleigh quotient and residual of row ``i``, by a product taken for that purpose."""
        value, left = self.basis.rayleigh(i, self._product(i))
        self._require_finite(value + left)
        return value, left

    def _product(self, i: int) -> Tensor:
        self.products += 1
        return self.operator.apply(self.basis.vectors[i])

    def _require_finite(self, number: float) -> float:
        if not math.isfinite(number):
            raise NonFiniteProductError(
                f"`operator` must give finite products, got NaN or infinity in product "
                f"{self.products}."
            )
        return number
