"""Programs on the processor of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from landscapex.engine.native import bf16_kernel, native_module, threads, unavailable
from landscapex.engine.packing import Tiles
from landscapex.engine.program import Program
from landscapex.engine.steps import GruCell, LstmCell

_CACHE_FLOATS = 1 << 18  # of a tile that stays in the second-level cache
_LANES = {48: 1.0, 32: 1.06, 16: 1.15}  # of a tile: work per lane, about, where all of it fits
# With AMX, reading the weights once per tile is what takes the time, and vectors come in pairs;
# processors that have it have 2 MiB of second-level cache.
_AMX_LANES = {96: 1.0, 64: 1.06, 32: 1.3, 16: 1.4}
_AMX_CACHE_FLOATS = 1 << 19
_FORMED_BYTES = 64 << 20  # weights of the points of one call, at most
_NEAR_BYTES = 8 << 20  # of these: they stream through the processor faster than more do
_FEW_POINTS = 8  # at least, where shared products are made in each call
_ENOUGH_POINTS = 16  # of one call, among which shared products pay
_MOST_POINTS = 256  # of one call
_PRODUCT_BYTES = 256 << 20  # of shared products that are kept from call to call


class HostBackend:
    """Runs programs with the compiled kernels of this processor."""

    winograd = True

    def unavailable(self, math: str) -> str | None:
        """Why programs cannot run here with this arithmetic; None if they can."""
        if math not in ("fp32", "bf16"):
            return f"{math} needs a CUDA device"
        return unavailable()

    def describe(self, math: str) -> str | None:
        """What is worth saying about the arithmetic."""
        return f"bf16: {bf16_kernel()}" if math == "bf16" else None

    def program(self, program: Program, lanes: int, math: str) -> Any:
        """A ``landscapex._program.Program``; see `Backend.program`."""
        return native_module().Program(lanes, program, bf16=math == "bf16")

    def lanes(self, made: Any, program: Program, samples: int, num_sets: int, math: str) -> int:
        """Samples per tile: as many as the cache holds, without much waste in the last tile.

        Args:
            made: The native program for 16 lanes.
            program: What it was made of.
            samples: In all.
            num_sets: K + 1.
            math: Of the program.

        Returns:
            16, 32 or 48; up to 96 with AMX.
        """
        per_lane = made.arena_floats(num_sets) / 16
        amx = math == "bf16" and bf16_kernel() == "amx"
        choices, most = (_AMX_LANES, _AMX_CACHE_FLOATS) if amx else (_LANES, _CACHE_FLOATS)
        # recurrent layers walk through their long buffers once, and work on short ones
        recurrent = any(isinstance(s, LstmCell | GruCell) for s in program.steps)
        costs = {
            lanes: -(-samples // lanes) * lanes * cost
            for lanes, cost in choices.items()
            if lanes == 16 or recurrent or per_lane * lanes <= most
        }
        return min(costs, key=lambda lanes: (costs[lanes], -lanes))

    def runner(
        self,
        made: Any,
        program: Program,
        tiles: Tiles,
        sets: Sequence[np.ndarray | None],
        num_sets: int,
    ) -> HostRunner:
        """A program with its data and weights; see `Backend.runner`."""
        sizes = [w.size for w in program.weights]
        return HostRunner(made, sizes, tiles, sets, num_sets)


class HostRunner:
    """One program with its data and weights; see `HostBackend.runner`."""

    def __init__(
        self,
        made: Any,
        sizes: Sequence[int],
        tiles: Tiles,
        sets: Sequence[np.ndarray | None],
        num_sets: int,
    ) -> None:
        self._made, self._sizes, self._tiles, self._sets = made, sizes, tiles, sets
        size = len(tiles.valid) * made.affine_floats(num_sets)
        kept = size > 0 and 4 * size <= _PRODUCT_BYTES
        self._products = np.empty(size, np.float32) if kept else None
        self._ready = False
        self._shares = made.affine_floats(1) > 0

    @property
    def fewest_points(self) -> int:
        """How many points one call should have, at least: shared products may be made per call."""
        return _FEW_POINTS if self._shares and self._products is None else 1

    @property
    def most_points(self) -> int:
        """How many points one call should have, at most, where there are as many."""
        floats = sum(self._sizes[i] for i, a in enumerate(self._sets) if a is None or len(a) > 1)
        size = max(1, 4 * floats)
        near = max(_ENOUGH_POINTS, _NEAR_BYTES // size)
        return max(1, min(_MOST_POINTS, near, _FORMED_BYTES // size))

    def run(
        self, points: np.ndarray, rows: Mapping[int, np.ndarray], *, with_values: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Evaluate grid points; see `Runner.run`."""
        weights = [(rows[i], True) if a is None else (a, False) for i, a in enumerate(self._sets)]
        tiles = self._tiles
        found = self._made.run(
            tiles.valid, tiles.owner, list(tiles.inputs), points, weights, threads(),
            with_values=with_values, products=self._products, ready=self._ready,
        )  # fmt: skip
        self._ready = self._products is not None
        sums, values = found
        return sums, values
