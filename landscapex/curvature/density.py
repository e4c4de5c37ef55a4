"""The spectral density of a symmetric operator: how many eigenvalues lie where.

A random vector v has the share |<u_i, v>|^2 of its length in each eigenvector u_i. m steps of the
Lanczos recurrence from v give the Gauss quadrature of that distribution: m nodes and weights that
integrate every polynomial up to degree 2m - 1 exactly. The mean over vectors estimates the
distribution of the eigenvalues (stochastic Lanczos quadrature: Ubaru, Chen, Saad 2017, SIAM J.
Matrix Anal. Appl. 38; Ghorbani, Krishnan, Xiao 2019, arXiv 1901.10159).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from landscapex._arrays import Array, read_only
from landscapex._numbers import check_count
from landscapex.curvature import draws
from landscapex.curvature.basis import Basis
from landscapex.curvature.estimates import Estimate, Products, quantile
from landscapex.curvature.linear import SymmetricOperator
from landscapex.curvature.quadrature import quadrature, recurrence
from landscapex.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DRAWS = {"gaussian": draws.gaussian, "signs": draws.signs}


def spectral_density(
    operator: SymmetricOperator,
    *,
    probes: int = 8,
    steps: int = 80,
    seed: int = 0,
    sigma: float | None = None,
    distribution: str = "gaussian",
    reorthogonalize: bool = False,
    progress: bool = False,
) -> SpectralDensity:
    """Estimate the distribution of the eigenvalues from ``probes * steps`` products.

    The recurrence keeps three vectors and does not orthogonalise by default. Eigenvalues that have
    converged then come back as copies; the weights of the copies add up to that of the eigenvalue
    (Greenbaum 1989, Linear Algebra Appl. 113), so that distribution, moments and counts are right,
    but the number of nodes near an eigenvalue means nothing.

    Args:
        operator: The matrix.
        probes: Random vectors. More of them make the cumulative distribution less noisy; for a
            large matrix a few suffice, as the error falls with the root of ``P * probes``.
        steps: Of the recurrence for each. More of them resolve finer structure.
        seed: Of the random vectors.
        sigma: Standard deviation (not variance), in units of eigenvalues, of the normal
            distribution that replaces each node in `SpectralDensity.density`. None for the
            resolution: the range of the nodes over the number of steps.
        distribution: "gaussian", whose errors are known for every matrix; or "signs" (-1 and 1 with
            equal probability), without any error for diagonal matrices, and with about that of
            "gaussian" where eigenvectors are spread over many parameters. Errors are stated as
            those of "gaussian" in both cases.
        reorthogonalize: Keep the steps apart at the cost of ``steps * P`` numbers of memory: no
            copies.
        progress: Show a bar.

    Returns:
        Nodes and weights, and what follows from them with its errors.

    Raises:
        ArgumentError: If an argument has no usable value, or a product is not finite.
        ArgumentTypeError: If an argument has the wrong type.

    Example:
        >>> import torch
        >>> half = torch.tensor([1.0] * 30 + [5.0] * 30, dtype=torch.float64)
        >>> operator = SymmetricOperator(lambda v: half * v, 60, torch.float64)
        >>> density = spectral_density(operator, probes=2, distribution="signs")
        >>> density
        SpectralDensity(P=60, 2 probes x 60 steps, eigenvalues 1 to 5, 4 products)
        >>> [float(round(share, 6)) for share in density.cdf([0.0, 3.0, 6.0])]
        [0.0, 0.5, 1.0]
    """
    count = check_count("probes", probes, 1)
    length = min(check_count("steps", steps, 1), operator.size)
    draws.check_seed(seed)
    if sigma is not None:
        _check_sigma(sigma)
    if distribution not in _DRAWS:
        raise ArgumentError(
            f"`distribution` must be one of {', '.join(_DRAWS)}, got {distribution!r}."
        )
    started = time.perf_counter()
    runs = []
    with Products(operator, count * length, progress, "spectral density") as product:
        for number in range(count):
            start = _DRAWS[distribution](operator, seed, "spectral density", number)
            basis = Basis(operator, length) if reorthogonalize else None
            runs.append(recurrence(product, start, length, basis))
    rules = [quadrature(run.alphas, run.betas) for run in runs]
    return SpectralDensity(
        nodes=read_only(np.stack([_padded(nodes, length) for nodes, _ in rules])),
        weights=read_only(np.stack([_padded(weights, length, 0.0) for _, weights in rules])),
        lengths=tuple(len(run.alphas) for run in runs),
        complete=tuple(run.complete for run in runs),
        by_products=read_only(np.array([run.moments for run in runs])),
        size=operator.size,
        sigma=_default_sigma([nodes for nodes, _ in rules], length) if sigma is None else sigma,
        distribution=distribution,
        matrix=operator.name,
        products=product.taken,
        seconds=time.perf_counter() - started,
        seed=seed,
    )


@dataclass(frozen=True)
class Band:
    """The cumulative distribution at given places, and how far it may be off.

    Attributes:
        t: ``(n,)`` places.
        value: ``(n,)`` estimated share of eigenvalues below `t`.
        standard_error: ``(n,)``, of the probes alone: ``sqrt(2 p (1 - p) / ((P + 2) probes))``.
        lower: ``(n,)``. The true share is not below it, with probability `confidence` at each place
            and for both ends together.
        upper: ``(n,)``. It is not above that.
        confidence: The probability.
        resolution: Horizontal error: places are known to about this, the range of the nodes over
            the number of steps.
    """

    t: Array
    value: Array
    standard_error: Array
    lower: Array
    upper: Array
    confidence: float
    resolution: float


@dataclass(frozen=True, eq=False, repr=False)
class SpectralDensity:
    """The distribution of the eigenvalues of a matrix, estimated.

    Attributes:
        nodes: ``(probes, steps)`` float64, ascending in each row. Where a recurrence ended early
            its last node is repeated, with weight 0.
        weights: ``(probes, steps)`` float64: the squared first entries of the eigenvectors of the
            tridiagonal matrices. They sum to 1 in each row, and were not made to.
        lengths: Nodes that each probe really has.
        complete: Whether the recurrence of a probe ended because it had found every eigenvalue
            that its vector has a share in: its distribution is then exact.
        by_products: ``(probes, 2)``: ``<v, A v>`` and ``|A v|^2`` of each unit probe.
        size: P, the number of eigenvalues.
        sigma: Standard deviation that `density` smooths with by default.
        distribution: Of the probes.
        matrix: What matrix it is of; empty if the operator has no name.
        products: Products with the matrix that were taken.
        seconds: Time that they took, and everything else.
        seed: Of the probes.
    """

    nodes: Array
    weights: Array
    lengths: tuple[int, ...]
    complete: tuple[bool, ...]
    by_products: Array
    size: int
    sigma: float
    distribution: str
    matrix: str
    products: int
    seconds: float
    seed: int

    def __repr__(self) -> str:
        probes, steps = self.nodes.shape
        of = f"{self.matrix}, " if self.matrix else ""
        return (
            f"SpectralDensity({of}P={self.size:,}, {probes} probes x {steps} steps, eigenvalues "
            f"{self.smallest:.4g} to {self.largest:.4g}, {self.products:,} products)"
        )

    @property
    def smallest(self) -> float:
        """The smallest node; the smallest eigenvalue is not above it."""
        return float(self.nodes.min())

    @property
    def largest(self) -> float:
        """The largest node; the largest eigenvalue is not below it."""
        return float(self.nodes.max())

    @property
    def resolution(self) -> float:
        """Horizontal error of the distribution: the range of the nodes over the number of steps."""
        return (self.largest - self.smallest) / self.nodes.shape[1]

    @property
    def mass(self) -> float:
        """The sum of the weights of a probe, averaged; 1 but for rounding, without being made 1."""
        return float(self.weights.sum(axis=1).mean())

    @property
    def moment_error(self) -> float:
        """How far the first two moments of the quadrature are from those of the products.

        Returns:
            The largest difference over probes, relative to the root mean square eigenvalue that
            the probe sees, or to its square. Rounding only, unless something is wrong.
        """
        second = self.by_products[:, 1]
        if not second.any():
            return float(np.abs(self.nodes).max())
        errors = [
            np.abs((self.weights * self.nodes**k).sum(axis=1) - self.by_products[:, k - 1])
            / second.max() ** (k / 2)
            for k in (1, 2)
        ]
        return float(np.max(errors))

    def cdf(self, t: ArrayLike) -> Array:
        """The estimated share of eigenvalues below `t`.

        Args:
            t: Places, any shape.

        Returns:
            The same shape: the sum of the weights of the nodes below, and half of that of a node
            which is `t` itself; mean over probes.
        """
        places = np.asarray(t, dtype=np.float64)
        flat = places.reshape(-1)
        total = np.zeros(flat.shape)
        for nodes, below in zip(self.nodes, self._cumulative(), strict=True):
            left = below[np.searchsorted(nodes, flat, side="left")]
            total += 0.5 * (left + below[np.searchsorted(nodes, flat, side="right")])
        return (total / len(self.nodes)).reshape(places.shape)

    def band(self, t: ArrayLike, confidence: float = 0.95) -> Band:
        """The cumulative distribution and an interval for it at each place.

        Two errors are in it. A probe gives a share p with a standard deviation of
        ``sqrt(2 p (1 - p) / (P + 2))`` (its squared entries are a Dirichlet distribution), of which
        the interval takes all p that are compatible with what was found. And m nodes leave open
        where between its neighbours the weight of a node lies: the distribution that the probe
        sees is bounded by the theorem of Chebyshev, Markov and Stieltjes (Szego, Orthogonal
        Polynomials, 3.41).

        Args:
            t: Places, ``(n,)`` or a number.
            confidence: Probability that the interval at one place contains the truth, at least.

        Returns:
            Both errors, and the interval.

        Raises:
            ArgumentError: If `confidence` is not between 0 and 1.
        """
        z = quantile(confidence)
        places = np.atleast_1d(np.asarray(t, dtype=np.float64)).reshape(-1)
        value = self.cdf(places)
        low, high = self._bracket(places)
        trials = 0.5 * (self.size + 2) * len(self.nodes)
        spread = np.sqrt(value * np.clip(1 - value, 0, None) / trials)
        lower, upper = _score_bound(low, trials, -z), _score_bound(high, trials, z)
        return Band(
            t=read_only(places), value=read_only(value), standard_error=read_only(spread),
            lower=read_only(lower), upper=read_only(upper), confidence=confidence,
            resolution=self.resolution,
        )  # fmt: skip

    def density(self, t: ArrayLike, sigma: float | None = None) -> Array:
        """The density of the eigenvalues, each node replaced by a normal distribution.

        Args:
            t: Places, any shape.
            sigma: Standard deviation, in units of eigenvalues; None for that of the result.

        Returns:
            The same shape; its integral over all places is `mass`: nothing is renormalised.

        Raises:
            ArgumentError: If `sigma` is not above 0.
        """
        width = self.sigma if sigma is None else _check_sigma(sigma)
        return smoothed(self.nodes, self.weights, t, width)

    def moments(self, k: int) -> Estimate:
        """The mean of the k-th powers of the eigenvalues, ``tr(A^k) / P``.

        Args:
            k: At least 1. Powers up to ``2 steps - 1`` are integrated exactly for each probe.

        Returns:
            The mean over probes, with the standard error of a quadratic form of a random unit
            vector, ``sqrt(2 (mu_2k - mu_k^2) / ((P + 2) probes))``. Where 2 k is above
            ``2 steps - 1``, the quadrature gives mu_2k, and with it the error, a little too small.

        Raises:
            ArgumentError: If `k` is too small or too large for the number of steps.
            ArgumentTypeError: If it is not a whole number.
        """
        power = check_count("k", k, 1)
        if power > 2 * self.nodes.shape[1] - 1 and not all(self.complete):
            raise ArgumentError(
                f"`k` must be at most 2 * steps - 1 = {2 * self.nodes.shape[1] - 1}, got {k}."
            )
        value = float((self.weights * self.nodes**power).sum(axis=1).mean())
        square = float((self.weights * self.nodes ** (2 * power)).sum(axis=1).mean())
        return self._estimate(value, max(square - value**2, 0.0))

    def outliers(self, threshold: float, *, side: str = "above") -> Estimate:
        """How many eigenvalues lie beyond a threshold.

        Args:
            threshold: Best in a gap of the spectrum: what the steps do not resolve around it is
                not part of the error.
            side: "above" or "below" the threshold.

        Returns:
            P times the weight there, and the standard error that the probes leave.

        Raises:
            ArgumentError: If `side` is neither.
        """
        if side not in ("above", "below"):
            raise ArgumentError(f'`side` must be "above" or "below", got {side!r}.')
        below = float(self.cdf(threshold))
        share = below if side == "below" else self.mass - below
        share = min(max(share, 0.0), 1.0)
        return self._estimate(share, share * (1 - share), self.size)

    def plot(
        self,
        eigenpairs: Any = None,
        *,
        axis: str = "auto",
        sigma: float | None = None,
        title: str | None = None,
    ) -> Figure:
        """Draw the density and the cumulative distribution with its band.

        Args:
            eigenpairs: Eigenvalues to mark: a result with ``.values``, or the values.
            axis: Of the eigenvalues: "auto", "linear" or "symlog".
            sigma: Standard deviation to smooth with on a linear axis; None for that of the result.
            title: Above the picture; None for a default, "" for none.

        Returns:
            A matplotlib figure.
        """
        from landscapex import plot

        return plot.spectrum(self, eigenpairs, axis=axis, sigma=sigma, title=title)

    def _estimate(self, mean: float, variance: float, scale: float = 1.0) -> Estimate:
        """`scale` times a mean over eigenvalues, from their variance."""
        probes = len(self.nodes)
        error = math.sqrt(2 * variance / ((self.size + 2) * probes))
        return Estimate(
            value=scale * mean, standard_error=scale * error, degrees=math.inf, samples=probes,
            products=self.products, method="Lanczos quadrature", matrix=self.matrix,
        )  # fmt: skip

    def _cumulative(self) -> Array:
        """``(probes, steps + 1)``: the weight of the first nodes of each probe."""
        return np.pad(np.cumsum(self.weights, axis=1), ((0, 0), (1, 0)))

    def _bracket(self, places: Array) -> tuple[Array, Array]:
        """What the share below each place can be between, on the mean of the probes."""
        low, high = np.zeros(places.shape), np.zeros(places.shape)
        every = zip(self.nodes, self._cumulative(), self.lengths, self.complete, strict=True)
        for nodes, below, length, complete in every:
            before = np.searchsorted(nodes[:length], places, side="left")
            until = np.searchsorted(nodes[:length], places, side="right")
            if not complete:
                before, until = np.maximum(before - 1, 0), np.minimum(until + 1, length)
            low += below[before]
            high += below[until]
        return low / len(self.nodes), high / len(self.nodes)


def smoothed(nodes: Array, weights: Array, t: ArrayLike, sigma: float) -> Array:
    """A density of nodes, each replaced by a normal distribution; the mean over probes.

    Args:
        nodes: ``(probes, steps)``.
        weights: ``(probes, steps)``.
        t: Places, any shape.
        sigma: Standard deviation, in the unit of the nodes.

    Returns:
        The shape of `t`; its integral over all places is the mean sum of the weights.
    """
    places = np.asarray(t, dtype=np.float64)
    total = np.zeros(places.size)
    for at, mass in zip(nodes, weights, strict=True):
        total += np.exp(-0.5 * ((places.reshape(-1, 1) - at) / sigma) ** 2) @ mass
    scale = len(nodes) * sigma * math.sqrt(2 * math.pi)
    return (total / scale).reshape(places.shape)


def _padded(values: Array, length: int, fill: float | None = None) -> Array:
    last = values[-1] if fill is None else fill
    return np.concatenate([values, np.full(length - len(values), last)])


def _default_sigma(nodes: list[Array], steps: int) -> float:
    """The resolution; for a single eigenvalue, a thousandth of its size."""
    every = np.concatenate(nodes)
    spread, largest = float(np.ptp(every)), float(np.abs(every).max())
    return spread / steps if spread > 1e-9 * largest else 1e-3 * largest or 1.0


def _check_sigma(sigma: float) -> float:
    if not (isinstance(sigma, int | float | np.number) and 0 < sigma < math.inf):
        raise ArgumentError(
            f"`sigma` must be a standard deviation above 0 in units of eigenvalues, got {sigma!r}."
        )
    return float(sigma)


def _score_bound(share: Array, trials: float, z: float) -> Array:
    """The p with ``share = p - z sqrt(p (1 - p) / trials)``: it exists also at 0 and 1."""
    p = np.clip(share, 0.0, 1.0)
    spread = np.sqrt(p * (1 - p) / trials + (z / (2 * trials)) ** 2)
    bound = (p + z**2 / (2 * trials) + z * spread) / (1 + z**2 / trials)
    return np.clip(bound, 0.0, 1.0)
