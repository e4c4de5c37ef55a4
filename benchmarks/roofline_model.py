"""How long a launch takes on paper: what it must do, what its code takes for it, what it shares.

A floor holds for any kernel: multiply-adds at the peak, and every number moved once. An estimate
takes the code as it was compiled: instructions of its inner loop, what these move, how many warps a
multiprocessor holds, and how blocks share out over multiprocessors.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from roofline_code import Code, Loop
from roofline_launches import Chunk, Launch

from landscapex.engine.lowering.accesses import WEIGHTS, reads, writes
from landscapex.engine.program import Grid
from landscapex.engine.steps import Contract, Map, MatMul

WARP = 32
_SAMPLED = 16  # blocks of a step whose addresses are counted
_ROWS = 8  # outputs of a general item, at most
_TAPS_OF_ROUND, _STRETCH, _AT_ONCE = 8, 128, 192  # of tiles: contract_tile.cuh, contract.cuh


@dataclass(frozen=True)
class Machine:
    """A device on paper; every number is named where it is given.

    Attributes:
        name: For people.
        processors: Multiprocessors.
        clock: Hz, of fp32.
        tensor_clock: Hz, while tensor cores work.
        flops: Per second, by arithmetic.
        tensor_share: Part of the peak of tensor cores that ``mma.sync`` reaches.
        memory: Bytes per second.
        cache: Bytes per second from the second-level cache.
        cache_bytes: Of the second-level cache.
        latency: Clocks until a load from there arrives.
        block_shared: Bytes that one block can have.
        shared: Bytes of shared memory of a multiprocessor.
        reserved: Bytes of it that every block takes.
        registers: Of a multiprocessor.
        warps: That it holds.
        blocks: That it holds.
        issue: Warp instructions per clock.
        moved: Bytes per clock between registers and shared memory or the first-level cache.
        launch: Seconds of a launch by itself.
        node: Seconds of a launch in a graph.
    """

    name: str
    processors: int
    clock: float
    tensor_clock: float
    flops: dict[str, float]
    tensor_share: float
    memory: float
    cache: float
    cache_bytes: int
    latency: int
    block_shared: int
    shared: int
    reserved: int
    registers: int
    warps: int
    blocks: int
    issue: int
    moved: int
    launch: float
    node: float


@dataclass(frozen=True)
class Touch:
    """What a launch does with one piece of memory, or one of its chunk."""

    piece: tuple[str, int]
    bytes: int
    write: bool


@dataclass(frozen=True)
class Work:
    """What a launch must do.

    Attributes:
        flops: Of what exists.
        touches: Memory, each number once.
        loads: Bytes that blocks fetch from the second-level cache, again and again.
        flops_done: With what lies outside the result, in tiles that it does not fill.
        math: Of the multiply-adds.
    """

    flops: float
    touches: tuple[Touch, ...]
    loads: float
    flops_done: float
    math: str


@dataclass(frozen=True)
class Time:
    """Seconds of a launch, and why.

    Attributes:
        work: What it does.
        memory: Bytes of device memory.
        occupancy: Warps of a multiprocessor that are there, of those it could hold.
        floor: At the peaks.
        estimate: Of the compiled code, without the cost of launching.
        bound: By what.
    """

    work: Work
    memory: float
    occupancy: float
    floor: float
    estimate: float
    bound: str


def resident_blocks(m: Machine, registers: int, threads: int, shared: int) -> int:
    """Blocks that a multiprocessor holds at once.

    Registers are given to warps in units of 256, shared memory in units of 128 bytes.
    """
    warps = -(-threads // WARP)
    of_warp = -(-registers * WARP // 256) * 256
    of_block = -(-(shared + m.reserved) // 128) * 128
    # each quarter of a multiprocessor has a quarter of the registers
    by_registers = 4 * (m.registers // 4 // of_warp) // warps
    return min(m.blocks, m.warps // warps, by_registers, m.shared // of_block)


def traffic(launches: Sequence[Sequence[Touch]], capacity: int) -> list[float]:
    """Bytes of device memory that each launch of a chunk moves, chunk after chunk.

    The cache keeps whole pieces, and gives up those that were not touched for longest. What is
    written goes to memory when it is given up. Pieces called "data" are new in every chunk.
    """
    held: OrderedDict[tuple[str, int, int], tuple[int, bool]] = OrderedDict()
    moved = [0.0] * len(launches)
    for chunk in range(3):
        moved = [0.0] * len(launches)
        for i, touches in enumerate(launches):
            for t in touches:
                key = (*t.piece, chunk if t.piece[0] == "data" else 0)
                present = key in held
                _, dirty = held.pop(key, (0, False))
                if not present and not t.write:
                    moved[i] += t.bytes
                held[key] = (t.bytes, dirty or t.write)
                while sum(size for size, _ in held.values()) > capacity:
                    _, (size, was_written) = held.popitem(last=False)
                    moved[i] += size if was_written else 0
    return moved


def work_of(chunk: Chunk, launch: Launch, math_of: str) -> Work:
    """Counts what a launch does from the tables of its step."""
    if launch.step is None:
        return _work_of_driver(chunk, launch)
    step, cells = launch.step, chunk.tiles * launch.sets
    touches = []
    for access in reads(step):
        touches.append(_touch(chunk, launch, access, cells, write=False))
    for access in writes(step):
        touches.append(_touch(chunk, launch, access, cells, write=True))
    numbers = list(WEIGHTS.get(type(step), ()))
    used = [getattr(step, f) for f in numbers if getattr(step, f) >= 0]
    if isinstance(step, Map):
        used = [o.id for o in step.operands if o.kind == "weight"]
    for w in used:
        touches.append(Touch(("weight", w), 4 * chunk.program.weights[w].size * launch.sets, False))
    loads = float(sum(t.bytes for t in touches))
    if isinstance(step, Contract):
        return _work_of_contract(chunk, launch, step, tuple(touches), math_of)
    flops = cells * chunk.lanes * float(_flops_per_lane(step))
    return Work(flops, tuple(touches), loads, flops, "fp32")


def _touch(chunk: Chunk, launch: Launch, access: object, cells: int, *, write: bool) -> Touch:
    elements = len(np.unique(access.elements()))
    number = access.buffer
    buffer = chunk.program.buffers[number]
    if buffer.kind != "live":
        return Touch(("data", number), 4 * elements * chunk.lanes * chunk.tiles, write)
    if buffer.grid == Grid.AFFINE:
        sets = launch.sets if write else 3
        return Touch(("products", number), 4 * elements * chunk.lanes * chunk.tiles * sets, write)
    storage = chunk.program.storage
    place = storage[number] if storage else number
    return Touch(("buffer", place), 4 * elements * chunk.lanes * cells, write)


def _flops_per_lane(step: object) -> int:
    if isinstance(step, MatMul):
        return 2 * step.batch * step.rows * step.inner * step.columns
    return sum(access.elements().size for access in reads(step))


def _work_of_driver(chunk: Chunk, launch: Launch) -> Work:
    """Weights of a chunk are formed from three sets; sums are set to zero and collected."""
    if "form" not in launch.kernel:
        piece = Touch(("sums", 0), 8 * chunk.tiles * chunk.points, True)
        return Work(0, (piece,), piece.bytes, 0, "fp32")
    touches = [Touch(("sets", 0), 4 * 3 * chunk.floats, False)]
    touches += [
        Touch(("weight", i), 4 * w.size * chunk.points, True)
        for i, w in enumerate(chunk.program.weights)
    ]
    flops = 4.0 * chunk.floats * chunk.points
    loads = 4.0 * 4 * chunk.floats * chunk.points  # each point reads the three sets
    return Work(flops, tuple(touches), loads, flops, "fp64")


def _work_of_contract(
    chunk: Chunk, launch: Launch, step: Contract, touches: tuple[Touch, ...], math_of: str
) -> Work:
    groups, outputs = step.channels.shape
    taps, columns = len(step.taps), len(step.at) * chunk.lanes
    cells = chunk.tiles * launch.sets
    macs = float(cells) * groups * outputs * taps * columns
    rows, wide = tile_of(launch, outputs, columns)
    blocks = launch.blocks
    done = float(blocks) * rows * wide * taps if "general" not in launch.kernel else macs
    each = 2 if "mma" in launch.kernel and math_of == "bf16" else 4  # bytes of a weight
    loads = blocks * taps * (wide * unique_part(step, chunk.lanes, wide) * 4.0 + rows * each)
    loads += sum(t.bytes for t in touches if t.write or t.piece[0] == "products")
    if step.residual >= 0:
        loads += 4.0 * cells * groups * outputs * columns
    math_ = math_of if "mma" in launch.kernel else "fp32"
    return Work(2 * macs, touches, loads, 2 * done, math_)


def tile_of(launch: Launch, outputs: int, columns: int) -> tuple[int, int]:
    """Outputs and columns of a block, as the name of its kernel says."""
    numbers = [int(n) for n in re.findall(r"-?\b\d+\b", launch.kernel)]
    if "tile" in launch.kernel:
        return numbers[0], numbers[1]
    if "strip" in launch.kernel:
        return numbers[0], launch.threads * 4 * numbers[1]
    if "mma" in launch.kernel:
        _, tiles, down, across = numbers
        return 16 * tiles * down, 32 * across
    wide = min(columns, 4 * launch.threads)  # a thread has four columns
    return min(outputs, _ROWS * (4 * launch.threads // wide)), wide


def unique_part(step: Contract, lanes: int, wide: int) -> float:
    """Which part of the inputs that a block reads are different ones: its cache has the others."""
    positions = max(1, wide // lanes)
    starts = np.arange(0, len(step.at), positions)
    if len(starts) > _SAMPLED:
        starts = starts[:: len(starts) // _SAMPLED]
    parts = []
    for s in starts:
        found = np.add.outer(step.at[s : s + positions], step.taps)
        parts.append(len(np.unique(found)) / found.size)
    return float(np.mean(parts))


def time_of(m: Machine, launch: Launch, work: Work, moved: float, code: Code | None) -> Time:
    """Floor and estimate of one launch."""
    distinct = sum(t.bytes for t in work.touches)
    peak = m.flops[work.math]
    floor = max(work.flops / peak, distinct / m.cache, moved / m.memory)
    if code is None:  # memory is set
        return Time(work, moved, 0, floor, floor, "memory")
    shared = code.usage.shared + launch.shared
    resident = resident_blocks(m, code.usage.registers, launch.threads, shared)
    warps = launch.threads / WARP
    busiest = math.ceil(launch.blocks / m.processors)
    present = min(resident, busiest) * warps
    used = min(m.processors, launch.blocks)
    loop = chosen_loop(code.loops, launch)
    # of a warp: what a round of its loop loads, or one load of each thread
    at_once = loop.fetched if loop and loop.fetched else WARP * 16
    in_flight = used * present * at_once / m.latency * m.clock
    times = {
        "cache": work.loads / min(m.cache, in_flight),
        "memory": moved / m.memory,
        "compute": _compute(m, launch, work, loop, present, busiest),
    }
    bound = max(times, key=lambda name: times[name])
    estimate = max(times[bound], floor)
    return Time(work, moved, resident * warps / m.warps, floor, estimate, bound)


def _compute(
    m: Machine, launch: Launch, work: Work, loop: Loop | None, present: float, busiest: int
) -> float:
    share = launch.blocks / m.processors / busiest  # how evenly blocks share out
    if loop is None:
        return work.flops / (m.flops[work.math] * share)
    macs = work.flops_done / 2
    mma = loop.mma > 0
    of_round = loop.mma * loop.mma_macs if mma else WARP * loop.fma
    factor = 3 if work.math == "bf16x3" else 1  # products of a multiply-add
    rounds = macs * factor / of_round
    clock = m.tensor_clock if mma else m.clock
    per_clock = m.flops["bf16" if "bf16" in work.math else work.math] / 2 / m.processors / clock
    tensor = of_round / (per_clock * m.tensor_share) if mma else 0.0
    stretches = _TAPS_OF_ROUND / _STRETCH if len(launch.step.taps) > _AT_ONCE else 0
    instructions = loop.all + stretches * loop.seldom
    moved = loop.bytes + stretches * loop.seldom_bytes
    clocks = max(instructions / m.issue, moved / m.moved, tensor)
    # what a warp waits for in every round, others fill
    own = loop.all + (m.latency if loop.fetched else 0)
    hidden = min(1.0, present / m.issue * loop.all / own)
    return rounds * clocks / hidden / clock / m.processors / share


def chosen_loop(loops: Sequence[Loop], launch: Launch) -> Loop | None:
    """The one with most multiply-adds: of the general path, that for the rows of this step.

    Only contractions spend their time in one.
    """
    if not loops or "contract" not in launch.kernel:
        return None
    if "general" not in launch.kernel:
        return max(loops, key=lambda p: (p.mma * p.mma_macs, p.fma))
    rows = min(_ROWS, launch.step.channels.shape[1])
    fitting = [p for p in loops if p.fma == 16 * rows]
    return min(fitting, key=lambda p: p.all) if fitting else max(loops, key=lambda p: p.fma)
