"""The grid program: what an engine does for one tile of samples at one grid point, as plain data.

A *buffer* holds ``elements`` numbers of every sample of a tile, ``[elements][lanes]``: lane =
sample. Steps say by tables of element numbers what they read and where they write, so that moving,
slicing, padding and transposing cost nothing: they only change the tables. *Weights* are numbers
that all samples share, packed in the order in which a step reads them.

Nothing here knows about instruction sets, threads or CUDA: engines run the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from landscapex.engine.steps import Step, Table


class Grid(IntEnum):
    """How a value depends on the coordinates of a grid point."""

    NONE = 0
    """The same for all points."""
    AFFINE = 1
    """``v_0 + sum_k c_k v_k``: K + 1 buffers serve all points."""
    FULL = 2
    """One value for each point."""


@dataclass(frozen=True)
class Buffer:
    """Storage of one value, for one tile.

    Attributes:
        elements: Numbers per sample.
        grid: NONE for inputs, AFFINE for K + 1 copies, FULL otherwise.
        kind: ``"live"``, ``"input"`` (float32 data) or ``"index"`` (int32 data: tokens, labels).
        fill: What elements hold that no step writes (halos and padding).
        name: For people.
    """

    elements: int
    grid: Grid
    kind: str = "live"
    fill: float = 0.0
    name: str = ""


@dataclass(frozen=True)
class Term:
    """``scale[i] * slot[index[i]]``; nothing where ``index[i]`` is -1.

    Attributes:
        slot: Number of a slot of the plan.
        index: int64, entries of the flattened slot.
        scale: float64 factors, or None.
    """

    slot: int
    index: np.ndarray
    scale: np.ndarray | None = None


@dataclass(frozen=True)
class Weight:
    """Numbers that all samples share: a sum of terms, plus an offset.

    They depend on the point as their slots do; the offset and the scales never do.

    Attributes:
        size: How many.
        terms: Summed in float64 for each direction by itself, then rounded to float32.
        offset: float64, added at the centre only, or None.
        winograd: ``(M, C)`` if the entries are 3 x 3 filters ``[M][C][9]`` to be transformed and
            packed as ``[36][M / 8][C][8]``; ``size`` is then that of the packed result.
    """

    size: int
    terms: tuple[Term, ...]
    offset: np.ndarray | None = None
    winograd: tuple[int, int] | None = None


@dataclass(frozen=True)
class Program:
    """Steps in the order of execution, and what they work on.

    Attributes:
        buffers: By id.
        weights: By id.
        steps: Those with an AFFINE output (a `Contract` that reads an input, or a `Map` copy or a
            `Reduce` sum of an AFFINE buffer) run once per chunk of points.
        terms: Number of sums that loss steps add to.
        outputs: Buffers and tables of values that can be asked for: what the model returns.
        storage: Of each buffer, the memory it lies in: buffers of one storage are never needed at
            the same time. Empty: each buffer has its own.
    """

    buffers: tuple[Buffer, ...]
    weights: tuple[Weight, ...]
    steps: tuple[Step, ...]
    terms: int
    outputs: tuple[tuple[int, Table], ...] = ()
    storage: tuple[int, ...] = ()
