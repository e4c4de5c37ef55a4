"""The engine for captured models: a grid program, run for many grid points at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscapex.engine.captured import Captured, PerPoint
from landscapex.engine.eager import EagerEngine, Stop
from landscapex.engine.native import threads
from landscapex.engine.packing import Tiles

_FORMED_BYTES = 64 << 20  # weights of the points of one call, at most
_NEAR_BYTES = 8 << 20  # of these: they stream through the processor faster than more do
_FEW_POINTS = 8  # at least, where shared products are made in each call
_ENOUGH_POINTS = 16  # of one call, among which shared products pay
_MOST_POINTS = 256  # of one call
_PRODUCT_BYTES = 256 << 20  # of shared products that are kept from call to call


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
        self._weights: dict[int, tuple[list[np.ndarray | None], PerPoint | None]] = {}
        for share in self.shares:
            if id(share.captured) not in self._weights:
                self._weights[id(share.captured)] = share.captured.packed(
                    self.space, center, directions
                )
        self._products: dict[int, np.ndarray | None] = {}
        self._directions = directions
        self.num_directions = len(directions)
        self._gram = np.zeros((0, 0))
        if eager.weight_decay:
            vectors = torch.cat([center[None], directions]).double()
            self._gram = (vectors @ vectors.T).numpy()

    def serves(self, directions: Tensor) -> bool:
        """Whether these are the directions that the weights were packed for."""
        return directions is self._directions

    @property
    def shares(self) -> list[Share]:
        """The batches of each form in each data set."""
        return [s for d in self.data for s in d.shares]

    @property
    def fewest_at_once(self) -> int:
        """How many points one call should have, at least: shared products may be made per call."""
        again = any(
            s.captured.program(s.lanes).affine_floats(1) and not self._kept(s) for s in self.shares
        )
        return min(_FEW_POINTS if again else 1, self.points_at_once)

    @property
    def points_at_once(self) -> int:
        """How many points one call should have, at most, where there are as many."""
        floats = max(
            sum(
                w.size
                for w, a in zip(
                    s.captured.lowered.program.weights, self._weights[id(s.captured)][0],
                    strict=True,
                )
                if a is None or len(a) > 1
            )
            for s in self.shares
        )  # fmt: skip
        size = max(1, 4 * floats)
        near = max(_ENOUGH_POINTS, _NEAR_BYTES // size)
        return max(1, min(_MOST_POINTS, near, _FORMED_BYTES // size))

    def losses(self, points: np.ndarray, stop: Stop | None = None) -> np.ndarray:
        """Losses and metrics at grid points.

        Args:
            points: ``(G, K)`` coordinates.
            stop: Asked between calls of the program.

        Returns:
            ``(n, M)`` float64, ``n <= G``, in the order of the eager engine's columns.
        """
        rows = []
        points = np.ascontiguousarray(points, dtype=np.float64)
        for start in range(0, len(points), self.points_at_once):
            if stop is not None and stop.requested:
                break
            rows.append(self._values(points[start : start + self.points_at_once]))
        return np.concatenate(rows) if rows else np.empty((0, len(self.eager.columns or ())))

    def _values(self, points: np.ndarray) -> np.ndarray:
        columns: list[np.ndarray] = []
        for data in self.data:
            total, hits = np.zeros(len(points)), np.zeros((len(points), len(data.counts)))
            for share in data.shares:
                of_share, right = share.totals(self._sums(share, points))
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

    def _kept(self, share: Share) -> int:
        """Floats of the shared products that are kept from call to call; 0 if there are none."""
        program = share.captured.program(share.lanes)
        size = len(share.tiles.valid) * program.affine_floats(self.num_directions + 1)
        return int(size) if 4 * size <= _PRODUCT_BYTES else 0

    def _sums(self, share: Share, points: np.ndarray) -> np.ndarray:
        program = share.captured.program(share.lanes)
        ready = id(share) in self._products
        if not ready:
            size = self._kept(share)
            self._products[id(share)] = np.empty(size, np.float32) if size else None
        sums, _ = program.run(
            share.tiles.valid, share.tiles.owner, list(share.tiles.inputs), points,
            self.weights(share.captured, points), threads(),
            products=self._products[id(share)], ready=ready,
        )  # fmt: skip
        return sums

    def weights(self, captured: Captured, points: np.ndarray) -> list[tuple[np.ndarray, bool]]:
        """What a program takes as weights.

        Args:
            captured: Whose.
            points: ``(G, K)``.

        Returns:
            By weight: its sets, or its rows for these points; and whether it is the latter.
        """
        sets, per_point = self._weights[id(captured)]
        made = per_point(points) if per_point else {}
        return [(made[i], True) if a is None else (a, False) for i, a in enumerate(sets)]

    def _squared_norm(self, points: np.ndarray) -> np.ndarray:
        c = np.concatenate([np.ones((len(points), 1)), points], axis=1)
        return np.einsum("gi,ij,gj->g", c, self._gram, c)
