"""How programs are driven on a device: chunks, kinds of weights, shared products, storage.

One small program has all of it; its steps by themselves are tested elsewhere.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace

import emulated_device
import numpy as np
import program_reference as reference
import pytest

from landscapex.engine import device
from landscapex.engine.packing import Tiles
from landscapex.engine.program import Buffer, Grid, Program, Weight
from landscapex.engine.steps import Contract, ElementLoss, Map, Operand, table

pytest.importorskip("landscapex._program_emulated")
Array = np.ndarray
LANES, VALID, OWNER = 16, np.array([16, 16, 7]), np.array([0, 0, 1])
POINTS, DIRECTIONS = 7, 2
BLOCK_BYTES = 200 << 10
ONE, EMPTY = table([0]), table([])
MOVING, FIXED, PER_POINT = range(3)

# id, size, kind: not in the order in which steps read them
WEIGHTS = {
    "last": (12 * 20, MOVING), "product bias": (24, FIXED), "product": (24 * 20, MOVING),
    "two shapes": (16 * 20, FIXED), "rows": (20 * 30, PER_POINT), "rows bias": (20, MOVING),
    "other product": (20 * 20, FIXED), "other bias": (20, MOVING), "last bias": (12, PER_POINT),
    "wide": (24 * 30, MOVING), "wide scale": (24, FIXED),
}  # fmt: skip
W = {name: i for i, name in enumerate(WEIGHTS)}


def dense(source: int, inputs: int, out: int, outputs: int, weight: int, **rest) -> Contract:
    """A linear layer of the first elements of a buffer."""
    every = table(np.arange(outputs)[None])
    if "residual" in rest:
        rest |= {"residual_at": ONE, "residual_channels": every}
    return Contract(source, table(range(inputs)), ONE, ONE, out, ONE, every, weight, **rest)


def copied(source: int, out: int, count: int) -> Map:
    at = table(range(count))
    return Map("copy", (Operand("buffer", source, at),), out, at)


def loss(source: int, count: int, term: int) -> ElementLoss:
    """A sum in which every element has its own weight."""
    weight = np.linspace(1, 2, count, dtype=np.float32)
    return ElementLoss("identity", source, table(range(count)), -1, EMPTY, term, weight=weight)


def everything() -> Program:
    """Shared products with moving and with fixed weights, halos, residuals, memory used twice."""
    x, p, q, h, r, s, t, v, u = range(9)
    buffers = (
        Buffer(20, Grid.NONE, "input"), Buffer(26, Grid.AFFINE, fill=0.5), Buffer(20, Grid.AFFINE),
        Buffer(30, Grid.FULL, fill=-1.5), *(Buffer(n, Grid.FULL) for n in (20, 16, 20, 24, 12)),
    )  # fmt: skip
    steps = (
        dense(x, 20, p, 24, W["product"], bias=W["product bias"]),
        dense(x, 20, q, 20, W["other product"], bias=W["other bias"]),
        copied(p, h, 26),
        dense(h, 30, v, 24, W["wide"], scale=W["wide scale"]),
        dense(h, 30, r, 20, W["rows"], bias=W["rows bias"], residual=q),
        dense(r, 20, s, 16, W["two shapes"]),
        dense(s, 16, t, 20, W["two shapes"]),
        dense(t, 20, u, 12, W["last"], bias=W["last bias"]),
        *(loss(u, 12, 0), loss(v, 24, 1), loss(p, 26, 2), loss(t, 20, 0)),
    )
    weights = tuple(Weight(size, ()) for size, _ in WEIGHTS.values())
    # more outputs than one launch copies
    outputs = ((u, table(range(12))), (v, table(np.arange(600) % 24)), (p, table(range(26))))
    storage = (x, p, q, h, r, s, t, v, r)
    return Program(buffers, weights, steps, 3, outputs, storage)


@dataclass(frozen=True)
class Case:
    """A program with its numbers."""

    program: Program
    inputs: Array
    sets: list[Array | None]
    rows: dict[int, Array]
    points: Array

    def weights(self, point: int) -> list[Array]:
        """At one of the points, in float64."""
        c = np.concatenate([[1.0], self.points[point]])
        return [
            self.rows[i][point].astype(float)
            if s is None
            else np.tensordot(c[: len(s)], s.astype(float), 1)
            for i, s in enumerate(self.sets)
        ]

    def expected(self, point: int) -> tuple[Array, list[Array]]:
        """Sums ``[groups, terms]``, and the outputs ``[samples, elements]``."""
        program, weights = replace(self.program, storage=()), self.weights(point)
        owner = np.repeat(OWNER, VALID)
        sums = [
            reference.run(program, {0: self.inputs[owner == g]}, weights)[0]
            for g in np.unique(owner)
        ]
        _, buffers = reference.run(program, {0: self.inputs}, weights)
        return np.array(sums), reference.outputs(program, buffers)

    def runner(self, math: str = "fp32", **about: int) -> device.DeviceRunner:
        """Drives the program."""
        place = emulated_device.backend(**about)
        made = place.program(self.program, LANES, math)
        return place.runner(made, self.program, self.tiles(), self.sets, self.points.shape[1] + 1)

    def tiles(self) -> Tiles:
        """The samples; lanes without one hold NaN."""
        count = self.inputs.shape[1]
        data = np.full((len(VALID), count, LANES), np.nan, np.float32)
        ends = np.cumsum(VALID)
        for tile, (end, valid) in enumerate(zip(ends, VALID, strict=True)):
            data[tile, :, :valid] = self.inputs[end - valid : end].T
        return Tiles(VALID, OWNER, (data, *[None] * (len(self.program.buffers) - 1)))

    def outputs(self, values: Array, point: int) -> list[Array]:
        """Of what a runner returned, those of samples."""
        flat = values[:, point].transpose(0, 2, 1).reshape(-1, values.shape[2])
        is_there = (np.arange(LANES) < VALID[:, None]).reshape(-1)
        ends = np.cumsum([at.size for _, at in self.program.outputs])[:-1]
        return np.split(flat[is_there], ends, axis=1)


def case(program: Program, kinds: Sequence[int], directions: int = DIRECTIONS) -> Case:
    rng = np.random.default_rng(0)
    sets: list[Array | None] = []
    rows = {}
    for i, (weight, kind) in enumerate(zip(program.weights, kinds, strict=True)):
        count = directions + 1 if kind == MOVING else 1 if kind == FIXED else POINTS
        numbers = (rng.normal(size=(count, weight.size)) / 4).astype(np.float32)
        sets.append(None if kind == PER_POINT else numbers)
        if kind == PER_POINT:
            rows[i] = numbers
    inputs = rng.normal(size=(VALID.sum(), program.buffers[0].elements))
    points = rng.uniform(-1, 1, (POINTS, directions)).astype(np.float32).astype(float)
    return Case(program, inputs.astype(np.float32).astype(float), sets, rows, points)


@pytest.fixture(scope="module")
def whole() -> Case:
    return case(everything(), [kind for _, kind in WEIGHTS.values()])


@pytest.fixture
def chunks(monkeypatch):
    """Says of how many tiles and points calls are."""

    def choose(tiles: int, points: int) -> None:
        monkeypatch.setattr(device.DeviceRunner, "_chunk", lambda *_: (tiles, points))

    choose(len(VALID), POINTS)
    return choose


def assert_right(case: Case, sums: Array, values: Array, tolerance: float) -> None:
    for point in range(POINTS):
        wanted, outputs = case.expected(point)
        np.testing.assert_allclose(sums[:, point], wanted, rtol=tolerance, atol=100 * tolerance)
        for got, want in zip(case.outputs(values, point), outputs, strict=True):
            scale = np.abs(want).max()
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale)


ARITHMETIC = {"fp32": 2e-6, "bf16x3": 2e-5, "tf32": 5e-3, "bf16": 5e-2}


@pytest.mark.parametrize("math", ARITHMETIC)
def test_a_program_is_that_of_float64_at_every_point(math, whole, chunks):
    sums, values = whole.runner(math).run(whole.points, whole.rows, with_values=True)
    assert_right(whole, sums, values, ARITHMETIC[math])


@pytest.mark.parametrize("math", ["fp32", "bf16x3"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 4), (1, 7)], ids=str)
def test_bits_do_not_depend_on_the_size_of_chunks(size, math, whole, chunks):
    """Full chunks and smaller ones at the ends, in memory that was used before."""
    expected = whole.runner(math).run(whole.points, whole.rows, with_values=True)
    chunks(*size)
    runner = whole.runner(math)
    for _ in range(2):
        found = runner.run(whole.points, whole.rows, with_values=True)
        np.testing.assert_array_equal(found[0], expected[0])
        for point in range(POINTS):
            both = whole.outputs(found[1], point), whole.outputs(expected[1], point)
            for got, want in zip(*both, strict=True):
                np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 7)], ids=str)
def test_blocks_that_do_whole_cells_give_the_same_bits(size, whole, chunks):
    expected, _ = whole.runner().run(whole.points, whole.rows)
    chunks(*size)
    runner = whole.runner(block_bytes=BLOCK_BYTES)
    assert runner._made.native.in_blocks
    np.testing.assert_array_equal(runner.run(whole.points, whole.rows)[0], expected)


def test_outputs_of_a_program_that_blocks_could_do_are_those_of_its_steps(whole, chunks):
    runner = whole.runner(block_bytes=BLOCK_BYTES)
    sums, values = runner.run(whole.points, whole.rows, with_values=True)
    assert_right(whole, sums, values, ARITHMETIC["fp32"])


def test_a_chunk_begins_with_sums_of_zero(whole, chunks):
    """Memory holds what was there before."""
    runner = whole.runner()
    runner._working_space().memory.fill_(0x3F)
    sums, values = runner.run(whole.points, whole.rows, with_values=True)
    assert_right(whole, sums, values, ARITHMETIC["fp32"])


def test_a_call_of_one_point_prepares_the_memory_of_all(whole, chunks):
    runner = whole.runner()
    runner._working_space().memory.fill_(0x3F)
    runner.run(whole.points[:1], {i: a[:1] for i, a in whole.rows.items()})
    sums, values = runner.run(whole.points, whole.rows, with_values=True)
    assert_right(whole, sums, values, ARITHMETIC["fp32"])


def test_products_without_directions_are_those_of_the_centre(chunks):
    program = everything()
    fixed = case(program, [FIXED] * len(program.weights), directions=0)
    sums, values = fixed.runner().run(fixed.points, {}, with_values=True)
    assert_right(fixed, sums, values, ARITHMETIC["fp32"])


@pytest.mark.parametrize("math", ["fp32", "bf16x3"])
@pytest.mark.parametrize("kind", [FIXED, PER_POINT], ids=["fixed", "per point"])
def test_runners_that_share_a_program_keep_their_own_weights(kind, math, whole, chunks):
    """Of other kinds, and so at other places."""
    # what products are made of cannot come with the points
    named = {n: k if "product" in n or n == "other bias" else kind for n, (_, k) in WEIGHTS.items()}
    other = case(whole.program, list(named.values()))
    place = emulated_device.backend()
    made = place.program(whole.program, LANES, math)
    runners = [
        place.runner(made, c.program, c.tiles(), c.sets, DIRECTIONS + 1) for c in (whole, other)
    ]
    for c, runner in zip((whole, other), runners, strict=True):
        assert_right(c, *runner.run(c.points, c.rows, with_values=True), ARITHMETIC[math])


@pytest.mark.parametrize(
    ("beyond", "math", "lanes"), [(0, "fp32", 32), (1, "fp32", 128), (0, "bf16", 128)]
)
def test_tiles_fit_blocks_as_long_as_blocks_take_the_weights(beyond, math, lanes):
    """The limit is that of the library, which runs cells in blocks up to it and not beyond."""
    outputs, block_bytes = 128, 8 * 128 * 32
    inputs = 32768 // outputs
    program = Program(
        (Buffer(inputs, Grid.NONE, "input"), Buffer(outputs, Grid.FULL)),
        (Weight(inputs * outputs + 16 * beyond, ()),),
        (dense(0, inputs, 1, outputs, 0), loss(1, outputs, 0)),
        1,
    )
    backend = emulated_device.backend(block_bytes=block_bytes)
    made = backend.program(program, 16, math)
    assert backend.lanes(made, program, 1280, 1, math) == lanes
    sizes = [w.size for w in program.weights]
    made.native.bind(made.tables.data_ptr(), [MOVING], sizes, 1)
    assert made.native.in_blocks is (lanes == 32)


@pytest.mark.parametrize("lanes", [16, 48, 112])
def test_sums_take_every_sample_of_tiles_of_any_size(lanes):
    """Of more numbers than there are places for partial sums."""
    count = 70
    program = Program((Buffer(count, Grid.NONE, "input"),), (), (loss(0, count, 0),), 1)
    inputs = np.random.default_rng(0).normal(size=(150, count)).astype(np.float32).astype(float)
    found, _ = emulated_device.execute(program, {0: inputs}, [], np.zeros((1, 0)), lanes)
    wanted, _ = reference.run(program, {0: inputs}, [])
    np.testing.assert_allclose(found[0], wanted, rtol=1e-12)


def test_more_weights_for_tensor_cores_than_one_launch_rounds(chunks):
    count = 163
    buffers = (Buffer(8, Grid.NONE, "input"), *[Buffer(8, Grid.FULL)] * count)
    layers = [dense(0, 8, i + 1, 8, count - 1 - i) for i in range(count)]
    sums = [loss(i + 1, 8, i) for i in range(count)]
    weights = (Weight(64, ()),) * count
    many = case(Program(buffers, weights, (*layers, *sums), count), [MOVING] * count)
    found = many.runner("bf16x3").run(many.points[:2], {})[0]
    for point in range(2):
        expected, _ = many.expected(point)
        np.testing.assert_allclose(found[:, point], expected, rtol=1e-4, atol=1e-3)


def test_two_libraries_live_in_one_process(tmp_path):
    """As the one for CUDA and its emulation do where tests run on a GPU."""
    from landscapex import _program_emulated as first

    name = first.__name__.rpartition(".")[2]  # by its whole name it would be taken for the first
    spec = importlib.util.spec_from_file_location(name, shutil.copy(first.__file__, tmp_path))
    second = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(second)
    assert second.DeviceProgram is not first.DeviceProgram
