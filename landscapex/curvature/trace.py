"""The trace of a symmetric operator from random products, and its size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from landscapex._arrays import Array
from landscapex._numbers import check_count, check_positive
from landscapex._warnings import warn
from landscapex.curvature import draws
from landscapex.curvature.estimates import Estimate, Products, dot, skewness, standard_error
from landscapex.curvature.linear import SymmetricOperator
from landscapex.curvature.sketch import Sketch, leave_one_out
from landscapex.errors import ArgumentError

_LEAST = {"auto": 2, "hutchinson": 2, "hutch++": 4, "xtrace": 4}
_FEW = 12  # products below which a sketch does not pay
_MEMORY = 2 << 30  # bytes of sketch that "auto" takes
_FIRST_LOOK = 10  # samples before the first question whether the error is small enough


@dataclass(frozen=True, kw_only=True, repr=False)
class TraceEstimate(Estimate):
    """A trace, and what the same products say about the size of the matrix.

    Attributes:
        frobenius_norm: The root of the sum of all squared eigenvalues.
        effective_rank: The squared trace over the squared Frobenius norm: how many equal
            eigenvalues would have both.
        converged: Whether the error is as small as was asked for; True if nothing was asked.
    """

    frobenius_norm: Estimate
    effective_rank: Estimate
    converged: bool


def trace(
    operator: SymmetricOperator,
    *,
    method: str = "auto",
    products: int = 90,
    seed: int = 0,
    tol: float | None = None,
    progress: bool = False,
) -> TraceEstimate:
    """Estimate the sum of the eigenvalues.

    "hutchinson" averages ``<z, A z>`` over vectors of random signs (Hutchinson 1990). "hutch++"
    takes the trace on the range of a random sketch exactly, and averages over what is left (Meyer,
    Musco, Musco, Woodruff 2021, arXiv 2010.09649). "xtrace" leaves each vector of the sketch out in
    turn to average over it (Epperly, Tropp, Webber 2024, arXiv 2301.07825, with vectors on the
    sphere and their scaling; its estimates share their vectors, which the standard error here takes
    into account). The last two are far better if few eigenvalues dominate, and somewhat worse if
    none does.

    Args:
        operator: The matrix, P by P.
        method: "hutchinson", "hutch++", "xtrace", or "auto": the last if there are at least 12
            products and its sketch needs at most 2 GiB, else the first.
        products: How many products may be taken. From P on the trace is computed, not estimated,
            from P products.
        seed: Of the random vectors.
        tol: Stop when the standard error is at most this part of the value; `products` is then the
            limit. None takes all products. "hutch++" takes its sketch, two thirds of them, anyway.
            An error that is found small is a little more often one that is too small: intervals of
            95 % then contain the trace in 92 to 94 % of the cases.
        progress: Show a bar.

    Returns:
        The trace with its standard error, and more from the same products.

    Raises:
        ArgumentError: If an argument has no usable value, or a product is not finite.
        ArgumentTypeError: If an argument has the wrong type.

    Example:
        >>> vector = torch.ones(1000, dtype=torch.float64)
        >>> operator = SymmetricOperator(lambda v: (vector @ v) * vector, 1000, torch.float64)
        >>> found = trace(operator, products=12)
        >>> round(found.value, 6), round(float(found.effective_rank), 6), found.products
        (1000.0, 1.0, 7)
    """
    if method not in _LEAST:
        raise ArgumentError(f"`method` must be one of {', '.join(_LEAST)}, got {method!r}.")
    budget = check_count("products", products, min(_LEAST[method], operator.size))
    draws.check_seed(seed)
    tol = None if tol is None else check_positive("tol", tol)
    if method == "auto":
        method = _chosen(operator, budget)
    exact = budget >= operator.size
    with Products(operator, min(budget, operator.size), progress, "trace") as product:
        if exact:
            return _exact(product)
        sampler = _METHODS[method](product, budget, seed)
        looks = [sampler.most] if tol is None else _looks(sampler.most)
        for count in looks:
            traces, squares = sampler.samples(count)
            found = _estimate(product, method, traces, squares, sampler.known, tol)
            if found.converged:
                break
    if not found.converged:
        warn(
            f"The trace is known to {found.standard_error / abs(found.value or math.nan):.2g} of "
            f"its value, not to {tol:.2g}, after {found.products:,} products."
        )
    return found


class _Hutchinson:
    """``<z, A z>`` and ``|A z|^2`` for random signs, on what a sketch leaves if there is one.

    Attributes:
        known: The part of the squared Frobenius norm that every sample has in common.
    """

    def __init__(
        self, product: Products, budget: int, seed: int, sketch: Sketch | None = None
    ) -> None:
        self.product, self.seed, self.most, self.sketch = product, seed, budget, sketch
        self._inside = (0.0, 0.0) if sketch is None else sketch.inside()
        self.known = self._inside[1]
        self._pairs: list[tuple[float, float]] = []

    def samples(self, count: int) -> tuple[Array, Array]:
        """So many samples of the trace and of the squared Frobenius norm."""
        for number in range(len(self._pairs), count):
            z = draws.signs(self.product.operator, self.seed, "trace", number)
            if self.sketch is not None:
                z = self.sketch.without(z)
            made = self.product(z)
            self._pairs.append((dot(z, made), dot(made, made)))
        pairs = np.array(self._pairs) + self._inside
        return pairs[:, 0], pairs[:, 1]


def _hutch_plus_plus(product: Products, budget: int, seed: int) -> _Hutchinson:
    sketch = Sketch(product, budget // 3)
    for number in range(budget // 3):
        sketch.add(draws.signs(product.operator, seed, "trace sketch", number))
    spent = sketch.count + sketch.basis.count
    return _Hutchinson(product, budget - spent, seed, sketch)


class _XTrace:
    """The leave-one-out estimates of XTrace, all from small matrices.

    With ``A Omega = Q R``, the vectors but the i-th span Q without the direction s_i, which is the
    i-th column of the inverse of R transposed. So with ``W = Q^T Omega`` the part of omega_i in
    that space is ``x_i = W_i - s_i <s_i, W_i>``, and what is left of omega_i has a quadratic form
    ``<omega_i - Q x_i, A (omega_i - Q x_i)>`` in which ``Q^T A omega_i = R_i``.
    """

    known = 0.0  # each estimate has its own sketch

    def __init__(self, product: Products, budget: int, seed: int) -> None:
        self.product, self.seed, self.most = product, seed, budget // 2
        self.sketch = Sketch(product, self.most)

    def samples(self, count: int) -> tuple[Array, Array]:
        """So many estimates of the trace and of the squared Frobenius norm."""
        for number in range(self.sketch.count, count):
            self.sketch.add(self._probe(number))
        w = np.stack([self.sketch.inner(self._probe(number)) for number in range(count)], axis=1)
        size, (h, g) = self.product.operator.size, self.sketch.small()
        return leave_one_out(size, w, self.sketch.triangle(), h, g, self.product.rounding)

    def _probe(self, number: int) -> Tensor:
        """Uniform on the sphere of radius sqrt(P); drawn again when needed, not kept."""
        drawn = draws.gaussian(self.product.operator, self.seed, "trace sketch", number)
        return drawn * math.sqrt(drawn.numel() / dot(drawn, drawn))


_METHODS: dict[str, Callable[[Products, int, int], _Hutchinson | _XTrace]] = {
    "hutchinson": _Hutchinson,
    "hutch++": _hutch_plus_plus,
    "xtrace": _XTrace,
}


def _chosen(operator: SymmetricOperator, budget: int) -> str:
    memory = 2 * (budget // 2) * operator.size * torch.finfo(operator.dtype).bits // 8
    return "xtrace" if budget >= _FEW and memory <= _MEMORY else "hutchinson"


def _looks(most: int) -> Iterator[int]:
    """After how many samples to ask: seldom, as each question is a chance to stop by luck."""
    count = _FIRST_LOOK
    while count < most:
        yield count
        count = math.ceil(1.5 * count)
    yield most


def _exact(product: Products) -> TraceEstimate:
    columns = (product.unit(k) for k in range(product.operator.size))
    pairs = np.array([(float(c[k]), dot(c, c)) for k, c in enumerate(columns)])
    total, square = math.fsum(pairs[:, 0]), math.fsum(pairs[:, 1])
    certain = _Error(0.0, 0.0)
    common = _common(product, "exact", 0)
    return _result(common, (total, square), (certain, certain, certain), tol=None)


def _estimate(
    product: Products, method: str, traces: Array, squares: Array, known: float, tol: float | None
) -> TraceEstimate:
    """The means of samples, with the errors that their scatter and rounding give."""
    value, square = _mean(traces), max(_mean(squares), 0.0)
    slopes = (2 * value / square, (value / square) ** 2) if square else (0.0, 0.0)
    rounding = product.rounding * (abs(value) + math.sqrt(square))
    errors = (
        _error(traces, rounding),
        _error_of_squares(squares, known, 2 * rounding * math.sqrt(square)),
        _error(slopes[0] * traces - slopes[1] * squares, slopes[0] * rounding),
    )
    return _result(_common(product, method, len(traces)), (value, square), errors, tol)


def _mean(samples: Array) -> float:
    return float((samples if samples.ndim == 1 else np.diag(samples)).mean())


@dataclass(frozen=True)
class _Error:
    """Of a mean: its standard error and its skewness."""

    size: float
    skewness: float


def _error(samples: Array, rounding: float) -> _Error:
    """The error of the mean of samples, and of the products that they come from."""
    scatter = _scatter(samples)
    size = math.hypot(scatter, rounding)  # rounding is taken for normal
    single = samples if samples.ndim == 1 else np.diag(samples)
    return _Error(size, skewness(single) * (scatter / size) ** 3 if size else 0.0)


def _error_of_squares(samples: Array, known: float, rounding: float) -> _Error:
    """The same for squared lengths: sums of squares of about normal numbers, with weights.

    Such a sum has a skewness of at least twice its standard deviation over its mean (by
    Cauchy-Schwarz), and at most that of a single square. Few samples hardly ever show it.

    Args:
        samples: As in `_scatter`.
        known: What they have in common, and is certain.
        rounding: Of the mean.

    Returns:
        The error of their mean.
    """
    error, (mean, count) = _error(samples, rounding), (_mean(samples) - known, len(samples))
    least = min(2 * error.size / mean, math.sqrt(8 / count)) if mean > 0 else 0.0
    return _Error(error.size, max(error.skewness, least))


def _scatter(samples: Array) -> float:
    """The standard error of the mean of samples.

    Those of XTrace are not independent: each vector is in the sketch of all others. Given the other
    vectors, t_j has the trace as its expectation, and so has t_j from a sketch without vector i. So
    all that t_i and t_j have in common is in ``(t_i - t_i without j) (t_j - t_j without i)``, whose
    mean is an unbiased estimate of their covariance C; and ``s^2 / k + C`` is one of the variance
    of their mean, as ``s^2`` has the expectation ``var(t) - C``.

    Args:
        samples: ``(n,)`` independent ones; or ``(k, k)``, as `leave_one_out` gives them.

    Returns:
        The error.
    """
    if samples.ndim == 1:
        return standard_error(samples)
    single = np.diag(samples)
    change = single - samples
    common = float((change * change.T).sum()) / (len(single) * (len(single) - 1))
    return math.hypot(standard_error(single), math.sqrt(max(common, 0.0)))


class _Common(TypedDict):
    degrees: float
    samples: int
    products: int
    method: str
    matrix: str
    exact: bool


def _common(product: Products, method: str, count: int) -> _Common:
    return _Common(
        degrees=count - 1 if count else math.inf, samples=count, products=product.taken,
        method=method, matrix=product.operator.name, exact=not count,
    )  # fmt: skip


def _result(
    common: _Common, means: tuple[float, float], errors: tuple[_Error, ...], tol: float | None
) -> TraceEstimate:
    """From the trace and the squared Frobenius norm; errors of both, and of the effective rank."""
    (value, square), (of_trace, of_square, of_rank) = means, errors
    norm = math.sqrt(square)
    # a root halves relative errors, and takes of the skewness what its own bend takes
    relative = of_square.size / square if square else 0.0
    return TraceEstimate(
        value=value, standard_error=of_trace.size, skewness=of_trace.skewness, **common,
        frobenius_norm=Estimate(
            value=norm, standard_error=0.5 * norm * relative,
            skewness=of_square.skewness - 0.75 * relative, **common,
        ),
        effective_rank=Estimate(
            value=value**2 / square if square else 0.0, standard_error=of_rank.size,
            skewness=of_rank.skewness, **common,
        ),
        converged=tol is None or of_trace.size <= tol * abs(value),
    )  # fmt: skip
