"""Which engine evaluates a run, and why."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from landscapex.engine.compiled import CompiledEngine
from landscapex.engine.eager import EagerEngine
from landscapex.engine.graphs import record
from landscapex.engine.plan import NotCapturedError
from landscapex.engine.preparation import PlanCache, compile_engine, refuse
from landscapex.engine.validation import LOSS, check_points, validate
from landscapex.errors import CaptureError, LandscapexError
from landscapex.model.guard import Snapshot
from landscapex.model.parameters import Steps

ENGINES = ("auto", "eager", "compiled")
# A run that is over sooner than a model is captured stays on the eager engine. The rule counts
# and does not time: the same run takes the same engine on every machine.
_WORTH_WHILE = 2e9  # multiply-adds, about
_PER_POINT = 5e5  # as many take as long as the calls of one point
_FEW_SAMPLES = 1e-3  # of an accuracy: scores that are equal but for rounding may change places
# of two computations in bf16 that do not round at the same places
_ROUNDED_LOSS = 0.1
_SOME_SAMPLES = 2e-2
_IN_PIECES = "directions so large that they are drawn anew for every point"
_REASON = 200  # characters that a reason takes over from an error

log = logging.getLogger("landscapex")


@dataclass(frozen=True)
class Choice:
    """The engine of a run.

    Attributes:
        name: ``"compiled"`` or ``"eager"``.
        why: In words.
        compiled: The engine; None if the run is eager.
    """

    name: str
    why: str
    compiled: CompiledEngine | None = None


@dataclass(frozen=True)
class Region:
    """What is to be computed.

    Attributes:
        low: Smallest coordinates, ``[K]``.
        high: Largest.
        points: How many.
    """

    low: np.ndarray
    high: np.ndarray
    points: int


def choose(
    wanted: str,
    eager: EagerEngine,
    snapshot: Snapshot,
    center: Tensor,
    directions: Steps,
    region: Region,
    values: list[float],
    plans: PlanCache,
) -> Choice:
    """Compile the model if that is wanted and can be done.

    Args:
        wanted: One of `ENGINES`.
        eager: Of the session; the model stands at the centre.
        snapshot: Of the session.
        center: ``(P,)``.
        directions: ``(K, P)``.
        region: Of the run.
        values: Of the eager engine at the centre.
        plans: Of the objective.

    Returns:
        The choice.

    Raises:
        CaptureError: If ``"compiled"`` is wanted and cannot be had.
    """
    if not isinstance(directions, Tensor):
        if wanted == "compiled":
            raise CaptureError(
                "`engine='compiled'` must have directions that are held in memory, got "
                f"{_IN_PIECES}.",
                _IN_PIECES,
            )
        return Choice("eager", _IN_PIECES)
    choice = _choose(wanted, eager, snapshot, center, directions, region, values, plans)
    if choice.compiled is None:
        low, high, points = region.low, region.high, region.points
        if said := record(eager, snapshot, center, directions, low, high, points):
            return replace(choice, why=f"{choice.why}; {said}")
    return choice


def _choose(
    wanted: str,
    eager: EagerEngine,
    snapshot: Snapshot,
    center: Tensor,
    directions: Tensor,
    region: Region,
    values: list[float],
    plans: PlanCache,
) -> Choice:
    if wanted == "eager":
        return Choice("eager", "asked for")
    if wanted == "auto" and _work(eager, region) < _WORTH_WHILE:
        return Choice("eager", "a run this small is over before a model is captured")
    try:
        refuse(eager)
        compiled = _checked(eager, snapshot, center, directions, region, values, plans)
    except NotCapturedError as reason:
        if wanted == "compiled":
            raise CaptureError(
                f"`engine='compiled'` must have a model that can be captured, got: {reason}.",
                str(reason),
            ) from None
        log.info("the model runs on the eager engine: %s", reason)
        return Choice("eager", str(reason))
    why = "captured, and equal to the model where they were compared"
    captured = compiled.shares[0].captured
    if said := captured.backend.describe(captured.math):
        why += f"; {said}"
    return Choice("compiled", why, compiled)


def _work(eager: EagerEngine, region: Region) -> float:
    samples = sum(batches.num_samples for batches in eager.data.values())
    return region.points * (_PER_POINT + samples * eager.space.size)


def _checked(
    eager: EagerEngine,
    snapshot: Snapshot,
    center: Tensor,
    directions: Tensor,
    region: Region,
    values: list[float],
    plans: PlanCache,
) -> CompiledEngine:
    points = check_points(region.low, region.high, center, directions)
    while True:
        try:
            compiled = compile_engine(eager, center, directions, plans)
            validate(compiled, snapshot, center, directions, points)
            _compare_center(compiled, eager, values)
        except NotCapturedError:
            # a plan from before may have become wrong in ways that its tensors do not show
            if plans.reused and plans.forget():
                continue
            raise
        except LandscapexError:  # somebody else wrote to the model
            raise
        except Exception as error:  # the eager engine serves what nobody here has thought of
            plans.forget()
            first = (str(error).strip().splitlines() or [""])[0][:_REASON]
            raise NotCapturedError(f"{type(error).__name__}: {first}") from error
        return compiled


def _compare_center(compiled: CompiledEngine, eager: EagerEngine, values: list[float]) -> None:
    """All data, and all metrics."""
    rounded = eager.precision in ("bf16", "tf32")
    relative, few = (_ROUNDED_LOSS, _SOME_SAMPLES) if rounded else (LOSS, _FEW_SAMPLES)
    found = compiled.losses(np.zeros((1, compiled.num_directions)))[0]
    for name, a, b in zip(eager.columns or (), found, values, strict=True):
        same = a == b or (a != a and b != b) or abs(a - b) <= relative * abs(b)
        if not (same or (name != "loss" and abs(a - b) <= few)):
            raise NotCapturedError(f"the program gives another {name} at the centre: {a!r}, {b!r}")
