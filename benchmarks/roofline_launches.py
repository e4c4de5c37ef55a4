"""What the driver of the grid program launches for a workload, without a device.

The driver and the launching halves of the CUDA sources are compiled for the host, with a ``launch``
that only writes down. So grids, blocks and shared memory are those of the package, not a copy of
its rules.
"""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pybind11
import torch

sys.path.append(str(Path(__file__).parents[1] / "tests"))
sys.path.append(str(Path(__file__).parents[1] / "tests" / "native"))
import cuda_compiler
import lowered
import workloads
from roofline_code import OUT, PROGRAM, ROOT, key_of

from landscapex.engine.captured import Captured
from landscapex.engine.device import Device, DeviceBackend
from landscapex.engine.packing import Tiles
from landscapex.engine.program import Grid, Program
from landscapex.engine.steps import Step

RECORDER = Path(__file__).parent / "recorder"
LIBRARY = "_program_emulated"  # as the module calls itself
_CPU = torch.device("cpu")
_DRIVER = ("device_bindings", "device_program", "device_args", "description", "structure", "runs")


class _Recorded(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_int64),
        ("grid", ctypes.c_int64 * 3),
        ("threads", ctypes.c_int64),
        ("shared", ctypes.c_int64),
    )


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: Its name; "" for memory that is set.
        grid: Blocks.
        threads: Of a block.
        shared: Bytes that the launch gives a block.
        step: What it is for; None for what the driver itself does.
        sets: For how many points of each tile.
    """

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    step: Step | None = None
    sets: int = 0

    @property
    def blocks(self) -> int:
        """Of the whole grid."""
        return self.grid[0] * self.grid[1] * self.grid[2]


@dataclass(frozen=True)
class Chunk:
    """One call of the driver, when all before has been prepared.

    Attributes:
        program: What it runs.
        lanes: Samples of a tile.
        tiles: At once.
        points: At once.
        all_tiles: Of the data.
        floats: Of the weights that move, for one point.
        cell_bytes: That one tile at one point works in.
        in_blocks: Whether one launch does all steps.
        launches: In their order.
    """

    program: Program
    lanes: int
    tiles: int
    points: int
    all_tiles: int
    floats: int
    cell_bytes: int
    in_blocks: bool
    launches: tuple[Launch, ...]


def chunk_of(workload: workloads.Workload, samples: int, math: str, about: Device) -> Chunk:
    """Lower a workload and write down what one call of the driver launches.

    Args:
        workload: Model and some data; biases and batch norm do not move.
        samples: Of the data set that is meant.
        math: Of contractions.
        about: The device that is meant, with ``cpu`` in place of its own name.
    """
    library, names = _library()
    sys.modules[f"landscapex.{LIBRARY}"] = _module()
    moving = [name for name, p in workload.model.named_parameters() if p.ndim > 1]
    batch = (workload.inputs[:2], workload.labels[:2])
    plan = lowered.plan_of(workload.model, batch, "cross_entropy", moving)
    backend = DeviceBackend(_CPU, LIBRARY, about)
    captured = Captured(plan, [], backend, math=math)
    program = captured.lowered.program
    lanes, total = captured.lanes(samples, 3), 0
    total = -(-samples // lanes)
    sets = [_set(w.size, any(captured.lowered.slots[t.slot].moves for t in w.terms))
            for w in program.weights]  # fmt: skip
    one = captured.runner(lanes, _tiles(program, lanes, 1), sets, 3)
    tiles, _ = one._chunk(total)
    runner = captured.runner(lanes, _tiles(program, lanes, tiles), sets, 3)
    space = runner._working_space()
    runner._enqueue(space, space.points)
    library.launches_clear()
    runner._enqueue(space, space.points)
    begin = library.launches_begin()
    recorded = [_launch(begin[i], names) for i in range(library.launches_count())]
    native = runner._made.native
    shared = [s for s in program.steps if _is_shared(program, s)]
    own = [s for s in program.steps if not _is_shared(program, s)]
    launches = _explained(recorded, shared, own, native.in_blocks, space.points)
    floats = native.floats(0)
    cell = native.workspace_bytes(1, 1) - 4 * floats
    return Chunk(program, lanes, space.tiles, space.points, total, floats, cell,
                 native.in_blocks, launches)  # fmt: skip


def _set(size: int, moves: bool) -> np.ndarray:
    return np.zeros((3 if moves else 1, size), np.float32)


def _tiles(program: Program, lanes: int, count: int) -> Tiles:
    """Data of the right size; nobody reads them."""
    inputs = [
        None if b.kind == "live" else
        np.zeros((count, b.elements, lanes), np.int32 if b.kind == "index" else np.float32)
        for b in program.buffers
    ]  # fmt: skip
    return Tiles(np.full(count, lanes, np.int64), np.zeros(count, np.int64), tuple(inputs))


def _is_shared(program: Program, step: Step) -> bool:
    out = getattr(step, "out", -1)
    return out >= 0 and program.buffers[out].grid == Grid.AFFINE


def _explained(
    found: Sequence[Launch],
    shared: Sequence[Step],
    own: Sequence[Step],
    in_blocks: bool,
    points: int,
) -> tuple[Launch, ...]:
    """Which step each launch is for: the weights, the centre, the directions, then the points."""
    per_point = 1 if in_blocks else len(own)
    forms = len(found) - 2 * len(shared) - per_point - 2
    assert forms >= 1, "the driver launches something that is not known here"
    steps: list[tuple[Step | None, int]] = [(None, 0)] * forms
    steps += [(s, 1) for s in shared] + [(s, 2) for s in shared] + [(None, 0)]
    steps += [(None, points)] if in_blocks else [(s, points) for s in own]
    steps += [(None, 0)]
    explained = tuple(
        Launch(a.kernel, a.grid, a.threads, a.shared, step, sets)
        for a, (step, sets) in zip(found, steps, strict=True)
    )
    for a in explained:
        assert a.step is None or type(a.step).__name__.lower()[:4] in a.kernel.replace("_", "")
    return explained


def _launch(recorded: _Recorded, names: dict[int, str]) -> Launch:
    name = names[recorded.kernel] if recorded.kernel else ""
    x, y, z = recorded.grid
    return Launch(name, (x, y, z), recorded.threads, recorded.shared)


@cache
def _built() -> Path:
    """The library that writes down, compiled if a source has changed."""
    sources = [RECORDER / "recorder.cpp", *(PROGRAM / f"{n}.cpp" for n in _DRIVER)]
    sources += sorted(PROGRAM.glob("*.cu"))
    emulation = ROOT / "tests" / "emulation" / "cuda_host_emulation.h"
    own = [*sources, emulation, RECORDER / "cuda_host_emulation.h"]
    key = key_of(sys.version, *(s.read_text() for s in own))
    library = OUT / f"recorder-{key}.so"
    if library.exists():
        return library
    OUT.mkdir(parents=True, exist_ok=True)
    objects = [OUT / f"{s.name}-{key}.o" for s in sources]
    # nothing of it is timed: without optimisation it is compiled in seconds
    flags = [
        *("g++", "-std=c++17", "-O0", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas"),
        *("-DLX_EMULATE_CUDA", f"-I{RECORDER}", "-isystem", pybind11.get_include()),
        *("-isystem", sysconfig.get_path("include")),
    ]

    def compile_one(pair: tuple[Path, Path]) -> None:
        command = [*flags, "-x", "c++", "-c", str(pair[0]), "-o", str(pair[1])]
        subprocess.run(command, check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, zip(sources, objects, strict=True)))
    command = ["g++", "-shared", *map(str, objects), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True)
    for file in objects:
        file.unlink()
    return library


@cache
def _module() -> object:
    spec = importlib.util.spec_from_file_location(LIBRARY, _built())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _library() -> tuple[ctypes.CDLL, dict[int, str]]:
    """The library, and the names of its functions by where they begin."""
    _module()  # before ctypes, which would load it without Python's lock
    library = ctypes.CDLL(str(_built()))
    library.launches_begin.restype = ctypes.POINTER(_Recorded)
    library.launches_count.restype = ctypes.c_int64
    listed = subprocess.run(["nm", str(_built())], capture_output=True, text=True, check=True)
    rows = [line.split() for line in listed.stdout.splitlines() if "_kernel" in line]
    places = {int(r[0], 16): r[2] for r in rows if len(r) == 3 and r[1] in "tTwW"}
    short = cuda_compiler.short_names(places.values())
    return library, {place: short[name] for place, name in places.items()}
