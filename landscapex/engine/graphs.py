"""The evaluation of the eager engine as CUDA graphs: one launch for all kernels of many batches.

A small network on a device spends its time on launches. A graph holds the forward passes and losses
of resident batches and reads the parameters where they are; `perturb_` writes a point into them and
the graph is replayed, without a line of Python of the model. So only what is a function of weights
and data may be recorded, and a recording is trusted where it gave the bits of the model.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from landscapex._batch import Batch
from landscapex.batches import FrozenBatches
from landscapex.engine.batch_norm import batch_norms
from landscapex.engine.cuda_graph import Graph, graphs_on
from landscapex.engine.eager import EagerEngine, Stop
from landscapex.engine.validation import check_points
from landscapex.losses.own_measures import ModelMeasure
from landscapex.losses.torch_measure import TorchMeasure
from landscapex.losses.totals import Terms, Totals
from landscapex.model.guard import Snapshot

_FEWEST_POINTS = 16  # recording and comparing takes as long as about eight
_BATCHES = 32  # of one graph: what a launch costs is then shared, and a request to stop is heard
_REASON = 200  # characters that a reason takes over from an error
_UNKNOWN_BEFORE = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_TRUSTED = "replayed as CUDA graphs, which gave the bits of the model where they were compared"

T = TypeVar("T")
log = logging.getLogger("landscapex")
_capturing = threading.Lock()  # models of other threads may be recorded too


class NotRecordedError(Exception):
    """Why an evaluation is not replayed."""


def record(
    eager: EagerEngine,
    snapshot: Snapshot,
    center: Tensor,
    directions: Tensor,
    low: np.ndarray,
    high: np.ndarray,
    points: int,
) -> str:
    """Record the evaluation of an engine, if that pays, can be done and can be trusted.

    Args:
        eager: Has evaluated the centre, where the model stands, now and afterwards.
        snapshot: Of the model.
        center: ``(P,)``.
        directions: ``(K, P)``.
        low: Smallest coordinates of the run, ``[K]``.
        high: Largest.
        points: How many.

    Returns:
        What came of it in words, for the provenance; nothing where there is nothing to say.
    """
    eager.release()
    make = graphs_on(eager.space.device)
    if make is None or points < _FEWEST_POINTS:
        return ""
    try:
        _refuse(eager)
        with _capturing:
            eager.recording = Recording(eager, make)
        _compare(eager, snapshot, center, directions, check_points(low, high, center, directions))
        said = _TRUSTED
    except Exception as error:  # launches one by one serve every model, or raise it again
        eager.release()
        why = _in_words(error)
        log.info("the model runs without CUDA graphs: %s", why)
        said = f"not as CUDA graphs: {why}"
    snapshot.move(center, directions[:0], [])
    return said


class Recording:
    """The forward passes and losses of all data, ready to be replayed; see `record`.

    Args:
        eager: Whose evaluation; the model stands anywhere.
        make: Makes graphs.

    Raises:
        NotRecordedError: If a graph cannot hold the work.
    """

    def __init__(self, eager: EagerEngine, make: Callable[[], Graph]) -> None:
        self._totals: dict[str, Totals] = {}  # replays write the tensors that they hold
        self._make = make
        self._graphs: list[Graph] = []
        self._weight_decay = eager.weight_decay
        self._squared_norm: Tensor | None = None
        self._signature = _signature(eager)
        # what graphs read stays allocated, whoever else lets go of it
        self._data = dict(eager.laid_out)
        self._memory = [t.detach() for t in _tensors(eager)]
        buffers = [b for b in eager.space.model.buffers() if not b.is_inference()]
        versions = [b._version for b in buffers]
        try:
            with eager.evaluating():
                self._record(eager)
        except BaseException:
            self.free()
            raise
        # replays write to them too, and tell nobody
        self._written = [b for b, v in zip(buffers, versions, strict=True) if b._version != v]

    def _record(self, eager: EagerEngine) -> None:
        for name, batches in self._data.items():
            totals = self._totals[name] = Totals(replayed=True)
            for some in _stretches(batches):
                for terms in self._captured(_evaluation(eager, some), eager.space.device):
                    totals.add(terms)
        if self._weight_decay:
            self._squared_norm = self._captured(eager.squared_norm, eager.space.device)

    def _captured(self, work: Callable[[], T], device: torch.device) -> T:
        before = _generators(device)
        with _Watched():
            work()
        if any(not torch.equal(a, b) for a, b in zip(before, _generators(device), strict=True)):
            raise NotRecordedError("it draws random numbers")
        self._graphs.append(self._make())
        return self._graphs[-1].capture(work)

    def values(self, stop: Stop | None = None) -> list[float]:
        """As `EagerEngine.here`: of the model as it stands.

        Args:
            stop: Asked between graphs.

        Returns:
            In the order of the engine's columns.
        """
        for graph in self._graphs:
            if stop is not None:
                stop.poll()
            graph.replay()
        torch.autograd.graph.increment_version(self._written)
        values = [value for totals in self._totals.values() for value in totals.values()]
        if self._squared_norm is not None:
            values[0] += 0.5 * self._weight_decay * float(self._squared_norm)
        return values

    def stale(self, eager: EagerEngine) -> bool:
        """Whether it reads other memory, or computes in another way, than its engine would now.

        Args:
            eager: Whose evaluation it is.

        Returns:
            Whether it must not be replayed.

        Raises:
            DataError: If somebody wrote to the batches.
        """
        for batches in self._data.values():
            for _ in batches:
                pass
        return self._signature != _signature(eager)

    def free(self) -> None:
        """Give the memory back."""
        for graph in self._graphs:
            graph.free()
        self._graphs, self._totals, self._squared_norm = [], {}, None


class _Watched(TorchDispatchMode):
    """Refuses what Python would have to know before it can go on; CUDA would break off later."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(tag in getattr(func, "tags", ()) for tag in _UNKNOWN_BEFORE):
            raise NotRecordedError(f"{func} makes Python wait for numbers")
        return func(*args, **(kwargs or {}))


def _refuse(eager: EagerEngine) -> None:
    """Refuse settings under which Python has something to do at every point."""
    measure = eager.measure
    if not isinstance(measure, TorchMeasure | ModelMeasure):
        raise NotRecordedError("the loss is a function of the user's")
    if not all(m.built_in for m in measure.metrics):
        raise NotRecordedError("a metric is a function of the user's")
    if eager.common_seed:
        raise NotRecordedError("check=False asks for random draws")
    if eager.differentiates:
        raise NotRecordedError("the loss differentiates")
    if eager.layout.most is not None:
        raise NotRecordedError("device memory is short")
    if eager.bn == "recompute" and batch_norms(eager.space.model):
        raise NotRecordedError("bn='recompute' goes through the data twice")
    for name, batches in eager.laid_out.items():
        if batches.cache != "device":
            where = "are read again for each point" if batches.reader else "stay in main memory"
            raise NotRecordedError(f"the batches of {name} {where}")


def _compare(
    eager: EagerEngine, snapshot: Snapshot, center: Tensor, directions: Tensor, points: np.ndarray
) -> None:
    """At the centre, and at the last of the points: graphs must read the weights that moved."""
    assert eager.recording is not None
    for coordinates in (points[0].tolist(), points[-1].tolist()):
        snapshot.move(center, directions, coordinates)
        expected = eager.here()
        snapshot.move(center, directions, coordinates)  # buffers as they were
        found = eager.recording.values()
        for name, a, b in zip(eager.columns or (), found, expected, strict=True):
            if a != b and not (a != a and b != b):
                where = ", ".join(f"{c:.3g}" for c in coordinates)
                raise NotRecordedError(f"they give another {name} at ({where}): {a!r}, {b!r}")


def _in_words(error: Exception) -> str:
    if isinstance(error, NotRecordedError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "device memory is short"
    first = (str(error).strip().splitlines() or [""])[0][:_REASON]
    return f"{type(error).__name__}: {first}"


def _stretches(batches: FrozenBatches) -> Iterator[list[Batch]]:
    all_of_them = list(batches)
    for start in range(0, len(all_of_them), _BATCHES):
        yield all_of_them[start : start + _BATCHES]


def _evaluation(eager: EagerEngine, batches: list[Batch]) -> Callable[[], list[Terms]]:
    """Forward passes and losses of some batches."""
    model, measure = eager.space.model, eager.measure

    def work() -> list[Terms]:
        try:
            return [measure(model, batch) for batch in batches]
        finally:  # weights that autocast has cast are of this point, and memory of one graph
            torch.clear_autocast_cache()

    return work


def _tensors(eager: EagerEngine) -> list[Tensor]:
    model = eager.space.model
    return [*model.parameters(), *model.buffers()]


def _signature(eager: EagerEngine) -> tuple[Any, ...]:
    """Where the parameters and the data are, and the arithmetic that the caller has switched on."""
    kind = eager.space.device.type
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
    return (
        [(p.data_ptr(), p.shape, p.stride(), p.dtype) for p in eager.space.model.parameters()],
        [id(batches) for batches in eager.laid_out.values()],
        autocast,
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
    )


def _generators(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states
