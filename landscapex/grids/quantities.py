"""What a run computes at every point of its grid: the losses, or what others add."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from landscapex.engine.choice import Region
from landscapex.engine.eager import Stop
from landscapex.grids.results import Surface
from landscapex.model.parameters import Steps
from landscapex.session import Session


class Quantity(Protocol):
    """What is computed at the points of a run, inside one session of the model.

    `center` is called first, then `prepare`, then `values` as often as the run needs. A value
    must depend on its own point only, whatever was computed before it: runs are cut into shards,
    interrupted and continued by other processes, and give the same bits.

    Attributes:
        name: For the progress bar; empty for the kind of the grid.
        seconds: About how long one point takes; known after `center`.
    """

    name: str
    seconds: float

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the values at a point, ``"loss"`` first; known after `center`."""

    @property
    def at_once(self) -> tuple[int, int] | None:
        """Fewest and most points of a good call of `values`; None: any. Known after `prepare`."""

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """What its numbers depend on beside model, data, directions and grid."""

    def center(self, stop: Stop | None) -> list[float]:
        """The values at the centre, where the model stands."""

    def prepare(self, directions: Steps, region: Region, center: list[float], engine: str) -> None:
        """Get ready for the points of a region.

        Args:
            directions: ``(K, P)``.
            region: Where the points lie.
            center: What `center` gave.
            engine: The one that is wanted: ``"auto"``, ``"eager"`` or ``"compiled"``.
        """

    def values(self, points: np.ndarray, stop: Stop | None) -> np.ndarray:
        """Values at points ``(G, K)``, in order, until asked to stop: ``(n, M)``, ``n <= G``."""

    def describe(self) -> dict[str, Any]:
        """What a reader of the result may want to know, for its provenance; JSON."""

    def remarks(self, result: Surface) -> Iterable[str]:
        """What a person should know of a result, as warnings."""


class Losses:
    """The loss, the metrics, and those of further data.

    Attributes:
        session: Of the run.
        directions: Of the run, ``(K, P)``; None before `prepare`.
    """

    name = ""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.directions: Steps | None = None
        self.seconds = 0.0

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the session."""
        return self.session.columns

    @property
    def at_once(self) -> tuple[int, int] | None:
        """What the compiled engine wants."""
        compiled = self.session.choice.compiled
        return None if compiled is None else (compiled.fewest_at_once, compiled.points_at_once)

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """That it is the loss; everything else is part of every fingerprint."""
        return {"computes": "loss"}

    def center(self, stop: Stop | None) -> list[float]:
        """Evaluated twice, unless the objective forgoes it."""
        began = time.monotonic()
        values = self.session.checked_center(stop)
        times = 2 if self.session.objective.check else 1
        self.seconds = (time.monotonic() - began) / times
        return values

    def prepare(self, directions: Steps, region: Region, center: list[float], engine: str) -> None:
        """Choose the engine."""
        self.directions = directions
        self.session.choose_engine(directions, region, center, wanted=engine)

    def values(self, points: np.ndarray, stop: Stop | None) -> np.ndarray:
        """By the engine that was chosen."""
        assert self.directions is not None, "prepare comes first"
        return self.session.losses(self.directions, points, stop)

    def describe(self) -> dict[str, Any]:
        """Nothing beyond what every run says."""
        return {}

    def remarks(self, result: Surface) -> Iterable[str]:
        """Nothing beyond what is said of the losses of every run."""
        return ()
