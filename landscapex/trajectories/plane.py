"""Training trajectories: a run seen in the plane of its principal components.

A plane shows a run truly only as far as the run lies in it. So a trajectory also says where the
plane starts, how far from it each checkpoint is, what the loss of each checkpoint really is, and
how much of the variance a random walk would have in a plane of this kind.
"""

from __future__ import annotations

import datetime
import platform
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from landscapex._directions import Axis, Directions, check_layout, check_usable, layout_of
from landscapex._progress_bar import progress_bar
from landscapex._warnings import warn
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    DirectionError,
    NonFiniteCenterError,
)
from landscapex.model.parameters import Ignore, ParameterSpace
from landscapex.objective import Objective
from landscapex.session import digest_of
from landscapex.trajectories.principal import (
    Components,
    Fit,
    Rows,
    fit,
    principal_components,
    random_walk_ratios,
)
from landscapex.trajectories.runs import Run, State, open_run
from landscapex.trajectories.trajectory import Projection, Trajectory, project

__all__ = ["Projection", "Trajectory", "project", "trajectory"]


def trajectory(
    checkpoints: Any,
    objective: Objective | nn.Module,
    *,
    n: int = 2,
    origin: Literal["first", "last"] | int = "last",
    center: bool = True,
    ignore: Ignore | None = None,
    directions: Directions | None = None,
    drawn: bool = False,
    progress: bool = True,
) -> Trajectory:
    """The path of a training run in the plane of its principal components.

    The components are those of the displacements from the origin, by the Gram matrix of the
    checkpoints in float64: exact, not a random approximation. Coordinates are by least squares.
    Checkpoints are read one at a time.

    Args:
        checkpoints: A folder, or a list of states; see `runs.open_run`.
        objective: What is evaluated at every checkpoint, with the buffers (batch-norm statistics)
            of that checkpoint. A module instead: nothing is evaluated.
        n: How many components; there are fewer if the checkpoints span less.
        origin: The checkpoint that the plane goes through: ``"last"``, ``"first"``, or a number.
            Its buffers are those of the whole plane.
        center: Take the variance about the mean of the checkpoints, as the reference code does;
            False takes it about the origin, as the paper writes it. The plane goes through the
            origin either way.
        ignore: ``"bias_bn"`` leaves biases and norm parameters out of the components, as the
            reference code can; they still count in the distances from the plane.
        directions: Use these instead of principal components.
        drawn: Evaluate the points of the plane too at which the checkpoints are drawn.
        progress: Show a bar.

    Returns:
        The trajectory; ``lx.surface(objective, directions=trajectory)`` draws the loss around it.

    Raises:
        ArgumentError: If there are fewer than two checkpoints, or an option has an unknown value.
        ArgumentTypeError: If ``objective`` or ``checkpoints`` is something else.
        CorruptFileError: If a checkpoint cannot be read.
        DirectionError: If all checkpoints are the same, or ``directions`` cannot be used.
        NonFiniteCenterError: If the origin holds NaN or infinity.
        ParameterMismatchError: If a checkpoint does not fit the model.

    References:
        Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural Nets",
        NeurIPS 2018, section 7. Antognini, Sohl-Dickstein, "PCA of high dimensional random walks
        with comparison to neural network training", NeurIPS 2018.

    Example:
        >>> import torch, landscapex as lx
        >>> model, data, loss = lx.examples.digits()
        >>> states = [lx.examples.train_digits(epochs=k) for k in range(3)]
        >>> path = trajectory(states, lx.Objective(model, data, loss), progress=False)
        >>> path.losses.argmin()
        np.int64(2)
    """
    if not isinstance(n, int) or n < 1:
        raise ArgumentError(f"`n` must be a whole number of at least 1, got {n!r}.")
    if ignore not in (None, "bias_bn"):
        raise ArgumentError(f"`ignore` must be 'bias_bn' or None, got {ignore!r}.")
    space = _space_of(objective)
    run = open_run(checkpoints)
    start = _origin_of(origin, len(run))
    rows = Rows(run, space)
    look = _look(rows, objective, start, progress)
    used = look.finite
    if directions is None:
        columns = None if ignore is None else _weights_only(space)
        found = principal_components(
            rows, n, used=used, origin=start, center=center, columns=columns
        )
        walk = _walk(run.steps, used, start, center)[: len(found.ratios)]
        directions = _as_directions(found, walk, space, center)
        look.notes += _notes_on(found, n, space, float(torch.linalg.vector_norm(look.origin_flat)))
        explained = found.ratios
    else:
        check_layout(directions, space)
        check_usable(directions)
        explained = walk = np.zeros(0)
    placed = fit(rows, directions.vectors, start)
    at_points = _drawn(objective, look.center, directions, placed, look) if drawn else None
    rows.release()
    for note in look.notes:
        warn(f"trajectory: {note}.")
    return Trajectory(
        directions=directions,
        center=look.center,
        origin=start,
        steps=run.steps,
        epochs=np.array([c.epoch for c in run]),
        rates=np.array([c.lr for c in run]),
        recorded=np.array([c.loss for c in run]),
        coordinates=placed.coordinates,
        residuals=placed.residuals,
        distances=placed.distances,
        columns=look.columns,
        values=look.values,
        drawn=at_points,
        explained=explained,
        walk=walk,
        centered=center,
        notes=tuple(look.notes),
        provenance=_provenance(objective, look.center, space, run),
        _rows=rows,
    )


class _Look:
    """What one pass over the checkpoints tells."""

    def __init__(self, count: int) -> None:
        self.finite = np.zeros(count, dtype=bool)
        self.center: State = {}
        self.origin_flat = torch.zeros(0, device="cpu")
        self.columns: tuple[str, ...] = ()
        self.values = np.zeros((count, 0))
        self.notes: list[str] = []
        self.missing: list[str] = []


def _look(rows: Rows, objective: Objective | nn.Module, origin: int, progress: bool) -> _Look:
    """Read every checkpoint once: does it fit, is it finite, what is its loss."""
    look, found = _Look(len(rows)), {}
    buffers = set(_buffers(rows))
    for t in _watched(len(rows), progress):
        flat, state = rows.read(t)
        if t == origin:
            look.center, look.origin_flat = _copy(state, rows.space), flat
        missing = buffers if isinstance(state, Tensor) else buffers - set(state)
        look.missing += sorted(missing - set(look.missing))
        look.finite[t] = bool(torch.isfinite(flat).all())
        if not look.finite[t]:
            _refuse_or_note(rows, t, flat, origin, look)
        elif isinstance(objective, Objective):
            try:
                found[t] = objective.evaluate(state)
            except NonFiniteCenterError as error:  # its running statistics are not
                look.notes.append(f"{rows.run[t].name} has no loss: {error}")
    if look.missing:
        listed = ", ".join(look.missing[:3]) + (", ..." if len(look.missing) > 3 else "")
        look.notes.append(
            f"checkpoints lack {len(look.missing)} buffers or frozen parameters ({listed}): those "
            "of the model as it is now were used"
        )
    if found:
        look.columns = tuple(next(iter(found.values())))
        look.values = np.full((len(rows), len(look.columns)), np.nan)
        for t, values in found.items():
            look.values[t] = list(values.values())
    return look


def _refuse_or_note(rows: Rows, t: int, flat: Tensor, origin: int, look: _Look) -> None:
    bad = [
        f"{name} ({int((~torch.isfinite(part)).sum())} of {part.numel()})"
        for name, part in rows.space.unflatten(flat).items()
        if not bool(torch.isfinite(part).all())
    ]
    what = f"{rows.run[t].name} has NaN or infinity in {'; '.join(bad[:10])}"
    if t == origin:
        raise NonFiniteCenterError(
            f"the origin of the plane must be finite, but {what}. Pass origin=NUMBER of a "
            "checkpoint that is finite."
        )
    look.notes.append(f"{what}; it has no coordinates and no loss")


def _buffers(rows: Rows) -> list[str]:
    """What of a state is not among the moving parameters, but decides the loss."""
    model, names = rows.space.model, rows.space.names
    stored = model.state_dict()
    others = [n for n, _ in (*model.named_parameters(), *model.named_buffers()) if n in stored]
    return [n for n in others if n not in names and not n.endswith("num_batches_tracked")]


def _watched(count: int, progress: bool) -> Iterator[int]:
    hidden = not progress or sys.stderr is None
    bar = progress_bar(
        range(count), unit="checkpoint", disable=hidden, delay=0.5, desc="trajectory"
    )
    return iter(bar)


def _copy(state: State, space: ParameterSpace) -> State:
    if isinstance(state, Tensor):
        return state.detach().cpu().clone()
    copied = {n: t.detach().cpu().clone() for n, t in state.items()}
    for e in space.entries:  # a file may know a tied parameter by another of its names only
        if e.name not in copied:
            copied[e.name] = next(copied[n] for n in e.aliases if n in copied)
    return copied


def _space_of(objective: Objective | nn.Module) -> ParameterSpace:
    if isinstance(objective, Objective):
        return objective.space
    if isinstance(objective, nn.Module):
        return ParameterSpace(objective)
    raise ArgumentTypeError(
        f"`objective` must be an Objective or a module, got {type(objective).__name__}."
    )


def _origin_of(origin: object, count: int) -> int:
    if count < 2:
        raise ArgumentError(f"`checkpoints` must hold at least two checkpoints, got {count}.")
    number = 0 if origin == "first" else -1 if origin == "last" else origin
    if not isinstance(number, int) or isinstance(number, bool) or not -count <= number < count:
        raise ArgumentError(
            f"`origin` must be 'first', 'last' or a number from {-count} to {count - 1}, got "
            f"{origin!r}."
        )
    return number % count


def _weights_only(space: ParameterSpace) -> Tensor:
    columns = torch.ones(space.size, dtype=torch.bool, device="cpu")
    for e in space.entries:
        if e.is_bias_bn:
            columns[e.offset : e.end] = False
    return columns


def _walk(steps: np.ndarray, used: np.ndarray, origin: int, center: bool) -> np.ndarray:
    here = int(np.flatnonzero(np.flatnonzero(used) == origin)[0])
    return random_walk_ratios(steps[used], center=center, origin=here)


def _as_directions(
    found: Components, walk: np.ndarray, space: ParameterSpace, center: bool
) -> Directions:
    if not len(found.vectors):
        raise DirectionError("`checkpoints` must differ from each other, got the same throughout.")
    about = "the mean of the checkpoints" if center else "the origin"
    axes = tuple(
        Axis(
            f"PC {k + 1}: {found.ratios[k]:.1%} of variance (random walk {walk[k]:.1%})",
            "trajectory",
            note=f"variance about {about}",
        )
        for k in range(len(found.vectors))
    )
    vectors = found.vectors.to(space.device, space.dtype)
    return Directions(vectors, axes, layout_of(space))


def _notes_on(found: Components, n: int, space: ParameterSpace, size: float) -> list[str]:
    """What is wrong with components that are fewer, or weaker, than was hoped for."""
    notes = []
    rank = len(found.vectors)
    if rank < n:
        shape = "on a straight line" if rank == 1 else f"in {rank} dimensions"
        notes.append(f"the checkpoints lie {shape}, so there is no component {rank + 1}")
    resolution = max(torch.finfo(e.dtype).eps for e in space.entries) * size
    if weak := [k + 1 for k in range(rank) if found.lengths[k] < resolution]:
        notes.append(
            f"component {weak[0]} is no longer than the rounding of the parameters "
            f"({found.lengths[weak[0] - 1]:.2g} against {resolution:.2g})"
        )
    return notes


def _drawn(
    objective: Objective | nn.Module,
    center: State,
    directions: Directions,
    placed: Fit,
    look: _Look,
) -> np.ndarray:
    """Values where the checkpoints are drawn."""
    if not isinstance(objective, Objective):
        raise ArgumentTypeError("`drawn` must be False without an Objective, got a module.")
    values = np.full(look.values.shape, np.nan)
    with objective.session(center) as session:
        vectors = directions.vectors.to(session.space.device, session.space.dtype)
        values[look.finite] = session.losses(vectors, placed.coordinates[look.finite])
    return values


def _provenance(
    objective: Objective | nn.Module, center: State, space: ParameterSpace, run: Run
) -> dict[str, Any]:
    tied = [[e.name, *e.aliases] for e in space.entries if e.aliases]
    about: dict[str, Any] = {"model": {"class": type(space.model).__qualname__, "tied": tied}}
    if isinstance(objective, Objective):
        with objective.session(center) as session:
            about = session.describe()
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "title": f"training of {about['model']['class']}, {space.size:,} parameters",
        **about,
        "fingerprint": _fingerprint(center, space),
        "checkpoints": [c.name for c in run],
        "folder": str(run.folder or ""),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def _fingerprint(center: State, space: ParameterSpace) -> dict[str, str]:
    """What the fingerprint of a surface around this state says of parameters and buffers."""
    named = center if isinstance(center, Mapping) else {}
    chosen = {p.data_ptr() for p in space.parameters}
    frozen = {n: p for n, p in space.model.named_parameters() if p.data_ptr() not in chosen}
    # others cannot be hashed; there is no surface of a model that has them
    dense = {n: b for n, b in space.model.named_buffers() if b.layout == torch.strided}
    moved = space.vector(center, what="`center`")
    return {
        "parameters": digest_of({"": moved, **_instead_of(frozen, named)}),
        "buffers": digest_of(_instead_of(dense, named)),
    }


def _instead_of(live: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model once those of a state are copied into them."""
    return {n: state[n].to(t) if n in state else t for n, t in live.items()}
