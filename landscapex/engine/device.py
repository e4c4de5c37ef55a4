"""Programs on a CUDA device: data, weights and sums stay there, and work is enqueued in chunks.

A chunk is some tiles of samples times some grid points, small enough that what a network writes
stays in the second-level cache. All chunks of all data are in the queue before anything is waited
for; the only synchronisation is the copy of the sums.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscapex.engine.cuda_graph import Graph, graphs_on
from landscapex.engine.native import device_module, device_unavailable
from landscapex.engine.packing import Tiles
from landscapex.engine.program import Program

_TENSOR_CORES = (8, 0)  # compute capability that has those of bf16 and TF32
_LANES = (128, 64, 32, 16)  # of a tile
_WASTE = 1.05  # times the fewest lanes that tiles can have: larger tiles are worth as much
_CHUNK = 4  # times the cache: what a cell works in, of which a step needs a part at a time
_MOST_POINTS = 256  # of one call
_FEW_POINTS = 8  # among which shared products pay
_MOST_CELLS = 4096  # of one call
_MOVING, _FIXED, _PER_POINT = range(3)  # `Numbers` of csrc/program/device_program.h

log = logging.getLogger("landscapex")


@dataclass(frozen=True)
class Device:
    """What a runner needs to know of a device.

    Attributes:
        device: As torch has it.
        cache_bytes: Of the second-level cache.
        block_bytes: Of shared memory that one block can have.
        capability: Compute capability.
        graphs: Makes graphs of work; None where there are none.
    """

    device: torch.device
    cache_bytes: int
    block_bytes: int
    capability: tuple[int, int]
    graphs: Callable[[], Graph] | None = None

    @staticmethod
    def of(device: torch.device) -> Device:
        """Ask torch."""
        p = torch.cuda.get_device_properties(device)
        # PyTorch's stubs do not have it
        block = getattr(p, "shared_memory_per_block_optin", p.shared_memory_per_block)
        capability = (p.major, p.minor)
        return Device(device, p.L2_cache_size, block, capability, graphs_on(device))

    @property
    def stream(self) -> int:
        """Torch's current stream on it."""
        if self.device.type != "cuda":
            return 0
        return int(torch.cuda.current_stream(self.device).cuda_stream)

    def current(self) -> contextlib.AbstractContextManager[Any]:
        """Makes it the one that launches go to."""
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        return torch.cuda.device(self.device)


@dataclass(frozen=True)
class Made:
    """A program whose tables are on the device.

    Attributes:
        native: A ``DeviceProgram``.
        lanes: Of its tiles.
        tables: Kept alive.
    """

    native: Any
    lanes: int
    tables: Tensor


class DeviceBackend:
    """Runs programs on one device.

    Args:
        device: Where models and programs are.
        library: The module that binds the kernels; the tests' emulation has another.
        about: The device's properties; None asks torch.
    """

    winograd = False

    def __init__(
        self, device: torch.device, library: str = "_program_cuda", about: Device | None = None
    ) -> None:
        self.device, self._library, self._given = device, library, about

    @cached_property
    def about(self) -> Device:
        """The device's properties."""
        return self._given or Device.of(self.device)

    def unavailable(self, math: str) -> str | None:
        """Why programs cannot run here with this arithmetic; None if they can."""
        if why := device_unavailable(self._library):
            return why
        if math != "fp32" and self.about.capability < _TENSOR_CORES:
            have = ".".join(map(str, self.about.capability))
            return f"{math} needs compute capability 8.0, {self.device} has {have}"
        return None

    def describe(self, math: str) -> str | None:
        """What is worth saying about the arithmetic."""
        return None if math == "fp32" else f"{math} on tensor cores"

    def program(self, program: Program, lanes: int, math: str) -> Made:
        """The program with its tables on the device; see `Backend.program`."""
        native = device_module(self._library).DeviceProgram(
            lanes, program, math, self.about.block_bytes
        )
        tables = torch.from_numpy(native.tables().view(np.uint8)).to(self.device)
        return Made(native, lanes, tables)

    def lanes(self, made: Made, program: Program, samples: int, num_sets: int, math: str) -> int:
        """Samples per tile: many, without much waste in the last tile; see `Backend.lanes`."""
        # two cells of a tiny network have room in the shared memory of one multiprocessor
        per_lane = made.native.arena_floats / 16
        weights = sum(w.size for w in program.weights)
        light = math == "fp32" and weights <= made.native.weights_of_block
        small = [n for n in _LANES if light and 8 * per_lane * n <= self.about.block_bytes]
        choices = small or _LANES
        taken = {lanes: -(-samples // lanes) * lanes for lanes in choices}
        return max(lanes for lanes in choices if taken[lanes] <= _WASTE * min(taken.values()))

    def runner(
        self,
        made: Made,
        program: Program,
        tiles: Tiles,
        sets: Sequence[np.ndarray | None],
        num_sets: int,
    ) -> DeviceRunner:
        """A program with its data and weights on the device; see `Backend.runner`."""
        sizes = [w.size for w in program.weights]
        return DeviceRunner(self.about, made, sizes, tiles, sets, num_sets)


class DeviceRunner:
    """One program with its data and weights on a device; see `DeviceBackend.runner`."""

    def __init__(
        self,
        about: Device,
        made: Made,
        sizes: Sequence[int],
        tiles: Tiles,
        sets: Sequence[np.ndarray | None],
        num_sets: int,
    ) -> None:
        self._about, self._made, self._sizes, self._num_sets = about, made, list(sizes), num_sets
        self._kinds = [_kind(a) for a in sets]
        self._bind()
        self._valid = self._resident(tiles.valid)
        self._owner = self._resident(tiles.owner)
        self._inputs = [None if x is None else self._resident(x) for x in tiles.inputs]
        self._num_groups = int(tiles.owner.max()) + 1
        self._moving = self._flat(sets, _MOVING, num_sets)
        self._fixed = self._flat(sets, _FIXED, 1)
        self._tiles, self._points = self._chunk(len(tiles.valid))
        self._space: _Space | None = None

    @property
    def fewest_points(self) -> int:
        """How many points one call should have, at least: shared products are made per call."""
        return min(_FEW_POINTS, self._points)

    @property
    def most_points(self) -> int:
        """How many points one call should have, at most, where there are as many."""
        return self._points

    def run(
        self, points: np.ndarray, rows: Mapping[int, np.ndarray], *, with_values: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Evaluate grid points; see `Runner.run`."""
        self._bind()
        sums, values = [], []
        start = 0
        while start < len(points):
            space = self._working_space()
            part = slice(start, start + space.points)
            of_part = {i: a[part] for i, a in rows.items()}
            found, outputs = self._run_part(space, points[part], of_part, with_values)
            sums.append(found)
            values.append(outputs)
            start = part.stop
        both = np.concatenate(sums, axis=1)
        return both, np.concatenate(values, axis=1) if with_values else None

    def _run_part(
        self,
        space: _Space,
        points: np.ndarray,
        rows: Mapping[int, np.ndarray],
        with_values: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        native, count = self._made.native, len(points)
        space.coordinates[:count].copy_(torch.from_numpy(points))
        for i, (kind, offset) in enumerate(native.placed()):
            if kind == _PER_POINT:
                into = space.rows[:count, offset : offset + self._sizes[i]]
                into.copy_(torch.from_numpy(rows[i]))
        outputs: list[Tensor] = []
        with self._about.current():
            if with_values:
                self._enqueue(space, count, outputs)
            else:
                space.run(self, count)
            sums = space.totals.cpu().numpy()[:, :count].copy()
        values = torch.cat(outputs).cpu().numpy() if outputs else np.empty(0)
        return sums, values

    def _enqueue(self, space: _Space, count: int, outputs: list[Tensor] | None = None) -> None:
        """All data at the first points whose coordinates the space holds."""
        native, lanes = self._made.native, self._made.lanes
        space.totals.zero_()
        total = len(self._valid)
        for first in range(0, total, space.tiles):
            tiles = min(space.tiles, total - first)
            values = None
            if outputs is not None:
                shape = (tiles, count, native.output_elements, lanes)
                values = torch.empty(shape, dtype=torch.float32, device=self._about.device)
                outputs.append(values)
            call = {
                "tiles": tiles,
                "points": count,
                "most_tiles": space.tiles,
                "most_points": space.points,
                "inputs": [0 if x is None else x[first].data_ptr() for x in self._inputs],
                "valid": self._valid[first:].data_ptr(),
                "owner": self._owner[first:].data_ptr(),
                "moving": self._moving.data_ptr(),
                "fixed": self._fixed.data_ptr(),
                "per_point": space.rows.data_ptr(),
                "coordinates": space.coordinates.data_ptr(),
                "workspace": space.memory.data_ptr(),
                "totals": space.totals.data_ptr(),
                "values": 0 if values is None else values.data_ptr(),
            }
            stream = self._about.stream
            if not space.prepared:
                native.prepare(stream, **call)
                space.prepared = True
            if first == 0:
                native.form_weights(stream, **call)
            native.share(stream, **call)
            native.run(stream, **call)

    def _bind(self) -> None:
        """Programs are shared by runners, which differ in their weights."""
        self._made.native.bind(
            self._made.tables.data_ptr(), self._kinds, self._sizes, self._num_sets
        )

    def _resident(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._about.device)

    def _flat(self, sets: Sequence[np.ndarray | None], wanted: int, rows: int) -> Tensor:
        """All weights of one kind, one after the other in every row."""
        flat = np.zeros((rows, max(self._made.native.floats(wanted), 1)), np.float32)
        for a, (kind, offset) in zip(sets, self._made.native.placed(), strict=True):
            if kind == wanted and a is not None:
                flat[:, offset : offset + a.shape[1]] = a
        return self._resident(flat)

    def _chunk(self, total: int) -> tuple[int, int]:
        """How many tiles and points a call has: what a step reads and writes stays in the cache."""
        native, cache = self._made.native, self._about.cache_bytes
        per_point = 4 * (native.floats(_MOVING) + native.floats(_PER_POINT))
        points = max(1, min(_MOST_POINTS, cache // 4 // max(per_point, 1)))
        cell = max(1, 4 * native.arena_floats)
        cells = max(1, min(_MOST_CELLS, _CHUNK * cache // cell))
        points = min(points, cells)
        return max(1, min(total, cells // points)), points

    def _working_space(self) -> _Space:
        """Memory for one call; smaller calls, of the same numbers, where it is short."""
        while self._space is None:
            try:
                self._space = _Space(self, self._tiles, self._points)
            except torch.OutOfMemoryError:
                if self._points == self._tiles == 1:
                    raise
                if self._points > 1:
                    self._points = -(-self._points // 2)
                else:
                    self._tiles = -(-self._tiles // 2)
                log.info(
                    "device memory is short: %d tiles times %d points at once",
                    self._tiles, self._points,
                )  # fmt: skip
        return self._space


class _Space:
    """What calls of one size work in, and their graph once they have run."""

    def __init__(self, runner: DeviceRunner, tiles: int, points: int) -> None:
        native, device = runner._made.native, runner._about.device
        self.tiles, self.points = tiles, points
        size = native.workspace_bytes(tiles, points)
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.coordinates = torch.zeros(
            (points, runner._num_sets - 1), dtype=torch.float64, device=device
        )
        rows = (points, native.floats(_PER_POINT))
        self.rows = torch.zeros(rows, dtype=torch.float32, device=device)
        groups = runner._num_groups
        self.totals = torch.zeros(
            (groups, points, native.num_terms), dtype=torch.float64, device=device
        )
        self.prepared = False
        self._calls = 0
        self._graph: Graph | None = None

    def run(self, runner: DeviceRunner, count: int) -> None:
        """Enqueue a call; full ones, from the second on, as a graph, which costs one launch."""
        if count < self.points:
            runner._enqueue(self, count)
            return
        self._calls += 1
        if self._calls == 2:
            self._graph = self._captured(runner)
        if self._graph is None:
            runner._enqueue(self, count)
        else:
            self._graph.replay()

    def _captured(self, runner: DeviceRunner) -> Graph | None:
        make = runner._about.graphs
        if make is None:
            return None
        graph = make()
        try:
            graph.capture(lambda: runner._enqueue(self, self.points))
        except RuntimeError as error:  # launches one by one give the same numbers
            log.info("no CUDA graph: %s", error)
            return None
        return graph


def _kind(sets: np.ndarray | None) -> int:
    if sets is None:
        return _PER_POINT
    return _MOVING if len(sets) > 1 else _FIXED
