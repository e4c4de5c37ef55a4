"""The CUDA kernels' own source, run on the CPU by tests/emulation in four orders of threads and
blocks; and on a GPU, where there is one (`pytest -m gpu`)."""

from __future__ import annotations

from importlib.util import find_spec

import gpu
import pytest
import torch
from native.operator_cases import (
    GROUPS,
    HALF_TO_DOUBLE,
    ROUNDING,
    RUNS,
    bits,
    filter_case,
    orthogonalize_case,
    perturb_case,
)
from native.operator_reference import filter_normalize
from torch.utils._pytree import tree_map

from landscapex import _fallback, _lib

_spec = find_spec("landscapex._C_emulated") if _lib.native else None
if _spec is not None and _spec.origin is not None:
    torch.ops.load_library(_spec.origin)
_emulated = torch.ops.landscapex_emulated
ORDERS = ["forward", "reverse", "random", "warps"]


class _OnGpu:
    """The operators on copies of their arguments on the GPU, which are copied back."""

    def __getattr__(self, name):
        def call(*arguments):
            made = {}

            def moved(leaf):
                if not isinstance(leaf, torch.Tensor):
                    return leaf
                return made.setdefault(id(leaf), (leaf, leaf.cuda()))[1]

            getattr(torch.ops.landscapex, name)(*tree_map(moved, arguments))
            for here, there in made.values():
                here.copy_(there)

        return call


ops = _emulated


@pytest.fixture(params=[*range(4), gpu.CUDA], ids=[*ORDERS, "cuda"], autouse=True)
def order(request, monkeypatch):
    if request.param == "cuda":
        if not _lib.cuda:
            pytest.skip(f"landscapex._C_cuda is not there: {_lib.cuda_missing}")
        monkeypatch.setitem(globals(), "ops", _OnGpu())
        yield "cuda"
        return
    if _spec is None:
        pytest.skip("built without LANDSCAPEX_EMULATED_CUDA=ON")
    ops.set_order(request.param, 1234)
    yield request.param
    ops.set_order(0, 1)


@pytest.mark.parametrize("k", [0, 1, 2, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_perturb_gives_the_bits_of_the_cpu(k, dtype):
    params, center, directions, coordinates = perturb_case(k, k, dtype)
    want = [torch.empty_like(p) for p in params]
    ops.perturb_(params, center, directions, coordinates)
    _fallback.perturb_(want, center, directions, coordinates)
    assert [bits(p) for p in params] == [bits(p) for p in want]


@pytest.mark.parametrize("count", [200, 201, 1800, 1801])
def test_perturb_takes_any_number_of_tensors(count):
    params = [torch.empty(1 + t % 3) for t in range(count)]
    size = sum(p.numel() for p in params)
    center, directions = torch.arange(size) / 7, torch.ones(1, size)
    ops.perturb_(params, center, directions, [0.5])
    assert torch.equal(torch.cat(params), (center.double() + 0.5).float())


@pytest.mark.parametrize("dtype", HALF_TO_DOUBLE, ids=str)
@pytest.mark.parametrize(("k", "elementwise"), [(0, False), (1, False), (3, False), (2, True)])
def test_filter_normalize_agrees_with_the_reference(dtype, k, elementwise):
    directions, center, norms = filter_case(k, k, dtype)
    want, want_norms = filter_normalize(directions, center, RUNS, GROUPS, elementwise)
    ops.filter_normalize_(directions, center, RUNS, GROUPS, norms, elementwise)
    torch.testing.assert_close(norms, want_norms, rtol=1e-14, atol=0)
    atol = torch.finfo(dtype).smallest_normal
    torch.testing.assert_close(directions.double(), want, rtol=1.01 * ROUNDING[dtype], atol=atol)


@pytest.mark.parametrize("dtype", HALF_TO_DOUBLE, ids=str)
def test_filter_normalize_gives_the_bits_of_the_cpu(dtype):
    directions, center, norms = filter_case(5, 2, dtype)
    cpu, cpu_norms = directions.clone(), norms.clone()
    ops.filter_normalize_(directions, center, RUNS, GROUPS, norms, False)
    torch.ops.landscapex.filter_normalize_(cpu, center, RUNS, GROUPS, cpu_norms, False)
    assert bits(directions) == bits(cpu)
    assert bits(norms) == bits(cpu_norms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("n", "offset"), [(0, 0), (1, 0), (1, 1), (513, 3), (5001, 10), (4, 2**62)]
)
def test_gaussian_gives_the_bits_of_the_cpu(n, offset, dtype):
    got, want = torch.empty(n, dtype=dtype), torch.empty(n, dtype=dtype)
    ops.gaussian_(got, -3, 2**40, offset)
    _fallback.gaussian_(want, -3, 2**40, offset)
    assert bits(got) == bits(want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("rows", "size"), [(0, 5), (1, 1), (3, 0), (3, 31), (9, 2049), (17, 4097), (40, 5000)]
)
def test_orthogonalize_gives_the_bits_of_the_cpu(rows, size, dtype):
    w, basis, found = orthogonalize_case(rows, size, dtype, orthonormal=size > rows)
    cpu, cpu_found = w.clone(), found.clone()
    ops.orthogonalize_(w, basis, found)
    torch.ops.landscapex.orthogonalize_(cpu, basis, cpu_found)
    assert bits(w) == bits(cpu)
    assert bits(found) == bits(cpu_found)


def test_orthogonalize_sums_many_chunks():
    """More chunks than a warp has lanes."""
    w, basis, found = orthogonalize_case(2, 80_000, torch.float32)
    cpu, cpu_found = w.clone(), found.clone()
    ops.orthogonalize_(w, basis, found)
    torch.ops.landscapex.orthogonalize_(cpu, basis, cpu_found)
    assert (bits(w), bits(found)) == (bits(cpu), bits(cpu_found))


def test_checks_are_those_of_the_cpu():
    with pytest.raises(
        RuntimeError, match="perturb_: params must have P = 4 entries in all, got 3"
    ):
        ops.perturb_([torch.empty(3)], torch.zeros(4), torch.zeros(0, 4), [])
