"""The local learning coefficient: how the volume of low loss around a point scales."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from landscapex._draws import gaussian_
from landscapex._numbers import check_count, check_positive
from landscapex.curvature.draws import check_seed
from landscapex.curvature.estimates import dot, standard_error
from landscapex.errors import ArgumentError
from landscapex.objective import Objective, Point
from landscapex.sharpness.outcome import Sharpness
from landscapex.sharpness.probe import normal_vector, probing

_ACCEPTED = 0.574  # of proposals: best for Langevin steps in many dimensions
_GAIN, _SETTLING = 2.0, 0.6  # of the step size: how fast it changes, and stops to


def local_learning_coefficient(
    objective: Objective,
    *,
    localization: float = 100.0,
    beta: float | None = None,
    chains: int = 4,
    steps: int = 500,
    warmup: int | None = None,
    seed: int = 0,
    center: Point = None,
) -> Sharpness:
    r"""The local learning coefficient of a point, by sampling around it.

    :math:`\hat\lambda = n \beta\, (E[J(v)] - J(w))` with the mean over v from the density
    proportional to :math:`\exp(-n \beta J(v) - \gamma \lVert v - w \rVert^2 / 2)`, for n samples
    and :math:`\beta = 1 / \ln n`. At a minimum with d directions of curvature far above
    :math:`\gamma / n \beta` it is d/2; flat directions count less. It is negative where the
    surroundings are lower than the point.

    Each chain takes Langevin steps with the full gradient, accepted or refused by the Metropolis
    rule, so that the step size, which is found during the warm-up, leaves no bias.

    Args:
        objective: Of the loss J; all of its data are used, and its weight decay.
        localization: :math:`\gamma`: how strongly the samples are held near the point.
        beta: Inverse temperature; None for :math:`1 / \ln n`.
        chains: Independent ones, at least 2; the error is that of their mean.
        steps: Of each chain that count; each takes a loss and a gradient.
        warmup: Steps of each chain before these; None for half as many.
        seed: Of the chains.
        center: The point w; None for the live parameters.

    Returns:
        The coefficient and its standard error; ``increases`` has the mean rise of each chain. The
        settings hold the share of accepted steps: far below a half, the chains have hardly moved.

    Raises:
        ArgumentError: If an argument cannot be used, there are fewer than 2 samples and no
            ``beta``, or a chain has never moved.

    References:
        Lau, Furman, Wang, Murfet, Wei, "The Local Learning Coefficient: A Singularity-Aware
        Complexity Measure", AISTATS 2025 (arXiv 2308.12108). Roberts, Tweedie, "Exponential
        convergence of Langevin distributions and their discrete approximations", Bernoulli 2, 1996.

    Example:
        >>> import torch, landscapex as lx
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> x = torch.ones(400, 1)
        >>> found = lx.sharpness.local_learning_coefficient(
        ...     lx.Objective(model, (x, x), "mse_loss"), localization=0.1, steps=200,
        ...     center=torch.ones(1),
        ... )
        >>> low, high = found.interval(0.99)
        >>> low < 0.5 < high
        True
    """
    gamma = check_positive("localization", localization)
    check_count("chains", chains, 2)
    check_count("steps", steps, 1)
    warm = steps // 2 if warmup is None else check_count("warmup", warmup, 0)
    check_seed(seed)
    with probing(objective, center, gradients=True) as probe:
        count = next(iter(probe.session.engine.data.values())).num_samples
        if beta is None and count < 2:
            raise ArgumentError(f"`beta` must be given for fewer than 2 samples, got {count}.")
        inverse = 1 / math.log(count) if beta is None else check_positive("beta", beta)
        loss = probe.center()
        weight = count * inverse
        potential = Potential(lambda e: probe.loss(e) - loss, probe.gradient, weight, gamma)
        rises, accepted = [], []
        for c in range(chains):
            name = f"langevin/{c}"
            chain = Chain(
                potential,
                torch.zeros_like(probe.session.center),
                partial(normal_vector, probe.space, seed, name),
                partial(_uniform, f"{seed}/{name}"),
            )
            chain.run(warm, adapt=True)
            rises.append(float(np.mean(chain.run(steps))))
            accepted.append(chain.accepted / steps)
            if not chain.accepted:
                raise ArgumentError(
                    "`warmup` must be long enough to find the size of a step, got "
                    f"{warm}: a chain has never moved."
                )
        values = weight * np.array(rises)
        settings = {"localization": gamma, "beta": inverse, "chains": chains, "steps": steps}
        settings |= {"warmup": warm, "seed": seed, "accepted": float(np.mean(accepted))}
        return probe.outcome(
            "local_learning_coefficient",
            float(np.mean(values)),
            loss,
            settings,
            standard_error=standard_error(values),
            degrees=chains - 1,
            increases=rises,
        )


@dataclass(frozen=True)
class Potential:
    """Minus the logarithm of the density that is sampled, over displacements from the point.

    Attributes:
        rise: Of the loss, after a displacement.
        gradient: Of the loss there, float64.
        weight: Of the loss: n beta.
        localization: gamma.
    """

    rise: Callable[[Tensor], float]
    gradient: Callable[[Tensor], Tensor]
    weight: float
    localization: float

    def energy(self, e: Tensor, rise: float) -> float:
        """At a displacement of known rise."""
        return self.weight * rise + 0.5 * self.localization * dot(e, e)

    def slope(self, e: Tensor) -> Tensor:
        """The gradient of `energy`, float64."""
        return self.weight * self.gradient(e) + self.localization * e.double()


class Chain:
    """Metropolis-adjusted Langevin steps.

    Args:
        potential: What is sampled.
        start: ``(P,)``.
        normal: Standard normal numbers ``(P,)`` for step k.
        uniform: A number between 0 and 1 for step k.

    Attributes:
        size: Of a step: twice the drift along the slope, and the variance of the noise.
        accepted: Steps of the last run that were taken.
    """

    def __init__(
        self,
        potential: Potential,
        start: Tensor,
        normal: Callable[[int], Tensor],
        uniform: Callable[[int], float],
    ) -> None:
        self._potential, self._normal, self._uniform = potential, normal, uniform
        self._at, self._rise = start, potential.rise(start)
        self._slope = potential.slope(start)
        self._taken = self.accepted = 0
        # the acceptance of Langevin steps depends on the size times the third root of P
        self.size = len(start) ** (-1 / 3) / (potential.weight + potential.localization)

    def run(self, steps: int, *, adapt: bool = False) -> list[float]:
        """Take steps.

        Args:
            steps: How many.
            adapt: Whether to change `size` towards the best share of accepted steps.

        Returns:
            The rise of the loss after each.
        """
        self.accepted, rises = 0, []
        for k in range(steps):
            chance = self._step()
            if adapt:
                self.size *= math.exp(_GAIN * (chance - _ACCEPTED) / (k + 1) ** _SETTLING)
            rises.append(self._rise)
        return rises

    def _step(self) -> float:
        """Propose one step, and take it with the probability that is returned."""
        z = self._normal(self._taken).double()
        threshold = self._uniform(self._taken)
        self._taken += 1
        move = math.sqrt(self.size) * z - 0.5 * self.size * self._slope
        at = (self._at.double() + move).to(self._at.dtype)
        rise = self._potential.rise(at)
        if not math.isfinite(rise):
            return 0.0
        slope = self._potential.slope(at)
        back = move - 0.5 * self.size * slope  # minus the noise of the reverse step, in its units
        ratio = (
            self._potential.energy(self._at, self._rise)
            - self._potential.energy(at, rise)
            - 0.5 * (dot(back, back) / self.size - dot(z, z))
        )
        chance = math.exp(min(0.0, ratio))
        if threshold < chance:
            self._at, self._rise, self._slope = at, rise, slope
            self.accepted += 1
        return chance


def _uniform(name: str, number: int) -> float:
    """One of the numbers between 0 and 1 that belong to a name."""
    drawn = torch.empty(1, dtype=torch.float64, device="cpu")
    gaussian_(drawn, f"{name}/accept/{number}")
    return float(0.5 * (1 + math.erf(float(drawn) / math.sqrt(2))))
