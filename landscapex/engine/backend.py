"""Where grid programs run: what the engine asks of a processor or a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from landscapex.engine.packing import Tiles
from landscapex.engine.program import Program


class Runner(Protocol):
    """A program with its data and weights, ready to run."""

    @property
    def fewest_points(self) -> int:
        """How many points one call should have, at least."""

    @property
    def most_points(self) -> int:
        """How many points one call should have, at most, where there are as many."""

    def run(
        self, points: np.ndarray, rows: Mapping[int, np.ndarray], *, with_values: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Evaluate grid points.

        Args:
            points: ``[G, K]`` float64.
            rows: Weights that come with the points, by number: ``[G, size]``.
            with_values: Whether the outputs are wanted.

        Returns:
            Sums ``[groups, G, terms]`` of the tiles that each group owns, and ``[tiles, G, entries,
            lanes]`` or None. The bits of a point do not depend on the others.
        """


class Backend(Protocol):
    """Runs programs.

    Attributes:
        winograd: Whether it knows the `Winograd` step.
    """

    winograd: bool

    def unavailable(self, math: str) -> str | None:
        """Why programs cannot run here with this arithmetic; None if they can."""

    def describe(self, math: str) -> str | None:
        """What is worth saying about the arithmetic."""

    def program(self, program: Program, lanes: int, math: str) -> Any:
        """What runs a program, without its numbers.

        Args:
            program: Any.
            lanes: Samples per tile, a multiple of 16.
            math: How contractions multiply: one of ``"fp32"``, ``"tf32"``, ``"bf16x3"``,
                ``"bf16"``.

        Returns:
            What `lanes` and `runner` take.
        """

    def lanes(self, made: Any, program: Program, samples: int, num_sets: int, math: str) -> int:
        """How many samples a tile should have.

        Args:
            made: What `program` returned, for 16 lanes.
            program: What it was made of.
            samples: In all.
            num_sets: K + 1.
            math: Of the program.

        Returns:
            A multiple of 16.
        """

    def runner(
        self,
        made: Any,
        program: Program,
        tiles: Tiles,
        sets: Sequence[np.ndarray | None],
        num_sets: int,
    ) -> Runner:
        """A program with its data and weights.

        Args:
            made: What `program` returned.
            program: What it was made of.
            tiles: The samples.
            sets: By weight: ``[1 or K + 1, size]``, None for those that come with the points.
            num_sets: K + 1.

        Returns:
            Ready to run.
        """
