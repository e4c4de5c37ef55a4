"""Each kernel of the grid program on the CPU against the literal executor in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import program_reference as reference
import pytest
import torch
import torch.nn.functional as F

from landscapex.engine.steps import (
    ACTIVATIONS,
    ELEMENT_LOSSES,
    MAP_OPS,
    NONE,
    Activation,
    Buffer,
    Contract,
    CrossEntropy,
    ElementLoss,
    Embedding,
    Grid,
    GruCell,
    Hits,
    LstmCell,
    Map,
    MatMul,
    Normalize,
    Operand,
    Program,
    Reduce,
    Softmax,
    Step,
    Weight,
    contract_order,
    table,
)

native = pytest.importorskip("landscapex._program")

Array = np.ndarray
INF, NAN = math.inf, math.nan
SAMPLES = 19  # two tiles of 16, or one with unused lanes
POINTS = ((0.0, 0.0, 0.0), (0.7, -1.3, 0.4))
PARAMETERS = {
    "leaky_relu": (0.1, 0), "elu": (1.3, 0.8), "softplus": (2, 9), "clamp": (-1.5, 2.5),
    "hardshrink": (0.4, 0), "softshrink": (0.4, 0), "scale": (-1.7, 0), "shift": (2.3, 0),
    "power": (2.5, 0), "threshold": (0.3, -4),
}  # fmt: skip


@pytest.fixture(params=native.isas().split(","), autouse=True)
def _isa(request: pytest.FixtureRequest) -> Iterator[None]:
    before = native.isa()
    try:
        native.set_isa(request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    yield
    native.set_isa(before)


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

    def native(self, lanes: int, points: Array) -> tuple[Array, list[list[Array]]]:
        """Sums ``[points, terms]``, and for each point the outputs ``[samples, elements]``."""
        program = self.program()
        tiles = -(-SAMPLES // lanes)
        valid = np.minimum(SAMPLES - lanes * np.arange(tiles), lanes)
        inputs: list[Array | None] = []
        for i, buffer in enumerate(self.buffers):
            x = self.inputs.get(i)
            if x is None:
                inputs.append(None)
                continue
            # what lies in lanes without a sample must not matter
            unused = 0 if x.dtype == np.int32 else NAN
            padded = np.full((tiles * lanes, buffer.elements), unused, x.dtype)
            padded[:SAMPLES] = x
            x = padded.reshape(tiles, lanes, -1).transpose(0, 2, 1)
            inputs.append(np.ascontiguousarray(x))
        weights = [(w, False) for w in self.weights]
        owner = np.zeros(tiles, np.int64)
        sums, values = native.Program(lanes, program).run(
            valid, owner, inputs, points, weights, with_values=bool(program.outputs)
        )
        if values is None:
            return sums[0], [[] for _ in points]
        # [tiles, G, elements, lanes] -> [G, samples, elements]
        values = values.transpose(1, 0, 3, 2).reshape(len(points), tiles * lanes, -1)
        ends = np.cumsum([at.size for _, at in program.outputs])[:-1]
        return sums[0], [np.split(v[:SAMPLES], ends, axis=1) for v in values]

    def check(
        self, tolerance: float = 2e-6, atol: float = 0.0, lanes: Sequence[int] = (16, 48)
    ) -> None:
        """Compare sums and outputs at two points, relative to the largest number of each row."""
        program = self.program()
        points = np.array(POINTS)[: 2 if self.directions else 1, : self.directions]
        inputs = {i: x.astype(np.int64 if x.dtype == np.int32 else float)
                  for i, x in self.inputs.items()}  # fmt: skip
        for n in lanes:
            sums, values = self.native(n, points)
            for g, point in enumerate(points):
                c = np.concatenate([[1.0], point.astype(np.float32)])
                weights = [np.tensordot(c, w.astype(float), 1) for w in self.weights]
                terms, buffers = reference.run(program, inputs, weights)
                np.testing.assert_allclose(sums[g], terms, rtol=tolerance, atol=atol)
                wanted = reference.outputs(program, buffers)
                for got, want in zip(values[g], wanted, strict=True):
                    finite = np.abs(want[np.isfinite(want)])
                    scale = max(finite.max(), 1e-30) if finite.size else 1.0
                    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale)


def activated(bench: Bench, name: str, x: int) -> None:
    n = bench.buffers[x].elements
    a, b = PARAMETERS.get(name, (0, 0))
    at = table(range(n))
    operand = Operand("buffer", x, at)
    bench.steps.append(Map("copy", (operand,), bench.out(n), at, Activation(name, a, b)))


# --- activations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_right_to_the_last_places(name: str) -> None:
    """Each number by itself, over the whole range: within 3 units in the last place.

    Where an argument is multiplied before it reaches an exponential, within 3 units of the value
    of a number that is 2 units in the last place away.
    """
    bench = Bench()
    rng = bench.rng
    n = SAMPLES * 400
    bits = rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32)
    x = np.concatenate([
        rng.normal(size=n) * 10.0 ** rng.uniform(-8, 1, n), rng.uniform(-105, 90, n),
        rng.uniform(-3, 3, n), bits[~np.isnan(bits)],
    ])  # fmt: skip
    if name in {"sin", "cos"}:
        x = np.clip(x, -1e4, 1e4)
    x = x[: x.size // SAMPLES * SAMPLES].astype(np.float32).astype(float).reshape(SAMPLES, -1)
    activated(bench, name, bench.data(x))
    got = bench.native(16, np.zeros((1, 0)))[1][0][0]
    a, b = PARAMETERS.get(name, (0, 0))
    activation = Activation(name, float(np.float32(a)), float(np.float32(b)))
    with np.errstate(all="ignore"):
        want = reference.activate(activation, x)
        rounded = want.astype(np.float32)
        bound = 3 * np.spacing(np.abs(rounded))
        if name in {"gelu", "gelu_tanh", "silu", "mish"}:
            bound = bound + np.abs(reference.activate(activation, x * (1 + 2**-22)) - want)
            bound += 1e-43  # subnormal numbers have no units of their own
            bound += 1e-15 * np.abs(x)  # 1 + erf(x) of the executor itself
        far = np.abs(want) > 3.4e38  # at the edge of the range either answer will do
    assert (np.isnan(got) == np.isnan(rounded))[~far].all()
    known = np.isfinite(rounded) & ~far
    assert (np.abs(got.astype(float) - want) <= bound)[known].all()
    infinite = np.isinf(rounded) & ~far
    assert (got[infinite] == rounded[infinite]).all()


_SPECIAL = (0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, 1e-40, -1e-40, 88.7, 88.8, -87.5, -103.9, -200.0)
_OF_TORCH: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "silu": F.silu, "mish": F.mish, "sigmoid": torch.sigmoid,
    "tanh": torch.tanh, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid,
    "hardshrink": lambda x: F.hardshrink(x, 0.4), "softshrink": lambda x: F.softshrink(x, 0.4),
    "softsign": F.softsign, "logsigmoid": F.logsigmoid, "exp": torch.exp, "log": torch.log,
    "log1p": torch.log1p, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "square": torch.square,
    "reciprocal": torch.reciprocal, "abs": torch.abs, "neg": torch.neg, "erf": torch.erf,
    "sin": torch.sin, "cos": torch.cos, "threshold": lambda x: F.threshold(x, 0.3, -4.0),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1), "clamp": lambda x: x.clamp(-1.5, 2.5),
    "softplus": lambda x: F.softplus(x, 2.0, 9.0), "power": lambda x: x**2.5,
}  # fmt: skip


@pytest.mark.parametrize("name", _OF_TORCH)
def test_an_activation_of_special_numbers_is_that_of_torch(name: str) -> None:
    bench = Bench()
    x = np.tile(np.array(_SPECIAL, np.float32), (SAMPLES, 1))
    activated(bench, name, bench.data(x))
    got = bench.native(16, np.zeros((1, 0)))[1][0][0][0]
    want = _OF_TORCH[name](torch.from_numpy(x[0]).double()).float().numpy()
    np.testing.assert_allclose(got, want, rtol=4e-7, atol=1e-43)


# --- elementwise ----------------------------------------------------------------------------------

_KINDS = {"copy": 1, "scale_shift": 3, "where": 3}


@pytest.mark.parametrize(
    # an affine base of a power is as often negative as not
    ("op", "directions"),
    [(op, k) for op in MAP_OPS for k in range(4) if op != "pow" or not k],
)
def test_map_reads_buffers_weights_and_numbers(op: str, directions: int) -> None:
    """Every kind of operand at every place; affine operands of two, three and four sets."""
    kinds = ("buffer", "weight", "number")
    count = _KINDS.get(op, 2)
    for n in range(3**count):
        names = [kinds[n // 3**i % 3] for i in range(count)]
        bench = Bench(directions, seed=n)
        bench.normal(1)  # so that there are samples
        operands = []
        for name in names:
            at = bench.permuted(12)
            if name == "number":
                operands.append(Operand("number", value=1.75))
            elif name == "weight":
                operands.append(Operand("weight", bench.weight(12), at))
            else:
                operands.append(Operand("buffer", bench.value(12), at))
        if op == "pow":
            for x in (*bench.inputs.values(), *bench.weights):
                np.abs(x, out=x)
        out = bench.out(12)
        act = (NONE, Activation("relu"), Activation("tanh"))[n % 3]
        bench.steps.append(Map(op, tuple(operands), out, bench.permuted(12), act))
        # quotients of small affine numbers magnify their rounding
        bench.check(2e-4 if op == "div" and directions else 2e-6)


@pytest.mark.parametrize("directions", [0, 2])
def test_map_follows_tables_of_every_shape(directions: int) -> None:
    """Long and short stretches, steps other than 1, backwards, single entries, repeated sources."""
    n = 300  # of 48 lanes: several pieces
    tables = (
        np.arange(n), np.arange(n)[::-1], np.arange(n) // 7, np.arange(n) * 2 % n,
        np.arange(n).reshape(20, 15).T.reshape(-1), np.zeros(n),
    )  # fmt: skip
    for seed, source in enumerate(tables):
        for to in (np.arange(n), np.random.default_rng(seed).permutation(n), np.arange(n) + 5):
            bench = Bench(directions, seed)
            a, b, w = bench.value(n), bench.normal(n), bench.weight(n)
            x, y = Operand("buffer", a, table(source)), Operand("buffer", b, table(source))
            first, out = bench.out(n + 5), bench.out(n + 5)
            bench.steps.append(Map("add", (x, y), first, table(to), Activation("relu")))
            by = Operand("weight", w, table(source // 30 % n))
            bench.steps.append(
                Map("mul", (Operand("buffer", first, table(to)), by), out, table(to))
            )
            bench.check()


@pytest.mark.parametrize("op", ["maximum", "minimum", "where", "add"])
def test_map_keeps_nan(op: str) -> None:
    bench = Bench()
    numbers = np.array([NAN, 1.0, -INF, INF, 0.0])
    a = bench.data(np.tile(np.repeat(numbers, 5), (SAMPLES, 1)))
    b = bench.data(np.tile(np.tile(numbers, 5), (SAMPLES, 1)))
    at = table(range(25))
    operands = [Operand("buffer", a, at), Operand("buffer", b, at)]
    if op == "where":
        operands.append(Operand("number", value=NAN))
    bench.steps.append(Map(op, tuple(operands), bench.out(25), at))
    bench.check(0.0)


# --- reductions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", [0, 1, 2, 3])
@pytest.mark.parametrize("op", ["sum", "max", "min", "prod"])
def test_reduce_takes_windows_of_any_size(op: str, directions: int) -> None:
    """Four sources have a path of their own; none gives the neutral element."""
    for weighted in (False, True) if op == "sum" else (False,):
        bench = Bench(directions)
        sizes = [4, 4, 1, 0, 7, 4, 2, 80]
        offsets = table(np.concatenate([[0], np.cumsum(sizes)]))
        sources = table(bench.rng.integers(0, 40, offsets[-1]))
        if op == "prod":
            sources[offsets[-2] + 9 :] = sources[offsets[-2]]  # not an overflow
            sizes[-1] = 9
            offsets = table(np.concatenate([[0], np.cumsum(sizes)]))
            sources = sources[: offsets[-1]]
        c = bench.rng.normal(size=sources.size).astype(np.float32) if weighted else None
        x, out = bench.value(40), bench.out(10)
        act = Activation("relu") if op == "max" else NONE
        to = bench.permuted(10)[: len(sizes)]
        bench.steps.append(Reduce(op, x, offsets, sources, out, to, c, 0.3, act))
        bench.check(3e-6)


@pytest.mark.parametrize("op", ["sum", "max", "min", "prod"])
@pytest.mark.parametrize("size", [3, 4])
def test_reduce_keeps_nan_and_infinity_wherever_they_are(op: str, size: int) -> None:
    bench = Bench()
    x = np.ones((SAMPLES, size))
    x[np.arange(size), np.arange(size)] = NAN
    x[np.arange(size) + size, np.arange(size)] = INF
    x[np.arange(size) + 2 * size, np.arange(size)] = -INF
    i = bench.data(x)
    bench.steps.append(
        Reduce(op, i, table([0, size]), table(range(size)), bench.out(1), table([0]))
    )
    bench.check(0.0)


def test_a_long_mean_is_as_exact_as_a_short_one() -> None:
    bench = Bench()
    n = 20_000
    x = bench.data(1000 + bench.rng.random((SAMPLES, n)))
    out = bench.out(1)
    bench.steps.append(
        Reduce("sum", x, table([0, n]), table(range(n)), out, table([0]), None, 1 / n)
    )
    bench.check(2e-7, lanes=(16,))


# --- normalisation, softmax, products -------------------------------------------------------------


@pytest.mark.parametrize("lanes", [16, 32, 48, 64])
@pytest.mark.parametrize("rms", [False, True])
def test_normalize_with_and_without_weights(rms: bool, lanes: int) -> None:
    for seed, (gamma, beta) in enumerate(
        [(False, False), (True, False), (False, True), (True, True)]
    ):
        bench = Bench(seed=seed)
        groups, count = 3, 7
        x, out = bench.normal(25, 3.0), bench.out(21)
        empty = table([])
        at = table(bench.rng.integers(0, 7, (groups, count)))
        act = Activation("gelu") if gamma else NONE
        bench.steps.append(
            Normalize(
                x,
                table(bench.permuted(25)[:21].reshape(3, 7)),
                out,
                bench.permuted(3, 7),
                bench.weight(7) if gamma else -1,
                at if gamma else empty,
                bench.weight(7) if beta else -1,
                at[::-1] if beta else empty,
                1e-3,
                rms,
                act,
            )
        )
        bench.check(lanes=(lanes,))


@pytest.mark.parametrize("count", [1000, 6000])
def test_normalize_of_many_numbers_far_from_zero(count: int) -> None:
    bench = Bench()
    x = bench.data(30 + bench.rng.normal(size=(SAMPLES, count)))
    at = table(np.arange(count)[None])
    bench.steps.append(Normalize(x, at, bench.out(count), at))
    bench.check(1e-6, lanes=(16,))


@pytest.mark.parametrize("lanes", [16, 32, 48, 64])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("safe", [False, True])
def test_softmax_of_all_kinds_of_rows(log: bool, safe: bool, lanes: int) -> None:
    """Large scores, masked ones, rows of one entry; nothing but -inf is NaN, or 0 if `safe`."""
    bench = Bench()
    x = 40 * bench.rng.normal(size=(SAMPLES, 12)) + 1000
    x[1, 3:7] = -INF
    x[2] = -INF
    x[3, 5] = NAN
    x[4] = 7.0
    i = bench.data(x)
    sources, to = bench.permuted(3, 4), bench.permuted(3, 4)
    bench.steps.append(Softmax(i, sources, bench.out(12), to, log, safe))
    single = table(range(12)).reshape(12, 1)
    bench.steps.append(Softmax(i, single, bench.out(12), single, log, safe))
    bench.check(lanes=(lanes,))


def test_logarithms_of_probabilities_near_one_keep_their_digits() -> None:
    bench = Bench()
    x = bench.data(np.tile([12.0, 0.0], (SAMPLES, 1)))
    at = table([[0, 1]])
    bench.steps.append(Softmax(x, at, bench.out(2), at, log=True))
    got = bench.native(16, np.zeros((1, 0)))[1][0][0]
    assert got[0, 0] == pytest.approx(-math.log1p(math.exp(-12)), rel=3e-7)


@pytest.mark.parametrize("size", [(1, 1, 1), (4, 3, 4), (5, 8, 6), (9, 2, 7), (3, 17, 11)])
def test_matmul_of_any_size(size: tuple[int, int, int]) -> None:
    rows, inner, columns = size
    for batch in (1, 3):
        bench = Bench(seed=batch)
        x, y = bench.normal(batch * rows * inner), bench.normal(batch * inner * columns)
        out = bench.out(batch * rows * columns)
        bench.steps.append(
            MatMul(
                x,
                bench.permuted(batch, rows, inner),
                y,
                bench.permuted(batch, inner, columns),
                out,
                bench.permuted(batch, rows, columns),
                0.37,
            )
        )
        bench.check()


# --- recurrent cells, embedding -------------------------------------------------------------------


@pytest.mark.parametrize("state", [False, True])
def test_lstm_cell_with_and_without_a_state(state: bool) -> None:
    bench = Bench()
    gates, cell = bench.normal(20, 3.0), bench.normal(5)
    at = bench.permuted(5) if state else table([])
    bench.steps.append(
        LstmCell(
            gates,
            bench.permuted(4, 5),
            cell if state else -1,
            at,
            bench.out(5),
            bench.permuted(5),
            bench.out(5),
            bench.permuted(5),
        )
    )
    bench.check(4e-7)


@pytest.mark.parametrize("directions", [0, 1, 2, 3])
@pytest.mark.parametrize("state", [False, True])
def test_gru_cell_with_and_without_a_state(state: bool, directions: int) -> None:
    bench = Bench(directions)
    x, h, hidden = bench.value(15), bench.normal(15, 2.0), bench.normal(5)
    at = bench.permuted(5) if state else table([])
    bench.steps.append(
        GruCell(
            x,
            bench.permuted(3, 5),
            h,
            bench.permuted(3, 5),
            hidden if state else -1,
            at,
            bench.out(5),
            bench.permuted(5),
        )
    )
    bench.check()


def test_embedding_takes_the_row_of_each_sample() -> None:
    bench = Bench(2)
    index = bench.data(bench.rng.integers(0, 11, (SAMPLES, 4)))
    out = bench.out(12)
    bench.steps.append(
        Embedding(index, table([3, 0, 2]), bench.weight(11 * 4), out, bench.permuted(3, 4))
    )
    bench.check(3e-7)


# --- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", [0, 1, 2, 3])
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("log_input", [False, True])
def test_cross_entropy_with_every_option(
    log_input: bool, probabilities: bool, directions: int
) -> None:
    for weighted in (False, True):
        for smoothing in (0.0, 0.2):
            bench = Bench(directions)
            x = bench.value(24)
            if probabilities:
                target = bench.data(
                    bench.rng.dirichlet(np.ones(5), (SAMPLES, 4)).reshape(SAMPLES, 20)
                )
                target_at = bench.permuted(4, 5)
            else:
                labels = bench.rng.integers(0, 5, (SAMPLES, 4))
                labels[::3, 1] = -7
                target, target_at = bench.data(labels), bench.permuted(4)
            weight = bench.rng.random(5).astype(np.float32) if weighted else None
            sources = table(bench.permuted(24)[:20].reshape(4, 5))
            for _ in range(2):  # a sum that another step has added to
                bench.steps.append(
                    CrossEntropy(
                        x, sources, target, target_at, 1, weight, -7, smoothing, log_input,
                        probabilities,
                    )
                )  # fmt: skip
            bench.terms = 2
            bench.check(3e-7, atol=1e-5 * log_input)


def entropy(logits: Array | Sequence[Sequence[float]], labels: Sequence[int]) -> Array:
    """The loss of each sample by itself."""
    losses = []
    for row, label in zip(logits, labels, strict=True):
        bench = Bench()
        bench.terms = 1
        x = bench.data(np.tile(row, (SAMPLES, 1)))
        y = bench.data(np.full((SAMPLES, 1), label))
        at = table(np.arange(len(row))[None])
        bench.steps.append(CrossEntropy(x, at, y, table([0]), 0))
        losses.append(bench.native(16, np.zeros((1, 0)))[0][0, 0] / SAMPLES)
    return np.array(losses)


def test_tiny_cross_entropies_keep_their_digits() -> None:
    """Relative to themselves, and where the scores differ by a number with a long fraction."""
    logits = [[d, 0.1, 0.0] for d in (0.3, 3.7, 9.123, 14.777, 30.3, 77.7)]
    logits += [[1000.1, 1000.1 - d, 900.0] for d in (0.3, 11.7, 40.0)]
    rows = np.array(logits, np.float32).astype(float)
    want = [math.log1p(sum(math.exp(x - r[0]) for x in r[1:])) for r in rows]
    np.testing.assert_allclose(entropy(rows, [0] * len(rows)), want, rtol=1.1e-7)


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ([NAN, 0, 1], 1), ([0, 1, NAN], 0), ([INF, 0, 1], 0), ([INF, 0, 1], 1), ([0, -INF, 1], 1),
        ([0, -INF, 1], 0), ([-INF] * 3, 0), ([INF, INF, 0], 0), ([INF, -INF, 0], 1), ([5.0], 0),
        ([3e38, -3e38, 0], 1), ([3e38, -3e38, 0], 0), ([1e5, 0, -1e5], 2),
    ],
)  # fmt: skip
def test_cross_entropy_of_special_scores_is_that_of_torch(row: list[float], label: int) -> None:
    x = torch.tensor([row], dtype=torch.float32).double()
    want = F.cross_entropy(x, torch.tensor([label])).item()
    np.testing.assert_allclose(entropy([row], [label]), [want], rtol=1e-7)


_TARGETS: dict[str, str] = dict.fromkeys(ELEMENT_LOSSES, "normal") | {
    "bce": "fraction", "bce_logits": "fraction", "soft_margin": "sign", "poisson": "positive",
    "poisson_log": "positive", "kl": "positive",
}  # fmt: skip


@pytest.mark.parametrize(
    # two of them take values of one sign, which affine ones do not have
    ("kind", "directions"),
    [
        (kind, k)
        for kind in ELEMENT_LOSSES
        for k in (0, 2)
        if kind not in {"bce", "poisson"} or not k
    ],
)
def test_element_losses(kind: str, directions: int) -> None:
    for weighted in (False, True):
        for a in (0.0, 0.6) if kind == "smooth_l1" else (0.6,):
            bench = Bench(directions)
            x = bench.value(9)
            if not directions and kind in {"bce", "poisson"}:
                bench.inputs[x][:] = bench.rng.random((SAMPLES, 9))
            t = bench.rng.normal(size=(SAMPLES, 9))
            t = {"normal": t, "fraction": t % 1, "positive": np.abs(t), "sign": np.sign(t)}[
                _TARGETS[kind]
            ]
            if kind in {"bce", "kl"}:
                t[:, 0] = 0
            target = bench.data(t) if kind != "identity" else -1
            target_at = bench.permuted(9)[:7] if kind != "identity" else table([])
            weight = bench.rng.random(7).astype(np.float32) if weighted else None
            bench.steps.append(
                ElementLoss(kind, x, bench.permuted(9)[:7], target, target_at, 0, a, weight)
            )
            bench.terms = 1
            bench.check(4e-7, atol=2e-6)


@pytest.mark.parametrize(
    ("kind", "x", "t", "loss"),
    [
        ("bce", [0.0, 1.0, 0.0, 1.0, 0.3, NAN], [0.0, 1.0, 1.0, 0.0, 0.5, 0.5],
         F.binary_cross_entropy),
        ("bce_logits", [200.0, -200.0, 200.0, -200.0, 1e-8, NAN], [1.0, 0.0, 0.0, 1.0, 0.5, 1.0],
         F.binary_cross_entropy_with_logits),
        ("kl", [1.0, -INF, 2.0, -1.0, 0.5], [0.0, 0.5, -1.0, 1.0, NAN], F.kl_div),
        ("mse", [INF, NAN, 1e20, 1.0], [0.0, 0.0, -1e20, 1.0], F.mse_loss),
        ("huber", [0.6, 0.5, -0.7, INF, NAN], [0.0] * 5,
         lambda x, t, **k: F.huber_loss(x, t, delta=0.6, **k)),
        ("smooth_l1", [0.6, 0.5, -0.7, INF, NAN], [0.0] * 5,
         lambda x, t, **k: F.smooth_l1_loss(x, t, beta=0.6, **k)),
        ("poisson", [0.0, 2.0, -1.0], [1.0, 0.0, 1.0],
         lambda x, t, **k: F.poisson_nll_loss(x, t, log_input=False, eps=0.6, **k)),
        ("soft_margin", [200.0, -200.0, 0.0, NAN], [1.0, 1.0, -1.0, 1.0], F.soft_margin_loss),
    ],
)  # fmt: skip
def test_element_losses_of_special_numbers_are_those_of_torch(
    kind: str, x: list[float], t: list[float], loss: Callable[..., torch.Tensor]
) -> None:
    for number, target in zip(x, t, strict=True):
        bench = Bench()
        bench.terms = 1
        i = bench.data(np.full((SAMPLES, 1), number))
        j = bench.data(np.full((SAMPLES, 1), target))
        a = 1.0 if kind == "bce_logits" else 0.6
        bench.steps.append(ElementLoss(kind, i, table([0]), j, table([0]), 0, a))
        got = bench.native(16, np.zeros((1, 0)))[0][0, 0] / SAMPLES
        pair = torch.tensor([[number], [target]], dtype=torch.float32).double()
        if kind == "bce" and math.isnan(number):
            want = NAN  # torch refuses it
        else:
            want = loss(pair[0], pair[1], reduction="none").item()
        np.testing.assert_allclose(got, want, rtol=2e-7, atol=1e-30)


@pytest.mark.parametrize("top", [1, 2, 3])
@pytest.mark.parametrize("directions", [0, 2])
def test_hits_among_the_largest_scores(top: int, directions: int) -> None:
    """With equal scores, NaN, infinities and labels that do not count."""
    bench = Bench(directions)
    bench.terms = 1
    x = bench.value(15)
    if not directions:
        scores = bench.inputs[x]
        scores[:] = bench.rng.integers(0, 3, scores.shape)
        scores[2, ::4] = NAN
        scores[3] = INF
        scores[4] = -INF
    labels = bench.rng.integers(0, 5, (SAMPLES, 3))
    labels[::4, 0] = 2
    y = bench.data(labels)
    for ignore in (-100, 2):
        bench.steps.append(
            Hits("class", x, bench.permuted(3, 5), y, bench.permuted(3), 0, top, ignore)
        )
    bench.check(0.0)


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("directions", [0, 2])
def test_hits_on_one_side_of_a_threshold(integer: bool, directions: int) -> None:
    bench = Bench(directions)
    bench.terms = 1
    x = bench.value(3)
    if not directions:
        bench.inputs[x][:4] = [[NAN, 0.25, 0.5], [INF, -INF, 0], [0.25, 0.25, 0.25], [NAN] * 3]
    t = bench.rng.integers(0, 2, (SAMPLES, 3))
    t[5] = -100
    y = bench.data(t if integer else t.astype(float))
    sources = bench.permuted(3).reshape(3, 1)
    bench.steps.append(
        Hits("threshold", x, sources, y, bench.permuted(3), 0, threshold=0.25, target_threshold=0.5)
    )
    bench.check(0.0)


# --- all of them ----------------------------------------------------------------------------------


_ONE, _PAIR = table([0]), table(np.array([[0, 1]]))
_THREE, _FOUR = table(np.zeros((3, 1))), table(np.zeros((4, 1)))


def _row(bench: Bench, *numbers: float) -> int:
    return bench.data(np.tile(numbers, (SAMPLES, 1)))


_TINY: dict[str, Callable[[Bench, int], Step]] = {  # of x = (1e-40, 1e-40)
    "map": lambda b, x: Map("add", (Operand("buffer", x, _ONE),) * 2, b.out(1), _ONE),
    "reduce": lambda b, x: Reduce("sum", x, table([0, 2]), table([0, 1]), b.out(1), _ONE),
    "normalize": lambda b, x: Normalize(x, _PAIR, b.out(2), _PAIR, rms=True, eps=1.0),
    "softmax": lambda b, x: Softmax(_row(b, 0, -100), _PAIR, b.out(2), _PAIR),
    "matmul": lambda b, x: MatMul(
        x, _PAIR[None], _row(b, 1, 1), _PAIR.reshape(1, 2, 1), b.out(1), _ONE.reshape(1, 1, 1)
    ),
    "lstm": lambda b, x: LstmCell(_row(b, 0), _FOUR, x, _ONE, b.out(1), _ONE, b.out(1), _ONE),
    "gru": lambda b, x: GruCell(x, _THREE, x, _THREE, x, _ONE, b.out(1), _ONE),
    "cross_entropy": lambda b, x: CrossEntropy(
        x, _PAIR, b.data(np.zeros((SAMPLES, 1), int)), _ONE, 0, log_input=True
    ),
    "element_loss": lambda b, x: ElementLoss("identity", x, _ONE, -1, table([]), 0),
    "hits": lambda b, x: Hits("threshold", x, _PAIR.T, _row(b, 1, 1), table([0, 1]), 0),
}


@pytest.mark.parametrize("kernel", _TINY)
def test_subnormal_numbers_survive_whatever_the_thread_does_with_them(kernel: str) -> None:
    """torch.set_flush_denormal is a setting of the calling thread."""
    bench = Bench()
    bench.terms = 1
    bench.steps.append(_TINY[kernel](bench, bench.data(np.full((SAMPLES, 2), 1e-40))))
    supported = torch.set_flush_denormal(True)
    try:
        sums, values = bench.native(16, np.zeros((1, 0)))
    finally:
        torch.set_flush_denormal(False)
    if not supported:
        pytest.skip("the processor cannot flush subnormal numbers")
    results = (
        [*values[0], sums] if kernel in {"cross_entropy", "element_loss", "hits"} else values[0]
    )
    assert all(np.abs(r).min() > 0 for r in results)


@pytest.mark.parametrize("step", ["cross_entropy", "mse", "hits"])
def test_sums_do_not_depend_on_the_number_of_lanes(step: str) -> None:
    """Every sample is summed by itself, and samples in their order: all lanes give the same bits
    as long as they hold the samples in one tile."""
    bench = Bench()
    bench.terms = 1
    x = bench.normal(12)
    y = bench.data(bench.rng.integers(0, 4, (SAMPLES, 3)))
    at = bench.permuted(3, 4)
    made: dict[str, Any] = {
        "cross_entropy": CrossEntropy(x, at, y, table(range(3)), 0, smoothing=0.1),
        "mse": ElementLoss("mse", x, at[0], bench.normal(4), table(range(4)), 0),
        "hits": Hits("class", x, at, y, table(range(3)), 0),
    }
    bench.steps.append(made[step])
    sums = {bench.native(n, np.zeros((1, 0)))[0][0, 0] for n in (32, 48, 64)}
    assert len(sums) == 1
