"""Curvature maps: both ends of the spectrum at every point of a line, a plane or a volume."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from landscapex.curvature import draws
from landscapex.curvature.lanczos import Eigenpairs, eigenpairs
from landscapex.curvature.linear import SymmetricOperator
from landscapex.curvature.operators import MATRICES, check_kind, chosen_space, linearize
from landscapex.curvature.products import Plan
from landscapex.engine.choice import Region
from landscapex.engine.eager import Stop
from landscapex.errors import (
    ArgumentTypeError,
    DirectionError,
    NonFiniteProductError,
)
from landscapex.grids.filling import fill_grid
from landscapex.grids.grid import AXIS_NAMES, Span
from landscapex.grids.options import Auto, Plane, Progress, Shard, checked_options
from landscapex.grids.quantities import Losses
from landscapex.grids.results import Surface
from landscapex.grids.time_limit import TimeLimit
from landscapex.interrupts import Abandon
from landscapex.model.parameters import Ignore, Normalize, Steps
from landscapex.model.selection import Selection
from landscapex.objective import Objective, bind, names_objective_options
from landscapex.session import Point, Session

COLUMNS = (
    "smallest", "largest", "ratio", "smallest_residual", "largest_residual", "products", "converged"
)  # fmt: skip
_NOISE = 1e-2  # of a start vector, beside two unit vectors: what they may both lack

Row = tuple[float, ...]  # in the order of COLUMNS


@names_objective_options
def curvature_map(
    model: nn.Module | Objective,
    data: Any = None,
    loss: Any = None,
    *,
    directions: Any = "random",
    normalize: Normalize | Auto | None = "auto",
    ignore: Ignore | Auto | None = "auto",
    span: Span = None,
    points: int | Sequence[int] = 13,
    center: Point = None,
    kind: str = "hessian",
    params: Selection = None,
    tol: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    shard: Shard = None,
    time_limit: TimeLimit = None,
    threads: int | None = None,
    progress: bool = True,
    callback: Callable[[Progress], object] | None = None,
    confirm: bool = False,
) -> Surface:
    """The smallest and the largest eigenvalue of the Hessian at every point of a grid.

    Both come from one Lanczos run per point, each with its residual. Where the loss is not convex
    the smallest one is negative; ``ratio``, that of their sizes, says how much of the curvature
    that is, whatever the scale of the loss. Directions of the plane leave out biases by default;
    the Hessian never does.

    A point costs some 15 to 100 products of the Hessian with a vector, each about as long as two
    gradients; a bar says how long the map will take. Fewer samples make it cheaper, and the map
    then is one of the loss on these samples; their largest eigenvalue tends to lie above that of
    all samples.

    Args:
        model: As in `surface`.
        data: As in `surface`.
        loss: As in `surface`; twice differentiable for the Hessian.
        directions: As in `surface`; their number (``"random"``: 2) is that of the axes.
        normalize: As in `surface`.
        ignore: As in `surface`.
        span: As in `surface`.
        points: As in `surface`.
        center: As in `surface`.
        kind: ``"hessian"``, ``"ggn"``, ``"fisher"`` or ``"empirical_fisher"``; see `hessian`.
        params: The parameters whose curvature is asked for, as in `Objective`; None for all that
            the objective has. Others stay as they are at a point.
        tol: Residuals, relative to the larger of both sizes, at which Lanczos stops; None for 1e-8
            in float64 and 1e-4 in float32.
        max_products: After which Lanczos stops at a point, converged or not; None for a default.
        seed: Of random directions, start vectors and drawn labels.
        out: As in `surface`.
        resume: As in `surface`.
        shard: As in `surface`.
        time_limit: As in `surface`.
        threads: As in `surface`.
        progress: As in `surface`.
        callback: As in `surface`.
        confirm: As in `surface`.

    Returns:
        A result of kind "line", "surface" or "volume" with the columns of the objective and:

        * ``smallest``, ``largest``: eigenvalues; Ritz values, so that the true ends lie outside;
        * ``ratio``: ``|smallest / largest|``;
        * ``smallest_residual``, ``largest_residual``: ``||H v - lambda v||`` by a fresh product; an
          eigenvalue lies within it;
        * ``products``: of the Hessian with a vector, at this point;
        * ``converged``: 1.0 where both residuals are as small as asked for, else 0.0.

        Where the loss or the Hessian is not finite, eigenvalues and residuals are NaN and
        ``converged`` is 0.

    Raises:
        ArgumentError: If an option has an unknown value, or with ``bn="recompute"``.
        ArgumentTypeError: If ``directions`` has another type.

    And what `surface` raises.

    References:
        Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural Nets",
        NeurIPS 2018, section 6 and figure 7.

    Example:
        >>> import landscapex as lx
        >>> model, (x, y), loss = lx.examples.digits()
        >>> result = lx.curvature_map(model, (x[:64], y[:64]), loss, points=3, progress=False)
        >>> bool((result["smallest"] < 0).all() and (result["largest"] > 0).all())
        True
    """
    check_kind(kind)
    options = checked_options({**locals(), "engine": "eager"})
    objective = bind(model, data, loss, metrics=(), precision="model")
    objective.check_differentiable("curvature")
    spectrum = partial(
        SpectrumEnds, kind=kind, params=params, tol=tol, max_products=max_products, seed=seed
    )
    return fill_grid(_num_axes(directions), objective, options, spectrum)


class SpectrumEnds(Losses):
    """The losses, and the smallest and the largest eigenvalue of a curvature matrix.

    Every point starts Lanczos from the same vector, made of the eigenvectors at the centre: a
    process that has not computed the neighbours gives the same bits.

    Args:
        session: Of the run.
        kind: Of the matrix.
        params: Whose curvature; None for all that move.
        tol: Of residuals.
        max_products: At a point.
        seed: Of start vectors and drawn labels.
    """

    name = "curvature map"

    def __init__(
        self,
        session: Session,
        *,
        kind: str,
        params: Selection,
        tol: float | None,
        max_products: int | None,
        seed: int,
    ) -> None:
        super().__init__(session)
        self._settings = {"kind": kind, "tol": tol, "max_products": max_products, "seed": seed}
        self._kind, self._params, self._seed = kind, params, seed
        self._space = session.space
        if params is not None:
            self._space = chosen_space(session.space.model, params, set(session.space.names))
        # `remarks` tells of points that did not converge, once
        self._solve = partial(
            eigenpairs, which="BE", tol=tol, max_products=max_products, seed=seed, quiet=True
        )
        self._start: Tensor | None = None
        self._plan: Plan | None = None  # as the centre knows it: all processes begin there

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the session, then those of the spectrum."""
        return (*super().columns, *COLUMNS)

    @property
    def at_once(self) -> tuple[int, int] | None:
        """One is enough."""
        return None

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """What is computed, and how exactly."""
        names = [e.name for e in self._space.entries]
        return {"computes": "ends of the spectrum", "curvature": repr((self._settings, names))}

    def center(self, stop: Stop | None) -> list[float]:
        """Solved from a random start; every other point starts from what was found.

        A centre without finite derivatives tells nothing: then every point starts from random
        numbers, and finds out for itself how the model is linearised.

        Args:
            stop: Asked between batches and products.

        Returns:
            In the order of `columns`.
        """
        losses = super().center(stop)
        began = time.monotonic()
        row, found = self._ends(losses[0], stop)
        if found is not None:
            self._start, plan = found
            self._plan = plan if plan.known else None
        self.seconds += time.monotonic() - began
        return [*losses, *row]

    def prepare(self, directions: Steps, region: Region, center: list[float], engine: str) -> None:
        """Losses are those of the model itself, which then stands at the point."""
        self.directions = directions

    def values(self, points: np.ndarray, stop: Stop | None) -> np.ndarray:
        """One point after another."""
        rows: list[list[float]] = []
        for point in points:
            losses = super().values(point[None], stop)
            if not len(losses):
                break
            try:
                row, _ = self._ends(float(losses[0, 0]), stop)
            except Abandon:
                break
            except Exception as error:
                named = zip(AXIS_NAMES, point, strict=False)
                error.add_note("landscapex: at " + ", ".join(f"{a}={c:.6g}" for a, c in named))
                raise
            rows.append([*losses[0], *row])
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.columns))

    def describe(self) -> dict[str, Any]:
        """The matrix, and how its ends were found."""
        start = "eigenvectors at the centre"
        if self._start is None:
            start = "random: the centre has no finite derivatives"
        about = {"matrix": MATRICES[self._kind], "parameters": self._space.size, "start": start}
        return {"curvature": {**self._settings, **about}}

    def remarks(self, result: Surface) -> Iterator[str]:
        """Points whose numbers are missing, or not as exact as was asked for."""
        there = result.evaluated & np.isfinite(result.loss)
        finite, total = np.isfinite(result["smallest"]), int(result.evaluated.sum())
        if missing := int((there & ~finite).sum()):
            yield (
                f"{missing} of {total} points have no finite {MATRICES[self._kind]}: eigenvalues "
                "are NaN there."
            )
        if doubtful := int((finite & (result["converged"] == 0)).sum()):
            yield (
                f"{doubtful} of {total} points did not converge: see the columns of residuals, or "
                "raise `max_products`."
            )

    def _ends(self, loss: float, stop: Stop | None) -> tuple[Row, tuple[Tensor, Plan] | None]:
        """Both ends where the model stands, and what makes it easier elsewhere.

        Returns:
            The row; and a vector for Lanczos to start from, and how the model is linearised.
        """
        if not math.isfinite(loss):
            return (*[math.nan] * 5, 0.0, 0.0), None
        curvature = linearize(
            self.session, self._kind, params=self._params, seed=self._seed, plan=self._plan
        )
        operator = _stoppable(curvature, stop)
        try:
            found = self._solve(operator, min(2, operator.size), start=self._start)
        except NonFiniteProductError:
            return (*[math.nan] * 5, float(operator.products), 0.0), None
        noise = draws.gaussian(operator, self._seed, "start of a curvature map")
        start = found.vectors.sum(0) + _NOISE * noise / noise.norm()
        return _row(found), (start, curvature.plan)


def _row(found: Eigenpairs) -> Row:
    """Numbers of one point, in the order of COLUMNS."""
    low, high = int(np.argmin(found.values)), int(np.argmax(found.values))
    smallest, largest = float(found.values[low]), float(found.values[high])
    ratio = abs(smallest / largest) if largest else (math.inf if smallest else math.nan)
    residuals = float(found.residuals[low]), float(found.residuals[high])
    converged = float(found.converged[low] and found.converged[high])
    return (smallest, largest, ratio, *residuals, float(found.products), converged)


def _stoppable(operator: SymmetricOperator, stop: Stop | None) -> SymmetricOperator:
    """The same operator, which gives up when a request to stop has waited for too long."""

    def product(vector: Tensor) -> Tensor:
        if stop is not None:
            stop.poll()
        return operator.apply(vector)

    return SymmetricOperator(
        product, operator.size, operator.dtype, operator.device, name=operator.name
    )


def _num_axes(directions: Any) -> int:
    """How many axes the directions span."""
    if isinstance(directions, str):
        return 2
    if isinstance(directions, Plane):
        directions = directions.directions
    if isinstance(directions, Mapping):
        return 1
    if not isinstance(directions, Sized):
        raise ArgumentTypeError(
            "`directions` must be Directions, a tensor (K, P) or a sequence of mappings, got "
            f"{type(directions).__name__}."
        )
    if not 1 <= len(directions) <= 3:
        raise DirectionError(f"`directions` must be 1 to 3, got {len(directions)}.")
    return len(directions)
