"""The worst loss near a point: SAM, its adaptive form, and its mean over groups of samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscapex import batches
from landscapex._batch import Batch, map_leaves, regrouped
from landscapex._draws import gaussian_
from landscapex._numbers import check_count, check_positive
from landscapex.curvature.draws import check_seed
from landscapex.engine.eager import EagerEngine
from landscapex.errors import ArgumentError, EmptyDataError
from landscapex.objective import Objective, Point
from landscapex.session import Session
from landscapex.sharpness.outcome import Sharpness
from landscapex.sharpness.probe import Probe, probing


def sam(
    objective: Objective, rho: float = 0.05, *, steps: int = 1, center: Point = None
) -> Sharpness:
    r"""The rise of the loss to its largest value in a ball around the point.

    :math:`\max_{\lVert e \rVert \le \rho} J(w + e) - J(w)`, sought by gradient ascent: one step
    gives the first-order answer of SAM, :math:`e = \rho\, g / \lVert g \rVert`; more steps go on
    from there, each of length ``rho`` and projected back into the ball. The value is the largest
    rise at the end of a step, a lower bound of the maximum.

    Args:
        objective: Of the loss J; all of its data are used, and its weight decay.
        rho: Radius of the ball, in units of the parameters.
        steps: Of the ascent.
        center: The point w; None for the live parameters.

    Returns:
        The rise; ``increases`` has that of every step, ``displacement`` is the best e.

    Raises:
        ArgumentError: If ``rho`` or ``steps`` cannot be used, or the gradient at the point is zero
            and shows no way up.

    References:
        Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving
        Generalization", ICLR 2021, equation 2.

    Example:
        >>> import torch, landscapex as lx
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> x = torch.ones(4, 1)
        >>> objective = lx.Objective(model, (x, x), "mse_loss")
        >>> round(lx.sharpness.sam(objective, 0.5, center=torch.tensor([3.0])).value, 6)
        2.25
    """
    ball = _Ball(check_positive("rho", rho), check_count("steps", steps, 1))
    with probing(objective, center, gradients=True) as probe:
        return _worst(probe, "sam", ball)


def asam(
    objective: Objective,
    rho: float = 0.5,
    *,
    eta: float = 0.0,
    steps: int = 1,
    center: Point = None,
) -> Sharpness:
    r"""`sam` in a ball whose extent along each parameter is that of the parameter.

    :math:`\max J(w + e) - J(w)` over :math:`\lVert T_w^{-1} e \rVert \le \rho` with
    :math:`T_w = \mathrm{diag}(|w| + \eta)`; the first step is
    :math:`e = \rho\, T_w^2 g / \lVert T_w g \rVert`. With ``eta=0`` it does not change when the
    inputs of a rectifier are multiplied by a number and its outputs divided by it.

    Args:
        objective: Of the loss J; all of its data are used, and its weight decay.
        rho: Radius of the ball; the default is that of the paper for CIFAR-10.
        eta: Added to every \|w\|, so that parameters that are zero can move; at least 0. The paper
            trains with 0.01.
        steps: Of the ascent.
        center: The point w; None for the live parameters.

    Returns:
        The rise, as in `sam`.

    Raises:
        ArgumentError: If an argument cannot be used, or T g is zero at the point.

    References:
        Kwon, Kim, Park, Choi, "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant
        Learning of Deep Neural Networks", ICML 2021, section 3.

    Example:
        >>> import landscapex as lx
        >>> objective = lx.Objective(*lx.examples.digits())
        >>> found = lx.sharpness.asam(objective, 0.5)
        >>> found.value > 0, found.losses, found.gradients
        (True, 3, 1)
    """
    ball = _Ball(check_positive("rho", rho), check_count("steps", steps, 1), _check_eta(eta))
    with probing(objective, center, gradients=True) as probe:
        return _worst(probe, "asam", ball)


def m_sharpness(
    objective: Objective,
    m: int | None,
    rho: float = 0.05,
    *,
    adaptive: bool = False,
    eta: float = 0.0,
    steps: int = 1,
    groups: int | None = None,
    seed: int = 0,
    center: Point = None,
) -> Sharpness:
    r"""The mean over disjoint groups of samples of each group's own worst rise.

    Samples are dealt at random into groups of ``m``; the last group takes a rest of less than half
    of that. `sam` (or `asam`) is taken of the loss of each group alone, and the groups are averaged
    by their weights in the loss.

    Args:
        objective: Of the loss; one that is a mean over samples, with data in memory, unless ``m``
            is None.
        m: Samples of a group; None takes the objective's own batches as they are.
        rho: Radius of the ball.
        adaptive: Whether the ball is that of `asam`.
        eta: As in `asam`.
        steps: Of each ascent.
        groups: How many groups to take, drawn at random; None for all. With fewer than all the
            value has a standard error.
        seed: Of the dealing.
        center: The point; None for the live parameters.

    Returns:
        The mean rise; ``increases`` has that of every group taken: 0 for a group whose gradient is
        zero, which shows no way up.

    Raises:
        ArgumentError: If an argument cannot be used, or the samples cannot be regrouped.

    References:
        Foret et al., ICLR 2021, section 4.1.

    Example:
        >>> import landscapex as lx
        >>> objective = lx.Objective(*lx.examples.digits())
        >>> found = lx.sharpness.m_sharpness(objective, 100, groups=4)
        >>> len(found.increases), found.value > 0, found.standard_error > 0
        (4, True, True)
    """
    ball = _Ball(
        check_positive("rho", rho),
        check_count("steps", steps, 1),
        _check_eta(eta) if adaptive else None,
    )
    check_seed(seed)
    if m is not None:
        check_count("m", m, 1)
    if groups is not None:
        check_count("groups", groups, 2)
    with probing(objective, center, gradients=True) as probe:
        parts = _groups(probe.session, m, seed)
        if groups is not None and groups > len(parts):
            raise ArgumentError(f"`groups` must be at most {len(parts)}, got {groups}.")
        chosen = _order(len(parts), f"{seed}/m-sharpness/groups")[:groups]
        loss = probe.center()
        found = [_group_rise(probe, parts[i], ball) for i in sorted(chosen)]
        rises, weights = np.array(found).T
        mean, error = weighted_mean(rises, weights, len(parts))
        settings = {"m": m, **ball.settings, "groups": len(chosen), "of": len(parts), "seed": seed}
        return probe.outcome(
            "m_sharpness",
            mean,
            loss,
            settings,
            standard_error=error,
            degrees=math.inf if error is None else len(chosen) - 1,
            increases=rises,
        )


@dataclass(frozen=True)
class _Ball:
    """Where the worst loss is sought, and how; ``eta`` None is the ball of `sam`."""

    rho: float
    steps: int
    eta: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        own = {"rho": self.rho, "steps": self.steps}
        return own if self.eta is None else {**own, "eta": self.eta}

    def scale(self, center: Tensor) -> Tensor | None:
        """The extent along each parameter, ``(P,)`` float64; None for 1."""
        return None if self.eta is None else center.double().abs() + self.eta


def _check_eta(eta: object) -> float:
    if not isinstance(eta, Real) or isinstance(eta, bool) or not 0 <= float(eta) < math.inf:
        raise ArgumentError(f"`eta` must be a finite number of at least 0, got {eta!r}.")
    return float(eta)


def _worst(probe: Probe, measure: str, ball: _Ball) -> Sharpness:
    loss = probe.center()
    path = _climb(probe, loss, ball)
    if not path:
        raise ArgumentError(
            "the gradient at the point must not be zero, which shows no way up, got length 0; "
            "see average_case."
        )
    value, displacement = _best(path)
    rises = [rise for rise, _ in path]
    return probe.outcome(
        measure, value, loss, ball.settings, increases=rises, displacement=displacement
    )


def _climb(probe: Probe, loss: float, ball: _Ball) -> list[tuple[float, Tensor]]:
    """Ascend, in coordinates in which the ball is round, until the gradient is zero.

    Args:
        probe: Evaluates.
        loss: At the centre.
        ball: Where to stay.

    Returns:
        The rise and the displacement after each step.
    """
    scale = ball.scale(probe.session.center)
    inside: Tensor | None = None  # [P] in units of `scale`
    displacement: Tensor | None = None
    path: list[tuple[float, Tensor]] = []
    for _ in range(ball.steps):
        slope = probe.gradient(displacement)
        slope = slope if scale is None else slope * scale
        length = float(torch.linalg.vector_norm(slope))
        if length == 0:
            break  # nothing shows a way up
        step = slope * (ball.rho / length)
        inside = step if inside is None else inside + step
        if (radius := float(torch.linalg.vector_norm(inside))) > ball.rho:
            inside *= ball.rho / radius
        displacement = (inside if scale is None else inside * scale).to(probe.space.dtype)
        path.append((probe.loss(displacement) - loss, displacement))
    return path


def _best(path: list[tuple[float, Tensor]]) -> tuple[float, Tensor]:
    """The largest rise; NaN only if there is no other."""
    return max(path, key=lambda pair: -math.inf if math.isnan(pair[0]) else pair[0])


def _group_rise(probe: Probe, part: Batch, ball: _Ball) -> tuple[float, float]:
    """The worst rise of one group of samples, and its weight in the loss."""
    engine = _engine_of(probe.session, part)
    inner = Probe(probe.session, engine)
    try:
        start = inner.center()
    except EmptyDataError:  # none of its labels counts
        return 0.0, 0.0
    weight = sum(row[0] for row in engine.totals["data"].weights())
    path = _climb(inner, start, ball)
    probe.losses += inner.losses
    probe.gradients += inner.gradients
    return (_best(path)[0] if path else 0.0), weight


def _groups(session: Session, m: int | None, seed: int) -> list[Batch]:
    """The samples of the first data set, dealt into groups; or its batches as they are."""
    data = next(iter(session.engine.data.values()))
    if m is None:
        return list(data)
    if not (session.engine.measure.regroupable and data.separable):
        raise ArgumentError(
            "`m` must be None, for the objective's own batches, unless the loss is torch's own mean"
            f" over samples and the data are tensors in memory, got {m}."
        )
    count = data.num_samples
    if m > count:
        raise ArgumentError(f"`m` must be at most {count}, the number of samples, got {m}.")
    # on the CPU: an index there serves data on every device
    order = torch.tensor(_order(count, f"{seed}/m-sharpness/samples"), device="cpu")
    dealt = map_leaves(data.head(count), lambda leaf: leaf[order])
    return list(regrouped([dealt], [count], m))


def _order(count: int, stream: str) -> list[int]:
    """A random order, the same in every version of torch and NumPy."""
    keys = torch.empty(count, dtype=torch.float64, device="cpu")
    gaussian_(keys, stream)
    found: list[int] = torch.argsort(keys, stable=True).tolist()
    return found


def _engine_of(session: Session, part: Batch) -> EagerEngine:
    """What evaluates one group alone, otherwise as the session does."""
    engine = session.engine
    frozen = batches.freeze([part], device=session.space.device, cache="device")
    return EagerEngine(
        session.space,
        engine.measure,
        {"data": frozen},
        bn=engine.bn,
        precision=engine.precision,
        weight_decay=engine.weight_decay,
        common_seed=engine.common_seed,
    )


def weighted_mean(
    values: np.ndarray, weights: np.ndarray, population: int
) -> tuple[float, float | None]:
    """The mean of some groups, as an estimate of that of all (the ratio estimator).

    Args:
        values: Of the groups that were taken, ``(k,)``.
        weights: Theirs, ``(k,)``.
        population: How many groups there are.

    Returns:
        The mean and its standard error; None if all groups were taken.
    """
    mean = float(np.sum(weights * values) / np.sum(weights))
    count = len(values)
    if count == population:
        return mean, None
    spread = np.sum((weights * (values - mean)) ** 2) / (count - 1)
    left = 1 - count / population  # of a finite population
    return mean, float(np.sqrt(left * spread / count) / np.mean(weights))
