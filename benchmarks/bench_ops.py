"""The operators against what one would write in PyTorch, on the parameters of ResNet-56.

Each benchmark first proves that both compute the same, then times them in turn, round by round, in
CPU time: on a busy machine the clock on the wall says little. ``extra_info`` holds the ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from landscapex import _lib, _ops

pytestmark = pytest.mark.skipif(not _lib.native, reason="the compiled libraries were not built")
POINT = [0.3, -0.2]
ROUNDS = 40


def resnet56_shapes() -> list[tuple[int, ...]]:
    """ResNet-56 for CIFAR-10: 16, 32, 64 channels, nine blocks each, batch norm, no biases."""
    shapes: list[tuple[int, ...]] = [(16, 3, 3, 3), (16,), (16,)]
    before = 16
    for width in (16, 32, 64):
        for _ in range(9):
            shapes += [(width, before, 3, 3), (width,), (width,)]
            shapes += [(width, width, 3, 3), (width,), (width,)]
            before = width
    return [*shapes, (10, 64), (10,)]


def split(flat: Tensor) -> list[Tensor]:
    shapes = resnet56_shapes()
    sizes = [torch.Size(s).numel() for s in shapes]
    return [v.view(s) for v, s in zip(flat.split(sizes), shapes, strict=True)]


@pytest.fixture
def flat() -> tuple[Tensor, Tensor]:
    size = sum(torch.Size(s).numel() for s in resnet56_shapes())
    center, directions = torch.empty(size), torch.empty(2, size)
    for stream, row in enumerate((center, *directions)):
        _ops.gaussian_(row, 0, stream)
    return center * 0.05, directions


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def interleaved(functions: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median CPU seconds of each; every round runs all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            begin = time.process_time()
            function()
            seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(s) for name, s in seconds.items()}


def report(benchmark, functions: dict[str, Callable[[], None]], **sizes: int) -> None:
    """Time `functions`, the first of which is ours, and keep the ratios."""
    seconds = interleaved(functions)
    (ours, mine), *others = seconds.items()
    benchmark.extra_info.update(sizes)
    benchmark.extra_info["instruction set"] = torch.ops.landscapex.isa()
    benchmark.extra_info["cpu microseconds"] = {n: round(s * 1e6) for n, s in seconds.items()}
    benchmark.extra_info["ratio"] = {n: round(s / mine, 2) for n, s in others}
    benchmark.pedantic(functions[ours], rounds=ROUNDS, warmup_rounds=2)


def test_perturb(benchmark, flat, threads):
    center, directions = flat
    weights = split(center)
    steps = [split(d) for d in directions]
    params, plain_params, foreach_params = (
        [torch.empty(s) for s in resnet56_shapes()] for _ in range(3)
    )

    def ours() -> None:
        _ops.perturb_(params, center, directions, POINT)

    def plain() -> None:
        for p, w, a, b in zip(plain_params, weights, *steps, strict=True):
            p.copy_(w + POINT[0] * a + POINT[1] * b)

    def foreach() -> None:
        torch._foreach_copy_(foreach_params, weights)
        for step, c in zip(steps, POINT, strict=True):
            torch._foreach_add_(foreach_params, step, alpha=c)

    for function in (ours, plain, foreach):
        function()
    for p, q, r in zip(params, plain_params, foreach_params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(p, r, rtol=1e-6, atol=1e-7)
    functions = {"landscapex": ours, "plain": plain, "foreach": foreach}
    report(benchmark, functions, parameters=len(center), tensors=len(params), threads=threads)


def filter_tables() -> tuple[Tensor, Tensor]:
    """A run and a group for each filter of the tensors of two or more dimensions."""
    runs, begin = [], 0
    for shape in resnet56_shapes():
        size = torch.Size(shape).numel()
        if len(shape) > 1:
            length = size // shape[0]
            runs += [[begin + f * length, 1, 0, length] for f in range(shape[0])]
        begin += size
    return torch.tensor(runs), torch.arange(len(runs) + 1)


def test_filter_normalize(benchmark, flat, threads):
    center, directions = flat
    runs, groups = filter_tables()
    norms = torch.empty(3, len(runs), dtype=torch.float64)
    mine, theirs, fused = directions.clone(), directions.clone(), directions.clone()
    weights = split(center)
    plain_rows, foreach_rows = ([split(d) for d in x] for x in (theirs, fused))

    def ours() -> None:
        _ops.filter_normalize_(mine, center, runs, groups, norms)

    def lengths(tensors: list[Tensor]) -> list[Tensor]:
        norm = torch.linalg.vector_norm
        return [norm(t, dim=tuple(range(1, t.dim())), keepdim=True) for t in tensors]

    filters = [w for w in weights if w.dim() > 1]

    def plain() -> None:
        for row in plain_rows:
            matrices = [d for d in row if d.dim() > 1]
            for d, w, n in zip(matrices, filters, lengths(matrices), strict=True):
                d.mul_(lengths([w])[0] / n)

    def foreach() -> None:
        wanted = lengths(filters)
        for row in foreach_rows:
            matrices = [d for d in row if d.dim() > 1]
            torch._foreach_mul_(matrices, torch._foreach_div(wanted, lengths(matrices)))

    for function in (ours, plain, foreach):
        function()
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(mine, fused, rtol=1e-5, atol=1e-7)
    functions = {"landscapex": ours, "plain": plain, "foreach": foreach}
    report(
        benchmark,
        functions,
        parameters=len(center),
        filters=len(runs),
        directions=2,
        threads=threads,
    )


def test_gaussian(benchmark, threads):
    out = torch.empty(1_000_000)

    def ours() -> None:
        _ops.gaussian_(out, 1, 2)

    def theirs() -> None:
        torch.randn(len(out), out=out)

    for function in (ours, theirs):  # the same distribution; the same numbers nobody can promise
        function()
        assert abs(out.mean()) < 0.005
        assert abs(out.var() - 1) < 0.007
    report(
        benchmark, {"landscapex": ours, "torch.randn": theirs}, entries=len(out), threads=threads
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_orthogonalize(benchmark, threads, dtype):
    rows = 40  # the default basis of the Lanczos method
    size = sum(torch.Size(s).numel() for s in resnet56_shapes())
    basis = torch.randn(rows, size, dtype=dtype) / size**0.5  # all but orthonormal
    start, left = torch.randn(size, dtype=dtype), torch.empty(2, size, dtype=dtype)
    found = torch.empty(rows, dtype=torch.float64)

    def ours() -> None:
        _ops.orthogonalize_(left[0].copy_(start), basis, found)

    def theirs() -> None:  # inner products in the dtype of the basis, not in float64
        w = left[1].copy_(start)
        for _ in range(2):
            w.addmv_(basis.T, torch.mv(basis, w), alpha=-1)

    for function in (ours, theirs):
        function()
    tolerance = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(left[0], left[1], rtol=tolerance, atol=tolerance)
    functions = {"landscapex": ours, "torch.mv twice": theirs}
    bits = 8 * start.element_size()
    report(benchmark, functions, parameters=size, rows=rows, bits=bits, threads=threads)
