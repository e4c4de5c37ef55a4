"""`gaussian_`, for each instruction set and in plain PyTorch, against Philox and mpmath."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from native import operator_reference as reference
from native.implementations import ops as ops
from native.operator_cases import MASTER, bits

from landscapex import _fallback

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
