"""Slow, literal versions of the operators, from their specifications: loops over Python numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mpmath
import torch
from torch import Tensor

# significant bits; the unit of the smallest numbers is 2 ** smallest
FORMATS = {
    torch.float16: (11, -24, 65504.0),
    torch.bfloat16: (8, -133, 3.3895313892515355e38),
    torch.float32: (24, -149, 3.4028234663852886e38),
    torch.float64: (53, -1074, 1.7976931348623157e308),
}


def rounded(value: float, dtype: torch.dtype) -> float:
    """To nearest, ties to even, in one step."""
    if not math.isfinite(value) or value == 0:
        return value
    bits, smallest, largest = FORMATS[dtype]
    unit = max(math.frexp(value)[1] - bits, smallest)
    result = math.ldexp(round(mpmath.ldexp(mpmath.mpf(value), -unit)), unit)
    result = math.copysign(result, value)
    return result if abs(result) <= largest else math.copysign(math.inf, value)


def perturb(
    dtypes: Sequence[torch.dtype],
    sizes: Sequence[int],
    center: Tensor,
    directions: Tensor,
    coordinates: Sequence[float],
) -> list[list[float]]:
    """The entries of every parameter."""
    values = []
    for i, start in enumerate(center.tolist()):
        total = start
        for k, c in enumerate(coordinates):
            product = c * directions[k, i].item()
            if product != 0:
                total = total + product
        values.append(rounded(total, center.dtype))
    out, begin = [], 0
    for dtype, size in zip(dtypes, sizes, strict=True):
        out.append([rounded(v, dtype) for v in values[begin : begin + size]])
        begin += size
    return out


def entries(run: Sequence[int]) -> list[int]:
    """The entries of a run, in order."""
    offset, count, stride, inner = run
    return [offset + c * stride + i for c in range(count) for i in range(inner)]


def filter_normalize(
    directions: Tensor, center: Tensor, runs: Tensor, groups: Tensor, elementwise: bool
) -> tuple[Tensor, Tensor]:
    """Directions before their last rounding, in float64, and norms."""
    d, theta, rows = directions.tolist(), center.tolist(), runs.tolist()
    bounds = groups.tolist()
    norms = [[0.0] * (len(bounds) - 1) for _ in range(len(d) + 1)]
    for f in range(len(bounds) - 1):
        at = [i for row in rows[bounds[f] : bounds[f + 1]] for i in entries(row)]
        theta_norm = norms[-1][f] = math.sqrt(math.fsum(theta[i] ** 2 for i in at))
        for k in range(len(d)):
            d_norm = norms[k][f] = math.sqrt(math.fsum(d[k][i] ** 2 for i in at))
            zero = d_norm == 0 or theta_norm == 0
            for i in at:
                if elementwise:
                    d[k][i] *= theta[i]
                else:
                    d[k][i] = 0.0 if zero else d[k][i] * theta_norm / d_norm
    shape = directions.shape
    return torch.tensor(d, dtype=torch.float64).view(shape), torch.tensor(
        norms, dtype=torch.float64
    )


def orthogonalize(w: Tensor, basis: Tensor) -> tuple[list[float], list[float]]:
    """The vector and the coefficients: inner products exact, then the specified roundings."""
    rows, left = basis.tolist(), w.tolist()
    coefficients = [0.0] * len(rows)
    for _ in range(2):
        found = [math.fsum(x * y for x, y in _exact(row, left)) for row in rows]
        for i in range(len(left)):
            for c, row in zip(found, rows, strict=True):
                left[i] = left[i] - c * row[i]
            left[i] = rounded(left[i], w.dtype)
        coefficients = [a + b for a, b in zip(coefficients, found, strict=True)]
    return left, coefficients


def _exact(a: Sequence[float], b: Sequence[float]) -> list[tuple[float, float]]:
    """Pairs of numbers whose products are exact and have the sum of a * b: halves of 26 bits."""
    pairs = []
    for x, y in zip(a, b, strict=True):
        parts = []
        for v in (x, y):
            high = v * 134217729.0
            high = high - (high - v)
            parts.append((high, v - high))
        pairs += [(p, q) for p in parts[0] for q in parts[1]]
    return pairs


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox 4x32-10, as in the paper: ten rounds, the key raised between them."""
    c, k = list(counter), list(key)
    for turn in range(10):
        if turn:
            k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
    return c


def normal(index: int, key: int, stream: int) -> mpmath.mpf:
    """Number `index` of a stream, to 40 digits."""
    block, key, stream = index // 2, key % 2**64, stream % 2**64
    w = philox([block % 2**32, block >> 32, stream % 2**32, stream >> 32], [key % 2**32, key >> 32])
    with mpmath.workdps(40):
        u1 = mpmath.mpf(((w[0] << 32 | w[1]) >> 11) + 1) / 2**53
        u2 = mpmath.mpf((w[2] << 32 | w[3]) >> 11) / 2**53
        wave = mpmath.sin if index % 2 else mpmath.cos
        return mpmath.sqrt(-2 * mpmath.log(u1)) * wave(2 * mpmath.pi * u2)
