"""The diagonal of a symmetric operator from random products."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscapex._arrays import Array, read_only
from landscapex._numbers import check_count
from landscapex.curvature import draws
from landscapex.curvature.estimates import Estimate, Products, quantile, skewness, standard_error
from landscapex.curvature.linear import SymmetricOperator
from landscapex.curvature.sketch import Sketch
from landscapex.errors import ArgumentError

_BLOCK = 1 << 16  # columns whose float64 copies exist at a time
_LEAST = {"hutchinson": 2, "diag++": 4}


@dataclass(frozen=True, eq=False, repr=False)
class DiagonalEstimate:
    """The diagonal of a matrix, with an error for each entry.

    Attributes:
        values: ``(P,)`` float64.
        standard_error: ``(P,)`` float64: standard deviation of each value over other random
            vectors, from few samples itself uncertain, which `interval` takes into account. It
            includes the rounding of the products; 0 if exact.
        trace: The sum of the entries, with its own error: those of the entries are not independent.
        samples: Random vectors that the errors are estimated from.
        products: Products with the matrix that were taken.
        method: How it was estimated.
        matrix: What matrix it is of; empty if the operator has no name.
        exact: Whether nothing is left to chance; only rounding is.
    """

    values: Array
    standard_error: Array
    trace: Estimate
    samples: int
    products: int
    method: str
    matrix: str
    exact: bool

    def interval(self, confidence: float = 0.95) -> tuple[Array, Array]:
        """Intervals that contain the true entries, each with a given probability.

        Args:
            confidence: The probability, between 0 and 1.

        Returns:
            Lower and upper ends, ``(P,)`` each, by Student's t distribution.

        Raises:
            ArgumentError: If `confidence` is not between 0 and 1.
        """
        half = quantile(confidence, self.trace.degrees) * self.standard_error
        return self.values - half, self.values + half

    def __repr__(self) -> str:
        typical = math.sqrt(float(np.mean(self.standard_error**2)))
        error = "exact" if self.exact else f"± {typical:.2g} rms, {self.method}"
        low, high = float(self.values.min()), float(self.values.max())
        of = f"{self.matrix}, " if self.matrix else ""
        return (
            f"DiagonalEstimate({of}P={len(self.values):,}, {low:.4g} to {high:.4g}, {error}, "
            f"{self.products:,} products)"
        )


def diagonal(
    operator: SymmetricOperator,
    *,
    products: int = 90,
    seed: int = 0,
    method: str = "hutchinson",
    progress: bool = False,
) -> DiagonalEstimate:
    """Estimate the diagonal.

    "hutchinson" averages ``v * (A v)`` over vectors v of random signs (Bekas, Kokiopoulou, Saad
    2007): entry i has the variance of the sum of its squared neighbours in the row, over the number
    of vectors. "diag++" takes the diagonal on the range of a random sketch exactly and averages
    over what is left (Baston, Nakatsukasa 2022, arXiv 2208.03268): better if few eigenvalues
    dominate, at the cost of two thirds of the products.

    Args:
        operator: The matrix, P by P.
        products: How many products are taken. From P on the diagonal is computed, not estimated,
            from P products.
        seed: Of the random vectors.
        method: "hutchinson" or "diag++".
        progress: Show a bar.

    Returns:
        The diagonal with its standard errors, and its sum.

    Raises:
        ArgumentError: If an argument has no usable value, or a product is not finite.
        ArgumentTypeError: If an argument has the wrong type.

    Example:
        >>> matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> operator = SymmetricOperator(lambda v: matrix @ v, 2, torch.float32)
        >>> diagonal(operator).values
        array([2., 3.])
    """
    if method not in _LEAST:
        raise ArgumentError(f"`method` must be one of {', '.join(_LEAST)}, got {method!r}.")
    budget = check_count("products", products, min(_LEAST[method], operator.size))
    draws.check_seed(seed)
    with Products(operator, min(budget, operator.size), progress, "diagonal") as product:
        if budget >= operator.size:
            return _exact(product)
        if method == "hutchinson":
            return _sampled(product, budget, seed, method)
        sketch = Sketch(product, budget // 3)
        for number in range(budget // 3):
            sketch.add(draws.signs(operator, seed, "diagonal sketch", number))
        spent = sketch.count + sketch.basis.count
        return _sampled(product, budget - spent, seed, method, sketch)


def _inside(sketch: Sketch) -> tuple[Tensor, Tensor]:
    """The diagonal of ``A - (I - Q Q^T) A (I - Q Q^T) = Z Q^T + Q Z^T - Q H Q^T``, ``Z = A Q``.

    Args:
        sketch: Q and Z.

    Returns:
        It, and the squared lengths of the rows of Z; both ``(P,)`` float64.
    """
    small = torch.from_numpy(sketch.small()[0]).to(sketch.images.device)
    rows, squares = [], []
    parts = zip(sketch.basis.rows.split(_BLOCK, 1), sketch.images.split(_BLOCK, 1), strict=True)
    for q, z in ((a.double(), b.double()) for a, b in parts):
        rows.append((q * (2 * z - small @ q)).sum(0))
        squares.append((z * z).sum(0))
    return torch.cat(rows), torch.cat(squares)


def _sampled(
    product: Products, count: int, seed: int, method: str, sketch: Sketch | None = None
) -> DiagonalEstimate:
    """Mean and scatter of ``v * (B v)``, B what the sketch leaves, by Welford's recurrence."""
    operator = product.operator
    zero = torch.zeros(operator.size, dtype=torch.float64, device=operator.device)
    known, square = (zero, zero.clone()) if sketch is None else _inside(sketch)
    mean, scatter = zero.clone(), zero.clone()
    sums = []
    for number in range(count):
        v = draws.signs(operator, seed, "diagonal", number)
        made = product(v if sketch is None else sketch.without(v))
        square += made.double() ** 2 / count
        made = made if sketch is None else sketch.without(made)
        sample = v.double() * made.double()
        sums.append(float(sample.sum()))
        change = sample - mean
        mean += change / (number + 1)
        scatter += change * (sample - mean)
    values = (known + mean).cpu().numpy()
    rounding = product.rounding * (square.sqrt().cpu().numpy() + np.abs(values))
    scattered = (scatter / (count * (count - 1))).sqrt().cpu().numpy()
    trace = Estimate(
        value=float(known.sum()) + float(np.mean(sums)),
        standard_error=math.hypot(standard_error(np.array(sums)), float(np.linalg.norm(rounding))),
        degrees=count - 1, samples=count, products=product.taken, method=method,
        matrix=operator.name, skewness=skewness(np.array(sums)),
    )  # fmt: skip
    return DiagonalEstimate(
        read_only(values), read_only(np.hypot(scattered, rounding)), trace, count, product.taken,
        method, operator.name, exact=False,
    )  # fmt: skip


def _exact(product: Products) -> DiagonalEstimate:
    values = np.array([float(product.unit(k)[k]) for k in range(product.operator.size)])
    trace = Estimate(
        value=math.fsum(values), standard_error=0.0, degrees=math.inf, samples=0,
        products=product.taken, method="exact", matrix=product.operator.name, exact=True,
    )  # fmt: skip
    return DiagonalEstimate(
        read_only(values), read_only(np.zeros_like(values)), trace, 0, product.taken, "exact",
        product.operator.name, exact=True,
    )  # fmt: skip
