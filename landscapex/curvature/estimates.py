"""Numbers that were estimated, each with the error of its estimation."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor

from landscapex._arrays import Array
from landscapex._progress_bar import progress_bar
from landscapex.errors import ArgumentError, NonFiniteProductError

if TYPE_CHECKING:
    from landscapex.curvature.linear import SymmetricOperator


_BLOCK = 1 << 16  # entries whose float64 copies exist at a time; a power of two
_ROW = 128  # sums that are added one after another
_SYMMETRIC = 1e-6  # skewness below which it changes nothing
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
        matrix: What matrix it is a number of; empty if the operator has no name.
        exact: Whether nothing is left to chance; only rounding is.
        skewness: Of `value` over other random vectors. Means of squares, say, have a tail above:
            most samples lie below the mean, and with few of them value and standard error are too
            small together. `interval` makes up for it by reaching further to that side.

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
    matrix: str = ""
    exact: bool = False
    skewness: float = 0.0

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """An interval that contains the true number with a given probability.

        Args:
            confidence: The probability, between 0 and 1.

        Returns:
            Its ends; see `interval_of`.

        Raises:
            ArgumentError: If `confidence` is not between 0 and 1.
        """
        t = quantile(confidence, self.degrees)
        return interval_of(self.value, self.standard_error, t, self.skewness)

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        error = "exact" if self.exact else self.method
        number = (
            f"{self.value:.6g}" if self.exact else f"{self.value:.6g} ± {self.standard_error:.2g}"
        )
        of = f"{self.matrix}, " if self.matrix else ""
        return f"{type(self).__name__}({of}{number}, {error}, {self.products:,} products)"


def interval_of(
    value: float, standard_error: float, quantile: float, skewness: float
) -> tuple[float, float]:
    """An interval around a mean.

    Args:
        value: The mean.
        standard_error: Its own.
        quantile: How many standard errors the interval would reach to either side, as `quantile`
            gives it, if `value` were not skewed.
        skewness: Of the mean.

    Returns:
        Its ends: those at which a cubic polynomial of the studentised mean, which is not skewed,
        has the quantile and its negative.

    References:
        Hall, "On the removal of skewness by transformation", Journal of the Royal Statistical
        Society B 54, 1992, section 2.

    Example:
        >>> [round(end, 3) for end in interval_of(5.0, 0.5, 2.0, 0.0)]
        [4.0, 6.0]
        >>> [round(end, 3) for end in interval_of(5.0, 0.5, 2.0, 0.3)]
        [4.17, 6.363]
    """

    def reach(t: float) -> float:  # the x with x + k x^2 / 3 + k^2 x^3 / 27 + k / 6 = t
        k = skewness
        return t if abs(k) < _SYMMETRIC else 3 / k * (math.cbrt(1 + k * (t - k / 6)) - 1)

    return value - standard_error * reach(quantile), value - standard_error * reach(-quantile)


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


def standard_error(values: Array) -> float:
    """The standard error of the mean of independent values.

    Args:
        values: ``(n,)``, at least two.

    Returns:
        Their standard deviation (n - 1 in the denominator) over the root of n.
    """
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def skewness(values: Array) -> float:
    """The skewness of the mean of independent values.

    Args:
        values: ``(n,)``.

    Returns:
        That of one value, estimated without the bias of few values from a normal distribution, over
        the root of n; 0 for fewer than three.

    Example:
        >>> round(skewness(np.array([1.0, 2.0, 6.0])), 4)
        0.8417
    """
    n, from_mean = len(values), values - np.mean(values)
    spread = float(np.sqrt(np.mean(from_mean**2)))
    if n < 3 or not spread:
        return 0.0
    return float(np.mean((from_mean / spread) ** 3)) * math.sqrt(n - 1) / (n - 2)


def dot(a: Tensor, b: Tensor) -> float:
    """The inner product of two vectors, in float64 whatever their dtype.

    Entries are multiplied and added one by one, in an order that only the length decides: the bits
    are the same for any instruction set, number of threads and device. Only a block of each vector
    is widened at a time.

    Args:
        a: ``(P,)``.
        b: ``(P,)``, on the same device.

    Returns:
        The sum.
    """
    width = min(_BLOCK, 1 << max(0, len(a) - 1).bit_length())
    sums = torch.zeros(width, dtype=torch.float64, device=a.device)
    for x, y in zip(a.split(width), b.split(width), strict=True):
        sums[: len(x)] += x.double() * y.double()
    while width > _ROW:
        width //= 2
        sums = sums[:width] + sums[width:]
    return float(np.cumsum(sums.cpu().numpy())[-1])


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
        self._bar = progress_bar(
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
