"""Eigenpairs by thick-restart Lanczos: both ends of the spectrum from one run of products."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscapex._numbers import check_count, check_positive
from landscapex._progress_bar import progress_bar
from landscapex._warnings import warn
from landscapex.curvature.draws import check_seed
from landscapex.curvature.eigenpairs import Eigenpairs, orient_
from landscapex.curvature.krylov import Krylov, Ritz
from landscapex.curvature.linear import SymmetricOperator
from landscapex.errors import ArgumentError, ArgumentTypeError

__all__ = ["WHICH", "Eigenpairs", "eigenpairs"]

WHICH = ("LA", "SA", "LM", "BE")
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
_LEAST_STEPS = 10  # beyond k, before residuals are believed: an early one may be small by chance
_CONFIRMATIONS = 3  # rounds of fresh products before a residual that will not fall is reported


@dataclass(frozen=True)
class _Settings:
    """What is asked for; every default resolved."""

    k: int
    which: str
    tol: float
    block: int
    basis: int
    max_products: int
    seed: int


def eigenpairs(
    operator: SymmetricOperator,
    k: int = 5,
    which: str = "LA",
    *,
    tol: float | None = None,
    block: int = 1,
    basis: int | None = None,
    max_products: int | None = None,
    seed: int = 0,
    start: Tensor | None = None,
    progress: bool = False,
    quiet: bool = False,
) -> Eigenpairs:
    """Eigenvalues at the ends of the spectrum, and their vectors.

    Thick-restart Lanczos with full reorthogonalisation, twice: no value appears more often than it
    is there. One run serves both ends. Residuals are confirmed by products of their own, which
    `Eigenpairs.products` counts. Of a value that is there several times, one start vector is sure
    to find one copy (all, where the operator has so few different values that the space closes);
    ``block`` start vectors find up to ``block`` copies.

    Args:
        operator: ``A``.
        k: How many pairs.
        which: ``"LA"`` (largest), ``"SA"`` (smallest), ``"LM"`` (largest in magnitude) or ``"BE"``
            (both ends; the larger half from the upper end where ``k`` is odd), as in SciPy.
        tol: A pair is converged when ``||A v - value v||`` is at most this times the largest
            ``|eigenvalue|`` seen; None for 1e-8 in float64 and 1e-4 in float32.
        block: Start vectors.
        basis: Products before the first restart; memory is ``(basis + block + 1) P``, and ``k P``
            for the result. None for ``max(40, 2 k + 20)`` and 10 more for each further start
            vector.
        max_products: Where to give up; None for ``1000 + 100 k``.
        seed: Of start vectors: the same pairs for the same seed.
        start: Instead: ``(P,)``, or up to ``block`` rows ``(j, P)``. What they are orthogonal to
            is found late or never: add a little noise to vectors of an earlier run.
        progress: Show a bar.
        quiet: Leave the flags to tell what did not converge.

    Returns:
        Values, vectors, residuals and flags. If some did not converge, a warning says so.

    Raises:
        ArgumentError: If an argument has a value that cannot be used.
        ArgumentTypeError: If ``operator`` is no `SymmetricOperator`.
        NonFiniteProductError: If a product holds NaN or infinity.

    References:
        Wu, Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems", SIAM J.
        Matrix Anal. Appl. 22, 2000. Ruhe, "Implementation aspects of band Lanczos algorithms",
        Mathematics of Computation 33, 1979.

    Example:
        >>> d = torch.tensor([3.0, 1.0, -2.0, 0.5], dtype=torch.float64)
        >>> found = eigenpairs(SymmetricOperator(lambda v: d * v, 4, d.dtype), 2, "LM")
        >>> found.values.round(6).tolist(), bool(found.converged.all())
        ([3.0, -2.0], True)
    """
    begin = time.perf_counter()
    settings = _settings(operator, k, which, tol, block, basis, max_products, seed)
    given = _start(operator, start, settings.block)
    krylov = Krylov(operator, most=settings.basis, block=settings.block, seed=seed, start=given)
    hidden = not progress or sys.stderr is None
    with progress_bar(
        desc="eigenpairs", unit=" products", disable=hidden, leave=False, delay=0.5
    ) as bar:
        search = _Search(krylov, settings, bar)
        residuals, values, scale = search.run()
    order = np.argsort(values) if which == "BE" else _chosen(values, k, which)
    steps = search.first_steps if start is None else 0
    found = Eigenpairs(
        values=values[order],
        vectors=orient_(krylov.basis.vectors[order.tolist()]),
        residuals=residuals[order],
        converged=residuals[order] <= settings.tol * scale,
        tol=settings.tol,
        scale=scale,
        which=which,
        products=krylov.products,
        restarts=search.restarts,
        steps=steps // block,
        seconds=time.perf_counter() - begin,
        matrix=operator.name,
    )
    if not quiet and not found.converged.all():
        warn(_complaint(found))
    return found


class _Search:
    """Multiplies, restarts and checks until the wanted pairs are found, or given up.

    Attributes:
        restarts: How often the basis was condensed because it was full.
        first_steps: Products before the first restart or the first closed space.
    """

    def __init__(self, krylov: Krylov, settings: _Settings, bar: Any) -> None:
        self.krylov, self.settings, self.bar = krylov, settings, bar
        self.target = settings.tol
        self.rounding = torch.finfo(krylov.operator.dtype).eps
        self.restarts = self.first_steps = 0
        self._at_start = True
        self._fresh = 0  # products since a random vector came in
        self._checked = 0  # value of _fresh when residuals were last looked at
        self._rounds = 0
        self._closed_with: np.ndarray | None = None

    def run(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Residuals, values and the largest |eigenvalue|; the first k rows are the vectors."""
        krylov, k = self.krylov, self.settings.k
        while True:
            if krylov.closed:
                if self._complete():
                    return self._confirm()
                self._open()
            if krylov.done >= k and not self._affordable():
                return self._confirm()
            nearly_closed = 0 < krylov.step() <= self.settings.tol
            self._fresh += 1
            self.first_steps += self._at_start
            self.bar.update()
            ready = self._complete() if nearly_closed else self._due()
            if nearly_closed:  # the next row is as good as random
                self._fresh = self._checked = 0
            if ready and self._converged():
                found = self._confirm()
                if found[0].max() <= self.settings.tol * found[2] or not self._tighten():
                    return found
            if krylov.full and not krylov.closed:
                self._condense()

    def _affordable(self) -> bool:
        """Whether one more product leaves enough of them to confirm k pairs."""
        used, k = self.krylov.products, self.settings.k
        return used + 1 + k <= self.settings.max_products

    def _tighten(self) -> bool:
        """Whether to go on, below the tolerance, after residuals larger than estimated."""
        hopeless = self.target < self.rounding or self._rounds == _CONFIRMATIONS
        self.target /= 10
        return not hopeless and self._affordable()

    def _due(self) -> bool:
        """Whether it is time to look: a look costs an eigenproblem of the size of the basis."""
        k, done = self.settings.k, self.krylov.done
        if done < k or self._fresh < k + _LEAST_STEPS or self.krylov.closed:
            return False
        if not self.krylov.full and self._fresh - self._checked < max(1, done // 10):
            return False
        self._checked = self._fresh
        return True

    def _converged(self) -> bool:
        """Whether the wanted pairs are settled, by the residuals that cost nothing."""
        ritz = self.krylov.ritz()
        limit = max(self.target, self.rounding) * self.krylov.largest  # estimates fall no further
        wanted = _chosen(ritz.values, self.settings.k, self.settings.which)
        worst = float(ritz.residuals[wanted].max())
        self.bar.set_postfix_str(f"residual {worst:.1e}, wanted {limit:.1e}", refresh=False)
        if worst > limit:
            return False
        # while the value next in rank may rise above a wanted one, the right ones are not known
        for end in _ends(ritz.values, self.settings.k, self.settings.which):
            if 0 < end.number < len(end.order):
                last, following = end.order[end.number - 1], end.order[end.number]
                reach = end.rank[following] + ritz.residuals[following]
                if ritz.residuals[following] > limit and reach > end.rank[last]:
                    return False
        return True

    def _confirm(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Make the wanted Ritz vectors the first rows, and measure them by products."""
        self._rounds += 1
        ritz = self.krylov.ritz()
        self._at_start = False
        self.krylov.restart(ritz, self._kept(ritz))
        checked = [self.krylov.check(i) for i in range(self.settings.k)]
        self.bar.update(self.settings.k)
        values, residuals = np.array(checked).T
        return residuals, values, max(self.krylov.largest, float(np.abs(values).max()))

    def _complete(self) -> bool:
        """Whether a closed space, or one that is closed within the tolerance, has all wanted."""
        krylov, settings = self.krylov, self.settings
        if krylov.done == krylov.operator.size:
            return True
        if krylov.done < settings.k:
            return False
        ritz = krylov.ritz()
        ends = _ends(ritz.values, settings.k, settings.which)
        ranks = np.concatenate([end.rank[end.order[: end.number]] for end in ends])
        # It has every value that its start vectors have a part of, but each only once. So a random
        # vector of the complement follows; if the wanted values are the same when the space has
        # closed again, then the complement has nothing to add.
        before, self._closed_with = self._closed_with, ranks
        limit = settings.tol * krylov.largest
        return before is not None and bool((np.abs(ranks - before) <= limit).all())

    def _open(self) -> None:
        """Go on in the complement of a closed space."""
        if self.krylov.full:
            self._condense()
        self._at_start = False
        self.krylov.add_random()
        self._fresh = self._checked = 0

    def _condense(self) -> None:
        ritz = self.krylov.ritz()
        self._at_start = False
        self.krylov.restart(ritz, self._kept(ritz))
        self.restarts += 1

    def _kept(self, ritz: Ritz) -> np.ndarray:
        """The wanted Ritz vectors, then their neighbours: half of the rest of the basis."""
        k, which = self.settings.k, self.settings.which
        number = min(self.krylov.done, k + (self.krylov.most - k) // 2)
        wanted = _chosen(ritz.values, k, which)
        more = _chosen(ritz.values, number, which)
        return np.concatenate([wanted, more[~np.isin(more, wanted)]])


@dataclass(frozen=True)
class _End:
    """What an end of the spectrum ranks by, the values in that order, and how many are wanted."""

    rank: np.ndarray
    order: np.ndarray
    number: int


def _ends(values: np.ndarray, k: int, which: str) -> list[_End]:
    """The ends that are wanted; among equal values, no two ends take the same one."""
    if which == "LM":
        size = np.abs(values)
        return [_End(size, np.argsort(-size, kind="stable"), k)]
    rising = np.argsort(values, kind="stable")
    low = {"LA": 0, "SA": k, "BE": k // 2}[which]
    return [_End(values, rising[::-1], k - low), _End(-values, rising, low)]


def _chosen(values: np.ndarray, k: int, which: str) -> np.ndarray:
    """Indices of the k wanted values, the outermost of each end first."""
    return np.concatenate([end.order[: end.number] for end in _ends(values, k, which)])


def _settings(
    operator: SymmetricOperator,
    k: int,
    which: str,
    tol: float | None,
    block: int,
    basis: int | None,
    max_products: int | None,
    seed: int,
) -> _Settings:
    """Refuse what cannot be used, and resolve the defaults."""
    if not isinstance(operator, SymmetricOperator):
        raise ArgumentTypeError(
            f"`operator` must be a SymmetricOperator, got {type(operator).__name__}."
        )
    size = operator.size
    if operator.dtype not in _TOLERANCE:
        raise ArgumentError(
            f"`operator` must have vectors in float32 or float64, got {operator.dtype}."
        )
    check_seed(seed)
    k = check_count("k", k, 1, size, where=f"from 1 to P = {size}")
    if which not in WHICH:
        raise ArgumentError(f"`which` must be one of {', '.join(WHICH)}, got {which!r}.")
    tol = _TOLERANCE[operator.dtype] if tol is None else check_positive("tol", tol)
    block = check_count("block", block, 1, size, where=f"from 1 to P = {size}")
    basis = max(40, 2 * k + 20) + 10 * (block - 1) if basis is None else basis
    least = min(size, k + 1)
    basis = check_count("basis", basis, least, where=f"at least {least} for k = {k}")
    max_products = 1000 + 100 * k if max_products is None else max_products
    max_products = check_count("max_products", max_products, 2 * k, where=f"at least 2 k = {2 * k}")
    return _Settings(k, which, tol, block, basis, max_products, seed)


def _start(operator: SymmetricOperator, start: Tensor | None, block: int) -> list[Tensor]:
    """The given start vectors, as the operator wants them."""
    if start is None:
        return []
    if not isinstance(start, Tensor):
        raise ArgumentTypeError(f"`start` must be a tensor or None, got {type(start).__name__}.")
    rows = start[None] if start.ndim == 1 else start
    if rows.ndim != 2 or rows.shape[1] != operator.size or not 1 <= len(rows) <= block:
        raise ArgumentError(
            f"`start` must have shape (P,) or (j, P) with P = {operator.size} and 1 <= j <= block "
            f"= {block}, got {tuple(start.shape)}."
        )
    rows = rows.detach().to(operator.device, operator.dtype)
    lengths = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).tolist()
    for length in lengths:
        if not (math.isfinite(length) and length > 0):
            raise ArgumentError(
                f"`start` must be finite and not zero, got a row of length {length}."
            )
    return list(rows)


def _complaint(found: Eigenpairs) -> str:
    failed = len(found) - int(found.converged.sum())
    return (
        f"eigenpairs: {failed} of {len(found)} pairs did not reach a residual of "
        f"{found.tol * found.scale:.1e} within {found.products} products; the largest is "
        f"{found.residuals.max():.1e}. Allow more by `max_products`, give a larger `basis` or a "
        "larger `tol`."
    )
