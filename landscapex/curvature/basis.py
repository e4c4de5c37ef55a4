"""Orthonormal vectors over flat parameters: the rows of one tensor."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from landscapex import _ops
from landscapex.curvature.linear import SymmetricOperator

_BLOCK = 1 << 16  # columns whose float64 copies exist at a time
BREAKDOWN = 100  # of rounding: what is left of a vector below this is its error, no direction


class Basis:
    """Orthonormal rows, and room for more.

    Inner products are summed in float64, whatever the dtype; every new row is made orthogonal to
    all others twice ("twice is enough").

    Args:
        operator: Gives size, dtype and device.
        capacity: The most rows; memory is ``(capacity + 1) P``.

    Attributes:
        vectors: ``(capacity + 1, P)``: the rows, then free space.
        count: How many rows there are.

    References:
        Giraud, Langou, Rozložník, "The loss of orthogonality in the Gram-Schmidt
        orthogonalization process", Computers & Mathematics with Applications 50, 2005.

    Example:
        >>> operator = SymmetricOperator(lambda v: v, 3, torch.float64)
        >>> basis = Basis(operator, 2)
        >>> basis.extend(torch.tensor([3.0, 0.0, 0.0])), basis.extend(torch.tensor([1.0, 2.0, 0.0]))
        (True, True)
        >>> basis.rows.tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """

    def __init__(self, operator: SymmetricOperator, capacity: int) -> None:
        shape = (capacity + 1, operator.size)
        self.vectors = torch.empty(shape, dtype=operator.dtype, device=operator.device)
        self.rounding = BREAKDOWN * torch.finfo(operator.dtype).eps
        self.count = 0

    @property
    def rows(self) -> Tensor:
        """``(count, P)``, a view."""
        return self.vectors[: self.count]

    def project(self, vector: Tensor) -> tuple[np.ndarray, float]:
        """Copy a vector into the free space, and take out of it what lies in the span.

        Args:
            vector: ``(P,)``; left as it is.

        Returns:
            Its coefficients ``(count,)``, float64, and the length of what is left.
        """
        return self._project(vector, self.rows)

    def append(self, length: float) -> None:
        """Make a row of what the last `project` left.

        Args:
            length: As `project` found it; above 0.
        """
        self.vectors[self.count].div_(length)
        self.count += 1

    def extend(self, vector: Tensor) -> bool:
        """Append the part of a vector that is orthogonal to all rows.

        Args:
            vector: ``(P,)``.

        Returns:
            False if nothing is left of it but rounding, and no row was appended.
        """
        coefficients, left = self.project(vector)
        length = math.hypot(*coefficients, left)
        if not left > self.rounding * length:
            return False
        self.append(left)
        return True

    def rayleigh(self, k: int, product: Tensor) -> tuple[float, float]:
        """What a product with row ``k`` says of it as an eigenvector.

        Args:
            k: The row ``q``.
            product: ``A q``.

        Returns:
            The Rayleigh quotient and the length of the residual ``A q - value q``.
        """
        (value,), left = self._project(product, self.vectors[k : k + 1])
        return float(value), left

    def rotate(self, mixing: np.ndarray) -> None:
        """Replace the first rows by combinations of them; the rows after them move up.

        Args:
            mixing: ``(n, p)`` with orthonormal columns and ``p <= n``: the first ``n`` rows ``Q``
                become ``mixing^T Q``.
        """
        n, p = mixing.shape
        turn = torch.from_numpy(np.ascontiguousarray(mixing.T)).to(self.vectors.device)
        for part in self.vectors.split(_BLOCK, dim=1):
            part[:p] = (turn @ part[:n].double()).to(part.dtype)
        for k in range(n, self.count):
            self.vectors[p + k - n] = self.vectors[k]
        self.count -= n - p

    def _project(self, vector: Tensor, rows: Tensor) -> tuple[np.ndarray, float]:
        free = self.vectors[self.count]
        free.copy_(vector)
        coefficients = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
        _ops.orthogonalize_(free, rows, coefficients)
        length = torch.linalg.vector_norm(free, dtype=torch.float64)
        found = torch.cat((coefficients, length[None])).cpu().numpy()
        return found[:-1], float(found[-1])
