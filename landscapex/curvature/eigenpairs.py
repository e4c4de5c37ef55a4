"""Eigenvalues with their vectors, and what is known of their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from landscapex._arrays import read_only
from landscapex._directions import Axis, Directions, gram
from landscapex.axes import given
from landscapex.curvature.estimates import dot
from landscapex.curvature.linear import HESSIAN, Layout
from landscapex.errors import ArgumentError, DirectionError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from landscapex.objective import Objective


class Laid(Protocol):
    """What knows names and shapes of its parameters: `Directions`, a curvature operator."""

    layout: Layout


_LEAST_RISE = 0.1  # of the loss, that the default span of an axis shows


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Some eigenvalues of a symmetric operator, with vectors and residuals.

    Attributes:
        values: ``(k,)`` float64: for ``which="LA"`` the largest first, for ``"SA"`` the smallest,
            for ``"LM"`` the largest in magnitude; for ``"BE"`` in rising order.
        vectors: ``(k, P)``, rows of length 1, orthogonal to each other, in the dtype of the
            operator. The entry of largest magnitude (the first such) is positive.
        residuals: ``(k,)`` float64, ``||A v - value v||`` by products taken for that purpose: some
            eigenvalue lies within this distance of the value.
        converged: ``(k,)``, whether the residual is at most ``tol * scale``.
        tol: Asked for, relative to `scale`.
        scale: The largest ``|eigenvalue|`` seen.
        which: ``"LA"``, ``"SA"``, ``"LM"`` or ``"BE"``.
        products: With the operator, in all.
        restarts: How often the basis was condensed.
        steps: Dimension of the first Krylov space, if its start was random; else 0.
        seconds: It took.
        matrix: What matrix they are of; empty if the operator has no name.
    """

    values: np.ndarray
    vectors: Tensor
    residuals: np.ndarray
    converged: np.ndarray
    tol: float
    scale: float
    which: str
    products: int
    restarts: int
    steps: int
    seconds: float
    matrix: str = ""

    def __post_init__(self) -> None:
        for name in ("values", "residuals", "converged"):
            object.__setattr__(self, name, read_only(np.array(getattr(self, name))))

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        shown = ", ".join(f"{v:.6g}" for v in self.values[:5]) + (", ..." if len(self) > 5 else "")
        failed = len(self) - int(self.converged.sum())
        state = f"{failed} of {len(self)} not converged" if failed else "converged"
        of = f"{self.matrix}, " if self.matrix else ""
        return (
            f"Eigenpairs({of}{self.which}: {shown}; residuals <= {self.residuals.max():.1e}, "
            f"{state}, {self.products} products)"
        )

    def failure_probability(self, accuracy: float) -> float:
        """The probability that a random start has missed an extreme eigenvalue by more than that.

        After ``m`` steps from a random vector, an end of the spectrum lies further out than the
        extreme Ritz value found, by more than ``accuracy * (largest - smallest)``, with a
        probability of at most ``1.648 sqrt(P) exp(-sqrt(accuracy) (2 m - 1))``. Steps after the
        first restart only add to what is found, and are not counted.

        Args:
            accuracy: Between 0 and 1, relative to the width of the spectrum.

        Returns:
            The bound, at most 1; 1 also where the start was given, for then nothing is known.

        Raises:
            ArgumentError: If ``accuracy`` is not between 0 and 1.

        References:
            Kuczyński, Woźniakowski, "Estimating the largest eigenvalue by the power and Lanczos
            algorithms with a random start", SIAM J. Matrix Anal. Appl. 13, 1992.

        Example:
            >>> import torch
            >>> from landscapex.curvature.lanczos import eigenpairs
            >>> from landscapex.curvature.linear import SymmetricOperator
            >>> d = torch.linspace(0, 1, 10_000)
            >>> found = eigenpairs(SymmetricOperator(lambda v: d * v, 10_000, d.dtype), 1)
            >>> bool(found.failure_probability(0.05) < 1e-3)
            True
        """
        if not (isinstance(accuracy, int | float) and 0 < accuracy < 1):
            raise ArgumentError(f"`accuracy` must be between 0 and 1, got {accuracy!r}.")
        size = self.vectors.shape[1]
        if self.steps >= size:
            return 0.0
        if self.steps == 0:
            return 1.0
        exponent = -math.sqrt(accuracy) * (2 * self.steps - 1)
        return min(1.0, 1.648 * math.sqrt(size) * math.exp(exponent))

    def directions(
        self,
        target: Objective | nn.Module | Laid | Layout,
        pick: Sequence[int] | None = None,
        *,
        loss: float | None = None,
    ) -> Directions:
        """Eigenvectors as axes of a surface, of length 1.

        Without a span of its own, an axis runs over ``+-sqrt(2 max(loss, 0.1) / |value|)``: to
        where the quadratic term alone changes the loss by as much as it is, and at least by 0.1.

        Args:
            target: The operator, or what it was made of: an `Objective` or a module; or names and
                shapes of the parameters in flat order, as in `Directions.layout`.
            pick: Which of the pairs, as indices; all of them by default.
            loss: At the centre. None takes that of the operator, or of the `Objective` at its live
                parameters; with another target the axes run to where the loss has changed by 0.1.

        Returns:
            As many directions as picked.

        Raises:
            ArgumentError: If an index is out of range.
            DirectionError: If the vectors are over another number of parameters.

        References:
            Böttcher, Wheeler, "Visualizing high-dimensional loss landscapes with Hessian
            directions", arXiv 2208.13219.
        """
        chosen = list(range(len(self)) if pick is None else pick)
        for i in chosen:
            if not -len(self) <= i < len(self):
                raise ArgumentError(f"`pick` must hold indices of k = {len(self)} pairs, got {i}.")
        if loss is None:
            known = _attribute(target, "loss")
            loss = known() if callable(known) else known or 0.0
        places = [range(len(self))[i] for i in chosen]
        # "hessian" is their source; of another matrix they say so
        of = f" of the {self.matrix}" if self.matrix not in ("", HESSIAN) else ""
        axes = tuple(
            Axis(
                f"eigenvector {i + 1}{of} (λ = {self.values[i]:.4g})",
                "hessian",
                reach=_reach(loss, float(self.values[i])),
            )
            for i in places
        )
        vectors = self.vectors[places]
        layout = target if isinstance(target, tuple) else _attribute(target, "layout")
        if layout is None:
            made_of: Any = target
            return replace(given(made_of, vectors), axes=axes)
        size = sum(math.prod(shape) for _, shape in layout)
        if size != vectors.shape[1]:
            raise DirectionError(
                f"`target` must have the P = {vectors.shape[1]} parameters of the operator, got "
                f"{size}."
            )
        return Directions(vectors, axes, layout)

    def overlap(self, other: Eigenpairs) -> np.ndarray:
        """Cosines between these vectors and others.

        Args:
            other: Over the same parameters.

        Returns:
            ``(k, k of other)``, float64.

        Raises:
            ArgumentError: If the vectors have another length.
        """
        if self.vectors.shape[1] != other.vectors.shape[1]:
            raise ArgumentError(
                f"`other` must be over P = {self.vectors.shape[1]} parameters, got "
                f"{other.vectors.shape[1]}."
            )
        made: np.ndarray = gram(self.vectors, other.vectors.to(self.vectors)).numpy()
        return made

    def share(self, vector: Tensor) -> float:
        """How much of a vector lies in the span of these: of its squared length.

        The gradient of a classifier that is being trained soon lies nearly all in the span of as
        many top eigenvectors of the Hessian as there are classes.

        Args:
            vector: ``(P,)``, of any length but 0: the gradient, a step.

        Returns:
            Between 0 and 1.

        Raises:
            ArgumentError: If it has another shape, or no length.

        References:
            Gur-Ari, Roberts, Dyer, "Gradient descent happens in a tiny subspace", arXiv 1812.04754.

        Example:
            >>> import landscapex as lx
            >>> hessian = lx.hessian(*lx.examples.digits())
            >>> 0 < hessian.eigenvalues(3).share(hessian.gradient) < 1
            True
        """
        if vector.shape != self.vectors.shape[1:]:
            raise ArgumentError(
                f"`vector` must have shape ({self.vectors.shape[1]},), got {tuple(vector.shape)}."
            )
        vector = vector.detach()
        square = dot(vector, vector)
        if not 0 < square < math.inf:
            raise ArgumentError(f"`vector` must have a finite length above 0, got {square**0.5}.")
        inside = gram(self.vectors, vector.to(self.vectors)[None])
        return min(1.0, float((inside**2).sum()) / square)

    def plot(self, **options: Any) -> Figure:
        """Draw the eigenvalues in their order, with residuals as error bars.

        Args:
            **options: Those of `landscapex.plot.eigenvalues`.

        Returns:
            A figure, which notebooks display.
        """
        from landscapex import plot

        return plot.eigenvalues(self, **options)

    def align(self, other: Eigenpairs) -> Eigenpairs:
        """The same pairs, in the order and with the signs in which they are most like others.

        Follows eigenvectors from one checkpoint to the next, where values may cross.

        Args:
            other: As many pairs over the same parameters.

        Returns:
            Pair ``i`` belongs to pair ``i`` of ``other``: the sum of ``|cosine|`` is the largest
            that one-to-one matching can have, and each cosine is at least 0.

        Raises:
            ArgumentError: If ``other`` has another number of pairs, or of parameters.
        """
        if len(self) != len(other):
            raise ArgumentError(f"`other` must have k = {len(self)} pairs, got {len(other)}.")
        cosines = self.overlap(other)
        place, order = linear_sum_assignment(-np.abs(cosines).T)
        flip = np.where(cosines[order, place] < 0, -1.0, 1.0)
        signs = self.vectors.new_tensor(flip.tolist())
        return replace(
            self,
            values=self.values[order],
            vectors=self.vectors[order.tolist()] * signs[:, None],
            residuals=self.residuals[order],
            converged=self.converged[order],
        )


def orient_(vectors: Tensor) -> Tensor:
    """Scale rows to length 1, each with its entry of largest magnitude (the first) positive.

    Args:
        vectors: ``(k, P)``; written to.

    Returns:
        The same.
    """
    for row in vectors:
        sign = math.copysign(1, row[row.abs().argmax()])
        row.div_(sign * torch.linalg.vector_norm(row, dtype=torch.float64).item())
    return vectors


def _attribute(target: object, name: str) -> Any:
    """An attribute, unless it is that of a user's module, which may mean anything."""
    return None if isinstance(target, nn.Module) else getattr(target, name, None)


def _reach(loss: float, value: float) -> float | None:
    """How far the default span of an eigenvector's axis goes; None where no number says it."""
    reach = math.sqrt(2 * max(loss, _LEAST_RISE) / abs(value)) if value else math.inf
    return reach if math.isfinite(reach) else None
