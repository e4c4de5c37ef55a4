"""The operators, for each instruction set and in plain PyTorch, against slow references."""

from __future__ import annotations

import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from native import operator_reference as reference
from native.implementations import IMPLEMENTATIONS, implementation, native
from native.operator_cases import (
    GROUPS,
    HALF_TO_DOUBLE,
    ROUNDING,
    RUNS,
    SIZE,
    bits,
    filter_case,
    orthogonalize_case,
    perturb_case,
)

from landscapex import _fallback, _lib, _ops

MASTER = [torch.float32, torch.float64]
compiled = torch.ops.landscapex


@pytest.fixture(params=IMPLEMENTATIONS)
def ops(request):
    """The operators of `_ops`: plain PyTorch, or compiled for one instruction set."""
    with implementation(request.param) as found:
        yield found


# --- perturb_ --------------------


@pytest.mark.parametrize("k", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("dtype", MASTER, ids=str)
def test_perturb_matches_the_reference_bit_for_bit(ops, k, dtype):
    params, center, directions, coordinates = perturb_case(k, k, dtype, long=1000)
    want = reference.perturb(
        [p.dtype for p in params], [p.numel() for p in params], center, directions, coordinates
    )
    before = bits(center), bits(directions)
    ops.perturb_(params, center, directions, coordinates)
    for param, values in zip(params, want, strict=True):
        assert bits(param) == bits(torch.tensor(values, dtype=torch.float64).to(param.dtype))
    assert (bits(center), bits(directions)) == before


@pytest.mark.parametrize("dtype", HALF_TO_DOUBLE, ids=str)
def test_perturb_keeps_the_bits_of_entries_that_nothing_moves(ops, dtype):
    master = torch.float64 if dtype == torch.float64 else torch.float32
    special = [-0.0, 0.0, 1.0, -3.5, torch.finfo(dtype).smallest_normal / 4]
    center = torch.tensor(special * 5, dtype=dtype).to(master)
    still = torch.zeros(3, 25, dtype=master)
    still[1] = -0.0
    for directions, coordinates in ((still, [2.0, 1.0, -3.0]), (still + 1, [0.0, -0.0, 0.0])):
        param = torch.empty(25, dtype=dtype)
        ops.perturb_([param], center, directions, coordinates)
        assert bits(param) == bits(center.to(dtype))


@pytest.mark.parametrize(
    ("dtype", "value", "want"),
    [
        # just above the middle of two float16 numbers: by way of float32 it would be the middle
        (torch.float16, 1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-10),
        (torch.float16, -(1 + 2.0**-11 + 2.0**-40), -(1 + 2.0**-10)),
        (torch.float16, 65519.99999999999, 65504.0),
        (torch.float16, 65520.0, float("inf")),
        (torch.float16, 2.0**-25, 0.0),
        (torch.float16, -(2.0**-25 + 2.0**-70), -(2.0**-24)),
        (torch.bfloat16, 1 + 2.0**-8 + 2.0**-50, 1 + 2.0**-7),
        (torch.bfloat16, 1 + 2.0**-8 - 2.0**-50, 1.0),
        (torch.bfloat16, 1e300, float("inf")),
        (torch.bfloat16, -1e-300, -0.0),
        (torch.bfloat16, 3 * 2.0**-134 + 2.0**-180, 2 * 2.0**-133),
        (torch.float32, 1 + 2.0**-24 + 2.0**-50, 1 + 2.0**-23),
    ],
)
def test_perturb_rounds_float64_once(ops, dtype, value, want):
    param = torch.empty(40, dtype=dtype)
    center = torch.full((40,), value, dtype=torch.float64)
    ops.perturb_([param], center, torch.empty(0, 40, dtype=torch.float64), [])
    assert bits(param) == bits(torch.full((40,), want, dtype=torch.float64).to(dtype))


@pytest.mark.parametrize("dtype", HALF_TO_DOUBLE, ids=str)
def test_perturb_keeps_nan_whatever_its_bits(ops, dtype):
    """Rounding up the pattern of a NaN to bfloat16 would carry into the sign: -0.0."""
    patterns = [0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000] * 10
    center = torch.tensor(patterns, dtype=torch.int32).view(torch.float32)
    param = torch.empty(40, dtype=dtype)
    ops.perturb_([param], center, torch.empty(0, 40), [])
    assert param.isnan().all()


def test_perturb_adds_products_in_float64(ops):
    """One part in 2^30 survives a sum that float32 would lose it in."""
    center = torch.tensor([1.0])
    directions = torch.tensor([[2.0**30], [2.0**30]])
    param = torch.empty(1)
    ops.perturb_([param], center, directions, [1.0, -1.0])
    assert param.item() == 1.0
    ops.perturb_([param], center, directions, [0.1, -0.1 + 2.0**-40])
    assert param.item() == torch.tensor(1 + 0.1 * 2.0**30 + (-0.1 + 2.0**-40) * 2.0**30).item()


def test_perturb_reaches_thousands_of_tensors(ops):
    params = [torch.empty(t % 4, dtype=HALF_TO_DOUBLE[t % 4]) for t in range(2500)]
    size = sum(p.numel() for p in params)
    center = torch.arange(size, dtype=torch.float32) % 128
    ops.perturb_(params, center, torch.ones(1, size), [1.0])
    assert torch.equal(torch.cat([p.float() for p in params]), center + 1)


def test_perturb_writes_parameters_that_require_gradients_and_records_nothing(ops):
    weight = torch.nn.Parameter(torch.zeros(4))
    loss = (weight * weight).sum()
    ops.perturb_([weight], torch.ones(4), torch.zeros(0, 4), [])
    assert weight.is_leaf
    assert weight.grad_fn is None
    assert weight.tolist() == [1.0] * 4
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # the values that it saved are gone, and autograd knows


# --- filter_normalize_ --------------------


@pytest.mark.parametrize("dtype", HALF_TO_DOUBLE, ids=str)
@pytest.mark.parametrize(("k", "elementwise"), [(0, False), (1, False), (3, False), (2, True)])
def test_filter_normalize_matches_the_reference(ops, dtype, k, elementwise):
    directions, center, norms = filter_case(k, k, dtype)
    before, before_center = directions.clone(), center.clone()
    want, want_norms = reference.filter_normalize(directions, center, RUNS, GROUPS, elementwise)
    ops.filter_normalize_(directions, center, RUNS, GROUPS, norms, elementwise=elementwise)
    torch.testing.assert_close(norms, want_norms, rtol=1e-14, atol=0)
    atol = torch.finfo(dtype).smallest_normal
    torch.testing.assert_close(directions.double(), want, rtol=1.01 * ROUNDING[dtype], atol=atol)
    outside = torch.ones(SIZE, dtype=torch.bool)
    outside[[i for run in RUNS.tolist() for i in reference.entries(run)]] = False
    assert outside.sum() > 100
    assert bits(directions[:, outside]) == bits(before[:, outside])
    assert bits(center) == bits(before_center)


@pytest.mark.parametrize("dtype", HALF_TO_DOUBLE, ids=str)
def test_filter_normalize_gives_exact_zeros_where_a_length_is_zero(ops, dtype):
    directions = torch.tensor([[-1.0, 2.0, -0.0, 0.0], [0.0, -0.0, 3.0, -4.0]]).to(dtype)
    center = torch.tensor([0.0, -0.0, 3.0, 4.0]).to(dtype)
    norms = torch.empty(3, 2, dtype=torch.float64)
    runs, groups = torch.tensor([[0, 1, 0, 2], [2, 1, 0, 2]]), torch.tensor([0, 1, 2])
    ops.filter_normalize_(directions, center, runs, groups, norms)
    zero = bits(torch.zeros(1, dtype=dtype))
    assert bits(directions[0]) == zero * 4
    assert bits(directions[1, :2]) == zero * 2
    assert directions[1, 2:].tolist() == [3.0, -4.0]


@pytest.mark.parametrize("scale", [2.0**-80, 2.0**80])
def test_filter_normalize_forgets_the_length_of_a_direction(ops, scale):
    """Squares of such numbers are 0 or infinity in float32, and neither in float64."""
    directions, center, norms = filter_case(3, 2, torch.float32)
    longer = directions * scale
    for d in (directions, longer):
        ops.filter_normalize_(d, center, RUNS, GROUPS, norms)
    at = [i for run in RUNS.tolist() for i in reference.entries(run)]
    assert bits(longer[:, at]) == bits(directions[:, at])


def test_filter_normalize_twice_changes_nothing_more(ops):
    directions, center, norms = filter_case(4, 1, torch.float64)
    ops.filter_normalize_(directions, center, RUNS, GROUPS, norms)
    once = directions.clone()
    ops.filter_normalize_(directions, center, RUNS, GROUPS, norms)
    torch.testing.assert_close(directions, once, rtol=1e-14, atol=0)
    torch.testing.assert_close(norms[0, 3:], norms[1, 3:], rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("rows", "size", "offset"), [(1, 2**31 + 100, 2**31 + 7), (3, 2**30 + 100, 2**30 + 7)]
)
def test_filter_normalize_reaches_beyond_2_to_the_31(ops, rows, size, offset):
    """Memory that is not touched is not taken: only the run is."""
    directions = torch.empty(rows, size, dtype=torch.bfloat16)
    center = torch.empty(size, dtype=torch.bfloat16)
    at = slice(offset, offset + 64)
    directions[:, at], center[at] = 3.0, 6.0
    norms = torch.empty(rows + 1, 1, dtype=torch.float64)
    runs, groups = torch.tensor([[offset, 2, 40, 20]]), torch.tensor([0, 1])
    ops.filter_normalize_(directions, center, runs, groups, norms)
    want = torch.tensor([6.0] * 20 + [3.0] * 20 + [6.0] * 20 + [3.0] * 4)
    assert directions[:, at].float().tolist() == [want.tolist()] * rows
    assert norms[-1].item() == pytest.approx(6 * 40**0.5)


# --- gaussian_ --------------------

KNOWN = [  # counter, key, words: from the table kat_vectors of Random123, philox4x32 with 10 rounds
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_words(counter, key, words):
    """The compiled one is checked by tests/native/driver.cpp, and below through its numbers."""
    assert reference.philox(counter, key) == words
    column = np.array(counter, np.uint64).reshape(4, 1)
    assert _fallback._philox(column, key[1] << 32 | key[0]).ravel().tolist() == words


@pytest.mark.parametrize(
    ("key", "stream", "offset"),
    [(0, 0, 0), (-1, -1, 1), (0x123456789ABCDEF, 2**63 - 1, 2**62 + 1), (-(2**63), 5, 2**40)],
)
def test_gaussian_is_box_muller_of_philox_to_a_few_ulp(ops, key, stream, offset):
    out = torch.empty(101, dtype=torch.float64)
    ops.gaussian_(out, key, stream, offset)
    for i, got in enumerate(out.tolist()):
        want = reference.normal(offset + i, key, stream)
        assert abs(got - want) <= 4 * 2.0**-53 * abs(want)


@pytest.mark.parametrize("dtype", MASTER, ids=str)
@pytest.mark.parametrize(("n", "offset"), [(0, 0), (1, 1), (130, 3), (40_001, 7)])
def test_gaussian_gives_the_same_bits_everywhere(ops, n, offset, dtype):
    got, want = torch.empty(n, dtype=dtype), torch.empty(n, dtype=dtype)
    ops.gaussian_(got, 99, -7, offset)
    _fallback.gaussian_(want, 99, -7, offset)
    assert bits(got) == bits(want)


def test_gaussian_bits_are_frozen(ops):
    """Seeds that people publish must draw the same directions for ever."""
    out = torch.empty(4, dtype=torch.float64)
    ops.gaussian_(out, 2024, 1)
    assert [v.hex() for v in out.tolist()] == FROZEN


FROZEN = [
    "-0x1.7a329f09cc604p+0",
    "0x1.f7820a9da37f1p-2",
    "-0x1.2a295f83ce54cp-1",
    "-0x1.71a603da3746bp+0",
]


def test_any_part_of_a_stream_can_be_drawn_alone(ops):
    whole = torch.empty(70_001)
    ops.gaussian_(whole, 5, 6)
    for begin, end in ((0, 1), (1, 4), (8191, 8193), (32_767, 32_770), (69_000, 70_001)):
        part = torch.empty(end - begin)
        ops.gaussian_(part, 5, 6, begin)
        assert bits(part) == bits(whole[begin:end])


def test_float32_numbers_are_the_float64_numbers_rounded(ops):
    single, double = torch.empty(999), torch.empty(999, dtype=torch.float64)
    ops.gaussian_(single, 1, 1)
    ops.gaussian_(double, 1, 1)
    assert bits(single) == bits(double.float())


def test_gaussian_has_the_moments_of_a_normal_distribution(ops):
    """Five standard errors of each moment, and of the correlation between neighbours."""
    n = 200_000
    z = torch.empty(n, dtype=torch.float64)
    ops.gaussian_(z, 42, 0)
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - mean) < 5 * (variance / n) ** 0.5
    for lag in (1, 2, 3):
        assert abs((z[:-lag] * z[lag:]).mean()) < 5 / n**0.5
    assert ((z < 0).double().mean() - 0.5).abs() < 2.5 / n**0.5


def test_streams_and_keys_are_independent(ops):
    draws = []
    for key, stream in ((0, 0), (1, 0), (0, 1), (1 << 32, 0), (0, 1 << 32), (-1, 0), (0, -1)):
        out = torch.empty(10_000, dtype=torch.float64)
        ops.gaussian_(out, key, stream)
        draws.append(out)
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.05


def test_gaussian_leaves_global_generators_alone(ops):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    ops.gaussian_(torch.empty(1000), 1, 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


def test_elementary_functions_are_right_to_two_ulp():
    """At random places, and where they are hardest: near 1 and 2^-53, at the ends of an octant."""
    ends = 2.0**-53 * np.array([1, 2, 3, 2**52, 2**53 - 1, 2**53])
    middle = 0.5**0.5 + np.arange(-3, 4) * 1e-16
    u = np.concatenate([ends, middle, np.random.default_rng(0).random(300) + 2.0**-53])
    x = np.concatenate([np.linspace(-np.pi / 4, np.pi / 4, 301), [1e-300, -1e-9, 2.0**-52]])
    table = [(_fallback._log, mpmath.log, u), (_fallback._sin, mpmath.sin, x)]
    with mpmath.workdps(40):
        for ours, exact, where in [*table, (_fallback._cos, mpmath.cos, x)]:
            for v, got in zip(where.tolist(), ours(where).tolist(), strict=True):
                want = exact(mpmath.mpf(v))
                assert abs(got - want) <= 2 * 2.0**-53 * abs(want), (ours, v)


# --- all --------------------


def large_case() -> tuple:
    """Sizes that keep several threads busy; subnormal numbers in what perturb_ reads and writes."""
    theta = torch.randn(60 * 3000, generator=torch.Generator().manual_seed(0))
    theta[:3000] *= 1e-42
    runs = torch.tensor([[3000 * f, 1, 0, 3000] for f in range(60)])
    directions = torch.stack((theta.flip(0), theta.roll(7)))
    return perturb_case(1, 2, torch.float32, long=150_000), directions, theta, runs


def run_all(ops, case: tuple) -> list[list[int]]:
    """The bits of everything that the operators write."""
    (params, center, steps, coordinates), directions, theta, runs = case
    params, directions = [torch.empty_like(p) for p in params], directions.clone()
    norms = torch.empty(3, 2, dtype=torch.float64)
    numbers = torch.empty(100_001)
    w, basis = theta[:60_000].clone(), theta[60_000:].view(2, -1)
    coefficients = torch.empty(2, dtype=torch.float64)
    ops.perturb_(params, center, steps, coordinates)
    ops.gaussian_(numbers, 3, 4, 5)
    ops.filter_normalize_(directions, theta, runs, torch.tensor([0, 1, 60]), norms)
    ops.orthogonalize_(w, basis, coefficients)
    return [bits(t) for t in (*params, numbers, directions, norms, w, coefficients)]


@native
def test_bits_do_not_depend_on_threads_or_instruction_set_or_flushed_denormals(ops):
    if ops is _fallback:
        pytest.skip("the fallback promises this of perturb_ and gaussian_ only")
    threads, case = torch.get_num_threads(), large_case()
    got = [run_all(ops, case)]
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            got.append(run_all(ops, case))
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        got.append(run_all(ops, case))
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
    compiled.set_isa("baseline")
    want = run_all(ops, case)
    assert all(g == want for g in got)


@native
def test_an_instruction_set_that_is_not_there_is_named():
    with pytest.raises(RuntimeError, match=r"set_isa: name must be auto or one of .*, got mmx"):
        compiled.set_isa("mmx")
    assert compiled.isa() in compiled.isa_names().split(",")


@native
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_over_100000_calls():
    params, center, directions, coordinates = perturb_case(1, 2, torch.float32, long=10)
    d, theta, norms = filter_case(1, 1, torch.float32)
    w, basis, coefficients = orthogonalize_case(3, 50, torch.float32)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    def call(times: int) -> None:
        for _ in range(times):
            _ops.perturb_(params, center, directions, coordinates)
            _ops.gaussian_(center, 1, 2)
        for _ in range(times // 10):
            _ops.filter_normalize_(d, theta, RUNS, GROUPS, norms)
            _ops.orthogonalize_(w, basis, coefficients)

    call(5000)
    before = resident()
    call(100_000)
    assert resident() < 1.01 * before


def operator_arguments(name: str, dtype: torch.dtype) -> tuple:
    if name == "perturb_":
        params, center, directions, coordinates = perturb_case(2, 2, dtype, long=50)
        center = center.nan_to_num(posinf=1, neginf=1)  # opcheck compares what NaN does not equal
        return params, center, directions.nan_to_num(posinf=1, neginf=1), coordinates
    if name == "filter_normalize_":
        directions, center, norms = filter_case(2, 2, dtype)
        return directions, center, RUNS, GROUPS, norms, False
    if name == "orthogonalize_":
        return orthogonalize_case(3, 50, dtype)
    return torch.empty(9, dtype=dtype), 1, 2, 3


@native
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(("perturb_", dtype) for dtype in MASTER),
        *(("filter_normalize_", dtype) for dtype in HALF_TO_DOUBLE),
        *(("gaussian_", dtype) for dtype in MASTER),
        *(("orthogonalize_", dtype) for dtype in MASTER),
    ],
)
def test_operators_are_registered_as_torch_expects(name, dtype):
    op = getattr(compiled, name).default
    torch.library.opcheck(op, operator_arguments(name, dtype))


@native
def test_operators_compile_into_one_graph():
    def step(params, center, directions, norms, coefficients):
        _ops.gaussian_(directions.view(-1), 1, 2)
        _ops.orthogonalize_(center, directions, coefficients)
        _ops.filter_normalize_(directions, center, runs, groups, norms)
        _ops.perturb_(params, center, directions, [0.5, -0.25])
        return params[0] * 2

    runs, groups = torch.tensor([[0, 1, 0, 8], [8, 1, 0, 4]]), torch.tensor([0, 1, 2])
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        params = [torch.zeros(8), torch.zeros(4, dtype=torch.bfloat16)]
        norms, found = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        out = function(params, torch.arange(12.0), torch.zeros(2, 12), norms, found)
        results.append([bits(t) for t in (out, *params, norms, found)])
    assert results[0] == results[1]
    assert results[0][0] != bits(torch.zeros(8))


def test_meta_tensors_are_understood():
    if not _lib.native:
        pytest.skip("plain PyTorch computes; it has no fake kernels")
    meta = torch.empty(3, device="meta")
    _ops.gaussian_(meta, 1, 2)
    _ops.perturb_([meta], torch.empty(3, device="meta"), torch.empty(0, 3, device="meta"), [])
    found = torch.empty(2, device="meta", dtype=torch.float64)
    _ops.orthogonalize_(meta, torch.empty(2, 3, device="meta"), found)


P3 = torch.zeros(3)
D3 = torch.zeros(2, 3)
COUNT = torch.tensor([0, 1])
RUN = torch.tensor([[0, 1, 0, 3]])
NORMS = torch.zeros(3, 1, dtype=torch.float64)

PERTURB_ERRORS = [
    ("center", torch.zeros(3, 1), r"center must be .* \[P\] tensor, got float32 of shape \[3, 1\]"),
    ("center", torch.zeros(3).half(), r"center must be a contiguous float32 or float64 .* float16"),
    ("center", torch.zeros(6)[::2], r"center must be .* \[3\], not contiguous, on cpu"),
    (
        "directions",
        torch.zeros(2, 4),
        r"directions must be .* P = 3, got float32 of shape \[2, 4\]",
    ),
    ("directions", D3.double(), "directions must be .* the dtype and device of center .* float64"),
    ("directions", torch.zeros(3, 2).t(), "directions must be .* not contiguous"),
    ("coordinates", [1.0], "coordinates must be K = 2 numbers, got 1"),
    ("coordinates", [1.0, float("nan")], "coordinates must be finite, got nan"),
    ("coordinates", [float("-inf"), 0.0], "coordinates must be finite, got -inf"),
    ("params", [torch.zeros(2)], "params must have P = 3 entries in all, got 2"),
    ("params", [P3, torch.zeros(1)], "params must have P = 3 entries in all, got 4"),
    (
        "params",
        [torch.zeros(3, dtype=torch.int64)],
        "params must be contiguous floating tensors .* int64 .* 0",
    ),
    (
        "params",
        [torch.zeros(1), torch.zeros(2, 2)[:, 0]],
        "params must be .* not contiguous, on cpu at position 1",
    ),
    ("params", "center", "params must not share memory with center or directions, .* position 0"),
    ("params", "directions", "params must not share memory with center or directions"),
]


@pytest.mark.parametrize(("name", "value", "message"), PERTURB_ERRORS)
def test_perturb_names_the_bad_argument(ops, name, value, message):
    good = {"center": torch.zeros(3), "directions": D3.clone(), "coordinates": [1.0, 2.0]}
    if isinstance(value, str):
        value = [good[value].view(-1)[:3]]
    arguments = {"params": [torch.zeros(3)], **good, name: value}
    with pytest.raises(RuntimeError, match=r"^perturb_: " + message):
        ops.perturb_(**arguments)


NORMALIZE_ERRORS = [
    ("directions", torch.zeros(3), r"directions must be .* floating \[K, P\] tensor, got .* \[3\]"),
    ("directions", D3.long(), "directions must be .* floating .* got int64"),
    ("center", torch.zeros(4), r"center must be .* P = 3, got float32 of shape \[4\]"),
    ("center", P3.double(), "center must be .* the dtype and device of directions .* got float64"),
    ("runs", torch.zeros(1, 3).long(), r"runs must be .* \[R, 4\] tensor on cpu, got .* \[1, 3\]"),
    ("runs", RUN.int(), "runs must be a contiguous int64 .* got int32"),
    ("groups", torch.zeros(0).long(), r"groups must be .* \[F \+ 1\] tensor on cpu, got .* \[0\]"),
    ("norms", torch.zeros(2, 1).double(), r"norms must be .* K \+ 1 = 3 and F = 1, got float64"),
    ("norms", NORMS.float(), "norms must be a contiguous float64 .* got float32"),
    ("runs", torch.tensor([[1, 1, 0, 3]]), r"runs must be .* P = 3 .* got \(1, 1, 0, 3\) in row 0"),
    ("runs", torch.tensor([[-1, 1, 0, 1]]), r"runs must be rows .* got \(-1, 1, 0, 1\)"),
    ("runs", torch.tensor([[0, 2, 1, 2]]), "runs must be rows .* stride >= inner"),
    ("runs", torch.tensor([[0, 2**32 + 1, 2**32, 1]]), r"runs must be rows .* in row 0"),
    ("runs", torch.tensor([[4, 0, 0, 0]]), r"runs must be rows .* got \(4, 0, 0, 0\)"),
    ("groups", torch.tensor([0, 2]), "groups must rise from 0 to R = 1, got a table from 0 to 2"),
    ("groups", torch.tensor([1, 1]), "groups must rise from 0 to R = 1, got a table from 1 to 1"),
]


@pytest.mark.parametrize(("name", "value", "message"), NORMALIZE_ERRORS)
def test_filter_normalize_names_the_bad_argument(ops, name, value, message):
    good = {"directions": D3, "center": P3, "runs": RUN, "groups": COUNT, "norms": NORMS}
    with pytest.raises(RuntimeError, match=r"^filter_normalize_: " + message):
        ops.filter_normalize_(**{**good, name: value})


def test_filter_normalize_refuses_groups_that_fall(ops):
    groups = torch.tensor([0, 2, 1, 2])
    runs, norms = RUN.repeat(2, 1), torch.zeros(3, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"groups must rise .* that falls in between"):
        ops.filter_normalize_(D3.clone(), P3, runs, groups, norms)


GAUSSIAN_ERRORS = [
    ("out", torch.zeros(2, 2), r"out must be .* \[n\] tensor, got float32 of shape \[2, 2\]"),
    ("out", torch.zeros(2).half(), "out must be a contiguous float32 or float64 .* got float16"),
    ("out", torch.zeros(4)[::2], "out must be .* not contiguous"),
    ("offset", -1, r"offset must be at least 0 with offset \+ n < 2\^63, got -1"),
    ("offset", 2**63 - 3, "offset must be at least 0"),
]


@pytest.mark.parametrize(("name", "value", "message"), GAUSSIAN_ERRORS)
def test_gaussian_names_the_bad_argument(ops, name, value, message):
    good = {"out": torch.zeros(3), "key": 1, "stream": 2, "offset": 0}
    with pytest.raises(RuntimeError, match=r"^gaussian_: " + message):
        ops.gaussian_(**{**good, name: value})
