"""Symmetric linear maps over flat parameters, known by their products."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landscapex.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

Layout = tuple[tuple[str, tuple[int, ...]], ...]  # (name, shape) in the order of a flat vector

# Names of matrices, for what is computed of them
HESSIAN, GAUSS_NEWTON = "Hessian", "Gauss-Newton matrix"

_DENSE_MOST = 20_000  # columns of a matrix that is asked for as a whole


class SymmetricOperator:
    """A symmetric matrix ``(P, P)``, of which only products with vectors are known.

    Args:
        product: From a vector ``(P,)`` of this dtype and device to another.
        size: P.
        dtype: Of vectors: float32 or float64.
        device: Of vectors.
        name: What matrix it is, for what is computed of it; may be empty.

    Attributes:
        products: How many products were taken so far.

    Example:
        >>> matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> operator = SymmetricOperator(lambda v: matrix @ v, 2, torch.float32)
        >>> operator @ torch.tensor([1.0, 0.0])
        tensor([2., 1.])
        >>> operator.products
        1
    """

    def __init__(
        self,
        product: Callable[[Tensor], Tensor],
        size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        name: str = "",
    ) -> None:
        self._product, self.name = product, name
        self.size, self.dtype, self.device = size, dtype, torch.device(device)
        self.products = 0

    @property
    def shape(self) -> tuple[int, int]:
        """``(P, P)``."""
        return self.size, self.size

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        of = f"{self.name}, " if self.name else ""
        return f"{type(self).__name__}({of}P={self.size:,}, {dtype}, {self.device})"

    def apply(self, vector: Tensor) -> Tensor:
        """The product with one vector.

        Args:
            vector: ``(P,)``, of this dtype and device.

        Returns:
            ``(P,)``, a tensor of its own.
        """
        self.products += 1
        return self._product(vector)

    def __matmul__(self, other: Any) -> Any:
        """The product with a vector ``(P,)``, or with the columns of a matrix ``(P, k)``.

        Args:
            other: A tensor or an array; any dtype and device.

        Returns:
            The same kind, shape, dtype and device.

        Raises:
            ArgumentError: If it has another size, or entries that are not finite.
            ArgumentTypeError: If it is neither a tensor nor an array.
        """
        if isinstance(other, np.ndarray):
            made: Tensor = self @ torch.from_numpy(np.ascontiguousarray(other))
            return made.numpy()
        if not isinstance(other, Tensor):
            raise ArgumentTypeError(
                f"the other factor must be a tensor or an array, got {type(other).__name__}."
            )
        if other.ndim not in (1, 2) or len(other) != self.size:
            raise ArgumentError(
                f"the other factor must have shape ({self.size},) or ({self.size}, k), got "
                f"{tuple(other.shape)}."
            )
        if not other.is_floating_point() or not bool(torch.isfinite(other).all()):
            raise ArgumentError(
                f"the other factor must hold finite real numbers, got {other.dtype} with NaN or "
                "infinity." if other.is_floating_point() else
                f"the other factor must hold floating-point numbers, got {other.dtype}."
            )  # fmt: skip
        columns = other.detach().to(self.device, self.dtype).reshape(self.size, -1)
        if not columns.shape[1]:
            return torch.empty_like(other)
        made = torch.stack([self.apply(column.contiguous()) for column in columns.T])
        return made.T.reshape(other.shape).to(other.device, other.dtype)

    def dense(self) -> Tensor:
        """The whole matrix, by P products; for small P.

        Returns:
            ``(P, P)``; its asymmetry is that of the products.

        Raises:
            ArgumentError: If P is above 20,000.
        """
        if self.size > _DENSE_MOST:
            raise ArgumentError(
                f"a dense matrix must have at most {_DENSE_MOST:,} columns, got {self.size:,}."
            )
        made: Tensor = self @ torch.eye(self.size, dtype=self.dtype, device=self.device)
        return made

    def to_scipy(self) -> LinearOperator:
        """The operator for ``scipy.sparse.linalg``, in float64 on the CPU.

        Returns:
            A ``LinearOperator`` ``(P, P)``; products are taken in the dtype of this operator.
        """
        from scipy.sparse.linalg import LinearOperator

        def product(v: np.ndarray) -> np.ndarray:
            return np.asarray(self @ np.asarray(v, dtype=np.float64))

        def flat(v: np.ndarray) -> np.ndarray:
            return product(np.asarray(v).reshape(-1))

        return LinearOperator(
            self.shape, matvec=flat, rmatvec=flat, matmat=product, dtype=np.dtype(np.float64)
        )
