"""What all operators promise: the same bits everywhere, no leaks, and what torch expects."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from native.implementations import native
from native.implementations import ops as ops
from native.operator_cases import (
    GROUPS,
    RUNS,
    bits,
    filter_case,
    orthogonalize_case,
    perturb_case,
)
from reliability import operators

from landscapex import _fallback, _lib, _ops

compiled = torch.ops.landscapex


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


CASES = [(name, dtype) for name, dtypes in operators.DTYPES.items() for dtype in dtypes]


@native
def test_no_operator_is_forgotten():
    """Whatever is registered is checked: an operator that is added, too."""
    assert operators.registered() == operators.DTYPES.keys()


@native
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_operators_are_registered_as_torch_expects(name, dtype):
    assert operators.opcheck(name, dtype) == dict.fromkeys(operators.CHECKS, "SUCCESS")


@native
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_operators_give_the_same_bits_when_they_are_compiled(name, dtype):
    assert operators.compiles(name, dtype, backend="aot_eager")


@native
@pytest.mark.skipif(find_spec("landscapex._C_emulated") is None, reason="built without it")
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_emulated_operators_write_what_their_schema_says(name, dtype):
    operators.load_emulated()
    assert operators.emulated_agrees(name, dtype)


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
