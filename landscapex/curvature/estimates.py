"""Numbers that were estimated, each with the error of its estimation."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit
from torch import Tensor
from tqdm.auto import tqdm

from landscapex.errors import ArgumentError, ArgumentTypeError, NonFiniteProductError

if TYPE_CHECKING:
    from landscapex.curvature.linear import SymmetricOperator


_ROUNDINGS = 4  # measured on dense matrices of 40 to 100 columns


@dataclass(frozen=True, kw_only=True, repr=False)
class Estimate:
    """A number and the error of its estimation.

    Attributes:
        value: The number.
        standard_error: Standard deviation of `value` over other random vectors; it includes the
            rounding of the products. 0 if exact.
        degrees: Degrees of freedom of the standard error: with few samples it is itself uncertain,
            which `interval` takes into account. Infinite where a formula gives the variance.
        samples: How many random vectors the error is estimated from.
        products: Products with the matrix that were taken.
        method: How it was estimated.
        exact: Whether nothing is left to chance; only rounding is.

    Example:
        >>> few = Estimate(
        ...     value=5.0, standard_error=0.1, degrees=4, samples=5, products=5, method="hutchinson"
        ... )
        >>> few
        Estimate(5 ± 0.1, hutchinson, 5 products)
        >>> [round(end, 2) for end in few.interval(0.95)]
        [4.72, 5.28]
    """

    value: float
    standard_error: float
    degrees: float
    samples: int
    products: int
    method: str
    exact: bool = False

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """An interval that contains the true number with a given probability.

        Args:
            confidence: The probability, between 0 and 1.

        Returns:
            Its ends: `value` -+ the quantile of Student's t distribution (of the normal one for
            infinite `degrees`) times `standard_error`.

        Raises:
            ArgumentError: If `confidence` is not between 0 and 1.
        """
        half = quantile(confidence, self.degrees) * self.standard_error
        return self.value - half, self.value + half

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        error = "exact" if self.exact else self.method
        number = (
            f"{self.value:.6g}" if self.exact else f"{self.value:.6g} ± {self.standard_error:.2g}"
        )
        return f"{type(self).__name__}({number}, {error}, {self.products:,} products)"


def quantile(confidence: float, degrees: float = math.inf) -> float:
    """How many standard errors reach to either side of a two-sided interval.

    Args:
        confidence: Its probability.
        degrees: Of freedom of the standard error.

    Returns:
        The quantile of Student's t, or of the normal distribution.

    Raises:
        ArgumentError: If `confidence` is not between 0 and 1.

    Example:
        >>> round(quantile(0.95), 3), round(quantile(0.95, 4), 3)
        (1.96, 2.776)
    """
    if not 0 < confidence < 1:
        raise ArgumentError(f"`confidence` must be between 0 and 1, got {confidence}.")
    upper = 0.5 * (1 + confidence)
    return float(ndtri(upper) if math.isinf(degrees) else stdtrit(degrees, upper))


def standard_error(values: NDArray[np.float64]) -> float:
    """The standard error of the mean of independent values.

    Args:
        values: ``(n,)``, at least two.

    Returns:
        Their standard deviation (n - 1 in the denominator) over the root of n.
    """
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def dot(a: Tensor, b: Tensor) -> float:
    """The inner product of two vectors, in float64 whatever their dtype."""
    return float(torch.dot(a.double(), b.double()))


def check_count(name: str, value: object, least: int) -> int:
    """Refuse what is not a whole number, or too small a one.

    Args:
        name: Of the argument.
        value: What was given.
        least: The smallest that can be used.

    Returns:
        `value`.

    Raises:
        ArgumentTypeError: If it is not a whole number.
        ArgumentError: If it is below `least`.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise ArgumentTypeError(f"`{name}` must be a whole number, got {value!r}.")
    if value < least:
        raise ArgumentError(f"`{name}` must be at least {least}, got {value}.")
    return int(value)


class Products:
    """The products of one estimate: counted, shown in a bar, and refused if they are not finite.

    Args:
        operator: The matrix.
        total: How many there will be at most.
        progress: Whether to show a bar.
        name: What is estimated, for the bar.

    Attributes:
        taken: How many there were.
        rounding: What they may be off by, relative to the numbers involved.
    """

    def __init__(self, operator: SymmetricOperator, total: int, progress: bool, name: str) -> None:
        self.operator, self.taken = operator, 0
        self.rounding = _ROUNDINGS * float(torch.finfo(operator.dtype).eps)
        self._bar = tqdm(
            total=total, unit="product", desc=name, delay=0.5, dynamic_ncols=True,
            disable=not progress or sys.stderr is None,
        )  # fmt: skip

    def __enter__(self) -> Products:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, vector: Tensor) -> Tensor:
        """The product with a vector.

        Args:
            vector: ``(P,)``.

        Returns:
            ``(P,)``.

        Raises:
            NonFiniteProductError: If it is not finite.
        """
        made = self.operator.apply(vector)
        self.taken += 1
        self._bar.update()
        if not bool(torch.isfinite(made).all()):
            raise NonFiniteProductError(
                "`operator` must give finite products, got NaN or infinity in product "
                f"{self.taken}."
            )
        return made

    def unit(self, position: int) -> Tensor:
        """One column of the matrix.

        Args:
            position: Which.

        Returns:
            ``(P,)``.
        """
        vector = torch.zeros(
            self.operator.size, dtype=self.operator.dtype, device=self.operator.device
        )
        vector[position] = 1
        return self(vector)
