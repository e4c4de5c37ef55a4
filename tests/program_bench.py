"""Programs of a few steps, run by the kernels on the CPU and by the literal executor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import emulated_device
import gpu
import numpy as np
import program_reference as reference
import pytest

from landscapex.engine.program import Buffer, Grid, Program, Weight
from landscapex.engine.steps import Contract, Step, Winograd, table
from landscapex.engine.weight_order import contract_order

native = pytest.importorskip("landscapex._program")

Array = np.ndarray
SAMPLES = 19  # two tiles of 16, or one with unused lanes
POINTS = ((0.0, 0.0, 0.0), (0.7, -1.3, 0.4))


DEVICE, GPU = "emulated CUDA", "cuda"
_where = ["processor"]


@pytest.fixture(params=[*native.isas().split(","), DEVICE, gpu.CUDA])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of this processor in turn, the emulation of a device, and a GPU."""
    if request.param in (DEVICE, GPU):
        if request.param == DEVICE:
            pytest.importorskip("landscapex._program_emulated")
        else:
            gpu.require("_program_cuda")
        _where.append(request.param)
        yield request.param
        _where.pop()
        return
    before = native.isa()
    try:
        native.set_isa(request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    native.set_isa(before)


def execute(
    program: Program,
    inputs: Mapping[int, Array],
    weights: Sequence[Array],
    points: Array,
    lanes: int,
    threads: int = 1,
) -> tuple[Array, list[list[Array]]]:
    """Run the kernels.

    Args:
        program: To be run.
        inputs: By id, ``[samples, elements]``.
        weights: By id, ``[K + 1, size]``, packed.
        points: ``[G, K]``.
        lanes: Samples per tile.
        threads: How many compute.

    Returns:
        Sums ``[G, terms]``, and for each point the outputs ``[samples, elements]``.
    """
    if _where[-1] in (DEVICE, GPU):
        if any(isinstance(s, Winograd) for s in program.steps):
            pytest.skip("a device has no Winograd step")
        place = emulated_device.on_gpu() if _where[-1] == GPU else None
        return emulated_device.execute(program, inputs, weights, points, lanes, place=place)
    samples = len(next(iter(inputs.values())))
    tiles = -(-samples // lanes)
    arrays: list[Array | None] = [None] * len(program.buffers)
    for i, x in inputs.items():
        index = program.buffers[i].kind == "index"
        # what lies in lanes without a sample must not matter
        unused, dtype = (0, np.int32) if index else (np.nan, np.float32)
        padded = np.full((tiles * lanes, x.shape[1]), unused, dtype)
        padded[:samples] = x
        arrays[i] = np.ascontiguousarray(padded.reshape(tiles, lanes, -1).transpose(0, 2, 1))
    sums, values = native.Program(lanes, program).run(
        np.minimum(samples - lanes * np.arange(tiles), lanes),
        np.zeros(tiles, np.int64),
        arrays,
        points,
        [(np.ascontiguousarray(w, np.float32), False) for w in weights],
        threads,
        with_values=bool(program.outputs),
    )
    if values is None:
        return sums[0], [[] for _ in points]
    # [tiles, G, elements, lanes] -> [G, samples, elements]
    values = values.transpose(1, 0, 3, 2).reshape(len(points), tiles * lanes, -1)
    ends = np.cumsum([at.size for _, at in program.outputs])[:-1]
    return sums[0], [np.split(v[:samples], ends, axis=1) for v in values]


def assert_close(got: Array, want: Array, tolerance: float) -> None:
    """Relative to each number or to the largest of all; NaN and infinities in the same places."""
    finite = np.abs(want[np.isfinite(want)])
    scale = max(finite.max(), 1e-30) if finite.size else 1.0
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale)


class Bench:
    """A program of a few steps, and numbers for it. `directions` is K."""

    def __init__(self, directions: int = 0, seed: int = 0) -> None:
        self.directions = directions
        self.rng = np.random.default_rng(seed)
        self.buffers: list[Buffer] = []
        self.weights: list[Array] = []
        self.steps: list[Step] = []
        self.inputs: dict[int, Array] = {}
        self.terms = 0

    def data(self, values: Array) -> int:
        """An input ``[samples, elements]``; labels if they are integers."""
        index = np.issubdtype(values.dtype, np.integer)
        self.buffers.append(Buffer(values.shape[1], Grid.NONE, "index" if index else "input"))
        self.inputs[len(self.buffers) - 1] = values.astype(np.int32 if index else np.float32)
        return len(self.buffers) - 1

    def normal(self, elements: int, scale: float = 1.0) -> int:
        return self.data(scale * self.rng.normal(size=(SAMPLES, elements)))

    def out(self, elements: int, grid: Grid = Grid.FULL) -> int:
        self.buffers.append(Buffer(elements, grid))
        return len(self.buffers) - 1

    def weight(self, size: int) -> int:
        sets = self.rng.normal(size=(self.directions + 1, size))
        self.weights.append(sets.astype(np.float32))
        return len(self.weights) - 1

    def value(self, elements: int) -> int:
        """An input, or, if there are directions, an AFFINE value."""
        if not self.directions:
            return self.normal(elements)
        x, out = self.normal(3), self.out(elements, Grid.AFFINE)
        w = self.weight(elements * 3)
        self.weights[w] = self.weights[w][:, contract_order(1, elements, 3)]
        one = table([0])
        self.steps.append(
            Contract(x, table(range(3)), one, one, out, one, table(np.arange(elements)[None]), w)
        )
        return out

    def permuted(self, *shape: int) -> Array:
        return table(self.rng.permutation(math.prod(shape)).reshape(shape))

    def program(self) -> Program:
        outputs = tuple(
            (i, table(range(b.elements)))
            for i, b in enumerate(self.buffers)
            if b.grid is Grid.FULL and b.kind == "live"
        )
        weights = tuple(Weight(w.shape[1], ()) for w in self.weights)
        return Program(tuple(self.buffers), weights, tuple(self.steps), self.terms, outputs)

    def native(self, lanes: int = 16) -> tuple[Array, list[Array]]:
        """Sums and outputs at the centre."""
        points = np.zeros((1, self.directions))
        sums, values = execute(self.program(), self.inputs, self.weights, points, lanes)
        return sums[0], values[0]

    def check(
        self, tolerance: float = 2e-6, atol: float = 0.0, lanes: Sequence[int] = (16, 48)
    ) -> None:
        """Compare with the literal executor, at two points if there are directions."""
        program = self.program()
        points = np.array(POINTS)[: 2 if self.directions else 1, : self.directions]
        inputs = {
            i: x.astype(np.int64 if x.dtype == np.int32 else float) for i, x in self.inputs.items()
        }
        for n in lanes:
            sums, values = execute(program, inputs, self.weights, points, n)
            for g, point in enumerate(points):
                c = np.concatenate([[1.0], point.astype(np.float32)])
                weights = [np.tensordot(c, w.astype(float), 1) for w in self.weights]
                terms, buffers = reference.run(program, inputs, weights)
                np.testing.assert_allclose(sums[g], terms, rtol=tolerance, atol=atol)
                wanted = reference.outputs(program, buffers)
                for got, want in zip(values[g], wanted, strict=True):
                    assert_close(got, want, tolerance)
