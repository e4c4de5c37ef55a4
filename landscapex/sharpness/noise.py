"""Sharpness under random steps: the mean rise of the loss, and the largest noise it bears."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscapex._numbers import check_count, check_positive
from landscapex.curvature.draws import check_seed
from landscapex.curvature.estimates import standard_error
from landscapex.errors import ArgumentError
from landscapex.objective import Objective, Point
from landscapex.sharpness.outcome import Sharpness
from landscapex.sharpness.probe import Probe, normal_vector, probing

_START = 0.1  # of the bisection, in root mean squares of the parameters
_OCTAVES = 60  # up or down from there, before the search is given up


def average_case(
    objective: Objective,
    sigma: float,
    samples: int = 100,
    *,
    adaptive: bool = False,
    antithetic: bool = True,
    seed: int = 0,
    center: Point = None,
) -> Sharpness:
    r"""The mean rise of the loss under Gaussian noise on the parameters.

    :math:`E_{z \sim N(0, I)}\, J(w + \sigma z) - J(w)`, which is :math:`\sigma^2\, \mathrm{tr}\, H
    / 2` to second order.

    Args:
        objective: Of the loss J; all of its data are used, and its weight decay.
        sigma: Standard deviation of the noise, in units of the parameters.
        samples: Draws of z, at least 2.
        adaptive: Multiply the noise of each parameter by its absolute value: the mean then does not
            change when nodes of a rectifier network are rescaled.
        antithetic: Take z and -z of every draw, two losses: what is linear in z cancels.
        seed: Of the draws.
        center: The point w; None for the live parameters.

    Returns:
        The mean rise and its standard error; ``increases`` has that of every draw.

    Raises:
        ArgumentError: If an argument cannot be used.

    References:
        Andriushchenko, Croce, Müller, Hein, Flammarion, "A Modern Look at the Relationship between
        Sharpness and Generalization", ICML 2023, section 2.

    Example:
        >>> import torch, landscapex as lx
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> x = torch.ones(4, 1)
        >>> objective = lx.Objective(model, (x, x), "mse_loss")
        >>> rise = lx.sharpness.average_case(objective, 0.1, 200)  # sigma^2 tr H / 2 = 0.01
        >>> abs(rise.value - 0.01) < 3 * rise.standard_error
        True
    """
    check_positive("sigma", sigma)
    check_count("samples", samples, 2)
    check_seed(seed)
    with probing(objective, center, gradients=False) as probe:
        loss = probe.center()
        draws = _Draws(probe, loss, "average-case", samples, seed, adaptive, antithetic)
        rises = draws.rises(sigma)
        settings = {"sigma": sigma, "samples": samples, "adaptive": adaptive}
        settings |= {"antithetic": antithetic, "seed": seed}
        return probe.outcome(
            "average_case",
            float(np.mean(rises)),
            loss,
            settings,
            standard_error=standard_error(rises),
            degrees=samples - 1,
            increases=rises,
        )


def pac_bayes(
    objective: Objective,
    increase: float = 0.1,
    samples: int = 16,
    *,
    adaptive: bool = False,
    tolerance: float = 0.01,
    seed: int = 0,
    center: Point = None,
) -> Sharpness:
    r"""The largest Gaussian noise under which the mean loss rises by no more than a given amount.

    The largest :math:`\sigma` with :math:`E_z J(w + \sigma z) \le J(w) +` ``increase``. The mean is
    over the same draws of z, and of -z, at every :math:`\sigma`, so that it is a smooth function; a
    bracket of one octave is searched upwards or downwards, bisected to the tolerance and
    interpolated. Should the mean cross the threshold more than once, the crossing that is found is
    the first one on that way.

    Args:
        objective: Of the loss J; all of its data are used, and its weight decay.
        increase: Of the loss that is borne, in its own unit.
        samples: Draws of z, at least 2; each takes two losses per :math:`\sigma`.
        adaptive: Multiply the noise of each parameter by its absolute value.
        tolerance: Relative width of the bracket at the end, between 0 and 1.
        seed: Of the draws.
        center: The point w; None for the live parameters.

    Returns:
        :math:`\sigma`, in units of the parameters, and its standard error over the draws (of the
        mean rise, divided by the slope of the mean in :math:`\sigma`); ``increases`` has the rise
        of every draw at this :math:`\sigma`.

    Raises:
        ArgumentError: If an argument cannot be used, or no noise raises the mean loss so far.

    References:
        Neyshabur, Bhojanapalli, McAllester, Srebro, "Exploring Generalization in Deep Learning",
        NeurIPS 2017, section 3; Jiang et al., "Fantastic Generalization Measures and Where to Find
        Them", ICLR 2020, section 7 (the threshold of 0.1).

    Example:
        >>> import torch, landscapex as lx
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> x = torch.ones(4, 1)
        >>> objective = lx.Objective(model, (x, x), "mse_loss")
        >>> found = lx.sharpness.pac_bayes(objective, 0.1, 64)  # J rises by sigma^2
        >>> low, high = found.interval(0.99)
        >>> low < 0.1**0.5 < high
        True
    """
    check_positive("increase", increase)
    check_count("samples", samples, 2)
    check_seed(seed)
    if not 0 < check_positive("tolerance", tolerance) < 1:
        raise ArgumentError(f"`tolerance` must lie between 0 and 1, got {tolerance!r}.")
    with probing(objective, center, gradients=False) as probe:
        loss = probe.center()
        draws = _Draws(probe, loss, "pac-bayes", samples, seed, adaptive, antithetic=True)
        low, high = _bracket(draws, increase, _first(probe, adaptive))
        while high.sigma > (1 + tolerance) * low.sigma:
            middle = _Mean.at(draws, math.sqrt(low.sigma * high.sigma), increase)
            low, high = (middle, high) if middle.excess <= 0 else (low, middle)
        sigma, rises, slope = _between(low, high)
        settings = {"increase": increase, "samples": samples, "adaptive": adaptive}
        settings |= {"tolerance": tolerance, "seed": seed}
        return probe.outcome(
            "pac_bayes",
            sigma,
            loss,
            settings,
            standard_error=standard_error(rises) / slope,
            degrees=samples - 1,
            increases=rises,
        )


class _Draws:
    """The rise of the loss for each of several random steps, at any length of them."""

    def __init__(
        self,
        probe: Probe,
        loss: float,
        purpose: str,
        samples: int,
        seed: int,
        adaptive: bool,
        antithetic: bool,
    ) -> None:
        self._probe, self._loss = probe, loss
        self._purpose, self._samples, self._seed = purpose, samples, seed
        self._scale = probe.session.center.abs() if adaptive else None
        self._signs = (1.0, -1.0) if antithetic else (1.0,)

    def rises(self, sigma: float) -> np.ndarray:
        """The rise for each draw, the mean of both signs; a rise that is no number is infinite."""
        found = []
        for number in range(self._samples):  # drawn anew: [samples, P] need not fit into memory
            z = self._draw(number)
            losses = self._probe.along(z, [sign * sigma for sign in self._signs])
            found.append(float(np.mean(losses)) - self._loss)
        rises = np.array(found)
        return np.where(np.isnan(rises), np.inf, rises)

    def _draw(self, number: int) -> Tensor:
        z = normal_vector(self._probe.space, self._seed, self._purpose, number)
        return z if self._scale is None else z * self._scale


@dataclass(frozen=True)
class _Mean:
    """The draws at one length: how far their mean is above the threshold."""

    sigma: float
    rises: np.ndarray
    excess: float

    @classmethod
    def at(cls, draws: _Draws, sigma: float, increase: float) -> _Mean:
        rises = draws.rises(sigma)
        return cls(sigma, rises, float(np.mean(rises)) - increase)


def _first(probe: Probe, adaptive: bool) -> float:
    """Where the search begins: any number will do, a near one saves evaluations."""
    if adaptive:
        return _START
    center = probe.session.center
    length = float(torch.linalg.vector_norm(center, dtype=torch.float64))
    return _START * (length / math.sqrt(len(center)) or 1.0)


def _bracket(draws: _Draws, increase: float, start: float) -> tuple[_Mean, _Mean]:
    """Two lengths an octave apart, the mean below (or at) the threshold and above it."""
    here = _Mean.at(draws, start, increase)
    factor = 2.0 if here.excess <= 0 else 0.5
    for _ in range(_OCTAVES):
        there = _Mean.at(draws, factor * here.sigma, increase)
        if (there.excess <= 0) != (here.excess <= 0):
            return (here, there) if here.excess <= 0 else (there, here)
        here = there
    raise ArgumentError(
        f"`increase` must be a rise of the mean loss that noise reaches, got {increase}; the mean "
        f"rises by {here.excess + increase:.4g} at a standard deviation of {here.sigma:.4g}."
    )


def _between(low: _Mean, high: _Mean) -> tuple[float, np.ndarray, float]:
    """Where the mean meets the threshold: the length, the rises there, and the slope."""
    if not math.isfinite(high.excess):  # the loss jumps: the last length that is borne
        return low.sigma, low.rises, math.nan
    share = -low.excess / (high.excess - low.excess)
    sigma = low.sigma + share * (high.sigma - low.sigma)
    rises = low.rises + share * (high.rises - low.rises)
    return sigma, rises, (high.excess - low.excess) / (high.sigma - low.sigma)
