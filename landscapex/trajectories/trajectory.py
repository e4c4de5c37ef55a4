"""A training run in a plane: what `trajectories.trajectory` returns, and how it is stored."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from landscapex._arrays import read_only
from landscapex._directions import Axis, Directions, check_usable
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    DirectionError,
    ParameterMismatchError,
)
from landscapex.model import states
from landscapex.model.parameters import unwrap
from landscapex.storage import checkpoints, tensor_file
from landscapex.trajectories.principal import Rows, fit, random_walk_limit
from landscapex.trajectories.runs import State

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from landscapex.grids.results import Surface

_FORMAT = "landscapex trajectory 1"
_MARGIN = 0.1  # drawn around a trajectory, of its extent
_DROP = 0.6  # a learning rate below this part of the one before has dropped


@dataclass(frozen=True)
class Projection:
    """A point relative to a plane.

    Attributes:
        coordinates: ``(K,)`` along the directions of the plane.
        residual: Distance from the plane; with lengths ``"cos"``, from the point drawn.
        distance: Distance from the plane's origin.
    """

    coordinates: np.ndarray
    residual: float
    distance: float


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory:
    """A training run in a plane through one of its checkpoints.

    Checkpoint t is at ``center + sum_k coordinates[t, k] directions[k]``, apart from what
    ``residuals[t]`` measures. Arrays are read-only; what is not known is NaN. Checkpoints that are
    not finite have no coordinates and no loss.

    For `onto`, it remembers where its checkpoints are: files are read again then, and must be what
    they were. Checkpoints that were given as tensors or modules are copied, ``4 T P`` bytes for
    float32; beyond 512 MiB it remembers the tensors themselves.

    Attributes:
        directions: ``(K, P)``; of length 1 if they are principal components.
        center: The plane's origin: the state of one checkpoint, buffers included.
        origin: Its number.
        steps: ``(T,)`` int64.
        epochs: ``(T,)``.
        rates: ``(T,)`` learning rates; the largest where there are several.
        recorded: ``(T,)`` losses as the training loop saw them.
        coordinates: ``(T, K)`` along the directions, by least squares.
        residuals: ``(T,)`` distances from the plane.
        distances: ``(T,)`` distances from the origin.
        columns: Names of the values: "loss", then metrics and losses of other data.
        values: ``(T, M)`` true values of the checkpoints, each with its own buffers.
        drawn: ``(T, M)`` values at the points of the plane where the checkpoints are drawn, with
            the buffers of the origin; None if they were not asked for.
        explained: ``(R,)`` shares of the variance of all principal components, largest first;
            empty for given directions.
        walk: ``(R,)`` the same of a random walk in very many dimensions, at the same steps.
        centered: Whether the variance is that about the mean of the checkpoints (else about the
            origin).
        notes: What a reader should know.
        provenance: How the numbers were made.

    Example:
        >>> import torch
        >>> from landscapex.trajectories.plane import trajectory
        >>> walk = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).cumsum(0)
        >>> made = trajectory(list(walk), torch.nn.Linear(3, 2))
        >>> made.coordinates.shape, made.residuals[-1]
        ((5, 2), np.float64(0.0))
    """

    directions: Directions
    center: State
    origin: int
    steps: np.ndarray
    epochs: np.ndarray
    rates: np.ndarray
    recorded: np.ndarray
    coordinates: np.ndarray
    residuals: np.ndarray
    distances: np.ndarray
    columns: tuple[str, ...]
    values: np.ndarray
    drawn: np.ndarray | None
    explained: np.ndarray
    walk: np.ndarray
    centered: bool
    notes: tuple[str, ...]
    provenance: dict[str, Any]
    _rows: Rows | None = None

    def __post_init__(self) -> None:
        """Make the arrays read-only."""
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                object.__setattr__(self, name, read_only(value))

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def losses(self) -> np.ndarray:
        """True losses of the checkpoints ``(T,)``; NaN if there was no objective."""
        if "loss" not in self.columns:
            return np.full(len(self), np.nan)
        return self.values[:, self.columns.index("loss")]

    @property
    def finite(self) -> np.ndarray:
        """Which checkpoints have no NaN and no infinity in their parameters ``(T,)``."""
        return np.isfinite(self.distances)

    @property
    def span(self) -> tuple[tuple[float, float], ...]:
        """Per direction, the coordinates of the checkpoints and a tenth more on either side."""
        pairs = []
        for values in self.coordinates[self.finite].T:
            low, high = float(values.min()), float(values.max())
            room = _MARGIN * (high - low) or 1.0
            pairs.append((low - room, high + room))
        return tuple(pairs)

    @property
    def drops(self) -> tuple[int, ...]:
        """Checkpoints whose learning rate is less than 0.6 of that of the one before."""
        with np.errstate(invalid="ignore"):
            fallen = self.rates[1:] < _DROP * self.rates[:-1]
        return tuple(int(t) for t in np.flatnonzero(fallen) + 1)

    @property
    def walk_limit(self) -> np.ndarray:
        """What `walk` tends to for many evenly spaced checkpoints, ``(R,)``."""
        return random_walk_limit(len(self.explained), center=self.centered)

    def __repr__(self) -> str:
        size = self.directions.vectors.shape[1]
        lines = [
            f"Trajectory of {len(self)} checkpoints, steps {self.steps[0]} to {self.steps[-1]}, "
            f"in {size:,} parameters",
            f"  {'origin':<10} step {self.steps[self.origin]}",
        ]
        for axis, (low, high) in zip(self.directions.axes, self.span, strict=True):
            lines.append(f"  {axis.label}: {low:.4g} to {high:.4g}")
        largest, share = self._worst()
        lines.append(
            f"  {'off plane':<10} at most {largest:.4g} ({share:.0%} of the way from the origin)"
        )
        if "loss" in self.columns:
            first, last = self.losses[[0, -1]]
            lines.append(f"  {'loss':<10} {first:.6g} to {last:.6g}")
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def _worst(self) -> tuple[float, float]:
        """Of the checkpoint farthest from the plane: how far, and as a share of its distance."""
        t = int(np.nanargmax(self.residuals))
        distance = self.distances[t]
        return float(self.residuals[t]), float(self.residuals[t] / distance) if distance else 0.0

    def project(
        self, point: states.State, *, method: Literal["least_squares", "cos"] = "least_squares"
    ) -> Projection:
        """Where a point is relative to the plane.

        Args:
            point: A flat vector ``(P,)``, a state_dict, a module or the path of a checkpoint. All
                names may have a prefix (``module.``, ``_orig_mod.``), and a tied parameter any of
                its names.
            method: See `project`.

        Returns:
            Coordinates, distance from the plane and from its origin.

        Raises:
            ArgumentTypeError: If ``point`` is none of these.
            DirectionError: If a flat vector has another length.
            ParameterMismatchError: If a parameter is missing, or has another shape.
        """
        layout = self.directions.layout
        tied = {names[0]: names for names in self.provenance.get("model", {}).get("tied", [])}
        start, end = (_flat(p, layout, tied) for p in (self.center, point))
        return project(end - start, self.directions, method=method)

    def onto(self, directions: Directions) -> Trajectory:
        """The same run in another plane through the same origin.

        Args:
            directions: Over the same parameters; they need be neither of length 1 nor orthogonal.

        Returns:
            A trajectory with the true losses of this one. What was drawn on the old plane is left
            out.

        Raises:
            ArgumentError: If this trajectory was read from a file: the checkpoints are not in it;
                or if the file of a checkpoint is gone.
            CorruptFileError: If the file of a checkpoint can no longer be read.
            DirectionError: If the directions are over other parameters, zero, or parallel.
            ParameterMismatchError: If a checkpoint has changed.
        """
        if self._rows is None:
            raise ArgumentError(
                "a trajectory must have its checkpoints for `onto`, got one that was read from a "
                "file; use trajectory(checkpoints, objective, directions=...)."
            )
        if directions.layout != self.directions.layout:
            raise DirectionError("`directions` must be over the parameters of the trajectory.")
        check_usable(directions)
        self._rows.load()
        try:
            placed = fit(self._rows, directions.vectors, self.origin)
        finally:
            self._rows.release()
        return replace(
            self, directions=directions, drawn=None,
            coordinates=placed.coordinates, residuals=placed.residuals, distances=placed.distances,
            explained=np.zeros(0), walk=np.zeros(0),
        )  # fmt: skip

    def plot(self, surface: Surface | None = None, column: str = "loss", **options: Any) -> Figure:
        """Draw the path, over the contours of its plane if they are given.

        Args:
            surface: What ``lx.surface(objective, directions=trajectory)`` gave; None for the path
                alone.
            column: What is drawn: of the surface, and of the checkpoints as their colour.
            **options: ``scale``, ``levels`` and ``title``, as for `landscapex.plot.contour`.

        Returns:
            A figure, which notebooks display.

        Raises:
            ArgumentError: If there are not two directions, or the surface has other ones, is
                around another point, or has other buffers.
        """
        from landscapex import plot

        return plot.trajectory(self, surface, column, **options)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything but the checkpoints to a safetensors file with a JSON header.

        Args:
            path: The file; replaced at once when it is complete.

        Returns:
            The absolute path.

        Raises:
            OutputError: If it cannot be written.
        """
        return tensor_file.save(path, _FORMAT, *_parts(self))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Trajectory:
        """Read what `save` wrote.

        Args:
            path: The file.

        Returns:
            The trajectory, without its checkpoints.

        Raises:
            CorruptFileError: If the file is damaged or not one of ours.
        """
        return tensor_file.load(path, _FORMAT, _joined)


def project(
    displacement: Tensor,
    directions: Directions,
    *,
    method: Literal["least_squares", "cos"] = "least_squares",
) -> Projection:
    """Coordinates of a displacement along directions.

    Args:
        displacement: ``(P,)``.
        directions: ``(K, P)``, linearly independent.
        method: ``"least_squares"``; or ``"cos"``, the length of the shadow on each direction, as
            the reference code has it: coordinates only if the directions are orthogonal and of
            length 1.

    Returns:
        The coordinates, and how far the displacement is from what they stand for.

    Raises:
        ArgumentError: If ``method`` is unknown.
        DirectionError: If the displacement is over other parameters, or a direction is zero or
            parallel to another.

    Example:
        >>> import torch
        >>> from landscapex import axes
        >>> plane = axes.given(torch.nn.Linear(2, 1), torch.tensor([[1.0, 0, 0], [1, 1, 0]]))
        >>> project(torch.tensor([3.0, 2.0, 5.0]), plane).coordinates
        array([1., 2.])
    """
    if method not in ("least_squares", "cos"):
        raise ArgumentError(f"`method` must be 'least_squares' or 'cos', got {method!r}.")
    vectors = directions.vectors.double().cpu()
    if displacement.shape != vectors.shape[1:]:
        raise DirectionError(
            f"the displacement must have shape ({vectors.shape[1]},), got "
            f"{tuple(displacement.shape)}."
        )
    check_usable(directions)
    target = displacement.detach().double().cpu()
    shadows = vectors @ target
    if method == "cos":
        coordinates = shadows / torch.linalg.vector_norm(vectors, dim=1)
    else:
        coordinates = torch.linalg.solve(vectors @ vectors.T, shadows)
    residual = torch.linalg.vector_norm(target - coordinates @ vectors)
    distance = torch.linalg.vector_norm(target)
    return Projection(read_only(coordinates.numpy()), float(residual), float(distance))


def _flat(
    point: states.State,
    layout: tuple[tuple[str, tuple[int, ...]], ...],
    tied: Mapping[str, Sequence[str]],
) -> Tensor:
    """A point as a flat float64 vector on the CPU; `tied` has all names of tied parameters."""
    if isinstance(point, Tensor):
        return point.detach().double().cpu()
    if isinstance(point, str | os.PathLike):
        point = checkpoints.read(Path(point))
    elif isinstance(point, nn.Module):
        point = dict(unwrap(point).named_parameters(remove_duplicate=False))
    if not isinstance(point, Mapping):
        raise ArgumentTypeError(
            "`point` must be a flat vector, a state_dict, a module or a path, got "
            f"{type(point).__name__}."
        )
    names = {name: tied.get(name, [name]) for name, _ in layout}
    prefix = checkpoints.common_prefix(point, [n for known in names.values() for n in known])
    parts = []
    for name, shape in layout:
        tensor = next((point[prefix + n] for n in names[name] if prefix + n in point), None)
        if tensor is not None and tensor.is_complex() and (*tensor.shape, 2) == shape:
            tensor = torch.view_as_real(tensor.detach().resolve_conj())
        if tensor is None or tuple(tensor.shape) != shape:
            got = "nothing" if tensor is None else f"shape {tuple(tensor.shape)}"
            raise ParameterMismatchError(f"`point` must have {name} of shape {shape}, got {got}.")
        parts.append(tensor.detach().double().cpu().reshape(-1))
    return torch.cat(parts)


def _parts(path: Trajectory) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A trajectory as tensors and texts."""
    tensors = {f"directions/{k}": v for k, v in enumerate(path.directions.vectors)}
    named = {"": path.center} if isinstance(path.center, Tensor) else path.center
    tensors |= {f"center/{name}": t for name, t in named.items()}
    for name, value in vars(path).items():
        if isinstance(value, np.ndarray):
            tensors[f"array/{name}"] = torch.from_numpy(np.array(value))
    header = {
        "axes": json.dumps([a.__dict__ for a in path.directions.axes]),
        "layout": json.dumps(path.directions.layout),
        "rest": json.dumps(
            {
                "origin": path.origin, "columns": path.columns, "centered": path.centered,
                "notes": path.notes, "provenance": path.provenance,
            }
        ),
    }  # fmt: skip
    return tensors, header


def _joined(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> Trajectory:
    """The inverse of `_parts`; whatever it raises means that the file is none of ours."""
    axes = tuple(Axis(**a) for a in json.loads(header["axes"]))
    layout = tuple((n, tuple(s)) for n, s in json.loads(header["layout"]))
    vectors = torch.stack([tensors[f"directions/{k}"] for k in range(len(axes))])
    named = {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith("center/")}
    arrays = {n.partition("/")[2]: t.numpy() for n, t in tensors.items() if n.startswith("array/")}
    rest: dict[str, Any] = {"drawn": None, **arrays, **json.loads(header["rest"])}
    rest |= {"columns": tuple(rest["columns"]), "notes": tuple(rest["notes"])}
    center: State = named[""] if list(named) == [""] else named
    return Trajectory(Directions(vectors, axes, layout), center, **rest)
