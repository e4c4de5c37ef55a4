"""What a captured model is: its graph, and how every value depends on the batch and the grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from landscapex.engine.program import Grid


class NotCapturedError(Exception):
    """Why a model runs on the eager engine; never reaches the user as an error."""


@dataclass(frozen=True)
class Slot:
    """One memory range of the model, or a constant.

    Attributes:
        name: First name of the parameter or buffer; of the graph's constant otherwise.
        aliases: Other names of the same memory.
        role: ``"parameter"``, ``"buffer"``, ``"constant"``, or ``"derived"`` (computed from moving
            slots once per grid point, by the part of the graph that needs no data).
        shape: Of the tensor.
        dtype: Of the tensor.
        moves: Whether a direction is non-zero on it (or, for derived slots, on its sources).
        tensor: The live tensor (shares the model's memory), or the constant; None if derived.
    """

    name: str
    aliases: tuple[str, ...]
    role: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    moves: bool
    tensor: Tensor | None


@dataclass(frozen=True)
class Value:
    """What one node of the graph computes.

    Attributes:
        shape: Sizes; None where the size depends on that of the batch.
        rows: For each None in `shape`, in order, how many entries there are per sample.
        dtype: Of the tensor.
        data: Whether it depends on the batch.
        grid: How it depends on the grid point.
    """

    shape: tuple[int | None, ...]
    rows: tuple[int, ...]
    dtype: torch.dtype
    data: bool
    grid: Grid

    @property
    def kind(self) -> str:
        """``"constant"``, ``"batch"``, ``"weight"`` or ``"live"``."""
        if self.data:
            return "live" if self.grid else "batch"
        return "weight" if self.grid else "constant"


@dataclass(frozen=True)
class Plan:
    """A captured model (with its loss, if that is part of the graph).

    Attributes:
        graph: Of a model whose forward takes the tensors of a batch as one tuple; after
            ``run_decompositions({})``. Placeholders: slots, then the batch's tensors.
        values: By node name, for nodes that compute one tensor or several (``name`` for a tensor,
            ``name.0``, ``name.1`` for the elements of a tuple).
        slots: Of the model.
        slot_of: Node name of a placeholder to the position of its slot in `slots`.
        inputs: Node names of the batch's tensors, in the order of the batch's leaves.
        outputs: Node names of the tensors that the captured function returns.
        notes: Unwrapped, aliases, constants that turned out to be parameters, ...
    """

    graph: fx.Graph
    values: Mapping[str, Value]
    slots: tuple[Slot, ...]
    slot_of: Mapping[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    notes: tuple[str, ...]
