"""The loss and its gradient near a point, every evaluation counted; random steps from it."""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscapex._arrays import read_only
from landscapex._draws import gaussian_
from landscapex.engine.eager import EagerEngine
from landscapex.errors import ArgumentError, ArgumentTypeError
from landscapex.model.parameters import ParameterSpace
from landscapex.objective import Objective, Point
from landscapex.session import Session
from landscapex.sharpness.outcome import Sharpness


class Probe:
    """Evaluates the loss around the centre of a session.

    Every point is formed from the centre, which nobody writes: the order of evaluations does not
    matter.

    Args:
        session: Open; gives the centre.
        engine: What evaluates; None for that of the session.

    Attributes:
        losses: Evaluations of the loss so far.
        gradients: Evaluations of the gradient so far.
        fingerprint: Of all that decides the loss, before it was first evaluated.
    """

    def __init__(self, session: Session, engine: EagerEngine | None = None) -> None:
        self.session = session
        self.space = session.space
        self._engine = engine
        self._nowhere = session.center[None][:0]
        self.losses = self.gradients = 0
        self.fingerprint: dict[str, str] = {}

    def along(self, direction: Tensor, coordinates: Sequence[float]) -> np.ndarray:
        """Losses at multiples of a step.

        Args:
            direction: ``(P,)``.
            coordinates: The multiples.

        Returns:
            One loss per multiple, float64.
        """
        return self._evaluate(direction[None], np.array(coordinates, dtype=np.float64)[:, None])

    def loss(self, displacement: Tensor) -> float:
        """The loss after a step.

        Args:
            displacement: ``(P,)`` from the centre.

        Returns:
            The loss.
        """
        return float(self.along(displacement, [1.0])[0])

    def center(self) -> float:
        """The loss at the centre, before anything else is evaluated.

        Returns:
            The loss.

        Raises:
            ArgumentError: If it is not finite: there is nothing to compare with.
            NondeterministicLossError: If it is another one the second time.
        """
        if self._engine is None:
            self.losses += 2 if self.session.objective.check else 1
            value = self.session.checked_center()[0]
        else:
            value = float(self._evaluate(self._nowhere, np.empty((1, 0)))[0])
        if not math.isfinite(value):
            raise ArgumentError(f"the loss at the point must be finite, got {value}.")
        return value

    def gradient(self, displacement: Tensor | None = None) -> Tensor:
        """The gradient after a step.

        Args:
            displacement: ``(P,)`` from the centre; None for the centre itself.

        Returns:
            ``(P,)``, float64.

        Raises:
            ArgumentError: If it is not finite.
        """
        step, coordinates = self._nowhere, []
        if displacement is not None:
            step, coordinates = displacement[None], [1.0]
        self.session.snapshot.move(self.session.center, step, coordinates)
        self.gradients += 1
        found = (self._engine or self.session).gradient().double()
        if not bool(torch.isfinite(found).all()):
            raise ArgumentError("the gradient must be finite, got NaN or infinity.")
        return found

    def _evaluate(self, directions: Tensor, points: np.ndarray) -> np.ndarray:
        self.losses += len(points)
        session = self.session
        if self._engine is None:
            return session.losses(directions, points)[:, 0]
        return self._engine.losses(session.snapshot, session.center, directions, points)[:, 0]

    def outcome(
        self,
        measure: str,
        value: float,
        loss: float,
        settings: Mapping[str, Any],
        *,
        standard_error: float | None = None,
        degrees: float = math.inf,
        increases: Sequence[float] | np.ndarray = (),
        displacement: Tensor | None = None,
    ) -> Sharpness:
        """What the measure returns, with the evaluations so far.

        Args:
            measure: Its name.
            value: Its value.
            loss: At the centre.
            settings: That decide the value.
            standard_error: Of an estimate.
            degrees: Of freedom of the standard error.
            increases: As in `Sharpness`.
            displacement: As in `Sharpness`.

        Returns:
            The result.
        """
        return Sharpness(
            measure,
            float(value),
            standard_error,
            degrees,
            loss,
            dict(settings),
            self.losses,
            self.gradients,
            increases=read_only(np.array(increases, dtype=np.float64)),
            displacement=displacement,
            provenance={
                **self.session.describe(),
                "engine": {"name": self.session.choice.name, "why": self.session.choice.why},
                "versions": {
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "numpy": np.__version__,
                },
                "fingerprint": self.fingerprint,
            },
        )


@contextlib.contextmanager
def probing(objective: Objective, center: Point, *, gradients: bool) -> Iterator[Probe]:
    """Open a session for a measure.

    Args:
        objective: Of the loss.
        center: The point; None for the live parameters.
        gradients: Whether the measure takes gradients.

    Yields:
        What evaluates around the point.

    Raises:
        ArgumentError: If there can be no gradients: with ``bn="recompute"``, whose statistics
            depend on the parameters, and inside ``torch.inference_mode()``.
        ArgumentTypeError: If ``objective`` is none.
    """
    check_objective(objective)
    if gradients:
        objective.check_differentiable("a gradient")
    with objective.session(center) as session:
        probe = Probe(session)
        probe.fingerprint = session.fingerprint()
        yield probe


def check_objective(objective: object) -> None:
    """Refuse what is no objective.

    Args:
        objective: What was given.

    Raises:
        ArgumentTypeError: If it is something else.
    """
    if not isinstance(objective, Objective):
        raise ArgumentTypeError(
            f"`objective` must be an Objective, got {type(objective).__name__}."
        )


def normal_vector(space: ParameterSpace, seed: int, purpose: str, number: int = 0) -> Tensor:
    """Independent standard normal entries, the same for a parameter whatever else is chosen.

    Args:
        space: The chosen parameters.
        seed: Of the user.
        purpose: What they are for; other purposes have other numbers.
        number: Which of several draws.

    Returns:
        ``(P,)`` in the dtype of flat vectors.
    """
    drawn = torch.empty(space.size, dtype=space.dtype, device=space.device)
    for e in space.entries:
        gaussian_(drawn[e.offset : e.end], f"{seed}/{purpose}/{number}/{e.name}")
    return drawn
