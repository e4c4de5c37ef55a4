"""The operators under typed Python names: compiled where that is possible, else plain PyTorch.

The operators check their arguments and raise RuntimeError: "op: argument must be <rule>, got
<value>". They write to tensors that may require gradients, and record nothing for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from landscapex import _fallback, _lib


def perturb_(
    params: Sequence[Tensor],
    center: Tensor,
    directions: Tensor,
    coordinates: Sequence[float],
) -> None:
    """Write a point of the landscape into the parameters of a model.

    Entry ``i`` of the flat parameters becomes ``center[i] + c_0 d_0[i] + c_1 d_1[i] + ...``, with
    products and sums in float64, in this order, rounded once to the dtype of ``center`` and then,
    for half types, to nearest even to the dtype of the parameter. An entry whose products are all
    zero keeps the bits of ``center``. The same bits come from every instruction set, device and
    number of threads.

    Args:
        params: Contiguous tensors of any shapes, consecutive in the flat order, ``P`` entries in
            all; float16, bfloat16, float32 or float64, also mixed. Written to.
        center: ``(P,)``, float32 or float64, the copy that the point is computed from.
        directions: ``(K, P)``, dtype and device of ``center``.
        coordinates: ``K`` finite numbers.

    References:
        Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, equation (1).

    Example:
        >>> weight, bias = torch.zeros(1, 2), torch.zeros(1)
        >>> center, directions = torch.tensor([1.0, 2.0, 3.0]), torch.eye(2, 3)
        >>> perturb_([weight, bias], center, directions, [0.5, -1.0])
        >>> weight, bias
        (tensor([[1.5000, 1.0000]]), tensor([3.]))
    """
    if _compiled(center):
        op = torch.ops.landscapex.perturb_.default
        if torch.is_grad_enabled():
            with torch.no_grad():
                op(params, center, directions, coordinates)
        else:
            op(params, center, directions, coordinates)
        _written(params)
    else:
        _fallback.perturb_(params, center, directions, coordinates)


def filter_normalize_(
    directions: Tensor,
    center: Tensor,
    runs: Tensor,
    groups: Tensor,
    norms: Tensor,
    *,
    elementwise: bool = False,
) -> None:
    """Give each group of entries of each direction the length of the same group in ``center``.

    ``d_g`` becomes ``d_g * |theta_g| / |d_g|``, and exact zeros where either length is zero. Sums
    are float64, in an order that depends neither on the instruction set nor on threads.

    Args:
        directions: ``(K, P)``, any floating dtype. Written to; entries in no run are left alone.
        center: ``(P,)``, dtype and device of ``directions``.
        runs: ``(R, 4)`` int64 on the CPU, rows ``(offset, count, stride, inner)``: ``count`` pieces
            of ``inner`` neighbouring entries, ``stride`` apart, the first at ``offset``. No entry
            may be in two runs.
        groups: ``(F + 1,)`` int64 on the CPU, rising from 0 to ``R``: group ``f`` has the runs
            ``groups[f] <= r < groups[f + 1]``.
        norms: ``(K + 1, F)`` float64 on the device of ``directions``. Receives the lengths found:
            of the directions, then, in the last row, of ``center``.
        elementwise: Multiply each entry of a direction by the same entry of ``center`` instead.

    References:
        Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, section 4.

    Example:
        >>> d, center = torch.tensor([[3.0, 4.0, 1.0]]), torch.tensor([0.0, 10.0, 7.0])
        >>> norms = torch.empty(2, 1, dtype=torch.float64)
        >>> runs, groups = torch.tensor([[0, 1, 0, 2]]), torch.tensor([0, 1])
        >>> filter_normalize_(d, center, runs, groups, norms)
        >>> d, norms.tolist()
        (tensor([[6., 8., 1.]]), [[5.0], [10.0]])
    """
    if _compiled(directions):
        op = torch.ops.landscapex.filter_normalize_.default
        with torch.no_grad():
            op(directions, center, runs, groups, norms, elementwise)
        _written((directions, norms))
    else:
        _fallback.filter_normalize_(
            directions, center, runs, groups, norms, elementwise=elementwise
        )


def gaussian_(out: Tensor, key: int, stream: int, offset: int = 0) -> None:
    """Fill a tensor with a part of a stream of standard normal numbers.

    Entry ``i`` is number ``offset + i`` of the stream: a function of ``key``, ``stream`` and that
    index alone, with the same bits on every device and in every version of torch and NumPy.

    Args:
        out: ``(n,)``, contiguous, float32 or float64. Written to. Float32 is the float64 number,
            rounded.
        key: The 64 bits of the Philox 4x32-10 key, as a signed integer.
        stream: Number of the stream under that key, 64 bits as a signed integer.
        offset: Index in the stream of ``out[0]``, at least 0.

    References:
        Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

    Example:
        >>> whole, part = torch.empty(5), torch.empty(2)
        >>> gaussian_(whole, key=7, stream=0)
        >>> gaussian_(part, key=7, stream=0, offset=3)
        >>> torch.equal(whole[3:], part)
        True
    """
    if _compiled(out):
        with torch.no_grad():
            torch.ops.landscapex.gaussian_.default(out, key, stream, offset)
        _written((out,))
    else:
        _fallback.gaussian_(out, key, stream, offset)


def orthogonalize_(w: Tensor, basis: Tensor, coefficients: Tensor) -> None:
    """Make a vector orthogonal to orthonormal rows, by classical Gram-Schmidt twice.

    ``c = Q w; w -= Q^T c``, and the same again with what is left. Inner products are summed in
    float64, in an order that depends neither on the instruction set nor on threads; each entry of
    ``w`` is changed in float64, row after row, and rounded once in each of the two passes. Memory
    with ``Q`` is read three times, not four: one pass changes ``w`` piece by piece and takes the
    inner products of the next with what is still in the cache.

    Args:
        w: ``(P,)``, float32 or float64. Written to.
        basis: ``Q``, ``(K, P)``, dtype and device of ``w``.
        coefficients: ``(K,)`` float64 on the device of ``w``. Receives the sum of both ``c``.

    References:
        Giraud, Langou, Rozložník, "The loss of orthogonality in the Gram-Schmidt
        orthogonalization process", Computers & Mathematics with Applications 50, 2005.

    Example:
        >>> w, c = torch.tensor([3.0, 4.0, 5.0]), torch.empty(2, dtype=torch.float64)
        >>> orthogonalize_(w, torch.eye(2, 3), c)
        >>> w, c.tolist()
        (tensor([0., 0., 5.]), [3.0, 4.0])
    """
    if _compiled(w):
        with torch.no_grad():
            torch.ops.landscapex.orthogonalize_.default(w, basis, coefficients)
        _written((w, coefficients))
    else:
        _fallback.orthogonalize_(w, basis, coefficients)


def _compiled(tensor: Tensor) -> bool:
    """Whether an operator for the device of this tensor was built."""
    return _lib.cuda if tensor.is_cuda else _lib.native and (tensor.is_cpu or tensor.is_meta)


def _written(tensors: Iterable[Tensor]) -> None:
    """Tell autograd that the tensors changed: the stable ABI has no kernel that would."""
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(tensors)


if _lib.native:

    @torch.library.register_fake("landscapex::perturb_")
    def _(params: list[Tensor], center: Tensor, directions: Tensor, c: list[float]) -> None:
        return None

    @torch.library.register_fake("landscapex::filter_normalize_")
    def _(
        d: Tensor, center: Tensor, r: Tensor, g: Tensor, norms: Tensor, elementwise: bool
    ) -> None:
        return None

    @torch.library.register_fake("landscapex::gaussian_")
    def _(out: Tensor, key: int, stream: int, offset: int) -> None:
        return None

    @torch.library.register_fake("landscapex::orthogonalize_")
    def _(w: Tensor, basis: Tensor, coefficients: Tensor) -> None:
        return None
