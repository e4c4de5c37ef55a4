"""The Gauss-Newton matrix of a classifier, taken apart by classes.

The Hessian of cross entropy by the scores of a sample is ``sum_c' p_c' (p - e_c') (p - e_c')^T``,
so that the Gauss-Newton matrix is a second moment of the gradients ``g_ic' = J_i^T (p_i - e_c')``
with weights ``w_ic'``, the probability p_ic' of class c' times the share of sample i. Grouped by
the true class c of the sample and by c', it splits like a variance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscapex._arrays import read_only
from landscapex._directions import Axis, Directions, gram
from landscapex.curvature.estimates import Estimate, dot
from landscapex.curvature.linear import GAUSS_NEWTON, Layout, SymmetricOperator
from landscapex.curvature.linearized import LinearizedOutput, Matrix, Parts
from landscapex.curvature.outputs import OutputLoss, indicator
from landscapex.curvature.products import Block, Linearization
from landscapex.curvature.trace import trace
from landscapex.errors import ArgumentError, LossError

_BLOCK = 1 << 16  # columns that are combined at a time
_MOST = 8 << 30  # bytes of averaged gradients, one for every two classes
_ROUNDING = 1e-12  # of the largest eigenvalue: one below has no vector, but what rounding left


@dataclass(frozen=True, eq=False, repr=False)
class ClassDecomposition:
    """``G = between classes + between cross classes + within + same``, exactly.

    With C classes, ``W_cc'`` the sum of ``w_ic'`` and ``d_cc'`` the weighted mean of ``g_ic'`` over
    the samples of class c, and ``d_c`` the mean of the latter over c' != c with weights ``W_cc'``:

    * ``between``: ``sum_c W_c d_c d_c^T``, of rank C at most: the outliers of the spectrum;
    * ``cross``: ``sum_{c' != c} W_cc' (d_cc' - d_c) (d_cc' - d_c)^T``, of rank C (C - 2) at most;
    * ``within``: the scatter of ``g_ic'``, c' != c, about ``d_cc'``: the bulk;
    * ``same``: the terms with c' = c.

    Attributes:
        weights: ``(C, C)``, ``W_cc'``: how much probability samples of class c give to c', as a
            share of all samples; its sum is 1.
        class_means: ``(C, P)`` float64, ``d_c``; zero for a class without samples.
        cross_deviations: ``(C, C, P)`` float64, ``d_cc' - d_c``; zero for c' = c.
        class_eigenvalues: ``(C,)`` of ``between``, the largest first, without those that are zero
            by its rank.
        cross_eigenvalues: ``(C (C - 2),)`` of ``cross``, likewise.
        parts: The four matrices by name, as operators.
        layout: (name, shape) of every parameter, in the order of the flat vector.

    References:
        Papyan, "Measurements of three-level hierarchical structure in the outliers in the spectrum
        of deepnet Hessians", ICML 2019, arXiv 1901.08244. Papyan, "Traces of class/cross-class
        structure pervade deep learning spectra", JMLR 21, 2020, arXiv 2008.11865.
    """

    weights: np.ndarray
    class_means: Tensor
    cross_deviations: Tensor
    class_eigenvalues: np.ndarray
    cross_eigenvalues: np.ndarray
    parts: dict[str, SymmetricOperator]
    layout: Layout

    def __post_init__(self) -> None:
        for name in ("weights", "class_eigenvalues", "cross_eigenvalues"):
            object.__setattr__(self, name, read_only(getattr(self, name)))

    def __repr__(self) -> str:
        shown = ", ".join(f"{v:.4g}" for v in self.class_eigenvalues[:3])
        return f"ClassDecomposition({len(self.weights)} classes; between: {shown}, ...)"

    def traces(self, *, products: int = 90, seed: int = 0) -> dict[str, Estimate]:
        """Traces of the four parts: how much of the curvature each accounts for.

        Args:
            products: Of ``within`` and ``same`` each, which are estimated (exactly if there are as
                many products as parameters); the other two are known.
            seed: Of the estimates.

        Returns:
            By name.
        """
        known = {
            "between": self.class_eigenvalues.sum(),
            "cross": self.cross_eigenvalues.sum(),
        }
        exact = {
            name: Estimate(
                value=float(value), standard_error=0.0, degrees=np.inf, samples=0, products=0,
                method="averaged gradients", matrix=self.parts[name].name, exact=True,
            )
            for name, value in known.items()
        }  # fmt: skip
        estimated = {
            name: trace(self.parts[name], products=products, seed=seed)
            for name in ("within", "same")
        }
        return {**exact, **estimated}

    def directions(self, n: int = 2) -> Directions:
        """Eigenvectors of ``between`` as axes of a surface, of length 1.

        Args:
            n: How many, of the largest eigenvalues.

        Returns:
            ``(n, P)``, in the dtype of the operator.

        Raises:
            ArgumentError: If there are not as many eigenvalues above zero.
        """
        most = int((self.class_eigenvalues > _ROUNDING * self.class_eigenvalues[0]).sum())
        if not 1 <= n <= most:
            raise ArgumentError(f"`n` must be from 1 to {most}, got {n}.")
        part = _LowRank(self.class_means, torch.from_numpy(_between_weights(self.weights)))
        values, vectors = torch.linalg.eigh(part.gram())
        mixing = (vectors / values.clamp(min=0).sqrt()).flip(1)[:, :n].T * part.weights.sqrt()
        axes = tuple(
            Axis(f"between classes {i + 1} of the {GAUSS_NEWTON} (λ = {value:.4g})", "hessian")
            for i, value in enumerate(self.class_eigenvalues[:n])
        )
        made = part.combined(mixing).to(self.parts["between"].dtype)
        return Directions(made, axes, self.layout)


def decompose(linearization: Linearization, block: Block, layout: Layout) -> ClassDecomposition:
    """Take the Gauss-Newton matrix of a linearised classifier apart.

    One backward pass per batch and ordered pair of classes.

    Args:
        linearization: Of the outputs of a model.
        block: Its parameters that are wanted.
        layout: Their names and shapes.

    Returns:
        The four parts; without weight decay.

    Raises:
        ArgumentError: If the averaged gradients take more than 8 GiB.
        LossError: If the loss is not cross entropy with one class per label.
    """
    space = linearization.space
    sums = _Sums(block, space.device)
    linearization.visit(sums.add)
    assert sums.means is not None
    assert sums.weights is not None
    weights = sums.weights.numpy()
    deviations, means = _centered(sums.means, sums.weights)
    between = _LowRank(means, torch.from_numpy(_between_weights(weights)))
    cross = _LowRank(deviations.flatten(0, 1), _off_diagonal(sums.weights).flatten())

    def whole(v: Tensor, matrix: Matrix) -> Tensor:
        def take(term: LinearizedOutput, parts: list[Tensor]) -> Parts:
            return term.product(parts, block.chosen, matrix)

        return linearization.product(block, v, take=take)

    # in float64; differences are rounded once
    products: dict[str, Callable[[Tensor], Tensor]] = {
        "between": between.product,
        "cross": cross.product,
        "within": lambda v: whole(v, _others) - between.product(v) - cross.product(v),
        "same": lambda v: whole(v, _same),
    }

    def operator(name: str) -> SymmetricOperator:
        def product(v: Tensor) -> Tensor:
            return products[name](v.double()).to(v.dtype)

        of = f"part {name!r} of the {GAUSS_NEWTON}"
        return SymmetricOperator(product, block.size, space.dtype, space.device, name=of)

    classes = len(weights)
    return ClassDecomposition(
        weights=weights,
        class_means=means,
        cross_deviations=deviations,
        class_eigenvalues=between.eigenvalues(classes),
        cross_eigenvalues=cross.eigenvalues(classes * (classes - 2)),
        parts={name: operator(name) for name in products},
        layout=layout,
    )


@dataclass(frozen=True, eq=False)
class _LowRank:
    """``sum_k w_k d_k d_k^T``, summed in float64, with which no autocast interferes.

    Attributes:
        rows: ``(R, P)`` float64, ``d_k``.
        weights: ``(R,)`` float64 on the CPU.
    """

    rows: Tensor
    weights: Tensor

    def product(self, v: Tensor) -> Tensor:
        """With a vector ``(P,)`` in float64."""
        return self.combined((self.weights * gram(self.rows, v[None])[:, 0])[None])[0]

    def combined(self, mixing: Tensor) -> Tensor:
        """``(n, P)``: linear combinations of rows, by a matrix ``(n, R)``."""
        mixing = mixing.to(self.rows.device)
        return torch.cat([mixing @ part for part in self.rows.split(_BLOCK, dim=1)], dim=1)

    def gram(self) -> Tensor:
        """``(R, R)``: what has the same eigenvalues, but for those that are zero."""
        roots = self.weights.sqrt()
        return roots[:, None] * gram(self.rows) * roots

    def eigenvalues(self, n: int) -> np.ndarray:
        """The n largest, the largest first."""
        values = np.linalg.eigvalsh(self.gram().numpy())[::-1]
        return np.array(np.maximum(values[:n], 0.0))


class _Sums:
    """Weighted sums of ``g_ic'`` by true class and c'."""

    def __init__(self, block: Block, device: torch.device) -> None:
        self._block, self._device = block, device
        self.means: Tensor | None = None  # sums, until they are divided
        self.weights: Tensor | None = None

    def add(self, share: float, term: Any) -> None:
        """One batch."""
        loss: OutputLoss = term.loss
        p, labels, counts = _labelled(loss)
        classes = p.shape[loss.axis]
        if self.means is None or self.weights is None:
            self._make(classes)
        assert self.means is not None
        assert self.weights is not None
        for c in labels[counts > 0].unique().tolist():
            # of a label: its weight, as a share of the batch
            of_class = torch.where(labels == c, counts, 0) / loss.weight
            for other in range(classes):
                given = p.select(loss.axis, other)
                self.weights[c, other] += share * dot(given.flatten(), of_class.flatten())
                if other == c:
                    continue
                residual = p.clone()
                residual.select(loss.axis, other).sub_(1)
                w = (given * of_class).unsqueeze(loss.axis)
                pulled = term.pull(residual * w, self._block.chosen)
                self._block.add(self.means[c, other], pulled, share)

    def _make(self, classes: int) -> None:
        needed = (classes**2 + classes) * self._block.size * torch.float64.itemsize
        if needed > _MOST:
            raise ArgumentError(
                f"averaged gradients must take at most {_MOST >> 30} GiB, got {classes}^2 of "
                f"{self._block.size:,} entries ({needed / 2**30:.1f} GiB); restrict the operator "
                "to some layers."
            )
        shape = classes, classes, self._block.size
        self.means = torch.zeros(shape, dtype=torch.float64, device=self._device)
        self.weights = torch.zeros((classes, classes), dtype=torch.float64, device="cpu")


def _labelled(loss: OutputLoss) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, true classes and weights of the labels of a batch."""
    labels = loss.targets[0]
    if not loss.classes or labels.is_floating_point():
        raise LossError(
            "a decomposition by classes must have cross entropy (or nll_loss) with one class per "
            f"label, got {loss.name} with {labels.dtype} targets."
        )
    counts = loss.label_weights()
    return loss.output.softmax(loss.axis), torch.where(counts > 0, labels, 0), counts


def _same(loss: OutputLoss, moved: Tensor) -> Tensor:
    """The part of the loss Hessian with c' = c, times a tensor like the output."""
    p, labels, counts = _labelled(loss)
    mine = indicator(labels, p, loss.axis)
    residual = p - mine
    w = (p * mine).sum(loss.axis) * counts / loss.weight
    inner = (residual * moved).sum(loss.axis)
    return residual * (w * inner).unsqueeze(loss.axis)


def _others(loss: OutputLoss, moved: Tensor) -> Tensor:
    """The part with c' != c, times a tensor like the output."""
    p, labels, counts = _labelled(loss)
    q = p * (1 - indicator(labels, p, loss.axis))
    q = q * ((p * moved).sum(loss.axis, keepdim=True) - moved)
    w = (counts / loss.weight).unsqueeze(loss.axis)
    return w * (p * q.sum(loss.axis, keepdim=True) - q)


def _centered(sums: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """``d_cc' - d_c`` (C, C, P), in the memory of the sums, and ``d_c`` (C, P)."""
    others = _off_diagonal(weights).to(sums)
    total = others.sum(1, keepdim=True)
    between = sums.sum(1) / total.where(total > 0, 1)
    means = sums.div_(others.where(others > 0, 1)[..., None])
    means -= between[:, None]
    means *= (others > 0)[..., None]
    return means, between


def _off_diagonal(weights: Tensor) -> Tensor:
    return weights - torch.diag(weights.diagonal())


def _between_weights(weights: np.ndarray) -> np.ndarray:
    """``W_c``, the sums over c' != c."""
    total: np.ndarray = weights.sum(1) - np.diag(weights)
    return total
