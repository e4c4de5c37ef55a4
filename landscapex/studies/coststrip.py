"""The loss around a training run: progress to the solution, and the direction of each residual."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from landscapex._arrays import Array, read_only
from landscapex._progress_bar import progress_bar
from landscapex._warnings import warn
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    GridError,
    NonFiniteCenterError,
)
from landscapex.interrupts import Abandon, Interrupts, terminated
from landscapex.model.states import Tensors
from landscapex.objective import Objective
from landscapex.studies.residuals import ResidualCoordinates, points_of, solution_of, split_points

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

_REACH = 1.5  # of the largest residual, to either side


@dataclass(frozen=True, eq=False, repr=False)
class CostStrip:
    """The loss at ``theta_0 + alpha(t) u + offset v(t)`` for every checkpoint ``t``.

    This is no plane in the space of parameters: every column has a direction ``v(t)`` of its own,
    a bundle of half-planes that are turned about the line to the solution. At the offset
    ``beta(t)`` lies the checkpoint itself. Arrays are float64 and read-only; what was not
    evaluated is NaN.

    Attributes:
        coordinates: Of the checkpoints.
        offsets: ``(B,)``: distances from the line, in the unit of the parameters.
        loss: ``(T, B)``.
        evaluated: ``(T, B)`` bool.
        true_loss: ``(T,)``: of the checkpoints themselves.
        provenance: How the numbers were made.
    """

    coordinates: ResidualCoordinates
    offsets: Array
    loss: Array
    evaluated: NDArray[np.bool_]
    true_loss: Array
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        count, total = int(self.evaluated.sum()), self.evaluated.size
        state = "complete" if count == total else f"{count} of {total} evaluated"
        finite = self.loss[np.isfinite(self.loss)]
        text = f"{finite.min():.6g} to {finite.max():.6g}" if finite.size else "no finite value"
        return (
            f"CostStrip({len(self.coordinates)} checkpoints x {self.offsets.size} offsets, "
            f"{state}, loss {text})"
        )

    @property
    def complete(self) -> bool:
        """Whether all points were evaluated."""
        return bool(self.evaluated.all())

    def to_xarray(self) -> xr.Dataset:
        """A copy as a dataset.

        Returns:
            Dimensions "checkpoint" (with coordinates "step", "alpha", "beta", "norm") and
            "offset"; variables "loss", "evaluated" and "true_loss".
        """
        import xarray as xr

        along = self.coordinates
        columns = {
            name: ("checkpoint", np.array(getattr(along, name)))
            for name in ("alpha", "beta", "norm")
        }
        return xr.Dataset(
            {
                "loss": (("checkpoint", "offset"), np.array(self.loss)),
                "evaluated": (("checkpoint", "offset"), np.array(self.evaluated)),
                "true_loss": ("checkpoint", np.array(self.true_loss)),
            },
            {
                "offset": np.array(self.offsets),
                "step": ("checkpoint", np.array(along.steps)),
                **columns,
            },
        )

    def plot(self, **options: Any) -> Figure:
        """Draw the strip in three dimensions, with the run on it.

        Args:
            **options: Those of `landscapex.plot.cost_strip`.

        Returns:
            A figure, which notebooks display.
        """
        from landscapex import plot

        return plot.cost_strip(self, **options)


def cost_strip(
    objective: Objective,
    checkpoints: Any,
    *,
    solution: Any = -1,
    offsets: Sequence[float] | None = None,
    points: int = 25,
    progress: bool = True,
) -> CostStrip:
    """Evaluate the loss around a training run, across the line to its solution.

    Every column is evaluated with the buffers of its own checkpoint (batch-norm statistics among
    them), so that the run itself lies on the strip. ``T * B`` evaluations.

    Args:
        objective: What is evaluated.
        checkpoints: A run: see `landscapex.trajectory`.
        solution: See `residual_coordinates`.
        offsets: Distances from the line; None for ``points`` of them, evenly spaced to 1.5 times
            the largest residual on both sides.
        points: How many, if they are not given; an odd number has the line itself among them.
        progress: Show a bar with the time left.

    Returns:
        The strip. A checkpoint that is not finite leaves its column out; a warning says so.

    Raises:
        ArgumentError: If all checkpoints lie on one line, the solution is not one of them, or
            there is but one parameter.
        ArgumentTypeError: If ``objective`` is not an `Objective`.
        GridError: If ``offsets`` are not finite and increasing, or ``points`` is below 2.
        KeyboardInterrupt: On Ctrl-C, after the point at hand; ``surface`` is the partial strip.
        Terminated: On SIGTERM, likewise.

    References:
        Goodfellow, Vinyals, Saxe, "Qualitatively characterizing neural network optimization
        problems", ICLR 2015, appendix.

    Example:
        >>> import torch, landscapex as lx
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = lx.Objective(model, (torch.eye(2), torch.ones(2, 1)), "mse_loss")
        >>> run = torch.tensor([[0.0, 0.0], [1.0, 0.5], [1.0, 1.0]])
        >>> cost_strip(objective, list(run), points=5, progress=False).loss.shape
        (3, 5)
    """
    if not isinstance(objective, Objective):
        raise ArgumentTypeError(
            f"`objective` must be an Objective, got {type(objective).__name__}."
        )
    run = points_of(checkpoints, objective)
    end, index = solution_of(solution, run)
    along = split_points(run, end, solution=index, label="")
    along._line.refuse_one_dimension()
    places = _places(along, offsets, points)
    strip = _Strip(along, places)
    began = time.monotonic()
    with (
        Interrupts() as interrupts,
        progress_bar(
            total=places.size * len(along), unit="point", desc="cost strip", delay=0.5,
            disable=not progress or sys.stderr is None, dynamic_ncols=True,
        ) as bar,
    ):  # fmt: skip
        interrupts.armed = True
        for t in range(len(run)):
            if interrupts.requested or not np.isfinite(along.beta[t]):
                continue
            try:
                strip.fill(objective, t, *run.read(t), interrupts)
            except Abandon:
                continue
            except NonFiniteCenterError as error:
                strip.notes.append(f"checkpoint {t} was left out: {error}")
            bar.update(places.size)
    result = strip.result(time.monotonic() - began)
    if interrupts.signum is not None:
        stopped = _stopped(interrupts.signum, result)
        raise stopped
    if not result.complete:
        count = int((~result.evaluated.any(axis=1)).sum())
        warn(
            f"{count} of {len(along)} checkpoints are not finite and were left out.",
        )
    return result


class _Strip:
    """What has been evaluated so far."""

    def __init__(self, along: ResidualCoordinates, offsets: Array) -> None:
        self._along, self._offsets = along, offsets
        shape = (len(along), offsets.size)
        self._loss = np.full(shape, np.nan)
        self._done = np.zeros(shape, dtype=bool)
        self._true = np.full(len(along), np.nan)
        self._about: dict[str, Any] = {}
        self.notes: list[str] = []

    def fill(
        self, objective: Objective, t: int, point: Tensor, state: Tensors, stop: Interrupts
    ) -> None:
        """Evaluate one column around its checkpoint, where no digit is lost.

        ``theta_0 + alpha u + b v`` is ``theta(t) + (b - beta) v``.
        """
        beta = self._along.beta[t]
        with objective.session(state) as session:
            first = not self._about
            self._true[t] = (session.checked_center if first else session.values)(stop)[0]
            self._about = self._about or session.describe()
            direction = self._along._across(t, point).to(session.center)[None]
            values = session.losses(direction, (self._offsets - beta)[:, None], stop)[:, 0]
        self._loss[t, : len(values)] = values
        self._done[t, : len(values)] = True

    def result(self, seconds: float) -> CostStrip:
        """What there is."""
        along = self._along
        provenance = {
            **self._about,
            "solution": along.solution,
            "engine": {"name": "eager", "why": "every column has buffers of its own"},
            "seconds": round(seconds, 3),
            "notes": self.notes,
        }
        arrays = (self._offsets, self._loss, self._done, self._true)
        offsets, loss, done, true = (read_only(a.copy()) for a in arrays)
        return CostStrip(along, offsets, loss, done, true, provenance)


def _places(along: ResidualCoordinates, offsets: Sequence[float] | None, points: int) -> Array:
    """The distances from the line."""
    if offsets is not None:
        chosen = np.array(offsets, dtype=np.float64)
        usable = chosen.ndim == 1 and chosen.size > 0 and np.isfinite(chosen).all()
        if not usable or (np.diff(chosen) <= 0).any():
            raise GridError(f"`offsets` must be finite increasing numbers, got {offsets}.")
        return chosen
    if not isinstance(points, int) or points < 2:
        raise GridError(f"`points` must be a whole number of at least 2, got {points!r}.")
    finite = along.beta[np.isfinite(along.beta)]
    if not finite.max() > 0:
        raise ArgumentError(
            "the run must leave the line to its solution, got residuals of 0 only; give `offsets`."
        )
    reach = _REACH * float(finite.max())
    numbers = np.arange(points, dtype=np.float64)
    # exactly symmetric, with an exact 0 in the middle
    return np.asarray((numbers - (points - 1) / 2) * (2 * reach / (points - 1)), dtype=np.float64)


def _stopped(signum: int, strip: CostStrip) -> BaseException:
    text = f"{int(strip.evaluated.sum())} of {strip.evaluated.size} points are in `.surface`"
    if signum == signal.SIGTERM:
        return terminated(f"stopped by SIGTERM: {text}.", surface=strip)
    stopped = KeyboardInterrupt(f"stopped by Ctrl-C: {text}.")
    stopped.surface = strip  # type: ignore[attr-defined]
    return stopped
