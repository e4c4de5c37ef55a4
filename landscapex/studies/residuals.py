"""A training run seen from the line to its solution: progress along it, and the rest.

With ``u`` the unit vector from the first checkpoint to the
solution, every checkpoint is ``theta_0 + alpha(t) u + beta(t) v(t)``: its projection, and a
residual of length ``beta(t)`` whose direction ``v(t)`` is another one at every ``t``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from landscapex import _ops
from landscapex._arrays import Array, read_only
from landscapex.errors import ArgumentError, ArgumentTypeError
from landscapex.model.parameters import ParameterSpace
from landscapex.model.states import Tensors, tensors_of
from landscapex.objective import Objective
from landscapex.trajectories.principal import Rows
from landscapex.trajectories.runs import open_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RESOLUTION = 8 * np.finfo(np.float64).eps  # relative: a residual below it is rounding
_STREAM = 0x5EED  # of directions that stand for those of residuals that are zero


class Points(Protocol):
    """Points that are read one after the other, as often as needed."""

    @property
    def steps(self) -> NDArray[np.int64]:
        """``(T,)``."""

    def __iter__(self) -> Iterator[Tensor]:
        """Every point: ``(P,)`` float64 on the CPU."""

    def vector(self, t: int) -> Tensor:
        """One point: ``(P,)`` float64 on the CPU."""


@dataclass(frozen=True, eq=False, repr=False)
class ResidualCoordinates:
    """Projection and residual of every checkpoint; arrays are float64 and read-only.

    Attributes:
        steps: ``(T,)`` int64.
        alpha: ``(T,)``: the coordinate along the line from the first checkpoint to the solution,
            in the unit of the parameters: 0 at the first, `length` at the solution.
        beta: ``(T,)``: the distance from this line; 0 where float64 cannot tell it from 0.
        norm: ``(T,)``: the length of the parameters themselves.
        length: The distance from the first checkpoint to the solution.
        solution: Which checkpoint the solution is; None if it is none of them.
        label: What pictures call it.
    """

    steps: NDArray[np.int64]
    alpha: Array
    beta: Array
    norm: Array
    length: float
    solution: int | None
    label: str
    _line: Line
    _points: Points

    def __len__(self) -> int:
        return len(self.alpha)

    def __repr__(self) -> str:
        far = int(np.nanargmax(self.beta)) if np.isfinite(self.beta).any() else 0
        return (
            f"ResidualCoordinates({len(self)} checkpoints, {self.length:.4g} to the solution, "
            f"largest residual {self.beta[far]:.4g} at step {self.steps[far]})"
        )

    @property
    def line_share(self) -> Array:
        """The part of the squared distance from the start that lies in the line, ``(T,)``.

        What remains is lost in a one-dimensional picture. NaN at the start itself.
        """
        squares = self.alpha**2 + self.beta**2
        with np.errstate(invalid="ignore"):
            return np.where(squares > 0, self.alpha**2 / np.where(squares > 0, squares, 1), np.nan)

    @property
    def relative_residual(self) -> Array:
        """The residual in units of the length of the parameters, ``(T,)``."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.beta / self.norm

    @property
    def unit(self) -> Tensor:
        """The unit vector ``u`` from the first checkpoint to the solution, ``(P,)`` float64."""
        return self._line.unit.clone()

    def direction(self, t: int) -> Tensor:
        """The direction ``v(t)`` of a residual, read from its checkpoint.

        Args:
            t: Which checkpoint, negative from the end.

        Returns:
            A unit vector ``(P,)`` float64, orthogonal to `unit`; where the residual is 0, one that
            is drawn from a fixed seed.

        Raises:
            ArgumentError: If there is no such checkpoint, it is not finite, or there is but one
                parameter.
        """
        if not -len(self) <= t < len(self):
            raise ArgumentError(f"`t` must be from {-len(self)} to {len(self) - 1}, got {t}.")
        t %= len(self)
        if not math.isfinite(self.beta[t]):
            raise ArgumentError(f"checkpoint {t} must be finite, got NaN or infinity in it.")
        self._line.refuse_one_dimension()
        return self._across(t, self._points.vector(t))

    def _across(self, t: int, point: Tensor) -> Tensor:
        """`direction` of a checkpoint that has been read."""
        residual = self._line.split(point)[1]
        if self.beta[t] == 0:
            residual = torch.empty_like(residual)
            _ops.gaussian_(residual, _STREAM, 0)
            residual -= (residual @ self._line.unit) * self._line.unit
            residual -= (residual @ self._line.unit) * self._line.unit
        return residual / torch.linalg.vector_norm(residual)

    def random_walk(self) -> tuple[Array, Array]:
        """What a random walk of as many steps would draw, in units of `length`.

        Returns:
            ``(alpha, beta)`` of `random_walk_shape`, at 500 evenly spaced times.
        """
        first, last = self.steps[0], self.steps[-1]
        end = self.steps[-1 if self.solution is None else self.solution]
        return random_walk_shape(np.linspace(0.0, (last - first) / max(end - first, 1), 500))

    def plot(self, *others: ResidualCoordinates, **options: Any) -> Figure:
        """Draw the residual over the projection, beside the shape that a random walk has.

        Args:
            *others: Further runs in the same picture.
            **options: Those of `landscapex.plot.residuals`.

        Returns:
            A figure, which notebooks display.
        """
        from landscapex import plot

        return plot.residuals(self, *others, **options)


@dataclass(frozen=True, eq=False)
class Line:
    """The line from the first checkpoint to the solution.

    Attributes:
        start: ``(P,)`` float64.
        unit: ``(P,)`` float64, of length 1.
        length: Of the way between them.
    """

    start: Tensor
    unit: Tensor
    length: float

    @classmethod
    def between(cls, start: Tensor, end: Tensor) -> Line:
        """The line through two points.

        Args:
            start: ``(P,)``.
            end: ``(P,)``.

        Returns:
            The line.

        Raises:
            ArgumentError: If they are the same, or not finite.
        """
        way = end.double() - start.double()
        length = float(torch.linalg.vector_norm(way))
        if not (math.isfinite(length) and length > 0):
            raise ArgumentError(
                "the solution must be a finite distance above 0 from the first checkpoint, got "
                f"{length}."
            )
        return cls(start.double(), way / length, length)

    def split(self, point: Tensor) -> tuple[float, Tensor]:
        """Coordinate along the line, and the residual as a vector.

        The length of the residual comes from its entries: ``|d|^2 - alpha^2`` has no correct digit
        left where the residual is a small part of the way.

        Args:
            point: ``(P,)``.

        Returns:
            ``alpha``, and ``(P,)`` float64.
        """
        residual = point.double() - self.start
        alpha = residual @ self.unit
        residual = residual - alpha * self.unit
        again = residual @ self.unit  # what rounding left
        return float(alpha + again), residual.sub_(again * self.unit)

    def refuse_one_dimension(self) -> None:
        """Raise where the line is all there is.

        Raises:
            ArgumentError: If there is but one parameter.
        """
        if self.unit.numel() < 2:
            raise ArgumentError(
                "a direction across the line to the solution must have at least 2 parameters to "
                f"lie in, got {self.unit.numel()}."
            )


def residual_coordinates(
    checkpoints: Any,
    model: nn.Module | Objective | None = None,
    *,
    solution: Any = -1,
    label: str = "",
) -> ResidualCoordinates:
    r"""Split every checkpoint into its projection on the line to the solution, and the residual.

    With :math:`u = (\theta_s - \theta_0) / \lVert \theta_s - \theta_0 \rVert`: :math:`\alpha(t) =
    \langle \theta(t) - \theta_0, u \rangle`, :math:`\beta(t) = \lVert \theta(t) - \theta_0 -
    \alpha(t) u \rVert`. Checkpoints are read twice, one at a time; computed in float64.

    In many dimensions the shape of such a plot says little: a random walk draws a semicircle and a
    vertical line (see `landscapex.controls.random_walk`). What counts is how large the residual is
    beside the parameters.

    Args:
        checkpoints: A run: see `landscapex.trajectory`.
        model: Which parameters count: a module, or an `Objective`. Flat vectors need none.
        solution: Which checkpoint is the solution (of early stopping, say), negative from the end;
            or a state that is none of them.
        label: What pictures call it.

    Returns:
        The coordinates.

    Raises:
        ArgumentError: If there is no such solution, or it is the first checkpoint itself.
        ArgumentTypeError: If checkpoints are states, and there is no model.

    References:
        Goodfellow, Vinyals, Saxe, "Qualitatively characterizing neural network optimization
        problems", ICLR 2015, appendix.

    Example:
        >>> import torch
        >>> run = [torch.tensor([0.0, 0.0]), torch.tensor([1.0, 2.0]), torch.tensor([4.0, 0.0])]
        >>> residual_coordinates(run).alpha, residual_coordinates(run).beta
        (array([0., 1., 4.]), array([0., 2., 0.]))
    """
    points = points_of(checkpoints, model)
    end, index = solution_of(solution, points)
    return split_points(points, end, solution=index, label=label)


def random_walk_shape(tau: ArrayLike) -> tuple[Array, Array]:
    r"""Projection and residual of a random walk in infinitely many dimensions.

    In units of the distance to the solution: :math:`\min(\tau, 1)`, and :math:`\sqrt{\tau (1 -
    \tau)}` before the solution, :math:`\sqrt{\tau - 1}` after it: a semicircle, then a vertical
    line.

    Args:
        tau: Steps in units of the step of the solution, any shape.

    Returns:
        ``(alpha, beta)`` of the same shape.

    Example:
        >>> alpha, beta = random_walk_shape([0.0, 0.5, 1.0, 2.0])
        >>> alpha.tolist(), beta.tolist()
        ([0.0, 0.5, 1.0, 1.0], [0.0, 0.5, 0.0, 1.0])
    """
    t = np.asarray(tau, dtype=np.float64)
    return np.minimum(t, 1.0), np.sqrt(np.where(t <= 1, t * (1 - t), t - 1))


def split_points(
    points: Points, end: Tensor, *, solution: int | None, label: str
) -> ResidualCoordinates:
    """Projection and residual of points that are known by reading them.

    Args:
        points: At least one.
        end: Where the line ends, ``(P,)``.
        solution: Which of the points this is.
        label: What pictures call it.

    Returns:
        The coordinates.
    """
    line = Line.between(points.vector(0), end)
    rows = []
    for vector in points:
        along, residual = line.split(vector)
        away = float(torch.linalg.vector_norm(residual))
        away = 0.0 if away <= _RESOLUTION * abs(along) else away
        rows.append((along, away, float(torch.linalg.vector_norm(vector))))
    alpha, beta, norm = (read_only(np.array(column)) for column in zip(*rows, strict=True))
    steps = read_only(np.asarray(points.steps))
    return ResidualCoordinates(steps, alpha, beta, norm, line.length, solution, label, line, points)


def points_of(checkpoints: Any, model: nn.Module | Objective | None) -> StoredPoints:
    """The checkpoints of a run as points.

    Args:
        checkpoints: What `runs.open_run` takes, or an array ``(T, P)``.
        model: See `residual_coordinates`.

    Returns:
        The points.
    """
    if isinstance(checkpoints, np.ndarray):
        checkpoints = torch.from_numpy(checkpoints)
    space = None
    if model is not None:
        space = model.space if isinstance(model, Objective) else ParameterSpace(model)
    return StoredPoints(checkpoints, space)


class StoredPoints:
    """Checkpoints, read when they are needed.

    Args:
        checkpoints: What `runs.open_run` takes.
        space: The parameters that count; None for flat vectors.

    Attributes:
        run: The checkpoints.
    """

    def __init__(self, checkpoints: Any, space: ParameterSpace | None) -> None:
        self.run = open_run(checkpoints)
        self._space = space
        self._rows = None if space is None else Rows(self.run, space, kept=0)

    @property
    def steps(self) -> NDArray[np.int64]:
        """Of the checkpoints."""
        return self.run.steps

    def __len__(self) -> int:
        return len(self.run)

    def __iter__(self) -> Iterator[Tensor]:
        """The points in order."""
        return (self.vector(t) for t in range(len(self)))

    def vector(self, t: int) -> Tensor:
        """One point."""
        return self.read(t)[0]

    def read(self, t: int) -> tuple[Tensor, Tensors]:
        """One checkpoint, as a point and as it is.

        Args:
            t: Which one.

        Returns:
            ``(P,)`` float64 on the CPU, and all of its tensors under the names of the model.

        Raises:
            ArgumentTypeError: As `of_state`.
        """
        if self._rows is not None:
            flat, state = self._rows.read(t)
            return flat.double(), state
        state = self.run[t].read()
        return self.of_state(state, self.run[t].name), state

    def of_state(self, state: Any, what: str) -> Tensor:
        """A state as a point.

        Args:
            state: A module, a state_dict, a path or a flat vector.
            what: Its name in errors.

        Returns:
            ``(P,)`` float64 on the CPU.

        Raises:
            ArgumentTypeError: If it has names, and there is no model to order them.
        """
        if self._space is not None:
            tensors = tensors_of(state, self._space.model)
            return self._space.vector(tensors, what=what).double().cpu()
        if isinstance(state, Tensor):
            return state.detach().double().cpu().reshape(-1)
        raise ArgumentTypeError(
            f"`model` must be given unless all checkpoints are flat vectors, got None and {what}, "
            f"a {type(state).__name__}."
        )


def solution_of(solution: Any, points: StoredPoints) -> tuple[Tensor, int | None]:
    """The end of the line, and which checkpoint it is.

    Args:
        solution: See `residual_coordinates`.
        points: The run.

    Returns:
        ``(P,)`` float64, and the index; None if it is none of the checkpoints.

    Raises:
        ArgumentError: If there is no such checkpoint.
    """
    if isinstance(solution, bool) or not isinstance(solution, int | np.integer):
        return points.of_state(solution, "`solution`"), None
    count = len(points)
    if not -count <= solution < count:
        raise ArgumentError(
            f"`solution` must be one of the {count} checkpoints, got {int(solution)}."
        )
    index = int(solution) % count
    return points.vector(index), index
