"""Sharpness in a box around the point, as Keskar et al. measure it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from landscapex._directions import gram
from landscapex._draws import gaussian_
from landscapex._numbers import check_count, check_positive
from landscapex.curvature.draws import check_seed
from landscapex.errors import ArgumentError
from landscapex.objective import Objective, Point
from landscapex.sharpness.outcome import Sharpness
from landscapex.sharpness.probe import Probe, normal_vector, probing

_EVALUATIONS = 20  # of one line search of L-BFGS-B, at most
_STEEP = 1e-3  # of the steepest slope: the first step crosses the box along all that are steeper


def keskar(
    objective: Objective,
    epsilon: float = 1e-3,
    *,
    subspace: int | None = None,
    iterations: int = 10,
    seed: int = 0,
    center: Point = None,
) -> Sharpness:
    r"""The largest loss in a box around the point, in percent: epsilon-sharpness.

    :math:`100\,\bigl(\max_{z \in C} J(w + A z) - J(w)\bigr) / (1 + J(w))` over the box
    :math:`C = \{z : |z_i| \le \epsilon\,(|(A^+ w)_i| + 1)\}`, where A is the identity or a random
    matrix ``(P, p)`` of independent standard normal entries. L-BFGS-B climbs for a few iterations
    from ``z = 0``, or from a random point of the box where the gradient is exactly zero; loss and z
    are scaled such that its first step crosses the box along all but the flattest parameters, so
    that a small gradient does not end it. The value is that of the best point seen: a lower bound
    of the maximum.

    Args:
        objective: Of the loss J, which must be above -1.
        epsilon: Half the width of the box, relative to \|w\| + 1; the paper has 1e-3 and 5e-4.
        subspace: p, the paper has 100; None for all parameters (A = I). Keeps ``(p, P)`` numbers.
        iterations: Of L-BFGS-B.
        seed: Of A, and of the random point.
        center: The point w; None for the live parameters.

    Returns:
        The measure in percent; ``increases`` has the rise of the loss at each point tried.

    Raises:
        ArgumentError: If an argument cannot be used, the loss is at most -1, or the loss or its
            gradient are not finite in the box.

    References:
        Keskar, Mudigere, Nocedal, Smelyanskiy, Tang, "On Large-Batch Training for Deep Learning:
        Generalization Gap and Sharp Minima", ICLR 2017, metric 2.1.

    Example:
        >>> import torch, landscapex as lx
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> x = torch.ones(4, 1)
        >>> objective = lx.Objective(model, (x, x), "mse_loss")
        >>> round(lx.sharpness.keskar(objective, 0.1, center=torch.tensor([2.0])).value, 4)  # %
        34.5
    """
    check_positive("epsilon", epsilon)
    check_count("iterations", iterations, 1)
    check_seed(seed)
    if subspace is not None:
        check_count("subspace", subspace, 1)
    with probing(objective, center, gradients=True) as probe:
        if subspace is not None and subspace > probe.space.size:
            raise ArgumentError(
                f"`subspace` must be at most {probe.space.size}, the number of parameters, got "
                f"{subspace}."
            )
        loss = probe.center()
        if loss <= -1:
            raise ArgumentError(f"the loss must be above -1 for this measure, got {loss}.")
        climb = _Climb(probe, _Box(probe, epsilon, subspace, seed), loss)
        climb.run(iterations, seed)
        settings: dict[str, Any] = {"epsilon": epsilon, "subspace": subspace}
        settings |= {"iterations": climb.iterations, "seed": seed}
        return probe.outcome(
            "keskar",
            100 * climb.best / (1 + loss),
            loss,
            settings,
            increases=climb.increases,
            displacement=climb.displacement,
        )


class _Box:
    """The box in coordinates ``u`` in [-1, 1], ``(p,)`` float64: the step is ``A (half * u)``."""

    def __init__(self, probe: Probe, epsilon: float, subspace: int | None, seed: int) -> None:
        space, center = probe.space, probe.session.center
        self._dtype = space.dtype
        self._columns: Tensor | None = None  # of A, as rows [p, P]
        place = center.double()
        if subspace is not None:
            rows = [normal_vector(space, seed, "keskar/subspace", k) for k in range(subspace)]
            products = gram(torch.stack([*rows, center]))
            self._columns = torch.stack(rows)
            # A^+ w by the normal equations: random columns are far from parallel
            place = torch.linalg.lstsq(products[:-1, :-1], products[:-1, -1:]).solution[:, 0]
            place = place.to(space.device)
        self._half = epsilon * (place.abs() + 1)
        self.size = len(self._half)

    def step(self, u: np.ndarray) -> Tensor:
        """The displacement ``(P,)`` of a point of the box."""
        z = (self._half * torch.from_numpy(u).to(self._half.device)).to(self._dtype)
        return z if self._columns is None else self._columns.T @ z

    def slope(self, gradient: Tensor) -> np.ndarray:
        """The gradient in ``u`` from that in the parameters, ``(p,)``."""
        if self._columns is not None:
            gradient = (self._columns @ gradient.to(self._dtype)).double()
        found: np.ndarray = (self._half * gradient).cpu().numpy()
        return found


class _Climb:
    """One run of L-BFGS-B, and the best point it saw."""

    def __init__(self, probe: Probe, box: _Box, loss: float) -> None:
        self._probe, self._box, self._loss = probe, box, loss
        self._scale = 1.0
        self.increases: list[float] = []
        self.best = 0.0
        self.displacement = torch.zeros_like(probe.session.center)
        self.iterations = 0

    def run(self, iterations: int, seed: int) -> None:
        """Climb from the centre of the box."""
        start = np.zeros(self._box.size)
        slope = self._box.slope(self._probe.gradient())
        if not slope.any():
            start = _uniform(self._box.size, seed)
            slope = self._box.slope(self._probe.gradient(self._box.step(start)))
        # the first step of L-BFGS-B is the gradient, cut off at the box
        self._scale = _STEEP * float(np.abs(slope).max()) or 1.0
        bounds = optimize.Bounds(-np.ones(self._box.size), np.ones(self._box.size))
        options = {"maxiter": iterations, "maxls": _EVALUATIONS, "ftol": 0.0, "gtol": 0.0}
        found = optimize.minimize(
            self._descend, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        )
        self.iterations = int(found.nit)

    def _descend(self, u: np.ndarray) -> tuple[float, np.ndarray]:
        step = self._box.step(u)
        rise = self._probe.loss(step) - self._loss
        if not math.isfinite(rise):
            raise ArgumentError(
                f"`epsilon` must keep the loss finite in its box, got {rise + self._loss}."
            )
        self.increases.append(rise)
        if rise > self.best:
            self.best, self.displacement = rise, step
        slope = self._box.slope(self._probe.gradient(step))
        return -rise / self._scale, -slope / self._scale


def _uniform(size: int, seed: int) -> np.ndarray:
    """Independent entries in (-1, 1)."""
    normal = torch.empty(size, dtype=torch.float64, device="cpu")
    gaussian_(normal, f"{seed}/keskar/start")
    found: np.ndarray = torch.special.erf(normal / math.sqrt(2)).numpy()
    return found
