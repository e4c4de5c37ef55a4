"""A captured model and its program, for batches of one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscapex._batch import Batch, tensor_leaves
from landscapex.engine.backend import Backend, Runner
from landscapex.engine.capture import evaluate_part
from landscapex.engine.lowering.lanes import Denominator, Lowered
from landscapex.engine.lowering.lower import lower
from landscapex.engine.packing import Tiles, pack, pack_points, slot_values
from landscapex.engine.plan import Plan
from landscapex.model.parameters import ParameterSpace


class Captured:
    """A plan and its program for batches of one form, with all that does not depend on numbers.

    Args:
        plan: The captured model.
        metrics: Built-in metrics of the objective.
        backend: Where the program runs.
        math: How linear layers and convolutions multiply; see `Backend.program`.
        share: Whether products may be shared among points.
    """

    def __init__(
        self,
        plan: Plan,
        metrics: Sequence[Any],
        backend: Backend,
        *,
        math: str = "fp32",
        share: bool = True,
    ) -> None:
        self.plan, self.backend, self.math = plan, backend, math
        rules = [m.rule for m in metrics]
        winograd = backend.winograd and math == "fp32"
        self.lowered: Lowered = lower(plan, metrics=rules, share=share, winograd=winograd)
        self._made: dict[tuple[int, str], Any] = {}

    def lanes(self, samples: int, num_sets: int) -> int:
        """How many samples a tile should have; see `Backend.lanes`.

        Args:
            samples: In all.
            num_sets: K + 1.

        Returns:
            A multiple of 16.
        """
        program = self.lowered.program
        return self.backend.lanes(self._program(16), program, samples, num_sets, self.math)

    def runner(
        self,
        lanes: int,
        tiles: Tiles,
        sets: Sequence[np.ndarray | None],
        num_sets: int,
        *,
        exact: bool = False,
    ) -> Runner:
        """The program with data and weights.

        Args:
            lanes: Of the tiles.
            tiles: The samples.
            sets: What `packed` returned.
            num_sets: K + 1.
            exact: Whether it is to compute in fp32 in any case.

        Returns:
            Ready to run.
        """
        made = self._program(lanes, exact=exact)
        return self.backend.runner(made, self.lowered.program, tiles, sets, num_sets)

    def _program(self, lanes: int, *, exact: bool = False) -> Any:
        key = (lanes, "fp32" if exact else self.math)
        if key not in self._made:
            self._made[key] = self.backend.program(self.lowered.program, *key)
        return self._made[key]

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
        self.center, self.directions = center.double().cpu(), directions.double().cpu()

    def __call__(self, points: np.ndarray) -> dict[int, np.ndarray]:
        """Weights by number, ``[G, size]``."""
        lowered, plan = self.captured.lowered, self.captured.plan
        rows = [self._slots(lowered, plan, torch.from_numpy(p)) for p in points]
        return {i: pack_points(lowered.program.weights[i], rows) for i in self.weights}

    def _slots(self, lowered: Lowered, plan: Plan, coordinates: Tensor) -> list[Any]:
        flat = (self.center + coordinates @ self.directions).to(self.space.device, self.space.dtype)
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
            found.append(tensor.detach().reshape(-1).cpu().numpy())
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
        labels = computed[denominator.labels].cpu()
        counted = labels[labels != denominator.ignore_index]
        weight = denominator.class_weight
        total += float(
            len(counted) if weight is None else weight.cpu()[counted].sum(dtype=torch.float64)
        )
    return total
