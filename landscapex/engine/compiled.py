"""The engine for captured models: a grid program, run for many grid points at once."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscapex._batch import Batch, sample_count, tensor_leaves
from landscapex.engine.capture import capture, evaluate_part, form_of
from landscapex.engine.eager import EagerEngine, Stop, batch_norms
from landscapex.engine.lowering.core import Denominator, Lowered
from landscapex.engine.lowering.lower import lower
from landscapex.engine.packing import (
    Tiles,
    pack,
    pack_points,
    pack_samples,
    slot_values,
)
from landscapex.engine.plan import NotCapturedError, Plan
from landscapex.engine.steps import GruCell, LstmCell
from landscapex.parameters import ParameterSpace

MOST_FORMS = 8  # of batches: each needs a plan of its own
_FORMED_BYTES = 64 << 20  # weights of the points of one call
_MOST_POINTS = 256  # of one call
_PRODUCT_BYTES = 256 << 20  # of shared products that are kept from call to call
_CACHE_FLOATS = 1 << 18  # of a tile that stays in the second-level cache
_LANES = {48: 1.0, 32: 1.06, 16: 1.15}  # of a tile: work per lane, about, where all of it fits
# With AMX, reading the weights once per tile is what takes the time, and vectors come in pairs;
# processors that have it have 2 MiB of second-level cache.
_AMX_LANES = {96: 1.0, 64: 1.06, 32: 1.3, 16: 1.4}
_AMX_CACHE_FLOATS = 1 << 19


def native_module() -> Any:
    """Load the library that runs programs.

    Returns:
        ``landscapex._program``.

    Raises:
        ImportError: If it was not built, or cannot be loaded.
    """
    return importlib.import_module("landscapex._program")


def unavailable() -> str | None:
    """Why there is no compiled engine here; None if there is one."""
    try:
        native_module()
    except ImportError as error:
        return f"the compiled engine is not installed ({error})"
    return None


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
    ) -> tuple[list[np.ndarray | None], _PerPoint | None]:
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
        return sets, _PerPoint(self, space, center, directions, per_point) if per_point else None


class _PerPoint:
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


@dataclass(frozen=True)
class _Share:
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
class _DataSet:
    """All batches of one data set.

    Attributes:
        shares: By form.
        weight: Of the loss, in all.
        counts: Of each metric, in all.
        wrong: Whether a metric counts what is not right.
    """

    shares: tuple[_Share, ...]
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
        data: Sequence[_DataSet],
        center: Tensor,
        directions: Tensor,
    ) -> None:
        self.eager, self.data = eager, tuple(data)
        self.space = eager.space
        self._weights: dict[int, tuple[list[np.ndarray | None], _PerPoint | None]] = {}
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
    def shares(self) -> list[_Share]:
        """The batches of each form in each data set."""
        return [s for d in self.data for s in d.shares]

    @property
    def points_at_once(self) -> int:
        """How many points one call should have, at least, where there are as many."""
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
        return max(1, min(_MOST_POINTS, _FORMED_BYTES // max(1, 4 * floats)))

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

    def _sums(self, share: _Share, points: np.ndarray) -> np.ndarray:
        program = share.captured.program(share.lanes)
        ready = id(share) in self._products
        if not ready:
            size = len(share.tiles.valid) * program.affine_floats(self.num_directions + 1)
            fits = 0 < 4 * size <= _PRODUCT_BYTES
            self._products[id(share)] = np.empty(size, np.float32) if fits else None
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


def threads() -> int:
    """How many threads the program uses: those of torch, never more than there are processors."""
    return max(1, min(torch.get_num_threads(), os.cpu_count() or 1))


def bf16_kernel() -> str:
    """Which instructions multiply numbers of bf16 here.

    Returns:
        ``"amx"``, ``"avx512_bf16"``, or ``"portable"``: rounded to bf16, multiplied in fp32.
    """
    return str(native_module().bf16_kernel())


def refuse(eager: EagerEngine) -> None:
    """Refuse settings that only the eager engine serves.

    Args:
        eager: Holds the settings.

    Raises:
        NotCapturedError: Why.
    """
    space = eager.space
    if why := unavailable():
        raise NotCapturedError(why)
    if space.device.type != "cpu":
        raise NotCapturedError(f"the model is on {space.device}")
    odd = {str(e.dtype).removeprefix("torch.") for e in space.entries} - {"float32"}
    if odd:
        raise NotCapturedError(f"parameters are {', '.join(sorted(odd))}")
    if eager.bn != "eval" and batch_norms(space.model):
        raise NotCapturedError(f"bn={eager.bn!r} makes batch norm depend on the batch")
    if eager.precision not in ("model", "fp32", "bf16"):
        raise NotCapturedError(f"precision={eager.precision!r}")
    if eager.common_seed:
        raise NotCapturedError("check=False asks for random draws")
    if torch.is_autocast_enabled("cpu"):
        raise NotCapturedError("autocast is on")
    if any(batches.reader for batches in eager.data.values()):
        raise NotCapturedError("the data are read again for each point")
    if not all(m.built_in for m in eager.measure.metrics):
        raise NotCapturedError("a metric is a function of the user's")


class PlanCache:
    """Plans of one objective, for as long as they fit.

    A plan serves until a parameter or buffer is replaced, or the model gets another structure; its
    lowering, until a tensor that no direction moves gets other numbers.
    """

    def __init__(self) -> None:
        self._structure: Any = None
        self._bytes = ""
        self._plans: dict[Any, Plan] = {}
        self._captured: dict[Any, Captured] = {}
        self.reused = False
        """Whether a plan of an earlier run was handed out since `adapt`."""

    def adapt(self, model: nn.Module, moving: frozenset[str]) -> None:
        """Forget what does not fit the model any more.

        Args:
            model: As it is now.
            moving: Names of parameters that some direction moves.
        """
        tensors = [*model.named_parameters(), *model.named_buffers()]
        structure = (repr(model), [(n, t.data_ptr(), t.shape, t.dtype) for n, t in tensors])
        digest = hashlib.sha256()
        for name, tensor in tensors:
            if name not in moving:
                raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
                digest.update(raw.numpy().data)
        if structure != self._structure:
            self._plans.clear()
        if structure != self._structure or digest.hexdigest() != self._bytes:
            self._captured.clear()
        self._structure, self._bytes = structure, digest.hexdigest()
        self.reused = False

    def forget(self) -> bool:
        """Forget everything; tells whether there was something."""
        had = bool(self._plans)
        self._plans.clear()
        self._captured.clear()
        return had

    def captured(
        self, eager: EagerEngine, form: str, batch: Batch, moving: frozenset[str]
    ) -> Captured:
        """The program for batches of one form.

        Args:
            eager: Holds model and loss.
            form: Of the batches.
            batch: One of them.
            moving: Names of parameters that some direction moves.

        Returns:
            From the cache if it is there.
        """
        key = (form, moving)
        bf16 = eager.precision == "bf16"
        if key in self._plans:
            self.reused = True
        else:
            self._plans[key] = capture(eager.space.model, eager.measure, batch, moving=moving)
        if (key, bf16) not in self._captured:
            self._captured[key, bf16] = Captured(self._plans[key], eager.measure.metrics, bf16=bf16)
        return self._captured[key, bf16]


def compile_engine(
    eager: EagerEngine, center: Tensor, directions: Tensor, plans: PlanCache
) -> CompiledEngine:
    """Capture the model and prepare its data.

    Args:
        eager: Of the session; the model stands at the centre.
        center: ``(P,)``.
        directions: ``(K, P)``.
        plans: Of the objective.

    Returns:
        An engine that has not been checked yet.

    Raises:
        NotCapturedError: If the model needs the eager engine.
    """
    refuse(eager)
    moving = _moving(eager.space, directions)
    plans.adapt(eager.space.model, moving)
    sets = []
    for name, batches in eager.data.items():
        forms: dict[str, list[Batch]] = {}
        numbers: dict[str, list[int]] = {}
        for b, batch in enumerate(batches):
            if sample_count(batch):  # an empty batch adds nothing to a sum
                forms.setdefault(form_of(batch), []).append(batch)
                numbers.setdefault(form_of(batch), []).append(b)
        if len(forms) > MOST_FORMS:
            raise NotCapturedError(f"the batches of {name} have {len(forms)} different shapes")
        weights, counts = _weights(eager, name)
        shares = []
        for form, of_form in forms.items():
            captured = plans.captured(eager, form, of_form[0], moving)
            mine = weights[numbers[form]]
            shares.append(_share(form, captured, of_form, mine, eager, len(directions) + 1))
        wrong = tuple(m.name == "error" for m in eager.measure.metrics)
        sets.append(_DataSet(tuple(shares), float(weights.sum()), counts, wrong))
    return CompiledEngine(eager, sets, center, directions)


def _moving(space: ParameterSpace, directions: Tensor) -> frozenset[str]:
    return frozenset(
        e.name for e in space.entries if bool((directions[:, e.offset : e.end] != 0).any())
    )


def _weights(eager: EagerEngine, name: str) -> tuple[np.ndarray, np.ndarray]:
    """What each batch weighs, and what each metric counts in all."""
    weights, counts = [], []
    with eager._grad_mode(), eager._mode():
        for terms in eager._terms(eager.data[name], name, None):
            weights.append(float(terms.weight))
            counts.append([float(count) for _, count in terms.metrics.values()])
    return np.array(weights), np.array(counts).sum(axis=0)


def _share(
    form: str,
    captured: Captured,
    batches: Sequence[Batch],
    weights: np.ndarray,
    eager: EagerEngine,
    sets: int,
) -> _Share:
    computed = [captured.computed(b) for b in batches]
    if eager.measure.regroupable:
        groups, weights = [computed], np.array([weights.sum()])
        samples = [sum(sample_count(b) for b in batches)]
    else:
        groups = [[c] for c in computed]
        samples = [sample_count(b) for b in batches]
    lanes = captured.lanes(max(samples), sets)
    tiles = pack_samples(captured.lowered, captured.plan.values, groups, lanes)
    divisors = tuple(captured.divisors(group, n) for group, n in zip(groups, samples, strict=True))
    return _Share(form, captured, lanes, tiles, weights, divisors)


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
