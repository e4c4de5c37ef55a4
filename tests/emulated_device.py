"""The grid program on the emulation of a CUDA device, as the package drives a real one; and on a
real one, where there is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gpu
import numpy as np
import torch

from landscapex.engine.cuda_graph import Graph
from landscapex.engine.device import Device, DeviceBackend
from landscapex.engine.packing import Tiles
from landscapex.engine.program import Program

ORDERS = {"forward": 0, "reverse": 1, "random": 2, "warps": 3}
CPU = torch.device("cpu")


def backend(
    *,
    cache_bytes: int = 1 << 20,
    block_bytes: int = 0,
    capability: tuple[int, int] = (9, 0),
    graphs: Callable[[], Graph] | None = None,
) -> DeviceBackend:
    """Runs programs on the emulation.

    Args:
        cache_bytes: Of the device that is imitated: how large chunks are.
        block_bytes: Shared memory that a block of it can have; 0: steps run one by one.
        capability: Its compute capability.
        graphs: Makes what stands for CUDA graphs.
    """
    about = Device(CPU, cache_bytes, block_bytes, capability, graphs)
    return DeviceBackend(CPU, "_program_emulated", about)


def on_gpu(**about: Any) -> DeviceBackend:
    """Runs programs on the GPU; the test skips where the library for it was not built.

    Args:
        about: Properties that are to be taken for those of the GPU, as in `backend`.
    """
    gpu.require("_program_cuda")
    device = torch.device("cuda", torch.cuda.current_device())
    found = Device.of(device)
    if "block_bytes" in about:
        about["block_bytes"] = min(about["block_bytes"], found.block_bytes)
    return DeviceBackend(device, about=dataclasses.replace(found, **about))


def execute(
    program: Program,
    inputs: Mapping[int, np.ndarray],
    weights: Sequence[np.ndarray],
    points: np.ndarray,
    lanes: int,
    *,
    math: str = "fp32",
    place: DeviceBackend | None = None,
    **about: Any,
) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """As `program_bench.execute`, on the emulated device, or on another `place`."""
    samples = len(next(iter(inputs.values())))
    tiles = -(-samples // lanes)
    arrays: list[np.ndarray | None] = [None] * len(program.buffers)
    for i, x in inputs.items():
        index = program.buffers[i].kind == "index"
        # what lies in lanes without a sample must not matter
        unused, dtype = (0, np.int32) if index else (np.nan, np.float32)
        padded = np.full((tiles * lanes, x.shape[1]), unused, dtype)
        padded[:samples] = x
        arrays[i] = np.ascontiguousarray(padded.reshape(tiles, lanes, -1).transpose(0, 2, 1))
    valid = np.minimum(samples - lanes * np.arange(tiles), lanes)
    data = Tiles(valid, np.zeros(tiles, np.int64), tuple(arrays))
    place = place or backend(**about)
    made = place.program(program, lanes, math)
    sets = [np.ascontiguousarray(w, np.float32) for w in weights]
    runner = place.runner(made, program, data, sets, points.shape[1] + 1)
    sums, values = runner.run(points, {}, with_values=bool(program.outputs))
    if values is None or not program.outputs:
        return sums[0], [[] for _ in points]
    # [tiles, G, elements, lanes] -> [G, samples, elements]
    values = values.transpose(1, 0, 3, 2).reshape(len(points), tiles * lanes, -1)
    ends = np.cumsum([at.size for _, at in program.outputs])[:-1]
    return sums[0], [np.split(v[:samples], ends, axis=1) for v in values]
