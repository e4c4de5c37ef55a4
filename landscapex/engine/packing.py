"""Weights and samples in the order in which the steps of a program read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscapex.engine.lowering.lanes import Input, Lowered
from landscapex.engine.plan import Slot, Value
from landscapex.engine.program import Buffer, Term, Weight
from landscapex.engine.weight_order import ROWS

_WINOGRAD = np.array(  # G of F(4 x 4, 3 x 3): Lavin and Gray, CVPR 2016, section 4.2
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)


@dataclass(frozen=True)
class SlotValues:
    """The entries of every slot: at the centre, and along each direction where it moves.

    Attributes:
        sets: By slot: flat tensors ``[size]``, one, or one for the centre and K for directions;
            None for slots that are computed once per point.
    """

    sets: tuple[tuple[np.ndarray, ...] | None, ...]


def slot_values(
    slots: Sequence[Slot], center: Mapping[str, Tensor], directions: Sequence[Mapping[str, Tensor]]
) -> SlotValues:
    """Look up what a program's weights are made of.

    Args:
        slots: Of a `Lowered`.
        center: First names of the moving parameters to tensors.
        directions: K of the same.

    Returns:
        Arrays that may share memory with the arguments and the model.
    """
    found: list[tuple[np.ndarray, ...] | None] = []
    for slot in slots:
        if slot.role == "derived":
            found.append(None)
        elif slot.moves:
            found.append(tuple(_flat(point[slot.name]) for point in (center, *directions)))
        else:
            assert slot.tensor is not None
            found.append((_flat(slot.tensor),))
    return SlotValues(tuple(found))


def pack(weight: Weight, values: SlotValues) -> np.ndarray:
    """The sets of a weight: of the centre, then of each direction if any part of it moves.

    Args:
        weight: Without computed slots.
        values: Of all slots.

    Returns:
        float32 ``[1 or K + 1, size]``.
    """
    sets = [values.sets[t.slot] for t in weight.terms]
    count = max([len(s) for s in sets if s is not None], default=1)
    rows = [
        _row(weight, [s[k] if s and k < len(s) else None for s in sets], k) for k in range(count)
    ]
    return np.ascontiguousarray(np.stack(rows), dtype=np.float32)


def pack_points(weight: Weight, points: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """A weight with computed slots, at each point.

    Args:
        weight: Any.
        points: For each point, the flat entries of every slot there.

    Returns:
        float32 ``[G, size]``.
    """
    rows = [_row(weight, [slots[t.slot] for t in weight.terms], 0) for slots in points]
    return np.ascontiguousarray(np.stack(rows), dtype=np.float32)


def _row(weight: Weight, sources: Sequence[np.ndarray | None], k: int) -> np.ndarray:
    if len(weight.terms) == 1 and weight.offset is None and weight.terms[0].scale is None:
        total = _gathered(weight.terms[0], sources[0])  # no arithmetic: every bit stays
    else:
        total = np.zeros(len(weight.terms[0].index) if weight.terms else weight.size)
        for term, source in zip(weight.terms, sources, strict=True):
            part = _gathered(term, source).astype(np.float64)
            total = total + (part if term.scale is None else part * term.scale)
        if weight.offset is not None and k == 0:
            total = total + weight.offset
    return total if weight.winograd is None else _transformed(total, *weight.winograd)


def _gathered(term: Term, source: np.ndarray | None) -> np.ndarray:
    if source is None:
        return np.zeros(len(term.index), dtype=np.float32)
    taken = source[term.index]
    return np.where(term.index < 0, taken.dtype.type(0), taken)


def _transformed(filters: np.ndarray, outputs: int, inputs: int) -> np.ndarray:
    """``G g G^T`` of every 3 x 3 filter, as ``[36][M / 8][C][8]``."""
    g = filters.astype(np.float64).reshape(outputs, inputs, 3, 3)
    u = np.einsum("ai,mcij,bj->abmc", _WINOGRAD, g, _WINOGRAD, optimize=True)
    u = u.reshape(36, outputs // ROWS, ROWS, inputs)
    return u.transpose(0, 1, 3, 2).reshape(-1)


def _flat(tensor: Tensor) -> np.ndarray:
    flat = tensor.detach().reshape(-1)
    if flat.dtype not in (torch.float32, torch.float64):
        flat = flat.to(torch.float32 if flat.dtype != torch.int64 else torch.float64)
    return flat.cpu().numpy()


@dataclass(frozen=True)
class Tiles:
    """The samples of a data set, lane by lane.

    Attributes:
        valid: int64 ``[tiles]``: samples in each; the last of a batch may have fewer.
        owner: int64 ``[tiles]``: which group of samples (one batch, or all) a tile belongs to.
        inputs: By buffer id: ``[tiles, elements, lanes]``, None for live buffers.
    """

    valid: np.ndarray
    owner: np.ndarray
    inputs: tuple[np.ndarray | None, ...]


def pack_samples(
    lowered: Lowered,
    values: Mapping[str, Value],
    groups: Sequence[Sequence[Mapping[str, Tensor]]],
    lanes: int,
) -> Tiles:
    """Arrange batches in tiles.

    Args:
        lowered: Says which values are needed and where they go.
        values: Of the plan.
        groups: Batches (node name to tensor) that may share tiles; tiles never mix groups.
        lanes: Samples per tile.

    Returns:
        The tiles of all groups, in order.
    """
    buffers = lowered.program.buffers
    inputs: list[list[np.ndarray]] = [[] for _ in buffers]
    valid: list[int] = []
    owner: list[int] = []
    for g, batches in enumerate(groups):
        size = 0
        for item in lowered.inputs:
            value = values[item.node]
            rows = np.concatenate([per_sample(b[item.node], value) for b in batches])
            size = len(rows)
            inputs[item.buffer].append(_tiled(rows, item, buffers[item.buffer], lanes))
        if not lowered.inputs:
            size = len(batches)
        count = -(-size // lanes)
        valid += [min(lanes, size - t * lanes) for t in range(count)]
        owner += [g] * count
    packed = tuple(np.concatenate(parts) if parts else None for parts in inputs)
    return Tiles(np.array(valid, np.int64), np.array(owner, np.int64), packed)


def per_sample(tensor: Tensor, value: Value) -> np.ndarray:
    """What belongs to each sample, in the order of the shape at batch size 1.

    Args:
        tensor: With the samples of a batch along one axis, or merged into one.
        value: Says which.

    Returns:
        ``[N, entries]``.
    """
    axis = value.shape.index(None)
    rows = value.rows[0]
    shape = list(tensor.shape)
    samples = shape[axis] // rows
    split = tensor.reshape([*shape[:axis], samples, rows, *shape[axis + 1 :]])
    return split.detach().movedim(axis, 0).reshape(samples, -1).cpu().numpy()


def _tiled(rows: np.ndarray, item: Input, buffer: Buffer, lanes: int) -> np.ndarray:
    """Lanes innermost; the lanes after the last sample repeat the first one."""
    dtype = np.float32 if item.kind == "input" else np.int32
    count = -(-len(rows) // lanes)
    missing = count * lanes - len(rows)
    padded = np.concatenate([rows, np.repeat(rows[:1], missing, axis=0)]).astype(dtype)
    tiles = padded.reshape(count, lanes, -1).transpose(0, 2, 1)
    if item.at is None:
        return np.ascontiguousarray(tiles)
    out = np.full((count, buffer.elements, lanes), buffer.fill, dtype)
    there = item.at >= 0
    out[:, there] = tiles[:, item.at[there]]
    return out
