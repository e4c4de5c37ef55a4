"""What kind of point of a loss it is: minimum, saddle, maximum, or no critical point at all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscapex._arrays import Array
from landscapex._numbers import check_positive
from landscapex.criticality.inputs import Curvature, matrix, vector
from landscapex.curvature.eigenpairs import Eigenpairs
from landscapex.curvature.estimates import dot
from landscapex.curvature.linear import SymmetricOperator
from landscapex.errors import ArgumentError


@dataclass(frozen=True, repr=False)
class CriticalPoint:
    """What kind of point of a loss it is.

    Attributes:
        kind: ``"minimum"``, ``"saddle"``, ``"maximum"``, ``"not critical"`` (the gradient is too
            large), or ``"undecided"``.
        reason: In words.
        index: Negative eigenvalues beyond the tolerance.
        index_is_exact: Whether there are no others; otherwise `index` is a lower bound.
        smallest: The smallest eigenvalue known.
        largest: The largest one.
        curvature_tolerance: An eigenvalue within this (and its residual) of 0 counts as 0.
        gradient_norm: Length of the gradient.
        gradient_tolerance: A gradient above this is not zero.
    """

    kind: str
    reason: str
    index: int
    index_is_exact: bool
    smallest: float
    largest: float
    curvature_tolerance: float
    gradient_norm: float
    gradient_tolerance: float

    def __repr__(self) -> str:
        index = f"index {self.index}" if self.index_is_exact else f"index at least {self.index}"
        return f"CriticalPoint({self.kind}, {index}: {self.reason})"


def classify_critical_point(
    gradient: Tensor | np.ndarray,
    spectrum: Eigenpairs | Tensor | np.ndarray,
    *,
    length: float = 1.0,
    gradient_tolerance: float | None = None,
    curvature_tolerance: float | None = None,
) -> CriticalPoint:
    r"""Tell minima, saddles and maxima apart, as far as what is known allows.

    A minimum needs the smallest eigenvalue, converged and above 0; a maximum the largest, below 0;
    a saddle one of each sign, wherever they lie in the spectrum. An eigenvalue counts as 0 within
    the tolerance and its own residual. With an eigenvalue of 0 at the end that decides, the kind is
    undecided: the second order does not tell.

    Args:
        gradient: ``(P,)``.
        spectrum: Eigenpairs of the Hessian (``which="BE"`` knows both ends), or the whole matrix.
        length: What counts as a large step, in units of the parameters, e.g. their norm.
        gradient_tolerance: None for 1e-6 of the largest \|eigenvalue\| times ``length``: the
            critical point of the steepest direction then is nearer than 1e-6 ``length``.
        curvature_tolerance: None for what the eigenvalues are known to: `Eigenpairs.tol` times
            their scale, or the rounding of the matrix.

    Returns:
        The kind, the index, and why.

    Raises:
        ArgumentError: If shapes do not fit, numbers are not finite, or a tolerance is not above 0.
        ArgumentTypeError: If an argument is neither a tensor nor an array.

    References:
        Dauphin, Pascanu, Gulcehre, Cho, Ganguli, Bengio, "Identifying and attacking the saddle
        point problem in high-dimensional non-convex optimization", NeurIPS 2014.

    Example:
        >>> import torch
        >>> saddle = torch.tensor([[0.0, -1.0], [-1.0, 0.0]])  # (1 - w1 w2)^2 / 2 at 0
        >>> classify_critical_point(torch.zeros(2), saddle)
        CriticalPoint(saddle, index 1: eigenvalues from -1 to 1)
    """
    g = vector(gradient)
    norm = math.sqrt(dot(g, g))
    known = _spectrum(spectrum, len(g))
    zero = known.tolerance
    if curvature_tolerance is not None:
        zero = check_positive("curvature_tolerance", curvature_tolerance)
    steep = 1e-6 * known.scale * check_positive("length", length)
    if gradient_tolerance is not None:
        steep = check_positive("gradient_tolerance", gradient_tolerance)
    margin = np.maximum(known.residuals, zero)
    negative, positive = known.values < -margin, known.values > margin
    kind, reason = _kind(known, negative, positive)
    if norm > steep:
        kind, reason = "not critical", f"the gradient is {norm:.3g}, not below {steep:.3g}"
    return CriticalPoint(
        kind,
        reason,
        int(negative.sum()),
        (known.low and known.converged and not negative[: known.from_below].all())
        or len(known.values) == len(g),
        float(known.values[0]),
        float(known.values[-1]),
        float(zero),
        norm,
        float(steep),
    )


@dataclass(frozen=True)
class _Spectrum:
    """What is known of a spectrum, in rising order."""

    values: Array
    residuals: Array
    from_below: int  # so many of them are the smallest of all
    low: bool  # whether the smallest one of all is among them
    high: bool
    converged: bool
    scale: float
    tolerance: float


def _spectrum(given: Eigenpairs | Tensor | np.ndarray, size: int) -> _Spectrum:
    if not isinstance(given, Eigenpairs):
        values: Array = np.linalg.eigvalsh(matrix(given, size)).astype(np.float64)
        dtype = torch.as_tensor(given).dtype
        scale = float(np.abs(values).max())
        eps = torch.finfo(dtype if dtype.is_floating_point else torch.float64).eps
        return _Spectrum(
            values, np.zeros(size), size, True, True, True, scale, max(size, 10) * eps * scale
        )
    if given.vectors.shape[1] != size:
        raise ArgumentError(
            f"`spectrum` must be over P = {size} parameters, got {given.vectors.shape[1]}."
        )
    order = np.argsort(given.values)
    count = len(order)
    whole = count == size
    below = {"SA": count, "BE": count // 2}.get(given.which, count if whole else 0)
    return _Spectrum(
        given.values[order],
        given.residuals[order],
        below,
        below > 0,
        whole or given.which in ("LA", "BE"),
        bool(given.converged.all()),
        given.scale,
        given.tol * given.scale,
    )


def _kind(
    known: _Spectrum, negative: NDArray[np.bool_], positive: NDArray[np.bool_]
) -> tuple[str, str]:
    smallest, largest = known.values[0], known.values[-1]
    if negative.any() and positive.any():
        return "saddle", f"eigenvalues from {smallest:.4g} to {largest:.4g}"
    if known.converged and known.low and positive[0]:
        return "minimum", f"the smallest eigenvalue is {smallest:.4g}"
    if known.converged and known.high and negative[-1]:
        return "maximum", f"the largest eigenvalue is {largest:.4g}"
    if not known.converged:
        return "undecided", "the eigenvalues have not converged"
    if not (known.low and known.high):
        end, which = ("smallest", "SA") if not known.low else ("largest", "LA")
        return "undecided", f"the {end} eigenvalue is not known (which='{which}' or 'BE')"
    at = smallest if not negative[0] else largest
    return "undecided", f"an eigenvalue of {at:.2g} cannot be told from 0"


@dataclass(frozen=True)
class GradientCurvature:
    """The gradient and the curvature along it.

    Attributes:
        gradient_norm: Length of g.
        curvature: ``<g, H g> / <g, g>``. Along the gradient flow the length of the gradient changes
            at the rate ``-curvature`` times itself: it grows where this is negative.
        turning: ``|H g - curvature g| / |g|``: how much of ``H g`` turns the gradient.
        best_step: ``1 / curvature``, the step that is best on the quadratic model; infinite where
            the curvature is not above 0.
    """

    gradient_norm: float
    curvature: float
    turning: float

    @property
    def best_step(self) -> float:
        """Learning rate of the lowest point along the gradient."""
        return 1 / self.curvature if self.curvature > 0 else math.inf


def gradient_curvature(gradient: Tensor | np.ndarray, curvature: Curvature) -> GradientCurvature:
    """Take the curvature along the gradient, by one product.

    Near a critical point the gradient shrinks; in training it often grows while the loss falls.
    Its length, the loss and this curvature tell the two apart.

    Args:
        gradient: ``(P,)``; not zero.
        curvature: ``(P, P)`` symmetric, or a `SymmetricOperator`.

    Returns:
        Length and curvature.

    Raises:
        ArgumentError: If shapes do not fit, numbers are not finite, or the gradient is zero.
        ArgumentTypeError: If an argument is neither a tensor nor an array.

    References:
        Goodfellow, Bengio, Courville, "Deep Learning", MIT Press 2016, section 8.2.2.

    Example:
        >>> import torch
        >>> gradient_curvature(torch.tensor([2.0, 0.0]), torch.eye(2)).curvature
        1.0
    """
    g = vector(gradient)
    norm = math.sqrt(dot(g, g))
    if not norm:
        raise ArgumentError("`gradient` must not be zero.")
    if isinstance(curvature, SymmetricOperator):
        if curvature.size != len(g):
            raise ArgumentError(
                f"`gradient` must have shape ({curvature.size},), got {tuple(g.shape)}."
            )
        made = curvature.apply(g.to(curvature.device, curvature.dtype)).double().to(g.device)
    else:
        made = torch.from_numpy(matrix(curvature, len(g))).to(g.device) @ g
    along = dot(g, made) / norm**2
    rest = made - along * g
    return GradientCurvature(norm, along, math.sqrt(dot(rest, rest)) / norm)
