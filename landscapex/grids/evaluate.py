"""Lines, surfaces and volumes of the loss around a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from landscapex.grids.filling import fill_grid
from landscapex.grids.grid import Span
from landscapex.grids.options import Auto, Progress, Shard, checked_options
from landscapex.grids.results import Surface
from landscapex.grids.time_limit import TimeLimit
from landscapex.model.parameters import Ignore, Normalize
from landscapex.objective import Objective, bind, names_objective_options
from landscapex.session import Point


@names_objective_options
def line(
    model: nn.Module | Objective,
    data: Any = None,
    loss: Any = None,
    *,
    directions: Any = "random",
    normalize: Normalize | Auto | None = "auto",
    ignore: Ignore | Auto | None = "auto",
    span: Span = None,
    points: int = 51,
    center: Point = None,
    metrics: Any = (),
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    shard: Shard = None,
    time_limit: TimeLimit = None,
    engine: str = "auto",
    precision: str = "model",
    threads: int | None = None,
    progress: bool = True,
    callback: Callable[[Progress], object] | None = None,
    confirm: bool = False,
) -> Surface:
    """The loss along one direction: ``loss[i]`` at ``center + alpha[i] d``.

    Takes the arguments of `surface`, with one direction.

    Returns:
        A result of kind "line".

    References:
        Goodfellow, Vinyals, Saxe, "Qualitatively characterizing neural network optimization
        problems", ICLR 2015, section 3.

    Example:
        >>> import landscapex as lx
        >>> lx.line(*lx.examples.digits(), points=5, progress=False).shape
        (5,)
    """
    objective = bind(model, data, loss, metrics=metrics, precision=precision)
    return fill_grid(1, objective, checked_options(locals()))


@names_objective_options
def surface(
    model: nn.Module | Objective,
    data: Any = None,
    loss: Any = None,
    *,
    directions: Any = "random",
    normalize: Normalize | Auto | None = "auto",
    ignore: Ignore | Auto | None = "auto",
    span: Span = None,
    points: int | Sequence[int] = 51,
    center: Point = None,
    metrics: Any = (),
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    shard: Shard = None,
    time_limit: TimeLimit = None,
    engine: str = "auto",
    precision: str = "model",
    threads: int | None = None,
    progress: bool = True,
    callback: Callable[[Progress], object] | None = None,
    confirm: bool = False,
) -> Surface:
    """The loss on a plane: ``loss[i, j]`` at ``center + alpha[i] d1 + beta[j] d2``.

    Every point is formed from the unchanged centre, evaluated on all data in evaluation mode, and
    averaged over samples in float64. The model comes back bit for bit.

    Args:
        model: A module, or an `Objective` (then without data, loss, metrics and precision).
        data: See `Objective`.
        loss: See `Objective`.
        directions: ``"random"``, ``"hessian"`` (eigenvectors of the largest eigenvalues of the
            Hessian at the centre, of length 1), `Directions`, a tensor ``(K, P)``, a sequence of
            mappings {parameter name: tensor}, or a `Trajectory`, whose plane then is drawn.
        normalize: ``"filter"``, ``"layer"``, ``"model"``, ``"weight"`` or None; ``"auto"`` is
            ``"filter"`` for random directions and None for all others.
        ignore: ``"bias_bn"``, ``"copy"`` or None; ``"auto"`` is ``"bias_bn"`` for random
            directions and None for all others.
        span: ``s`` for coordinates from -s to s, ``(lo, hi)`` for all axes, or one pair per
            direction; None for (-1, 1), (-0.5, 1.5) between models, a `Trajectory` and a tenth
            more, and as far along an eigenvector as its curvature alone doubles the loss.
            Coordinates multiply the direction.
        points: Per axis: one number, or one per direction. An odd number over a symmetric span
            has the centre as a point.
        center: A state_dict, the path of a checkpoint, a module, or a flat vector ``(P,)``; None
            for the live parameters, or the origin of the plane of a `Trajectory`.
        metrics: See `Objective`.
        seed: Of random directions, and of the search for eigenvectors.
        out: Result file (NetCDF-4). While the work goes on, finished points are kept in a journal
            beside it.
        resume: Go on with an interrupted run of the same settings, and return a finished one;
            False starts over.
        shard: ``"i/n"`` or ``(i, n)``: compute part i (from 0) of n. ``"auto"``: the part of this
            process, if torchrun started several, else all. Who finds all points there when its
            part is done joins them; see also `merge`. Points that others left, however the run
            was split before, are not computed again.
        time_limit: Seconds, or ``"H:MM:SS"``, after which to stop, with a `TimeLimitWarning` and a
            partial result; the same call goes on. A bit before it, so that what is at hand is
            finished and kept. Reading the data and the centre count, but are never cut short.
        engine: ``"compiled"`` captures the model and runs it for many points at once, in fused
            kernels (CPU, float32); ``"eager"`` calls the module for each point; ``"auto"``
            compiles what can be captured, unless the run is over sooner. The provenance says which
            engine was used, and why.
        precision: See `Objective`.
        threads: torch's threads during this call; None takes those of the journal that this call
            goes on with, or leaves them.
        progress: Show a bar with the time left.
        callback: Called with a `Progress` whenever points are finished: at least every half second,
            unless one takes longer or they are computed together (up to a second, or eight points,
            on the compiled engine); the model is not at its centre then.
        confirm: Allow more than a million points.

    Returns:
        A result of kind "surface"; it may be partial with ``shard`` or ``time_limit``: points that
        nobody has computed yet are holes.

    Raises:
        ArgumentError: If an option has an unknown value.
        CaptureError: If ``engine="compiled"`` and the model cannot be captured.
        GridError: If the grid is empty, not finite or too large.
        DirectionError: If a direction is zero, not finite, or parallel to the other.
        NondeterministicLossError: If the centre gives two different losses.
        NonFiniteCenterError: If the parameters are not finite.
        ResumeMismatchError: If ``out`` holds another run.
        OutputError: If ``out`` cannot be written.
        KeyboardInterrupt: On Ctrl-C, after the point at hand; ``surface`` is the partial result.
        Terminated: On SIGTERM, likewise.

    References:
        Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural Nets",
        NeurIPS 2018, section 4.

    Example:
        >>> import landscapex as lx
        >>> lx.surface(*lx.examples.digits(), points=(3, 5), progress=False).shape
        (3, 5)
    """
    objective = bind(model, data, loss, metrics=metrics, precision=precision)
    return fill_grid(2, objective, checked_options(locals()))


@names_objective_options
def volume(
    model: nn.Module | Objective,
    data: Any = None,
    loss: Any = None,
    *,
    directions: Any = "random",
    normalize: Normalize | Auto | None = "auto",
    ignore: Ignore | Auto | None = "auto",
    span: Span = None,
    points: int | Sequence[int] = 21,
    center: Point = None,
    metrics: Any = (),
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    shard: Shard = None,
    time_limit: TimeLimit = None,
    engine: str = "auto",
    precision: str = "model",
    threads: int | None = None,
    progress: bool = True,
    callback: Callable[[Progress], object] | None = None,
    confirm: bool = False,
) -> Surface:
    """The loss in three directions: ``loss[i, j, k]``; takes the arguments of `surface`.

    Returns:
        A result of kind "volume".

    Example:
        >>> import landscapex as lx
        >>> lx.volume(*lx.examples.digits(), points=3, progress=False).shape
        (3, 3, 3)
    """
    objective = bind(model, data, loss, metrics=metrics, precision=precision)
    return fill_grid(3, objective, checked_options(locals()))
