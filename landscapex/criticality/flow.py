"""Gradient descent with small steps, and with finite ones, on the quadratic model of a loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from landscapex._arrays import Array, read_only
from landscapex._numbers import check_count, check_positive
from landscapex.criticality.inputs import Curvature, matrix, vector
from landscapex.curvature.basis import Basis
from landscapex.curvature.eigenpairs import Eigenpairs
from landscapex.curvature.estimates import dot
from landscapex.curvature.linear import SymmetricOperator
from landscapex.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SERIES = 1e-6  # |x| below which (1 - exp(-x)) / x is taken from its series
_FLAT = 100  # of rounding: a curvature below this is none


@dataclass(frozen=True, eq=False, repr=False)
class GradientFlow:
    r"""Gradient descent with small steps on the quadratic model around a point.

    With curvatures :math:`\lambda_k` along orthonormal directions :math:`q_k` that span the
    gradient, the flow :math:`\dot\theta = -g - H (\theta - \theta_0)` is at :math:`\theta_0 -
    \sum_k \frac{1 - e^{-\lambda_k t}}{\lambda_k} \langle q_k, g \rangle\, q_k` after the time t;
    time is the sum of learning rates.

    Attributes:
        loss: J at the point.
        gradient_norm: Length of g.
        values: ``(k,)``: curvature along each direction, rising.
        vectors: ``(k, P)``: the directions, rows of length 1.
        slopes: ``(k,)``: ``<q_k, g>``.
        products: Products with H that were taken.

    References:
        Goodfellow, Vinyals, Saxe, "Qualitatively characterizing neural network optimization
        problems", ICLR 2015, appendix.
    """

    loss: float
    gradient_norm: float
    values: Array
    vectors: Tensor
    slopes: Array
    products: int
    _mixing: Array  # (n, k): directions from the orthonormal vectors they were found in
    _couplings: Array  # (n,): how far H takes each of those vectors out of their span

    def __repr__(self) -> str:
        return (
            f"GradientFlow({len(self.values)} directions, curvature {self.values[0]:.4g} to "
            f"{self.values[-1]:.4g}, gradient {self.gradient_norm:.4g}, {self.products} products)"
        )

    def coordinates(self, time: ArrayLike) -> Array:
        """Where the flow is, along each direction.

        Args:
            time: ``(T,)`` or a number, in units of the learning rate.

        Returns:
            ``(T, k)`` or ``(k,)``, relative to the point.

        Raises:
            ArgumentError: If a time is not finite.
        """
        t = np.asarray(time, dtype=np.float64)
        if not np.isfinite(t).all():
            raise ArgumentError(f"`time` must be finite, got {time!r}.")
        return -_reach(self.values, t[..., None]) * self.slopes

    def descent_coordinates(self, steps: ArrayLike, learning_rate: float) -> Array:
        """Where gradient descent with steps of a finite size is; `coordinates` is its limit.

        Args:
            steps: ``(T,)`` or a number: how many were taken.
            learning_rate: Of each; it is stable below `stable_learning_rate`.

        Returns:
            ``(T, k)`` or ``(k,)``, relative to the point.

        Raises:
            ArgumentError: If a number of steps is not whole or below 0, or the learning rate is
                not above 0.
        """
        n = np.asarray(steps, dtype=np.float64)
        if not (np.isfinite(n).all() and (n >= 0).all() and (n == np.floor(n)).all()):
            raise ArgumentError(f"`steps` must be whole numbers of at least 0, got {steps!r}.")
        rate = check_positive("learning_rate", learning_rate)
        return -_stepped_reach(self.values, n[..., None], rate) * self.slopes

    def displacement(self, coordinates: ArrayLike) -> Tensor:
        """The step from the point that has given coordinates along the directions.

        Args:
            coordinates: ``(k,)`` or ``(T, k)``.

        Returns:
            ``(P,)`` or ``(T, P)``.
        """
        c = torch.from_numpy(np.ascontiguousarray(coordinates, dtype=np.float64))
        made: Tensor = c.to(self.vectors) @ self.vectors
        return made

    def model_loss(self, coordinates: ArrayLike) -> Array:
        """The quadratic model of the loss.

        Args:
            coordinates: ``(..., k)`` along the directions.

        Returns:
            ``(...)``; minus infinity where it leaves the range of numbers.
        """
        c = np.asarray(coordinates, dtype=np.float64)
        with np.errstate(over="ignore"):
            rise: Array = (c * (self.slopes + 0.5 * self.values * c)).sum(-1)
        return self.loss + rise

    def defect(self, time: ArrayLike) -> Array:
        """How far the flow is from solving its equation, as a length beside `gradient_norm`.

        Zero (but for rounding) if the directions were found from a whole matrix; otherwise the
        part of ``H e`` that leaves the span of the directions, with the residuals of eigenvectors.

        Args:
            time: ``(T,)`` or a number.

        Returns:
            ``(T,)`` or a number.
        """
        inside = np.abs(self.coordinates(time) @ self._mixing.T)
        out: Array = inside @ self._couplings
        return out

    @property
    def _steep(self) -> NDArray[np.bool_]:
        """Which curvatures are more than rounding: along the others nothing pulls or pushes."""
        rounding = _FLAT * torch.finfo(self.vectors.dtype).eps
        steep: NDArray[np.bool_] = np.abs(self.values) > rounding * np.abs(self.values).max()
        return steep

    @property
    def stable_learning_rate(self) -> float:
        """Twice the inverse of the largest curvature; infinite if none is above 0."""
        return 2 / self.values[-1] if self.values[-1] > 0 else math.inf

    def newton(self) -> NewtonStep:
        """Newton's step: to the critical point of the model, whatever its kind.

        Returns:
            The step, and what it leads to.
        """
        steep = self._steep
        c = np.where(steep, -self.slopes / np.where(steep, self.values, 1.0), 0.0)
        return NewtonStep(
            self.displacement(c),
            float(self.model_loss(c)),
            int((self.values[steep] < 0).sum()),
            int((~steep).sum()),
        )

    def escape_times(
        self, size: float, *, start: float | None = None, learning_rate: float | None = None
    ) -> EscapeTimes:
        r"""When each direction of negative curvature is left behind.

        Components from the critical point of the model grow like :math:`e^{|\lambda| t}`: from
        ``c_0`` to ``size`` in the time :math:`\ln(\mathrm{size} / c_0) / |\lambda|`. From a matrix,
        directions are eigenvectors; from an operator, those that were given and, for the rest,
        Ritz vectors of the space in which the flow moves.

        Args:
            size: Distance from the critical point at which a direction counts as left.
            start: Distance at the beginning; None for that of the point, ``|<q_k, g> / lambda_k|``.
            learning_rate: Also count steps of this size, by whose factor ``1 + h |lambda|`` a
                component grows.

        Returns:
            One row per negative curvature beyond rounding, the fastest first.

        Raises:
            ArgumentError: If an argument is not above 0.
        """
        check_positive("size", size)
        down = np.flatnonzero((self.values < 0) & self._steep)
        values = self.values[down]
        begin = np.abs(self.slopes[down] / values)
        if start is not None:
            begin = np.full(len(down), check_positive("start", start))
        with np.errstate(divide="ignore"):
            growth = np.maximum(np.log(size) - np.log(begin), 0.0)
        steps = None
        if learning_rate is not None:
            steps = growth / np.log1p(check_positive("learning_rate", learning_rate) * -values)
        return EscapeTimes(size, values, begin, growth / -values, steps)

    def plot(self, time: float | None = None) -> Figure:
        """Draw the flow in the plane of the smallest and the largest curvature.

        Args:
            time: Until when; None for a time after which the shape is seen.

        Returns:
            The figure.

        Raises:
            ArgumentError: If there is only one direction, or ``time`` is not above 0.
        """
        from landscapex import plot

        if len(self.values) < 2:
            raise ArgumentError("a plane must have two directions, got 1.")
        return plot.gradient_flow(self, None if time is None else check_positive("time", time))


@dataclass(frozen=True, eq=False, repr=False)
class NewtonStep:
    """Newton's step on the quadratic model.

    Attributes:
        displacement: ``(P,)``.
        loss: Of the model at its end.
        negative: Directions of negative curvature: above 0 it leads to a saddle or a maximum.
        flat: Directions without curvature, along which it does not move.
    """

    displacement: Tensor
    loss: float
    negative: int
    flat: int

    def __repr__(self) -> str:
        length = math.sqrt(dot(self.displacement, self.displacement))
        where = f"{self.negative} negative curvatures" if self.negative else "a minimum"
        return f"NewtonStep(length {length:.4g}, to {where}, model loss {self.loss:.6g})"


@dataclass(frozen=True, eq=False, repr=False)
class EscapeTimes:
    """How long gradient descent stays near a saddle, for each way down.

    Attributes:
        size: The distance that counts as left.
        curvatures: ``(n,)``, negative, the most negative first.
        starts: ``(n,)``: distances at the beginning.
        times: ``(n,)``: sums of learning rates; infinite from a distance of 0.
        steps: ``(n,)``: steps of the learning rate that was given; None without one.
    """

    size: float
    curvatures: Array
    starts: Array
    times: Array
    steps: Array | None = None

    def __post_init__(self) -> None:
        for name in ("curvatures", "starts", "times", "steps"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, read_only(getattr(self, name)))

    @property
    def first(self) -> float:
        """The shortest of the times; infinite if there is no way down."""
        return float(self.times.min(initial=math.inf))

    def __repr__(self) -> str:
        return (
            f"EscapeTimes({len(self.times)} ways down, the first to {self.size:.4g} after "
            f"{self.first:.4g})"
        )

    def __str__(self) -> str:
        head = f"{'curvature':>12} {'start':>12} {'time':>12}"
        rows = [head + (f" {'steps':>12}" if self.steps is not None else "")]
        for k, row in enumerate(zip(self.curvatures, self.starts, self.times, strict=True)):
            line = " ".join(f"{number:12.4g}" for number in row)
            rows.append(line + (f" {self.steps[k]:12.4g}" if self.steps is not None else ""))
        return "\n".join(rows)


def gradient_flow(
    gradient: Tensor | np.ndarray,
    curvature: Curvature,
    eigenpairs: Eigenpairs | None = None,
    *,
    loss: float = 0.0,
    steps: int = 40,
) -> GradientFlow:
    """Solve gradient descent with small steps near a point.

    From a matrix, by all of its eigenvectors. From an operator, in the space that products with H
    make of the gradient (Lanczos; the flow never leaves it), with an accuracy that `defect` states.
    Eigenvectors that are known already span a part of that space without further products.

    Args:
        gradient: ``(P,)`` at the point.
        curvature: ``(P, P)`` symmetric, or a `SymmetricOperator`.
        eigenpairs: Of the operator.
        loss: At the point.
        steps: Products with an operator, at most.

    Returns:
        The solution.

    Raises:
        ArgumentError: If shapes do not fit, numbers are not finite, the matrix is not symmetric,
            or the gradient is zero and an operator comes without eigenvectors.
        ArgumentTypeError: If an argument is neither a tensor nor an array.

    References:
        Hochbruck, Lubich, "On Krylov subspace approximations to the matrix exponential operator",
        SIAM J. Numer. Anal. 34, 1997.

    Example:
        >>> import torch
        >>> saddle = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
        >>> flow = gradient_flow(torch.tensor([1.0, -0.01], dtype=torch.float64), saddle)
        >>> flow.newton()
        NewtonStep(length 1, to 1 negative curvatures, model loss -0.49995)
        >>> round(flow.escape_times(1.0).first, 4)
        4.6052
    """
    check_count("steps", steps, 1)
    g = vector(gradient)
    if isinstance(curvature, SymmetricOperator):
        return _by_products(g, curvature, eigenpairs, loss, steps)
    values, vectors = np.linalg.eigh(matrix(curvature, len(g)))
    rows = torch.from_numpy(np.ascontiguousarray(vectors.T)).to(g.device)
    size = len(values)
    return _flow(g, values, rows, np.eye(size), np.zeros(size), loss, 0)


def _by_products(
    g: Tensor, operator: SymmetricOperator, known: Eigenpairs | None, loss: float, steps: int
) -> GradientFlow:
    """In the span of known eigenvectors and the Krylov space of what they leave of the gradient."""
    if operator.size != len(g):
        raise ArgumentError(f"`gradient` must have shape ({operator.size},), got {tuple(g.shape)}.")
    if known is not None and known.vectors.shape[1] != operator.size:
        raise ArgumentError(
            f"`eigenpairs` must be over P = {operator.size} parameters, got "
            f"{known.vectors.shape[1]}."
        )
    g = g.to(operator.device)
    start, before = g.to(operator.dtype), operator.products
    basis = Basis(operator, min(operator.size, steps + (0 if known is None else len(known))))
    small = np.zeros((len(basis.vectors), len(basis.vectors)))
    couplings = np.zeros(len(basis.vectors))
    if known is not None:
        for vector, value, residual in zip(
            known.vectors, known.values, known.residuals, strict=True
        ):
            j = basis.count
            if basis.extend(vector.to(start)):
                small[j, j], couplings[j] = value, residual
    first = basis.count
    left = basis.project(start)[1]
    floor = basis.rounding * float(torch.linalg.vector_norm(g))
    while left > floor and basis.count < len(basis.vectors) - 1 and basis.count - first < steps:
        basis.append(left)
        j = basis.count - 1
        column, left = basis.project(operator.apply(basis.rows[j]))
        small[: j + 1, j] = small[j, : j + 1] = column
        couplings[j] = left
        floor = basis.rounding * math.hypot(*column, left)
    n = basis.count
    if not n:
        raise ArgumentError(
            "`eigenpairs` must be given for an operator where the gradient is zero: nothing else "
            "says where to look."
        )
    # what H makes of a vector of the Krylov space lies in it, but for the last
    couplings[first : n - 1] = 0.0
    values, mixing = np.linalg.eigh(small[:n, :n])
    basis.rotate(mixing)
    products = operator.products - before
    return _flow(g, values, basis.rows, mixing, couplings[:n], loss, products)


def _flow(
    g: Tensor,
    values: Array,
    rows: Tensor,
    mixing: Array,
    couplings: Array,
    loss: float,
    products: int,
) -> GradientFlow:
    slopes = np.array([dot(row, g) for row in rows])
    length = math.sqrt(dot(g, g))
    return GradientFlow(
        float(loss), length, read_only(values), rows, read_only(slopes), products, mixing, couplings
    )


def _reach(values: Array, t: Array) -> Array:
    """``(1 - exp(-v t)) / v``, and t where v t is near 0."""
    x = values * t
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        closed = -np.expm1(-x) / values
    return np.where(np.abs(x) < _SERIES, t * (1 - x / 2 + x * x / 6), closed)


def _stepped_reach(values: Array, n: Array, rate: float) -> Array:
    """``(1 - (1 - h v)^n) / v``, and n h where n h v is near 0."""
    x = rate * values
    series = n * rate * (1 - (n - 1) * x / 2 + (n - 1) * (n - 2) * x * x / 6)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        slow = -np.expm1(n * np.log1p(-x)) / values
        fast = (1 - np.power(1 - x, n)) / values
    return np.where(np.abs(n * x) < _SERIES, series, np.where(x < 1, slow, fast))
