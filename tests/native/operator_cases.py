"""Inputs for the operators, shared by the tests of every implementation."""

from __future__ import annotations

import torch
from torch import Tensor

MASTER = [torch.float32, torch.float64]
HALF_TO_DOUBLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def bits(tensor: Tensor) -> list[int]:
    """The bit patterns of the entries, all NaNs taken for one."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    flat = tensor.detach().reshape(-1)
    return torch.where(flat.isnan(), torch.full_like(flat, torch.nan), flat).view(kind).tolist()


def perturb_case(
    seed: int, k: int, dtype: torch.dtype, *, long: int = 5000
) -> tuple[list[Tensor], Tensor, Tensor, list[float]]:
    """Parameters of all dtypes and odd sizes; special values; entries that nothing moves."""
    rng = torch.Generator().manual_seed(seed)
    params = [
        torch.empty(3, 5, dtype=torch.float16),
        torch.empty(0),
        torch.empty((), dtype=torch.float64),
        torch.empty(67, dtype=torch.bfloat16),
        torch.empty(long),
        torch.empty(33, dtype=torch.float64),
        torch.empty(130, dtype=torch.float16),
    ]
    size = sum(p.numel() for p in params)
    center = torch.randn(size, generator=rng, dtype=dtype)
    center *= 10.0 ** torch.randint(-9, 6, (size,), generator=rng)
    directions = torch.randn(k, size, generator=rng, dtype=dtype)
    directions[:, torch.rand(size, generator=rng) < 0.1] = 0
    special = torch.tensor([-0.0, 1e-40, -1e-45, float("inf"), -float("inf"), float("nan"), 7e4])
    for begin in (0, 20, 90, size - 140, size - 100):
        center[begin : begin + 7] = special
        directions[:, begin : begin + 3] = 0
    if k:
        directions[0, size - 60 : size - 53] = special
    return params, center, directions, (torch.randn(k, generator=rng).double() * 2).tolist()


# half a unit in the last place; for float64 the norms' own rounding comes on top
ROUNDING = {
    torch.float16: 2**-11,
    torch.bfloat16: 2**-8,
    torch.float32: 2**-24,
    torch.float64: 1e-15,
}

RUNS = torch.tensor(
    [
        [0, 1, 0, 27],
        [27, 1, 5, 27],
        [60, 5, 10, 3],
        [64, 5, 10, 3],
        [120, 1, 0, 1],
        [121, 0, 5, 5],
        [121, 3, 5, 0],
        [200, 1, 0, 1024],
        [1224, 1, 0, 1025],
        [2300, 70, 30, 29],
        [4500, 1, 0, 4500],
    ]
)
GROUPS = torch.tensor([0, 1, 2, 2, 4, 7, 8, 10, 11])
SIZE = 9100


def filter_case(seed: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Directions, centre and norms for RUNS and GROUPS; the first group of the centre is zero."""
    rng = torch.Generator().manual_seed(seed)
    center = torch.randn(SIZE, generator=rng).to(dtype)
    directions = torch.randn(k, SIZE, generator=rng).to(dtype)
    center[:27] = 0
    if k:
        directions[0, 27:54] = 0
    return directions, center, torch.full((k + 1, len(GROUPS) - 1), -1.0, dtype=torch.float64)


def orthogonalize_case(
    rows: int, size: int, dtype: torch.dtype, *, orthonormal: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """A vector, the rows of a basis, and room for the coefficients, which holds NaN."""
    rng = torch.Generator().manual_seed(1000 * rows + size)
    basis = torch.randn(rows, size, generator=rng, dtype=torch.float64)
    if orthonormal:
        basis = torch.linalg.qr(basis.T).Q.T
    else:
        basis *= 0.1
    w = torch.randn(size, generator=rng, dtype=torch.float64)
    empty = torch.full((rows,), torch.nan, dtype=torch.float64)
    return w.to(dtype), basis.to(dtype).contiguous(), empty
