"""What the steps of a device promise beyond their numbers: the same bits however they are run.

The numbers are compared in test_program_kernels.py and test_program_losses.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import emulated_device
import numpy as np
import program_reference as reference
import pytest
from native.harness import COMPILER, ORDERS, ROOT, SANITIZERS, Harness
from program_bench import Bench
from scipy import special
from step_cases import CASES

from landscapex.engine.program import Grid, Program, Weight
from landscapex.engine.steps import (
    Activation,
    CrossEntropy,
    ElementLoss,
    Embedding,
    Hits,
    Map,
    Normalize,
    Operand,
    Reduce,
    Softmax,
    Winograd,
    table,
)

module = pytest.importorskip("landscapex._program_emulated")
SAMPLES, LANES = 40, 16  # three tiles, the last of them half full
BLOCK_BYTES = 200 << 10
EMPTY = table([])

# all kinds of steps; of the many functions of a map, and of activations, a few
NAMES = [
    name
    for i, name in enumerate(CASES)
    if (not name.startswith(("activation", "map", "element_loss")) or i % 6 == 0)
    and not any(isinstance(s, Winograd) for s in CASES[name](1).program.steps)
]


@pytest.fixture(params=["reverse", "random", "warps"])
def another_order(request: pytest.FixtureRequest) -> Iterator[None]:
    """Threads and blocks run in another order than before."""
    module.set_order(emulated_device.ORDERS[request.param], 3)
    yield
    module.set_order(0)


@pytest.fixture(scope="module")
def forward() -> dict[str, np.ndarray]:
    """Sums of programs, as the first order of threads has them."""
    return {}


def summed(program: Program) -> Program:
    """The outputs become sums, in which every element has its own weight."""
    losses = [
        ElementLoss("identity", buffer, at, -1, EMPTY, program.terms + i,
                    weight=np.linspace(1, 2, at.size, dtype=np.float32))
        for i, (buffer, at) in enumerate(program.outputs)
    ]  # fmt: skip
    terms = program.terms + len(losses)
    return replace(program, steps=(*program.steps, *losses), terms=terms, outputs=())


def run_case(name: str, **about: int) -> np.ndarray:
    """Sums ``[G, terms]`` of a case at three points."""
    case = CASES[name](SAMPLES)
    sets = [
        reference.packed(case.program, reference.weights_at(case.program, slots, offset=k == 0))
        for k, slots in enumerate(case.sets)
    ]
    weights = [np.stack(w) for w in zip(*sets, strict=True)]
    points = np.array([case.coefficients[1:]]) * np.array([[0.0], [1.0], [-0.3]])
    return run(summed(case.program), case.inputs, weights, points, **about)


def run(
    program: Program,
    inputs: dict[int, np.ndarray],
    weights: Sequence[np.ndarray],
    points: np.ndarray,
    **about: int,
) -> np.ndarray:
    return emulated_device.execute(program, inputs, weights, points, LANES, **about)[0]


def is_done_by_blocks(program: Program) -> bool:
    native = module.DeviceProgram(LANES, program, "fp32", BLOCK_BYTES)
    sizes = [w.size for w in program.weights]
    native.bind(0, [0] * len(sizes), sizes, 2)
    return native.in_blocks


@pytest.mark.parametrize("name", NAMES)
def test_bits_do_not_depend_on_the_order_of_threads(name, forward, another_order):
    found = run_case(name)
    module.set_order(0)
    if name not in forward:
        forward[name] = run_case(name)
    np.testing.assert_array_equal(found, forward[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_block_that_does_a_whole_cell_computes_the_same_bits(name):
    np.testing.assert_array_equal(run_case(name, block_bytes=BLOCK_BYTES), run_case(name))


@pytest.mark.parametrize("order", emulated_device.ORDERS)
def test_steps_of_a_block_wait_for_each_other(order):
    """A chain in which every step reads what other threads have written in the step before."""
    names = ["norm-group", "softmax-plain", "matmul-2", "convolution-3x3", "pool-max_3x3_padded"]
    module.set_order(emulated_device.ORDERS[order], 11)
    try:
        found = [run_case(n, block_bytes=BLOCK_BYTES) for n in names]
    finally:
        module.set_order(0)
    for name, sums in zip(names, found, strict=True):
        np.testing.assert_array_equal(sums, run_case(name))


def test_programs_of_these_tests_are_done_by_blocks():
    """Otherwise the tests above compare a kernel with itself."""
    for name in NAMES:
        assert is_done_by_blocks(summed(CASES[name](1).program)), name


# --- long rows: all threads of a block work on each -----------------------------------------------

LONG = [127, 128, 129, 700]  # around the length from which on they do


def long_rows(kind: str, count: int) -> Bench:
    b = Bench(seed=count)
    x = b.data(5 + b.rng.normal(size=(19, 3 * count)))
    sources, to = b.permuted(3, count), b.permuted(3, count)
    if kind.startswith("softmax"):
        log = kind == "softmax_log"
        b.steps.append(Softmax(x, sources, b.out(3 * count), to, log=log))
        return b
    gamma, beta = b.weight(count), b.weight(count)
    at = table(np.tile(np.arange(count), (3, 1)))
    b.steps.append(
        Normalize(x, sources, b.out(3 * count), to, gamma, at, beta, at, rms=kind == "rms")
    )
    return b


@pytest.mark.parametrize("count", LONG)
@pytest.mark.parametrize("kind", ["softmax", "softmax_log", "norm", "rms"])
def test_long_rows_are_those_of_float64(kind, count, monkeypatch):
    monkeypatch.setattr("program_bench._where", ["emulated CUDA"])
    long_rows(kind, count).check(lanes=(16, 48))


@pytest.mark.parametrize("kind", ["softmax", "softmax_log", "norm"])
def test_long_rows_have_the_same_bits_in_any_order(kind, another_order):
    b = long_rows(kind, 300)
    program, none = summed(b.program()), np.zeros((1, 0))
    found = run(program, b.inputs, b.weights, none)
    module.set_order(0)
    np.testing.assert_array_equal(found, run(program, b.inputs, b.weights, none))


@pytest.mark.parametrize(("count", "in_blocks"), [(127, True), (128, False)])
@pytest.mark.parametrize("kind", ["softmax", "norm"])
def test_blocks_that_do_whole_cells_leave_long_rows_to_their_kernels(kind, count, in_blocks):
    """They would be summed in another order, so that bits depended on what is asked for."""
    b = long_rows(kind, count)
    assert is_done_by_blocks(summed(b.program())) == in_blocks


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("log", [False, True])
def test_special_numbers_in_long_rows_reach_their_rows_only(value, log):
    b = Bench()
    numbers = b.rng.normal(size=(19, 400))
    numbers[2, 150] = value
    x, out = b.data(numbers), b.out(400)
    rows = table(np.arange(400).reshape(2, 200))
    b.steps.append(Softmax(x, rows, out, rows, log=log))
    _, values = emulated_device.execute(b.program(), b.inputs, [], np.zeros((1, 0)), 16)
    wrong = np.isnan(values[0][0]).any(axis=1)
    assert wrong.tolist() == [i == 2 for i in range(19)]
    assert not np.isnan(values[0][0][2, 200:]).any()


# --- functions of one number ----------------------------------------------------------------------

FUNCTIONS: dict[str, tuple[Activation, Callable[[np.ndarray], np.ndarray]]] = {
    "gelu": (Activation("gelu"), lambda x: x * special.ndtr(x)),
    "silu": (Activation("silu"), lambda x: x * special.expit(x)),
    "mish": (Activation("mish"), lambda x: x * np.tanh(np.logaddexp(0, x))),
    "softplus": (Activation("softplus", 1, 20), lambda x: np.logaddexp(0, x)),
    "sigmoid": (Activation("sigmoid"), special.expit),
    "logsigmoid": (Activation("logsigmoid"), special.log_expit),
    "tanh": (Activation("tanh"), np.tanh),
    "elu": (Activation("elu", 1, 1), lambda x: np.where(x > 0, x, np.expm1(x))),
    "erf": (Activation("erf"), special.erf),
    "exp": (Activation("exp"), np.exp),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_keep_their_digits_where_they_are_small(name):
    """Relative to each number, not to the largest: at -12 the tail of gelu is 2e-32."""
    activation, of = FUNCTIONS[name]
    b = Bench()
    x = b.data(
        np.concatenate([np.linspace(-12, 12, 190), np.geomspace(1e-30, 1, 190)]).reshape(19, 20)
    )
    all_of = table(np.arange(20))
    b.steps.append(Map("copy", (Operand("buffer", x, all_of),), b.out(20), all_of, activation))
    _, values = emulated_device.execute(b.program(), b.inputs, [], np.zeros((1, 0)), 16)
    wanted = of(b.inputs[x].astype(float))
    np.testing.assert_allclose(values[0][0], wanted, rtol=1e-6, atol=1e-44)


# --- sums ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [16, 48])
@pytest.mark.parametrize("positions", [1, 3, 70])
def test_sums_of_many_positions_are_those_of_float64(positions, lanes):
    """Fewer items than a block has threads, and more; lanes without a sample do not count."""
    b = Bench(seed=positions)
    scores = b.normal(4 * positions, scale=3)
    labels = b.data(b.rng.integers(0, 4, (19, positions)))
    rows = table(np.arange(4 * positions).reshape(positions, 4))
    at = table(np.arange(positions))
    b.steps += [
        CrossEntropy(scores, rows, labels, at, 0),
        Hits("class", scores, rows, labels, at, 1),
        ElementLoss("identity", scores, table(np.arange(4 * positions)), -1, EMPTY, 2),
    ]
    b.terms = 3
    program, inputs = b.program(), dict(b.inputs)
    wanted, _ = reference.run(
        program, {i: x.astype(float if i == scores else np.int64) for i, x in inputs.items()}, []
    )
    found, _ = emulated_device.execute(program, inputs, [], np.zeros((1, 0)), lanes)
    np.testing.assert_allclose(found[0], wanted, rtol=1e-7, atol=1e-7 * positions)


@pytest.mark.parametrize("lanes", [16, 48])
def test_threads_that_take_several_numbers_take_all_of_them(lanes, monkeypatch):
    """More numbers than a launch has threads, and lanes that do not divide a block."""
    monkeypatch.setattr("program_bench._where", ["emulated CUDA"])
    b = Bench()
    at, to = b.permuted(301), b.permuted(301)
    x = b.normal(301)
    b.steps.append(Map("copy", (Operand("buffer", x, at),), b.out(301), to))
    b.check(lanes=(lanes,))


@pytest.mark.parametrize("width", [7, 8, 19])
def test_rows_of_a_table_are_read_to_their_end(width, monkeypatch):
    monkeypatch.setattr("program_bench._where", ["emulated CUDA"])
    b = Bench()
    index = b.data(b.rng.integers(0, 5, (19, 3)))
    weight, to = b.weight(5 * width), b.permuted(2, width)
    b.steps.append(Embedding(index, table([2, 0]), weight, b.out(2 * width), to))
    b.check()


@pytest.mark.parametrize("count", [3, 130])
def test_logarithms_of_probabilities_near_one_keep_their_digits(count):
    b = Bench()
    scores = np.zeros((1, count))
    scores[0, 1] = 15
    x, row = b.data(scores), table(range(count))
    b.steps.append(Softmax(x, row[None], b.out(count), row[None], log=True))
    _, values = emulated_device.execute(b.program(), b.inputs, [], np.zeros((1, 0)), 16)
    np.testing.assert_allclose(values[0][0][0, 1], -np.log1p((count - 1) * np.exp(-15)), rtol=1e-6)


def test_long_sums_lose_nothing_to_their_length():
    b = Bench()
    n = 20_000
    x, one = b.data(np.full((1, n), 0.1)), table([0])
    b.steps.append(Reduce("sum", x, table([0, n]), table(range(n)), b.out(1), one))
    _, values = emulated_device.execute(b.program(), b.inputs, [], np.zeros((1, 0)), 16)
    np.testing.assert_allclose(values[0][0], n * float(np.float32(0.1)), rtol=1e-6)


def test_sums_of_two_steps_may_go_to_one_term():
    b = Bench()
    x = b.normal(5)
    b.steps += [ElementLoss("identity", x, table([i]), -1, EMPTY, 0) for i in (1, 4)]
    b.terms = 1
    program = b.program()
    found = run(program, b.inputs, [], np.zeros((1, 0)))[0]
    wanted = b.inputs[x].astype(float)[:, [1, 4]].sum()
    np.testing.assert_allclose(found, [wanted], rtol=1e-14)


def test_programs_of_no_samples_in_a_step_add_nothing():
    """Steps without items launch no empty grid."""
    b = Bench()
    x = b.normal(2)
    b.terms = 1
    b.buffers.append(replace(b.buffers[x], kind="live", grid=Grid.FULL))
    none = table(np.zeros((0, 3)))
    b.steps += [
        Softmax(x, none, 1, none),
        Normalize(x, none, 1, none),
        ElementLoss("identity", x, EMPTY, -1, EMPTY, 0),
    ]
    program = replace(b.program(), weights=tuple[Weight, ...](), outputs=())
    assert run(program, b.inputs, [], np.zeros((1, 0)))[0] == 0


# --- steps with barriers, under sanitizers --------------------------------------------------------


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    return Harness.shared(tmp_path_factory)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("kind", SANITIZERS)
def test_sanitizers_find_nothing(harness, kind):
    """tests/emulation/steps.cpp says what is run."""
    driver = ROOT / "tests" / "emulation" / "steps.cpp"
    program = harness.link(kind, [harness.compile(driver, kind, include=ROOT / "csrc" / "program")])
    outcomes = [harness.run(program, order) for order in ORDERS]
    assert not any(o.caught for o in outcomes), [o.output for o in outcomes]
    assert {o.output for o in outcomes} == {outcomes[0].output}
    assert outcomes[0].output.count("sums ") == 16
