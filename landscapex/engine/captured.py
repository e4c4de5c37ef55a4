"""A captured model and its program, for batches of one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscapex._batch import Batch, tensor_leaves
from landscapex.engine.capture import evaluate_part
from landscapex.engine.lowering.core import Denominator, Lowered
from landscapex.engine.lowering.lower import lower
from landscapex.engine.native import bf16_kernel, native_module
from landscapex.engine.packing import pack, pack_points, slot_values
from landscapex.engine.plan import Plan
from landscapex.engine.steps import GruCell, LstmCell
from landscapex.parameters import ParameterSpace

_CACHE_FLOATS = 1 << 18  # of a tile that stays in the second-level cache
_LANES = {48: 1.0, 32: 1.06, 16: 1.15}  # of a tile: work per lane, about, where all of it fits
# With AMX, reading the weights once per tile is what takes the time, and vectors come in pairs;
# processors that have it have 2 MiB of second-level cache.
_AMX_LANES = {96: 1.0, 64: 1.06, 32: 1.3, 16: 1.4}
_AMX_CACHE_FLOATS = 1 << 19


class Captured:
    """A plan and its program for batches of one form, with all that does not depend on numbers.

    Args:
        plan: The captured model.
        share: Whether products may be shared among points.
        metrics: Built-in metrics of the objective.
        bf16: Whether linear layers and convolutions round their inputs and weights to bf16.
    """

    def __init__(
        self, plan: Plan, metrics: Sequence[Any], *, share: bool = True, bf16: bool = False
    ) -> None:
        self.plan, self.bf16 = plan, bf16
        rules = [m.rule for m in metrics]
        self.lowered: Lowered = lower(plan, metrics=rules, share=share, winograd=not bf16)
        self._programs: dict[tuple[int, bool], Any] = {}

    def program(self, lanes: int, *, exact: bool = False) -> Any:
        """The native program for tiles of so many lanes.

        Args:
            lanes: A multiple of 16.
            exact: Whether it is to compute in fp32 in any case.

        Returns:
            A ``landscapex._program.Program``.
        """
        key = (lanes, self.bf16 and not exact)
        if key not in self._programs:
            self._programs[key] = native_module().Program(lanes, self.lowered.program, bf16=key[1])
        return self._programs[key]

    def lanes(self, samples: int, num_sets: int) -> int:
        """Samples per tile: as many as the cache holds, without much waste in the last tile.

        Args:
            samples: In all.
            num_sets: K + 1.

        Returns:
            16, 32 or 48; up to 96 with AMX.
        """
        per_lane = self.program(16).arena_floats(num_sets) / 16
        amx = self.bf16 and bf16_kernel() == "amx"
        choices, most = (_AMX_LANES, _AMX_CACHE_FLOATS) if amx else (_LANES, _CACHE_FLOATS)
        # recurrent layers walk through their long buffers once, and work on short ones
        recurrent = any(isinstance(s, LstmCell | GruCell) for s in self.lowered.program.steps)
        costs = {
            lanes: -(-samples // lanes) * lanes * cost
            for lanes, cost in choices.items()
            if lanes == 16 or recurrent or per_lane * lanes <= most
        }
        return min(costs, key=lambda lanes: (costs[lanes], -lanes))

    def computed(self, batch: Batch) -> dict[str, Tensor]:
        """What torch computes once per batch: by node, the values that the program takes."""
        env = dict(zip(self.plan.inputs, tensor_leaves(batch), strict=True))
        nodes = {i.node for i in self.lowered.inputs}
        nodes |= {p.denominator.labels for p in self._parts() if p.denominator} - {None}
        return evaluate_part(self.plan, sorted(n for n in nodes if n), env)

    def _parts(self) -> Sequence[Any]:
        return self.lowered.loss.parts

    def divisors(self, group: Sequence[Mapping[str, Tensor]], samples: int) -> list[float]:
        """What each sum of the loss is divided by, for one group of samples.

        Args:
            group: What `computed` gave for each of its batches.
            samples: In the group.

        Returns:
            One number per part of the loss.
        """
        return [_divisor(p.denominator, group, samples) for p in self._parts()]

    def mean_loss(self, sums: np.ndarray, divisors: Sequence[float]) -> np.ndarray:
        """The mean loss of one group of samples.

        Args:
            sums: ``[G, terms]``.
            divisors: Of the group.

        Returns:
            ``[G]``.
        """
        mean = np.full(len(sums), self.lowered.loss.constant)
        for part, divisor in zip(self._parts(), divisors, strict=True):
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = mean + part.coefficient * sums[:, part.term] / divisor
        return mean

    def packed(
        self, space: ParameterSpace, center: Tensor, directions: Tensor
    ) -> tuple[list[np.ndarray | None], PerPoint | None]:
        """The sets of every weight, and what computes the others at each point."""
        vectors = [space.unflatten(v) for v in (center, *directions)]
        values = slot_values(self.lowered.slots, vectors[0], vectors[1:])
        derived = set(self.lowered.derived)
        per_point = [
            i
            for i, w in enumerate(self.lowered.program.weights)
            if any(t.slot in derived for t in w.terms)
        ]
        sets = [
            None if i in per_point else pack(w, values)
            for i, w in enumerate(self.lowered.program.weights)
        ]
        return sets, PerPoint(self, space, center, directions, per_point) if per_point else None


class PerPoint:
    """Weights that are not linear in the parameters (weight norm): by torch, for each point."""

    def __init__(
        self,
        captured: Captured,
        space: ParameterSpace,
        center: Tensor,
        directions: Tensor,
        weights: list[int],
    ) -> None:
        self.captured, self.space, self.weights = captured, space, weights
        self.center, self.directions = center.double(), directions.double()

    def __call__(self, points: np.ndarray) -> dict[int, np.ndarray]:
        """Weights by number, ``[G, size]``."""
        lowered, plan = self.captured.lowered, self.captured.plan
        rows = [self._slots(lowered, plan, torch.from_numpy(p)) for p in points]
        return {i: pack_points(lowered.program.weights[i], rows) for i in self.weights}

    def _slots(self, lowered: Lowered, plan: Plan, coordinates: Tensor) -> list[Any]:
        flat = (self.center + coordinates @ self.directions).to(self.space.dtype)
        tensors = self.space.unflatten(flat)
        env = {
            node: tensors[plan.slots[i].name] for node, i in plan.slot_of.items()
            if plan.slots[i].moves
        }  # fmt: skip
        made = evaluate_part(plan, list(lowered.derived.values()), env)
        found: list[Any] = []
        for i, slot in enumerate(lowered.slots):
            if i in lowered.derived:
                tensor = made[lowered.derived[i]]
            elif slot.moves:
                tensor = tensors[slot.name]
            else:
                assert slot.tensor is not None
                tensor = slot.tensor
            found.append(tensor.detach().reshape(-1).numpy())
        return found


def _divisor(
    denominator: Denominator | None, group: Sequence[Mapping[str, Tensor]], samples: int
) -> float:
    if denominator is None:
        return 1.0
    if denominator.labels is None:
        return float(denominator.per_sample * samples)
    total = 0.0
    for computed in group:
        labels = computed[denominator.labels]
        counted = labels[labels != denominator.ignore_index]
        weight = denominator.class_weight
        total += float(len(counted) if weight is None else weight[counted].sum(dtype=torch.float64))
    return total
