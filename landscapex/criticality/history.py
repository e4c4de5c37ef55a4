"""Gradient and curvature along a run: does training come to rest at critical points?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from landscapex._arrays import Array, read_only
from landscapex.criticality.points import gradient_curvature
from landscapex.curvature.operators import hessian
from landscapex.errors import ArgumentError, ArgumentTypeError
from landscapex.objective import Objective, Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class GradientHistory:
    """The loss, the length of the gradient and the curvature along it, at points of a run.

    Attributes:
        steps: ``(T,)``: where in the run.
        loss: ``(T,)``.
        gradient_norm: ``(T,)``.
        curvature: ``(T,)``: ``<g, H g> / <g, g>``; NaN where the gradient is zero.
    """

    steps: Array
    loss: Array
    gradient_norm: Array
    curvature: Array

    def __post_init__(self) -> None:
        for name in ("steps", "loss", "gradient_norm", "curvature"):
            array = np.array(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, read_only(array))

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        return (
            f"GradientHistory({len(self)} points: loss {self.loss[0]:.4g} to {self.loss[-1]:.4g}, "
            f"gradient {self.gradient_norm[0]:.4g} to {self.gradient_norm[-1]:.4g})"
        )

    def plot(self) -> Figure:
        """Draw the three below each other.

        Returns:
            The figure.
        """
        from landscapex import plot

        return plot.gradient_history(self)


def gradient_history(
    objective: Objective, points: Iterable[Point], steps: Sequence[float] | None = None
) -> GradientHistory:
    """Take loss, gradient and the curvature along it at points of a run.

    The gradient of a network in training need not go to zero, and often grows while the loss falls:
    the run then has not come near a critical point. Each point takes a loss, a gradient and one
    product with the Hessian, over all data.

    Args:
        objective: Of the loss.
        points: State_dicts, flat vectors or modules, in order.
        steps: Where in the run they were; None counts them.

    Returns:
        The three numbers at every point.

    Raises:
        ArgumentError: If there are no points, or not one step for each.
        ArgumentTypeError: If ``objective`` is none.

    References:
        Goodfellow, Bengio, Courville, "Deep Learning", MIT Press 2016, figure 8.1.

    Example:
        >>> import torch, landscapex as lx
        >>> x = torch.ones(4, 1)
        >>> objective = lx.Objective(torch.nn.Linear(1, 1, bias=False), (x, x), "mse_loss")
        >>> history = gradient_history(objective, [torch.tensor([3.0]), torch.tensor([2.0])])
        >>> history.gradient_norm.tolist(), history.curvature.tolist()
        ([4.0, 2.0], [2.0, 2.0])
    """
    if not isinstance(objective, Objective):
        raise ArgumentTypeError(
            f"`objective` must be an Objective, got {type(objective).__name__}."
        )
    rows = [_at(objective, point) for point in points]
    if not rows:
        raise ArgumentError("`points` must hold at least one point, got none.")
    places = range(len(rows)) if steps is None else steps
    if len(places) != len(rows):
        raise ArgumentError(f"`steps` must be one per point ({len(rows)}), got {len(places)}.")
    loss, norm, curvature = np.array(rows).T
    return GradientHistory(np.array(places), loss, norm, curvature)


def _at(objective: Objective, point: Point) -> tuple[float, float, float]:
    matrix = hessian(objective, center=point)
    loss = objective.loss(point)
    if not bool(matrix.gradient.any()):
        return loss, 0.0, float("nan")
    found = gradient_curvature(matrix.gradient, matrix)
    return loss, found.gradient_norm, found.curvature
