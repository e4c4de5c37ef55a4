"""Runs that mean nothing, to hold beside runs that may mean something.

Exposed as ``landscapex.controls``: random walks, gradient descent on a convex bowl, and planes in
random directions. They give the same results as the studies they control.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from landscapex._directions import Axis, Directions, layout_of
from landscapex._draws import gaussian_
from landscapex.errors import ArgumentError, ArgumentTypeError
from landscapex.model.parameters import ParameterSpace, unwrap
from landscapex.model.states import named_tensors
from landscapex.objective import Objective
from landscapex.studies.residuals import (
    Line,
    ResidualCoordinates,
    points_of,
    random_walk_shape,
    solution_of,
    split_points,
)
from landscapex.trajectories.plane import Trajectory, trajectory

_CONDITION = 1e3  # of the default bowl


def random_walk(
    size: int, *, steps: int = 1000, solution: int = 900, seed: int = 0
) -> ResidualCoordinates:
    """Projection and residual of a random walk, one step of which is declared the solution.

    Every step adds independent standard normal numbers. Nothing is kept of the walk but its
    coordinates: it is drawn again when it is read again.

    Args:
        size: Dimension ``n``; the larger, the closer the plot comes to `random_walk_shape`.
        steps: How many.
        solution: The step that is declared the solution; the walk goes on after it.
        seed: Of the steps.

    Returns:
        The coordinates of ``steps + 1`` points.

    Raises:
        ArgumentError: If ``size`` is below 1, or ``solution`` not from 1 to ``steps``.
        ArgumentTypeError: If a number is not whole.

    References:
        Goodfellow, Vinyals, Saxe, "Qualitatively characterizing neural network optimization
        problems", ICLR 2015, appendix.

    Example:
        >>> walk = random_walk(1000, steps=20, solution=10)
        >>> len(walk), walk.solution, float(walk.beta[10])
        (21, 10, 0.0)
    """
    for name, value in (("size", size), ("steps", steps), ("solution", solution), ("seed", seed)):
        _check_whole(name, value)
    if size < 1:
        raise ArgumentError(f"`size` must be at least 1, got {size}.")
    if not 1 <= solution <= steps:
        raise ArgumentError(f"`solution` must be from 1 to {steps} steps, got {solution}.")
    walk = _Walk(size, steps, seed)
    label = f"random walk in {size:,} dimensions"
    return split_points(walk, walk.vector(solution), solution=solution, label=label)


def convex_descent(
    spectrum: int | Sequence[float] = 100,
    *,
    learning_rate: float = 1.0,
    momentum: float = 0.0,
    steps: int = 1000,
    seed: int = 0,
) -> ResidualCoordinates:
    r"""Projection and residual of gradient descent on :math:`\frac12 \sum_i \lambda_i x_i^2`.

    It starts at independent standard normal numbers. The line leads to the true minimiser, not to
    the end of the run, so that runs of several settings can share one plot. Momentum is that of
    Polyak: ``m <- momentum m - learning_rate gradient``, ``x <- x + m``.

    Args:
        spectrum: The eigenvalues ``(n,)``, above 0; or how many, log-spaced from 1 to 1/1000.
        learning_rate: Below ``2 (1 + momentum) / max(spectrum)``, where it diverges.
        momentum: At least 0, below 1.
        steps: How many.
        seed: Of the start.

    Returns:
        The coordinates of ``steps + 1`` points.

    Raises:
        ArgumentError: If an argument is out of its range.
        ArgumentTypeError: If ``steps`` or ``seed`` is not whole.

    References:
        Goodfellow, Vinyals, Saxe, "Qualitatively characterizing neural network optimization
        problems", ICLR 2015, appendix.

    Example:
        >>> run = convex_descent([1.0, 0.1], learning_rate=0.5, steps=50)
        >>> run.solution is None, bool(abs(run.alpha[-1] / run.length - 1) < 0.1)
        (True, True)
    """
    if isinstance(spectrum, int):
        spectrum = np.geomspace(1.0, 1.0 / _CONDITION, spectrum).tolist() if spectrum > 0 else []
    eigenvalues = torch.tensor(list(spectrum), dtype=torch.float64, device="cpu")
    if not len(eigenvalues) or not bool((torch.isfinite(eigenvalues) & (eigenvalues > 0)).all()):
        raise ArgumentError(f"`spectrum` must be finite numbers above 0, got {list(spectrum)}.")
    if not 0 <= momentum < 1:
        raise ArgumentError(f"`momentum` must be at least 0 and below 1, got {momentum}.")
    limit = 2 * (1 + momentum) / float(eigenvalues.max())
    if not 0 < learning_rate < limit:
        raise ArgumentError(
            f"`learning_rate` must be above 0 and below {limit:.6g}, where gradient descent "
            f"diverges, got {learning_rate}."
        )
    for name, value in (("steps", steps), ("seed", seed)):
        _check_whole(name, value)
    if steps < 1:
        raise ArgumentError(f"`steps` must be at least 1, got {steps}.")
    x = _gaussian(len(eigenvalues), seed, "convex descent", 0)
    m = torch.zeros_like(x)
    visited = [x]
    for _ in range(steps):
        m = momentum * m - learning_rate * eigenvalues * x
        x = x + m
        visited.append(x)
    label = f"convex: learning rate {learning_rate:g}, momentum {momentum:g}"
    points = points_of(torch.stack(visited), None)
    return split_points(points, torch.zeros_like(x), solution=None, label=label)


def random_point(
    model: Objective | nn.Module, *, scale: float = 1.0, seed: int = 0
) -> dict[str, Tensor]:
    """A random start of the line to a solution: Gaussian tensors as long as those of a model.

    Args:
        model: The solution: a module, or the model of an `Objective`.
        scale: How many times as long; 3 for a point of large norm.
        seed: Of the draw.

    Returns:
        A state_dict for ``model_a`` of `landscapex.interpolate`: all parameters that can move are
        random, tied ones alike, and buffers are those of the model.

    Raises:
        ArgumentError: If ``scale`` is not a finite number above 0.

    References:
        Goodfellow, Vinyals, Saxe, "Qualitatively characterizing neural network optimization
        problems", ICLR 2015.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(30, 2)
        >>> start = random_point(layer, scale=3.0)["weight"]
        >>> round(float(start.norm() / layer.weight.norm()), 4)
        3.0
    """
    if not (isinstance(scale, int | float) and 0 < scale < math.inf):
        raise ArgumentError(f"`scale` must be a finite number above 0, got {scale!r}.")
    _check_whole("seed", seed)
    module = model.model if isinstance(model, Objective) else unwrap(model)
    space = ParameterSpace(module, lambda _, p: p.is_floating_point() or p.is_complex())
    state = {n: t.detach().clone() for n, t in named_tensors(module).items()}
    for e, p in zip(space.entries, space.parameters, strict=True):
        if not e.size:
            continue
        drawn = _gaussian(e.size, seed, f"random point/{e.name}", 0).view(e.real_shape)
        length = scale * float(torch.linalg.vector_norm(_real(p.detach()).double()))
        drawn *= length / float(torch.linalg.vector_norm(drawn))
        for name in (e.name, *e.aliases):
            _real(state[name]).copy_(drawn)
    return state


def random_directions(
    model: Objective | nn.Module, n: int = 2, *, seed: int = 0, along: Tensor | None = None
) -> Directions:
    """Orthonormal Gaussian directions over all chosen parameters, biases included.

    Unlike `landscapex.directions.random` they are not scaled to the model: they span a random
    linear subspace.

    Args:
        model: An `Objective`, or a module.
        n: How many.
        seed: Of the draw.
        along: A vector ``(P,)`` that becomes the first direction, made a unit vector; the others
            are random and orthogonal to it.

    Returns:
        The directions, of length 1.

    Raises:
        ArgumentError: If ``n`` is below 1 or above the number of parameters, or ``along`` is zero.

    Example:
        >>> import torch
        >>> drawn = random_directions(torch.nn.Linear(30, 2))
        >>> float(abs(drawn.cosine()[0, 1])) < 1e-6
        True
    """
    space = model.space if isinstance(model, Objective) else ParameterSpace(model)
    _check_whole("n", n)
    if not 1 <= n <= space.size:
        raise ArgumentError(f"`n` must be from 1 to {space.size}, got {n}.")
    rows: list[Tensor] = []
    axes: list[Axis] = []
    for k in range(n):
        if k == 0 and along is not None:
            row, axis = along.detach().double().cpu().clone(), Axis("along the run", "given")
        else:
            row = _gaussian(space.size, seed, "random subspace", k)
            axis = Axis(f"random unit direction {k + 1}", "random", seed=seed)
        for _ in range(2):  # once more, for what rounding left
            for other in rows:
                row -= (row @ other) * other
        length = float(torch.linalg.vector_norm(row))
        if not (math.isfinite(length) and length > 0):
            raise ArgumentError(f"`along` must have a finite length above 0, got {length}.")
        rows.append(row / length)
        axes.append(axis)
    vectors = torch.stack(rows).to(space.device, space.dtype)
    return Directions(vectors, tuple(axes), layout_of(space))


def random_plane(
    checkpoints: Any,
    objective: Objective | nn.Module,
    *,
    half: bool = False,
    solution: Any = -1,
    seed: int = 0,
    progress: bool = True,
) -> Trajectory:
    """A training run in a random plane: a path that says little, where the loss hardly changes.

    Args:
        checkpoints: A run: see `landscapex.trajectory`.
        objective: See `landscapex.trajectory`.
        half: Take the line to the solution as the first direction. Unlike the cost strip, which
            has the same first axis, this is a linear subspace; coordinate 0 is the first
            checkpoint, else the solution.
        solution: Which checkpoint is the solution.
        seed: Of the directions.
        progress: Show a bar.

    Returns:
        The trajectory; ``lx.surface(objective, directions=...)`` draws the loss of the plane.

    Raises:
        ArgumentError: If ``solution`` is not the number of a checkpoint.

    References:
        Goodfellow, Vinyals, Saxe, "Qualitatively characterizing neural network optimization
        problems", ICLR 2015, appendix.

    Example:
        >>> import torch
        >>> run = [torch.zeros(8), torch.ones(8), 2 * torch.ones(8)]
        >>> path = random_plane(run, torch.nn.Linear(3, 2), half=True, progress=False)
        >>> path.coordinates[:, 0].round(3).tolist()
        [0.0, 2.828, 5.657]
    """
    points = points_of(checkpoints, objective)
    end, index = solution_of(solution, points)
    if index is None:
        raise ArgumentError("`solution` must be the number of a checkpoint, got a state.")
    along = Line.between(points.vector(0), end).unit if half else None
    return trajectory(
        points.run, objective, origin="first" if half else index, progress=progress,
        directions=random_directions(objective, 2, seed=seed, along=along),
    )  # fmt: skip


class _Walk:
    """The points of a random walk, drawn again whenever they are read.

    Attributes:
        steps: 0, 1, ..., T.
    """

    def __init__(self, size: int, steps: int, seed: int) -> None:
        self._size, self._seed = size, seed
        self.steps: NDArray[np.int64] = np.arange(steps + 1)

    def __iter__(self) -> Iterator[Tensor]:
        """Every point."""
        point = torch.zeros(self._size, dtype=torch.float64, device="cpu")
        yield point.clone()
        for k in self.steps[1:].tolist():
            point += _gaussian(self._size, self._seed, "random walk", k)
            yield point.clone()

    def vector(self, t: int) -> Tensor:
        """One point: the sum of all steps before it."""
        return next(point for k, point in enumerate(self) if k == t)


def _gaussian(size: int, seed: int, purpose: str, number: int) -> Tensor:
    """Independent standard normal numbers, float64 on the CPU."""
    out = torch.empty(size, dtype=torch.float64, device="cpu")
    gaussian_(out, f"{seed}/{purpose}/{number}")
    return out


def _real(t: Tensor) -> Tensor:
    """Complex numbers as pairs; a view."""
    return torch.view_as_real(t) if t.is_complex() else t


def _check_whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ArgumentTypeError(f"`{name}` must be a whole number, got {value!r}.")


__all__ = [
    "convex_descent",
    "random_directions",
    "random_plane",
    "random_point",
    "random_walk",
    "random_walk_shape",
]
