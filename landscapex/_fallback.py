"""The operators in plain PyTorch and NumPy, for where the compiled libraries are missing.

`perturb_` and `gaussian_` give the bits of the compiled operators; `filter_normalize_` and
`orthogonalize_` agree to rounding. Arguments, rules and messages are those of `landscapex._ops`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CHUNK = 1 << 20  # entries whose float64 copies exist at a time
_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MASTER = (torch.float32, torch.float64)


def perturb_(
    params: Sequence[Tensor],
    center: Tensor,
    directions: Tensor,
    coordinates: Sequence[float],
) -> None:
    """Write a point of the landscape into parameters; see `landscapex._ops.perturb_`."""
    _check_perturb(params, center, directions, coordinates)
    start = 0
    for param in params:
        flat = param.detach().view(-1)
        for begin in range(0, flat.numel(), _CHUNK):
            size = min(_CHUNK, flat.numel() - begin)
            at = slice(start + begin, start + begin + size)
            total = _float64(center[at])
            for c, direction in zip(coordinates, directions, strict=True):
                product = _float64(direction[at]) * c
                total = torch.where(product == 0, total, total + product)
            flat[begin : begin + size] = _narrow(total.to(center.dtype), flat.dtype)
        start += flat.numel()


def filter_normalize_(
    directions: Tensor,
    center: Tensor,
    runs: Tensor,
    groups: Tensor,
    norms: Tensor,
    *,
    elementwise: bool = False,
) -> None:
    """Scale groups of directions to the centre; see `landscapex._ops.filter_normalize_`."""
    _check_filter_normalize(directions, center, runs, groups, norms)
    center = center.detach().unsqueeze(0)
    bounds, rows = groups.tolist(), runs.tolist()
    for f, (first, last) in enumerate(pairwise(bounds)):
        parts = [(_run(directions, row), _run(center, row)) for row in rows[first:last]]
        for x, target in ((0, norms[:-1, f]), (1, norms[-1:, f])):
            squares = [_float64(part[x]).square().sum((1, 2)) for part in parts]
            total = (
                torch.stack(squares).sum(0)
                if squares
                else torch.zeros(len(target), device=target.device)
            )
            target.copy_(total.sqrt())
        d_norm, theta_norm = _float64(norms[:-1, f]), _float64(norms[-1, f])
        scale = torch.where((d_norm == 0) | (theta_norm == 0), 0.0, theta_norm / d_norm)
        for d, theta in parts:
            if elementwise:
                result = _float64(d) * _float64(theta)
            else:
                factor = scale[:, None, None]
                result = torch.where(factor == 0, 0.0, _float64(d) * factor)
            d.copy_(_narrow(result, d.dtype))


def gaussian_(out: Tensor, key: int, stream: int, offset: int = 0) -> None:
    """Fill a tensor with standard normal numbers; see `landscapex._ops.gaussian_`."""
    _check_gaussian(out, offset)
    begin = 0
    for numbers in _normals(key % 2**64, stream % 2**64, offset, out.numel()):
        out[begin : begin + len(numbers)] = torch.from_numpy(numbers).to(out.dtype)
        begin += len(numbers)


def orthogonalize_(w: Tensor, basis: Tensor, coefficients: Tensor) -> None:
    """Take out of a vector what lies in the span of rows; see `landscapex._ops.orthogonalize_`."""
    _check_orthogonalize(w, basis, coefficients)
    w, total = w.detach(), coefficients.detach().zero_()
    length = max(1, _CHUNK // max(1, len(basis)))
    parts = [slice(i, i + length) for i in range(0, len(w), length)]
    for _ in range(2):
        found = _float64(torch.zeros_like(total))
        for at in parts:
            found += _float64(basis[:, at]) @ _float64(w[at])
        for at in parts:
            w[at] = (_float64(w[at]) - found @ _float64(basis[:, at])).to(w.dtype)
        total += found.to(total.device)


def _float64(tensor: Tensor) -> Tensor:
    """In float64, on the CPU where the device has no float64."""
    device = torch.device("cpu") if tensor.device.type == "mps" else tensor.device
    return tensor.detach().to(device, torch.float64)


def _narrow(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to nearest even, once: torch goes from float64 to half types by way of float32."""
    if values.dtype == torch.float64 and dtype in (torch.float16, torch.bfloat16):
        # rounding to odd before: see csrc/kernels/numeric.h
        nearest = values.float()
        back = nearest.double()
        bits = nearest.view(torch.int32)
        truncated = torch.where(back.abs() > values.abs(), bits - 1, bits)
        inexact = (back != values) & ~values.isnan()
        values = torch.where(inexact, truncated | 1, bits).view(torch.float32)
    return values.to(dtype)


def _run(tensor: Tensor, row: Sequence[int]) -> Tensor:
    """The entries of one run in every row of a matrix: ``(rows, count, inner)``, a view."""
    offset, count, stride, inner = row
    return tensor.as_strided(
        (tensor.shape[0], count, inner),
        (tensor.stride(0), stride, 1),
        tensor.storage_offset() + offset,
    )


_PAIRS = 1 << 14  # Philox blocks at a time
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def _normals(key: int, stream: int, offset: int, n: int) -> Iterator[NDArray[np.float64]]:
    """Numbers ``offset`` to ``offset + n`` of a stream, some at a time."""
    index, end = offset, offset + n
    while index < end:
        block = index // 2
        last = min(block + _PAIRS, (end + 1) // 2)
        blocks = np.arange(block, last, dtype=np.uint64)
        counter = np.empty((4, len(blocks)), np.uint64)
        counter[0], counter[1] = blocks & _LOW, blocks >> _SHIFT
        counter[2], counter[3] = stream & 0xFFFFFFFF, stream >> 32
        pairs = _box_muller(_philox(counter, key)).ravel()
        yield pairs[index - 2 * block : end - 2 * block]
        index = 2 * last


def _philox(counter: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """Philox 4x32-10 of ``(4, n)`` counter words, under a key of 64 bits."""
    w0, w1, w2, w3 = counter
    key0, key1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        a, b = w0 * np.uint64(0xD2511F53), w2 * np.uint64(0xCD9E8D57)
        w0, w1 = (b >> _SHIFT) ^ w1 ^ np.uint64(key0), b & _LOW
        w2, w3 = (a >> _SHIFT) ^ w3 ^ np.uint64(key1), a & _LOW
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack((w0, w1, w2, w3))


def _bits53(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The 53 high bits of two words, as integers in float64."""
    return ((high << np.uint64(21)) | (low >> np.uint64(11))).astype(np.float64)


def _box_muller(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Pairs ``(n, 2)`` of normals; every operation in the order of csrc/kernels/normal.h."""
    u1 = (_bits53(words[0], words[1]) + 1.0) * 2.0**-53
    u2 = _bits53(words[2], words[3]) * 2.0**-53
    radius = np.sqrt(-2.0 * _log(u1))
    quarter = (u2 * 4.0 + 2.0**52) - 2.0**52
    angle = (u2 - quarter * 0.25) * 6.283185307179586
    sine, cosine = _sin(angle), _cos(angle)
    odd = (quarter == 1.0) | (quarter == 3.0)
    c, s = np.where(odd, sine, cosine), np.where(odd, cosine, sine)
    cos_sign = np.where((quarter == 1.0) | (quarter == 2.0), -1.0, 1.0)
    sin_sign = np.where((quarter == 2.0) | (quarter == 3.0), -1.0, 1.0)
    return np.stack((radius * (cos_sign * c), radius * (sin_sign * s)), axis=1)


def _log(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm of normal numbers in (0, 1]."""
    bits = u.view(np.uint64)
    steps = (bits + np.uint64(0x3FF0000000000000 - 0x3FE6A09E667F3BCD)) >> np.uint64(52)
    m = (bits - (steps << np.uint64(52)) + np.uint64(0x3FF0000000000000)).view(np.float64)
    e = steps.astype(np.float64) - 1023.0
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = _horner(z, *(1.0 / n for n in range(23, 1, -2)))
    low = e * float.fromhex("0x1.a39ef35793c76p-33") + 2.0 * s * (z * p)
    return e * float.fromhex("0x1.62e42feep-1") + (2.0 * s + low)


def _sin(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sine for ``|x| <= pi / 4``."""
    z = x * x
    p = _horner(z, *((-1.0) ** (n // 2) / math.factorial(n) for n in range(17, 1, -2)))
    return x + x * (z * p)


def _cos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine for ``|x| <= pi / 4``."""
    z = x * x
    return 1.0 + z * _horner(z, *((-1.0) ** (n // 2) / math.factorial(n) for n in range(18, 1, -2)))


def _horner(z: NDArray[np.float64], *coefficients: float) -> NDArray[np.float64]:
    """A polynomial, coefficients from the highest power down."""
    p = np.full_like(z, coefficients[0])
    for c in coefficients[1:]:
        p = p * z + c
    return p


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def _words(tensor: Tensor) -> str:
    """What a tensor is, as the compiled operators say it."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    layout = "" if tensor.is_contiguous() else ", not contiguous,"
    return f"{dtype} of shape {list(tensor.shape)}{layout} on {tensor.device}"


def _overlap(a: Tensor, b: Tensor) -> bool:
    p, q = a.data_ptr(), b.data_ptr()
    return p < q + b.numel() * b.element_size() and q < p + a.numel() * a.element_size()


def _check_perturb(
    params: Sequence[Tensor], center: Tensor, directions: Tensor, coordinates: Sequence[float]
) -> None:
    _require(
        center.dim() == 1 and center.is_contiguous() and center.dtype in _MASTER,
        "perturb_: center must be a contiguous float32 or float64 [P] tensor, got "
        + _words(center),
    )
    size = center.numel()
    _require(
        directions.dim() == 2
        and directions.is_contiguous()
        and directions.shape[1] == size
        and directions.dtype == center.dtype
        and directions.device == center.device,
        "perturb_: directions must be a contiguous [K, P] tensor with the dtype and device of "
        f"center and P = {size}, got {_words(directions)}",
    )
    _require(
        len(coordinates) == len(directions),
        f"perturb_: coordinates must be K = {len(directions)} numbers, got {len(coordinates)}",
    )
    for c in coordinates:
        _require(math.isfinite(c), f"perturb_: coordinates must be finite, got {c}")
    total = 0
    for position, param in enumerate(params):
        _require(
            param.is_contiguous() and param.dtype in _FLOATING and param.device == center.device,
            f"perturb_: params must be contiguous floating tensors on {center.device}, "
            f"got {_words(param)} at position {position}",
        )
        _require(
            param.numel() == 0 or not (_overlap(param, center) or _overlap(param, directions)),
            "perturb_: params must not share memory with center or directions, got such a tensor "
            f"at position {position}",
        )
        total += param.numel()
    _require(total == size, f"perturb_: params must have P = {size} entries in all, got {total}")


def _check_filter_normalize(
    directions: Tensor, center: Tensor, runs: Tensor, groups: Tensor, norms: Tensor
) -> None:
    op = "filter_normalize_"
    _require(
        directions.dim() == 2 and directions.is_contiguous() and directions.dtype in _FLOATING,
        f"{op}: directions must be a contiguous floating [K, P] tensor, got {_words(directions)}",
    )
    size = directions.shape[1]
    _require(
        center.shape == (size,)
        and center.is_contiguous()
        and center.dtype == directions.dtype
        and center.device == directions.device,
        f"{op}: center must be a contiguous [P] tensor with the dtype and device of directions "
        f"and P = {size}, got {_words(center)}",
    )
    _require(
        _is_table(runs) and runs.dim() == 2 and runs.shape[1] == 4,
        f"{op}: runs must be a contiguous int64 [R, 4] tensor on cpu, got {_words(runs)}",
    )
    _require(
        _is_table(groups) and groups.dim() == 1 and groups.numel() > 0,
        f"{op}: groups must be a contiguous int64 [F + 1] tensor on cpu, got {_words(groups)}",
    )
    rows, filters = len(directions) + 1, groups.numel() - 1
    _require(
        norms.shape == (rows, filters)
        and norms.is_contiguous()
        and norms.dtype == torch.float64
        and norms.device == directions.device,
        f"{op}: norms must be a contiguous float64 [K + 1, F] tensor on {directions.device} with "
        f"K + 1 = {rows} and F = {filters}, got {_words(norms)}",
    )
    for r, (offset, count, stride, inner) in enumerate(runs.tolist()):
        end = offset + (count - 1) * stride + inner if count and inner else offset
        _require(
            min(offset, count, stride, inner) >= 0
            and end <= size
            and not (count > 1 and inner and stride < inner),
            f"{op}: runs must be rows (offset, count, stride, inner) of entries in [0, P) with "
            f"P = {size} and stride >= inner, got ({offset}, {count}, {stride}, {inner}) in "
            f"row {r}",
        )
    bounds = groups.tolist()
    ends = bounds[0] == 0 and bounds[-1] == len(runs)
    falls = any(b < a for a, b in pairwise(bounds))
    _require(
        ends and not falls,
        f"{op}: groups must rise from 0 to R = {len(runs)}, got a table from {bounds[0]} to "
        f"{bounds[-1]}{' that falls in between' if ends else ''}",
    )


def _is_table(tensor: Tensor) -> bool:
    return tensor.dtype == torch.int64 and tensor.is_contiguous() and tensor.device.type == "cpu"


def _check_gaussian(out: Tensor, offset: int) -> None:
    _require(
        out.dim() == 1 and out.is_contiguous() and out.dtype in _MASTER,
        f"gaussian_: out must be a contiguous float32 or float64 [n] tensor, got {_words(out)}",
    )
    _require(
        offset >= 0 and offset + out.numel() < 2**63,
        f"gaussian_: offset must be at least 0 with offset + n < 2^63, got {offset}",
    )


def _check_orthogonalize(w: Tensor, basis: Tensor, coefficients: Tensor) -> None:
    op = "orthogonalize_"
    _require(
        w.dim() == 1 and w.is_contiguous() and w.dtype in _MASTER,
        f"{op}: w must be a contiguous float32 or float64 [P] tensor, got {_words(w)}",
    )
    size, rows = w.numel(), basis.shape[0] if basis.dim() else 0
    _require(
        basis.dim() == 2
        and basis.is_contiguous()
        and basis.shape[1] == size
        and basis.dtype == w.dtype
        and basis.device == w.device,
        f"{op}: basis must be a contiguous [K, P] tensor with the dtype and device of w and P = "
        f"{size}, got {_words(basis)}",
    )
    _require(
        coefficients.shape == (rows,)
        and coefficients.is_contiguous()
        and coefficients.dtype == torch.float64
        and coefficients.device == w.device,
        f"{op}: coefficients must be a contiguous float64 [K] tensor on {w.device} with K = "
        f"{rows}, got {_words(coefficients)}",
    )
    shared = _overlap(w, basis) or _overlap(w, coefficients) or _overlap(basis, coefficients)
    _require(not shared, f"{op}: w, basis and coefficients must not share memory, got two that do")
