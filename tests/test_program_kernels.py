"""Each kernel of the grid program on the CPU against the literal executor in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import program_reference as reference
import pytest
import torch
import torch.nn.functional as F
from program_bench import DEVICE, GPU, SAMPLES, Bench, assert_close, execute
from program_bench import isa as isa
from program_functions import activate
from step_builder import StepCase
from step_cases import CASES

from landscapex.engine.steps import (
    ACTIVATIONS,
    MAP_OPS,
    NONE,
    Activation,
    CrossEntropy,
    ElementLoss,
    Embedding,
    GruCell,
    Hits,
    LstmCell,
    Map,
    MatMul,
    Normalize,
    Operand,
    Reduce,
    Softmax,
    Step,
    table,
)

pytestmark = pytest.mark.usefixtures("isa")
INF, NAN = math.inf, math.nan
PARAMETERS = {
    "leaky_relu": (0.1, 0), "elu": (1.3, 0.8), "softplus": (2, 9), "clamp": (-1.5, 2.5),
    "hardshrink": (0.4, 0), "softshrink": (0.4, 0), "scale": (-1.7, 0), "shift": (2.3, 0),
    "power": (2.5, 0), "threshold": (0.3, -4),
}  # fmt: skip


# --- the cases of every step ----------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "lanes"), [(1, 16), (17, 48)])
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_computes_what_torch_computes(name: str, samples: int, lanes: int) -> None:
    case = CASES[name](samples)
    point = np.array([case.coefficients[1:]])
    sums, values = execute(case.program, case.inputs, weights_of(case), point, lanes)
    np.testing.assert_allclose(sums[0], case.terms, rtol=1e-6, atol=1e-6)
    for got, want in zip(values[0], case.outputs, strict=True):
        assert_close(got, want, 1e-5 if "winograd" in name else 1e-6)


@pytest.mark.parametrize("name", list(CASES)[::8])
def test_threads_share_the_work_and_nothing_else(name: str) -> None:
    case = CASES[name](70)
    weights = weights_of(case)
    points = np.array([case.coefficients[1:]]) * np.linspace(-1, 1, 6)[:, None]
    alone = execute(case.program, case.inputs, weights, points, 16)
    shared = execute(case.program, case.inputs, weights, points, 16, threads=4)
    np.testing.assert_array_equal(shared[0], alone[0])
    for one, other in zip(shared[1], alone[1], strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def weights_of(case: StepCase) -> list[np.ndarray]:
    program = case.program
    sets = [
        reference.packed(program, reference.weights_at(program, slots, offset=k == 0))
        for k, slots in enumerate(case.sets)
    ]
    return [np.stack(w) for w in zip(*sets, strict=True)]


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
    got = bench.native()[1][0]
    a, b = PARAMETERS.get(name, (0, 0))
    activation = Activation(name, float(np.float32(a)), float(np.float32(b)))
    with np.errstate(all="ignore"):
        want = activate(activation, x)
        rounded = want.astype(np.float32)
        bound = 3 * np.spacing(np.abs(rounded))
        if name in {"gelu", "gelu_tanh", "silu", "mish"}:
            bound = bound + np.abs(activate(activation, x * (1 + 2**-22)) - want)
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
    got = bench.native()[1][0][0]
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
    at = table(np.array([[0, 1]]))
    bench.steps.append(Softmax(x, at, bench.out(2), at, log=True))
    got = bench.native()[1][0]
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


# --- all of them ----------------------------------------------------------------------------------


_ONE, _PAIR = table([0]), table(np.array([[0, 1]]))
_THREE, _FOUR = table(np.zeros((3, 1))), table(np.zeros((4, 1)))


def _row(bench: Bench, *numbers: float) -> int:
    return bench.data(np.tile(np.array(numbers, float), (SAMPLES, 1)))


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
def test_subnormal_numbers_survive_whatever_the_thread_does_with_them(
    kernel: str, isa: str
) -> None:
    """torch.set_flush_denormal is a setting of the calling thread."""
    if isa in (DEVICE, GPU):
        pytest.skip("a device has settings of its own; its emulation has those of the thread")
    bench = Bench()
    bench.terms = 1
    bench.steps.append(_TINY[kernel](bench, bench.data(np.full((SAMPLES, 2), 1e-40))))
    supported = torch.set_flush_denormal(True)
    try:
        sums, values = bench.native()
    finally:
        torch.set_flush_denormal(False)
    if not supported:
        pytest.skip("the processor cannot flush subnormal numbers")
    results = [*values, sums] if kernel in {"cross_entropy", "element_loss", "hits"} else values
    assert all(np.abs(r).min() > 0 for r in results)
