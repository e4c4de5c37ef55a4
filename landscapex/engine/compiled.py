"""The engine for captured models: a grid program, run for many grid points at once."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscapex.engine import memory
from landscapex.engine.backend import Runner
from landscapex.engine.captured import Captured, PerPoint
from landscapex.engine.eager import EagerEngine, Stop
from landscapex.engine.packing import Tiles

log = logging.getLogger("landscapex")


@dataclass(frozen=True)
class Share:
    """The batches of one form in one data set, ready to run.

    Attributes:
        form: Of the batches.
        captured: Plan and program.
        lanes: Of its tiles.
        tiles: The samples.
        weights: By group of samples: what its mean loss weighs.
        divisors: By group: what each sum of the loss is divided by.
    """

    form: str
    captured: Captured
    lanes: int
    tiles: Tiles
    weights: np.ndarray
    divisors: tuple[list[float], ...]

    def totals(self, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The weighted sum of the group's mean losses ``[G]``, and the sums of metrics ``[G, M]``.

        Args:
            sums: ``[groups, G, terms]``.

        Returns:
            Both.
        """
        total = np.zeros(sums.shape[1])
        for of_group, weight, divisors in zip(sums, self.weights, self.divisors, strict=True):
            if weight:  # nothing counts in the others, and 0 / 0 would spoil the mean
                total = total + weight * self.captured.mean_loss(of_group, divisors)
        terms = list(self.captured.lowered.metrics.values())
        hits = np.zeros((sums.shape[1], len(terms)))
        for of_group in sums:
            hits = hits + of_group[:, terms]
        return total, hits


@dataclass(frozen=True)
class DataSet:
    """All batches of one data set.

    Attributes:
        shares: By form.
        weight: Of the loss, in all.
        counts: Of each metric, in all.
        wrong: Whether a metric counts what is not right.
    """

    shares: tuple[Share, ...]
    weight: float
    counts: np.ndarray
    wrong: tuple[bool, ...]


class CompiledEngine:
    """Evaluates captured models at many points at once; never touches the model.

    Made by `compile_engine`.

    Attributes:
        num_directions: K.
    """

    name = "compiled"

    def __init__(
        self,
        eager: EagerEngine,
        data: Sequence[DataSet],
        center: Tensor,
        directions: Tensor,
    ) -> None:
        self.eager, self.data = eager, tuple(data)
        self.space = eager.space
        self._rows: dict[int, PerPoint | None] = {}
        self._runners: dict[int, Runner] = {}
        self._room = sys.maxsize  # points for which there is memory, in one call
        packed: dict[int, list[np.ndarray | None]] = {}
        for share in self.shares:
            captured = share.captured
            if id(captured) not in packed:
                packed[id(captured)], self._rows[id(captured)] = captured.packed(
                    self.space, center, directions
                )
            self._runners[id(share)] = captured.runner(
                share.lanes, share.tiles, packed[id(captured)], len(directions) + 1
            )
        self._packed = packed
        self._directions = directions
        self.num_directions = len(directions)
        self._gram = np.zeros((0, 0))
        if eager.weight_decay:
            vectors = torch.cat([center[None], directions]).double()
            self._gram = (vectors @ vectors.T).cpu().numpy()

    def serves(self, directions: Tensor) -> bool:
        """Whether these are the directions that the weights were packed for."""
        return directions is self._directions

    @property
    def shares(self) -> list[Share]:
        """The batches of each form in each data set."""
        return [s for d in self.data for s in d.shares]

    @property
    def fewest_at_once(self) -> int:
        """How many points one call should have, at least."""
        fewest = max(r.fewest_points for r in self._runners.values())
        return min(fewest, self.points_at_once)

    @property
    def points_at_once(self) -> int:
        """How many points one call should have, at most, where there are as many."""
        return min(self._room, *(r.most_points for r in self._runners.values()))

    def losses(self, points: np.ndarray, stop: Stop | None = None) -> np.ndarray:
        """Losses and metrics at grid points.

        Args:
            points: ``(G, K)`` coordinates.
            stop: Asked between calls of the program.

        Returns:
            ``(n, M)`` float64, ``n <= G``, in the order of the eager engine's columns.
        """
        rows, start = [], 0
        points = np.ascontiguousarray(points, dtype=np.float64)
        while start < len(points) and not (stop is not None and stop.requested):
            some = points[start : start + self.points_at_once]
            try:
                rows.append(self._values(some))
            except Exception as error:
                if len(some) == 1 or not memory.is_short(error):
                    raise
                memory.let_go(error, self.space.device)
                self._room = -(-len(some) // 2)
                log.info("memory is short: %d points at once", self._room)
                continue
            start += len(some)
        return np.concatenate(rows) if rows else np.empty((0, len(self.eager.columns or ())))

    def _values(self, points: np.ndarray) -> np.ndarray:
        columns: list[np.ndarray] = []
        for data in self.data:
            total, hits = np.zeros(len(points)), np.zeros((len(points), len(data.counts)))
            for share in data.shares:
                rows = self._rows_at(share.captured, points)
                sums, _ = self._runners[id(share)].run(points, rows)
                of_share, right = share.totals(sums)
                total, hits = total + of_share, hits + right
            loss = total / data.weight
            if not columns and self.eager.weight_decay:
                loss = loss + 0.5 * self.eager.weight_decay * self._squared_norm(points)
            columns.append(loss)
            for m, wrong in enumerate(data.wrong):
                right = data.counts[m] - hits[:, m] if wrong else hits[:, m]
                with np.errstate(invalid="ignore", divide="ignore"):
                    columns.append(right / data.counts[m])
        return np.stack(columns, axis=1)

    def values(
        self, captured: Captured, tiles: Tiles, points: np.ndarray, *, lanes: int, exact: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """What a program gives for other samples.

        Args:
            captured: Whose program.
            tiles: The samples.
            points: ``[G, K]``.
            lanes: Of the tiles.
            exact: Whether it is to compute in fp32 in any case.

        Returns:
            Sums ``[groups, G, terms]`` and outputs ``[tiles, G, entries, lanes]``.
        """
        sets = self._packed[id(captured)]
        runner = captured.runner(lanes, tiles, sets, self.num_directions + 1, exact=exact)
        sums, values = runner.run(points, self._rows_at(captured, points), with_values=True)
        assert values is not None
        return sums, values

    def _rows_at(self, captured: Captured, points: np.ndarray) -> dict[int, np.ndarray]:
        rows = self._rows[id(captured)]
        return rows(points) if rows else {}

    def _squared_norm(self, points: np.ndarray) -> np.ndarray:
        c = np.concatenate([np.ones((len(points), 1)), points], axis=1)
        return np.einsum("gi,ij,gj->g", c, self._gram, c)
